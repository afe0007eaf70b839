//! What the service manager hears: sd_notify(3) and the watchdog.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken expectation is a failed test"
)]

mod support;

use std::time::Duration;

use balancer::base::clock;
use rustix::process::Signal;
use support::{
    daemon::{Daemon, command},
    peer::{Gate, Peer},
};

fn config(backend: &Peer) -> String {
    format!(
        "drain: {{timeout: 1h}}\nlisteners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app:\n    health_check: none\n    backends: [{}]\n",
        backend.address
    )
}

fn next(daemon: &Daemon) -> Vec<String> {
    let text = daemon.notified().unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn start_reload_and_end_are_told_in_this_order() {
    let backend = Peer::answering("here");
    let text = config(&backend);
    let mut daemon = Daemon::launch(&text);
    assert_eq!(next(&daemon), ["READY=1", "STATUS=serving generation 1"]);

    let changed = text.replace("1h", "2h");
    assert_eq!(daemon.reload(&changed).status, 200);
    let reloading = next(&daemon);
    assert_eq!(reloading[0], "RELOADING=1");
    let micros: u64 = reloading[1]
        .strip_prefix("MONOTONIC_USEC=")
        .unwrap()
        .parse()
        .unwrap();
    assert!(micros > 0);
    assert_eq!(next(&daemon), ["READY=1", "STATUS=serving generation 2"]);

    assert_eq!(daemon.reload("nonsense: true\n").status, 422);
    assert_eq!(next(&daemon)[0], "RELOADING=1");
    let failed = next(&daemon);
    assert_eq!(
        failed[0], "READY=1",
        "the reload is over, and the daemon serves"
    );
    assert!(failed[1].contains("generation 2; the last reload failed"));

    daemon.signal(Signal::TERM);
    assert_eq!(next(&daemon), ["STOPPING=1", "STATUS=draining"]);
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn the_watchdog_is_fed_at_half_its_time_also_during_a_drain() {
    let gate = Gate::new();
    let door = gate.clone();
    let backend = Peer::start(move |mut connection| {
        if connection.request().is_some() {
            door.wait();
            connection.answer("finished");
        }
    });
    let with_watchdog = || {
        let mut command = command();
        command.env("WATCHDOG_USEC", "1200000");
        command
    };
    let mut daemon = Daemon::start_by(with_watchdog, "run", &config(&backend));
    daemon.wait_notified("WATCHDOG=1");
    let began = clock::now();
    daemon.wait_notified("WATCHDOG=1");
    daemon.wait_notified("WATCHDOG=1");
    let two = began.elapsed();
    assert!(two > Duration::from_millis(600), "{two:?}: not in a rush");
    let mut busy = daemon.client("@web");
    busy.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    backend.wait_for_requests(1);
    daemon.signal(Signal::TERM);
    daemon.wait_notified("STOPPING=1");
    daemon.wait_notified("WATCHDOG=1");
    daemon.wait_notified("WATCHDOG=1");
    gate.open();
    assert_eq!(busy.response().unwrap().text(), "finished");
    assert_eq!(daemon.wait_exit().code(), Some(0));
}
