//! Members from a watched file.

use std::{fs, path::Path};

use super::{bodies, members, source, wait_for_failure, wait_for_members};
use crate::harness::{daemon::TestDaemon, peer::ScriptedPeer, poll};

const CONFIGURATION: &str = "workers: 1
listeners:
  web: {bind: \"@web\", pool: app}
pools:
  app:
    discover: {file: members.yaml}
    health_check: {interval: 100ms, rise: 1}
";

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

#[test]
fn members_follow_the_file_and_a_broken_one_keeps_them() {
    let one = ScriptedPeer::answering("one");
    let two = ScriptedPeer::answering("two");
    let mut daemon = TestDaemon::start(CONFIGURATION);
    // Missing at the start: a warning, and an empty pool.
    daemon.wait_for_log(|line| line.contains("members.yaml") && line.contains("cannot be used"));
    assert_eq!(members(&daemon), []);
    let response = daemon.get("@web", "/").unwrap();
    assert_eq!(response.status, 502);
    let status = daemon.command(&["status"]);
    let screen = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(screen.contains("FAILING"), "{screen}");
    assert_eq!(status.status.code(), Some(3), "a pool without backends");

    let path = daemon.directory().join("members.yaml");
    replace(&path, &format!("- {}\n", one.address));
    let name = one.address.to_string();
    wait_for_members(&daemon, &[&name]);
    assert_eq!(bodies(&daemon, 2), ["one".to_owned()].into());
    let since = || daemon.status()["pools"][0]["backends"][0]["since"].clone();
    let before = since();
    replace(
        &path,
        &format!(
            r#"[{{"address": "{}", "weight": 3}}, {{"address": "{}", "name": "two"}}]"#,
            one.address, two.address
        ),
    );
    wait_for_members(&daemon, &[&name, "two"]);
    assert_eq!(bodies(&daemon, 8), ["one", "two"].map(str::to_owned).into());
    assert_eq!(since(), before, "a member that stays keeps its state");
    assert_eq!(daemon.status()["pools"][0]["backends"][0]["weight"], 3);

    replace(&path, "- 127.0.0.1\n");
    let cause = wait_for_failure(&daemon, "file");
    assert!(
        cause.contains("line 1") && cause.contains("port is missing"),
        "{cause}"
    );
    assert_eq!(source(&daemon, "file")["members"], 2);
    daemon.wait_for_metric(
        "balancer_discovery_failing{source=\"file\",name=\"app\"}",
        |value| value == 1.0,
    );
    assert_eq!(bodies(&daemon, 8), ["one", "two"].map(str::to_owned).into());
    // A reload keeps members that only the daemon knows.
    let reload =
        daemon.reload(&CONFIGURATION.replace("workers: 1\n", "workers: 1\nlog: {level: debug}\n"));
    assert_eq!(reload.status, 200, "{reload:?}");
    wait_for_members(&daemon, &[&name, "two"]);

    fs::remove_file(&path).unwrap();
    poll(|| {
        wait_for_failure(&daemon, "file")
            .contains("No such file")
            .then_some(())
    })
    .unwrap();
    assert_eq!(members(&daemon).len(), 2);
    replace(&path, &format!("[\"{}\"]", two.address));
    wait_for_members(&daemon, &[&two.address.to_string()]);
    assert_eq!(source(&daemon, "file")["error"], serde_json::Value::Null);
    assert_eq!(bodies(&daemon, 2), ["two".to_owned()].into());
}

#[test]
fn members_of_the_file_stand_beside_backends() {
    let one = ScriptedPeer::answering("one");
    let two = ScriptedPeer::answering("two");
    let mut daemon = TestDaemon::start(CONFIGURATION);
    fs::write(
        daemon.directory().join("members.yaml"),
        format!("[\"{}\"]", two.address),
    )
    .unwrap();
    let both = CONFIGURATION.replace(
        "    discover",
        &format!("    backends: [\"{}\"]\n    discover", one.address),
    );
    assert_eq!(daemon.reload(&both).status, 200);
    wait_for_members(
        &daemon,
        &[&one.address.to_string(), &two.address.to_string()],
    );
    assert_eq!(bodies(&daemon, 4), ["one", "two"].map(str::to_owned).into());
    // Without the source its members leave.
    let without = both.replace("    discover: {file: members.yaml}\n", "");
    assert_eq!(daemon.reload(&without).status, 200);
    wait_for_members(&daemon, &[&one.address.to_string()]);
    assert_eq!(daemon.status()["sources"].as_array().unwrap().len(), 0);
}
