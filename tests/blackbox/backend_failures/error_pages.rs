//! The form of error responses: statuses, HTML, own pages, and errors that are the backend's.

use super::{PATIENT_TIMEOUTS, daemon};

use crate::harness::{
    answers::{expect_error, expect_error_head, json_body},
    client::HttpClient,
    daemon::TestDaemon,
    peer::{ScriptedPeer, refused},
};

#[test]
fn statuses_can_be_overridden_by_reason() {
    let none = refused();
    let daemon = daemon(
        "{override: {connection_refused: 503, connection_terminated: 599}}",
        [(none, PATIENT_TIMEOUTS, "none")],
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
    let refusing = refused();
    let auto = daemon("{format: auto}", [(refusing, PATIENT_TIMEOUTS, "none")]);
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
    let always = daemon("{format: html}", [(refusing, PATIENT_TIMEOUTS, "none")]);
    html(&ask(&always, "GET", "Accept: application/json\r\n"));
}

#[test]
fn pages_replace_the_built_in_bodies() {
    let pages = crate::harness::TempDir::new();
    std::fs::write(pages.path().join("502.html"), "<p>come back later</p>").unwrap();
    std::fs::write(pages.path().join("502.json"), "{\"oops\":true}").unwrap();
    let errors = format!("{{format: auto, pages: \"{}\"}}", pages.path().display());
    let daemon = daemon(&errors, [(refused(), PATIENT_TIMEOUTS, "none")]);
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
    let daemon = daemon("{}", [(refused(), PATIENT_TIMEOUTS, "none")]);
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
fn errors_of_the_backend_itself_pass_untouched() {
    let peer = ScriptedPeer::saying(
        "HTTP/1.1 503 Closed For Lunch\r\nContent-Type: text/x-own\r\nContent-Length: 4\r\nRetry-After: 9\r\n\r\nback",
    );
    let daemon = daemon(
        "{status: split}",
        [(peer.address, PATIENT_TIMEOUTS, "none")],
    );
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
