//! Timeouts of attempts and of exchanges: what each bounds, what restarts it, and who is blamed.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    answers::expect_error,
    daemon::TestDaemon,
    peer::{Blackhole, Gate, PeerConnection, ScriptedPeer},
};
use balancer::base::clock;
use serde_json::Value;

/// Far beyond every deadline that a test expects, and within the patience of the harness.
const LATE_TIME: Duration = Duration::from_secs(10);

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// `@web` in front of one backend; `pool` and `listener` are further keys.
fn daemon(backend: SocketAddr, pool: &str, listener: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "workers: 1\nlisteners:\n  web: {{bind: \"@web\", pool: app, {listener}}}\npools:\n  app: \
         {{backends: [\"{backend}\"], health_check: none, ejection: none, {pool}}}\n"
    ))
}

/// Sends `request`, expects this error not before `least`, and gives its line in the log.
#[track_caller]
fn fails(
    daemon: &TestDaemon,
    request: impl AsRef<[u8]>,
    reason: &str,
    status: u16,
    least: Duration,
) -> Value {
    let began = clock::now();
    let mut client = daemon.client("@web");
    client.send(request);
    let response = client.response().unwrap();
    takes(began, least);
    let id = expect_error(&response, status, reason);
    daemon.access_of(&id)
}

#[track_caller]
fn takes(began: Instant, least: Duration) {
    let took = clock::now() - began;
    assert!(
        took >= least && took < LATE_TIME,
        "{took:?}, not {least:?} or little more"
    );
}

const GET_REQUEST: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

#[test]
fn each_attempt_has_the_whole_time_to_connect() {
    let hole = Blackhole::start();
    let daemon = daemon(hole.address, "timeouts: {connect: 300ms}", "");
    let line = fails(&daemon, GET_REQUEST, "connection_timeout", 502, millis(900));
    assert_eq!(line["attempts"], 3);
}

#[test]
fn each_attempt_has_the_whole_time_for_its_response() {
    let peer = ScriptedPeer::silent();
    let rules = "timeouts: {response: 300ms}, retries: {conditions: timeout}";
    let daemon = daemon(peer.address, rules, "");
    let line = fails(
        &daemon,
        GET_REQUEST,
        "connection_read_timeout",
        502,
        millis(900),
    );
    assert_eq!(line["attempts"], 3);
}

#[test]
fn the_total_time_holds_for_all_attempts_together_and_blames_no_backend() {
    let (hole, peer) = (Blackhole::start(), ScriptedPeer::silent());
    // Eleven attempts would take far longer than the harness waits.
    for (backend, own) in [
        (hole.address, "connect: 400ms"),
        (peer.address, "response: 400ms"),
    ] {
        let rules = format!(
            "timeouts: {{{own}, total: 600ms}}, retries: {{attempts: 10, conditions: [connect, timeout]}}"
        );
        let daemon = daemon(backend, &rules, "");
        let line = fails(&daemon, GET_REQUEST, "total_timeout", 502, millis(600));
        assert_eq!(line["attempts"], 2, "{own}");
        let blamed = daemon.metric("balancer_backend_failures_total") as u64;
        assert_eq!(blamed, 1, "{own}: the first try only");
        let told = "balancer_errors_total{reason=\"total_timeout\",code=\"502\"}";
        assert_eq!(daemon.metric(told) as u64, 1, "{own}");
    }
}

#[test]
fn the_total_time_ends_a_connect_that_may_take_longer() {
    let hole = Blackhole::start();
    let daemon = daemon(hole.address, "timeouts: {connect: 15s, total: 300ms}", "");
    let line = fails(&daemon, GET_REQUEST, "total_timeout", 502, millis(300));
    assert_eq!(line["attempts"], 1);
    let blamed = daemon.metric("balancer_backend_failures_total") as u64;
    assert_eq!(blamed, 0, "the backend might have responded");
}

#[test]
fn the_total_time_ends_a_request_that_the_client_sends_too_slowly() {
    let peer = ScriptedPeer::silent();
    let daemon = daemon(peer.address, "timeouts: {total: 300ms}", "");
    let begun = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello";
    fails(&daemon, begun, "total_timeout", 502, millis(300));
}

/// Sends `piece` again and again, each well within any timeout: the pace is the fault.
fn dripping(first: &'static str, piece: &'static str, pace: Duration) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        connection.request();
        connection.send(first);
        while connection.send(piece) {
            thread::sleep(pace);
        }
    })
}

#[test]
fn neither_dripping_bytes_nor_1xx_give_a_response_more_time() {
    let hint = "HTTP/1.1 103 Early Hints\r\n\r\n";
    for (first, piece, pace) in [
        ("HTTP/1.1 200 ", "OK ", 20),
        ("HTTP/1.1 200 OK\r\nX: ", "a", 20),
        ("HTTP/1.1 200 OK\r\n", "X: y\r\n", 50),
        // Fewer than a flood of them.
        ("", hint, 200),
    ] {
        let peer = dripping(first, piece, millis(pace));
        let daemon = daemon(peer.address, "timeouts: {response: 500ms}", "");
        // HTTP/1.0: the 1xx stay with us.
        let old = "GET / HTTP/1.0\r\nHost: test\r\n\r\n";
        let line = fails(&daemon, old, "connection_read_timeout", 502, millis(500));
        assert_eq!(line["attempts"], 1, "{piece}");
    }
}

#[test]
fn the_time_for_the_response_begins_when_the_request_is_whole() {
    let peer = ScriptedPeer::answering("good");
    let daemon = daemon(peer.address, "timeouts: {response: 1500ms}", "");
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n");
    for byte in ["a", "b", "c", "d"] {
        // A slow client is no late backend.
        thread::sleep(millis(600));
        client.send(byte);
    }
    assert_eq!(client.response().unwrap().text(), "good");
}

#[test]
fn a_backend_that_does_not_take_the_request_is_late() {
    let over = Gate::new();
    let closed = over.clone();
    let peer = ScriptedPeer::start(move |_connection: PeerConnection| closed.wait());
    let daemon = daemon(peer.address, "timeouts: {response: 300ms}", "");
    let length = 64 << 20;
    let mut client = daemon.client("@web");
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
    ));
    // More than fits between the two: the rest is taken once the daemon has given up, and leads
    // nowhere.
    client.send(vec![b'a'; length]);
    expect_error(&client.response().unwrap(), 502, "connection_read_timeout");
    over.open();
}

#[test]
fn a_backend_that_reads_slowly_is_not_late() {
    let length = 12 << 20;
    let peer = ScriptedPeer::start(move |mut connection| {
        let head = connection.head().unwrap();
        assert_eq!(head.method, "POST");
        // For several times as long as it may take nothing; the daemon has soon nothing left to
        // send.
        let slowly = 40;
        for _ in 0..slowly {
            connection.each(128 << 10, |_| {}).unwrap();
            thread::sleep(millis(50));
        }
        connection.each(length - slowly * (128 << 10), |_| {});
        connection.answer("at last");
    });
    for (listener, pool) in [
        ("", "timeouts: {response: 700ms}"),
        ("", "timeouts: {response: 700ms}, retries: none"),
    ] {
        let daemon = daemon(peer.address, pool, listener);
        let mut client = daemon.client("@web");
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
        ));
        client.send(vec![b'a'; length]);
        assert_eq!(client.response().unwrap().text(), "at last");
    }
}

#[test]
fn a_client_that_waits_to_be_invited_is_not_late_and_one_that_was_is() {
    let silent = ScriptedPeer::silent();
    let ask = "POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let impatient = daemon(silent.address, "timeouts: {response: 300ms}", "");
    fails(&impatient, ask, "connection_read_timeout", 502, millis(300));
    let inviting = ScriptedPeer::start(|mut connection| {
        connection.head();
        connection.send("HTTP/1.1 100 Continue\r\n\r\n");
        connection.wait_for_end();
    });
    let daemon = daemon(inviting.address, "", "timeouts: {body_idle: 300ms}");
    let began = clock::now();
    let mut client = daemon.client("@web");
    client.send(ask);
    assert_eq!(client.response().unwrap().status, 100);
    expect_error(&client.response().unwrap(), 408, "http_request_timeout");
    takes(began, millis(300));
    let blamed = daemon.metric("balancer_backend_failures_total") as u64;
    assert_eq!(blamed, 0);
}

#[test]
fn a_client_gets_no_more_than_sixteen_1xx_of_one_exchange_with_all_its_attempts() {
    let hints = "HTTP/1.1 103 Early Hints\r\n\r\n";
    let flood = ScriptedPeer::saying(hints.repeat(40));
    let daemon = daemon(flood.address, "", "");
    let mut client = daemon.client("@web");
    client.send(GET_REQUEST);
    for _ in 0..16 {
        assert_eq!(client.response().unwrap().status, 103);
    }
    let id = expect_error(&client.response().unwrap(), 502, "proxy_protocol_error");
    assert_eq!(daemon.access_of(&id)["attempts"], 3);
}
