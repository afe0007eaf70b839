//! The commands against a running daemon: reload, status, signals, and the demo from start to end.

use crate::harness::{
    client::{HttpClient, get},
    daemon::TestDaemon,
    peer::ScriptedPeer,
    poll,
};
use rustix::process::Signal;

fn config(backend: &ScriptedPeer) -> String {
    format!(
        "listeners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app:\n    backends: [{}]\n",
        backend.address
    )
}

#[test]
fn reload_takes_the_changed_file_and_says_what_changed() {
    let (old, new) = (
        ScriptedPeer::answering("old"),
        ScriptedPeer::answering("new"),
    );
    let mut daemon = TestDaemon::start(&config(&old));
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "old");

    let output = daemon.command(&["reload"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "nothing changed\n");

    daemon.write_config(&config(&new));
    let output = daemon.command(&["reload"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("app"), "{said}");
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "new");
}

#[test]
fn a_bad_reload_changes_nothing_and_says_where() {
    let backend = ScriptedPeer::answering("still here");
    let mut daemon = TestDaemon::start(&config(&backend));
    daemon.write_config(&config(&backend).replace("pool: app", "pool: ap"));
    let output = daemon.command(&["reload"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("balancer.yaml:2:"), "{said}");
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "still here");
    assert!(daemon.metric("balancer_config_last_reload_successful") < 0.5);
}

#[test]
fn a_hangup_reloads() {
    let (old, new) = (
        ScriptedPeer::answering("old"),
        ScriptedPeer::answering("new"),
    );
    let mut daemon = TestDaemon::start(&config(&old));
    daemon.write_config(&config(&new));
    daemon.signal(Signal::HUP);
    daemon.wait_for_metric("balancer_config_generation", |generation| generation > 1.5);
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "new");
}

#[test]
fn status_shows_the_pools_and_exits_with_3_when_one_has_no_backend_available() {
    let backend = ScriptedPeer::answering("well");
    let daemon = TestDaemon::start(&config(&backend));
    let address = backend.address.to_string();
    let output = daemon.command(&["status"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let screen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        screen.contains("pool app, round_robin, 1 of 1 backends available"),
        "{screen}"
    );
    assert!(screen.contains(&address), "{screen}");

    drop(backend);
    let down = poll(|| (daemon.command(&["status"]).status.code() == Some(3)).then_some(()));
    assert!(down.is_some(), "a check must find the backend down");
    let ready = daemon.command(&["status", "--ready"]);
    assert_eq!(ready.status.code(), Some(0), "the daemon itself is ready");
    let json = daemon.command(&["status", "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(document["pools"][0]["backends"][0]["state"], "down");
}

#[test]
fn term_finishes_what_is_in_flight_and_exits_with_0() {
    let gate = crate::harness::peer::Gate::new();
    let door = gate.clone();
    let backend = ScriptedPeer::start(move |mut connection| {
        if connection.request().is_some() {
            door.wait();
            connection.answer("finished");
        }
    });
    let mut daemon = TestDaemon::start(&config(&backend));
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    backend.wait_for_requests(1);
    daemon.signal(Signal::TERM);
    daemon.wait_notified("STOPPING=1");
    gate.open();
    assert_eq!(client.response().unwrap().text(), "finished");
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn the_demo_balances_over_its_backends_and_makes_them_fail_on_order() {
    let mut daemon = TestDaemon::start_as(
        "demo",
        "listeners:\n  web: {bind: \"@web\", pool: app}\n  raw: {bind: \"@raw\", protocol: tcp, pool: app}\npools:\n  app:\n    backends: [\"@one\", \"@two\"]\n",
    );
    let (one, two) = (daemon.address("@one"), daemon.address("@two"));
    let hello = |address| {
        let name = if address == one {
            "backend-1"
        } else {
            "backend-2"
        };
        format!("hello from {name} ({address})\n")
    };
    // Before its first check a backend gets nothing while another one is known to be up.
    daemon.wait_for_metric("balancer_backend_up", |up| up > 1.5);
    let mut seen: Vec<_> = (0..2)
        .map(|_| daemon.get("@web", "/").unwrap().text())
        .collect();
    seen.sort();
    assert_eq!(seen, [hello(one), hello(two)]);
    assert_eq!(daemon.get("@raw", "/").unwrap().status, 200);

    let order = |path: &str| {
        let mut client = HttpClient::connect(two);
        client.send(format!(
            "POST {path} HTTP/1.1\r\nHost: demo\r\nContent-Length: 0\r\n\r\n"
        ));
        client.response().unwrap()
    };
    assert_eq!(order("/garbage/backend-1").status, 200);
    for _ in 0..4 {
        assert_eq!(daemon.get("@web", "/").unwrap().text(), hello(two));
    }
    assert_eq!(order("/garbage").status, 200);
    let refused = daemon.get("@web", "/").unwrap();
    assert_eq!(refused.status, 502);
    assert_eq!(order("/ok").status, 200);
    assert_eq!(get(two, "/healthz").unwrap().text(), "ok\n");

    let hint = format!("curl http://{}/", daemon.address("@web"));
    let told = |lines: &[String]| lines.iter().any(|line| line.contains(&hint)).then_some(());
    assert!(
        daemon.stdout.wait_for(told).is_some(),
        "{:?}",
        daemon.stdout.all()
    );
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn status_shows_certificates_and_until_when_they_are_valid() {
    let backend = ScriptedPeer::answering("here");
    let fixtures = format!("{}/tests/fixtures", env!("CARGO_MANIFEST_DIR"));
    let tls = format!("tls: {{cert: {fixtures}/good.pem, key: {fixtures}/good.key}}, pool: app}}");
    let daemon = TestDaemon::start(&config(&backend).replace("pool: app}", &tls));
    let output = daemon.command(&["status"]);
    let screen = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, certificates) = screen.split_once("\ncertificates\n").unwrap();
    assert!(certificates.contains("good.pem"), "{screen}");
    assert!(certificates.contains("valid for"), "{screen}");
    let one = &daemon.status()["certificates"][0];
    assert_eq!(one["state"], "valid");
    assert!(
        one["not_after"].as_str().unwrap().starts_with("20"),
        "{one}"
    );
    assert!(one["expires_in_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn the_demo_says_how_its_admin_api_is_reached() {
    for bind in ["", "admin: {bind: \"unix:@dir/other.sock\"}\n"] {
        let text = format!(
            "{bind}listeners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app:\n    backends: [\"@one\"]\n"
        );
        let daemon = TestDaemon::start_as("demo", &text);
        let said = poll(|| {
            let line = |line: &String| line.contains("who is not, and why:");
            daemon.stdout.all().into_iter().find(line)
        });
        let said = said.unwrap();
        let (_, line) = said.split_once("why:").unwrap();
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        let output = crate::harness::daemon::balancer(&words);
        assert_eq!(output.status.code(), Some(0), "{said}: {output:?}");
    }
}
