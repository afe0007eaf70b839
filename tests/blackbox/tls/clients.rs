//! TLS from clients: certificates by name, versions, client certificates, failures, HTTP and TCP.

use std::{
    io::{Read, Write},
    thread,
};

use rustix::process::Signal;

use crate::harness::{
    client::HttpClient,
    daemon::TestDaemon,
    peer::ScriptedPeer,
    tls::{TestAuthority, connect, try_connect},
};

/// One https listener before `peer`, with more of its `tls` and of the file.
fn daemon(authority: &TestAuthority, peer: &ScriptedPeer, tls: &str, more: &str) -> TestDaemon {
    authority.sign("a", &["a.test", "b.test"]);
    let (pair, backend) = (authority.pair("a"), peer.address);
    TestDaemon::start(&format!(
        "access_log: {{when: {{min_status: 100, sample: 100%}}}}\n\
         listeners:\n  web: {{bind: \"@web\", tls: {{{pair}{tls}}}, pool: app{more}}}\n\
         pools:\n  app: {{backends: [\"{backend}\"], health_check: none}}\n"
    ))
}

fn ask(client: &mut HttpClient<impl Read + Write>, host: &str, more: &str) -> (u16, String) {
    client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n{more}\r\n"));
    let response = client.response().unwrap();
    (response.status, response.text())
}

#[test]
fn a_name_leads_to_its_certificate_and_any_other_to_the_first() {
    let authority = TestAuthority::new();
    let first = authority.sign("first", &["first.test", "unknown.test"]);
    let wide = authority.sign("wide", &["*.wide.test"]);
    let exact = authority.sign("exact", &["exact.wide.test"]);
    let peer = ScriptedPeer::answering("ok");
    let daemon = TestDaemon::start(&format!(
        "listeners:\n  web:\n    bind: \"@web\"\n    pool: app\n    tls:\n      certificates: [{{{}}}, {{{}}}, {{{}}}]\n\
         pools:\n  app: {{backends: [\"{}\"], health_check: none}}\n",
        authority.pair("first"),
        authority.pair("wide"),
        authority.pair("exact"),
        peer.address
    ));
    for (name, certificate) in [
        ("first.test", &first),
        ("x.wide.test", &wide),
        ("exact.wide.test", &exact),
        ("unknown.test", &first),
    ] {
        for only_12 in [false, true] {
            let config = authority.client(None, only_12);
            let mut client = connect(daemon.address("@web"), &config, name);
            let connection = &client.stream().conn;
            assert!(
                &connection.peer_certificates().unwrap()[0] == certificate,
                "{name}"
            );
            assert_eq!(connection.alpn_protocol(), Some(&b"http/1.1"[..]));
            assert_eq!(ask(&mut client, name, ""), (200, "ok".to_owned()));
        }
    }
    let expiry = "balancer_tls_certificate_expiry_timestamp_seconds";
    assert!(daemon.metric(expiry) > 1e9);
}

#[test]
fn requests_are_kept_alive_pipelined_and_known_as_https() {
    let authority = TestAuthority::new();
    let peer = ScriptedPeer::answering("ok");
    let daemon = daemon(&authority, &peer, "", "");
    let mut client = connect(
        daemon.address("@web"),
        &authority.client(None, false),
        "a.test",
    );
    for _ in 0..3 {
        assert_eq!(ask(&mut client, "a.test", "").0, 200);
    }
    let one = "GET /p HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-Proto: http\r\n\r\n";
    client.send(one.repeat(5));
    for _ in 0..5 {
        assert_eq!(client.response().unwrap().status, 200);
    }
    for request in peer.wait_for_requests(8) {
        assert_eq!(request.header("x-forwarded-proto"), Some("https"));
    }
    let line = daemon.wait_for_access(|line| line["path"] == "/p");
    assert_eq!(line["tls"], "TLSv1.3");
    let handshakes =
        "balancer_tls_handshakes_total{listener=\"web\",version=\"1.3\",resumed=\"false\"}";
    assert_eq!(daemon.metric("balancer_tls_handshakes_total"), 1.0);
    assert_eq!(daemon.metric(handshakes), 1.0);
}

#[test]
fn a_session_is_taken_up_again_and_counted() {
    let authority = TestAuthority::new();
    let peer = ScriptedPeer::answering("ok");
    let daemon = daemon(&authority, &peer, "", "");
    for only_12 in [false, true] {
        let config = authority.client(None, only_12);
        for _ in 0..2 {
            let mut client = connect(daemon.address("@web"), &config, "a.test");
            assert_eq!(ask(&mut client, "a.test", "").0, 200);
        }
    }
    let resumed = "balancer_tls_handshakes_total{resumed=\"true\"}";
    daemon.wait_for_metric(resumed, |count| count == 2.0);
    assert_eq!(daemon.metric("balancer_tls_handshakes_total"), 4.0);
}

#[test]
fn a_host_with_another_certificate_is_answered_421() {
    let authority = TestAuthority::new();
    authority.sign("c", &["c.test"]);
    let peer = ScriptedPeer::answering("ok");
    let more = format!(
        "certificates: [{{{}}}, {{{}}}]",
        authority.pair("a"),
        authority.pair("c")
    );
    authority.sign("a", &["a.test", "b.test"]);
    let daemon = TestDaemon::start(&format!(
        "listeners:\n  web: {{bind: \"@web\", tls: {{{more}}}, pool: app}}\n\
         pools:\n  app: {{backends: [\"{}\"], health_check: none}}\n",
        peer.address
    ));
    let mut client = connect(
        daemon.address("@web"),
        &authority.client(None, false),
        "a.test",
    );
    assert_eq!(
        ask(&mut client, "b.test", "").0,
        200,
        "the same certificate"
    );
    assert_eq!(ask(&mut client, "c.test", "").0, 421);
    assert_eq!(
        ask(&mut client, "a.test:8443", "").0,
        200,
        "the connection goes on"
    );
    let line = daemon.wait_for_access(|line| line["status"] == 421);
    assert_eq!(line["reason"], "misdirected_request");
}

#[test]
fn with_same_host_false_a_host_of_another_certificate_is_served() {
    let authority = TestAuthority::new();
    authority.sign("a", &["a.test"]);
    authority.sign("c", &["c.test"]);
    let peer = ScriptedPeer::answering("ok");
    let config = |same_host: bool| {
        format!(
            "listeners:\n  web: {{bind: \"@web\", tls: {{same_host: {same_host}, certificates: [{{{}}}, {{{}}}]}}, pool: app}}\n\
             routes: [{{host: c.test, respond: {{body: its own}}}}]\n\
             pools:\n  app: {{backends: [\"{}\"], health_check: none}}\n",
            authority.pair("a"),
            authority.pair("c"),
            peer.address
        )
    };
    let mut daemon = TestDaemon::start(&config(false));
    let trusting = authority.client(None, false);
    let mut client = connect(daemon.address("@web"), &trusting, "a.test");
    assert_eq!(ask(&mut client, "c.test", ""), (200, "its own".to_owned()));
    assert_eq!(ask(&mut client, "a.test", "").0, 200);
    assert_eq!(daemon.reload(&config(true)).status, 200);
    assert_eq!(ask(&mut client, "c.test", "").0, 421, "by the rules of now");
}

#[test]
fn a_client_certificate_is_known_by_its_subject_and_cannot_be_claimed() {
    let authority = TestAuthority::new();
    authority.sign("client", &["client.test"]);
    let peer = ScriptedPeer::answering("ok");
    let forged = "X-Subject: CN=root\r\nx_subject: CN=root\r\nConnection: x-subject\r\n";
    for required in [true, false] {
        let auth = if required { "required" } else { "optional" };
        let tls = format!(
            ", client_ca: {}, client_auth: {auth}, client_subject: X-Subject",
            authority.ca()
        );
        let daemon = daemon(&authority, &peer, &tls, "");
        let address = daemon.address("@web");
        let before = peer.requests.all().len();
        for only_12 in [false, true] {
            let mut client = connect(
                address,
                &authority.client(Some("client"), only_12),
                "a.test",
            );
            assert_eq!(ask(&mut client, "a.test", forged).0, 200);
        }
        for request in &peer.requests.all()[before..] {
            assert_eq!(request.header("x-subject"), Some("CN=client"));
            let head = request.head.to_ascii_lowercase();
            assert_eq!(head.matches("subject").count(), 1, "{head}");
        }
        let config = authority.client(None, true);
        let stranger = TestAuthority::new();
        stranger.sign("client", &["client.test"]);
        if required {
            assert!(try_connect(address, &config, "a.test").is_err());
            let reason = "balancer_tls_handshake_failures_total{reason=\"certificate_missing\"}";
            daemon.wait_for_metric(reason, |count| count == 1.0);
        } else {
            let mut client = connect(address, &config, "a.test");
            assert_eq!(ask(&mut client, "a.test", forged).0, 200);
            let request = peer.requests.all().pop().unwrap();
            assert!(!request.head.to_ascii_lowercase().contains("subject"));
        }
    }
}

#[test]
fn plain_http_on_the_port_is_told_so_and_counted() {
    let authority = TestAuthority::new();
    let peer = ScriptedPeer::answering("ok");
    let daemon = daemon(&authority, &peer, "", "");
    let response = daemon.get("@web", "/").unwrap();
    assert_eq!(response.status, 400);
    assert!(response.text().contains("HTTPS"), "{}", response.text());
    let reason = "balancer_tls_handshake_failures_total{reason=\"not_tls\"}";
    daemon.wait_for_metric(reason, |count| count == 1.0);
    assert_eq!(peer.connections(), 0);
    assert!(
        daemon
            .stderr
            .all()
            .iter()
            .all(|line| !line.contains("handshake"))
    );
}

#[test]
fn a_handshake_that_does_not_go_on_is_ended_in_time() {
    let authority = TestAuthority::new();
    let peer = ScriptedPeer::answering("ok");
    let daemon = daemon(&authority, &peer, "", ", timeouts: {tls: 200ms}");
    let mut client = daemon.client("@web");
    // The beginning of a record.
    client.send([22, 3, 1, 2]);
    let _ = client.rest();
    let reason = "balancer_tls_handshake_failures_total{reason=\"timeout\"}";
    daemon.wait_for_metric(reason, |count| count == 1.0);
    daemon.wait_for_metric("balancer_listener_connections_active", |count| count == 0.0);
}

#[test]
fn versions_below_the_least_are_refused() {
    let authority = TestAuthority::new();
    let peer = ScriptedPeer::answering("ok");
    let daemon = daemon(&authority, &peer, ", min_version: \"1.3\"", "");
    let address = daemon.address("@web");
    assert!(try_connect(address, &authority.client(None, true), "a.test").is_err());
    let reason = "balancer_tls_handshake_failures_total{reason=\"version\"}";
    daemon.wait_for_metric(reason, |count| count == 1.0);
    let mut client = connect(address, &authority.client(None, false), "a.test");
    assert_eq!(ask(&mut client, "a.test", "").0, 200);
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[test]
fn big_bodies_pass_whole_in_both_directions() {
    let authority = TestAuthority::new();
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let length = request.body.len();
            connection.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
            ));
            connection.send(&request.body);
        }
    });
    let daemon = daemon(&authority, &peer, "", "");
    let body = pattern(5 << 20);
    for only_12 in [false, true] {
        let config = authority.client(None, only_12);
        let mut client = connect(daemon.address("@web"), &config, "a.test");
        for _ in 0..2 {
            let length = body.len();
            client.send(format!(
                "PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n"
            ));
            client.send(&body);
            assert!(client.response().unwrap().body == body);
        }
    }
}

#[test]
fn a_chunked_answer_before_the_end_of_the_connection_is_whole() {
    let authority = TestAuthority::new();
    let peer = ScriptedPeer::start(|mut connection| {
        connection.request();
        // Until the end of the connection.
        connection.send("HTTP/1.1 200 OK\r\n\r\n");
        connection.send(pattern(3 << 20));
    });
    let daemon = daemon(&authority, &peer, "", "");
    let mut client = connect(
        daemon.address("@web"),
        &authority.client(None, false),
        "a.test",
    );
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
    assert!(client.response().unwrap().body == pattern(3 << 20));
    let mut rest = Vec::new();
    // Without the orderly end of TLS this is an error.
    assert_eq!(client.stream().read_to_end(&mut rest).unwrap(), 0);
}

#[test]
fn a_switched_protocol_runs_over_tls() {
    let authority = TestAuthority::new();
    let peer = ScriptedPeer::start(|mut connection| {
        connection.head();
        connection.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n",
        );
        while let Some(bytes) = connection.some() {
            connection.send(bytes);
        }
    });
    let daemon = daemon(&authority, &peer, "", "");
    let mut client = connect(
        daemon.address("@web"),
        &authority.client(None, false),
        "a.test",
    );
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n");
    assert_eq!(client.head().unwrap().0, 101);
    for round in 0..20_usize {
        let bytes = pattern(1 + round * 500);
        client.send(&bytes);
        assert!(client.exactly(bytes.len()).unwrap() == bytes);
    }
    client.stream().conn.send_close_notify();
    let stream = client.stream();
    stream.conn.complete_io(&mut stream.sock).unwrap();
    let mut rest = Vec::new();
    assert_eq!(
        stream.read_to_end(&mut rest).unwrap(),
        0,
        "ended in order, both ways"
    );
}

#[test]
fn a_tcp_listener_with_tls_carries_anything() {
    let authority = TestAuthority::new();
    authority.sign("a", &["a.test"]);
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(bytes) = connection.some() {
            connection.send(bytes);
        }
        connection.send("bye");
    });
    let daemon = TestDaemon::start(&format!(
        "access_log: {{when: {{sample: 100%}}}}\n\
         listeners:\n  db: {{bind: \"@db\", protocol: tcp, tls: {{{}}}, pool: db, timeouts: {{tls: 5s}}}}\n\
         pools:\n  db: {{backends: [\"{}\"], health_check: none}}\n",
        authority.pair("a"),
        peer.address
    ));
    let mut config = (*authority.client(None, false)).clone();
    config.alpn_protocols.clear();
    let mut client = connect(daemon.address("@db"), &config.into(), "a.test");
    let bytes = pattern(1 << 20);
    for part in bytes.chunks(100_000) {
        client.send(part);
        assert!(client.exactly(part.len()).unwrap() == part);
    }
    // Our end reaches the backend, and what it says then reaches us, with its end.
    let stream = client.stream();
    stream.conn.send_close_notify();
    stream.conn.complete_io(&mut stream.sock).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"bye");
    let line = daemon.wait_for_access(|line| line["listener"] == "db");
    assert_eq!(line["tls"], "TLSv1.3");
    assert!(line["reason"].is_null());
    // No HTTP response comes here.
    let mut plain = daemon.client("@db");
    plain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(plain.rest().unwrap_or_default(), b"");
}

#[test]
fn a_drain_ends_idle_connections_in_order() {
    let authority = TestAuthority::new();
    let peer = ScriptedPeer::answering("ok");
    let mut daemon = daemon(&authority, &peer, "", "");
    let mut clients: Vec<_> = (0..3)
        .map(|_| {
            connect(
                daemon.address("@web"),
                &authority.client(None, false),
                "a.test",
            )
        })
        .collect();
    for client in &mut clients {
        assert_eq!(ask(client, "a.test", "").0, 200);
    }
    daemon.signal(Signal::TERM);
    for client in &mut clients {
        let mut rest = Vec::new();
        assert_eq!(client.stream().read_to_end(&mut rest).unwrap(), 0);
    }
    assert!(daemon.wait_exit().success());
}

#[test]
fn clients_at_the_same_time_keep_their_bytes_apart() {
    let authority = TestAuthority::new();
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            connection.answer(&request.target);
        }
    });
    let daemon = daemon(&authority, &peer, "", "");
    let address = daemon.address("@web");
    thread::scope(|scope| {
        for number in 0..8 {
            let config = authority.client(None, number % 2 == 0);
            scope.spawn(move || {
                for round in 0..10 {
                    let mut client = connect(address, &config, ["a.test", "b.test"][number % 2]);
                    let target = format!("/{number}/{round}");
                    for _ in 0..3 {
                        client.send(format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
                        assert_eq!(client.response().unwrap().text(), target);
                    }
                }
            });
        }
    });
    assert_eq!(daemon.metric("balancer_tls_handshakes_total"), 80.0);
}

#[test]
fn an_early_answer_is_not_lost_to_a_client_that_goes_on_sending() {
    let authority = TestAuthority::new();
    let peer = ScriptedPeer::answering("wrong");
    let daemon = daemon(&authority, &peer, "", ", limits: {request_body: 1KiB}");
    for only_12 in [false, true] {
        let config = authority.client(None, only_12);
        let mut client = connect(daemon.address("@web"), &config, "a.test");
        let part = vec![b'a'; 1 << 20];
        let length = 20 * part.len();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n"
        ));
        for _ in 0..20 {
            client.send(&part);
        }
        assert_eq!(client.response().unwrap().status, 413);
    }
}
