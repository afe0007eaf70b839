//! Broken backends: the client gets a clean error response or a visible cut, never wrong bytes, and
//! log and metrics name the same reason.

mod bodies;
mod cases;
mod error_pages;

use cases::{FailureCase, cases};
use std::{net::SocketAddr, thread, time::Duration};

use crate::harness::{
    answers::expect_error,
    daemon::{TestDaemon, sum_of},
    peer::ScriptedPeer,
};
use balancer::base::clock;

/// Longer than any test.
const PATIENT_TIMEOUTS: &str = "{connect: 15s, response: 15s, idle: 15s}";

/// For backends that have to be waited for.
const HASTY_TIMEOUTS: &str = "{connect: 200ms, response: 200ms, idle: 200ms}";

/// Cases that only exceed a limit of ours, so that the backend is not to blame.
const OWN_LIMITS: [&str; 2] = ["17 interim responses", "a size beyond all"];

/// A daemon with a pool and a route for each of `pools`: address, timeouts, check.
fn daemon<'a>(
    errors: &str,
    pools: impl IntoIterator<Item = (SocketAddr, &'a str, &'a str)>,
) -> TestDaemon {
    daemon_with(2, errors, pools)
}

fn daemon_with<'a>(
    workers: u32,
    errors: &str,
    pools: impl IntoIterator<Item = (SocketAddr, &'a str, &'a str)>,
) -> TestDaemon {
    let (routes, sections): (String, String) = pools
        .into_iter()
        .enumerate()
        .map(|(number, (address, timeouts, check))| {
            (
                format!("  - {{path: /{number}, pool: p{number}}}\n"),
                format!(
                    "  p{number}: {{backends: [\"{address}\"], health_check: {check}, timeouts: {timeouts}}}\n"
                ),
            )
        })
        .unzip();
    TestDaemon::start(&format!(
        "workers: {workers}\nerrors: {errors}\nlisteners:\n  web: {{bind: \"@web\"}}\nroutes:\n{routes}pools:\n{sections}"
    ))
}

fn status_of(reason: &str, split: bool) -> u16 {
    match reason {
        "connection_timeout" | "connection_read_timeout" | "total_timeout" if split => 504,
        "destination_unavailable" if split => 503,
        _ => 502,
    }
}

/// Sends one request to each case at the same time and compares everything that is told about it.
fn every_case_is_answered(split: bool) {
    let cases = cases();
    let daemon = daemon(
        if split {
            "{status: split}"
        } else {
            "{status: unified}"
        },
        cases
            .iter()
            .map(|case| (case.backend.address(), case.timeouts, case.check)),
    );
    let down = "balancer_pool_backends{state=\"down\"}";
    daemon.wait_for_metric(down, |count| count > 0.5);
    let failed: Vec<&str> = thread::scope(|scope| {
        let running: Vec<_> = cases
            .iter()
            .enumerate()
            .map(|(number, case)| {
                let daemon = &daemon;
                let run = move || answers(daemon, number, case, status_of(case.reason, split));
                (case.name, scope.spawn(run))
            })
            .collect();
        let results = running.into_iter().map(|(name, run)| (name, run.join()));
        results
            .filter_map(|(name, result)| result.is_err().then_some(name))
            .collect()
    });
    assert!(failed.is_empty(), "wrong answers for {failed:?}");
    let page = daemon.scrape();
    for (number, case) in cases.iter().enumerate() {
        let status = status_of(case.reason, split);
        is_counted(&page, number, case, status);
    }
}

fn answers(daemon: &TestDaemon, number: usize, case: &FailureCase, status: u16) {
    let began = clock::now();
    let mut client = daemon.client("@web");
    let version = case.version;
    client.send(format!(
        "GET /{number} HTTP/{version}\r\nHost: test\r\nConnection: keep-alive\r\n\r\n"
    ));
    let response = client
        .response()
        .unwrap_or_else(|cut| panic!("{}: {cut:?}", case.name));
    let took = clock::now() - began;
    let least = Duration::from_millis(if case.timeouts == PATIENT_TIMEOUTS {
        0
    } else {
        200
    });
    let most = least * case.tries.max(1) + Duration::from_secs(5);
    assert!(
        took >= least && took < most,
        "{} took {took:?}, not {least:?} to {most:?}",
        case.name
    );
    let id = expect_error(&response, status, case.reason);
    let line = daemon.access_of(&id);
    assert_eq!(line["reason"], case.reason, "{}: {line}", case.name);
    assert_eq!(line["status"], status, "{}: {line}", case.name);
    assert_eq!(line["attempts"], case.tries, "{}: {line}", case.name);
    assert_eq!(line["pool"], format!("p{number}"), "{}", case.name);
    let backend = case.backend.address().to_string();
    let named = line["backend"].as_str().unwrap_or_default();
    let expected = if case.tries == 0 { "" } else { &backend };
    assert_eq!(named, expected, "{}: {line}", case.name);
    // The request was whole, so that the client may go on with another one.
    assert_eq!(response.header("Connection"), Some("keep-alive"));
    let again = client.request("GET", "/none").unwrap();
    expect_error(&again, 404, "no_route");
}

fn is_counted(page: &str, number: usize, case: &FailureCase, status: u16) {
    let count = |series: &str| sum_of(page, series) as u64;
    let (name, reason, backend) = (case.name, case.reason, case.backend.address());
    let all = format!("balancer_errors_total{{pool=\"p{number}\"}}");
    let own = format!(
        "balancer_errors_total{{pool=\"p{number}\",reason=\"{reason}\",code=\"{status}\"}}"
    );
    assert_eq!((count(&own), count(&all)), (1, 1), "{name}");
    let all = format!("balancer_backend_failures_total{{pool=\"p{number}\"}}");
    let own = format!(
        "balancer_backend_failures_total{{pool=\"p{number}\",backend=\"{backend}\",reason=\"{reason}\"}}"
    );
    // The total timeout is no backend's failure, and neither is a limit of ours.
    let blames = !["total_timeout", "http_response_header_section_size"].contains(&reason);
    let failures = if !blames || OWN_LIMITS.contains(&name) {
        0
    } else {
        u64::from(case.tries)
    };
    assert_eq!((count(&own), count(&all)), (failures, failures), "{name}");
    let requests = format!("balancer_http_requests_total{{pool=\"p{number}\",code=\"{status}\"}}");
    assert_eq!(count(&requests), 1, "{name}");
}

#[test]
fn every_broken_backend_has_its_answer_in_the_unified_profile() {
    every_case_is_answered(false);
}

#[test]
fn every_broken_backend_has_its_answer_in_the_split_profile() {
    every_case_is_answered(true);
}

#[test]
fn sixteen_interim_responses_are_passed_on_and_answered() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(16);
    let peer = ScriptedPeer::saying(hints + "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let daemon = daemon("{}", [(peer.address, PATIENT_TIMEOUTS, "none")]);
    let mut client = daemon.client("@web");
    client.send("GET /0 HTTP/1.1\r\nHost: test\r\n\r\n");
    for _ in 0..16 {
        let hint = client.response().unwrap();
        assert_eq!((hint.status, hint.header("Link")), (103, Some("</a>")));
    }
    assert_eq!(client.response().unwrap().text(), "ok");
}

#[test]
fn an_answer_before_the_end_of_the_request_is_passed_on() {
    // Unread bytes make its close a reset, which must not destroy the response that came before.
    let peer = ScriptedPeer::start(|mut connection| {
        connection.head();
        connection.exactly(1);
        connection
            .send("HTTP/1.1 413 Own Limit\r\nConnection: close\r\nContent-Length: 4\r\n\r\nless");
    });
    let daemon = daemon("{}", [(peer.address, PATIENT_TIMEOUTS, "none")]);
    for _ in 0..10 {
        let mut client = daemon.client("@web");
        let length = 300_000;
        client.send(format!(
            "POST /0 HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
        ));
        client.send(vec![b'a'; length]);
        let response = client.response().unwrap();
        assert_eq!((response.status, response.text()), (413, "less".to_owned()));
        assert_eq!(response.count("Proxy-Status"), 0);
    }
}
