//! Who gets traffic: active checks, passive ejection, backups, weights and load.

mod down;
mod h2;

use std::{collections::HashMap, fmt::Display, time::Duration};

use crate::harness::{
    answers::expect_error,
    client::HttpClient,
    daemon::{TestDaemon, sum_of},
    peer::{Gate, PeerConnection, ScriptedPeer, refused},
    poll,
};
use balancer::base::clock;
use serde_json::Value;

/// One pool `app` behind `@web`; `pool` are its keys, each on a line of its own.
fn daemon(pool: &str) -> TestDaemon {
    TestDaemon::start(&configuration(pool))
}

fn configuration(pool: &str) -> String {
    format!(
        "workers: 2\nlog: {{format: json}}\naccess_log: {{when: {{min_status: 200}}}}\n\
         listeners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app:\n{pool}"
    )
}

/// The `backends` key with these entries.
fn backends<E: Display>(entries: impl IntoIterator<Item = E>) -> String {
    let entries: Vec<_> = entries.into_iter().map(|one| one.to_string()).collect();
    format!("    backends: [{}]\n", entries.join(", "))
}

fn quoted(peer: &ScriptedPeer) -> String {
    format!("\"{}\"", peer.address)
}

/// The lines of transitions so far: from, to, cause.
fn transitions(daemon: &TestDaemon) -> Vec<(String, String, String)> {
    let lines = daemon.stderr.all();
    let parsed = lines
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed
        .filter(|line| {
            line["message"]
                .as_str()
                .is_some_and(|text| text.starts_with("backend is"))
        })
        .map(|line| {
            let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            (text("from"), text("to"), text("cause"))
        })
        .collect()
}

/// Waits for so many lines of transitions and gives them.
fn wait_for_transitions(daemon: &TestDaemon, count: usize) -> Vec<(String, String, String)> {
    poll(|| Some(transitions(daemon)).filter(|all| all.len() >= count))
        .unwrap_or_else(|| panic!("not {count} transitions: {:?}", transitions(daemon)))
}

/// Waits until so many backends are in `state`.
fn wait_for_state(daemon: &TestDaemon, state: &str, count: usize) {
    let series = format!("balancer_pool_backends{{pool=\"app\",state=\"{state}\"}}");
    daemon.wait_for_metric(&series, |value| value as usize == count);
}

/// Sends `count` GETs one after the other; all must be answered with 200. Gives how often each body came.
fn tally(daemon: &TestDaemon, count: usize) -> HashMap<String, usize> {
    let mut client = daemon.client("@web");
    let mut bodies = HashMap::new();
    for _ in 0..count {
        let response = client.request("GET", "/").unwrap();
        assert_eq!(response.status, 200, "{response:?}");
        *bodies.entry(response.text()).or_insert(0) += 1;
    }
    bodies
}

fn tallied<const N: usize>(pairs: [(&str, usize); N]) -> HashMap<String, usize> {
    pairs.map(|(name, count)| (name.to_owned(), count)).into()
}

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

/// Pools of one backend each, with a check each, and what becomes of them.
fn verdicts(rows: &[(&str, &ScriptedPeer, &str, &str)]) -> TestDaemon {
    let pools: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(number, (_, peer, check, _))| {
            format!(
                "  p{number}: {{backends: [\"{}\"], health_check: {check}}}\n",
                peer.address
            )
        })
        .collect();
    let daemon = TestDaemon::start(&format!(
        "log: {{format: json}}\nlisteners:\n  web: {{bind: \"@web\", pool: p0}}\npools:\n{}",
        pools.concat()
    ));
    for (number, (name, .., cause)) in rows.iter().enumerate() {
        let pool = format!("p{number}");
        let line = daemon.wait_for_log(|line| {
            serde_json::from_str::<Value>(line)
                .is_ok_and(|line| line["pool"] == pool.as_str() && line["from"] == "checking")
        });
        let line: Value = serde_json::from_str(&line).unwrap();
        let state = if cause.is_empty() { "up" } else { "down" };
        assert_eq!(line["to"], state, "{name}: {line}");
        let told = line["cause"].as_str().unwrap();
        assert!(told.contains(cause), "{name}: {line}");
    }
    daemon
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
    let (to_elsewhere, to_nobody) = (port(&elsewhere), format!("{{port: {}}}", refused().port()));
    verdicts(&[
        ("plain", plain, "{type: http}", ""),
        ("path", path, "{path: \"/health?full=1\"}", ""),
        ("host", host, "{path: /h, host: app.example.com}", ""),
        ("method", head, "{path: /h, method: HEAD}", ""),
        ("port", own_port, &to_elsewhere, ""),
        ("dead port", &dead, &to_nobody, "connection refused"),
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

/// Reads whole requests and closes without an answer.
fn swallowing() -> ScriptedPeer {
    ScriptedPeer::start(|mut connection| drop(connection.request()))
}

#[test]
fn five_failures_in_a_row_eject_a_backend_while_others_are_up() {
    let (bad, one, other) = (
        swallowing(),
        ScriptedPeer::answering("one"),
        ScriptedPeer::answering("other"),
    );
    let pool = backends([&bad, &one, &other].map(quoted)) + "    health_check: none\n";
    let daemon = daemon(&pool);
    let bodies = tally(&daemon, 60);
    assert_eq!(
        bodies.values().sum::<usize>(),
        60,
        "no client saw a failure"
    );
    assert_eq!(bad.connections(), 5);
    let lines = wait_for_transitions(&daemon, 1);
    assert_eq!(
        lines,
        [(
            "up".to_owned(),
            "ejected".to_owned(),
            "connection_terminated 5 times in a row, out for 10s".to_owned()
        )]
    );
    let page = daemon.scrape();
    let name = bad.address;
    for series in [
        format!(
            "balancer_backend_ejections_total{{backend=\"{name}\",reason=\"connection_terminated\"}}"
        ),
        format!("balancer_backend_state{{backend=\"{name}\",state=\"ejected\"}}"),
        "balancer_pool_backends{pool=\"app\",state=\"ejected\"}".to_owned(),
    ] {
        assert_eq!(sum_of(&page, &series) as usize, 1, "{series}\n{page}");
    }
    // A further 30 bring nothing more to it.
    tally(&daemon, 30);
    assert_eq!(bad.connections(), 5);
}

#[test]
fn a_success_in_between_begins_the_count_anew() {
    // Every fifth answer is good, so that there are never five failures in a row.
    let flaky = ScriptedPeer::start(move |mut connection| {
        if connection.request().is_some() && connection.number() % 5 == 4 {
            connection
                .send_last("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let good = ScriptedPeer::answering("ok");
    let pool = backends([&flaky, &good].map(quoted)) + "    health_check: none\n";
    let daemon = daemon(&pool);
    tally(&daemon, 60);
    assert_eq!(transitions(&daemon), []);
    assert!(flaky.connections() >= 25, "{}", flaky.connections());
}

#[test]
fn answers_of_the_application_eject_nobody() {
    let angry = ScriptedPeer::start(|mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 500 Own Fault\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let good = ScriptedPeer::answering("ok");
    let pool = backends([&angry, &good].map(quoted)) + "    health_check: none\n";
    let daemon = daemon(&pool);
    let mut client = daemon.client("@web");
    let statuses: Vec<u16> = (0..40)
        .map(|_| client.request("GET", "/").unwrap().status)
        .collect();
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 20);
    assert_eq!(transitions(&daemon), []);
}

#[test]
fn the_only_backend_is_never_ejected() {
    let bad = swallowing();
    let pool = backends([quoted(&bad)]) + "    health_check: none\n    retries: none\n";
    let daemon = daemon(&pool);
    let mut client = daemon.client("@web");
    for _ in 0..30 {
        let response = client.request("GET", "/").unwrap();
        expect_error(&response, 502, "connection_terminated");
    }
    assert_eq!(bad.connections(), 30);
    assert_eq!(transitions(&daemon), []);
}

#[test]
fn of_a_pool_that_fails_whole_only_the_allowed_share_is_ejected() {
    for (count, most) in [(2, 1), (3, 1), (4, 2)] {
        let peers: Vec<ScriptedPeer> = (0..count).map(|_| swallowing()).collect();
        let pool = backends(peers.iter().map(quoted)) + "    health_check: none\n";
        let daemon = daemon(&pool);
        let mut client = daemon.client("@web");
        for _ in 0..40 {
            let response = client.request("GET", "/").unwrap();
            expect_error(&response, 502, "connection_terminated");
        }
        assert_eq!(transitions(&daemon).len(), most, "of {count}");
        wait_for_state(&daemon, "ejected", most);
    }
}

#[test]
fn an_ejected_backend_comes_back_after_its_sentence_and_the_next_one_is_longer() {
    let healed = Gate::new();
    let door = healed.clone();
    let moody = ScriptedPeer::start(move |mut connection| {
        while connection.request().is_some() && door.is_open() && connection.answer("moody") {}
    });
    let steady = ScriptedPeer::answering("steady");
    let pool = backends([&moody, &steady].map(quoted))
        + "    health_check: none\n    ejection: {failures: 3, eject_for: 500ms}\n";
    let daemon = daemon(&pool);
    tally(&daemon, 10);
    let began = clock::now();
    assert_eq!(moody.connections(), 3);
    wait_for_transitions(&daemon, 2);
    let took = clock::now() - began;
    assert!(took > Duration::from_millis(100), "back after {took:?}");
    // Still broken: out again, for twice as long.
    tally(&daemon, 10);
    assert_eq!(moody.connections(), 6);
    let lines = wait_for_transitions(&daemon, 4);
    let text = |(from, to, cause): &(String, String, String)| format!("{from} > {to}: {cause}");
    assert_eq!(
        lines.iter().map(text).collect::<Vec<_>>(),
        [
            "up > ejected: connection_terminated 3 times in a row, out for 500ms",
            "ejected > up: the ejection is over",
            "up > ejected: connection_terminated 3 times in a row, out for 1s",
            "ejected > up: the ejection is over",
        ]
    );
    healed.open();
    assert_eq!(tally(&daemon, 20), tallied([("steady", 10), ("moody", 10)]));
}

#[test]
fn a_reload_that_switches_ejection_off_frees_at_once() {
    for off in ["none", "{max_ejected: 0%}"] {
        let (bad, steady) = (swallowing(), ScriptedPeer::answering("steady"));
        let pool = |ejection: &str| {
            backends([&bad, &steady].map(quoted))
                + &format!("    health_check: none\n    ejection: {ejection}\n")
        };
        let mut daemon = daemon(&pool("{eject_for: 24h}"));
        tally(&daemon, 20);
        wait_for_state(&daemon, "ejected", 1);
        let reloaded = daemon.reload(&configuration(&pool(off)));
        assert_eq!(reloaded.status, 200, "{reloaded:?}");
        wait_for_state(&daemon, "up", 2);
        let before = bad.connections();
        tally(&daemon, 20);
        assert!(bad.connections() >= before + 10);
        wait_for_state(&daemon, "up", 2);
    }
}

#[test]
fn an_ejected_backend_is_back_when_its_checks_have_passed_rise_times() {
    // It accepts, which is enough for the check, and answers after the ejection.
    let healed = Gate::new();
    let door = healed.clone();
    let moody = ScriptedPeer::start(move |mut connection| {
        while connection.request().is_some() && door.is_open() && connection.answer("moody") {}
    });
    let steady = ScriptedPeer::answering("steady");
    let pool = backends([&moody, &steady].map(quoted))
        + "    health_check: {interval: 100ms, rise: 2}\n    ejection: {eject_for: 24h}\n";
    let daemon = daemon(&pool);
    wait_for_state(&daemon, "up", 2);
    let mut client = daemon.client("@web");
    poll(|| {
        assert_eq!(client.request("GET", "/").unwrap().status, 200);
        let out = transitions(&daemon).iter().any(|line| line.1 == "ejected");
        out.then_some(())
    })
    .unwrap();
    healed.open();
    let back = poll(|| {
        let mut lines = transitions(&daemon).into_iter();
        lines.find(|line| line.0 == "ejected")
    })
    .unwrap();
    assert_eq!(back.1, "up");
    assert_eq!(back.2, "2 checks in a row passed since the ejection");
    wait_for_state(&daemon, "up", 2);
    assert_eq!(tally(&daemon, 20), tallied([("steady", 10), ("moody", 10)]));
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

#[test]
fn when_all_are_down_the_pool_rejects_or_fails_open_as_told() {
    let peer = ScriptedPeer::answering("here");
    let check = format!(
        "    health_check: {{port: {}, interval: 100ms}}\n",
        refused().port()
    );
    let own = backends([quoted(&peer)]) + &check;
    let rejecting = daemon(&own);
    wait_for_state(&rejecting, "down", 1);
    let response = rejecting.get("@web", "/").unwrap();
    expect_error(&response, 502, "destination_unavailable");
    let open = daemon(&format!("{own}    when_all_down: fail_open\n"));
    wait_for_state(&open, "down", 1);
    assert_eq!(tally(&open, 5), tallied([("here", 5)]));
}

#[test]
fn a_backend_that_was_never_checked_serves_only_while_no_checked_one_is_up() {
    // Its check gets no answer for a long time; its traffic does.
    let unknown = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/" {
                connection.answer("unknown");
            }
        }
    });
    let known = ScriptedPeer::answering("known");
    let check = "    health_check: {path: /h, interval: 1h, timeout: 1h}\n";
    let alone = daemon(&(backends([quoted(&unknown)]) + check));
    assert_eq!(tally(&alone, 5), tallied([("unknown", 5)]));
    let both = daemon(&(backends([&unknown, &known].map(quoted)) + check));
    wait_for_state(&both, "up", 1);
    wait_for_state(&both, "checking", 1);
    assert_eq!(tally(&both, 10), tallied([("known", 10)]));
}

#[test]
fn backups_serve_only_while_no_other_is_up() {
    let healthy = Gate::new();
    let door = healthy.clone();
    let main = ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/" || door.is_open() {
                connection.answer("main");
            } else {
                connection.send("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
            }
        }
    });
    let spares = [
        ScriptedPeer::answering("spare 1"),
        ScriptedPeer::answering("spare 2"),
    ];
    let spare = |peer: &ScriptedPeer| format!("{{address: \"{}\", backup: true}}", peer.address);
    let entries = [quoted(&main), spare(&spares[0]), spare(&spares[1])];
    let pool = backends(entries) + "    health_check: {path: /healthz, interval: 100ms}\n";
    let daemon = daemon(&pool);
    wait_for_state(&daemon, "up", 2);
    wait_for_state(&daemon, "down", 1);
    assert_eq!(
        tally(&daemon, 20),
        tallied([("spare 1", 10), ("spare 2", 10)])
    );
    healthy.open();
    wait_for_state(&daemon, "up", 3);
    assert_eq!(tally(&daemon, 20), tallied([("main", 20)]));
}

#[test]
fn backups_of_two_tiers_serve_one_at_a_time_and_a_reload_moves_them() {
    let down = refused();
    let spares = [
        ScriptedPeer::answering("spare 1"),
        ScriptedPeer::answering("spare 2"),
    ];
    let file = |tiers: [u8; 2]| {
        let spare = |index: usize| {
            format!(
                "{{address: \"{}\", backup: {}}}",
                spares[index].address, tiers[index]
            )
        };
        let entries = [format!("\"{down}\""), spare(0), spare(1)];
        configuration(&(backends(entries) + "    health_check: {interval: 100ms}\n"))
    };
    let mut daemon = TestDaemon::start(&file([1, 2]));
    wait_for_state(&daemon, "up", 2);
    wait_for_state(&daemon, "down", 1);
    assert_eq!(tally(&daemon, 10), tallied([("spare 1", 10)]));
    let status = daemon.status();
    let tiers = [0, 1, 2].map(|index| status["pools"][0]["backends"][index]["tier"].clone());
    assert_eq!(tiers, [0, 1, 2].map(serde_json::Value::from));
    assert_eq!(daemon.reload(&file([9, 2])).status, 200);
    assert_eq!(tally(&daemon, 10), tallied([("spare 2", 10)]));
}

#[test]
fn weights_are_honoured_exactly() {
    let peers = ["five", "three", "one", "zero"].map(ScriptedPeer::answering);
    let entries = peers
        .iter()
        .zip([5, 3, 1, 0])
        .map(|(peer, weight)| format!("{{address: \"{}\", weight: {weight}}}", peer.address));
    let pool = backends(entries) + "    health_check: none\n";
    let daemon = daemon(&pool);
    // Two connections, so that both workers may be at it: the turn is common to all.
    let mut sum = HashMap::new();
    for _ in 0..2 {
        for (name, count) in tally(&daemon, 45) {
            *sum.entry(name).or_insert(0) += count;
        }
    }
    assert_eq!(sum, tallied([("five", 50), ("three", 30), ("one", 10)]));
    // Smooth: in every nine in a row, each has its share.
    for _ in 0..3 {
        let nine = tally(&daemon, 9);
        assert_eq!(nine, tallied([("five", 5), ("three", 3), ("one", 1)]));
    }
}

/// Answers `/held` only when the gate opens.
fn holding(name: &'static str, gate: &Gate) -> ScriptedPeer {
    let door = gate.clone();
    ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/held" {
                door.wait();
            }
            connection.answer(name);
        }
    })
}

/// Begins `count` requests one after the other that wait at their backends.
fn hold(daemon: &TestDaemon, peers: &[ScriptedPeer], count: usize) -> Vec<HttpClient> {
    let reached = || {
        let all = peers.iter().map(|peer| peer.requests.all().len());
        all.sum::<usize>()
    };
    let before = reached();
    (1..=count)
        .map(|number| {
            let mut client = daemon.client("@web");
            client.send("GET /held HTTP/1.1\r\nHost: test\r\n\r\n");
            poll(|| (reached() >= before + number).then_some(())).unwrap();
            client
        })
        .collect()
}

#[test]
fn least_connections_go_where_the_fewest_are_for_the_weight() {
    let gate = Gate::new();
    let peers = ["two", "one", "other"].map(|name| holding(name, &gate));
    let entries = peers
        .iter()
        .zip([2, 1, 1])
        .map(|(peer, weight)| format!("{{address: \"{}\", weight: {weight}}}", peer.address));
    let pool = backends(entries) + "    health_check: none\n    policy: least_connections\n";
    let daemon = daemon(&pool);
    let mut held = hold(&daemon, &peers, 8);
    let counts = peers.each_ref().map(|peer| peer.requests.all().len());
    assert_eq!(counts, [4, 2, 2]);
    gate.open();
    for client in &mut held {
        assert_eq!(client.response().unwrap().status, 200);
    }
}

#[test]
fn least_connections_keep_away_from_a_backend_that_is_busy() {
    let (held_back, never) = (Gate::new(), Gate::new());
    never.open();
    let peers = [holding("slow", &held_back), holding("fast", &never)];
    let pool = backends(peers.iter().map(quoted))
        + "    health_check: none\n    policy: least_connections\n";
    let daemon = daemon(&pool);
    // Until one waits at the slow one.
    let mut held = Vec::new();
    while peers[0].requests.all().is_empty() {
        held.extend(hold(&daemon, &peers, 1));
    }
    let mut client = daemon.client("@web");
    for _ in 0..20 {
        assert_eq!(client.request("GET", "/").unwrap().text(), "fast");
    }
    held_back.open();
}

#[test]
fn a_backend_at_its_limit_is_passed_over() {
    let gate = Gate::new();
    let peers = ["small", "large"].map(|name| holding(name, &gate));
    let entries = [
        format!("{{address: \"{}\", max_connections: 1}}", peers[0].address),
        quoted(&peers[1]),
    ];
    let daemon = daemon(&(backends(entries) + "    health_check: none\n"));
    let mut held = hold(&daemon, &peers, 6);
    let counts = peers.each_ref().map(|peer| peer.requests.all().len());
    assert_eq!(counts, [1, 5]);
    gate.open();
    for client in &mut held {
        assert_eq!(client.response().unwrap().status, 200);
    }
}
