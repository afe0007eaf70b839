//! Operators take backends out of service, bring them back and change weights: at once, over reload
//! and restart, and with their name in the log.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    process::Output,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use serde_json::{Value, json};

use crate::harness::{
    TempDir,
    answers::expect_error,
    client::HttpClient,
    daemon::TestDaemon,
    peer::{Gate, ScriptedPeer},
    poll,
};

/// Pool `app` of backends `b0`, `b1` and so on, without checks.
fn config(peers: &[&ScriptedPeer]) -> String {
    let backends: Vec<_> = peers
        .iter()
        .enumerate()
        .map(|(number, peer)| format!("{{address: \"{}\", name: b{number}}}", peer.address))
        .collect();
    format!(
        "log: {{format: json}}\nlisteners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app:\n    \
         health_check: none\n    backends: [{}]\n",
        backends.join(", ")
    )
}

fn two() -> [ScriptedPeer; 2] {
    [
        ScriptedPeer::answering("zero"),
        ScriptedPeer::answering("one"),
    ]
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs `balancer backend …`, which must succeed; gives its standard output.
fn backend(daemon: &TestDaemon, arguments: &[&str]) -> String {
    let arguments: Vec<_> = ["backend"].iter().chain(arguments).copied().collect();
    let output = daemon.command(&arguments);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    said(&output)
}

/// Object of a backend in the status.
fn status(daemon: &TestDaemon, index: usize) -> Value {
    daemon.status()["pools"][0]["backends"][index].clone()
}

/// Number of times that each body comes in `count` requests.
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

/// The user that the tests run as, as the daemon names it.
fn user() -> String {
    let output = std::process::Command::new("id")
        .arg("-un")
        .output()
        .unwrap();
    said(&output).trim().to_owned()
}

/// Waits for a JSON line of the daemon's log with `message`.
fn logged(daemon: &TestDaemon, message: &str) -> Value {
    let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_default();
    parse(&daemon.wait_for_log(|line| parse(line)["message"] == message))
}

#[test]
fn a_drain_under_load_fails_no_request_and_ends_with_nothing_in_flight() {
    let [zero, one] = two();
    let daemon = TestDaemon::start(&config(&[&zero, &one]));
    let is_over = AtomicBool::new(false);
    let address = daemon.address("@web");
    thread::scope(|scope| {
        let client = || {
            let mut client = HttpClient::connect(address);
            let mut count = 0;
            while !is_over.load(Relaxed) {
                assert_eq!(client.request("GET", "/").unwrap().status, 200);
                count += 1;
            }
            count
        };
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(client)).collect();
        one.wait_for_requests(50);
        let text = backend(&daemon, &["drain", "app/b1", "--wait", "30s"]);
        let drained = one.requests.all().len();
        let others = zero.requests.all().len();
        zero.wait_for_requests(others + 200);
        is_over.store(true, Relaxed);
        let counts: usize = clients.into_iter().map(|one| one.join().unwrap()).sum();
        assert!(counts > 250, "{counts}");
        assert_eq!(one.requests.all().len(), drained, "no new work");
        assert!(
            text.starts_with("backend b1 of pool app is draining, "),
            "{text}"
        );
        assert!(text.ends_with("nothing is in flight any more\n"), "{text}");
    });
    assert_eq!(daemon.metric("balancer_errors_total"), 0.0);
    assert_eq!(
        daemon.metric("balancer_backend_state{backend=\"b1\",state=\"draining\"}"),
        1.0
    );
    assert_eq!(
        daemon.metric("balancer_backend_override{override=\"state\"}"),
        1.0
    );
}

/// A daemon with one backend, at which a request waits for `gate`.
fn with_one_in_flight(gate: &Gate) -> (ScriptedPeer, TestDaemon, HttpClient) {
    let slow = ScriptedPeer::slow(gate, "slow");
    let daemon = TestDaemon::start(&config(&[&slow]));
    let mut client = daemon.client("@web");
    client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    slow.wait_for_requests(1);
    (slow, daemon, client)
}

#[test]
fn the_wait_says_what_is_left_and_ends_when_it_is_done() {
    let gate = Gate::new();
    let (_slow, daemon, mut client) = with_one_in_flight(&gate);
    let output = daemon.command(&["backend", "drain", "app/b0", "--wait", "300ms"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let expected = "backend b0 of pool app is draining, 1 in flight\n";
    assert_eq!(said(&output), expected);
    let errors = complained(&output);
    assert!(errors.contains("error: 1 still in flight"), "{errors}");
    let warning = "warning: pool `app` has no available backend";
    assert!(errors.contains(warning), "{errors}");
    expect_error(
        &daemon.get("@web", "/").unwrap(),
        502,
        "destination_unavailable",
    );
    gate.open();
    assert_eq!(
        client.response().unwrap().text(),
        "slow",
        "what it has goes on"
    );
    let output = daemon.command(&["backend", "drain", "app/b0", "--wait", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["backend"]["in_flight"], 0);
    assert_eq!(document["persistent"], true);
}

#[test]
fn a_wait_ends_when_another_operator_ends_the_drain() {
    let gate = Gate::new();
    let (_slow, daemon, mut client) = with_one_in_flight(&gate);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| daemon.command(&["backend", "drain", "app/b0", "--wait"]));
        let is_draining = || (status(&daemon, 0)["state"] == "draining").then_some(());
        assert!(poll(is_draining).is_some());
        backend(&daemon, &["ready", "app/b0"]);
        let output = waiting.join().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let errors = complained(&output);
        assert!(errors.contains("no longer draining, but up"), "{errors}");
    });
    gate.open();
    assert_eq!(client.response().unwrap().text(), "slow");
}

#[test]
fn reload_and_restart_keep_what_was_set_and_ready_ends_it() {
    let [zero, one] = two();
    let text = config(&[&zero, &one]);
    let mut daemon = TestDaemon::start(&text);
    backend(
        &daemon,
        &["maintenance", "app/b0", "--note", "new \"kernel\""],
    );
    backend(&daemon, &["weight", "app/b1", "7"]);
    let check = |daemon: &TestDaemon| {
        assert_eq!(tally(daemon, 4), HashMap::from([("one".to_owned(), 4)]));
        let (first, second) = (status(daemon, 0), status(daemon, 1));
        assert_eq!(first["state"], "maintenance");
        assert_eq!(first["override"]["state"]["note"], "new \"kernel\"");
        assert_eq!(first["override"]["state"]["by"], user());
        assert_eq!(
            (&second["weight"], &second["configured_weight"]),
            (&json!(7), &json!(1))
        );
    };
    check(&daemon);
    let renamed = text
        .replace("name: b0", "name: other")
        .replace("name: b1", "name: b2");
    assert_eq!(daemon.reload(&renamed).status, 200);
    check(&daemon);
    daemon.restart();
    check(&daemon);
    let line = logged(&daemon, "an override from before the start is in force");
    assert_eq!(line["pool"], "app");
    let file = daemon.directory().join("state/overrides.json");
    let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let text = backend(&daemon, &["ready", "app/other"]);
    assert_eq!(text, "backend other of pool app is up, weight 1\n");
    backend(&daemon, &["ready", "app/b2"]);
    daemon.restart();
    assert_eq!(
        tally(&daemon, 4),
        HashMap::from([("zero".to_owned(), 2), ("one".to_owned(), 2)])
    );
    assert_eq!(status(&daemon, 0)["override"], json!(null));
}

#[test]
fn an_override_waits_for_its_backend_and_is_shown_meanwhile() {
    let [zero, one] = two();
    let both = config(&[&zero, &one]);
    let mut daemon = TestDaemon::start(&both);
    backend(&daemon, &["drain", "app/b1"]);
    assert_eq!(daemon.reload(&config(&[&zero])).status, 200);
    assert_eq!(
        daemon.status()["absent_overrides"][0]["address"],
        one.address.to_string()
    );
    daemon.restart();
    logged(
        &daemon,
        "an override from before the start is for a backend that is in no configuration",
    );
    let screen = said(&daemon.command(&["status"]));
    let line = format!("app/{}  draining set by {}", one.address, user());
    assert!(screen.contains(&line), "{screen}");
    assert_eq!(daemon.reload(&both).status, 200);
    assert_eq!(status(&daemon, 1)["state"], "draining");
    assert_eq!(tally(&daemon, 2), HashMap::from([("zero".to_owned(), 2)]));
    assert_eq!(daemon.reload(&config(&[&zero])).status, 200);
    let name = format!("app/{}", one.address);
    let text = backend(&daemon, &["ready", &name]);
    assert!(text.contains("the override is gone"), "{text}");
    assert_eq!(daemon.status()["absent_overrides"], json!([]));
}

#[test]
fn an_override_ends_by_itself_also_after_a_restart() {
    let [zero, one] = two();
    let mut daemon = TestDaemon::start(&config(&[&zero, &one]));
    let text = backend(&daemon, &["drain", "app/b1", "--for", "1s"]);
    assert!(text.contains(" is draining until 20"), "{text}");
    backend(&daemon, &["weight", "app/b0", "0", "--for", "1h"]);
    let screen = said(&daemon.command(&["status"]));
    assert!(screen.contains("ends in 59m"), "{screen}");
    let line = logged(&daemon, "the time of an override is over");
    assert_eq!(line["by"], user());
    let back = || (status(&daemon, 1)["state"] == "up").then(|| status(&daemon, 1));
    assert_eq!(poll(back).unwrap()["override"], json!(null));
    backend(&daemon, &["drain", "app/b1", "--for", "2s"]);
    daemon.restart();
    let state = || status(&daemon, 1)["state"].clone();
    assert!(
        poll(|| (state() == "up").then_some(())).is_some(),
        "{}",
        state()
    );
    let weight = status(&daemon, 0)["override"]["weight"].clone();
    assert!(
        weight["ends_in_seconds"].as_f64().unwrap() > 3_000.0,
        "{weight}"
    );
}

#[test]
fn a_weight_changes_the_split_at_once() {
    let [zero, one] = two();
    let daemon = TestDaemon::start(&config(&[&zero, &one]));
    let text = backend(&daemon, &["weight", "app/b0", "3"]);
    assert_eq!(
        text,
        "backend b0 of pool app has weight 3 (file: 1); it is up\n"
    );
    assert_eq!(
        tally(&daemon, 8),
        HashMap::from([("zero".to_owned(), 6), ("one".to_owned(), 2)])
    );
    assert_eq!(
        daemon.metric("balancer_backend_weight{backend=\"b0\"}"),
        3.0
    );
    backend(&daemon, &["weight", "app/b0", "0"]);
    assert_eq!(tally(&daemon, 4), HashMap::from([("one".to_owned(), 4)]));
    let screen = said(&daemon.command(&["status"]));
    let note = format!("weight set by {} (file: 1)", user());
    assert!(screen.contains(&note), "{screen}");
    assert!(screen.contains("1 of 2 backends available"), "{screen}");
}

#[test]
fn maintenance_closes_idle_connections_and_checks_go_on() {
    let peer = ScriptedPeer::answering("here");
    let spare = ScriptedPeer::answering("spare");
    let checked = config(&[&peer, &spare]).replace("none", "{path: /check, interval: 100ms}");
    let daemon = TestDaemon::start(&checked);
    daemon.wait_for_metric("balancer_backend_up", |up| up > 1.5);
    tally(&daemon, 2);
    daemon.wait_for_metric(
        "balancer_backend_connections_idle{backend=\"b0\"}",
        |idle| idle > 0.5,
    );
    backend(&daemon, &["maintenance", "app/b0"]);
    daemon.wait_for_metric(
        "balancer_backend_connections_idle{backend=\"b0\"}",
        |idle| idle < 0.5,
    );
    let checks = "balancer_backend_health_checks_total{backend=\"b0\",result=\"ok\"}";
    let before = daemon.metric(checks);
    daemon.wait_for_metric(checks, |now| now > before + 1.5);
    assert_eq!(status(&daemon, 0)["state"], "maintenance");
    assert_eq!(status(&daemon, 0)["last_check"]["ok"], true);
    assert_eq!(tally(&daemon, 3), HashMap::from([("spare".to_owned(), 3)]));
}

#[test]
fn the_log_says_who_did_what_and_why() {
    let [zero, one] = two();
    let daemon = TestDaemon::start(&config(&[&zero, &one]));
    backend(
        &daemon,
        &["drain", "app/b1", "--for", "10m", "--note", "ticket 7"],
    );
    let line = logged(&daemon, "state set by an operator");
    for (key, expected) in [
        ("by", user()),
        ("state", "draining".to_owned()),
        ("pool", "app".to_owned()),
        ("backend", "b1".to_owned()),
        ("address", one.address.to_string()),
        ("duration", "600s".to_owned()),
        ("note", "ticket 7".to_owned()),
    ] {
        assert_eq!(line[key], expected, "{key}");
    }
    let change = logged(&daemon, "backend is draining");
    assert_eq!(change["cause"], format!("set by {}: ticket 7", user()));
}

#[test]
fn over_tcp_the_operator_is_the_token() {
    let [zero, one] = two();
    let directory = TempDir::new();
    let token = directory.path().join("token").display().to_string();
    fs::write(&token, "s3cret\n").unwrap();
    let admin = format!("admin: {{bind: \"@admin\", token_file: {token}}}\n");
    let daemon = TestDaemon::start(&(admin + &config(&[&zero, &one])));
    let address = daemon.address("@admin").to_string();
    let options = ["--admin", &address, "--token-file", &token];
    backend(&daemon, &[&["drain", "app/b1"], &options[..]].concat());
    assert_eq!(logged(&daemon, "state set by an operator")["by"], "token");
}

#[test]
fn unknown_names_are_refused_with_a_hint() {
    let [zero, one] = two();
    let daemon = TestDaemon::start(&config(&[&zero, &one]));
    for (name, wanted) in [
        ("ap/b1", "There is no pool `ap`; did you mean `app`?"),
        (
            "app/x9.test:80",
            "Pool `app` has no backend `x9.test:80`; its backends are `b0`, `b1`.",
        ),
    ] {
        for action in ["drain", "ready"] {
            let output = daemon.command(&["backend", action, name]);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert_eq!(complained(&output), format!("error: {wanted}\n"));
        }
    }
    let output = daemon.command(&["backend", "drain", "app"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        !daemon.directory().join("state").exists(),
        "nothing was written"
    );
}

#[test]
fn a_state_directory_that_cannot_be_written_is_told_and_the_change_is_in_force() {
    let [zero, one] = two();
    let mut daemon = TestDaemon::start(&config(&[&zero, &one]));
    fs::write(daemon.directory().join("state"), "not a directory").unwrap();
    let output = daemon.command(&["backend", "drain", "app/b1"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let errors = complained(&output);
    let warning = "warning: a restart of the daemon will forget this: `";
    assert!(errors.starts_with(warning), "{errors}");
    assert!(errors.contains("state/overrides.json"), "{errors}");
    logged(
        &daemon,
        "cannot write the overrides of operators: they will not survive a restart",
    );
    assert_eq!(tally(&daemon, 2), HashMap::from([("zero".to_owned(), 2)]));
    daemon.restart();
    logged(
        &daemon,
        "cannot read the overrides of operators: starting without them; the next change replaces the file",
    );
    assert_eq!(status(&daemon, 1)["state"], "up");
}

#[test]
fn a_broken_file_is_told_and_the_daemon_starts_without_it() {
    let [zero, one] = two();
    let mut daemon = TestDaemon::start(&config(&[&zero, &one]));
    backend(&daemon, &["drain", "app/b1"]);
    let file = daemon.directory().join("state/overrides.json");
    fs::write(&file, "{\"version\": 1, \"overrides\": 7}").unwrap();
    daemon.restart();
    let line = logged(
        &daemon,
        "cannot read the overrides of operators: starting without them; the next change replaces the file",
    );
    assert_eq!(line["path"], file.display().to_string());
    assert_eq!(status(&daemon, 1)["state"], "up");
    backend(&daemon, &["drain", "app/b1"]);
    daemon.restart();
    assert_eq!(status(&daemon, 1)["state"], "draining");
}
