//! The policies that go by more than turns: by key, by response time, by order; and slow start.

use std::collections::HashMap;

use super::{backends, configuration, daemon, quoted};
use crate::harness::{
    client::HttpClient,
    daemon::TestDaemon,
    peer::{Gate, ScriptedPeer, refused},
    poll,
};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// The backend that answers each of these targets.
fn map(client: &mut HttpClient, targets: impl Iterator<Item = String>) -> HashMap<String, String> {
    let answer = |target: String| {
        let text = client.request("GET", &target).unwrap().text();
        (target, text)
    };
    targets.map(answer).collect()
}

fn users() -> impl Iterator<Item = String> {
    (0..60).map(|number| format!("/?user={number}&x=1"))
}

#[test]
fn requests_with_one_key_stay_on_one_backend_over_restarts_and_reordering() {
    let peers = NAMES.map(ScriptedPeer::answering);
    let pool = |entries: Vec<String>| {
        backends(entries) + "    health_check: none\n    policy: hash\n    hash: query:user\n"
    };
    let in_order: Vec<String> = peers.iter().map(quoted).collect();
    let reversed: Vec<String> = peers.iter().rev().map(quoted).collect();
    let first = map(&mut daemon(&pool(in_order)).client("@web"), users());
    assert!(
        NAMES
            .iter()
            .all(|name| first.values().any(|got| got == name)),
        "{first:?}"
    );
    let other = daemon(&pool(reversed));
    assert_eq!(map(&mut other.client("@web"), users()), first);
    // Without the key they take turns.
    let none = map(
        &mut other.client("@web"),
        (0..8).map(|number| format!("/{number}")),
    );
    let turns = NAMES.map(|name| none.values().filter(|got| *got == name).count());
    assert_eq!(turns, [2; 4]);
}

#[test]
fn only_the_keys_of_a_backend_that_is_out_move() {
    let peers = ["a", "b", "c"].map(ScriptedPeer::answering);
    let file = |last: String| {
        let entries = peers.iter().map(quoted).chain([last]);
        configuration(
            &(backends(entries)
                + "    policy: hash\n    hash: uri\n    health_check: {interval: 100ms}\n"),
        )
    };
    let dead = refused();
    let mut daemon = TestDaemon::start(&file(format!("\"{dead}\"")));
    super::wait_for_state(&daemon, "down", 1);
    let with_dead = map(&mut daemon.client("@web"), users());
    let last = ScriptedPeer::answering("d");
    assert_eq!(daemon.reload(&file(quoted(&last))).status, 200);
    super::wait_for_state(&daemon, "up", 4);
    let whole = map(&mut daemon.client("@web"), users());
    assert!(whole.values().any(|name| name == "d"));
    // The address of the dead one differs from that of `d`: about half of the keys of either may
    // have moved among the others.
    let moved = users()
        .filter(|key| whole[key] != "d" && whole[key] != with_dead[key])
        .count();
    assert!(moved <= 30, "{moved} of 60");
}

#[test]
fn one_client_stays_on_one_backend_by_its_address_over_tcp() {
    let peers = NAMES.map(|name| {
        ScriptedPeer::start(move |mut connection| {
            connection.send(name);
        })
    });
    let entries: Vec<String> = peers.iter().map(quoted).collect();
    let daemon = TestDaemon::start(&format!(
        "listeners: {{db: {{bind: \"@db\", protocol: tcp, pool: app}}}}\npools:\n  app:\n{}    \
         health_check: none\n    policy: hash\n",
        backends(entries)
    ));
    let session = || String::from_utf8(daemon.client("@db").rest().unwrap()).unwrap();
    let first = session();
    assert!((0..10).all(|_| session() == first));
}

#[test]
fn the_first_backend_gets_all_that_it_has_capacity_for() {
    let gate = Gate::new();
    let peers = ["a", "b", "c"].map(|name| super::balancing::holding(name, &gate));
    let pool = backends(peers.iter().map(quoted))
        + "    health_check: none\n    policy: first\n    limits: {connections_per_backend: 2}\n";
    let daemon = daemon(&pool);
    let mut client = daemon.client("@web");
    for _ in 0..10 {
        assert_eq!(client.request("GET", "/").unwrap().text(), "a");
    }
    let mut held = super::balancing::hold(&daemon, &peers, 5);
    let counts = peers.each_ref().map(|peer| {
        let all = peer.requests.all();
        all.iter()
            .filter(|request| request.target == "/held")
            .count()
    });
    assert_eq!(counts, [2, 2, 1]);
    gate.open();
    for client in &mut held {
        assert_eq!(client.response().unwrap().status, 200);
    }
}

#[test]
fn a_slow_backend_gets_few_requests_by_least_time() {
    let gate = Gate::new();
    let slow = super::balancing::holding("slow", &gate);
    let fast = ScriptedPeer::answering("fast");
    let pool =
        backends([&slow, &fast].map(quoted)) + "    health_check: none\n    policy: least_time\n";
    let daemon = daemon(&pool);
    // Until one waits at the slow one.
    let mut held = Vec::new();
    while slow.requests.all().is_empty() {
        let mut client = daemon.client("@web");
        client.send("GET /held HTTP/1.1\r\nHost: test\r\n\r\n");
        let reached = || slow.requests.all().len() + fast.requests.all().len();
        poll(|| (reached() > held.len()).then_some(())).unwrap();
        held.push(client);
    }
    let mut client = held.pop().unwrap();
    let began = balancer::base::clock::now();
    let mut other = daemon.client("@web");
    while began.elapsed().as_millis() < 300 {
        assert_eq!(other.request("GET", "/").unwrap().text(), "fast");
    }
    gate.open();
    assert_eq!(client.response().unwrap().text(), "slow");
    for _ in 0..50 {
        assert_eq!(client.request("GET", "/").unwrap().text(), "fast");
    }
}

#[test]
fn a_backend_that_a_reload_adds_ramps_up() {
    let peers = ["a", "b"].map(ScriptedPeer::answering);
    let file = |count: usize| {
        configuration(
            &(backends(peers.iter().take(count).map(quoted))
                + "    slow_start: 1h\n    health_check: none\n"),
        )
    };
    let mut daemon = TestDaemon::start(&file(1));
    assert_eq!(daemon.reload(&file(2)).status, 200);
    let mut client = daemon.client("@web");
    let answers = (0..110).map(|_| client.request("GET", "/").unwrap().text());
    let of_new = answers.filter(|name| name == "b").count();
    assert!((9..=11).contains(&of_new), "{of_new} of 110");
    let backends = &daemon.status()["pools"][0]["backends"];
    assert_eq!(backends[1]["slow_start_percent"], 10);
    assert_eq!(backends[0]["slow_start_percent"], serde_json::Value::Null);
    let text = String::from_utf8(daemon.command(&["status"]).stdout).unwrap();
    assert!(text.contains("slow start at 10 %"), "{text}");
    let ratio = |backend: &ScriptedPeer| {
        let name = backend.address;
        daemon.metric(&format!(
            "balancer_backend_slow_start_ratio{{backend=\"{name}\"}}"
        ))
    };
    assert!((ratio(&peers[1]) - 0.1).abs() < 0.001);
    assert!((ratio(&peers[0]) - 1.0).abs() < 0.001);
}
