//! Work under way during a reload: request heads, attempts, sessions, and their counters.

use std::net::{SocketAddr, TcpStream};

use super::{must_reload, one_pool};
use crate::harness::{
    daemon::TestDaemon,
    frames::{DATA, END_STREAM, RawH2Backend},
    peer::{Blackhole, Gate, ScriptedPeer},
    poll,
};

#[test]
fn a_request_goes_by_the_file_in_force_when_its_head_is_whole() {
    let old = ScriptedPeer::answering("old");
    let new = ScriptedPeer::answering("new");
    let mut daemon = TestDaemon::start(&one_pool(&old.address.to_string()));
    let mut fresh = daemon.client("@web");
    let mut kept = daemon.client("@web");
    assert_eq!(kept.request("GET", "/").unwrap().text(), "old");
    for client in [&mut fresh, &mut kept] {
        client.send("POST / HTTP/1.1\r\nHost: te");
    }
    drop(old);
    must_reload(&mut daemon, &one_pool(&new.address.to_string()));
    for client in [&mut fresh, &mut kept] {
        client.send("st\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.response().unwrap().text(), "new");
    }
}

#[test]
fn a_request_whose_listener_leaves_while_its_head_comes_is_served() {
    let (old, new) = (
        ScriptedPeer::answering("old"),
        ScriptedPeer::answering("new"),
    );
    let more = |address: SocketAddr, listener: &str| {
        one_pool(&address.to_string()).replace("listeners:\n", &format!("listeners:\n{listener}"))
    };
    let mut daemon =
        TestDaemon::start(&more(old.address, "  more: {bind: \"@more\", pool: app}\n"));
    let mut client = daemon.client("@more");
    client.send("GET / HT");
    daemon.wait_for_metric("balancer_listener_connections_active", |now| now > 0.5);
    must_reload(&mut daemon, &more(new.address, ""));
    client.send("TP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(client.response().unwrap().status, 200);
}

/// A backend that reads a request, waits at the gate, and closes without a response.
fn leaving(gate: &Gate) -> ScriptedPeer {
    let gate = gate.clone();
    ScriptedPeer::start(move |mut connection| {
        if connection.request().is_some() {
            gate.wait();
        }
    })
}

#[test]
fn the_next_attempt_goes_to_a_backend_that_is_there_now() {
    for protocol in ["http1", "h2c"] {
        let gate = Gate::new();
        let old = leaving(&gate);
        let config = |backend: SocketAddr, protocol: &str| {
            one_pool(&backend.to_string()) + &format!("    protocol: {protocol}\n")
        };
        let mut daemon = TestDaemon::start(
            &("access_log: {when: {min_status: 100}}\n".to_owned() + &config(old.address, "http1")),
        );
        let mut client = daemon.client("@web");
        client.send("PUT / HTTP/1.1\r\nHost: test\r\nX-Kept: 1\r\nContent-Length: 4\r\n\r\nbody");
        old.wait_for_requests(1);
        // Also where the protocol is another one by then.
        let new = match protocol {
            "h2c" => ScriptedPeer::start(|connection| {
                let mut backend = RawH2Backend::greet(connection).unwrap();
                while let Some(stream) = backend.asked() {
                    backend.until(|frame| frame.kind == DATA && frame.flags & END_STREAM > 0);
                    backend.answer(stream, "new");
                }
            }),
            _ => ScriptedPeer::answering("new"),
        };
        must_reload(
            &mut daemon,
            &("access_log: {when: {min_status: 100}}\n".to_owned()
                + &config(new.address, protocol)),
        );
        gate.open();
        assert_eq!(client.response().unwrap().text(), "new");
        let line = daemon.wait_for_access(|line| line["attempts"] == 2);
        assert_eq!(line["backend"], new.address.to_string());
        if protocol == "http1" {
            let got = new.wait_for_requests(1).pop().unwrap();
            assert_eq!(got.header("x-kept"), Some("1"));
            assert_eq!(got.body, b"body");
        }
    }
}

#[test]
fn an_exchange_whose_pool_has_left_goes_on_with_its_backends() {
    let gate = Gate::new();
    let bad = leaving(&gate);
    let good = ScriptedPeer::answering("good");
    let other = ScriptedPeer::answering("other");
    let mut daemon = TestDaemon::start(&one_pool(&format!(
        "{}, {{address: {}, backup: true}}",
        bad.address, good.address
    )));
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    bad.wait_for_requests(1);
    let renamed = one_pool(&other.address.to_string())
        .replace("pool: app}", "pool: others}")
        .replace("  app:\n", "  others:\n");
    must_reload(&mut daemon, &renamed);
    gate.open();
    assert_eq!(client.response().unwrap().text(), "good");
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "other");
}

#[test]
fn a_session_reaches_a_backend_that_came_while_another_was_tried() {
    let hole = Blackhole::start();
    let new = ScriptedPeer::answering("new");
    let config = |backend: SocketAddr| {
        one_pool(&backend.to_string()).replace("pool: app}", "protocol: tcp, pool: app}")
            + "    timeouts: {connect: 1s}\n"
    };
    let mut daemon = TestDaemon::start(&config(hole.address));
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    daemon.wait_for_metric("balancer_tcp_sessions_active", |now| now > 0.5);
    must_reload(&mut daemon, &config(new.address));
    assert_eq!(client.response().unwrap().text(), "new");
}

#[test]
fn a_backend_that_two_reloads_take_out_and_put_back_keeps_what_it_serves() {
    let other = ScriptedPeer::answering("other");
    let app =
        |backends: &str| format!("  app:\n    health_check: none\n    backends: [{backends}]\n");
    let listeners =
        |more: &str| format!("listeners:\n  web: {{bind: \"@web\", pool: app}}\n{more}pools:\n");
    // The backend alone, or its pool with its listener.
    let stays = "  more: {bind: \"@more\", pool: stays}\n";
    let pool = format!(
        "  stays: {{health_check: none, backends: [{}]}}\n",
        other.address
    );
    let without = [
        listeners("") + &app(&other.address.to_string()),
        listeners(stays).replace("  web: {bind: \"@web\", pool: app}\n", "") + &pool,
    ];
    for without in without {
        let gate = Gate::new();
        let backend = ScriptedPeer::slow(&gate, "done");
        let own = app(&format!(
            "{{address: {}, max_connections: 1}}",
            backend.address
        ));
        let before = listeners("") + &own + "    limits: {queue: 0}\n";
        let mut daemon = TestDaemon::start(&before);
        let mut client = daemon.client("@web");
        client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
        backend.wait_for_requests(1);
        let active = |daemon: &TestDaemon| {
            (
                daemon.metric("balancer_backend_connections_active{pool=\"app\"}") as u64,
                daemon.metric("balancer_http_requests_active{pool=\"app\"}") as u64,
            )
        };
        daemon.wait_for_metric("balancer_backend_connections_active{pool=\"app\"}", |now| {
            now > 0.5
        });
        must_reload(&mut daemon, &without);
        must_reload(&mut daemon, &before);
        assert_eq!(active(&daemon), (1, 1));
        let refused = daemon.get("@web", "/").unwrap();
        assert_eq!(refused.status, 503, "it serves what it may serve");
        gate.open();
        assert_eq!(client.response().unwrap().text(), "done");
        let again = poll(|| {
            daemon
                .get("@web", "/")
                .ok()
                .filter(|one| one.text() == "done")
        });
        assert!(again.is_some());
        let ok = "balancer_http_requests_total{pool=\"app\",code=\"200\"}";
        assert!(daemon.metric(ok) >= 2.0, "the one of before is counted too");
    }
}

#[test]
fn a_listener_that_two_reloads_take_out_and_put_back_keeps_its_limit() {
    let backend = ScriptedPeer::answering("here");
    let without = one_pool(&backend.address.to_string());
    let before = without.replace(
        "listeners:\n",
        "listeners:\n  more: {bind: \"@more\", protocol: tcp, pool: app, limits: {connections: 1}}\n",
    );
    let mut daemon = TestDaemon::start(&before);
    let mut session = daemon.client("@more");
    assert_eq!(session.request("GET", "/").unwrap().text(), "here");
    must_reload(&mut daemon, &without);
    poll(|| TcpStream::connect(daemon.address("@more")).err()).unwrap();
    must_reload(&mut daemon, &before);
    let active = "balancer_listener_connections_active{listener=\"more\"}";
    assert_eq!(daemon.metric(active) as u64, 1);
    let mut refused = daemon.client("@more");
    assert!(refused.rest().is_err(), "the session of before is counted");
    assert_eq!(session.request("GET", "/").unwrap().text(), "here");
}
