//! Refused requests: the right response, nothing for the backend, and nothing behind them is
//! served.

use super::{echo, front};
use crate::harness::client::ReadError;

/// Requests, each with its status and reason.
fn refused_requests() -> Vec<(String, u16, &'static str)> {
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(20_000));
    let many = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "X-A: b\r\n".repeat(101)
    );
    let fat = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX-A: {}\r\n\r\n",
        "b".repeat(33_000)
    );
    vec![
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            400,
            "http_request_error",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
            501,
            "transfer_coding_unsupported",
        ),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "http_request_error"),
        ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), 400, "http_request_error"),
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned(),
            405,
            "method_not_allowed",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n".to_owned(),
            417,
            "expectation_failed",
        ),
        (
            "GET / HTTP/3.0\r\nHost: a\r\n\r\n".to_owned(),
            505,
            "version_not_supported",
        ),
        (
            // Not the preface of HTTP/2, but nearly.
            "PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n".to_owned(),
            505,
            "version_not_supported",
        ),
        (long, 414, "http_request_uri_too_long"),
        (many, 431, "http_request_header_section_size"),
        (fat, 431, "http_request_header_section_size"),
    ]
}

#[test]
fn an_ambiguous_request_is_refused_and_nothing_after_it_is_run() {
    let peer = echo();
    let daemon = front(peer.address, "");
    for (request, status, reason) in refused_requests() {
        let mut client = daemon.client("@web");
        client.try_send(format!(
            "{request}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        ));
        let response = client.response().unwrap();
        assert_eq!(response.status, status, "{request:.60}");
        assert_eq!(response.header("connection"), Some("close"));
        assert_eq!(response.header("cache-control"), Some("no-store"));
        assert_eq!(response.json()["error"]["code"], status);
        let id = response
            .header("x-request-id")
            .expect("a refused request has an id too")
            .to_owned();
        assert_eq!(client.rest(), Ok(Vec::new()), "{request:.60}");
        let line = daemon.wait_for_access(|line| line["request_id"] == id.as_str());
        assert_eq!(
            (&line["reason"], &line["status"]),
            (&reason.into(), &status.into()),
            "{request:.60}"
        );
    }
    assert_eq!(peer.requests.all(), []);
}

#[test]
fn a_refused_request_is_not_logged_with_words_of_the_one_before() {
    let peer = echo();
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send("DELETE /first/of/two HTTP/1.1\r\nHost: first.example\r\nUser-Agent: first\r\n\r\nGE T / HTTP/1.1\r\nHost: second.example\r\nUser-Agent: second\r\n\r\n");
    assert_eq!(client.response().unwrap().status, 200);
    assert_eq!(client.response().unwrap().status, 400);
    let line = daemon.wait_for_access(|line| line["status"] == 400);
    let words = ["method", "path", "host", "user_agent"]
        .map(|name| line[name].as_str().unwrap_or_default().to_owned());
    assert_eq!(words, ["", "", "", ""], "{line}");
}

#[test]
fn a_client_that_stops_in_its_head_is_told_so_and_a_mute_one_is_just_closed() {
    let peer = echo();
    let daemon = crate::harness::daemon::TestDaemon::start(&format!(
        "access_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\", pool: app, timeouts: {{header: 100ms, keepalive: 100ms}}}}}}\npools: {{app: {{backends: [{}], health_check: none}}}}\n",
        peer.address
    ));
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHos");
    assert_eq!(client.response().unwrap().status, 408);
    assert_eq!(daemon.client("@web").response(), Err(ReadError::Closed));
    let mut client = daemon.client("@web");
    assert_eq!(client.request("GET", "/").unwrap().status, 200);
    assert_eq!(
        client.response(),
        Err(ReadError::Closed),
        "after the keepalive time"
    );
}

#[test]
fn a_body_over_the_limit_is_413_however_it_is_framed() {
    let peer = echo();
    let daemon = crate::harness::daemon::TestDaemon::start(&format!(
        "listeners: {{web: {{bind: \"@web\", pool: app, limits: {{request_body: 1KiB}}}}}}\npools: {{app: {{backends: [{}], health_check: none}}}}\n",
        peer.address
    ));
    let body = "x".repeat(1025);
    for (framing, status) in [
        (format!("Content-Length: 1025\r\n\r\n{body}"), 413),
        (
            format!("Transfer-Encoding: chunked\r\n\r\n401\r\n{body}\r\n0\r\n\r\n"),
            413,
        ),
        (format!("Content-Length: 1024\r\n\r\n{}", &body[1..]), 200),
        (
            format!(
                "Transfer-Encoding: chunked\r\n\r\n400\r\n{}\r\n0\r\n\r\n",
                &body[1..]
            ),
            200,
        ),
    ] {
        let mut client = daemon.client("@web");
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}"));
        assert_eq!(client.response().unwrap().status, status, "{framing:.40}");
    }
    assert_eq!(
        peer.requests.all().len(),
        2,
        "what is too large is not completed towards the backend"
    );
}
