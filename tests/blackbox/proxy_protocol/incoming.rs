//! `accept_proxy`: trusted addresses, and connections from elsewhere.

use std::time::Duration;

use super::{FRONT_ADDRESS, V1, V2, db, echo, forwarded_for, header, to, web};
use crate::harness::{
    client::{HttpClient, HttpResponse, ReadError},
    daemon::TestDaemon,
    peer::ScriptedPeer,
};

const TRUSTED_LOOPBACK: &str = ", accept_proxy: {from: 127.0.0.1}";
const REJECTED_CONNECTIONS: &str = "balancer_listener_connections_rejected_total";

/// One request on a connection that begins with `start`, sent in one piece.
fn get(daemon: &TestDaemon, start: &[u8], target: &str) -> Result<HttpResponse, ReadError> {
    let mut client = daemon.client("@web");
    let request = format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n");
    client.send([start, request.as_bytes()].concat());
    client.response()
}

#[test]
fn the_address_of_the_header_is_the_clients_address() {
    let backend = echo();
    let daemon = web(TRUSTED_LOOPBACK, &to(backend.address), "");
    for (version, client) in [(V1, "192.0.2.1"), (V2, "192.0.2.2"), (V1, "2001:db8::1")] {
        let source = std::net::SocketAddr::new(client.parse().unwrap(), 5000).to_string();
        let mut connection = daemon.client("@web");
        connection.send(header(version, &source));
        for _ in 0..2 {
            let answer = connection.request("GET", "/").unwrap();
            assert_eq!(forwarded_for(&answer.text()), Some(client.parse().unwrap()));
        }
        daemon.wait_for_access(|line| line["client"] == client);
    }
    // An IPv4 address is the same however it is written.
    let mapped = b"PROXY TCP6 ::ffff:192.0.2.9 ::ffff:198.51.100.2 5000 443\r\n";
    let answer = get(&daemon, mapped, "/").unwrap();
    assert_eq!(
        forwarded_for(&answer.text()),
        Some("192.0.2.9".parse().unwrap())
    );
    let rejected = daemon.metric(REJECTED_CONNECTIONS);
    assert!(rejected < 0.5, "{rejected}");
}

#[test]
fn the_address_connected_to_is_that_of_the_header() {
    let backend = echo();
    let daemon = web(TRUSTED_LOOPBACK, &to(backend.address), "");
    let mut client = daemon.client("@web");
    client.send([&header(V2, "192.0.2.1:5000")[..], b"GET / HTTP/1.0\r\n\r\n"].concat());
    let body = client.response().unwrap().text();
    assert!(
        body.contains(&format!("Host: {FRONT_ADDRESS}\r\n")),
        "{body}"
    );
    assert!(body.contains("X-Forwarded-Port: 443\r\n"), "{body}");
    assert!(body.contains("X-Real-IP: 192.0.2.1\r\n"), "{body}");
}

#[test]
fn header_and_request_may_come_in_any_pieces() {
    let backend = echo();
    let daemon = web(TRUSTED_LOOPBACK, &to(backend.address), "");
    for version in [V1, V2] {
        let request = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";
        let bytes = [&header(version, "192.0.2.1:5000")[..], request].concat();
        let mut client = daemon.client("@web");
        for byte in &bytes {
            client.send([*byte]);
        }
        let answer = client.response().unwrap();
        assert_eq!(
            forwarded_for(&answer.text()),
            Some("192.0.2.1".parse().unwrap())
        );
        for split in 1..bytes.len() {
            let mut client = daemon.client("@web");
            client.send(&bytes[..split]).send(&bytes[split..]);
            assert_eq!(client.response().unwrap().status, 200, "{split}");
        }
    }
}

#[test]
fn without_an_address_in_the_header_that_of_the_connection_counts_or_none() {
    let backend = echo();
    let daemon = web(TRUSTED_LOOPBACK, &to(backend.address), "");
    let mut local = header(V2, "192.0.2.1:5000");
    local[12] = 0x20;
    for start in [&b"PROXY UNKNOWN\r\n"[..], &local] {
        let answer = get(&daemon, start, "/").unwrap();
        assert_eq!(
            forwarded_for(&answer.text()),
            Some("127.0.0.1".parse().unwrap())
        );
    }
    let mut unix = header(V2, "192.0.2.1:5000");
    unix.truncate(13);
    unix.extend([0x31, 0, 216]);
    unix.extend([7; 216]);
    let answer = get(&daemon, &unix, "/").unwrap();
    assert_eq!(forwarded_for(&answer.text()), None);
}

#[test]
fn a_client_that_is_not_listed_is_refused_with_or_without_a_header() {
    let backend = echo();
    let daemon = web(
        ", accept_proxy: {from: [192.0.2.0/24]}",
        &to(backend.address),
        "",
    );
    // Without having sent a byte,
    let mut client = daemon.client("@web");
    assert_eq!(client.response(), Err(ReadError::Reset(Vec::new())));
    // or before what is sent is read, so that writing may be what meets the reset.
    let mut client = daemon.client("@web");
    client.try_send(header(V1, "192.0.2.1:5000"));
    client.try_send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let end = client.response().unwrap_err();
    assert!(
        matches!(end, ReadError::Reset(_) | ReadError::Closed),
        "{end:?}"
    );
    let denied = format!("{REJECTED_CONNECTIONS}{{reason=\"http_request_denied\"}}");
    daemon.wait_for_metric(&denied, |count| count > 1.5);
    let line = daemon.wait_for_access(|line| line["reason"] == "http_request_denied");
    assert_eq!(line["client"], "127.0.0.1");
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_connection_without_a_valid_header_is_refused_at_once() {
    let backend = echo();
    let daemon = web(
        ", accept_proxy: {version: v2, from: 127.0.0.1}",
        &to(backend.address),
        "",
    );
    let mut crc = header(V2, "192.0.2.1:5000");
    crc[15] += 7;
    crc.extend([3, 0, 4, 1, 2, 3, 4]);
    let starts = [
        b"GET / HTTP/1.1\r\nHost: test\r\n\r\n".to_vec(),
        header(V1, "192.0.2.1:5000"),
        b"\x16\x03\x01".to_vec(),
        b"\r\n\r\n".iter().chain(b"G").copied().collect(),
        crc,
    ];
    let count = starts.len();
    for start in starts {
        let mut client = daemon.client("@web");
        client.send(&start);
        let end = client.response().unwrap_err();
        assert_eq!(end, ReadError::Reset(Vec::new()), "{start:?}");
    }
    let invalid = format!("{REJECTED_CONNECTIONS}{{reason=\"http_request_error\"}}");
    daemon.wait_for_metric(&invalid, |seen| seen as usize == count);
    let line = daemon.wait_for_access(|line| line["reason"] == "http_request_error");
    assert_eq!(line["listener"], "web");
    assert_eq!(backend.connections(), 0);
    // The right version goes on to work.
    let answer = get(&daemon, &header(V2, "192.0.2.1:5000"), "/").unwrap();
    assert_eq!(answer.status, 200);
    daemon.wait_for_metric("balancer_listener_connections_active", |open| open < 0.5);
}

#[test]
fn a_header_must_come_whole_and_in_time() {
    let backend = echo();
    let timeouts = format!("{TRUSTED_LOOPBACK}, timeouts: {{header: 200ms}}");
    let daemon = web(&timeouts, &to(backend.address), "");
    for start in ["", "PROXY TCP4 192.0.2.1"] {
        let mut client = daemon.client("@web");
        client.send(start);
        assert_eq!(
            client.response(),
            Err(ReadError::Reset(Vec::new())),
            "{start:?}"
        );
    }
    let late = format!("{REJECTED_CONNECTIONS}{{reason=\"http_request_timeout\"}}");
    daemon.wait_for_metric(&late, |count| count > 1.5);
    // Header and first request have one time together.
    let mut client = daemon.client("@web");
    client.send(header(V2, "192.0.2.1:5000"));
    assert_eq!(client.response(), Err(ReadError::Closed));
    daemon.wait_for_metric("balancer_listener_connections_active", |open| open < 0.5);
}

#[test]
fn only_what_has_begun_can_be_cut() {
    let backend = echo();
    let daemon = web(TRUSTED_LOOPBACK, &to(backend.address), "");
    drop(daemon.client("@web"));
    let mut client = daemon.client("@web");
    client.send("PROXY TCP4 ").finish();
    assert_eq!(client.response(), Err(ReadError::Reset(Vec::new())));
    daemon.wait_for_metric("balancer_listener_connections_active", |open| open < 0.5);
    assert_eq!(
        daemon.metric("balancer_listener_connections_total") as u64,
        2
    );
    assert_eq!(daemon.metric(REJECTED_CONNECTIONS) as u64, 1);
    let cut = format!("{REJECTED_CONNECTIONS}{{reason=\"client_disconnected\"}}");
    assert_eq!(daemon.metric(&cut) as u64, 1);
}

#[test]
fn rules_about_clients_look_at_the_header() {
    let backend = echo();
    let daemon = web(
        ", accept_proxy: {from: 127.0.0.1}, allow: [192.0.2.0/24, 203.0.113.0/24], deny: [192.0.2.66]",
        &to(backend.address),
        "trusted_proxies: [192.0.2.7]\nroutes: [{path: /own, allow: [192.0.2.1], pool: app}]\n",
    );
    let status =
        |source: &str, target: &str| get(&daemon, &header(V2, source), target).unwrap().status;
    assert_eq!(status("192.0.2.1:5000", "/"), 200);
    assert_eq!(status("192.0.2.66:5000", "/"), 403);
    assert_eq!(status("127.0.0.1:5000", "/"), 403);
    assert_eq!(status("192.0.2.1:5000", "/own"), 200);
    assert_eq!(status("192.0.2.2:5000", "/own"), 403);
    for (source, trusted) in [("192.0.2.7:5000", true), ("192.0.2.8:5000", false)] {
        let mut client = daemon.client("@web");
        client.send(header(V1, source));
        client.send("GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n");
        let body = client.response().unwrap().text();
        assert_eq!(body.contains("203.0.113.9"), trusted, "{body}");
    }
}

#[test]
fn limits_of_a_client_count_by_the_header() {
    let backend = ScriptedPeer::answering("done");
    let daemon = web(
        &format!("{TRUSTED_LOOPBACK}, limits: {{connections_per_client: 1}}"),
        &to(backend.address),
        "",
    );
    let open = |source: &str| {
        let mut client = daemon.client("@web");
        client.send(header(V2, source));
        let status = client.request("GET", "/").unwrap().status;
        (client, status)
    };
    let (first, status) = open("192.0.2.1:5000");
    assert_eq!(status, 200);
    let (_second, status) = open("192.0.2.2:5000");
    assert_eq!(status, 200);
    assert_eq!(open("192.0.2.1:5001").1, 503);
    drop(first);
    daemon.wait_for_metric("balancer_listener_connections_active", |open| open < 1.5);
    assert_eq!(open("192.0.2.1:5002").1, 200);
}

#[test]
fn a_tcp_session_begins_behind_the_header() {
    let backend = ScriptedPeer::start(|mut connection| {
        connection.send("hello\n");
        while let Some(part) = connection.some() {
            connection.send(part);
        }
    });
    let daemon = db(
        ", accept_proxy: {version: any, from: [127.0.0.0/8]}, deny: [192.0.2.66]",
        &to(backend.address),
    );
    for (version, client) in [(V1, "192.0.2.1"), (V2, "192.0.2.2")] {
        let mut connection = daemon.client("@db");
        let bytes = header(version, &format!("{client}:5000"));
        let (first, second) = bytes.split_at(7);
        connection.send(first).send([second, b"ping"].concat());
        assert_eq!(connection.exactly(10).unwrap(), b"hello\nping");
        drop(connection);
        let line = daemon.wait_for_access(|line| line["client"] == client);
        assert_eq!(line["bytes_in"], 4, "the header is not the client's");
    }
    let mut connection = daemon.client("@db");
    connection.send(header(V2, "192.0.2.66:5000"));
    assert_eq!(connection.exactly(1), Err(ReadError::Reset(Vec::new())));
    let line = daemon.wait_for_access(|line| line["reason"] == "http_request_denied");
    assert_eq!(line["client"], "192.0.2.66");
    let mut connection = daemon.client("@db");
    connection.send("SELECT 1");
    assert_eq!(connection.exactly(1), Err(ReadError::Reset(Vec::new())));
    assert_eq!(backend.connections(), 2);
}

#[test]
fn a_peer_on_a_unix_socket_is_believed() {
    let backend = echo();
    let daemon = TestDaemon::start(&format!(
        "listeners:\n  web: {{bind: \"unix:@dir/web.sock\", pool: app{TRUSTED_LOOPBACK}}}\n\
         pools:\n  app: {{{}}}\n",
        to(backend.address)
    ));
    let mut client = HttpClient::connect_unix(&daemon.directory().join("web.sock"));
    client.send(header(V2, "192.0.2.1:5000"));
    let answer = client.request("GET", "/").unwrap();
    assert_eq!(
        forwarded_for(&answer.text()),
        Some("192.0.2.1".parse().unwrap())
    );
}

#[test]
fn a_drain_waits_for_a_header_under_way_and_cuts_none_that_works() {
    let backend = echo();
    let mut daemon = web(
        TRUSTED_LOOPBACK,
        &to(backend.address),
        "drain: {timeout: 20s}\n",
    );
    let bytes = header(V2, "192.0.2.1:5000");
    let mut client = daemon.client("@web");
    client.send(&bytes[..20]);
    daemon.wait_for_metric("balancer_listener_connections_active", |open| open > 0.5);
    daemon.signal(rustix::process::Signal::TERM);
    daemon.wait_for_log(|line| line.contains("draining"));
    client.send([&bytes[20..], b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"].concat());
    let answer = client.response().unwrap();
    assert_eq!(
        forwarded_for(&answer.text()),
        Some("192.0.2.1".parse().unwrap())
    );
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(daemon.wait_exit().success());
}

#[test]
fn a_reload_begins_to_ask_for_headers_with_the_next_connection() {
    let backend = echo();
    let config = |listener: &str| {
        format!(
            "workers: 1\nlisteners:\n  web: {{bind: \"@web\", pool: app{listener}}}\npools:\n  app: {{{}}}\n",
            to(backend.address)
        )
    };
    let mut daemon = TestDaemon::start(&config(""));
    let mut old = daemon.client("@web");
    assert_eq!(old.request("GET", "/").unwrap().status, 200);
    assert_eq!(daemon.reload(&config(TRUSTED_LOOPBACK)).status, 200);
    daemon.wait_for_log(|line| line.contains("accept_proxy changed"));
    assert_eq!(old.request("GET", "/").unwrap().status, 200);
    let mut plain = daemon.client("@web");
    plain.patience(Duration::from_secs(10));
    plain.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(plain.response(), Err(ReadError::Reset(Vec::new())));
    let answer = get(&daemon, &header(V1, "192.0.2.1:5000"), "/").unwrap();
    assert_eq!(answer.status, 200);
}
