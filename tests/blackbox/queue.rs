//! The queue of a pool: who finds every backend at its limit waits, in the order of arrival.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::http::Method;
use rustix::process::Signal;

use crate::harness::{
    answers::expect_error,
    client::{HttpClient, ReadError},
    daemon::TestDaemon,
    h2::{connect, patiently, request, until, whole},
    peer::{BackendRequest, Gate, Recorder, ScriptedPeer, refused},
    tls::{TestAuthority, client_hello},
};
use balancer::base::clock;

const LENGTH: &str = "balancer_queue_length{pool=\"app\"}";
const WAITS: &str = "balancer_queue_wait_seconds_count{pool=\"app\"}";

/// One slot on each backend. Two workers: those who wait are on both.
fn config(backends: &[SocketAddr], limits: &str, pool: &str) -> String {
    let backends: Vec<_> = backends.iter().map(|one| format!("\"{one}\"")).collect();
    format!(
        "workers: 2\naccess_log: {{when: {{sample: 100%}}}}\nlisteners:\n  web: {{bind: \"@web\", pool: app}}\n  \
         h2: {{bind: \"@h2\", pool: app, http: {{h2c: true}}}}\n  raw: {{bind: \"@raw\", protocol: tcp, pool: app}}\n\
         pools:\n  app:\n    backends: [{}]\n    limits: {{{limits}}}\n{pool}",
        backends.join(", ")
    )
}

fn daemon(backend: &ScriptedPeer, limits: &str) -> TestDaemon {
    let limits = format!("connections_per_backend: 1, {limits}");
    let pool = "    health_check: none\n";
    TestDaemon::start(&config(&[backend.address], &limits, pool))
}

/// Waits until the queue has this length.
#[track_caller]
fn waiting(daemon: &TestDaemon, count: usize) {
    daemon.wait_for_metric(LENGTH, |length| length as usize == count);
}

fn ask(daemon: &TestDaemon, target: &str) -> HttpClient {
    let mut client = daemon.client("@web");
    client.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
    client
}

/// A daemon whose one slot is taken by the first client, and the backend that holds it.
fn held(limits: &str) -> (TestDaemon, ScriptedPeer, Gate, HttpClient) {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "done");
    let daemon = daemon(&backend, limits);
    let first = ask(&daemon, "/slow");
    backend.wait_for_requests(1);
    (daemon, backend, gate, first)
}

#[test]
fn fifty_requests_for_one_slot_are_all_served_in_the_order_of_their_arrival() {
    const COUNT: usize = 50;
    let (daemon, backend, gate, mut first) = held("queue_timeout: 1h");
    let mut clients: Vec<_> = (0..COUNT)
        .map(|number| {
            let client = ask(&daemon, &format!("/{number}"));
            waiting(&daemon, number + 1);
            client
        })
        .collect();
    let status = daemon.status();
    let queue = &status["pools"][0]["queue"];
    assert_eq!(
        (queue["length"].as_u64(), queue["timed_out"].as_u64()),
        (Some(50), Some(0))
    );
    assert!(
        queue["longest_wait_seconds"].as_f64().unwrap() > 0.0,
        "{status}"
    );
    let screen = daemon.command(&["status"]).stdout;
    assert!(String::from_utf8_lossy(&screen).contains("50 waiting (longest "));
    gate.open();
    assert_eq!(first.response().unwrap().text(), "done");
    for client in &mut clients {
        let response = client.response().unwrap();
        assert_eq!((response.status, &*response.text()), (200, "done"));
        let line = daemon.access_of(response.header("x-request-id").unwrap());
        assert!(line["t_queue"].as_f64().unwrap() > 0.0, "{line}");
        assert_eq!(line["attempts"], 1);
    }
    let served: Vec<_> = backend.requests.all()[1..]
        .iter()
        .map(|request| request.target.clone())
        .collect();
    let expected: Vec<_> = (0..COUNT).map(|number| format!("/{number}")).collect();
    assert_eq!(served, expected);
    waiting(&daemon, 0);
    assert_eq!(daemon.metric(WAITS) as usize, COUNT);
    let line = daemon.wait_for_access(|line| line["path"] == "/slow");
    assert!(
        line.get("t_queue").is_none(),
        "the first did not wait: {line}"
    );
}

#[test]
fn a_wait_that_is_too_long_is_a_503_and_the_connection_goes_on() {
    let (daemon, _backend, gate, mut first) = held("queue_timeout: 100ms");
    let mut client = daemon.client("@web");
    let began = clock::now();
    let response = client.request("GET", "/").unwrap();
    assert!(clock::now() - began >= Duration::from_millis(100));
    let id = expect_error(&response, 503, "connection_limit_reached");
    let line = daemon.access_of(&id);
    assert!(line["t_queue"].as_f64().unwrap() >= 0.1, "{line}");
    assert_eq!(line["attempts"], 0);
    assert_eq!(daemon.status()["pools"][0]["queue"]["timed_out"], 1);
    gate.open();
    assert_eq!(first.response().unwrap().text(), "done");
    assert_eq!(client.request("GET", "/").unwrap().text(), "done");
}

#[test]
fn who_finds_the_queue_full_is_refused_at_once() {
    let (daemon, _backend, gate, mut first) = held("queue: 1, queue_timeout: 1h");
    let mut second = ask(&daemon, "/");
    waiting(&daemon, 1);
    let response = daemon.get("@web", "/").unwrap();
    let id = expect_error(&response, 503, "connection_limit_reached");
    assert!(daemon.access_of(&id).get("t_queue").is_none());
    gate.open();
    assert_eq!(first.response().unwrap().text(), "done");
    assert_eq!(second.response().unwrap().text(), "done");
}

#[test]
fn the_total_timeout_ends_the_wait_before_the_queue_does() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "done");
    let limits = "connections_per_backend: 1, queue_timeout: 1h";
    let pool =
        "    health_check: none\nroutes: [{path: /short, pool: app, timeouts: {total: 100ms}}]\n";
    let daemon = TestDaemon::start(&config(&[backend.address], limits, pool));
    let _first = ask(&daemon, "/slow");
    backend.wait_for_requests(1);
    let response = daemon.get("@web", "/short").unwrap();
    let id = expect_error(&response, response.status, "total_timeout");
    assert_eq!(daemon.access_of(&id)["attempts"], 0);
    assert_eq!(daemon.status()["pools"][0]["queue"]["timed_out"], 0);
    gate.open();
}

#[test]
fn a_client_that_leaves_gives_up_its_place_at_once() {
    let (daemon, backend, gate, mut first) = held("queue_timeout: 1h");
    let leaves: [fn(HttpClient); 2] = [drop, HttpClient::reset];
    for leave in leaves {
        let client = ask(&daemon, "/left");
        waiting(&daemon, 1);
        let mut stays = ask(&daemon, "/stays");
        waiting(&daemon, 2);
        leave(client);
        waiting(&daemon, 1);
        // It may be gone as well, with another request behind the one that waits.
        stays.send("GET /behind HTTP/1.1\r\nHost: test\r\n\r\n");
        drop(stays);
        waiting(&daemon, 0);
    }
    let line = daemon.wait_for_access(|line| line["path"] == "/left");
    assert_eq!(line["reason"], "client_disconnected");
    assert_eq!(
        (&line["status"], &line["attempts"]),
        (&499.into(), &0.into())
    );
    let mut last = ask(&daemon, "/last");
    waiting(&daemon, 1);
    gate.open();
    assert_eq!(first.response().unwrap().text(), "done");
    assert_eq!(last.response().unwrap().text(), "done");
    let targets: Vec<_> = backend
        .requests
        .all()
        .into_iter()
        .map(|one| one.target)
        .collect();
    assert_eq!(targets, ["/slow", "/last"]);
}

#[tokio::test]
async fn streams_wait_like_requests_and_a_reset_one_leaves() {
    let (daemon, backend, gate, mut first) =
        tokio::task::spawn_blocking(|| held("queue_timeout: 1h"))
            .await
            .unwrap();
    let (mut sender, _driver) = connect(daemon.address("@h2")).await;
    let mut responses = Vec::new();
    for number in 0..3 {
        let asked = request(Method::GET, &format!("/{number}"), &[]);
        responses.push(sender.send_request(asked, true).unwrap().0);
        until(|| daemon.metric(LENGTH) as usize == number + 1).await;
    }
    // Dropping it resets the stream.
    drop(responses.remove(1));
    until(|| daemon.metric(LENGTH) as usize == 2).await;
    gate.open();
    for response in responses {
        let response = patiently(whole(response)).await.unwrap();
        assert_eq!((response.status(), &*response.body), (200, &b"done"[..]));
    }
    assert_eq!(first.response().unwrap().text(), "done");
    let targets: Vec<_> = backend
        .requests
        .all()
        .into_iter()
        .map(|one| one.target)
        .collect();
    assert_eq!(targets, ["/slow", "/0", "/2"]);
}

#[test]
fn sessions_wait_too_and_leave_at_once() {
    let backend = ScriptedPeer::start(|mut connection| {
        let number = connection.number();
        connection.send(format!("{number}"));
        connection.wait_for_end();
    });
    let daemon = daemon(&backend, "queue_timeout: 1h");
    let mut first = daemon.client("@raw");
    assert_eq!(first.exactly(1).unwrap(), b"0");
    let mut second = daemon.client("@raw");
    waiting(&daemon, 1);
    let mut left = daemon.client("@raw");
    left.send("bytes for no backend");
    waiting(&daemon, 2);
    let mut third = daemon.client("@raw");
    waiting(&daemon, 3);
    drop(left);
    waiting(&daemon, 2);
    let line = daemon.wait_for_access(|line| line["reason"] == "client_disconnected");
    assert!(line["t_queue"].as_f64().unwrap() > 0.0, "{line}");
    drop(first);
    assert_eq!(second.exactly(1).unwrap(), b"1");
    drop(second);
    assert_eq!(third.exactly(1).unwrap(), b"2");
    drop(third);
    let line =
        daemon.wait_for_access(|line| line["t_queue"].is_number() && line["reason"].is_null());
    assert_eq!(line["protocol"], "TCP");
    assert_eq!(daemon.metric(WAITS) as usize, 3);
}

#[test]
fn a_session_that_is_passed_through_keeps_its_hello_while_it_waits() {
    let backend = ScriptedPeer::start(|mut connection| {
        let first = connection.some().unwrap_or_default();
        connection.send(format!("{:03}", first.len()));
        connection.wait_for_end();
    });
    let daemon = TestDaemon::start(&format!(
        "listeners: {{tls: {{bind: \"@tls\", protocol: tcp, sni: {{app.test: app}}}}}}\n\
         pools: {{app: {{backends: [\"{}\"], health_check: none, limits: {{connections_per_backend: 1}}}}}}\n",
        backend.address
    ));
    let hello = client_hello(&TestAuthority::new().client(None, false), "app.test");
    let start = || {
        let mut client = daemon.client("@tls");
        client.send(&hello);
        client
    };
    let length = format!("{:03}", hello.len()).into_bytes();
    let mut first = start();
    assert_eq!(first.exactly(length.len()).unwrap(), length);
    let mut second = start();
    waiting(&daemon, 1);
    drop(first);
    assert_eq!(second.exactly(length.len()).unwrap(), length);
}

#[test]
fn a_session_that_waits_too_long_is_reset() {
    let backend = ScriptedPeer::silent();
    let daemon = daemon(&backend, "queue_timeout: 100ms");
    let _first = daemon.client("@raw");
    daemon.wait_for_metric("balancer_backend_connections_active", |active| active > 0.5);
    let mut second = daemon.client("@raw");
    assert!(matches!(second.rest(), Err(ReadError::Reset(_))));
    daemon.wait_for_access(|line| line["reason"] == "connection_limit_reached");
}

#[test]
fn a_backend_that_comes_up_serves_those_who_wait() {
    let gate = Gate::new();
    let busy = ScriptedPeer::slow(&gate, "busy");
    let late = refused();
    let pool = "    health_check: {type: tcp, interval: 100ms, rise: 1, fall: 1}\n";
    let limits = "connections_per_backend: 1, queue_timeout: 1h";
    let daemon = TestDaemon::start(&config(&[busy.address, late], limits, pool));
    let down = "balancer_pool_backends{pool=\"app\",state=\"down\"}";
    daemon.wait_for_metric(down, |count| count > 0.5);
    let mut first = ask(&daemon, "/slow");
    busy.wait_for_requests(1);
    let mut second = ask(&daemon, "/");
    waiting(&daemon, 1);
    let _late = ScriptedPeer::start_at(late, |mut connection| {
        while connection.request().is_some() && connection.answer("late") {}
    });
    assert_eq!(second.response().unwrap().text(), "late");
    gate.open();
    assert_eq!(first.response().unwrap().text(), "busy");
}

#[test]
fn when_the_last_backend_goes_down_all_who_wait_are_told_at_once() {
    let (gate, is_ill) = (Gate::new(), Arc::new(AtomicBool::new(false)));
    let (door, ill) = (gate.clone(), Arc::clone(&is_ill));
    let backend = ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/health" && ill.load(Relaxed) {
                connection.send("HTTP/1.1 500 Ill\r\nContent-Length: 0\r\n\r\n");
                continue;
            }
            if request.target == "/slow" {
                door.wait();
            }
            connection.answer("done");
        }
    });
    let pool = "    health_check: {type: http, path: /health, interval: 100ms, rise: 1, fall: 1}\n";
    let limits = "connections_per_backend: 1, queue_timeout: 1h";
    let daemon = TestDaemon::start(&config(&[backend.address], limits, pool));
    let mut first = ask(&daemon, "/slow");
    let is_held = |all: &[BackendRequest]| all.iter().find(|one| one.target == "/slow").map(drop);
    backend
        .requests
        .wait_for(is_held)
        .expect("the first request");
    let mut others = [(); 3].map(|()| ask(&daemon, "/"));
    waiting(&daemon, 3);
    is_ill.store(true, Relaxed);
    for client in &mut others {
        let response = client.response().unwrap();
        expect_error(&response, 502, "destination_unavailable");
    }
    gate.open();
    assert_eq!(first.response().unwrap().text(), "done");
}

#[test]
fn a_reload_that_raises_the_limit_serves_those_who_wait_at_once() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "done");
    let text = |limit| {
        let limits = format!("connections_per_backend: {limit}, queue_timeout: 1h");
        config(&[backend.address], &limits, "    health_check: none\n")
    };
    let mut daemon = TestDaemon::start(&text(1));
    let mut first = ask(&daemon, "/slow");
    backend.wait_for_requests(1);
    let mut others = [(); 2].map(|()| ask(&daemon, "/"));
    let mut session = daemon.client("@raw");
    waiting(&daemon, 3);
    assert_eq!(daemon.reload(&text(4)).status, 200);
    for client in &mut others {
        assert_eq!(client.response().unwrap().text(), "done");
    }
    session.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(session.response().unwrap().text(), "done");
    gate.open();
    assert_eq!(first.response().unwrap().text(), "done");
    assert_eq!(daemon.metric(WAITS) as usize, 3);
}

#[test]
fn a_reload_that_removes_the_pool_leaves_none_without_an_answer() {
    let gate = Gate::new();
    let (backend, other) = (
        ScriptedPeer::slow(&gate, "done"),
        ScriptedPeer::answering("other"),
    );
    let mut daemon = daemon(&backend, "queue_timeout: 1h");
    let mut first = ask(&daemon, "/slow");
    backend.wait_for_requests(1);
    let mut second = ask(&daemon, "/");
    waiting(&daemon, 1);
    let without = format!(
        "listeners: {{web: {{bind: \"@web\", pool: new}}}}\npools: {{new: {{health_check: none, backends: [\"{}\"]}}}}\n",
        other.address
    );
    assert_eq!(daemon.reload(&without).status, 200);
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "other");
    gate.open();
    assert_eq!(first.response().unwrap().text(), "done");
    assert_eq!(
        second.response().unwrap().text(),
        "done",
        "as what has begun"
    );
}

#[test]
fn a_drain_serves_those_who_wait() {
    let (mut daemon, _backend, gate, mut first) = held("queue_timeout: 1h");
    let mut second = ask(&daemon, "/");
    waiting(&daemon, 1);
    daemon.signal(Signal::TERM);
    daemon.wait_notified("STOPPING=1");
    gate.open();
    assert_eq!(first.response().unwrap().text(), "done");
    assert_eq!(second.response().unwrap().text(), "done");
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn a_whole_request_body_is_sent_after_the_wait() {
    let bodies = Recorder::default();
    let (gate, kept) = (Gate::new(), bodies.clone());
    let door = gate.clone();
    let backend = ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/slow" {
                door.wait();
            } else {
                kept.push(request.body);
            }
            connection.answer("done");
        }
    });
    let daemon = daemon(&backend, "queue_timeout: 1h");
    let mut first = ask(&daemon, "/slow");
    backend.wait_for_requests(1);
    let body: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 300000\r\n\r\n");
    client.send(&body[..1_000]);
    waiting(&daemon, 1);
    gate.open();
    client.send(&body[1_000..]);
    assert_eq!(client.response().unwrap().text(), "done");
    assert_eq!(first.response().unwrap().text(), "done");
    assert!(bodies.all() == [body], "other bytes than were sent");
}
