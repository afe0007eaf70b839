//! Responses of balancer itself on a route: they carry the route's `response_headers` as well.

use hyper::http::Method;

use crate::harness::{
    client::{HttpClient, HttpResponse},
    daemon::TestDaemon,
    h2,
    peer::{ScriptedPeer, refused},
};

const RESPONSE_EDITS: &str = "response_headers: {set: {Strict-Transport-Security: max-age=1, Proxy-Status: hidden}, add: {X-Added: a}, remove: [X-Request-Id, Date]}";

/// A route for every kind of answer, with `RESPONSE_EDITS`.
fn daemon(silent: &ScriptedPeer, more: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "workers: 1\nlisteners: {{web: {{bind: \"@web\", pool: app, limits: {{request_body: 10KiB}}, timeouts: {{body_idle: 100ms}}}}}}\n\
         routes:\n\
         \x20 - {{path: /respond, respond: {{body: hello}}, {RESPONSE_EDITS}}}\n\
         \x20 - {{path: /redirect, redirect: {{to: /new}}, {RESPONSE_EDITS}}}\n\
         \x20 - {{path: /denied, pool: app, allow: [192.0.2.1], {RESPONSE_EDITS}}}\n\
         \x20 - {{path: /limited, pool: app, rate_limit: {{per_client: 1/h, burst: 1}}, {RESPONSE_EDITS}}}\n\
         \x20 - {{path: /none, pool: app, {RESPONSE_EDITS}}}\n\
         \x20 - {{path: /slow, pool: silent, timeouts: {{response: 50ms}}, {RESPONSE_EDITS}}}\n\
         \x20 - {{path: /silent, pool: silent, {RESPONSE_EDITS}}}\n\
         pools:\n\
         \x20 app: {{backends: [{}], health_check: none, retries: none}}\n\
         \x20 silent: {{backends: [{}], health_check: none, retries: none}}\n{more}",
        refused(),
        silent.address,
    ))
}

fn assert_edited(response: &HttpResponse, status: u16, what: &str) {
    assert_eq!(response.status, status, "{what}");
    for (name, value) in [("strict-transport-security", "max-age=1"), ("x-added", "a")] {
        assert_eq!(response.header(name), Some(value), "{what}");
        assert_eq!(response.count(name), 1, "{what}");
    }
    for gone in ["x-request-id", "date"] {
        assert_eq!(response.count(gone), 0, "{what}: {gone}");
    }
}

fn ask(client: &mut HttpClient, path: &str, more: &str) -> HttpResponse {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{more}\r\n"));
    client.response().unwrap()
}

#[test]
fn every_answer_of_a_route_carries_its_response_headers() {
    let split = "errors: {status: split, format: auto}\n";
    for (more, late) in [("", 502), (split, 504)] {
        let silent = ScriptedPeer::silent();
        let daemon = daemon(&silent, more);
        let mut client = daemon.client("@web");
        ask(&mut client, "/limited", "");
        for accept in ["", "Accept: text/html\r\n"] {
            for (path, status) in [
                ("/respond", 200),
                ("/redirect", 308),
                ("/denied", 403),
                ("/limited", 429),
                ("/none", 502),
                ("/slow", late),
            ] {
                let response = ask(&mut client, path, accept);
                assert_edited(&response, status, path);
                assert_eq!(response.header("proxy-status"), Some("hidden"), "{path}");
            }
        }
        client.send("POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n");
        assert_edited(&client.response().unwrap(), 413, "a body that is announced");
        let mut client = daemon.client("@web");
        client
            .send("POST /silent HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5000\r\n");
        client.send("x".repeat(0x5000));
        assert_edited(&client.response().unwrap(), 413, "a body that is chunked");
        let unrouted = ask(&mut daemon.client("@web"), "/", "");
        assert_eq!(unrouted.count("x-added"), 0, "no route took it");
        assert_eq!(unrouted.count("x-request-id"), 1);
    }
}

#[test]
fn a_body_that_does_not_come_is_answered_with_the_route_s_headers() {
    let silent = ScriptedPeer::silent();
    let daemon = TestDaemon::start(&format!(
        "listeners: {{web: {{bind: \"@web\", pool: app, timeouts: {{body_idle: 50ms}}}}}}\n\
         routes: [{{path: /, pool: app, {RESPONSE_EDITS}}}]\n\
         pools: {{app: {{backends: [{}], health_check: none}}}}\n",
        silent.address
    ));
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf");
    assert_edited(
        &client.response().unwrap(),
        408,
        "a body that does not come",
    );
}

#[tokio::test]
async fn answers_over_http_2_carry_them_too() {
    let silent = ScriptedPeer::silent();
    let daemon = daemon(&silent, "");
    let (sender, _driver) = h2::connect(daemon.address("@web")).await;
    for (path, status) in [
        ("/respond", 200),
        ("/redirect", 308),
        ("/denied", 403),
        ("/none", 502),
        ("/slow", 502),
    ] {
        let answer = h2::get(&sender, path).await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(
            answer.header("strict-transport-security"),
            Some("max-age=1")
        );
        assert_eq!(answer.header("x-added"), Some("a"), "{path}");
        assert_eq!(answer.header("x-request-id"), None, "{path}");
    }
}

#[tokio::test]
async fn an_error_stays_what_it_is_when_the_route_edits_its_backends_answers() {
    let daemon = TestDaemon::start(&format!(
        "listeners: {{web: {{bind: \"@web\", pool: app}}}}\n\
         routes: [{{path: /, pool: app, response_headers: {{set: {{Cache-Control: max-age=9, CDN-Cache-Control: max-age=9, Content-Type: text/css, Content-Encoding: gzip, Grpc-Status: '0', Content-Security-Policy: default-src}}, remove: [Retry-After]}}}}]\n\
         pools: {{app: {{backends: [{}], health_check: none, retries: none}}}}\n",
        refused()
    ));
    let response = daemon.get("@web", "/").unwrap();
    assert_eq!(response.status, 502);
    for (name, value) in [
        ("cache-control", Some("no-store")),
        ("cdn-cache-control", None),
        ("content-type", Some("application/json")),
        ("content-encoding", None),
        ("content-security-policy", Some("default-src")),
    ] {
        assert_eq!(response.header(name), value, "{name}");
        assert!(response.count(name) <= 1, "{name}");
    }
    assert_eq!(response.json()["error"]["code"], 502);
    let (mut sender, _driver) = h2::connect(daemon.address("@web")).await;
    let call = h2::request(
        Method::POST,
        "/a.B/C",
        &[("content-type", "application/grpc")],
    );
    let (response, _) = sender.send_request(call, true).unwrap();
    let answer = h2::whole(response).await.unwrap();
    assert_eq!(answer.header("content-type"), Some("application/grpc"));
    let status = answer.header("grpc-status").map(str::to_owned);
    assert_eq!(status.as_deref(), Some("14"));
}

#[test]
fn respond_has_headers_and_a_content_type_of_its_own() {
    let daemon = TestDaemon::start(
        "listeners: {web: {bind: \"@web\"}}\n\
         routes:\n\
         \x20 - {path: /json, respond: {body: '{}', content_type: application/json, headers: {X-One: '1', Cache-Control: max-age=60}}}\n\
         \x20 - {path: /created, respond: {status: 201, headers: {Location: /new, content-type: text/css, Date: never}}}\n\
         \x20 - {path: /edited, respond: {headers: {X-One: '1', X-Two: '2'}}, response_headers: {set: {X-One: one, Content-Type: text/html}, remove: [X-Two]}}\n\
         \x20 - {path: /empty, respond: {status: 204, headers: {X-One: '1'}}}\n",
    );
    let mut client = daemon.client("@web");
    for (path, status, fields) in [
        (
            "/json",
            200,
            &[
                ("content-type", "application/json"),
                ("x-one", "1"),
                ("cache-control", "max-age=60"),
            ][..],
        ),
        (
            "/created",
            201,
            &[
                ("location", "/new"),
                ("content-type", "text/css"),
                ("date", "never"),
            ],
        ),
        (
            "/edited",
            200,
            &[("x-one", "one"), ("content-type", "text/html")],
        ),
        ("/empty", 204, &[("x-one", "1")]),
    ] {
        let response = ask(&mut client, path, "");
        assert_eq!(response.status, status, "{path}");
        for (name, value) in fields {
            assert_eq!(response.header(name), Some(*value), "{path}");
            assert_eq!(response.count(name), 1, "{path}");
        }
        assert_eq!(response.count("x-two"), 0, "{path}");
    }
    client.send("HEAD /json HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.response_to("HEAD").unwrap();
    assert_eq!(response.header("content-length"), Some("2"));
}
