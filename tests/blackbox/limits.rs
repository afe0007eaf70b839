//! Limits of connections and descriptors, kinds of addresses, and failed starts.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use crate::harness::{
    client::{HttpClient, ReadError, get},
    daemon::{TestDaemon, command_with_files},
    peer::{Gate, Recorder, ScriptedPeer},
    poll,
};
use balancer::base::clock;

fn config(global: &str, listener: &str, backend: &ScriptedPeer) -> String {
    format!(
        "{global}listeners:\n  web: {{bind: \"@web\", pool: app{listener}}}\npools:\n  app:\n    health_check: none\n    backends: [{}]\n",
        backend.address
    )
}

/// Fills two places with requests under way.
fn two_busy(daemon: &TestDaemon, backend: &ScriptedPeer) -> [HttpClient; 2] {
    let mut clients = [daemon.client("@web"), daemon.client("@web")];
    for client in &mut clients {
        client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    backend.wait_for_requests(2);
    clients
}

fn assert_refuses_the_third(global: &str, listener: &str) {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "done");
    let daemon = TestDaemon::start(&config(global, listener, &backend));
    let mut busy = two_busy(&daemon, &backend);
    let refused = HttpClient::connect(daemon.address("@web"))
        .response()
        .unwrap();
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.header("connection"), Some("close"));
    assert_eq!(refused.json()["error"]["code"], 503);
    let rejected = "balancer_listener_connections_rejected_total{reason=\"overload\"}";
    assert_eq!(daemon.metric(rejected) as u64, 1);
    gate.open();
    for client in &mut busy {
        assert_eq!(client.response().unwrap().text(), "done");
    }
    drop(busy);
    daemon.wait_for_metric("balancer_listener_connections_active", |open| open < 0.5);
    assert_eq!(daemon.get("@web", "/").unwrap().status, 200);
}

#[test]
fn a_connection_over_max_connections_is_told_so() {
    assert_refuses_the_third("max_connections: 2\n", "");
}

#[test]
fn a_connection_over_the_limit_of_its_listener_is_told_so() {
    assert_refuses_the_third("", ", limits: {connections: 2}");
}

#[test]
fn a_connection_over_the_limit_of_its_client_is_told_so() {
    assert_refuses_the_third("", ", limits: {connections_per_client: 2}");
}

#[test]
fn a_session_over_the_limit_is_reset() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "done");
    let daemon = TestDaemon::start(&config(
        "",
        ", protocol: tcp, limits: {connections: 2}",
        &backend,
    ));
    let _busy = two_busy(&daemon, &backend);
    let third = HttpClient::connect(daemon.address("@web")).response();
    assert!(matches!(third, Err(ReadError::Reset(_))), "{third:?}");
    gate.open();
}

#[test]
fn at_the_limit_an_idle_connection_leaves_its_place_to_a_new_one() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "done");
    let global = "workers: 1\nmax_connections: 2\n";
    let daemon = TestDaemon::start(&config(global, "", &backend));
    let mut idle = daemon.client("@web");
    assert_eq!(idle.request("GET", "/").unwrap().status, 200);
    let mut busy = daemon.client("@web");
    busy.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    backend.wait_for_requests(2);
    assert_eq!(daemon.get("@web", "/").unwrap().status, 200);
    assert_eq!(idle.rest().unwrap(), b"", "closed without a word");
    gate.open();
    assert_eq!(busy.response().unwrap().text(), "done");
}

#[test]
fn without_descriptors_it_serves_what_it_has_does_not_spin_and_recovers() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "done");
    let text = config("workers: 1\nmax_connections: 1000\n", "", &backend);
    let daemon = TestDaemon::start_by(|| command_with_files(64), "run", &text);
    let mut busy: Vec<_> = (0..5).map(|_| daemon.client("@web")).collect();
    for client in &mut busy {
        client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    backend.wait_for_requests(5);
    // Half a request each: none is idle, so none can be closed for a newcomer.
    let mut halves: Vec<_> = (0..100).map(|_| daemon.client("@web")).collect();
    for client in &mut halves {
        client.send("GET / HTTP/1.1\r\n");
    }
    daemon.wait_for_log(|line| line.contains("accept failed"));
    let (cpu, began) = (daemon.cpu_time(), clock::now());
    // A second of real time is what is measured, not waited for.
    while began.elapsed() < Duration::from_secs(1) {
        let mut first = HttpClient::connect(daemon.address("@web"));
        first.patience(Duration::from_millis(250));
        assert!(first.response().is_err(), "it waits in the queue");
    }
    let used = daemon.cpu_time().checked_sub(cpu).unwrap();
    assert!(used < Duration::from_millis(250), "{used:?} in a second");
    gate.open();
    for client in &mut busy {
        assert_eq!(client.response().unwrap().text(), "done");
    }
    drop((busy, halves));
    let began = clock::now();
    let answer = poll(|| {
        get(daemon.address("@web"), "/")
            .ok()
            .filter(|one| one.status == 200)
    });
    assert!(answer.is_some());
    let took = began.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn near_the_limit_idle_connections_leave_before_there_is_need() {
    let backend = ScriptedPeer::answering("done");
    let global = "workers: 1\nmax_connections: 32\n";
    let daemon = TestDaemon::start(&config(global, "", &backend));
    let open = "balancer_listener_connections_active";
    let mut idle: Vec<_> = (0..30).map(|_| daemon.client("@web")).collect();
    for client in &mut idle {
        assert_eq!(client.request("GET", "/").unwrap().status, 200);
    }
    assert_eq!(daemon.metric(open) as u64, 30);
    let mut next = daemon.client("@web");
    assert_eq!(next.request("GET", "/").unwrap().status, 200);
    daemon.wait_for_metric(open, |open| open < 30.5);
    let left = idle.iter_mut().filter_map(|client| {
        client.patience(Duration::from_millis(1));
        client.more().err()
    });
    assert_eq!(left.filter(|cut| *cut == ReadError::Closed).count(), 1);
}

#[test]
fn a_full_listener_gives_the_place_of_an_idle_connection_to_a_new_one() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "done");
    let limits = ", limits: {connections: 2}";
    let daemon = TestDaemon::start(&config("workers: 1\n", limits, &backend));
    let mut idle = daemon.client("@web");
    assert_eq!(idle.request("GET", "/").unwrap().status, 200);
    let mut busy = daemon.client("@web");
    busy.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    backend.wait_for_requests(2);
    assert_eq!(daemon.get("@web", "/").unwrap().status, 200);
    assert_eq!(idle.rest().unwrap(), b"", "closed without a word");
    gate.open();
    assert_eq!(busy.response().unwrap().text(), "done");
}

#[test]
fn without_descriptors_idle_connections_to_backends_are_given_up() {
    let (gate, ended) = (Gate::new(), Recorder::default());
    let (door, ends) = (gate.clone(), ended.clone());
    let backend = ScriptedPeer::start(move |mut connection| {
        while connection.request().is_some() {
            door.wait();
            connection.answer("done");
        }
        ends.push(connection.number());
    });
    let text = config("workers: 1\nmax_connections: 1000\n", "", &backend);
    let text = text.replace(
        "    health_check",
        "    keepalive: {idle_timeout: 1h}\n    health_check",
    );
    let daemon = TestDaemon::start_by(|| command_with_files(64), "run", &text);
    let mut busy: Vec<_> = (0..8).map(|_| daemon.client("@web")).collect();
    for client in &mut busy {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    backend.wait_for_requests(8);
    gate.open();
    for client in &mut busy {
        assert_eq!(client.response().unwrap().text(), "done");
    }
    assert!(ended.all().is_empty(), "they are kept");
    // None of these is idle.
    let mut halves: Vec<_> = (0..100).map(|_| daemon.client("@web")).collect();
    for client in &mut halves {
        client.send("GET / HTTP/1.1\r\n");
    }
    daemon.wait_for_log(|line| line.contains("accept failed"));
    let all_ended = ended.wait_for(|ended| (ended.len() == 8).then_some(()));
    assert!(all_ended.is_some(), "{:?}", ended.all());
}

#[test]
fn of_one_read_a_hundred_requests_are_answered_and_later_ones_are_dropped() {
    let backend = ScriptedPeer::answering("done");
    let routes = "routes: [{path: /fixed, respond: {body: fixed}}]\n";
    let daemon = TestDaemon::start(&format!("{routes}{}", config("", "", &backend)));
    for (target, text) in [("/fixed", "fixed"), ("/", "done")] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n");
        let mut client = daemon.client("@web");
        client.send(request.repeat(150));
        for number in 1..=100 {
            let answer = client.response().unwrap();
            assert_eq!(answer.text(), text);
            let closes = answer.header("connection") == Some("close");
            assert_eq!(closes, number == 100, "{number}");
        }
        assert_eq!(client.rest().unwrap(), b"", "an end, and no reset");
        // A client that waits for the responses may go on for ever.
        let mut client = daemon.client("@web");
        for _ in 0..3 {
            client.send(request.repeat(100));
            let answers = (0..100).map(|_| client.response().unwrap());
            assert!(answers.map(|one| one.text()).all(|one| one == text));
        }
    }
}

#[test]
fn every_kind_of_address_is_listened_on_and_several_at_once() {
    let backend = ScriptedPeer::answering("here");
    // A port that is free on IPv4 is taken for both protocols.
    let free = |host: &str| {
        let listener = TcpListener::bind((host, 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let (both, six) = (free("::"), free("::1"));
    let binds = format!(
        ", pool: app}}\n  more: {{bind: [\":{both}\", \"[::1]:{six}\", \"unix:@dir/a.sock\"]"
    );
    let daemon = TestDaemon::start(&config("", "", &backend).replacen(
        ", pool: app",
        &format!("{binds}, pool: app"),
        1,
    ));
    let addresses: [SocketAddr; 4] = [
        daemon.address("@web"),
        ([127, 0, 0, 1], both).into(),
        format!("[::1]:{both}").parse().unwrap(),
        format!("[::1]:{six}").parse().unwrap(),
    ];
    for address in addresses {
        assert_eq!(get(address, "/").unwrap().text(), "here", "{address}");
    }
    assert!(
        TcpStream::connect(("127.0.0.1", six)).is_err(),
        "[::1] only"
    );
    let mut unix = HttpClient::connect_unix(&daemon.directory().join("a.sock"));
    assert_eq!(unix.request("GET", "/").unwrap().text(), "here");
}

/// The timer of the socket that the daemon has for `client`: 02 is keepalive, 00 is none.
fn timer_of(daemon: &TestDaemon, client: &HttpClient) -> String {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let (ours, theirs) = (port(daemon.address("@web")), port(client.local_address()));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let found = table.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let is_it = words[1].ends_with(&ours) && words[2].ends_with(&theirs);
        is_it.then(|| words[5][..2].to_owned())
    });
    found.unwrap()
}

#[test]
fn keepalive_is_set_on_accepted_connections_as_configured_and_follows_a_reload() {
    let backend = ScriptedPeer::answering("here");
    let socket = |keepalive: &str| {
        let listener =
            format!(", socket: {{backlog: 16, fast_open: true, keepalive: {keepalive}}}");
        config("", &listener, &backend)
    };
    let mut daemon = TestDaemon::start(&socket("60s"));
    let mut client = daemon.client("@web");
    client.request("GET", "/").unwrap();
    // The retransmission timer of the response may still run.
    let timer = poll(|| Some(timer_of(&daemon, &client)).filter(|timer| timer != "01"));
    assert_eq!(timer.unwrap(), "02");
    assert_eq!(daemon.reload(&socket("none")).status, 200);
    let mut client = daemon.client("@web");
    client.request("GET", "/").unwrap();
    let timer = poll(|| Some(timer_of(&daemon, &client)).filter(|timer| timer != "01"));
    assert_eq!(timer.unwrap(), "00");
}

#[test]
fn a_taken_port_ends_the_start_with_1_and_is_named() {
    let backend = ScriptedPeer::answering("here");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut daemon =
        TestDaemon::launch(&config("", "", &backend).replace("@web", &address.to_string()));
    assert_eq!(daemon.wait_exit().code(), Some(1));
    let wanted = format!("port {} is taken by another process", address.port());
    daemon.wait_for_log(|line| line.contains(&wanted));
}

#[test]
fn a_broken_configuration_ends_the_start_with_78_and_its_places() {
    let backend = ScriptedPeer::answering("here");
    let text = config("", "", &backend).replace("pool: app", "pool: ap");
    let mut daemon = TestDaemon::launch(&text);
    assert_eq!(daemon.wait_exit().code(), Some(78));
    daemon.wait_for_log(|line| line.contains("balancer.yaml:2:"));
}

#[test]
fn scrapes_that_are_not_read_hold_up_neither_probes_nor_other_scrapes() {
    // A page that fits into no buffer of a socket.
    let backends: Vec<_> = (0..600)
        .map(|number| format!("127.1.{}.{}:9", number / 250, number % 250))
        .collect();
    let daemon = TestDaemon::start(&format!(
        "listeners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app:\n    health_check: none\n    backends: [{}]\n",
        backends.join(", ")
    ));
    let mut silent: Vec<_> = (0..80).map(|_| daemon.client("@metrics")).collect();
    for client in &mut silent {
        // Some are closed already for the last ones.
        client.try_send("GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    for _ in 0..3 {
        assert_eq!(daemon.get("@metrics", "/readyz").unwrap().status, 200);
        assert_eq!(daemon.get("@metrics", "/livez").unwrap().status, 200);
    }
    assert!(daemon.scrape().contains("balancer_config_generation 1"));
}

#[test]
fn at_the_limit_of_open_files_checks_metrics_and_admin_go_on_and_the_log_says_what_is_short() {
    let backend = ScriptedPeer::answering("done");
    let text = config("max_connections: 1000\n", "", &backend)
        .replace("health_check: none", "health_check: {interval: 100ms}");
    let daemon = TestDaemon::start_by(|| command_with_files(200), "run", &text);
    daemon.wait_for_log(|line| {
        line.contains("max_connections: 1000 may need") && line.contains("this process is 200")
    });
    let mut halves: Vec<_> = (0..300).map(|_| daemon.client("@web")).collect();
    for client in &mut halves {
        client.send("GET / HTTP/1.1\r\n");
    }
    daemon.wait_for_log(|line| line.contains("accept failed"));
    for _ in 0..3 {
        assert_eq!(daemon.get("@metrics", "/readyz").unwrap().status, 200);
        let checks = "balancer_backend_health_checks_total{result=\"ok\"}";
        let before = daemon.metric(checks);
        daemon.wait_for_metric(checks, |now| now > before + 0.5);
        let status = daemon.command(&["status"]);
        assert_eq!(status.status.code(), Some(0), "{status:?}");
    }
    assert!(daemon.metric("balancer_backend_health_checks_total{result=\"local_error\"}") < 0.5);
    let open = daemon.open_files().len();
    assert!((140..180).contains(&open), "{open}");
    drop(halves);
    let answer = poll(|| {
        get(daemon.address("@web"), "/")
            .ok()
            .filter(|one| one.status == 200)
    });
    assert_eq!(answer.unwrap().text(), "done");
}

#[test]
fn the_limit_of_connections_follows_the_limit_of_open_files_and_what_listeners_hold() {
    let backend = ScriptedPeer::answering("done");
    let text = config("workers: 2\n", "", &backend);
    let mut daemon = TestDaemon::start_by(|| command_with_files(400), "run", &text);
    let limit = |daemon: &TestDaemon| daemon.metric("balancer_connections_limit") as u64;
    let one = limit(&daemon);
    assert!((100..150).contains(&one), "{one}: half of what is left");
    daemon.wait_for_log(|line| line.contains("the limit of 400 open files is enough for"));
    let many: Vec<_> = (0..10)
        .map(|number| format!("\"unix:@dir/{number}.sock\""))
        .collect();
    let many = format!("[\"@web\", {}]", many.join(", "));
    daemon.write_config(&text.replace("\"@web\"", &many));
    let output = daemon.command(&["reload"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        warned.contains("the limit of 400 open files is enough for"),
        "{warned}"
    );
    assert_eq!(limit(&daemon), one - 20, "ten addresses, two workers");
}

#[test]
fn a_worker_that_cannot_start_ends_the_program_with_1() {
    let backend = ScriptedPeer::answering("here");
    let text = config("workers: 10\n", "", &backend);
    let mut daemon = TestDaemon::launch_by(command_with_files(48), "run", &text);
    assert_eq!(daemon.wait_exit().code(), Some(1));
    daemon.wait_for_log(|line| line.contains("error: cannot start worker"));
}
