//! Certificates are replaced without an interruption.

use std::{fs, io::Read};

use crate::harness::{
    daemon::TestDaemon,
    peer::ScriptedPeer,
    tls::{TestAuthority, connect},
};

fn config(authority: &TestAuthority, peer: &ScriptedPeer, file: &str) -> String {
    format!(
        "listeners:\n  web: {{bind: \"@web\", tls: {{{}}}, pool: app}}\n  \
         other: {{bind: \"@other\", tls: {{{}}}, pool: app}}\n\
         pools:\n  app: {{backends: [\"{}\"], health_check: none}}\n",
        authority.pair(file),
        authority.pair("other"),
        peer.address
    )
}

#[test]
fn a_reload_shows_the_new_certificate_and_leaves_all_others_as_they_are() {
    let authority = TestAuthority::new();
    let old = authority.sign("a", &["a.test"]);
    authority.sign("other", &["other.test"]);
    let peer = ScriptedPeer::answering("ok");
    let text = config(&authority, &peer, "a");
    let mut daemon = TestDaemon::start(&text);
    let clients = authority.client(None, false);
    let mut open = connect(daemon.address("@web"), &clients, "a.test");
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    open.send(request);
    assert_eq!(open.response().unwrap().status, 200);
    assert!(open.stream().conn.peer_certificates().unwrap()[0] == old);
    let kept = authority.client(None, false);
    let mut client = connect(daemon.address("@other"), &kept, "other.test");
    client.send("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n");
    assert_eq!(client.response().unwrap().status, 200);

    // The same file, with something new in it.
    let new = authority.sign("a", &["a.test"]);
    assert_eq!(daemon.reload(&text).status, 200);
    let mut fresh = connect(
        daemon.address("@web"),
        &authority.client(None, false),
        "a.test",
    );
    assert!(fresh.stream().conn.peer_certificates().unwrap()[0] == new);
    open.send(request);
    assert_eq!(
        open.response().unwrap().status,
        200,
        "an open connection goes on"
    );

    let before = daemon.metric("balancer_tls_handshakes_total{resumed=\"true\"}");
    let mut again = connect(daemon.address("@other"), &kept, "other.test");
    again.send("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n");
    assert_eq!(again.response().unwrap().status, 200);
    let after = daemon.metric("balancer_tls_handshakes_total{resumed=\"true\"}");
    assert_eq!(
        after - before,
        1.0,
        "tickets of an unchanged listener are good"
    );
    // A drop without an end is what many clients do.
    let mut end = Vec::new();
    again.stream().conn.send_close_notify();
    let stream = again.stream();
    stream.conn.complete_io(&mut stream.sock).unwrap();
    stream.read_to_end(&mut end).unwrap();
}

#[test]
fn a_new_certificate_before_the_others_misdirects_no_open_connection() {
    let authority = TestAuthority::new();
    authority.sign("a", &["a.test"]);
    authority.sign("b", &["b.test"]);
    let peer = ScriptedPeer::answering("ok");
    let config = |list: &[&str]| {
        let pairs: Vec<_> = list
            .iter()
            .map(|file| format!("{{{}}}", authority.pair(file)))
            .collect();
        format!(
            "listeners:\n  web: {{bind: \"@web\", tls: {{certificates: [{}]}}, pool: app}}\n\
             pools:\n  app: {{backends: [\"{}\"], health_check: none}}\n",
            pairs.join(", "),
            peer.address
        )
    };
    let mut daemon = TestDaemon::start(&config(&["a"]));
    let mut open = connect(
        daemon.address("@web"),
        &authority.client(None, false),
        "a.test",
    );
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    open.send(request);
    assert_eq!(open.response().unwrap().status, 200);
    assert_eq!(daemon.reload(&config(&["b", "a"])).status, 200);
    open.send(request);
    assert_eq!(open.response().unwrap().status, 200);
}

#[test]
fn a_reload_with_a_broken_key_changes_nothing() {
    let authority = TestAuthority::new();
    let old = authority.sign("a", &["a.test"]);
    authority.sign("other", &["other.test"]);
    let peer = ScriptedPeer::answering("ok");
    let text = config(&authority, &peer, "a");
    let mut daemon = TestDaemon::start(&text);
    fs::write(authority.path("a.pem"), "no key").unwrap();
    let answer = daemon.reload(&text);
    assert_ne!(answer.status, 200);
    assert!(answer.text().contains("PEM"), "{}", answer.text());
    let mut client = connect(
        daemon.address("@web"),
        &authority.client(None, false),
        "a.test",
    );
    assert!(client.stream().conn.peer_certificates().unwrap()[0] == old);
    assert_eq!(daemon.metric("balancer_config_last_reload_successful"), 0.0);
}
