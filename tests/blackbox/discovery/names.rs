//! Names of backends: addresses and services of the DNS.

use super::{
    bodies, loopback, members, peers_on_one_port, source, wait_for_failure, wait_for_members,
};
use crate::harness::{
    daemon::TestDaemon,
    dns::DnsServer,
    peer::{Gate, ScriptedPeer},
    poll,
};

/// One pool `app` with these backends, and names resolved by `dns`.
fn configuration(dns: &DnsServer, backends: &str, more: &str) -> String {
    format!(
        "workers: 1\nresolvers: [\"{}\"]\nlisteners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app:\n    backends: {backends}\n    health_check: {{interval: 100ms, rise: 1}}\n{more}",
        dns.address
    )
}

#[test]
fn each_address_of_a_name_is_a_backend_and_they_come_and_go_with_the_answers() {
    let dns = DnsServer::start();
    let (port, _peers) = peers_on_one_port([1, 2, 3]);
    dns.set("app.test", &[loopback(1), loopback(2)], 1);
    let name = |last: u8| format!("app.test:{port}/127.0.9.{last}");
    let daemon = TestDaemon::start(&configuration(&dns, &format!("[\"app.test:{port}\"]"), ""));
    wait_for_members(&daemon, &[&name(1), &name(2)]);
    assert_eq!(bodies(&daemon, 4), ["1", "2"].map(str::to_owned).into());
    let view = source(&daemon, "dns");
    assert_eq!(view["name"], "app.test");
    assert_eq!(
        view["answer"],
        serde_json::json!(["127.0.9.1", "127.0.9.2"])
    );
    assert!(
        view["expires_in_seconds"].as_f64().unwrap() <= 1.0,
        "{view}"
    );
    // A new answer, and the connections to the address that left are closed.
    let kept = format!(
        "balancer_backend_connections_idle{{backend=\"{}\"}}",
        name(1)
    );
    daemon.wait_for_metric(&kept, |value| value >= 1.0);
    dns.set("app.test", &[loopback(3), loopback(2)], 1);
    wait_for_members(&daemon, &[&name(2), &name(3)]);
    assert_eq!(bodies(&daemon, 4), ["2", "3"].map(str::to_owned).into());
    let gone = format!("backend=\"{}\"", name(1));
    assert!(!daemon.scrape().contains(&gone), "its series are gone");
    // Failures keep what is known, and are told.
    for (number, fail) in [DnsServer::fail, DnsServer::remove, DnsServer::silence]
        .into_iter()
        .enumerate()
    {
        fail(&dns, "app.test");
        let cause = wait_for_failure(&daemon, "dns");
        let wanted = ["DNS server says", "NXDOMAIN", "in time"][number];
        assert!(cause.contains(wanted), "{cause}");
        assert_eq!(members(&daemon).len(), 2);
        assert_eq!(bodies(&daemon, 4), ["2", "3"].map(str::to_owned).into());
        let failing = "balancer_discovery_failing{source=\"dns\",name=\"app.test\"}";
        daemon.wait_for_metric(failing, |value| value > 0.0);
        dns.set("app.test", &[loopback(3), loopback(2)], 1);
        daemon.wait_for_metric(failing, |value| value == 0.0);
    }
    let log = |wanted: &str| daemon.wait_for_log(|line| line.contains(wanted));
    log("name does not resolve");
    log("name resolves again");
    let line = log("members changed");
    assert!(line.contains("app"), "{line}");
}

#[test]
fn an_address_that_leaves_gets_no_new_work_and_finishes_what_it_has() {
    let dns = DnsServer::start();
    let gate = Gate::new();
    let slow = ScriptedPeer::slow(&gate, "done");
    let port = slow.address.port();
    dns.set("app.test", &[slow.address.ip()], 1);
    let daemon = TestDaemon::start(&configuration(&dns, &format!("[\"app.test:{port}\"]"), ""));
    let name = format!("app.test:{port}/{}", slow.address.ip());
    wait_for_members(&daemon, &[&name]);
    let mut client = daemon.client("@web");
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    slow.wait_for_requests(1);
    dns.set("app.test", &[loopback(7)], 1);
    let left = || Some(members(&daemon)).filter(|found| found.iter().all(|one| one.0 != name));
    assert!(poll(left).is_some());
    gate.open();
    let response = client.response().unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "done"));
    let refused = daemon.get("@web", "/").unwrap();
    assert_eq!(refused.status, 502);
    assert_eq!(slow.wait_for_requests(1).len(), 1);
}

#[test]
fn a_name_that_does_not_resolve_yet_holds_up_nothing_and_says_why() {
    let dns = DnsServer::start();
    dns.silence("slow.test");
    let (port, _peers) = peers_on_one_port([1]);
    let other = format!("  other: {{backends: [\"127.0.9.1:{port}\"]}}\n");
    let backends = format!("[\"slow.test:{port}\"]");
    let mut text = configuration(&dns, &backends, &other);
    text = text.replace(
        "listeners:\n",
        "listeners:\n  more: {bind: \"@more\", pool: other}\n",
    );
    let mut daemon = TestDaemon::start(&text);
    assert_eq!(daemon.get("@more", "/").unwrap().status, 200);
    let pending = members(&daemon);
    assert_eq!(pending[0].0, format!("slow.test:{port}"));
    let response = daemon.get("@web", "/").unwrap();
    assert_eq!(response.status, 502);
    assert!(
        response.text().contains("could not be resolved"),
        "{response:?}"
    );
    // A reload does not wait either, and is enough to look again.
    let reload = daemon.reload(&text.replace("workers: 1\n", "workers: 1\nlog: {level: debug}\n"));
    assert_eq!(reload.status, 200, "{reload:?}");
    dns.set("slow.test", &[loopback(1)], 60);
    wait_for_members(&daemon, &[&format!("slow.test:{port}/127.0.9.1")]);
    // A reload keeps the members, and their states.
    let before = daemon.status()["pools"].clone();
    let reload = daemon.reload(&text);
    assert_eq!(reload.status, 200, "{reload:?}");
    let after = daemon.status()["pools"].clone();
    let since = |pools: &serde_json::Value| pools[0]["backends"][0]["since"].clone();
    assert_eq!(since(&before), since(&after));
    assert_eq!(members(&daemon)[0].1, "up");
}

#[test]
fn a_name_with_resolve_one_is_one_backend() {
    let dns = DnsServer::start();
    let (port, _peers) = peers_on_one_port([1, 2]);
    dns.set("app.test", &[loopback(1), loopback(5)], 1);
    let backends = format!("[{{address: \"app.test:{port}\", resolve: one}}]");
    let daemon = TestDaemon::start(&configuration(&dns, &backends, ""));
    let name = format!("app.test:{port}");
    wait_for_members(&daemon, &[&name]);
    assert_eq!(bodies(&daemon, 4), ["1".to_owned()].into());
    dns.set("app.test", &[loopback(2), loopback(5)], 1);
    assert!(poll(|| Some(bodies(&daemon, 1)).filter(|found| found.contains("2"))).is_some());
    wait_for_members(&daemon, &[&name]);
}

#[test]
fn a_service_gives_ports_weights_and_tiers() {
    let dns = DnsServer::start();
    let first = ScriptedPeer::answering("first");
    let light = ScriptedPeer::answering("light");
    let backup = ScriptedPeer::answering("backup");
    let port = |peer: &ScriptedPeer| peer.address.port();
    for host in ["a.test", "b.test"] {
        dns.set(host, &["127.0.0.1".parse().unwrap()], 60);
    }
    let records = [
        (1, 300, port(&first), "a.test."),
        (1, 100, port(&light), "b.test."),
        (5, 0, port(&backup), "a.test."),
    ];
    dns.set_service("_http._tcp.app.test", &records, 1);
    let daemon = TestDaemon::start(&configuration(&dns, "[{srv: _http._tcp.app.test}]", ""));
    let name = |host: &str, peer: &ScriptedPeer| format!("{host}:{}/127.0.0.1", port(peer));
    let names = [
        name("a.test", &first),
        name("b.test", &light),
        name("a.test", &backup),
    ];
    poll(|| (members(&daemon).len() == 3).then_some(())).unwrap();
    let status = daemon.status();
    let backends = status["pools"][0]["backends"].as_array().unwrap();
    let row = |wanted: &str| {
        let found = backends.iter().find(|one| one["name"] == wanted).unwrap();
        (
            found["weight"].as_u64().unwrap(),
            found["tier"].as_u64().unwrap(),
        )
    };
    assert_eq!(row(&names[0]), (256, 0));
    assert_eq!(row(&names[1]), (85, 0));
    assert_eq!(row(&names[2]), (1, 1));
    let up = "balancer_pool_backends{pool=\"app\",state=\"up\"}";
    daemon.wait_for_metric(up, |value| value == 3.0);
    assert_eq!(
        bodies(&daemon, 8),
        ["first", "light"].map(str::to_owned).into()
    );
    // The only host of the service, and with another weight.
    dns.set_service("_http._tcp.app.test", &records[2..], 1);
    wait_for_members(&daemon, &[&names[2]]);
    assert_eq!(bodies(&daemon, 2), ["backup".to_owned()].into());
}

#[test]
fn many_addresses_come_by_tcp_and_are_limited() {
    let dns = DnsServer::start();
    let many: Vec<_> = (0..1500_u16)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            [127, 3, high, low].into()
        })
        .collect();
    dns.set("app.test", &many, 60);
    let text = configuration(&dns, "[\"app.test:9\"]", "").replace(
        "health_check: {interval: 100ms, rise: 1}",
        "health_check: none",
    );
    let daemon = TestDaemon::start(&text);
    let count = poll(|| Some(members(&daemon).len()).filter(|count| *count > 1));
    assert_eq!(count, Some(1024));
}

#[test]
fn a_probe_asks_each_address_of_a_name() {
    let dns = DnsServer::start();
    let (port, _peers) = peers_on_one_port([1]);
    dns.set("app.test", &[loopback(1), loopback(2)], 60);
    let daemon = TestDaemon::start(&configuration(&dns, &format!("[\"app.test:{port}\"]"), ""));
    let file = daemon.directory().join("balancer.yaml");
    let probe = daemon.command(&["check", "--probe", "-c", file.to_str().unwrap()]);
    let screen = String::from_utf8_lossy(&probe.stdout).into_owned();
    for last in [1, 2] {
        let name = format!("app.test:{port}/127.0.9.{last}");
        assert!(screen.contains(&name), "{screen}");
    }
}
