//! Errors that are the client's, or our own limits: each has its status, its record, and leaves the
//! connection as it should be.

use std::{io::Write, net::TcpStream, thread, time::Duration};

use crate::harness::{
    answers::expect_error,
    client::{HttpClient, HttpResponse, ReadError},
    daemon::{TestDaemon, sum_of},
    peer::{ScriptedPeer, refused},
};
use balancer::base::clock;

/// `@web` in front of `peer`; `listener` are further keys of the listener.
fn daemon(peer: &ScriptedPeer, listener: &str) -> TestDaemon {
    daemon_of(peer, listener, "")
}

/// The same; `pool` are further keys of the pool.
fn daemon_of(peer: &ScriptedPeer, listener: &str, pool: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "workers: 1\nlisteners:\n  web: {{bind: \"@web\", pool: app, {listener}}}\n\
         pools:\n  app: {{backends: [\"{}\"], health_check: none, {pool}}}\n",
        peer.address
    ))
}

/// Sends `bytes`, expects this error, and that the connection ends cleanly after it.
#[track_caller]
fn is_refused(
    daemon: &TestDaemon,
    bytes: impl AsRef<[u8]>,
    status: u16,
    reason: &str,
) -> HttpResponse {
    let mut client = daemon.client("@web");
    client.send(bytes.as_ref());
    let shown = String::from_utf8_lossy(bytes.as_ref());
    let response = client
        .response()
        .unwrap_or_else(|cut| panic!("{shown:.200}: {cut:?}"));
    assert_eq!(response.status, status, "{shown:.200}: {response:?}");
    let id = expect_error(&response, status, reason);
    assert_eq!(response.header("Connection"), Some("close"), "{shown:.200}");
    assert_eq!(client.rest(), Ok(Vec::new()), "{shown:.200}");
    let line = daemon.access_of(&id);
    assert_eq!(
        (&line["status"], &line["reason"]),
        (&status.into(), &reason.into())
    );
    response
}

#[track_caller]
fn is_counted(daemon: &TestDaemon, pool: &str, reason: &str, code: u16, times: usize) {
    let series =
        format!("balancer_errors_total{{pool=\"{pool}\",reason=\"{reason}\",code=\"{code}\"}}");
    // Counted when the exchange ends, which may be after the client has its response.
    daemon.wait_for_metric(&series, |value| value as usize >= times);
    let page = daemon.scrape();
    assert_eq!(sum_of(&page, &series) as usize, times, "{series}\n{page}");
}

/// Request lines that are malformed or ambiguous.
const MALFORMED_REQUEST_LINES: [&str; 18] = [
    "GET  / HTTP/1.1",
    " GET / HTTP/1.1",
    "GET /",
    "GET / HTTP/1.1 more",
    "GET / http/1.1",
    "GET / HTTP/1",
    "GET / HTTX/1.1",
    "GE(T / HTTP/1.1",
    "GET foo HTTP/1.1",
    "GET * HTTP/1.1",
    "GET /#part HTTP/1.1",
    "GET /\u{e4} HTTP/1.1",
    "GET /\x01 HTTP/1.1",
    "GET ftp://test/ HTTP/1.1",
    "GET http://other/ HTTP/1.1",
    "GET http://user@test/ HTTP/1.1",
    "GET http:/// HTTP/1.1",
    "\r\n\r\nGET / HTTP/1.1",
];

/// Header fields that are malformed, or make the length of the body ambiguous.
const MALFORMED_FIELDS: [&str; 31] = [
    "Host: test",
    "Host: other",
    "X : a",
    " X: a",
    "X: a\r\n b",
    "X: a\0b",
    "X: a\rb",
    "X: a\nY: b",
    ": a",
    "X",
    "X(: a",
    "Content-Length: +5",
    "Content-Length: -5",
    "Content-Length: 0x5",
    "Content-Length: 5, 5",
    "Content-Length: 5 5",
    "Content-Length: ",
    "Content-Length: 99999999999999999999",
    "Content-Length: 5\r\nContent-Length: 5",
    "Content-Length: 5\r\nContent-Length: 6",
    "Content-Length: 5\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: chunked, gzip",
    "Transfer-Encoding: gzip",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: \x0bchunked",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: ",
];

/// Values of `Host` that name no host.
const MALFORMED_HOSTS: [&str; 9] = [
    "", "a b", "a/b", "a@b", "a,b", "a:b", "a:123456", "[::1", "[x]",
];

#[test]
fn malformed_and_ambiguous_requests_are_refused_and_reach_no_backend() {
    let peer = ScriptedPeer::answering("wrong");
    let daemon = daemon(&peer, "");
    let mut requests: Vec<String> = Vec::new();
    requests.extend(MALFORMED_REQUEST_LINES.map(|line| format!("{line}\r\nHost: test\r\n\r\n")));
    requests.extend(MALFORMED_FIELDS.map(|field| {
        format!("POST / HTTP/1.1\r\nHost: test\r\n{field}\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    }));
    requests.extend(MALFORMED_HOSTS.map(|host| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")));
    requests.push("GET / HTTP/1.1\r\n\r\n".to_owned());
    requests.push("GET / HTTP/1.1\nHost: test\n\n".to_owned());
    requests.push("GET / HTTP/1.1\r\nHost: test\n\r\n".to_owned());
    let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    requests.push(old.to_owned());
    for request in &requests {
        is_refused(&daemon, request, 400, "http_request_error");
    }
    let hello = [0x16, 0x03, 0x01, 0x00, 0xa5, 0x01, 0x00, 0x00, 0xa1, 0x03];
    is_refused(&daemon, hello, 400, "http_request_error");
    is_counted(&daemon, "-", "http_request_error", 400, requests.len() + 1);
    assert_eq!(peer.connections(), 0);
}

#[test]
fn requests_beyond_what_is_served_have_their_own_status() {
    let peer = ScriptedPeer::answering("wrong");
    let daemon = daemon(&peer, "http: {max_header_size: 4KiB, max_headers: 10}");
    let head = |line: &str, fields: &str| format!("{line}\r\nHost: test\r\n{fields}\r\n");
    let get = |fields: &str| head("GET / HTTP/1.1", fields);
    let post = |fields: &str| head("POST / HTTP/1.1", fields);
    let connect = head("CONNECT test:443 HTTP/1.1", "");
    let refused = is_refused(&daemon, connect, 405, "method_not_allowed");
    assert_eq!(
        refused.header("Allow"),
        Some("GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH")
    );
    for version in ["2.0", "3.0", "1.2", "0.9"] {
        let request = head(&format!("GET / HTTP/{version}"), "");
        is_refused(&daemon, request, 505, "version_not_supported");
    }
    let nearly = "PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n";
    is_refused(&daemon, nearly, 505, "version_not_supported");
    let expects = post("Expect: 200-maybe\r\nContent-Length: 5\r\n");
    is_refused(&daemon, expects, 417, "expectation_failed");
    for coding in ["gzip, chunked", "br,chunked"] {
        let request = post(&format!("Transfer-Encoding: {coding}\r\n"));
        is_refused(&daemon, request, 501, "transfer_coding_unsupported");
    }
    let large = "http_request_header_section_size";
    is_refused(
        &daemon,
        get(&format!("X: {}\r\n", "a".repeat(5_000))),
        431,
        large,
    );
    is_refused(
        &daemon,
        get(&format!("X: {}", "a".repeat(5_000))),
        431,
        large,
    );
    is_refused(&daemon, get(&"X: y\r\n".repeat(10)), 431, large);
    let long = format!("/{}", "a".repeat(3_000));
    let uri = "http_request_uri_too_long";
    is_refused(&daemon, head(&format!("GET {long} HTTP/1.1"), ""), 414, uri);
    is_refused(&daemon, format!("GET {long}"), 414, uri);
    is_refused(
        &daemon,
        head(&format!("GET /?{long} HTTP/1.1"), ""),
        414,
        uri,
    );
    assert_eq!(peer.connections(), 0);
}

#[test]
fn what_is_within_the_limits_is_served() {
    let peer = ScriptedPeer::answering("good");
    let daemon = daemon(&peer, "http: {max_header_size: 4KiB, max_headers: 10}");
    let head = |line: &str, fields: &str| format!("{line}\r\nHost: test\r\n{fields}\r\n");
    for request in [
        head("GET / HTTP/1.1", &"X: y\r\n".repeat(9)),
        head("GET / HTTP/1.1", &format!("X: {}\r\n", "a".repeat(3_900))),
        head(&format!("GET /{} HTTP/1.1", "a".repeat(2_000)), ""),
        head("GET http://TEST/path?query HTTP/1.1", ""),
        head("OPTIONS * HTTP/1.1", ""),
        head("BREW /pot HTTP/1.1", ""),
        // RFC 9112 section 2.2: an empty line before a request is passed over.
        head("\r\nGET / HTTP/1.1", ""),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n".to_owned(),
    ] {
        let mut client = daemon.client("@web");
        client.send(&request);
        let response = client.response().unwrap();
        assert_eq!(response.status, 200, "{request}");
    }
}

#[test]
fn what_no_route_matches_is_not_found_and_the_connection_goes_on() {
    let daemon = TestDaemon::start(
        "listeners:\n  web: {bind: \"@web\"}\nroutes:\n  - {path: /ok, respond: {status: 200, body: fine}}\n",
    );
    let mut client = daemon.client("@web");
    let response = client.request("GET", "/other").unwrap();
    let id = expect_error(&response, 404, "no_route");
    assert_eq!(response.header("Connection"), Some("keep-alive"));
    assert_eq!(daemon.access_of(&id)["reason"], "no_route");
    // A body that was read to its end is no reason to close.
    client.send("POST /other HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello");
    expect_error(&client.response().unwrap(), 404, "no_route");
    client.send("POST /other HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    expect_error(&client.response().unwrap(), 404, "no_route");
    assert_eq!(client.request("GET", "/ok").unwrap().text(), "fine");
    // One that was not read to its end is: its rest could be taken for a request.
    let begun = "POST /other HTTP/1.1\r\nHost: test\r\nContent-Length: 500\r\n\r\nGET /ok HTTP/1.1\r\nHost: test\r\n\r\n";
    is_refused(&daemon, begun, 404, "no_route");
    is_counted(&daemon, "-", "no_route", 404, 4);
}

#[test]
fn after_a_bad_gateway_the_next_request_of_the_connection_is_found() {
    let good = ScriptedPeer::answering("good");
    let daemon = TestDaemon::start(&format!(
        "listeners:\n  web: {{bind: \"@web\", pool: dead}}\nroutes:\n  - {{path: /good, pool: good}}\npools:\n  \
         dead: {{backends: [\"{}\"], health_check: none}}\n  good: {{backends: [\"{}\"], health_check: none}}\n",
        refused(),
        good.address
    ));
    let mut client = daemon.client("@web");
    let next = "GET /good HTTP/1.1\r\nHost: test\r\n\r\n";
    for body in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        // Both at once, so that the second is in the same read as the first.
        client.send(format!("POST / HTTP/1.1\r\nHost: test\r\n{body}{next}"));
        let response = client.response().unwrap();
        expect_error(&response, 502, "connection_refused");
        assert_eq!(response.header("Connection"), Some("keep-alive"));
        assert_eq!(client.response().unwrap().text(), "good");
    }
}

#[test]
fn a_request_that_does_not_come_in_time_is_given_up() {
    let peer = ScriptedPeer::answering("wrong");
    let daemon = daemon(&peer, "timeouts: {header: 200ms, body_idle: 200ms}");
    let began = clock::now();
    for begun in ["G", "GET / HTTP/1.1\r\nHost: te"] {
        is_refused(&daemon, begun, 408, "http_request_timeout");
    }
    let took = clock::now() - began;
    assert!(took >= Duration::from_millis(400), "too early: {took:?}");
    // Nothing at all is no request: there is nothing to answer.
    assert_eq!(daemon.client("@web").response(), Err(ReadError::Closed));
    // Dripping on does not help.
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nX: ");
    while client.try_send("a") && !daemon_has_cut(&mut client) {}
    let response = client.response().unwrap();
    expect_error(&response, 408, "http_request_timeout");
    is_counted(&daemon, "-", "http_request_timeout", 408, 3);
    assert_eq!(peer.connections(), 0);
}

/// Waits a little for a response, which is the pace of the bytes that drip.
fn daemon_has_cut(client: &mut HttpClient) -> bool {
    client.patience(Duration::from_millis(20));
    let seen = !matches!(client.more(), Err(ReadError::TimedOut(_)));
    client.patience(crate::harness::PATIENCE);
    seen
}

#[test]
fn a_body_that_stops_coming_is_given_up() {
    let peer = ScriptedPeer::answering("wrong");
    let daemon = daemon(&peer, "timeouts: {body_idle: 200ms}");
    for body in [
        "Content-Length: 10\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: test\r\n{body}");
        let response = is_refused(&daemon, request, 408, "http_request_timeout");
        let line = daemon.access_of(response.header("X-Request-Id").unwrap());
        assert_eq!(line["pool"], "app");
        assert_eq!(line["bytes_in"], 5);
    }
    is_counted(&daemon, "app", "http_request_timeout", 408, 2);
    assert!(peer.requests.all().is_empty(), "no whole request came");
    let blamed = daemon.metric("balancer_backend_failures_total");
    assert!(blamed < 0.5, "the backend is not to blame");
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let peer = ScriptedPeer::answering("good");
    let daemon = daemon(&peer, "limits: {request_body: 1KiB}");
    let post = |body: &str| format!("POST / HTTP/1.1\r\nHost: test\r\n{body}");
    let too_large = "http_request_body_size";
    // By its length: at once, without a byte of it, and without an invitation to send it.
    is_refused(
        &daemon,
        post("Content-Length: 1025\r\n\r\n"),
        413,
        too_large,
    );
    let polite = "Expect: 100-continue\r\nContent-Length: 1025\r\n\r\n";
    is_refused(&daemon, post(polite), 413, too_large);
    assert_eq!(peer.connections(), 0);
    // By its count, when the length is not told.
    let chunk = format!("200\r\n{}\r\n", "a".repeat(512));
    let chunks = format!("Transfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(3));
    is_refused(&daemon, post(&chunks), 413, too_large);
    // In parts, so that the head was forwarded before.
    let mut client = daemon.client("@web");
    client.send(post("Transfer-Encoding: chunked\r\n\r\n"));
    for _ in 0..3 {
        client.send(&chunk);
    }
    expect_error(&client.response().unwrap(), 413, too_large);
    assert!(peer.requests.all().is_empty(), "no whole request came");
    // What just fits.
    let mut client = daemon.client("@web");
    let fits = format!("Content-Length: 1024\r\n\r\n{}", "a".repeat(1024));
    client.send(post(&fits));
    assert_eq!(client.response().unwrap().text(), "good");
    let fits = format!(
        "Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
        chunk.repeat(2)
    );
    client.send(post(&fits));
    assert_eq!(client.response().unwrap().text(), "good");
}

#[test]
fn a_client_that_still_sends_can_read_why_it_was_refused() {
    let peer = ScriptedPeer::answering("wrong");
    let daemon = daemon(&peer, "limits: {request_body: 1KiB}");
    let length = 900_000;
    for _ in 0..5 {
        let mut client = daemon.client("@web");
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
        ));
        // Without lingering, a reset would come back for these and destroy the response.
        client.send(vec![b'a'; length]);
        let response = client.response().unwrap();
        expect_error(&response, 413, "http_request_body_size");
    }
}

#[test]
fn a_body_that_is_malformed_or_cut_is_never_whole_for_the_backend() {
    let peer = ScriptedPeer::answering("wrong");
    let daemon = daemon(&peer, "");
    let post = "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
    for bad in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
    ] {
        is_refused(
            &daemon,
            format!("{post}{bad}"),
            400,
            "http_request_incomplete",
        );
    }
    is_counted(&daemon, "app", "http_request_incomplete", 400, 9);
    for begun in [
        "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let before = peer.connections();
        let mut client = daemon.client("@web");
        client.send(begun);
        crate::harness::poll(|| (peer.connections() > before).then_some(())).unwrap();
        client.reset();
    }
    daemon.wait_for_metric(
        "balancer_errors_total{pool=\"app\",reason=\"client_disconnected\",code=\"0\"}",
        |count| count > 1.5,
    );
    let line = daemon.wait_for_access(|line| line["reason"] == "client_disconnected");
    assert_eq!(
        (&line["status"], &line["bytes_in"]),
        (&499.into(), &5.into())
    );
    assert!(peer.requests.all().is_empty(), "no whole request came");
    let blamed = daemon.metric("balancer_backend_failures_total");
    assert!(blamed < 0.5, "the backend is not to blame");
}

#[test]
fn clients_are_let_in_by_address() {
    let peer = ScriptedPeer::answering("good");
    let get = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    for (rules, allowed) in [
        ("allow: [127.0.0.1]", true),
        ("allow: [10.0.0.0/8]", false),
        ("allow: [10.0.0.0/8, 127.0.0.0/8]", true),
        ("deny: [127.0.0.1]", false),
        ("deny: [10.0.0.0/8]", true),
        ("allow: [127.0.0.0/8], deny: [127.0.0.1]", false),
        ("allow: [\"::1\"]", false),
    ] {
        let daemon = daemon(&peer, rules);
        let mut client = daemon.client("@web");
        client.send(get);
        let response = client.response().unwrap();
        if allowed {
            assert_eq!(response.status, 200, "{rules}");
        } else {
            let id = expect_error(&response, 403, "http_request_denied");
            assert_eq!(daemon.access_of(&id)["reason"], "http_request_denied");
            is_counted(&daemon, "-", "http_request_denied", 403, 1);
        }
    }
}

#[test]
fn a_route_can_let_in_fewer_than_its_listener() {
    let peer = ScriptedPeer::answering("good");
    let daemon = TestDaemon::start(&format!(
        "listeners:\n  web: {{bind: \"@web\", pool: app}}\nroutes:\n  - {{path: /admin, pool: app, allow: [10.0.0.0/8]}}\n  \
         - {{path: /own, pool: app, allow: [127.0.0.1]}}\npools:\n  app: {{backends: [\"{}\"]}}\n",
        peer.address
    ));
    let mut client = daemon.client("@web");
    for (target, allowed) in [("/admin/x", false), ("/own", true), ("/", true)] {
        let response = client.request("GET", target).unwrap();
        if allowed {
            assert_eq!(response.text(), "good", "{target}");
        } else {
            expect_error(&response, 403, "http_request_denied");
        }
    }
}

/// Fills a limit of two connections with requests that wait for their bodies, and expects that a
/// third is told so.
#[track_caller]
fn only_two_fit(daemon: &TestDaemon, peer: &ScriptedPeer) {
    let begun = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n";
    let mut first = daemon.client("@web");
    let mut second = daemon.client("@web");
    for (count, client) in [&mut first, &mut second].into_iter().enumerate() {
        client.send(begun);
        crate::harness::poll(|| (peer.connections() > count).then_some(())).unwrap();
    }
    for times in 1..=3 {
        let mut third = daemon.client("@web");
        third.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        let response = third.response().unwrap();
        expect_error(&response, 503, "overload");
        assert_eq!(response.header("Connection"), Some("close"));
        assert_eq!(third.rest(), Ok(Vec::new()));
        is_counted(daemon, "-", "overload", 503, times);
        let rejected =
            "balancer_listener_connections_rejected_total{listener=\"web\",reason=\"overload\"}";
        assert_eq!(daemon.metric(rejected) as usize, times);
        let line = daemon.wait_for_access(|line| line["reason"] == "overload");
        assert_eq!(
            (&line["status"], &line["listener"]),
            (&503.into(), &"web".into())
        );
    }
    first.send("hello");
    assert_eq!(first.response().unwrap().text(), "good");
    drop(first);
    let active = "balancer_listener_connections_active{listener=\"web\"}";
    daemon.wait_for_metric(active, |count| count < 1.5);
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "good");
    second.send("hello");
    assert_eq!(second.response().unwrap().text(), "good");
}

#[test]
fn the_connections_of_a_listener_are_limited() {
    let peer = ScriptedPeer::answering("good");
    let daemon = daemon(&peer, "limits: {connections: 2}");
    only_two_fit(&daemon, &peer);
}

#[test]
fn the_connections_of_a_client_address_are_limited() {
    let peer = ScriptedPeer::answering("good");
    let daemon = daemon(&peer, "limits: {connections_per_client: 2}");
    only_two_fit(&daemon, &peer);
    let mut held = [daemon.client("@web"), daemon.client("@web")];
    for client in &mut held {
        assert_eq!(client.request("GET", "/").unwrap().text(), "good");
    }
    assert_eq!(daemon.get("@web", "/").unwrap().status, 503);
    // Another address of the same machine has its own count.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let other: std::net::SocketAddr = "127.0.0.2:0".parse().unwrap();
    socket.bind(&other.into()).unwrap();
    socket.connect(&daemon.address("@web").into()).unwrap();
    let mut other = HttpClient::over(TcpStream::from(socket));
    assert_eq!(other.request("GET", "/").unwrap().text(), "good");
}

#[test]
fn the_connections_of_the_daemon_are_limited_and_idle_ones_are_closed_for_new_ones() {
    let peer = ScriptedPeer::answering("good");
    let config = format!(
        "workers: 1\nmax_connections: 2\nlisteners:\n  web: {{bind: \"@web\", pool: app}}\n\
         pools:\n  app: {{backends: [\"{}\"], health_check: none}}\n",
        peer.address
    );
    let daemon = TestDaemon::start(&config);
    only_two_fit(&daemon, &peer);
    // Idle ones are closed for newcomers, so that these are served sooner or later.
    let mut idle = [daemon.client("@web"), daemon.client("@web")];
    for client in &mut idle {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        let _ = client.response();
    }
    let served = crate::harness::poll(|| {
        let response = daemon.get("@web", "/").ok()?;
        (response.status == 200).then_some(())
    });
    assert!(served.is_some(), "no idle connection made room");
}

#[test]
fn the_requests_of_a_backend_are_limited() {
    let gate = crate::harness::peer::Gate::new();
    let door = gate.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        while connection.request().is_some() {
            door.wait();
            connection.answer("good");
        }
    });
    let daemon = TestDaemon::start(&format!(
        "listeners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app:\n    backends: [\"{}\"]\n    \
         health_check: none\n    limits: {{connections_per_backend: 2, queue: 0}}\n",
        peer.address
    ));
    let mut held = [daemon.client("@web"), daemon.client("@web")];
    for client in &mut held {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    peer.wait_for_requests(2);
    let mut third = daemon.client("@web");
    let response = third.request("GET", "/").unwrap();
    let id = expect_error(&response, 503, "connection_limit_reached");
    assert_eq!(daemon.access_of(&id)["attempts"], 0);
    is_counted(&daemon, "app", "connection_limit_reached", 503, 1);
    gate.open();
    for client in &mut held {
        assert_eq!(client.response().unwrap().text(), "good");
    }
    assert_eq!(third.request("GET", "/").unwrap().text(), "good");
}

#[test]
fn a_client_that_reads_nothing_is_given_up() {
    let peer = ScriptedPeer::start(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        let part = vec![b'a'; 1 << 20];
        while connection.send(&part) {}
    });
    let daemon = daemon_of(&peer, "", "timeouts: {idle: 200ms}");
    let mut stream = TcpStream::connect(daemon.address("@web")).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    let line = daemon.wait_for_access(|line| line["reason"] == "client_write_timeout");
    assert_eq!(line["status"], 200);
    is_counted(&daemon, "app", "client_write_timeout", 0, 1);
    drop(stream);
}

#[test]
fn many_bad_clients_do_not_keep_a_good_one_waiting() {
    let peer = ScriptedPeer::answering("good");
    let daemon = daemon(&peer, "timeouts: {header: 5s}");
    let held: Vec<HttpClient> = (0..200)
        .map(|number| {
            let mut client = daemon.client("@web");
            client.send(if number % 2 == 0 {
                "GET / HT"
            } else {
                "\x16\x03\x01"
            });
            client
        })
        .collect();
    let began = clock::now();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(daemon.get("@web", "/").unwrap().text(), "good"));
        }
    });
    let took = clock::now() - began;
    assert!(took < Duration::from_secs(3), "{took:?}");
    drop(held);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let peer = ScriptedPeer::answering("good");
    let daemon = daemon(&peer, "timeouts: {keepalive: 200ms}");
    let mut client = daemon.client("@web");
    assert_eq!(client.request("GET", "/").unwrap().text(), "good");
    let began = clock::now();
    assert_eq!(client.rest(), Ok(Vec::new()));
    let took = clock::now() - began;
    assert!(took >= Duration::from_millis(150), "{took:?}");
}

#[test]
fn a_client_that_ends_its_side_after_the_request_gets_its_answer() {
    let gate = crate::harness::peer::Gate::new();
    let door = gate.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        connection.request().unwrap();
        door.wait();
        connection.answer("good");
    });
    let daemon = daemon(&peer, "");
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n").finish();
    peer.wait_for_requests(1);
    // A daemon that took the end for a disconnect would have logged it before the backend responds.
    client.patience(Duration::from_millis(100));
    assert_eq!(client.more(), Err(ReadError::TimedOut(Vec::new())));
    gate.open();
    client.patience(crate::harness::PATIENCE);
    assert_eq!(client.response().unwrap().text(), "good");
}

#[test]
fn a_client_that_resets_while_it_waits_is_noticed_at_once() {
    let peer = ScriptedPeer::start(|mut connection| {
        connection.request().unwrap();
        connection.wait_for_end();
    });
    let daemon = daemon(&peer, "");
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    peer.wait_for_requests(1);
    client.reset();
    let line = daemon.wait_for_access(|line| line["reason"] == "client_disconnected");
    assert_eq!(
        (&line["status"], &line["attempts"]),
        (&499.into(), &1.into())
    );
    daemon.wait_for_metric("balancer_backend_connections_active", |now| now < 0.5);
    is_counted(&daemon, "app", "client_disconnected", 0, 1);
}
