//! Active checks: the first one, thresholds, expectations, and traffic that follows them.

use super::{
    backends, daemon, quoted, tallied, tally, transitions, verdicts, wait_for_state,
    wait_for_transitions,
};
use std::time::Duration;

use crate::harness::{
    answers::expect_error,
    daemon::sum_of,
    peer::{Gate, PeerConnection, ScriptedPeer, refused},
};
use balancer::base::clock;

#[test]
fn the_first_check_is_made_at_once_and_decides_alone() {
    let peer = ScriptedPeer::answering("here");
    let (alive, dead) = (quoted(&peer), format!("\"{}\"", refused()));
    let began = clock::now();
    let pool = backends([alive, dead]) + "    health_check: {interval: 1h, rise: 50, fall: 50}\n";
    let daemon = daemon(&pool);
    let mut lines = wait_for_transitions(&daemon, 2);
    assert!(clock::now() - began < Duration::from_secs(10));
    lines.sort();
    let text = |line: &(String, String, String)| format!("{} > {}: {}", line.0, line.1, line.2);
    assert_eq!(
        lines.iter().map(text).collect::<Vec<_>>(),
        [
            "checking > down: the check failed: connection refused",
            "checking > up: the check passed",
        ]
    );
    wait_for_state(&daemon, "up", 1);
    wait_for_state(&daemon, "down", 1);
    assert_eq!(tally(&daemon, 10), tallied([("here", 10)]));
    let checks = daemon.metric("balancer_backend_health_checks_total{pool=\"app\"}");
    assert_eq!(checks as usize, 2);
}

/// Answers the checks in turn with these statuses, and then for ever with the last one.
fn scripted(statuses: &'static [u16]) -> ScriptedPeer {
    let next = std::sync::atomic::AtomicUsize::new(0);
    ScriptedPeer::start(move |mut connection| {
        while connection.request().is_some() {
            let turn = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let status = statuses.get(turn).or(statuses.last()).unwrap();
            connection.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
        }
    })
}

#[test]
fn three_bad_checks_in_a_row_take_a_backend_out_and_two_good_ones_bring_it_back() {
    let statuses: &[u16] = &[
        200, // up
        503, 503, 200, // not three in a row
        500, 500, 500, // down
        500, 200, 500, // not two in a row
        200, 200, // up
        200,
    ];
    let peer = scripted(statuses);
    let pool = backends([quoted(&peer)]) + "    health_check: {path: /healthz, interval: 100ms}\n";
    let daemon = daemon(&pool);
    peer.wait_for_requests(statuses.len() + 2);
    let text = |(from, to, cause)| format!("{from} > {to}: {cause}");
    let seen: Vec<String> = transitions(&daemon).into_iter().map(text).collect();
    assert_eq!(
        seen,
        [
            "checking > up: the check passed",
            "up > down: 3 checks in a row failed: status 500, expected 200-399",
            "down > up: 2 checks in a row passed",
        ]
    );
    let page = daemon.scrape();
    let failed = "balancer_backend_health_checks_total{pool=\"app\",result=\"failed\"}";
    assert_eq!(sum_of(&page, failed) as usize, 7);
    let up = format!("balancer_backend_up{{backend=\"{}\"}}", peer.address);
    assert_eq!(sum_of(&page, &up) as usize, 1);
}

#[test]
fn a_backend_that_is_down_gets_no_traffic_and_one_that_is_back_does() {
    let (healthy, answers) = (Gate::new(), Gate::new());
    let (is_healthy, asked) = (healthy.clone(), answers.clone());
    let moody = ScriptedPeer::start(move |mut connection: PeerConnection| {
        while let Some(request) = connection.request() {
            if request.target == "/" || is_healthy.is_open() {
                connection.answer("moody");
            } else {
                asked.open();
                connection.send("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
            }
        }
    });
    let steady = ScriptedPeer::answering("steady");
    let pool = backends([&moody, &steady].map(quoted))
        + "    health_check: {path: /healthz, interval: 100ms}\n";
    let daemon = daemon(&pool);
    answers.wait();
    wait_for_state(&daemon, "down", 1);
    wait_for_state(&daemon, "up", 1);
    assert_eq!(tally(&daemon, 20), tallied([("steady", 20)]));
    healthy.open();
    wait_for_state(&daemon, "up", 2);
    assert_eq!(tally(&daemon, 20), tallied([("steady", 10), ("moody", 10)]));
}

#[test]
fn an_http_check_expects_what_the_file_says() {
    let status = |status| {
        ScriptedPeer::saying(format!(
            "HTTP/1.1 {status} X\r\nContent-Length: 5\r\n\r\nhello"
        ))
    };
    let (ok, moved, missing, broken) = (status(200), status(302), status(404), status(500));
    let chunked = ScriptedPeer::saying(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
    );
    let until_close = ScriptedPeer::saying("HTTP/1.0 200 OK\r\n\r\nhello");
    let garbage = ScriptedPeer::saying("220 mail ESMTP\r\n\r\n");
    let closes = ScriptedPeer::saying("");
    let silent = ScriptedPeer::silent();
    let slow = "{path: /h, timeout: 100ms}";
    verdicts(&[
        ("200", &ok, "{path: /h}", ""),
        ("302", &moved, "{path: /h}", ""),
        (
            "404",
            &missing,
            "{path: /h}",
            "status 404, expected 200-399",
        ),
        ("500", &broken, "{path: /h}", "status 500, expected 200-399"),
        ("500 by tcp", &broken, "{type: tcp}", ""),
        ("404 wanted", &missing, "{path: /h, expect: 404}", ""),
        (
            "404 among others",
            &missing,
            "{path: /h, expect: [200-204, 404]}",
            "",
        ),
        (
            "200 not wanted",
            &ok,
            "{path: /h, expect: [201, 204]}",
            "status 200, expected 201, 204",
        ),
        ("body", &ok, "{path: /h, body: ell}", ""),
        (
            "another body",
            &ok,
            "{path: /h, body: good}",
            "body does not contain `good`",
        ),
        ("body in chunks", &chunked, "{path: /h, body: hello}", ""),
        (
            "body until the end",
            &until_close,
            "{path: /h, body: hello}",
            "",
        ),
        (
            "another in chunks",
            &chunked,
            "{path: /h, body: good}",
            "body does not contain",
        ),
        ("not HTTP", &garbage, "{path: /h}", "not valid HTTP"),
        ("not HTTP by tcp", &garbage, "{}", ""),
        (
            "closed",
            &closes,
            "{path: /h}",
            "closed before the whole answer",
        ),
        ("silent", &silent, slow, "no answer within 100ms"),
    ]);
}

#[test]
fn an_http_check_judges_framing_as_traffic_does() {
    let fields =
        |fields: &str| ScriptedPeer::saying(format!("HTTP/1.1 200 OK\r\n{fields}\r\nhello"));
    let chunks = |chunks: &str| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        ScriptedPeer::saying(format!("{head}{chunks}"))
    };
    let bad = [
        fields("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        fields("Content-Length: 5\r\nContent-Length: 6\r\n"),
        fields("Content-Length: 5\r\nContent-Length: 5\r\n"),
        fields("Content-Length: 5, 5\r\n"),
        fields("Content-Length: +5\r\n"),
        fields("Transfer-Encoding: gzip\r\n"),
        fields("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ScriptedPeer::saying("HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"),
        ScriptedPeer::saying("HTTP/1.1 200 OK\r\nContent-Length: 5\n\r\nhello"),
        ScriptedPeer::saying("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ScriptedPeer::saying(
            "HTTP/1.1 103 X\r\nContent-Length: 2\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        chunks("zz\r\nhello\r\n0\r\n\r\n"),
        chunks("5\nhello\r\n0\r\n\r\n"),
        chunks("5\r\nhello!\r\n0\r\n\r\n"),
    ];
    let good = [
        fields("Content-Length: 5\r\n"),
        fields(""),
        chunks("5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
        ScriptedPeer::saying("HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ScriptedPeer::saying("HTTP/1.1 204 X\r\n\r\n"),
    ];
    let cut = [chunks("5\r\nhel"), fields("Content-Length: 50\r\n")];
    let bad = bad.iter().map(|peer| (peer, "answer is not valid HTTP"));
    let good = good.iter().map(|peer| (peer, ""));
    let cut = cut
        .iter()
        .map(|peer| (peer, "closed before the whole answer"));
    let rows: Vec<_> = bad
        .chain(good)
        .chain(cut)
        .map(|(peer, cause)| ("framing", peer, "{path: /h}", cause))
        .collect();
    let daemon = verdicts(&rows);
    // Traffic says the same.
    let refused = daemon.get("@web", "/").unwrap();
    expect_error(&refused, 502, "destination_unavailable");
}

#[test]
fn an_http_check_asks_as_the_file_says() {
    let peers = [(); 5].map(|()| ScriptedPeer::answering("hello"));
    let [plain, path, host, head, own_port] = &peers;
    let elsewhere = ScriptedPeer::answering("hello");
    let dead = ScriptedPeer::answering("hello");
    let port = |peer: &ScriptedPeer| format!("{{path: /h, port: {}}}", peer.address.port());
    let (to_elsewhere, to_closed_port) =
        (port(&elsewhere), format!("{{port: {}}}", refused().port()));
    verdicts(&[
        ("plain", plain, "{type: http}", ""),
        ("path", path, "{path: \"/health?full=1\"}", ""),
        ("host", host, "{path: /h, host: app.example.com}", ""),
        ("method", head, "{path: /h, method: HEAD}", ""),
        ("port", own_port, &to_elsewhere, ""),
        ("dead port", &dead, &to_closed_port, "connection refused"),
    ]);
    let first = |peer: &ScriptedPeer| peer.wait_for_requests(1).remove(0);
    assert_eq!(first(plain).target, "/");
    let address = plain.address.to_string();
    assert_eq!(first(plain).header("host"), Some(address.as_str()));
    assert_eq!(first(plain).method, "GET");
    assert_eq!(first(path).target, "/health?full=1");
    assert_eq!(first(host).header("host"), Some("app.example.com"));
    assert_eq!(first(head).method, "HEAD");
    assert_eq!(first(&elsewhere).target, "/h");
    assert_eq!(own_port.requests.all(), []);
    assert_eq!(dead.requests.all(), []);
}

#[test]
fn checks_go_on_while_the_backend_does_not_answer_them() {
    let silent = ScriptedPeer::silent();
    let pool = backends([quoted(&silent)])
        + "    health_check: {path: /h, interval: 100ms, timeout: 100ms, fall: 2}\n";
    let daemon = daemon(&pool);
    silent.wait_for_requests(4);
    let lines = wait_for_transitions(&daemon, 1);
    assert_eq!(lines.len(), 1, "one line for one transition: {lines:?}");
    assert_eq!(lines[0].1, "down");
}

#[test]
fn a_backend_that_refuses_is_back_long_before_the_next_interval() {
    let gone = ScriptedPeer::answering("gone");
    let address = gone.address;
    let pool = backends([quoted(&gone)]) + "    health_check: {interval: 8s, rise: 1}\n";
    drop(gone);
    let daemon = daemon(&pool);
    wait_for_state(&daemon, "down", 1);
    let began = clock::now();
    let _back =
        ScriptedPeer::start_at(address, |mut connection| while connection.answer("back") {});
    wait_for_state(&daemon, "up", 1);
    let took = clock::now() - began;
    assert!(took < Duration::from_secs(5), "back after {took:?}");
}

#[test]
fn a_lack_of_descriptors_of_our_own_changes_no_verdict_and_ejects_no_backend() {
    let peers = [
        ScriptedPeer::answering("one"),
        ScriptedPeer::answering("two"),
    ];
    let pool = backends(peers.iter().map(quoted))
        + "    health_check: {interval: 100ms, fall: 1, rise: 1}\n    ejection: {failures: 1}\n\
           \x20   keepalive: {idle_per_backend: 0}\n";
    let daemon = daemon(&pool);
    wait_for_state(&daemon, "up", 2);
    let mut client = daemon.client("@web");
    assert_eq!(client.request("GET", "/").unwrap().status, 200);
    let before = wait_for_transitions(&daemon, 2);
    let limit = |limit| {
        let pid = rustix::process::Pid::from_raw(daemon.pid().cast_signed());
        rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).unwrap()
    };
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let usual = limit(rustix::process::Rlimit {
        current: Some(3),
        maximum: own.maximum,
    });
    // Several intervals of checks, with traffic.
    let end = clock::now() + Duration::from_millis(600);
    while clock::now() < end {
        let response = client.request("GET", "/").unwrap();
        expect_error(&response, 503, "overload");
    }
    limit(usual);
    assert_eq!(client.request("GET", "/").unwrap().status, 200);
    let ours = "a limit of this process or machine, no fault of the backend";
    daemon.wait_for_log(|line| line.contains(ours));
    let checks = "balancer_backend_health_checks_total{pool=\"app\",result=\"local_error\"}";
    assert!(daemon.metric(checks) >= 2.0);
    let connections = "balancer_backend_connections_total{pool=\"app\",result=\"local_error\"}";
    assert!(daemon.metric(connections) >= 1.0);
    for none in [
        "balancer_backend_health_checks_total{pool=\"app\",result=\"failed\"}",
        "balancer_backend_connections_total{pool=\"app\",result=\"failed\"}",
        "balancer_backend_failures_total{pool=\"app\"}",
    ] {
        assert_eq!(daemon.metric(none) as u64, 0, "{none}");
    }
    assert_eq!(transitions(&daemon), before);
}
