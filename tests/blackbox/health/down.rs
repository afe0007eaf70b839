//! Sessions, tunnels and connections of a backend that goes down.

use crate::harness::{
    client::{HttpClient, ReadError},
    daemon::TestDaemon,
    peer::{Gate, ScriptedPeer},
    poll,
};

const UPGRADE_REQUEST: &str =
    "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
const SWITCHING_PROTOCOLS: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";

/// A tcp pool `db` and an http pool `app`, whose checks ask the port of `door`.
fn daemon(db: &ScriptedPeer, app: &ScriptedPeer, door: &ScriptedPeer, on_down: &str) -> TestDaemon {
    let check = format!(
        "health_check: {{port: {}, interval: 100ms, fall: 1, on_down: {on_down}}}",
        door.address.port()
    );
    let daemon = TestDaemon::start(&format!(
        "workers: 2\nlog: {{format: json}}\naccess_log: {{when: {{sample: 100%}}}}\nlisteners:\n  \
         db: {{bind: \"@db\", protocol: tcp, pool: db}}\n  web: {{bind: \"@web\", pool: app}}\npools:\n  \
         db: {{backends: [\"{}\"], {check}}}\n  \
         app: {{backends: [\"{}\"], keepalive: {{idle_timeout: 1h}}, {check}}}\n",
        db.address, app.address
    ));
    states(&daemon, "up");
    daemon
}

fn states(daemon: &TestDaemon, state: &str) {
    let series = format!("balancer_pool_backends{{state=\"{state}\"}}");
    daemon.wait_for_metric(&series, |value| value as usize == 2);
}

/// Sends back what it reads.
fn echo() -> ScriptedPeer {
    ScriptedPeer::start(|mut connection| {
        while let Some(part) = connection.some() {
            if !connection.send(part) {
                return;
            }
        }
    })
}

/// Takes connections that become something else, and answers `/slow` when the gate opens.
fn application(gate: &Gate) -> ScriptedPeer {
    let door = gate.clone();
    ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/chat" {
                connection.send(SWITCHING_PROTOCOLS);
                while let Some(part) = connection.some() {
                    connection.send(part);
                }
                return;
            }
            if request.target == "/slow" {
                door.wait();
            }
            if !connection.answer("well") {
                return;
            }
        }
    })
}

fn echoes(client: &mut HttpClient, text: &str) {
    client.send(text);
    assert_eq!(client.exactly(text.len()).unwrap(), text.as_bytes());
}

/// A session, a tunnel and an exchange under way.
fn begin(daemon: &TestDaemon) -> [HttpClient; 3] {
    let (mut session, mut tunnel) = (daemon.client("@db"), daemon.client("@web"));
    echoes(&mut session, "hello");
    tunnel.send(UPGRADE_REQUEST);
    assert_eq!(tunnel.head().unwrap().0, 101);
    echoes(&mut tunnel, "hello");
    let mut slow = daemon.client("@web");
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    [session, tunnel, slow]
}

fn is_reset(client: &mut HttpClient) {
    let end = client.rest();
    assert!(matches!(end, Err(ReadError::Reset(_))), "{end:?}");
}

#[test]
fn sessions_and_tunnels_of_a_backend_that_goes_down_are_closed_where_told_and_exchanges_finish() {
    let gate = Gate::new();
    let (db, app, door) = (echo(), application(&gate), ScriptedPeer::silent());
    let daemon = daemon(&db, &app, &door, "close");
    let [mut session, mut tunnel, mut slow] = begin(&daemon);
    app.wait_for_requests(2);
    // They are open, and no worker has anything to do for them.
    drop(door);
    is_reset(&mut session);
    is_reset(&mut tunnel);
    states(&daemon, "down");
    gate.open();
    assert_eq!(slow.response().unwrap().text(), "well");
    for pool in ["db", "app"] {
        let line =
            daemon.wait_for_access(|line| line["pool"] == pool && line["reason"] == "backend_down");
        assert_eq!(line["bytes_in"], 5, "{line}");
    }
    let closed = "balancer_tcp_sessions_total{pool=\"db\",result=\"backend_down\"}";
    assert_eq!(daemon.metric(closed) as usize, 1);
    assert_eq!(daemon.metric("balancer_backend_failures_total") as usize, 0);
    assert_eq!(daemon.metric("balancer_tcp_sessions_active") as usize, 0);
}

#[test]
fn sessions_and_tunnels_of_a_backend_that_goes_down_go_on_by_default() {
    let gate = Gate::new();
    let (db, app, door) = (echo(), application(&gate), ScriptedPeer::silent());
    let daemon = daemon(&db, &app, &door, "keep");
    let [mut session, mut tunnel, mut slow] = begin(&daemon);
    app.wait_for_requests(2);
    drop(door);
    states(&daemon, "down");
    echoes(&mut session, "still here");
    echoes(&mut tunnel, "still here");
    gate.open();
    assert_eq!(slow.response().unwrap().text(), "well");
}

#[test]
fn idle_connections_to_a_backend_that_is_down_are_closed() {
    let (db, app, door) = (echo(), application(&Gate::new()), ScriptedPeer::silent());
    let daemon = daemon(&db, &app, &door, "keep");
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "well");
    let idle = "balancer_backend_connections_idle{pool=\"app\"}";
    assert_eq!(daemon.metric(idle) as usize, 1);
    drop(door);
    states(&daemon, "down");
    daemon.wait_for_metric(idle, |value| value as usize == 0);
}

#[test]
fn a_session_on_a_backend_that_was_down_before_it_began_goes_on() {
    let (db, app, door) = (echo(), application(&Gate::new()), ScriptedPeer::silent());
    let check = format!(
        "health_check: {{port: {}, interval: 100ms, fall: 1, rise: 1, on_down: close}}, when_all_down: fail_open",
        door.address.port()
    );
    let address = door.address;
    drop((door, app));
    let daemon = TestDaemon::start(&format!(
        "listeners:\n  db: {{bind: \"@db\", protocol: tcp, pool: db}}\npools:\n  db: {{backends: [\"{}\"], {check}}}\n",
        db.address
    ));
    let count = |state: &str| {
        let series = format!("balancer_pool_backends{{pool=\"db\",state=\"{state}\"}}");
        daemon.wait_for_metric(&series, |value| value as usize == 1);
    };
    count("down");
    let mut session = daemon.client("@db");
    echoes(&mut session, "hello");
    // Many checks later.
    let failed = "balancer_backend_health_checks_total{result=\"failed\"}";
    let before = daemon.metric(failed);
    daemon.wait_for_metric(failed, |value| value >= before + 3.0);
    echoes(&mut session, "still here");
    // It comes back, and goes down with the session on it.
    let door = ScriptedPeer::start_at(address, |mut connection| drop(connection.some()));
    count("up");
    echoes(&mut session, "and here");
    drop(door);
    is_reset(&mut session);
}

#[test]
fn status_says_what_the_last_check_found_and_what_is_needed() {
    let statuses = std::sync::Mutex::new(vec![200]);
    let statuses = std::sync::Arc::new(statuses);
    let script = std::sync::Arc::clone(&statuses);
    // The last status is for ever.
    let peer = ScriptedPeer::start(move |mut connection| {
        while connection.request().is_some() {
            let status = {
                let mut all = script.lock().unwrap();
                if all.len() > 1 { all.remove(0) } else { all[0] }
            };
            connection.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    let daemon = TestDaemon::start(&format!(
        "listeners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app:\n    backends: [\"{}\"]\n    \
         health_check: {{path: /h, interval: 100ms, fall: 100, rise: 100}}\n",
        peer.address
    ));
    let backend = || daemon.status()["pools"][0]["backends"][0].clone();
    let seen = |wanted: &dyn Fn(&str) -> bool| {
        poll(|| {
            let backend = backend();
            let text = backend["check"].as_str().unwrap_or_default().to_owned();
            wanted(&text).then_some((text, backend))
        })
        .unwrap_or_else(|| panic!("{}", backend()))
    };
    let (_, up) = seen(&|text| text == "passed");
    assert!(up["checked_seconds"].as_f64().unwrap() < 5.0, "{up}");
    assert_eq!(up["last_check"]["fall"], 100);
    *statuses.lock().unwrap() = vec![500];
    let suffix = " of 100 failed: status 500, expected 200-399";
    let (text, backend) = seen(&|text| text.ends_with(suffix));
    let bad = backend["last_check"]["bad_in_a_row"].as_u64().unwrap();
    assert_eq!(text, format!("{bad}{suffix}"));
    assert_eq!(backend["state"], "up");
    let screen = daemon.command(&["status"]);
    let screen = String::from_utf8(screen.stdout).unwrap();
    assert!(screen.contains(suffix), "{screen}");
    assert!(!screen.contains("the check passed"), "{screen}");
}
