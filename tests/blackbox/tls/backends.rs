//! TLS to backends: trust, names of failures, kept connections, checks.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use crate::harness::{
    daemon::TestDaemon,
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, RawFrame, SETTINGS, fields, frame},
    peer::ScriptedPeer,
    tls::{TestAuthority, answering, head},
};

fn daemon(backend: SocketAddr, tls: &str, more: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "access_log: {{when: {{sample: 100%}}}}\n\
         listeners:\n  web: {{bind: \"@web\", pool: app}}\n\
         pools:\n  app: {{backends: [\"{backend}\"], tls: {{{tls}}}{more}}}\n"
    ))
}

const WITHOUT_CHECKS: &str = ", health_check: none, ejection: none";

#[test]
fn a_backend_that_proves_its_name_is_asked_and_its_connection_kept() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let connections = Arc::new(AtomicUsize::new(0));
    let backend = authority.backend("app", false, {
        let connections = Arc::clone(&connections);
        move |stream| {
            connections.fetch_add(1, SeqCst);
            answering("secret")(stream);
        }
    });
    let tls = format!("ca: {}, server_name: app.test", authority.ca());
    let daemon = daemon(backend, &tls, WITHOUT_CHECKS);
    let mut client = daemon.client("@web");
    for _ in 0..5 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().unwrap().text(), "secret");
    }
    assert_eq!(
        connections.load(SeqCst),
        1,
        "tickets close no idle connection"
    );
}

#[test]
fn failures_have_their_reason() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let stranger = TestAuthority::new();
    let good = authority.backend("app", false, answering("ok"));
    let plain = ScriptedPeer::start(|mut connection| {
        connection.some();
        connection.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let wants_client = authority.backend("app", true, answering("ok"));
    let (own, other) = (authority.ca(), stranger.ca());
    for (backend, tls, reason) in [
        (
            good,
            format!("ca: {own}, server_name: other.test"),
            "tls_certificate_error",
        ),
        (good, format!("ca: {own}"), "tls_certificate_error"),
        (
            good,
            format!("ca: {other}, server_name: app.test"),
            "tls_certificate_error",
        ),
        (
            plain.address,
            format!("ca: {own}, server_name: app.test"),
            "tls_protocol_error",
        ),
    ] {
        let daemon = daemon(backend, &tls, WITHOUT_CHECKS);
        let response = daemon.get("@web", "/").unwrap();
        assert_eq!(response.status, 502, "{tls}");
        let status = response.header("proxy-status").unwrap();
        assert!(status.contains(reason), "{tls}: {status}");
        let line = daemon.wait_for_access(|line| line["status"] == 502);
        assert_eq!(line["reason"], reason);
    }
    // Without a certificate of ours the connection is refused, sooner or later.
    let tls = format!("ca: {own}, server_name: app.test");
    assert_eq!(
        daemon(wants_client, &tls, WITHOUT_CHECKS)
            .get("@web", "/")
            .unwrap()
            .status,
        502
    );
}

/// Answers every request over HTTP/2.
fn answering_h2(stream: &mut (impl Read + Write)) {
    let exactly = |stream: &mut dyn Read, length| {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).map(|()| bytes)
    };
    if exactly(stream, PREFACE.len()).is_err() {
        return;
    }
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    while let Ok(asked) = RawFrame::read(|length| exactly(stream, length)) {
        if asked.kind != HEADERS {
            continue;
        }
        let head = fields(&[(":status", "200")]);
        let answer = [
            frame(HEADERS, END_HEADERS, asked.stream, &head),
            frame(DATA, END_STREAM, asked.stream, b"over h2"),
        ];
        stream.write_all(&answer.concat()).unwrap();
    }
}

#[test]
fn http2_is_agreed_on_with_a_backend_or_the_connection_fails() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let tls = format!("ca: {}, server_name: app.test", authority.ca());
    let more = format!("{WITHOUT_CHECKS}, protocol: h2");
    for (alpn, agrees) in [(Some("h2"), true), (Some("http/1.1"), false), (None, false)] {
        let mut config = (*authority.server("app", false)).clone();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let backend = TestAuthority::backend_as(Arc::new(config), answering_h2);
        let daemon = daemon(backend, &tls, &more);
        let mut client = daemon.client("@web");
        for _ in 0..3 {
            let answer = client.request("GET", "/").unwrap();
            if agrees {
                assert_eq!(answer.text(), "over h2");
            } else {
                let status = answer.header("proxy-status");
                assert_eq!(
                    status,
                    Some("balancer; error=tls_protocol_error"),
                    "{alpn:?}"
                );
            }
        }
    }
}

#[test]
fn nothing_more_goes_over_a_plain_connection_once_the_pool_has_tls() {
    let backend = ScriptedPeer::answering("in the clear");
    let config = |tls: &str| {
        format!(
            "listeners: {{web: {{bind: \"@web\", pool: app}}}}\n\
             pools: {{app: {{backends: [\"{}\"]{tls}{WITHOUT_CHECKS}, retries: none}}}}\n",
            backend.address
        )
    };
    let mut daemon = TestDaemon::start(&config(""));
    let mut client = daemon.client("@web");
    assert_eq!(client.request("GET", "/").unwrap().text(), "in the clear");
    assert_eq!(daemon.reload(&config(", tls: {verify: false}")).status, 200);
    // The backend speaks no TLS; the connection of before would have been good for a response.
    assert_eq!(client.request("GET", "/secret").unwrap().status, 502);
    let seen = backend.requests.all();
    assert!(seen.iter().all(|request| request.target == "/"), "{seen:?}");
}

#[test]
fn a_client_certificate_is_shown_to_the_backend() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    authority.sign("us", &["us.test"]);
    let backend = authority.backend("app", true, answering("ok"));
    let own = authority.path("us.pem");
    let tls = format!(
        "ca: {}, server_name: app.test, client_cert: {1}, client_key: {1}",
        authority.ca(),
        own.display()
    );
    let daemon = daemon(backend, &tls, WITHOUT_CHECKS);
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "ok");
}

#[test]
fn nothing_is_verified_only_where_that_is_said_and_warned_of() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let backend = authority.backend("app", false, answering("ok"));
    let daemon = daemon(backend, "verify: false", WITHOUT_CHECKS);
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "ok");
    daemon.wait_for_log(|line| line.contains("not verified"));
}

#[test]
fn checks_speak_tls_too() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let backend = authority.backend("app", false, answering("ok"));
    for check in ["{interval: 100ms}", "{path: /healthz, interval: 100ms}"] {
        let more = format!(", health_check: {check}");
        let tls = format!("ca: {}, server_name: app.test", authority.ca());
        let good = daemon(backend, &tls, &more);
        good.wait_for_metric("balancer_backend_up", |up| up == 1.0);
        let tls = format!("ca: {}, server_name: wrong.test", authority.ca());
        let wrong = daemon(backend, &tls, &more);
        wrong.wait_for_metric(
            "balancer_backend_health_checks_total{result=\"failed\"}",
            |n| n > 0.0,
        );
        assert_eq!(wrong.metric("balancer_backend_up"), 0.0);
    }
}

#[test]
fn a_body_that_ends_without_the_end_of_tls_is_cut_for_the_client_too() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    for in_order in [true, false] {
        let backend = authority.backend("app", false, move |stream| {
            head(stream);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf");
            let _ = stream.flush();
            if in_order {
                stream.conn.send_close_notify();
                let _ = stream.conn.complete_io(&mut stream.sock);
            }
        });
        let tls = format!("ca: {}, server_name: app.test", authority.ca());
        let daemon = daemon(backend, &tls, WITHOUT_CHECKS);
        let response = daemon.get("@web", "/");
        assert_eq!(response.is_ok(), in_order, "{response:?}");
        if !in_order {
            let line = daemon.wait_for_access(|line| line["path"] == "/");
            assert_eq!(line["reason"], "http_response_incomplete");
        }
    }
}

#[test]
fn a_post_on_a_connection_that_was_just_closed_reaches_a_backend_once() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let seen = Arc::new(AtomicUsize::new(0));
    let backend = authority.backend("app", false, {
        let seen = Arc::clone(&seen);
        move |stream| {
            // One request a connection, and the end comes with the response, unannounced.
            if head(stream).is_none() {
                return;
            }
            let mut body = [0; 4];
            stream.read_exact(&mut body).unwrap();
            seen.fetch_add(1, SeqCst);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            stream.conn.send_close_notify();
            let _ = stream.conn.complete_io(&mut stream.sock);
        }
    });
    let tls = format!("ca: {}, server_name: app.test", authority.ca());
    let daemon = daemon(backend, &tls, WITHOUT_CHECKS);
    let mut client = daemon.client("@web");
    let mut answered = 0;
    for _ in 0..20 {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
        match client.response().unwrap().status {
            200 => answered += 1,
            status => assert_eq!(status, 502),
        }
    }
    assert_eq!(seen.load(SeqCst), answered, "never twice");
    assert!(answered > 0);
}
