//! `send_proxy`: the header that backends get, when, and on which connections.

use super::{FRONT_ADDRESS, ProxyHeader, V1, V2, db, ends, header, parse, read_header, to, web};
use crate::harness::{
    client::HttpClient,
    daemon::TestDaemon,
    peer::{Gate, PeerConnection, Recorder, ScriptedPeer},
};

/// Reads a header, records it, and answers every request with the number of its connection.
fn backend(headers: &Recorder<ProxyHeader>) -> ScriptedPeer {
    let headers = headers.clone();
    ScriptedPeer::start(move |mut connection| {
        let Some(header) = read_header(&mut connection) else {
            return;
        };
        headers.push(header);
        serve(connection);
    })
}

fn serve(mut connection: PeerConnection) {
    while connection.request().is_some() {
        let number = connection.number().to_string();
        if !connection.answer(&number) {
            return;
        }
    }
}

fn number(client: &mut HttpClient) -> String {
    client.request("GET", "/").unwrap().text()
}

#[test]
fn a_kept_connection_serves_one_client_only() {
    for version in ["v1", "v2"] {
        let headers = Recorder::default();
        let peer = backend(&headers);
        // Long enough that none is given up in between.
        let pool = format!(
            "{}, send_proxy: {version}, keepalive: {{idle_timeout: 60s}}",
            to(peer.address)
        );
        let daemon = web("", &pool, "");
        let (mut one, mut two) = (daemon.client("@web"), daemon.client("@web"));
        for _ in 0..3 {
            assert_eq!(number(&mut one), "0");
            assert_eq!(number(&mut two), "1");
        }
        let told: Vec<_> = headers.all().into_iter().map(ends).collect();
        assert_eq!(told.len(), 2);
        for (told, client) in told.iter().zip([&one, &two]) {
            assert_eq!(told.source, client.local_address());
            assert_eq!(told.destination, daemon.address("@web"));
        }
    }
}

#[test]
fn clients_that_left_do_not_keep_the_places_of_others() {
    let headers = Recorder::default();
    let peer = backend(&headers);
    let pool = format!(
        "{}, send_proxy: v2, keepalive: {{idle_per_backend: 1, idle_timeout: 60s}}",
        to(peer.address)
    );
    let daemon = web("", &pool, "");
    assert_eq!(number(&mut daemon.client("@web")), "0");
    let mut client = daemon.client("@web");
    for _ in 0..3 {
        assert_eq!(number(&mut client), "1");
    }
    daemon.wait_for_metric("balancer_backend_connections_idle", |idle| idle as u64 == 1);
}

#[test]
fn what_a_header_told_us_is_passed_on() {
    let headers = Recorder::default();
    let peer = backend(&headers);
    let pool = format!("{}, send_proxy: v2", to(peer.address));
    let daemon = web(", accept_proxy: {from: 127.0.0.1}", &pool, "");
    let mut client = daemon.client("@web");
    client.send(header(V1, "192.0.2.1:5000"));
    assert_eq!(number(&mut client), "0");
    let told = ends(headers.all()[0]);
    assert_eq!(told.source, "192.0.2.1:5000".parse().unwrap());
    assert_eq!(told.destination, FRONT_ADDRESS.parse().unwrap());
    // Behind one connection of a balancer in front there may be another client each time.
    let mut other = daemon.client("@web");
    other.send(header(V1, "192.0.2.2:5000"));
    assert_eq!(number(&mut other), "1");
    // A client that has no address is told without one.
    let mut unix = header(V2, "192.0.2.1:5000");
    unix.truncate(13);
    unix.extend([0x31, 0, 216]);
    unix.extend([7; 216]);
    let mut addressless = daemon.client("@web");
    addressless.send(unix);
    assert_eq!(number(&mut addressless), "2");
    assert_eq!(headers.all()[2], ProxyHeader::Own);
}

#[test]
fn a_tcp_backend_is_told_before_anybody_speaks() {
    for (word, version) in [("v1", V1), ("v2", V2)] {
        let headers = Recorder::default();
        let seen = headers.clone();
        let peer = ScriptedPeer::start(move |mut connection| {
            // The client waits for the greeting, and the greeting for the header.
            let Some(header) = read_header(&mut connection) else {
                return;
            };
            seen.push(header);
            connection.send("220 ready\r\n");
            while let Some(part) = connection.some() {
                connection.send(part);
            }
        });
        let daemon = db("", &format!("{}, send_proxy: {word}", to(peer.address)));
        let mut client = daemon.client("@db");
        assert_eq!(client.until(b"\n").unwrap(), b"220 ready\r\n");
        client.send("HELO");
        assert_eq!(client.exactly(4).unwrap(), b"HELO");
        let told = ends(headers.all()[0]);
        assert_eq!(told.source, client.local_address());
        assert_eq!(told.destination, daemon.address("@db"));
        drop(client);
        let line = daemon.wait_for_access(|line| line["listener"] == "db");
        assert_eq!(line["bytes_in"], 4, "{version:?}");
    }
}

#[test]
fn a_retry_on_another_backend_sends_the_header_too() {
    let headers = Recorder::default();
    let good = backend(&headers);
    let seen = Recorder::default();
    let bad = {
        let seen = seen.clone();
        ScriptedPeer::start(move |mut connection| {
            if let Some(header) = read_header(&mut connection) {
                seen.push(header);
                connection.head();
            }
        })
    };
    let daemon = web(
        "",
        &format!(
            "backends: [\"{}\", \"{}\"], health_check: none, ejection: none, send_proxy: v2",
            bad.address, good.address
        ),
        "",
    );
    let mut client = daemon.client("@web");
    for _ in 0..4 {
        assert_eq!(number(&mut client), "0");
    }
    let all = [seen.all(), headers.all()].concat();
    assert!(all.len() >= 2 && !seen.all().is_empty(), "{all:?}");
    for told in all {
        assert_eq!(ends(told).source, client.local_address());
    }
}

#[test]
fn a_connection_kept_without_a_header_is_not_used_with_one() {
    let seen = Recorder::<Vec<u8>>::default();
    let peer = {
        let seen = seen.clone();
        ScriptedPeer::start(move |mut connection| {
            while let Some(request) = connection.until(b"\r\n\r\n") {
                seen.push(request);
                let number = connection.number().to_string();
                connection.answer(&number);
            }
        })
    };
    let config = |send: &str| {
        format!(
            "workers: 1\nlisteners: {{web: {{bind: \"@web\", pool: app}}}}\npools: {{app: {{{}, \
             send_proxy: {send}, keepalive: {{idle_timeout: 60s}}}}}}\n",
            to(peer.address)
        )
    };
    let mut daemon = TestDaemon::start(&config("none"));
    let mut client = daemon.client("@web");
    let number = |client: &mut HttpClient| client.request("GET", "/").unwrap().text();
    assert_eq!(number(&mut client), "0");
    assert_eq!(daemon.reload(&config("v1")).status, 200);
    assert_eq!(number(&mut client), "1");
    assert_eq!(number(&mut client), "1");
    assert_eq!(daemon.reload(&config("none")).status, 200);
    assert_eq!(number(&mut client), "0");
    let requests = seen.all();
    let begins = |at: usize, word: &str| requests[at].starts_with(word.as_bytes());
    assert!(begins(0, "GET") && begins(1, "PROXY TCP4 127.0.0.1 ") && begins(2, "GET"));
    assert!(begins(3, "GET"));
}

#[test]
fn checks_say_that_they_are_our_own() {
    let seen = Recorder::<Vec<u8>>::default();
    let peer = {
        let seen = seen.clone();
        ScriptedPeer::start(move |mut connection| {
            if let Ok(bytes) = connection.rest() {
                seen.push(bytes);
            }
        })
    };
    let check = |version: &str| {
        web(
            "",
            &format!(
                "backends: [\"{}\"], health_check: {{interval: 100ms}}, send_proxy: {version}",
                peer.address
            ),
            "",
        )
    };
    for (version, own) in [("v2", V2), ("v1", V1)] {
        let daemon = check(version);
        daemon.wait_for_metric("balancer_backend_up", |up| up > 0.5);
        let found = seen.wait_for(|all| {
            all.iter()
                .find(|bytes| parse(bytes, Some(own)).is_ok_and(|found| found.is_some()))
                .cloned()
        });
        let bytes = found.unwrap_or_else(|| panic!("{version}: {:?}", seen.all()));
        let (header, length) = parse(&bytes, Some(own)).unwrap().unwrap();
        assert_eq!(
            (header, length),
            (ProxyHeader::Own, bytes.len()),
            "{bytes:?}"
        );
        let wanted: &[u8] = if own == V1 {
            b"PROXY UNKNOWN\r\n"
        } else {
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
        };
        assert_eq!(bytes, wanted);
    }
}

#[test]
fn an_http_check_asks_behind_its_header_and_another_port_without_one() {
    let headers = Recorder::default();
    let peer = backend(&headers);
    let other = ScriptedPeer::answering("fine");
    for (port, asked) in [
        (String::new(), &peer),
        (format!(", port: {}", other.address.port()), &other),
    ] {
        let daemon = web(
            "",
            &format!(
                "backends: [\"{}\"], health_check: {{path: /healthz{port}}}, send_proxy: v2",
                peer.address
            ),
            "",
        );
        daemon.wait_for_metric("balancer_backend_up", |up| up > 0.5);
        assert_eq!(asked.wait_for_requests(1)[0].target, "/healthz");
    }
    assert!(
        headers
            .all()
            .iter()
            .all(|header| *header == ProxyHeader::Own)
    );
}

#[test]
fn a_backend_that_leaves_before_the_header_is_passed_over() {
    let gate = Gate::new();
    gate.open();
    let headers = Recorder::default();
    let good = backend(&headers);
    let bad = ScriptedPeer::start(PeerConnection::reset);
    let daemon = web(
        "",
        &format!(
            "backends: [\"{}\", \"{}\"], health_check: none, ejection: none, send_proxy: v1",
            bad.address, good.address
        ),
        "",
    );
    for _ in 0..8 {
        let mut client = daemon.client("@web");
        assert_eq!(client.request("GET", "/").unwrap().status, 200);
    }
}
