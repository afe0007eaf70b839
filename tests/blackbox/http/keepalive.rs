//! Kept connections to backends: how many, how long, for how many requests, and their log.

use std::time::Duration;

use crate::{
    harness::{
        client::ReadError,
        peer::{Gate, ScriptedPeer},
    },
    http::pool,
};

fn numbered() -> ScriptedPeer {
    ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            connection.answer(&request.connection.to_string());
        }
    })
}

#[test]
fn a_connection_serves_one_request_after_another_and_the_log_says_so() {
    let peer = numbered();
    let daemon = pool(
        &format!("backends: [{}], health_check: none", peer.address),
        "",
    );
    for path in ["/1", "/2", "/3"] {
        assert_eq!(
            daemon.get("@web", path).unwrap().text(),
            "0",
            "one connection, for all clients"
        );
    }
    for (path, reused) in [("/1", false), ("/2", true), ("/3", true)] {
        assert_eq!(
            daemon.wait_for_access(|line| line["path"] == path)["reused"],
            reused,
            "{path}"
        );
    }
    daemon.wait_for_metric("balancer_backend_connections_idle{pool=\"app\"}", |idle| {
        (idle - 1.0).abs() < 0.1
    });
    daemon.wait_for_metric(
        "balancer_backend_connections_active{pool=\"app\"}",
        |active| active < 0.1,
    );
}

#[test]
fn a_connection_carries_no_more_than_max_requests() {
    let peer = numbered();
    let daemon = pool(
        &format!(
            "backends: [{}], health_check: none, keepalive: {{max_requests: 2}}",
            peer.address
        ),
        "",
    );
    let mut client = daemon.client("@web");
    let seen: Vec<String> = (0..5)
        .map(|_| client.request("GET", "/").unwrap().text())
        .collect();
    assert_eq!(seen, ["0", "0", "1", "1", "2"]);
}

#[test]
fn nothing_is_kept_where_nothing_may_be() {
    let peer = numbered();
    let daemon = pool(
        &format!(
            "backends: [{}], health_check: none, keepalive: {{idle_per_backend: 0}}",
            peer.address
        ),
        "",
    );
    let mut client = daemon.client("@web");
    for number in 0..3 {
        assert_eq!(
            client.request("GET", "/").unwrap().text(),
            number.to_string()
        );
    }
    assert!(
        peer.requests
            .all()
            .iter()
            .all(|request| request.header("connection") == Some("close"))
    );
}

#[test]
fn no_more_are_kept_than_allowed_and_each_no_longer_than_allowed() {
    let gate = Gate::new();
    let door = gate.clone();
    let ended = crate::harness::peer::Recorder::default();
    let ends = ended.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        let mut number = 0;
        while let Some(request) = connection.request() {
            door.wait();
            number = request.connection;
            connection.answer("ok");
        }
        ends.push(number);
    });
    let daemon = pool(
        &format!(
            "backends: [{}], health_check: none, keepalive: {{idle_per_backend: 2, idle_timeout: 300ms}}",
            peer.address
        ),
        "",
    );
    let mut clients: Vec<_> = (0..4).map(|_| daemon.client("@web")).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    peer.wait_for_requests(4);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().unwrap().text(), "ok");
    }
    ended
        .wait_for(|ended| (ended.len() >= 2).then_some(()))
        .expect("two of four are closed at once");
    ended
        .wait_for(|ended| (ended.len() == 4).then_some(()))
        .expect("the others after the idle timeout");
    daemon.wait_for_metric("balancer_backend_connections_idle{pool=\"app\"}", |idle| {
        idle < 0.1
    });
    let mut client = daemon.client("@web");
    assert_eq!(client.request("GET", "/").unwrap().status, 200);
    assert_eq!(peer.connections(), 5);
}

#[test]
fn a_connection_that_the_backend_ends_is_not_used_again() {
    let peer = ScriptedPeer::start(|mut connection| {
        let request = connection.request().unwrap();
        connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        // Still readable, but by its own word not to be used.
        assert!(connection.request().is_none(), "after {}", request.target);
    });
    let daemon = pool(
        &format!("backends: [{}], health_check: none", peer.address),
        "",
    );
    let mut client = daemon.client("@web");
    for _ in 0..3 {
        assert_eq!(client.request("GET", "/").unwrap().text(), "ok");
    }
    assert_eq!(peer.connections(), 3);
}

#[test]
fn a_client_that_says_close_gets_its_answer_and_the_end() {
    let peer = numbered();
    let daemon = pool(
        &format!("backends: [{}], health_check: none", peer.address),
        "",
    );
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\nGET /after HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.response().unwrap();
    assert_eq!(
        (response.status, response.header("connection")),
        (200, Some("close"))
    );
    assert_eq!(
        client.rest(),
        Ok(Vec::new()),
        "what came after the close is not run"
    );
    assert_eq!(peer.requests.all().len(), 1);
}

#[test]
fn a_connection_waits_for_its_next_request_even_after_a_spliced_upload() {
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(head) = connection.head() {
            let length = head
                .header("content-length")
                .map_or(0, |length| length.parse().unwrap());
            connection.each(length, |_| {}).unwrap();
            connection.answer("taken");
        }
    });
    let daemon = crate::harness::daemon::TestDaemon::start(&format!(
        "workers: 1\nlisteners: {{web: {{bind: \"@web\", pool: app, timeouts: {{header: 100ms, keepalive: 60s}}}}}}\npools: {{app: {{backends: [{}], health_check: none, retries: none}}}}\n",
        peer.address
    ));
    let mut client = daemon.client("@web");
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n")
        .send(vec![7; 3_000_000]);
    assert_eq!(client.response().unwrap().text(), "taken");
    client.patience(Duration::from_millis(400));
    assert_eq!(
        client.response(),
        Err(ReadError::TimedOut(Vec::new())),
        "the time for a head does not run between requests"
    );
    assert_eq!(client.request("GET", "/").unwrap().text(), "taken");
}
