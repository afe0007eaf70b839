//! Reload: all or nothing, and state that may live on does.

mod binds;

mod under_way;

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
};

use crate::harness::{
    client::{HttpClient, get},
    daemon::TestDaemon,
    peer::{Gate, Recorder, ScriptedPeer, refused},
    poll,
};
use rustix::process::Signal;

fn one_pool(backends: &str) -> String {
    format!(
        "listeners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app:\n    health_check: none\n    backends: [{backends}]\n"
    )
}

fn weighted(address: SocketAddr, weight: u32) -> String {
    format!("{{address: {address}, weight: {weight}}}")
}

fn generation(daemon: &TestDaemon) -> u64 {
    daemon.metric("balancer_config_generation") as u64
}

/// Reloads with the command: its exit code and everything it printed.
fn reload(daemon: &mut TestDaemon, config: &str) -> (Option<i32>, String) {
    daemon.write_config(config);
    let output = daemon.command(&["reload"]);
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.code(), said)
}

fn must_reload(daemon: &mut TestDaemon, config: &str) -> String {
    let (code, said) = reload(daemon, config);
    assert_eq!(code, Some(0), "{said}");
    said
}

/// A backend that answers `body` and notes the end of each of its connections.
fn closing(body: &'static str) -> (ScriptedPeer, Recorder<()>) {
    let closed = Recorder::default();
    let note = closed.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        while connection.request().is_some() && connection.answer(body) {}
        note.push(());
    });
    (peer, closed)
}

#[test]
fn a_taken_port_refuses_the_whole_reload_and_leaves_nothing_behind() {
    let (old, new) = (
        ScriptedPeer::answering("old"),
        ScriptedPeer::answering("new"),
    );
    let mut daemon = TestDaemon::start(&one_pool(&old.address.to_string()));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let more = format!(
        "listeners:\n  first: {{bind: \"unix:@dir/first.sock\", pool: app}}\n  second: {{bind: \"127.0.0.1:{port}\", pool: app}}\n"
    );
    let config = one_pool(&new.address.to_string()).replace("listeners:\n", &more);
    let (code, said) = reload(&mut daemon, &config);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("port {port} is taken")), "{said}");
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "old");
    assert_eq!(generation(&daemon), 1);
    assert!(daemon.metric("balancer_config_last_reload_successful") < 0.5);
    assert!(!daemon.directory().join("first.sock").exists());

    // The same file is taken when the port is free.
    drop(taken);
    must_reload(&mut daemon, &config);
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "new");
    assert!(daemon.metric("balancer_config_last_reload_successful") > 0.5);
    assert!(daemon.directory().join("first.sock").exists());
}

#[test]
fn a_file_that_cannot_be_read_changes_nothing() {
    let backend = ScriptedPeer::answering("still here");
    let daemon = TestDaemon::start(&one_pool(&backend.address.to_string()));
    fs::remove_file(daemon.directory().join("balancer.yaml")).unwrap();
    let output = daemon.command(&["reload"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cannot read the file"), "{said}");
    daemon.wait_for_log(|line| line.contains("cannot read the file"));
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "still here");
    assert!(daemon.metric("balancer_config_reloads_total{result=\"failure\"}") > 0.5);
}

#[test]
fn a_connection_and_its_backend_connection_live_on_over_many_reloads() {
    let backend = ScriptedPeer::answering("here");
    let mut daemon = TestDaemon::start(&one_pool(&weighted(backend.address, 1)));
    let mut client = daemon.client("@web");
    for round in 2..22 {
        assert_eq!(client.request("GET", "/").unwrap().text(), "here");
        let said = must_reload(&mut daemon, &one_pool(&weighted(backend.address, round)));
        assert!(
            said.contains(&format!("weight {} → {round}", round - 1)),
            "{said}"
        );
    }
    assert_eq!(client.request("GET", "/").unwrap().text(), "here");
    assert_eq!(generation(&daemon), 21);
    assert_eq!(backend.connections(), 1, "the idle connection was kept");
    let requests = "balancer_http_requests_total{pool=\"app\"}";
    assert_eq!(daemon.metric(requests) as u64, 21, "counters live on");
}

#[test]
fn connections_that_wait_in_the_queue_during_a_reload_are_answered() {
    let backend = ScriptedPeer::answering("here");
    let mut daemon = TestDaemon::start(&one_pool(&weighted(backend.address, 1)));
    daemon.write_config(&one_pool(&weighted(backend.address, 2)));
    daemon.signal(Signal::STOP);
    let mut clients: Vec<_> = (0..50).map(|_| daemon.client("@web")).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    daemon.signal(Signal::HUP);
    daemon.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.response().unwrap().text(), "here");
    }
    daemon.wait_for_metric("balancer_config_generation", |now| now > 1.5);
}

#[test]
fn a_removed_backend_finishes_what_it_has_and_its_idle_connections_close() {
    let gate = Gate::new();
    let door = gate.clone();
    let ended = Recorder::default();
    let note = ended.clone();
    let old = ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/slow" {
                door.wait();
            }
            connection.answer("old");
        }
        note.push(());
    });
    let new = ScriptedPeer::answering("new");
    let mut daemon = TestDaemon::start(&one_pool(&old.address.to_string()));
    let mut slow = daemon.client("@web");
    slow.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    old.wait_for_requests(1);
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "old");
    must_reload(&mut daemon, &one_pool(&new.address.to_string()));
    for _ in 0..4 {
        assert_eq!(daemon.get("@web", "/").unwrap().text(), "new");
    }
    ended
        .wait_for(|ends: &[()]| (!ends.is_empty()).then_some(()))
        .unwrap();
    assert_eq!(ended.all().len(), 1, "the one that is idle, only");
    gate.open();
    assert_eq!(slow.response().unwrap().text(), "old");
    assert_eq!(slow.request("GET", "/").unwrap().text(), "new");
    ended
        .wait_for(|ends| (ends.len() == 2).then_some(()))
        .unwrap();
    let gone = format!("backend=\"{}\"", old.address);
    assert!(!daemon.scrape().contains(&gone), "its series are gone");
}

#[test]
fn listeners_come_and_go_and_their_idle_connections_with_them() {
    let backend = ScriptedPeer::answering("here");
    let small = one_pool(&backend.address.to_string());
    let large = small.replace(
        "listeners:\n",
        "listeners:\n  more: {bind: [\"@more\", \"unix:@dir/more.sock\"], pool: app}\n",
    );
    let mut daemon = TestDaemon::start(&small);
    let said = must_reload(&mut daemon, &large);
    assert!(said.contains("listener more added"), "{said}");
    let path = daemon.directory().join("more.sock");
    let mut tcp = daemon.client("@more");
    let mut unix = HttpClient::connect_unix(&path);
    assert_eq!(tcp.request("GET", "/").unwrap().text(), "here");
    assert_eq!(unix.request("GET", "/").unwrap().text(), "here");

    let said = must_reload(&mut daemon, &small);
    assert!(said.contains("listener more removed"), "{said}");
    assert_eq!(tcp.rest().unwrap(), b"", "closed without a word");
    assert_eq!(unix.rest().unwrap(), b"");
    let closed = poll(|| TcpStream::connect(daemon.address("@more")).err());
    assert_eq!(
        closed.map(|error| error.kind()),
        Some(std::io::ErrorKind::ConnectionRefused)
    );
    assert!(!path.exists());
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "here");
}

#[test]
fn a_listener_that_changes_its_protocol_keeps_its_socket_and_closes_what_is_idle() {
    let backend = ScriptedPeer::answering("here");
    let http = one_pool(&backend.address.to_string());
    let tcp = http.replace("pool: app}", "protocol: tcp, pool: app}");
    let mut daemon = TestDaemon::start(&http);
    let mut client = daemon.client("@web");
    assert!(
        client
            .request("GET", "/")
            .unwrap()
            .header("x-request-id")
            .is_some()
    );
    must_reload(&mut daemon, &tcp);
    assert_eq!(client.rest().unwrap(), b"");
    let mut session = daemon.client("@web");
    let plain = session.request("GET", "/").unwrap();
    assert_eq!(plain.header("x-request-id"), None, "bytes as they are");
    must_reload(&mut daemon, &http);
    // A session that is under way goes on.
    assert_eq!(session.request("GET", "/").unwrap().text(), "here");
    assert!(
        daemon
            .get("@web", "/")
            .unwrap()
            .header("x-request-id")
            .is_some()
    );
}

#[test]
fn a_listener_may_widen_and_narrow_its_address_on_the_same_port() {
    let backend = ScriptedPeer::answering("here");
    let narrow = one_pool(&backend.address.to_string());
    let mut daemon = TestDaemon::start(&narrow);
    let v4 = daemon.address("@web");
    let v6: SocketAddr = format!("[::1]:{}", v4.port()).parse().unwrap();
    must_reload(
        &mut daemon,
        &narrow.replace("@web", &format!(":{}", v4.port())),
    );
    for address in [v4, v6] {
        assert_eq!(get(address, "/").unwrap().text(), "here");
    }
    must_reload(&mut daemon, &narrow);
    assert!(poll(|| TcpStream::connect(v6).err()).is_some());
    assert_eq!(get(v4, "/").unwrap().text(), "here");
}

#[test]
fn connections_that_wait_at_an_address_that_its_listener_leaves_are_answered() {
    let backend = ScriptedPeer::answering("here");
    let before = one_pool(&backend.address.to_string());
    let mut daemon = TestDaemon::start(&before);
    daemon.write_config(&before.replace("@web", "@moved"));
    daemon.signal(Signal::STOP);
    let mut clients: Vec<_> = (0..30).map(|_| daemon.client("@web")).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    daemon.signal(Signal::HUP);
    daemon.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.response().unwrap().text(), "here");
    }
    daemon.wait_for_metric("balancer_config_generation", |now| now > 1.5);
    assert_eq!(daemon.get("@moved", "/").unwrap().text(), "here");
    assert!(poll(|| TcpStream::connect(daemon.address("@web")).err()).is_some());
}

#[test]
fn pools_and_routes_come_and_go() {
    let (app, other) = (
        ScriptedPeer::answering("app"),
        ScriptedPeer::answering("other"),
    );
    let small = one_pool(&app.address.to_string());
    let large = format!(
        "routes:\n  - {{path: /other, pool: other}}\n{small}  other:\n    health_check: none\n    backends: [{}]\n",
        other.address
    );
    let mut daemon = TestDaemon::start(&small);
    must_reload(&mut daemon, &large);
    assert_eq!(daemon.get("@web", "/other").unwrap().text(), "other");
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "app");
    assert!(daemon.scrape().contains("pool=\"other\""));
    must_reload(&mut daemon, &small);
    assert_eq!(daemon.get("@web", "/other").unwrap().text(), "app");
    assert!(!daemon.scrape().contains("pool=\"other\""));
}

#[test]
fn a_verdict_and_an_ejection_live_on_when_a_weight_changes() {
    let resetting = ScriptedPeer::resetting_after("");
    let (dead, well) = (refused(), ScriptedPeer::answering("well"));
    let config = |weight| {
        format!(
            "listeners:\n  web: {{bind: \"@web\", pool: checked}}\n  other: {{bind: \"@other\", pool: passive}}\npools:\n  checked:\n    health_check: {{interval: 1h, fall: 1}}\n    backends: [{}, {{address: {dead}, weight: {weight}}}]\n  passive:\n    health_check: none\n    ejection: {{failures: 1, eject_for: 1h, max_eject_for: 1h}}\n    backends: [{}, {{address: {}, weight: {weight}}}]\n",
            well.address, well.address, resetting.address
        )
    };
    let mut daemon = TestDaemon::start(&config(1));
    daemon.wait_for_metric("balancer_backend_state{state=\"down\"}", |down| down > 0.5);
    poll(|| {
        daemon.get("@other", "/").unwrap();
        (daemon.metric("balancer_backend_ejections_total") > 0.5).then_some(())
    })
    .unwrap();
    let state = |daemon: &TestDaemon, address: SocketAddr| {
        let page = daemon.scrape();
        let label = format!("backend=\"{address}\"");
        let kept = |line: &&str| {
            line.contains(&label)
                && (line.contains("last_state_change")
                    || line.contains("backend_state{")
                    || line.contains("_failures_total")
                    || line.contains("_ejections_total")
                    || line.contains("_health_checks_total"))
        };
        let lines: Vec<_> = page.lines().filter(kept).map(str::to_owned).collect();
        assert!(!lines.is_empty());
        lines
    };
    let before = (state(&daemon, dead), state(&daemon, resetting.address));
    for weight in 2..5 {
        must_reload(&mut daemon, &config(weight));
        assert_eq!(daemon.get("@web", "/").unwrap().text(), "well");
        assert_eq!(daemon.get("@other", "/").unwrap().text(), "well");
    }
    let after = (state(&daemon, dead), state(&daemon, resetting.address));
    assert_eq!(before, after);
}

#[test]
fn the_count_in_flight_lives_on() {
    let gate = Gate::new();
    let door = gate.clone();
    let backend = ScriptedPeer::start(move |mut connection| {
        if connection.request().is_some() {
            door.wait();
            connection.answer("done");
        }
    });
    let limited = |weight| {
        one_pool(&format!(
            "{{address: {}, weight: {weight}, max_connections: 1}}",
            backend.address
        )) + "    limits: {queue: 0}\n"
    };
    let mut daemon = TestDaemon::start(&limited(1));
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    backend.wait_for_requests(1);
    must_reload(&mut daemon, &limited(2));
    // The new generation counts the exchange of the old one: there is no place for another.
    assert!(daemon.get("@web", "/").unwrap().status >= 500);
    gate.open();
    assert_eq!(client.response().unwrap().text(), "done");
    // The place is given back a moment after the response.
    let again = poll(|| {
        daemon
            .get("@web", "/")
            .ok()
            .filter(|one| one.text() == "done")
    });
    assert!(again.is_some());
}

#[test]
fn a_changed_check_asks_at_once_and_keeps_the_verdict_meanwhile() {
    let gate = Gate::new();
    let door = gate.clone();
    let backend = ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/second" {
                door.wait();
            }
            connection.answer("fine");
        }
    });
    let config = |path: &str| {
        one_pool(&backend.address.to_string()).replace(
            "health_check: none",
            &format!("health_check: {{path: {path}, interval: 1h, timeout: 30s}}"),
        )
    };
    let mut daemon = TestDaemon::start(&config("/first"));
    let up = "balancer_backend_state{state=\"up\"}";
    daemon.wait_for_metric(up, |up| up > 0.5);
    must_reload(&mut daemon, &config("/second"));
    let asked = backend
        .requests
        .wait_for(|all| all.iter().find(|one| one.target == "/second").cloned());
    assert!(asked.is_some(), "an hour is not waited for");
    assert!(daemon.metric(up) > 0.5);
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "fine");
    gate.open();
    daemon.wait_for_metric("balancer_backend_health_checks_total", |count| count > 1.5);
}

#[test]
fn reloads_that_wait_collapse_into_one() {
    let backend = ScriptedPeer::answering("here");
    let daemon = TestDaemon::start(&one_pool(&backend.address.to_string()));
    daemon.signal(Signal::STOP);
    let mut clients: Vec<_> = (0..30)
        .map(|_| HttpClient::connect_unix(&daemon.admin_socket()))
        .collect();
    for client in &mut clients {
        client.send("POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    }
    daemon.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.response().unwrap().status, 200);
    }
    // The first, and those that came while it was read; they may arrive in two or three parts.
    let count = daemon.metric("balancer_config_reloads_total");
    assert!((0.5..15.5).contains(&count), "{count}");
}

#[test]
fn log_outputs_follow_a_reload_and_are_opened_again_on_usr1() {
    let backend = ScriptedPeer::answering("here");
    let logging = |file: &str| {
        format!(
            "access_log: {{output: \"file:@dir/{file}\", when: {{sample: 100%}}}}\n{}",
            one_pool(&backend.address.to_string())
        )
    };
    let mut daemon = TestDaemon::start(&logging("one.log"));
    let has_line = |path: &std::path::Path, target: &str| {
        let line = format!("\"path\":\"{target}\"");
        let found = poll(|| {
            fs::read_to_string(path)
                .is_ok_and(|text| text.contains(&line))
                .then_some(())
        });
        assert!(found.is_some(), "{line} is not in {}", path.display());
    };
    let (one, two) = (
        daemon.directory().join("one.log"),
        daemon.directory().join("two.log"),
    );
    daemon.get("@web", "/first").unwrap();
    has_line(&one, "/first");
    let moved = daemon.directory().join("moved.log");
    fs::rename(&one, &moved).unwrap();
    daemon.signal(Signal::USR1);
    assert!(poll(|| one.exists().then_some(())).is_some());
    daemon.get("@web", "/second").unwrap();
    has_line(&one, "/second");

    must_reload(&mut daemon, &logging("two.log"));
    daemon.get("@web", "/third").unwrap();
    has_line(&two, "/third");
    let closed = poll(|| {
        let files = daemon.open_files();
        (!files.iter().any(|file| file.ends_with("one.log"))).then_some(())
    });
    assert!(closed.is_some(), "{:?}", daemon.open_files());
    assert!(!fs::read_to_string(&one).unwrap().contains("/third"));
}

#[test]
fn changes_that_need_a_restart_are_reported_and_all_others_are_applied() {
    let backend = ScriptedPeer::answering("here");
    let plain = one_pool(&backend.address.to_string());
    let mut daemon = TestDaemon::start(&plain);
    let said = must_reload(
        &mut daemon,
        &format!(
            "workers: 3\nmax_connections: 77\nmetrics: {{bind: \"@elsewhere\"}}\nlog: {{format: json, level: error}}\n{plain}"
        ),
    );
    for key in ["workers", "metrics.bind", "log.format"] {
        assert!(
            said.contains(&format!("{key} changed: needs a restart")),
            "{said}"
        );
    }
    assert!(said.contains("log.level changed\n"), "{said}");
    assert_eq!(daemon.metric("balancer_connections_limit") as u64, 77);
    assert!(TcpStream::connect(daemon.address("@elsewhere")).is_err());
    // Only errors are logged from here on, and errors are.
    let (code, _) = reload(&mut daemon, "nonsense: true\n");
    assert_eq!(code, Some(1));
    daemon.wait_for_log(|line| line.contains("reload failed"));
    let after = daemon.stderr.all();
    assert!(
        !after
            .iter()
            .any(|line| line.contains("configuration reloaded"))
    );
}

#[test]
fn two_hundred_reloads_leave_neither_memory_nor_descriptors() {
    let backend = ScriptedPeer::answering("here");
    let (_other, _) = closing("other");
    let config = |round: u32| {
        let mut config = one_pool(&weighted(backend.address, 1 + round % 7));
        if round.is_multiple_of(2) {
            config = config.replace(
                "listeners:\n",
                "access_log: {output: \"file:@dir/even.log\"}\nlisteners:\n  even: {bind: \"@even\", pool: app}\n",
            );
        }
        config
    };
    let mut daemon = TestDaemon::start(&config(0));
    let run = |daemon: &mut TestDaemon, rounds: std::ops::Range<u32>| {
        for round in rounds {
            assert_eq!(daemon.reload(&config(round)).status, 200);
            assert_eq!(daemon.get("@web", "/").unwrap().status, 200);
            // The workers leave the address a moment after the response; until then it is taken.
            let even = daemon.address("@even");
            let left = || TcpStream::connect(even).err().map(drop);
            assert!(round.is_multiple_of(2) || poll(left).is_some());
        }
    };
    run(&mut daemon, 1..61);
    let (memory, files) = (daemon.proc_status("VmRSS"), daemon.open_files().len());
    run(&mut daemon, 61..261);
    let grown = daemon.proc_status("VmRSS").saturating_sub(memory);
    assert!(grown < 2048, "{grown} KiB more, of {memory}");
    let settled = poll(|| (daemon.open_files().len() <= files + 1).then_some(()));
    assert!(
        settled.is_some(),
        "{files} before, now {:?}",
        daemon.open_files()
    );
    assert_eq!(generation(&daemon), 261);
}
