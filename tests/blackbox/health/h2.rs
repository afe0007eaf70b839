//! Checks of backends that speak HTTP/2: of the health service of gRPC, and over http.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::{backends, quoted, transitions, verdicts};
use crate::harness::{
    daemon::{TestDaemon, sum_of},
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, RawFrame, SETTINGS, frame},
    peer::{PeerConnection, ScriptedPeer},
    tls::TestAuthority,
};

/// Sends settings and reads the call of a check: its message; `None` if the connection ends before.
fn call(connection: &mut PeerConnection) -> Option<Vec<u8>> {
    assert_eq!(connection.exactly(PREFACE.len())?, PREFACE.as_bytes());
    connection.send(frame(SETTINGS, 0, 0, &[]));
    let mut message = Vec::new();
    loop {
        let frame = RawFrame::read(|length| connection.exactly(length).ok_or(())).ok()?;
        if frame.kind == DATA {
            message.extend(frame.payload);
            if frame.flags & END_STREAM != 0 {
                return Some(message);
            }
        }
    }
}

/// A gRPC server that has only a health service; `status` gives what it says to this message, as a
/// number.
fn grpc(status: impl Fn(&[u8]) -> u8 + Send + Sync + 'static) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        let Some(message) = call(&mut connection) else {
            return;
        };
        let answer = [0, 0, 0, 0, 2, 8, status(&message)];
        connection.send_pieces([
            frame(HEADERS, END_HEADERS, 1, b"\x88\x5f\x10application/grpc"),
            frame(DATA, 0, 1, &answer),
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                b"\0\x0bgrpc-status\x010",
            ),
        ]);
        connection.wait_for_end();
    })
}

fn daemon(pool: &str) -> TestDaemon {
    super::daemon(&format!("    protocol: h2c\n{pool}"))
}

#[test]
fn a_backend_whose_health_service_says_not_serving_leaves_and_comes_back() {
    const STATUS_SERVING: u8 = 1;
    const STATUS_NOT_SERVING: u8 = 2;
    let script = [
        STATUS_SERVING, // up
        STATUS_NOT_SERVING,
        STATUS_NOT_SERVING,
        STATUS_SERVING, // not three in a row
        STATUS_NOT_SERVING,
        STATUS_NOT_SERVING,
        STATUS_NOT_SERVING, // down
        STATUS_NOT_SERVING,
        STATUS_SERVING,
        STATUS_NOT_SERVING, // not two in a row
        STATUS_SERVING,
        STATUS_SERVING, // up
        STATUS_SERVING,
    ];
    let next = AtomicUsize::new(0);
    let peer = grpc(move |_| {
        let turn = next.fetch_add(1, SeqCst);
        *script.get(turn).unwrap_or(&STATUS_SERVING)
    });
    let pool = backends([quoted(&peer)]) + "    health_check: {type: grpc, interval: 100ms}\n";
    let daemon = daemon(&pool);
    let checks = "balancer_backend_health_checks_total{pool=\"app\"}";
    daemon.wait_for_metric(checks, |value| value as usize > script.len());
    let text = |(from, to, cause)| format!("{from} > {to}: {cause}");
    let seen: Vec<String> = transitions(&daemon).into_iter().map(text).collect();
    assert_eq!(
        seen,
        [
            "checking > up: the check passed",
            "up > down: 3 checks in a row failed: the backend says NOT_SERVING",
            "down > up: 2 checks in a row passed",
        ]
    );
    let failed = "balancer_backend_health_checks_total{pool=\"app\",result=\"failed\"}";
    assert_eq!(sum_of(&daemon.scrape(), failed) as usize, 7);
}

#[test]
fn a_grpc_check_asks_for_the_service_of_the_file() {
    let peer = grpc(|message| match message {
        b"\0\0\0\0\x0c\x0a\x0ashop.Ready" => 1,
        b"\0\0\0\0\0" => 2,
        _ => 3,
    });
    let old = ScriptedPeer::answering("hello");
    let silent = ScriptedPeer::start(|mut connection| {
        call(&mut connection);
        connection.wait_for_end();
    });
    let quick = "{type: grpc, timeout: 100ms}, protocol: h2c";
    verdicts(&[
        (
            "ready",
            &peer,
            "{type: grpc, service: shop.Ready}, protocol: h2c",
            "",
        ),
        (
            "as a whole",
            &peer,
            "{type: grpc}, protocol: h2c",
            "says NOT_SERVING",
        ),
        (
            "other",
            &peer,
            "{type: grpc, service: shop.Other}, protocol: h2c",
            "says SERVICE_UNKNOWN",
        ),
        ("silent", &silent, quick, "no answer within 100ms"),
        ("HTTP/1", &old, "{type: grpc}, protocol: h2c", "HTTP/1"),
        ("by tcp", &old, "{type: tcp}, protocol: h2c", ""),
    ]);
}

/// A daemon is a backend that speaks HTTP/2, with and without TLS.
#[test]
fn an_http_check_speaks_the_protocol_of_the_pool_under_tls_and_without() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let pair = authority.pair("app");
    let backend = TestDaemon::start(&format!(
        "access_log: {{when: {{min_status: 200}}}}\n\
         routes: [{{host: app.test, path_exact: /healthz, respond: {{body: hello}}}}]\n\
         listeners:\n\
         \x20 plain: {{bind: \"@plain\"}}\n\
         \x20 both: {{bind: \"@both\", tls: {{{pair}}}}}\n\
         \x20 old: {{bind: \"@old\", tls: {{{pair}, alpn: http/1.1}}}}\n"
    ));
    let silent = authority.backend("app", false, |stream| {
        crate::harness::tls::head(stream);
    });
    let check = "health_check: {path: /healthz, host: app.test, body: hello, rise: 1}";
    let ca = authority.ca();
    let tls = format!("tls: {{ca: {ca}, server_name: app.test}}, {check}");
    let pools = [
        (
            "plain",
            backend.address("@plain"),
            format!("protocol: h2c, {check}"),
            "",
        ),
        (
            "both",
            backend.address("@both"),
            format!("protocol: h2, {tls}"),
            "",
        ),
        (
            "alert",
            backend.address("@old"),
            format!("protocol: h2, {tls}"),
            "did not agree on HTTP/2 (ALPN)",
        ),
        (
            "none",
            silent,
            format!("protocol: h2, {tls}"),
            "did not agree on HTTP/2 (ALPN)",
        ),
        ("old", backend.address("@old"), tls.clone(), ""),
    ];
    let lines: Vec<_> = pools
        .iter()
        .map(|(name, address, keys, _)| {
            format!("  {name}: {{backends: [\"{address}\"], {keys}}}\n")
        })
        .collect();
    let daemon = TestDaemon::start(&format!(
        "listeners: {{web: {{bind: \"@web\", pool: plain}}}}\npools:\n{}",
        lines.concat()
    ));
    for (name, _, _, cause) in &pools {
        let line = daemon.wait_for_log(|line| {
            line.contains("backend is") && line.contains(&format!("\"pool\":\"{name}\""))
        });
        let wanted = if cause.is_empty() {
            "the check passed"
        } else {
            cause
        };
        assert!(line.contains(wanted), "{name}: {line}");
    }
    for version in ["HTTP/2", "HTTP/1.1"] {
        backend.wait_for_access(|line| line["protocol"] == version);
    }
}
