//! Selection of backends: active checks, passive ejection, backups, weights and load.

mod balancing;
mod checks;
mod down;
mod ejection;
mod h2;
mod policies;
mod protocols;
mod settings;

use std::{collections::HashMap, fmt::Display};

use crate::harness::{daemon::TestDaemon, peer::ScriptedPeer, poll};
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

/// Waits for `count` lines of transitions and gives them.
fn wait_for_transitions(daemon: &TestDaemon, count: usize) -> Vec<(String, String, String)> {
    poll(|| Some(transitions(daemon)).filter(|all| all.len() >= count))
        .unwrap_or_else(|| panic!("not {count} transitions: {:?}", transitions(daemon)))
}

/// Waits until `count` backends are in `state`.
fn wait_for_state(daemon: &TestDaemon, state: &str, count: usize) {
    let series = format!("balancer_pool_backends{{pool=\"app\",state=\"{state}\"}}");
    daemon.wait_for_metric(&series, |value| value as usize == count);
}

/// Sends `count` GETs one after the other; all must be answered with 200. Gives how often each body
/// came.
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
