//! Settings of checks: headers, TLS and ports of their own, intervals, and what is kept of them.

use std::io::Write as _;

use serde_json::Value;

use super::{configuration, verdicts, wait_for_state};
use crate::harness::{
    daemon::TestDaemon,
    peer::{ScriptedPeer, refused},
    poll,
    tls::{TestAuthority, answering},
};

#[test]
fn an_http_check_sends_headers_and_expects_headers_and_a_body_that_matches() {
    let peer = || {
        ScriptedPeer::saying(
            "HTTP/1.1 200 OK\r\nX-Role: leader\r\nX-Role: primary\r\nContent-Length: 12\r\n\r\n\
             load: 0.42\r\n",
        )
    };
    let peers: Vec<_> = (0..9).map(|_| peer()).collect();
    let check = |more: &str| format!("{{path: /h, {more}}}");
    let rows = [
        ("headers: {X-Probe: 'a b', user-agent: mine}", ""),
        ("expect_headers: {x-role: primary}", ""),
        (
            "expect_headers: {X-Role: lead}",
            "header x-role: expected `lead`, found `leader`",
        ),
        ("expect_headers: {X-Role: {regex: 'lead(er)?'}}", ""),
        (
            "expect_headers: {X-Role: {regex: 'lead'}}",
            "header x-role: expected a match of `lead`, found `leader`",
        ),
        (
            "expect_headers: {Content-Length: {present: true}, X-Lag: {present: false}}",
            "",
        ),
        (
            "expect_headers: {X-Lag: {present: true}}",
            "header x-lag: expected one, found none",
        ),
        ("body: {regex: 'load: 0\\.[0-9]+'}", ""),
        (
            "body: {regex: 'load: [1-9]'}",
            "body does not match `load: [1-9]`",
        ),
    ];
    let checks: Vec<String> = rows.iter().map(|(more, _)| check(more)).collect();
    let rows: Vec<_> = rows
        .iter()
        .zip(&peers)
        .zip(&checks)
        .map(|(((more, cause), peer), check)| (*more, peer, check.as_str(), *cause))
        .collect();
    verdicts(&rows);
    let request = peers[0].wait_for_requests(1).remove(0);
    assert_eq!(request.header("x-probe"), Some("a b"));
    assert_eq!(request.header("user-agent"), Some("mine"));
    assert_eq!(request.head.matches("ser-agent").count(), 1);
    let request = peers[1].wait_for_requests(1).remove(0);
    assert_eq!(request.header("user-agent"), Some("balancer-check"));
}

#[test]
fn checks_have_tls_of_their_own_or_none_while_traffic_has_another() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let secure = authority.backend("app", false, answering("secure"));
    let plain = ScriptedPeer::answering("plain");
    let tls = format!("{{ca: {}, server_name: app.test}}", authority.ca());
    let wrong = format!("{{ca: {}, server_name: other.test}}", authority.ca());
    let port = plain.address.port();
    let daemon = TestDaemon::start(&format!(
        "log: {{format: json}}\nlisteners:\n  web: {{bind: \"@web\", pool: plain}}\n  tls: {{bind: \"@tls\", pool: \
         secure}}\npools:\n  \
         plain: {{backends: [\"{}\"], health_check: {{port: {}, path: /, tls: {tls}}}}}\n  \
         secure: {{backends: [\"{secure}\"], tls: {tls}, health_check: {{port: {port}, path: /, tls: none}}}}\n  \
         wrong: {{backends: [\"{secure}\"], tls: {tls}, health_check: {{path: /, tls: {wrong}}}}}\n",
        plain.address,
        secure.port(),
    ));
    let verdict = |pool: &str| {
        let line = daemon.wait_for_log(|line| {
            serde_json::from_str::<Value>(line)
                .is_ok_and(|line| line["pool"] == pool && line["from"] == "checking")
        });
        let line: Value = serde_json::from_str(&line).unwrap();
        format!("{}: {}", line["to"], line["cause"])
    };
    assert_eq!(verdict("plain"), "\"up\": \"the check passed\"");
    assert_eq!(verdict("secure"), "\"up\": \"the check passed\"");
    let wrong = verdict("wrong");
    assert!(
        wrong.starts_with("\"down\"") && wrong.contains("certificate"),
        "{wrong}"
    );
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "plain");
    assert_eq!(daemon.get("@tls", "/").unwrap().text(), "secure");
}

#[test]
fn one_backend_has_tls_of_its_own_and_kept_connections_do_not_mix() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let secure = authority.backend("app", false, answering("secure"));
    let plain = ScriptedPeer::answering("plain");
    let tls = format!("{{ca: {}, server_name: app.test}}", authority.ca());
    let file = |own: &str| {
        configuration(&format!(
            "    backends: [{{address: \"{secure}\", tls: {tls}}}, {{address: \"{}\"{own}}}]\n    \
             health_check: {{path: /, interval: 100ms, fall: 1, rise: 1}}\n    ejection: none\n    retries: none\n",
            plain.address
        ))
    };
    let mut daemon = TestDaemon::start(&file(""));
    wait_for_state(&daemon, "up", 2);
    let mut seen: Vec<_> = (0..4)
        .map(|_| daemon.get("@web", "/").unwrap().text())
        .collect();
    seen.sort();
    assert_eq!(seen, ["plain", "plain", "secure", "secure"]);
    // The plain one is to have TLS, which it does not speak: no kept connection may hide that.
    assert_eq!(daemon.reload(&file(&format!(", tls: {tls}"))).status, 200);
    wait_for_state(&daemon, "down", 1);
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "secure");
    let reload = daemon.reload(&file(""));
    assert!(
        reload
            .text()
            .contains(&format!("backend {} tls changed", plain.address))
    );
    wait_for_state(&daemon, "up", 2);
}

#[test]
fn a_backend_has_a_port_of_its_own_for_its_checks() {
    let traffic = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            assert_eq!(request.target, "/", "a check at the port of traffic");
            connection.answer("traffic");
        }
    });
    let check = ScriptedPeer::answering("good");
    let daemon = TestDaemon::start(&configuration(&format!(
        "    backends: [{{address: \"{}\", check_port: {}}}]\n    \
         health_check: {{path: /h, port: {}}}\n",
        traffic.address,
        check.address.port(),
        refused().port(),
    )));
    wait_for_state(&daemon, "up", 1);
    assert_eq!(check.wait_for_requests(1)[0].target, "/h");
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "traffic");
}

/// Answers the first `count` checks with 500, and all others with 200.
fn bad_at_first(count: usize) -> ScriptedPeer {
    let next = std::sync::atomic::AtomicUsize::new(0);
    ScriptedPeer::start(move |mut connection| {
        while connection.request().is_some() {
            let turn = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let status = if turn < count { 500 } else { 200 };
            connection.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
        }
    })
}

#[test]
fn a_backend_that_is_down_or_was_never_up_has_an_interval_of_its_own() {
    for interval in ["interval_down", "interval_starting"] {
        let peer = bad_at_first(2);
        let daemon = TestDaemon::start(&configuration(&format!(
            "    backends: [\"{}\"]\n    \
             health_check: {{path: /h, interval: 1h, {interval}: 100ms, rise: 2}}\n",
            peer.address
        )));
        // `interval_starting` ends with the first good check: the second comes after an hour.
        let good = usize::from(interval == "interval_down");
        peer.wait_for_requests(3 + good);
        let backend = || daemon.status()["pools"][0]["backends"][0].clone();
        let wanted = if good == 1 { "up" } else { "down" };
        let found = poll(|| Some(backend()).filter(|one| one["last_check"]["ok"] == true))
            .unwrap_or_else(|| panic!("{interval}: {}", backend()));
        let state = poll(|| Some(()).filter(|()| backend()["state"] == wanted));
        assert!(state.is_some(), "{interval}: {found}");
        if good == 0 {
            assert_eq!(found["needed"], "1 more good check");
            assert_eq!(peer.requests.all().len(), 3);
        }
    }
}

#[test]
fn the_last_checks_are_kept_with_their_times_and_shown() {
    let peer = bad_at_first(3);
    let daemon = TestDaemon::start(&configuration(&format!(
        "    backends: [{{address: \"{}\", name: one}}, \"{}\"]\n    \
         health_check: {{path: /h, interval: 100ms, rise: 100}}\n",
        peer.address,
        refused()
    )));
    peer.wait_for_requests(20);
    let backend = |at: usize| daemon.status()["pools"][0]["backends"][at].clone();
    let full = |one: &Value| one["checks"].as_array().unwrap().len() == 16;
    let one = poll(|| Some(backend(0)).filter(full)).expect("16 checks");
    assert_eq!(one["state"], "down");
    assert!(
        one["needed"]
            .as_str()
            .unwrap()
            .ends_with(" more good checks"),
        "{one}"
    );
    let latest = &one["checks"][0];
    assert_eq!(latest["ok"], true);
    let seconds = |name: &str| latest[name].as_f64().unwrap();
    assert!(seconds("connected_seconds") <= seconds("first_byte_seconds"));
    assert!(seconds("first_byte_seconds") <= seconds("took_seconds"));
    assert_eq!(latest["secured_seconds"], Value::Null);
    let dead = backend(1);
    assert_eq!(dead["checks"][0]["error"], "connection refused");
    assert_eq!(dead["checks"][0]["first_byte_seconds"], Value::Null);

    let output = |arguments: &[&str]| {
        let output = daemon.command(arguments);
        let code = output.status.code().unwrap();
        (code, String::from_utf8(output.stdout).unwrap())
    };
    let (code, screen) = output(&["status", "app/one"]);
    assert_eq!(code, 0);
    assert!(screen.contains("it comes back after "), "{screen}");
    assert_eq!(screen.matches("  passed  ").count(), 16, "{screen}");
    assert!(screen.contains("first byte "), "{screen}");
    let by_address = format!("app/{}", peer.address);
    let (code, json) = output(&["status", &by_address, "--json"]);
    assert_eq!(code, 0);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["name"], "one");
    assert_eq!(json["checks"].as_array().unwrap().len(), 16);
    for unknown in ["app/two", "pool/one"] {
        assert_eq!(output(&["status", unknown]).0, 1, "{unknown}");
    }
    assert_eq!(output(&["status", "app"]).0, 2);
}

#[test]
fn a_server_of_tls_within_its_protocol_is_checked_under_it() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let config = authority.server("app", false);
    let postgres = ScriptedPeer::start(move |mut connection| {
        let request = connection.exactly(8).unwrap();
        assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 47]);
        connection.send("S");
        let tls = rustls::ServerConnection::new(std::sync::Arc::clone(&config)).unwrap();
        let mut stream = rustls::StreamOwned::new(tls, connection.into_stream());
        let mut startup = [0; 8];
        if std::io::Read::read_exact(&mut stream, &mut startup).is_ok() {
            assert_eq!(startup[4..], [0, 3, 0, 0]);
            let _ = stream.write_all(b"R\0\0\0\x0c\0\0\0\x03salt");
        }
    });
    let refusing = ScriptedPeer::start(|mut connection| {
        connection.exactly(8);
        connection.send("N");
        connection.wait_for_end();
    });
    // Bytes in plain behind the agreement could be anybody's.
    let injecting = ScriptedPeer::start(|mut connection| {
        connection.exactly(8);
        connection.send("SR\0\0\0\x08\0\0\0\0");
        connection.wait_for_end();
    });
    let ca = authority.ca();
    let check = format!("{{type: postgres, tls: {{ca: {ca}, server_name: app.test}}}}");
    let other = format!("{{type: postgres, tls: {{ca: {ca}, server_name: other.test}}}}");
    verdicts(&[
        ("tls", &postgres, &check, ""),
        ("another name", &postgres, &other, "certificate"),
        ("no tls", &refusing, &check, "the server does not offer TLS"),
        ("injected", &injecting, &check, "bytes in plain before TLS"),
    ]);
}
