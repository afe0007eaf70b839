//! Distribution over available backends: weights, load, limits, backups, and pools without an
//! available one.

use super::{backends, configuration, daemon, quoted, tallied, tally, wait_for_state};
use std::collections::HashMap;

use crate::harness::{
    answers::expect_error,
    client::HttpClient,
    daemon::TestDaemon,
    peer::{Gate, ScriptedPeer, refused},
    poll,
};

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
    // Its check gets no response for a long time; its traffic does.
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
pub(super) fn holding(name: &'static str, gate: &Gate) -> ScriptedPeer {
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
pub(super) fn hold(daemon: &TestDaemon, peers: &[ScriptedPeer], count: usize) -> Vec<HttpClient> {
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
