//! Retries: what may be sent again, where to, how often, and what must never be sent twice.

mod idempotence;
mod stale_connections;

use std::{net::SocketAddr, thread, time::Duration};

use crate::harness::{
    answers::expect_error,
    client::HttpResponse,
    daemon::{TestDaemon, sum_of},
    peer::{Gate, ScriptedPeer, refused},
};
use balancer::{base::clock, config::model::BalancingPolicy};

/// One pool `app` behind `@web`; `more` are further keys of the pool, each on a line of its own.
fn daemon(backends: &[SocketAddr], more: &str) -> TestDaemon {
    let backends: Vec<_> = backends.iter().map(|one| format!("\"{one}\"")).collect();
    daemon_with(&backends.join(", "), more)
}

/// The same; `backends` are entries of the list in the configuration.
fn daemon_with(backends: &str, more: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{min_status: 200}}}}\nlisteners:\n  web: {{bind: \"@web\", pool: app}}\n\
         pools:\n  app:\n    backends: [{backends}]\n    health_check: none\n{more}"
    ))
}

/// Bytes that are nowhere the same for long, so that a lost or doubled part shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at * 31 + at / 251 * 7) as u8)
        .collect()
}

fn with_length(method: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} / HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Two chunks.
fn chunked(method: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{method} / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    let (one, two) = body.split_at(body.len() / 3);
    let mut bytes = head.into_bytes();
    for part in [one, two].into_iter().filter(|part| !part.is_empty()) {
        bytes.extend(format!("{:x}\r\n", part.len()).into_bytes());
        bytes.extend(part);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

fn send(daemon: &TestDaemon, request: &[u8]) -> HttpResponse {
    let mut client = daemon.client("@web");
    client.send(request);
    client.response().unwrap()
}

/// The metric's sum as a whole number.
fn count(daemon: &TestDaemon, selector: &str) -> u64 {
    daemon.metric(selector) as u64
}

#[test]
fn a_request_of_any_method_whose_backend_refuses_arrives_whole_at_another() {
    let peer = ScriptedPeer::answering("here");
    let daemon = daemon(&[refused(), peer.address], "    ejection: none\n");
    let large = pattern(1 << 20);
    let bodies: [&[u8]; 3] = [b"", b"small", &large];
    let mut sent = 0;
    for method in ["GET", "POST", "PATCH", "DELETE"] {
        for body in bodies {
            // Two in a row: one of them is sent to the dead backend first.
            for request in [with_length(method, body), chunked(method, body)]
                .iter()
                .filter(|_| method != "GET" || body.is_empty())
            {
                for _ in 0..2 {
                    let response = send(&daemon, request);
                    assert_eq!((response.status, response.text()), (200, "here".to_owned()));
                    sent += 1;
                    let got = peer.wait_for_requests(sent).pop().unwrap();
                    assert_eq!(got.method, method);
                    assert!(got.body == body, "{method} with {} bytes", body.len());
                }
            }
        }
    }
    let retries = count(
        &daemon,
        "balancer_retries_total{reason=\"connection_refused\"}",
    );
    // At least one of two in a row is sent to the dead backend first.
    assert!(retries >= sent as u64 / 2, "{retries} for {sent} requests");
}

/// Reads whole requests and closes without a response.
fn swallowing() -> ScriptedPeer {
    ScriptedPeer::start(|mut connection| drop(connection.request()))
}

#[test]
fn a_body_is_sent_again_up_to_64_kib_and_not_beyond() {
    const REPLAY_LIMIT_BYTES: usize = 64 << 10;
    type Encode = fn(&str, &[u8]) -> Vec<u8>;
    let encodings: [Encode; 2] = [with_length, chunked];
    for (length, again) in [
        (1, true),
        (REPLAY_LIMIT_BYTES, true),
        (REPLAY_LIMIT_BYTES + 1, false),
        (300_000, false),
    ] {
        for encode in encodings {
            let (bad, good) = (swallowing(), ScriptedPeer::answering("good"));
            let daemon = daemon(&[bad.address, good.address], "");
            let body = pattern(length);
            let request = encode("PUT", &body);
            let mut statuses = [
                send(&daemon, &request).status,
                send(&daemon, &request).status,
            ];
            statuses.sort_unstable();
            let expected = if again { [200, 200] } else { [200, 502] };
            assert_eq!(statuses, expected, "{length} bytes");
            assert!(!bad.requests.all().is_empty(), "one of two comes here");
            for got in good.requests.all().iter().chain(&bad.requests.all()) {
                assert!(got.body == body, "{length} bytes are not the same");
            }
        }
    }
}

#[test]
fn when_every_backend_is_dead_retries_stay_within_the_budget() {
    const REQUEST_COUNT: u64 = 1500;
    let daemon = daemon(&[refused(), refused(), refused()], "");
    let began = clock::now();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = daemon.client("@web");
                for _ in 0..REQUEST_COUNT / 3 {
                    let response = client.request("GET", "/").unwrap();
                    expect_error(&response, 502, "connection_refused");
                }
            });
        }
    });
    let seconds = (clock::now() - began).as_secs() + 1;
    let page = daemon.scrape();
    let count = |series: &str| sum_of(&page, series) as u64;
    let tries = count("balancer_backend_connections_total{result=\"failed\"}");
    // The reserve is ten retries a second, for ten seconds at the start.
    let most = REQUEST_COUNT + REQUEST_COUNT / 5 + 100 + 10 * seconds;
    assert!(tries <= most, "{tries} tries for {REQUEST_COUNT} requests");
    assert!(
        tries >= REQUEST_COUNT + REQUEST_COUNT / 10,
        "{tries} tries: no retries"
    );
    assert_eq!(count("balancer_retries_total"), tries - REQUEST_COUNT);
    let failed = "balancer_backend_failures_total{reason=\"connection_refused\"}";
    assert_eq!(count(failed), tries);
    assert!(count("balancer_retry_budget_exhausted_total") > 0);
}

#[test]
fn retries_go_to_every_other_backend_before_any_a_second_time() {
    for policy in BalancingPolicy::NAMES {
        let peers = [swallowing(), swallowing(), swallowing()];
        let addresses = peers.each_ref().map(|peer| peer.address);
        let more = format!("    policy: {policy}\n    ejection: none\n");
        let daemon = daemon(&addresses, &more);
        for round in 1..=5 {
            let response = daemon.get("@web", "/").unwrap();
            let id = expect_error(&response, 502, "connection_terminated");
            assert_eq!(daemon.access_of(&id)["attempts"], 3);
            let counts = peers.each_ref().map(ScriptedPeer::connections);
            assert_eq!(counts, [round; 3], "{policy}");
        }
    }
}

/// Number of logged attempts of one request to a backend that is broken in its own way.
/// `timeout` is the time for a response: short only for those that never send one.
fn attempts(peer: &ScriptedPeer, timeout: &str, more: &str, method: &str) -> u64 {
    let other = format!("    timeouts: {{response: {timeout}}}\n    ejection: none\n");
    let daemon = daemon(&[peer.address], &(other + more));
    let response = daemon.client("@web").request(method, "/").unwrap();
    assert_eq!(response.status, 502);
    let id = response.header("x-request-id").unwrap();
    daemon.access_of(id)["attempts"].as_u64().unwrap()
}

#[test]
fn conditions_say_what_is_tried_again() {
    let terminated = swallowing();
    let invalid = ScriptedPeer::saying("nonsense\r\n\r\n");
    let silent = ScriptedPeer::silent();
    let only = |word: &str| format!("    retries: {{conditions: [{word}]}}\n");
    for (peer, time, own) in [
        (&terminated, "15s", "terminated"),
        (&invalid, "15s", "invalid"),
        (&silent, "100ms", "timeout"),
    ] {
        for word in ["terminated", "invalid", "timeout", "connect", "stale"] {
            let tries = if word == own { 3 } else { 1 };
            assert_eq!(
                attempts(peer, time, &only(word), "GET"),
                tries,
                "{own} by {word}"
            );
        }
        assert_eq!(attempts(peer, time, "    retries: none\n", "GET"), 1);
        assert_eq!(
            attempts(peer, time, "    retries: {attempts: 0}\n", "GET"),
            1
        );
    }
    assert_eq!(
        attempts(&silent, "100ms", "", "GET"),
        1,
        "a timeout by default"
    );
    assert_eq!(
        attempts(&terminated, "15s", "    retries: {attempts: 5}\n", "GET"),
        6
    );
    let methods = "    retries: {methods: [POST]}\n";
    assert_eq!(attempts(&terminated, "15s", methods, "POST"), 3);
    assert_eq!(attempts(&terminated, "15s", methods, "GET"), 1);
}

#[test]
fn a_response_timeout_is_not_tried_elsewhere_by_default() {
    let (silent, good) = (ScriptedPeer::silent(), ScriptedPeer::answering("good"));
    let more = "    timeouts: {response: 500ms}\n";
    let daemon = daemon(&[silent.address, good.address], more);
    let mut statuses = [(); 4].map(|()| daemon.get("@web", "/").unwrap().status);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 502, 502]);
    assert_eq!(good.requests.all().len(), 2);
    assert_eq!(count(&daemon, "balancer_retries_total"), 0);
}

#[test]
fn a_connect_that_fails_is_not_tried_again_where_the_rules_forbid_it() {
    let good = ScriptedPeer::answering("good");
    for more in [
        "retries: none",
        "retries: {conditions: [terminated]}",
        "retries: {attempts: 0}",
    ] {
        let daemon = daemon(&[refused(), good.address], &format!("    {more}\n"));
        let mut statuses = [(); 4].map(|()| daemon.get("@web", "/").unwrap().status);
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 502, 502], "{more}");
    }
}

#[test]
fn routes_override_the_retries_of_their_pool() {
    let peer = swallowing();
    let daemon = TestDaemon::start(&format!(
        "access_log: {{when: {{min_status: 200}}}}\nlisteners:\n  web: {{bind: \"@web\", pool: app}}\nroutes:\n\
         - {{path: /none, pool: app, retries: none}}\n\
         - {{path: /one, pool: app, retries: {{attempts: 1}}}}\n\
         - {{path: /four, pool: app, retries: {{attempts: 4}}}}\n\
         pools:\n  app: {{backends: [\"{}\"], health_check: none, ejection: none}}\n",
        peer.address
    ));
    for (target, tries) in [("/none", 1), ("/one", 2), ("/four", 5), ("/", 3)] {
        let response = daemon.get("@web", target).unwrap();
        let id = expect_error(&response, 502, "connection_terminated");
        assert_eq!(daemon.access_of(&id)["attempts"], tries, "{target}");
    }
    assert_eq!(peer.connections(), 1 + 2 + 5 + 3);
}

#[test]
fn an_upload_under_way_goes_on_at_the_next_backend() {
    // The first backend takes the head and the first part, and is gone before the client sends the
    // second.
    let gate = Gate::new();
    let (gone, good) = (gate.clone(), ScriptedPeer::answering("good"));
    let bad = ScriptedPeer::start(move |mut connection| {
        connection.head().unwrap();
        connection.exactly(5).unwrap();
        connection.reset();
        gone.open();
    });
    let (first, then) = (bad.address, good.address);
    let backends = format!("\"{first}\", {{address: \"{then}\", backup: true}}");
    let daemon = daemon_with(&backends, "");
    let mut client = daemon.client("@web");
    client.send("PUT / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nfirst");
    gate.wait();
    client.send("other");
    assert_eq!(client.response().unwrap().text(), "good");
    assert_eq!(good.wait_for_requests(1)[0].body, b"firstother");
    assert_eq!((bad.connections(), good.connections()), (1, 1));
}

#[test]
fn when_every_backend_has_been_tried_they_are_tried_again() {
    let peers = [swallowing(), swallowing()];
    let addresses = peers.each_ref().map(|peer| peer.address);
    let more = "    ejection: none\n    retries: {attempts: 4}\n";
    let daemon = daemon(&addresses, more);
    let response = daemon.get("@web", "/").unwrap();
    let id = expect_error(&response, 502, "connection_terminated");
    assert_eq!(daemon.access_of(&id)["attempts"], 5);
    let mut counts = peers.each_ref().map(ScriptedPeer::connections);
    counts.sort_unstable();
    assert_eq!(counts.iter().sum::<usize>(), 5);
    assert!(counts[0] >= 1, "the other one came first: {counts:?}");
}

#[test]
fn the_time_to_the_first_byte_is_that_of_the_attempt_that_got_the_response() {
    let peer = ScriptedPeer::start(|mut connection| {
        let first = connection.number() == 0;
        connection.request();
        if first {
            return connection.send_last("HTTP/1.1 103 Early Hints\r\n\r\n");
        }
        // The pace of this backend is what is measured.
        thread::sleep(Duration::from_millis(300));
        connection.answer("late");
    });
    let daemon = daemon(&[peer.address], "");
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(client.response().unwrap().status, 103);
    assert_eq!(client.response().unwrap().text(), "late");
    let line = daemon.wait_for_access(|line| line["attempts"] == 2);
    assert!(line["t_first_byte"].as_f64().unwrap() >= 0.3, "{line}");
}
