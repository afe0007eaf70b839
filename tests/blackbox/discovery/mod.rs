//! Members that change while the daemon runs: names, files and etcd.

#[cfg(feature = "etcd")]
mod etcd;
mod file;
mod names;

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::Value;

use crate::harness::{daemon::TestDaemon, peer::ScriptedPeer, poll};

/// A backend on its own address of 127.0.0.0/8, all on one port.
fn peers_on_one_port<const N: usize>(last: [u8; N]) -> (u16, [ScriptedPeer; N]) {
    'ports: for _ in 0..100 {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = probe.local_addr().unwrap().port();
        let mut listeners = Vec::new();
        for number in last {
            match std::net::TcpListener::bind((loopback(number), port)) {
                Ok(listener) => listeners.push(listener),
                Err(_) => continue 'ports,
            }
        }
        let mut listeners = listeners.into_iter().zip(last);
        return (
            port,
            [(); N].map(|()| {
                let (listener, number) = listeners.next().unwrap();
                let body = number.to_string();
                ScriptedPeer::start_on(listener, move |mut connection| {
                    while connection.request().is_some() && connection.answer(&body) {}
                })
            }),
        );
    }
    panic!("no port is free on all addresses");
}

fn loopback(last: u8) -> IpAddr {
    [127, 0, 9, last].into()
}

/// Names of the members of pool `app`, with their states.
fn members(daemon: &TestDaemon) -> Vec<(String, String)> {
    let status = daemon.status();
    let pool = status["pools"].as_array().unwrap().iter();
    let mut pool = pool.filter(|pool| pool["name"] == "app");
    let backends = pool.next().unwrap()["backends"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pair = |one: &Value| (text(&one["name"]), text(&one["state"]));
    backends.iter().map(pair).collect()
}

/// Waits until the members of pool `app` are these, all up.
fn wait_for_members(daemon: &TestDaemon, names: &[&str]) {
    let reached = |found: &Vec<(String, String)>| {
        found.len() == names.len()
            && found
                .iter()
                .zip(names)
                .all(|((name, state), wanted)| name == wanted && state == "up")
    };
    let found = poll(|| Some(members(daemon)).filter(reached));
    assert!(
        found.is_some(),
        "wanted {names:?}, found {:?}",
        members(daemon)
    );
}

/// Bodies of `count` responses.
fn bodies(daemon: &TestDaemon, count: usize) -> BTreeSet<String> {
    let mut client = daemon.client("@web");
    let one = |_| {
        let response = client.request("GET", "/").unwrap();
        assert_eq!(response.status, 200, "{response:?}");
        response.text()
    };
    (0..count).map(one).collect()
}

/// The source of this kind in the status.
fn source(daemon: &TestDaemon, kind: &str) -> Value {
    let status = daemon.status();
    let sources = status["sources"].as_array().unwrap();
    let found = sources.iter().find(|source| source["source"] == kind);
    found
        .unwrap_or_else(|| panic!("no {kind}: {sources:?}"))
        .clone()
}

/// Waits until the source of this kind is failing, and returns the cause.
fn wait_for_failure(daemon: &TestDaemon, kind: &str) -> String {
    let error = || source(daemon, kind)["error"].as_str().map(str::to_owned);
    poll(error).unwrap_or_else(|| panic!("never failed: {}", source(daemon, kind)))
}
