//! Broken backends: whatever one does, the client gets a clean answer or a visible cut, never its bytes, and every record
//! names the same cause.

use std::{net::SocketAddr, thread, time::Duration};

use crate::harness::{
    answers::{expect_error, expect_error_head, json_body},
    client::{HttpClient, ReadError},
    daemon::{TestDaemon, sum_of},
    peer::{Blackhole, Gate, PeerConnection, ScriptedPeer, refused},
};
use balancer::base::clock;

/// Cases that only exceed a limit of ours, so that the backend is not to blame.
const OWN_LIMITS: [&str; 2] = ["17 interim responses", "a size beyond all"];

/// Longer than any test.
const PATIENT: &str = "{connect: 15s, response: 15s, idle: 15s}";
/// For backends that have to be waited for.
const HASTY: &str = "{connect: 200ms, response: 200ms, idle: 200ms}";

/// Something to connect to, alive as long as the value.
enum BrokenBackend {
    Peer(ScriptedPeer),
    Hole(Blackhole),
    Nobody(SocketAddr),
}

impl BrokenBackend {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Peer(peer) => peer.address,
            Self::Hole(hole) => hole.address,
            Self::Nobody(address) => *address,
        }
    }
}

/// A broken backend and what must come of it.
struct FailureCase {
    name: &'static str,
    backend: BrokenBackend,
    reason: &'static str,
    /// Tries that the default rules make for a GET.
    tries: u32,
    timeouts: &'static str,
    check: &'static str,
    version: &'static str,
}

fn case(
    name: &'static str,
    backend: BrokenBackend,
    reason: &'static str,
    tries: u32,
) -> FailureCase {
    FailureCase {
        name,
        backend,
        reason,
        tries,
        timeouts: PATIENT,
        check: "none",
        version: "1.1",
    }
}

/// A backend that sends `bytes` as its whole answer.
fn says(name: &'static str, bytes: impl Into<Vec<u8>>, reason: &'static str) -> FailureCase {
    case(
        name,
        BrokenBackend::Peer(ScriptedPeer::saying(bytes)),
        reason,
        3,
    )
}

/// A backend whose answer is no HTTP response.
fn invalid(name: &'static str, bytes: impl Into<Vec<u8>>) -> FailureCase {
    says(name, bytes, "proxy_protocol_error")
}

/// The promised ones, and their near relatives.
fn cases() -> Vec<FailureCase> {
    let mut all = connection_cases();
    all.extend(status_line_cases());
    all.extend(head_cases());
    all.extend(first_chunk_cases());
    all
}

fn connection_cases() -> Vec<FailureCase> {
    let drip = ScriptedPeer::start(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nX: ");
        // The pace is the fault: each byte comes well within the timeout, the head never does.
        while connection.send("a") {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let resets = ScriptedPeer::resetting_after("");
    let half_then_reset = ScriptedPeer::resetting_after("HTTP/1.1 200 OK\r\nContent-Le");
    let unread = ScriptedPeer::start(drop);
    vec![
        case(
            "refused",
            BrokenBackend::Nobody(refused()),
            "connection_refused",
            3,
        ),
        FailureCase {
            timeouts: HASTY,
            ..case(
                "connect blackhole",
                BrokenBackend::Hole(Blackhole::start()),
                "connection_timeout",
                3,
            )
        },
        FailureCase {
            timeouts: HASTY,
            ..case(
                "silent",
                BrokenBackend::Peer(ScriptedPeer::silent()),
                "connection_read_timeout",
                1,
            )
        },
        FailureCase {
            timeouts: HASTY,
            ..case(
                "head that never ends",
                BrokenBackend::Peer(drip),
                "connection_read_timeout",
                1,
            )
        },
        FailureCase {
            timeouts: "{connect: 200ms, response: 15s, total: 200ms}",
            ..case(
                "silent beyond the total time",
                BrokenBackend::Peer(ScriptedPeer::silent()),
                "total_timeout",
                1,
            )
        },
        says("closed before any byte", "", "connection_terminated"),
        case(
            "closed before the request was read",
            BrokenBackend::Peer(unread),
            "connection_terminated",
            3,
        ),
        case(
            "reset before any byte",
            BrokenBackend::Peer(resets),
            "connection_terminated",
            3,
        ),
        says(
            "closed in the head",
            "HTTP/1.1 200 OK\r\nContent-Le",
            "connection_terminated",
        ),
        case(
            "reset in the head",
            BrokenBackend::Peer(half_then_reset),
            "connection_terminated",
            3,
        ),
        says(
            "closed after a 100",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "connection_terminated",
        )
        .for_old_client(),
        FailureCase {
            check: "{interval: 100ms}",
            ..case(
                "no healthy backend",
                BrokenBackend::Nobody(refused()),
                "destination_unavailable",
                0,
            )
        },
    ]
}

impl FailureCase {
    /// HTTP/1.0 clients get no 1xx.
    fn for_old_client(self) -> Self {
        Self {
            version: "1.0",
            ..self
        }
    }
}

fn status_line_cases() -> Vec<FailureCase> {
    let shouts = ScriptedPeer::start(|mut connection| {
        connection.send("SSH-2.0-OpenSSH_9.2\r\n");
        connection.wait_for_end();
    });
    let ok = "\r\nContent-Length: 2\r\n\r\nok";
    let line = |name, line: &str| invalid(name, format!("{line}{ok}"));
    vec![
        case(
            "not HTTP, before any request",
            BrokenBackend::Peer(shouts),
            "proxy_protocol_error",
            3,
        ),
        invalid("not HTTP", "220 mail.example.com ESMTP ready\r\n"),
        invalid(
            "a TLS alert",
            [0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x46].as_slice(),
        ),
        line("no status", "HTTP/1.1 OK"),
        line("two digits", "HTTP/1.1 20 OK"),
        line("four digits", "HTTP/1.1 2000 OK"),
        line("status 099", "HTTP/1.1 099 Odd"),
        line("status 600", "HTTP/1.1 600 Odd"),
        line("status 999", "HTTP/1.1 999 Odd"),
        line("HTTP/2.0", "HTTP/2.0 200 OK"),
        line("HTTP/1.2", "HTTP/1.2 200 OK"),
        line("small letters", "http/1.1 200 OK"),
        line("two blanks", "HTTP/1.1  200 OK"),
        line("blank in front", " HTTP/1.1 200 OK"),
        line("empty line in front", "\r\nHTTP/1.1 200 OK"),
        line("another protocol", "ICY 200 OK"),
        line("a control byte in the phrase", "HTTP/1.1 200 O\x01K"),
        invalid(
            "a 101 that nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ),
        invalid(
            "17 interim responses",
            "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(17) + "HTTP/1.1 204 No Content\r\n\r\n",
        )
        .for_old_client(),
    ]
}

fn head_cases() -> Vec<FailureCase> {
    let field =
        |name, fields: &str| invalid(name, format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nok"));
    let old = format!("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKS}");
    let many = "X: y\r\n".repeat(300);
    let large = format!("X: {}\r\n", "a".repeat(300_000));
    let too_large = |name, fields: String| {
        says(
            name,
            format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok"),
            "http_response_header_section_size",
        )
    };
    vec![
        too_large("a head of 300 KB", large),
        too_large("300 fields", many),
        field("two lengths", "Content-Length: 2\r\nContent-Length: 3"),
        field(
            "the same length twice",
            "Content-Length: 2\r\nContent-Length: 2",
        ),
        field("a list of lengths", "Content-Length: 2, 2"),
        field("a length with a sign", "Content-Length: +2"),
        field("a negative length", "Content-Length: -2"),
        field("a hexadecimal length", "Content-Length: 0x2"),
        field("an empty length", "Content-Length: "),
        field(
            "a length beyond all sizes",
            "Content-Length: 99999999999999999999",
        ),
        field(
            "length and chunked",
            "Content-Length: 2\r\nTransfer-Encoding: chunked",
        ),
        field("another coding", "Transfer-Encoding: gzip, chunked"),
        field(
            "chunked twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ),
        field(
            "chunked and then another",
            "Transfer-Encoding: chunked, identity",
        ),
        invalid("chunked in HTTP/1.0", old),
        field("NUL in a value", "X: a\0b\r\nContent-Length: 2"),
        field(
            "a carriage return in a value",
            "X: a\rb\r\nContent-Length: 2",
        ),
        field("a folded line", "X: a\r\n b\r\nContent-Length: 2"),
        field("a blank before the colon", "X : a\r\nContent-Length: 2"),
        field("a line without a colon", "X\r\nContent-Length: 2"),
        field("an empty name", ": a\r\nContent-Length: 2"),
        field("a bare line feed after a field", "X: a\nContent-Length: 2"),
        invalid(
            "bare line feeds",
            "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        ),
    ]
}

const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";

fn first_chunk_cases() -> Vec<FailureCase> {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = |name, chunk: &str| invalid(name, format!("{head}{chunk}"));
    vec![
        chunk("no size", "\r\nhello\r\n0\r\n\r\n"),
        chunk("not a size", "zz\r\nhello\r\n0\r\n\r\n"),
        chunk("a negative size", "-5\r\nhello\r\n0\r\n\r\n"),
        chunk("a size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        chunk("a blank before the size", " 5\r\nhello\r\n0\r\n\r\n"),
        chunk(
            "a size beyond all",
            "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        ),
        chunk("a size line with a bare line feed", "5\nhello\r\n0\r\n\r\n"),
        chunk("a chunk longer than its size", "5\r\nhello!\r\n0\r\n\r\n"),
        says(
            "closed before the first chunk",
            head,
            "connection_terminated",
        ),
    ]
}

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
    let least = Duration::from_millis(if case.timeouts == PATIENT { 0 } else { 200 });
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
    // The time for all tries together is no backend's failure, and neither is a limit of ours.
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

/// How a response is cut in its body.
#[derive(Clone, Copy, Debug, PartialEq)]
enum BodyEnd {
    Close,
    Reset,
    Silence,
    BadChunk,
}

const LENGTH: &str = "Content-Length: 100\r\n\r\nfirst part";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\na\r\nfirst part\r\n14\r\nonly";
const CLOSE: &str = "Connection: close\r\n\r\nfirst part";

const CUTS: &[(&str, BodyEnd)] = &[
    (LENGTH, BodyEnd::Close),
    (LENGTH, BodyEnd::Reset),
    (LENGTH, BodyEnd::Silence),
    (CHUNKED, BodyEnd::Close),
    (CHUNKED, BodyEnd::Reset),
    (CHUNKED, BodyEnd::Silence),
    (CHUNKED, BodyEnd::BadChunk),
    // Its end is the end of the body, so only these are a cut.
    (CLOSE, BodyEnd::Reset),
    (CLOSE, BodyEnd::Silence),
];

fn cutting(framing: &'static str, end: BodyEnd, gate: Gate) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection: PeerConnection| {
        if connection.request().is_none() {
            return;
        }
        connection.send(format!("HTTP/1.1 200 OK\r\n{framing}"));
        gate.wait();
        match end {
            BodyEnd::Close => {}
            BodyEnd::Reset => connection.reset(),
            BodyEnd::Silence => connection.wait_for_end(),
            BodyEnd::BadChunk => {
                connection.send("x".repeat(16) + "\r\nnonsense\r\n0\r\n\r\n");
                connection.wait_for_end();
            }
        }
    })
}

#[test]
fn a_response_cut_in_mid_body_is_cut_for_the_client_too() {
    let mut rows = Vec::new();
    for version in ["1.1", "1.0"] {
        for (framing, end) in CUTS {
            let gate = Gate::new();
            let peer = cutting(framing, *end, gate.clone());
            rows.push((version, *framing, *end, gate, peer));
        }
    }
    let pools = rows.iter().map(|(.., end, _, peer)| {
        let timeouts = if *end == BodyEnd::Silence {
            HASTY
        } else {
            PATIENT
        };
        (peer.address, timeouts, "none")
    });
    let daemon = daemon("{}", pools);
    for (number, (version, framing, end, gate, peer)) in rows.iter().enumerate() {
        let what = format!("HTTP/{version} {end:?} after {framing:?}");
        let mut client = daemon.client("@web");
        client.send(format!(
            "GET /{number} HTTP/{version}\r\nHost: test\r\nConnection: keep-alive\r\n\r\n"
        ));
        let (status, headers) = client.head().unwrap();
        assert_eq!(status, 200, "{what}");
        client.until(b"first part").expect("the first part");
        gate.open();
        let field = |name: &str| headers.iter().any(|(known, _)| known == name);
        let end_seen = client.rest();
        if field("Content-Length") {
            // Shorter than announced is a cut, whichever way the connection ends.
            let rest = match end_seen {
                Ok(rest) | Err(ReadError::Reset(rest)) => rest,
                other => panic!("{what}: {other:?}"),
            };
            assert!(rest.len() < 90, "{what}");
        } else if field("Transfer-Encoding") {
            let rest = match end_seen {
                Ok(rest) | Err(ReadError::Reset(rest)) => rest,
                other => panic!("{what}: {other:?}"),
            };
            let rest = String::from_utf8_lossy(&rest).into_owned();
            assert!(
                !rest.contains("\r\n0\r\n"),
                "{what}: a last chunk in {rest}"
            );
            assert!(!rest.contains("nonsense"), "{what}: {rest}");
        } else {
            assert!(
                matches!(end_seen, Err(ReadError::Reset(_))),
                "{what}: {end_seen:?}"
            );
        }
        let pool = format!("p{number}");
        let line = daemon.wait_for_access(|line| line["pool"] == pool.as_str());
        let reason = if *end == BodyEnd::Silence {
            "http_response_idle_timeout"
        } else {
            "http_response_incomplete"
        };
        assert_eq!(
            (&line["status"], &line["reason"]),
            (&200.into(), &reason.into())
        );
        assert_eq!(line["attempts"], 1, "{what}");
        let (page, backend) = (daemon.scrape(), peer.address);
        for series in [
            format!("balancer_errors_total{{pool=\"{pool}\",reason=\"{reason}\",code=\"0\"}}"),
            format!(
                "balancer_backend_failures_total{{pool=\"{pool}\",backend=\"{backend}\",reason=\"{reason}\"}}"
            ),
        ] {
            assert_eq!(sum_of(&page, &series) as u64, 1, "{what}: {series}\n{page}");
        }
    }
}

#[test]
fn statuses_can_be_overridden_by_reason() {
    let none = refused();
    let daemon = daemon(
        "{override: {connection_refused: 503, connection_terminated: 599}}",
        [(none, PATIENT, "none")],
    );
    let response = daemon.get("@web", "/0").unwrap();
    let id = expect_error(&response, 503, "connection_refused");
    assert_eq!(daemon.access_of(&id)["status"], 503);
    let counted = "balancer_errors_total{reason=\"connection_refused\",code=\"503\"}";
    daemon.wait_for_metric(counted, |count| count > 0.5);
}

fn ask(daemon: &TestDaemon, method: &str, accept: &str) -> crate::harness::client::HttpResponse {
    let mut client = daemon.client("@web");
    client.send(format!(
        "{method} /0 HTTP/1.1\r\nHost: test\r\n{accept}Connection: close\r\n\r\n"
    ));
    client.response_to(method).unwrap()
}

#[test]
fn html_is_for_those_who_prefer_it() {
    let html = |response: &crate::harness::client::HttpResponse| {
        expect_error_head(response, 502, "connection_refused");
        assert_eq!(
            response.header("Content-Type"),
            Some("text/html; charset=utf-8")
        );
        let length = response.body.len().to_string();
        assert_eq!(response.header("Content-Length"), Some(length.as_str()));
        let text = response.text();
        assert!(text.starts_with("<!DOCTYPE html>"), "{text}");
        assert!(text.contains("502 Bad Gateway"), "{text}");
        assert!(text.contains("refused the connection"), "{text}");
    };
    let json = |response| {
        expect_error(&response, 502, "connection_refused");
    };
    let nobody = refused();
    let auto = daemon("{format: auto}", [(nobody, PATIENT, "none")]);
    html(&ask(
        &auto,
        "GET",
        "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n",
    ));
    html(&ask(
        &auto,
        "GET",
        "Accept: application/json;q=0.5, text/html;q=0.9\r\n",
    ));
    json(ask(&auto, "GET", ""));
    json(ask(&auto, "GET", "Accept: */*\r\n"));
    json(ask(&auto, "GET", "Accept: application/json\r\n"));
    json(ask(
        &auto,
        "GET",
        "Accept: text/html;q=0.5, application/json\r\n",
    ));
    let always = daemon("{format: html}", [(nobody, PATIENT, "none")]);
    html(&ask(&always, "GET", "Accept: application/json\r\n"));
}

#[test]
fn pages_replace_the_built_in_bodies() {
    let pages = crate::harness::TempDir::new();
    std::fs::write(pages.path().join("502.html"), "<p>come back later</p>").unwrap();
    std::fs::write(pages.path().join("502.json"), "{\"oops\":true}").unwrap();
    let errors = format!("{{format: auto, pages: \"{}\"}}", pages.path().display());
    let daemon = daemon(&errors, [(refused(), PATIENT, "none")]);
    let html = ask(&daemon, "GET", "Accept: text/html\r\n");
    expect_error_head(&html, 502, "connection_refused");
    assert_eq!(html.text(), "<p>come back later</p>");
    assert_eq!(
        html.header("Content-Type"),
        Some("text/html; charset=utf-8")
    );
    let json = ask(&daemon, "GET", "");
    expect_error_head(&json, 502, "connection_refused");
    assert_eq!(json.text(), "{\"oops\":true}");
    let other = daemon.get("@web", "/none").unwrap();
    expect_error(&other, 404, "no_route");
}

#[test]
fn an_error_for_head_has_the_head_of_the_answer_to_get_and_no_body() {
    let daemon = daemon("{}", [(refused(), PATIENT, "none")]);
    let mut client = daemon.client("@web");
    let head = client.request("HEAD", "/0").unwrap();
    expect_error_head(&head, 502, "connection_refused");
    let length = json_body(502, "connection_refused").len().to_string();
    assert_eq!(head.header("Content-Length"), Some(length.as_str()));
    // A body would stand before this answer.
    let get = client.request("GET", "/0").unwrap();
    expect_error(&get, 502, "connection_refused");
}

#[test]
fn sixteen_interim_responses_are_passed_on_and_answered() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(16);
    let peer = ScriptedPeer::saying(hints + "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let daemon = daemon("{}", [(peer.address, PATIENT, "none")]);
    let mut client = daemon.client("@web");
    client.send("GET /0 HTTP/1.1\r\nHost: test\r\n\r\n");
    for _ in 0..16 {
        let hint = client.response().unwrap();
        assert_eq!((hint.status, hint.header("Link")), (103, Some("</a>")));
    }
    assert_eq!(client.response().unwrap().text(), "ok");
}

/// Answers the first connection with `bytes`, which are more than its answer, and all others as they should be.
fn talkative(bytes: &'static str) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            let sent = if request.connection == 0 {
                connection.send(bytes)
            } else {
                connection.answer("right")
            };
            if !sent {
                return;
            }
        }
    })
}

#[test]
fn bytes_after_a_response_never_reach_another_client() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let table: [(&str, &str, u16, &str); 7] = [
        (
            "GET",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloEXTRA",
            200,
            "hello",
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            200,
            "hello",
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            200,
            "hello",
        ),
        (
            "GET",
            "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil",
            204,
            "",
        ),
        (
            "GET",
            "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            204,
            "",
        ),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil",
            304,
            "",
        ),
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            200,
            "",
        ),
    ];
    let peers: Vec<ScriptedPeer> = table.iter().map(|row| talkative(row.1)).collect();
    let late = late_talker(evil);
    let addresses = peers.iter().chain([&late.0]).map(|peer| peer.address);
    // One worker, so that the second request finds the connection of the first if it was kept.
    let config = addresses.map(|address| (address, PATIENT, "none"));
    let daemon = daemon_with(1, "{}", config);
    for (number, (method, bytes, status, body)) in table.iter().enumerate() {
        let mut client = daemon.client("@web");
        let target = format!("/{number}");
        let first = client.request(method, &target).unwrap();
        assert_eq!((first.status, first.text().as_str()), (*status, *body));
        // The same client and another one: both must get their own answer.
        let second = client.request("GET", &target).unwrap();
        assert_eq!(second.text(), "right", "after {bytes:?}");
        let third = daemon.get("@web", &target).unwrap();
        assert_eq!(third.text(), "right", "after {bytes:?}");
        assert_eq!(peers[number].connections(), 2, "after {bytes:?}");
    }
    let (peer, said, speak) = late;
    let target = format!("/{}", table.len());
    let mut client = daemon.client("@web");
    assert_eq!(client.request("GET", &target).unwrap().text(), "hello");
    daemon.wait_for_metric("balancer_backend_connections_idle", |idle| idle > 0.5);
    speak.open();
    said.wait();
    assert_eq!(client.request("GET", &target).unwrap().text(), "right");
    assert_eq!(peer.connections(), 2);
}

/// Sends a response that nobody asked for, when told to, on a connection that has become idle.
fn late_talker(evil: &'static str) -> (ScriptedPeer, Gate, Gate) {
    let (said, speak) = (Gate::new(), Gate::new());
    let doors = (said.clone(), speak.clone());
    let peer = ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.connection > 0 {
                connection.answer("right");
                continue;
            }
            connection.answer("hello");
            doors.1.wait();
            connection.send(evil);
            doors.0.open();
        }
    });
    (peer, said, speak)
}

#[test]
fn errors_of_the_backend_itself_pass_untouched() {
    let peer = ScriptedPeer::saying(
        "HTTP/1.1 503 Closed For Lunch\r\nContent-Type: text/x-own\r\nContent-Length: 4\r\nRetry-After: 9\r\n\r\nback",
    );
    let daemon = daemon("{status: split}", [(peer.address, PATIENT, "none")]);
    let mut client = HttpClient::connect(daemon.address("@web"));
    client.send("GET /0 HTTP/1.1\r\nHost: test\r\n\r\n");
    let line = client.until(b"\r\n").unwrap();
    assert_eq!(line, b"HTTP/1.1 503 Closed For Lunch\r\n");
    let rest = String::from_utf8(client.until(b"back").unwrap()).unwrap();
    for field in ["Content-Type: text/x-own\r\n", "Retry-After: 9\r\n"] {
        assert!(rest.contains(field), "{rest}");
    }
    assert!(!rest.contains("Proxy-Status"), "{rest}");
    let failures = daemon.metric("balancer_backend_failures_total");
    assert!(failures < 0.5, "{failures} failures");
}

#[test]
fn an_answer_before_the_end_of_the_request_is_passed_on() {
    // Unread bytes make its close a reset, which must not destroy the answer that came before.
    let peer = ScriptedPeer::start(|mut connection| {
        connection.head();
        connection.exactly(1);
        connection
            .send("HTTP/1.1 413 Own Limit\r\nConnection: close\r\nContent-Length: 4\r\n\r\nless");
    });
    let daemon = daemon("{}", [(peer.address, PATIENT, "none")]);
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

#[test]
fn the_time_for_everything_ends_a_response_in_its_body() {
    let peer = ScriptedPeer::start(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst part");
        connection.wait_for_end();
    });
    let timeouts = "{connect: 300ms, response: 15s, idle: 15s, total: 300ms}";
    let daemon = daemon("{}", [(peer.address, timeouts, "none")]);
    assert!(daemon.get("@web", "/0").is_err(), "cut");
    let line = daemon.wait_for_access(|line| line["reason"] == "total_timeout");
    assert_eq!(
        (&line["status"], &line["bytes_out"]),
        (&200.into(), &10.into())
    );
    let series = "balancer_errors_total{pool=\"p0\",reason=\"total_timeout\",code=\"0\"}";
    let page = daemon.scrape();
    assert_eq!(sum_of(&page, series) as u64, 1, "{page}");
}
