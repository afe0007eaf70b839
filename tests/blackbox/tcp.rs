//! TCP sessions: unchanged bytes and ends in both directions, and one record each.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use socket2::SockRef;

use crate::harness::{
    PATIENCE, SMALL_BUFFER,
    client::{HttpClient, ReadError},
    daemon::{TestDaemon, sum_of},
    peer::{Blackhole, Gate, PeerConnection, Recorder, ScriptedPeer, refused},
};
use balancer::base::clock;

/// `@db` in front of the backends; every session is logged. `listener` and `pool` are further keys.
fn daemon(backends: &[SocketAddr], listener: &str, pool: &str) -> TestDaemon {
    let backends: Vec<_> = backends.iter().map(|one| format!("\"{one}\"")).collect();
    daemon_with(&backends.join(", "), listener, pool)
}

/// The same; `backends` are entries of the list in the configuration.
fn daemon_with(backends: &str, listener: &str, pool: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{sample: 100%}}}}\nlisteners:\n  \
         db: {{bind: \"@db\", protocol: tcp, pool: db, {listener}}}\n\
         pools:\n  db: {{backends: [{backends}], health_check: none, {pool}}}\n"
    ))
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

/// Expects the session's one line in the log, and that it was counted.
#[track_caller]
fn is_recorded(daemon: &TestDaemon, reason: &str) -> serde_json::Value {
    let line = daemon.wait_for_access(|line| line["reason"].as_str().unwrap_or("ok") == reason);
    assert_eq!(line["listener"], "db");
    assert_eq!(line["protocol"], "TCP");
    assert_eq!(line["client"], "127.0.0.1");
    assert_eq!(line["pool"], "db");
    assert!(line.get("method").is_none(), "{line}");
    let page = daemon.scrape();
    let sum = |series: &str| sum_of(&page, series) as u64;
    let own = format!("balancer_tcp_sessions_total{{pool=\"db\",result=\"{reason}\"}}");
    assert_eq!(sum(&own), 1, "{page}");
    assert_eq!(sum("balancer_tcp_sessions_active"), 0);
    assert_eq!(sum("balancer_backend_connections_active"), 0);
    assert_eq!(sum("balancer_tcp_session_duration_seconds_count"), 1);
    assert_eq!(
        sum("balancer_listener_connections_total{listener=\"db\"}"),
        1
    );
    line
}

#[test]
fn bytes_go_both_ways_and_are_counted() {
    let peer = echo();
    let daemon = daemon(&[peer.address], "", "");
    let mut client = daemon.client("@db");
    for message in ["one", "two\r\n\r\n", "\0\u{ff}"] {
        client.send(message);
        assert_eq!(client.exactly(message.len()).unwrap(), message.as_bytes());
    }
    let active = "balancer_tcp_sessions_active{pool=\"db\"}";
    daemon.wait_for_metric(active, |active| active > 0.5);
    client.finish();
    assert_eq!(client.rest(), Ok(Vec::new()));
    let line = is_recorded(&daemon, "ok");
    assert_eq!(
        (&line["bytes_in"], &line["bytes_out"]),
        (&13.into(), &13.into())
    );
    assert_eq!(line["backend"], peer.address.to_string());
    assert_eq!(line["attempts"], 1);
    let page = daemon.scrape();
    for series in [
        "balancer_listener_received_bytes_total{listener=\"db\"}",
        "balancer_listener_sent_bytes_total{listener=\"db\"}",
    ] {
        assert_eq!(sum_of(&page, series) as u64, 13, "{series}");
    }
}

#[test]
fn a_backend_may_speak_first() {
    let peer = ScriptedPeer::start(|mut connection| {
        connection.send("220 ready\r\n");
        connection.until(b"QUIT\r\n");
        connection.send("221 bye\r\n");
    });
    let daemon = daemon(&[peer.address], "", "");
    let mut client = daemon.client("@db");
    assert_eq!(client.until(b"\n").unwrap(), b"220 ready\r\n");
    client.send("QUIT\r\n");
    assert_eq!(client.rest().unwrap(), b"221 bye\r\n");
}

#[test]
fn a_client_that_has_ended_its_side_still_gets_its_answer() {
    let peer = ScriptedPeer::start(|mut connection| {
        let question = connection.rest().unwrap();
        connection.send(format!("{} bytes", question.len()));
    });
    let daemon = daemon(&[peer.address], "", "");
    let mut client = daemon.client("@db");
    client.send("question").finish();
    assert_eq!(client.rest().unwrap(), b"8 bytes");
    let line = is_recorded(&daemon, "ok");
    assert_eq!(
        (&line["bytes_in"], &line["bytes_out"]),
        (&8.into(), &7.into())
    );
}

#[test]
fn a_backend_that_has_ended_its_side_still_gets_all_that_follows() {
    let got = Recorder::default();
    let sink = got.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        connection.send("enough");
        connection.finish();
        sink.push(connection.rest());
    });
    let daemon = daemon(&[peer.address], "", "");
    let mut client = daemon.client("@db");
    assert_eq!(client.rest().unwrap(), b"enough");
    client.send("and ").send("more").finish();
    let rest = got.wait_for(|all| all.first().cloned()).unwrap();
    assert_eq!(rest.unwrap(), b"and more");
    is_recorded(&daemon, "ok");
}

/// Part `number` of an endless sequence: every byte depends on its place.
fn part(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..PART_BYTES / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect()
}

const PART_BYTES: usize = 64 << 10;
const PART_COUNT: u64 = 320;

fn send_parts(mut stream: &TcpStream) {
    for number in 0..PART_COUNT {
        stream.write_all(&part(number)).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

fn expect_parts(mut stream: &TcpStream) {
    let mut buffer = vec![0; PART_BYTES];
    for number in 0..PART_COUNT {
        stream.read_exact(&mut buffer).unwrap();
        assert!(
            buffer == part(number),
            "part {number} is not as it was sent"
        );
    }
    assert_eq!(
        stream.read(&mut buffer).unwrap(),
        0,
        "something came behind"
    );
}

fn connect(daemon: &TestDaemon) -> TcpStream {
    let stream = TcpStream::connect(daemon.address("@db")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn long_transfers_arrive_unchanged_in_both_directions_at_once() {
    let done = Gate::new();
    let door = done.clone();
    let peer = ScriptedPeer::start(move |connection: PeerConnection| {
        let stream = connection.into_stream();
        thread::scope(|scope| {
            scope.spawn(|| send_parts(&stream));
            expect_parts(&stream);
        });
        door.open();
    });
    let daemon = daemon(&[peer.address], "", "");
    let stream = connect(&daemon);
    thread::scope(|scope| {
        scope.spawn(|| send_parts(&stream));
        expect_parts(&stream);
    });
    done.wait();
    let line = is_recorded(&daemon, "ok");
    let all = PART_BYTES as u64 * PART_COUNT;
    assert_eq!(
        (&line["bytes_in"], &line["bytes_out"]),
        (&all.into(), &all.into())
    );
}

#[test]
fn a_slow_reader_slows_the_sender_and_loses_nothing() {
    // The backend reads nothing until the client cannot send any more.
    let full = Gate::new();
    let (door, done) = (full.clone(), Gate::new());
    let read = done.clone();
    let peer = ScriptedPeer::start(move |connection: PeerConnection| {
        door.wait();
        expect_parts(&connection.into_stream());
        read.open();
    });
    let daemon = daemon(&[peer.address], "", "");
    let stream = connect(&daemon);
    thread::scope(|scope| {
        scope.spawn(|| send_parts(&stream));
        let received = "balancer_listener_received_bytes_total{listener=\"db\"}";
        let mut before = -1.0;
        // Twice the same number above zero: it has stopped, or nearly.
        crate::harness::poll(|| {
            let now = daemon.metric(received);
            let stands = now > 0.5 && (now - before).abs() < 0.5;
            before = now;
            stands.then_some(())
        })
        .unwrap();
        full.open();
    });
    done.wait();
    is_recorded(&daemon, "ok");
    let peak = peak_memory_of(&daemon);
    assert!(peak < 64 << 10, "{peak} KiB of memory");
}

/// The most resident memory the daemon ever had, in KiB.
fn peak_memory_of(daemon: &TestDaemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_reset_by_the_client_reaches_the_backend_as_one() {
    let got = Recorder::default();
    let sink = got.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        connection.exactly(5);
        connection.send("hello");
        sink.push(connection.rest());
    });
    let daemon = daemon(&[peer.address], "", "");
    let mut client = daemon.client("@db");
    client.send("hello");
    assert_eq!(client.exactly(5).unwrap(), b"hello");
    client.reset();
    let end = got.wait_for(|all| all.first().cloned()).unwrap();
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    let line = is_recorded(&daemon, "client_disconnected");
    assert_eq!(
        (&line["bytes_in"], &line["bytes_out"]),
        (&5.into(), &5.into())
    );
    let blamed = daemon.metric("balancer_backend_failures_total");
    assert!(blamed < 0.5, "the backend is not to blame");
}

#[test]
fn a_reset_by_the_backend_reaches_the_client_as_one() {
    let gate = Gate::new();
    let door = gate.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        connection.send("hello");
        door.wait();
        connection.reset();
    });
    let daemon = daemon(&[peer.address], "", "");
    let mut client = daemon.client("@db");
    assert_eq!(client.exactly(5).unwrap(), b"hello");
    gate.open();
    assert_eq!(client.rest(), Err(ReadError::Reset(Vec::new())));
    is_recorded(&daemon, "backend_reset");
    let failures = format!(
        "balancer_backend_failures_total{{pool=\"db\",backend=\"{}\",reason=\"backend_reset\"}}",
        peer.address
    );
    assert_eq!(daemon.metric(&failures) as u64, 1);
}

#[test]
fn a_silent_session_is_cut_on_both_sides() {
    let got = Recorder::default();
    let sink = got.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        connection.send("hello");
        sink.push(connection.rest());
    });
    let daemon = daemon(&[peer.address], "", "timeouts: {idle: 300ms}");
    let mut client = daemon.client("@db");
    assert_eq!(client.exactly(5).unwrap(), b"hello");
    let began = clock::now();
    assert_eq!(client.rest(), Err(ReadError::Reset(Vec::new())));
    let took = clock::now() - began;
    assert!(took >= Duration::from_millis(250), "{took:?}");
    let end = got.wait_for(|all| all.first().cloned()).unwrap();
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    is_recorded(&daemon, "idle_timeout");
}

#[test]
fn bytes_in_one_direction_keep_a_session_alive() {
    let peer = ScriptedPeer::start(|mut connection| connection.wait_for_end());
    let daemon = daemon(&[peer.address], "", "timeouts: {idle: 300ms}");
    let mut client = daemon.client("@db");
    // The waits for nothing are the pace: together three times the idle time.
    for _ in 0..18 {
        client.send("x");
        client.patience(Duration::from_millis(50));
        assert!(matches!(client.more(), Err(ReadError::TimedOut(_))));
    }
    client.patience(PATIENCE).finish();
    assert_eq!(client.rest(), Ok(Vec::new()));
    assert_eq!(is_recorded(&daemon, "ok")["bytes_in"], 18);
}

#[test]
fn a_reader_that_is_slow_is_not_silent() {
    let length = 6 << 20;
    let sender = move || {
        ScriptedPeer::start(move |mut connection| {
            connection.send(vec![b'a'; length]);
            connection.wait_for_end();
        })
    };
    let reader = move || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        SockRef::from(&listener)
            .set_recv_buffer_size(SMALL_BUFFER)
            .unwrap();
        ScriptedPeer::start_on(listener, move |mut connection| {
            read_slowly(|part| connection.each(part, |_| {}).is_some(), length);
            connection.send("all of it");
        })
    };
    // Nothing is left to be moved long before the reader is at the end.
    let (peer, idle) = (sender(), "timeouts: {idle: 700ms}");
    let front = daemon(&[peer.address], "", idle);
    let mut client = HttpClient::connect_slow_reader(front.address("@db"));
    read_slowly(|part| client.each(part, |_| {}).is_ok(), length);
    client.finish();
    assert_eq!(client.rest(), Ok(Vec::new()));
    is_recorded(&front, "ok");
    let peer = reader();
    let front = daemon(&[peer.address], "", idle);
    let mut client = front.client("@db");
    client.send(vec![b'a'; length]);
    assert_eq!(client.rest().unwrap(), b"all of it");
}

#[test]
fn urgent_data_does_not_hold_up_what_follows() {
    let peer = ScriptedPeer::start(|mut connection| {
        let mut all = Vec::new();
        while connection
            .each(1, |byte| all.extend_from_slice(byte))
            .is_some()
        {}
        connection.send(all);
    });
    let daemon = daemon(&[peer.address], "", "");
    for _ in 0..20 {
        let mut client = TcpStream::connect(daemon.address("@db")).unwrap();
        client.write_all(b"before ").unwrap();
        // A read ends at the mark, and leaves the urgent byte out (tcp(7)).
        rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).unwrap();
        client.write_all(b"after").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "before after");
    }
}

/// Reads `length` bytes in parts, at about 2 MiB a second.
fn read_slowly(mut read: impl FnMut(usize) -> bool, length: usize) {
    let part = 128 << 10;
    for _ in 0..length / part {
        assert!(read(part), "cut");
        thread::sleep(Duration::from_millis(60));
    }
}

#[test]
fn a_reader_that_stops_is_silent() {
    let peer = ScriptedPeer::start(|mut connection| while connection.send(vec![b'a'; 1 << 20]) {});
    let daemon = daemon(&[peer.address], "", "timeouts: {idle: 500ms}");
    let mut client = daemon.client("@db");
    client.exactly(1 << 20).unwrap();
    is_recorded(&daemon, "idle_timeout");
}

#[test]
fn a_backend_that_cannot_be_reached_is_passed_over() {
    let peer = echo();
    let hole = Blackhole::start();
    for (dead, reason) in [
        (refused(), "connection_refused"),
        (hole.address, "connection_timeout"),
    ] {
        let backends = format!(
            "\"{dead}\", {{address: \"{}\", backup: true}}",
            peer.address
        );
        let daemon = daemon_with(&backends, "", "timeouts: {connect: 200ms}");
        let mut client = daemon.client("@db");
        client.send("hello");
        assert_eq!(client.exactly(5).unwrap(), b"hello");
        client.finish();
        assert_eq!(client.rest(), Ok(Vec::new()));
        let line = is_recorded(&daemon, "ok");
        assert_eq!(line["attempts"], 2, "{reason}");
        assert_eq!(line["backend"], peer.address.to_string());
        let page = daemon.scrape();
        for series in [
            format!("balancer_backend_failures_total{{backend=\"{dead}\",reason=\"{reason}\"}}"),
            format!("balancer_backend_connections_total{{backend=\"{dead}\",result=\"failed\"}}"),
            format!(
                "balancer_backend_connections_total{{backend=\"{}\",result=\"ok\"}}",
                peer.address
            ),
            format!("balancer_retries_total{{pool=\"db\",reason=\"{reason}\"}}"),
        ] {
            assert_eq!(sum_of(&page, &series) as u64, 1, "{series}");
        }
    }
}

#[test]
fn a_client_for_whom_no_backend_is_reached_is_reset() {
    let (one, other) = (refused(), refused());
    let daemon = daemon(&[one, other], "", "");
    let mut client = daemon.client("@db");
    assert_eq!(client.rest(), Err(ReadError::Reset(Vec::new())));
    let line = is_recorded(&daemon, "connection_refused");
    assert_eq!(line["attempts"], 3);
    let errors = "balancer_errors_total{pool=\"db\",reason=\"connection_refused\",code=\"0\"}";
    assert_eq!(daemon.metric(errors) as u64, 1);
}

#[test]
fn a_client_is_reset_when_no_backend_is_healthy() {
    let daemon = TestDaemon::start(&format!(
        "listeners:\n  db: {{bind: \"@db\", protocol: tcp, pool: db}}\n\
         pools:\n  db: {{backends: [\"{}\"], health_check: {{interval: 100ms}}}}\n",
        refused()
    ));
    let down = "balancer_pool_backends{pool=\"db\",state=\"down\"}";
    daemon.wait_for_metric(down, |down| down > 0.5);
    let mut client = daemon.client("@db");
    assert_eq!(client.rest(), Err(ReadError::Reset(Vec::new())));
    let line = is_recorded(&daemon, "destination_unavailable");
    assert_eq!(line["attempts"], 0);
}

#[test]
fn retries_none_means_one_attempt() {
    let peer = echo();
    let daemon = daemon(&[refused(), peer.address], "", "retries: none");
    // In turn: one of the two meets the dead one.
    let ends = [(); 2].map(|()| {
        let mut client = daemon.client("@db");
        let sent = client.try_send("hello");
        sent && client.exactly(5).is_ok()
    });
    assert_ne!(ends[0], ends[1]);
    assert_eq!(daemon.metric("balancer_retries_total") as u64, 0);
}

#[test]
fn clients_are_let_in_by_address() {
    let peer = echo();
    for (rules, allowed) in [
        ("allow: [127.0.0.0/8]", true),
        ("allow: [10.0.0.0/8]", false),
        ("deny: [127.0.0.1]", false),
        ("deny: [10.0.0.0/8]", true),
        ("allow: [127.0.0.0/8], deny: [127.0.0.1]", false),
    ] {
        let daemon = daemon(&[peer.address], rules, "");
        let before = peer.connections();
        let mut client = daemon.client("@db");
        if allowed {
            client.send("hello");
            assert_eq!(client.exactly(5).unwrap(), b"hello", "{rules}");
        } else {
            assert_eq!(client.rest(), Err(ReadError::Reset(Vec::new())), "{rules}");
            let rejected = "balancer_listener_connections_rejected_total{listener=\"db\",reason=\"http_request_denied\"}";
            assert_eq!(daemon.metric(rejected) as u64, 1);
            assert_eq!(peer.connections(), before, "{rules}");
        }
    }
}

#[test]
fn the_sessions_of_a_listener_are_limited() {
    let peer = echo();
    let daemon = daemon(&[peer.address], "limits: {connections: 2}", "");
    let talk = |client: &mut HttpClient| {
        client.send("hello");
        client.exactly(5)
    };
    let mut held = [daemon.client("@db"), daemon.client("@db")];
    for client in &mut held {
        talk(client).unwrap();
    }
    assert_eq!(
        daemon.client("@db").rest(),
        Err(ReadError::Reset(Vec::new()))
    );
    let rejected =
        "balancer_listener_connections_rejected_total{listener=\"db\",reason=\"overload\"}";
    assert_eq!(daemon.metric(rejected) as u64, 1);
    let [first, mut second] = held;
    drop(first);
    daemon.wait_for_metric("balancer_listener_connections_active", |now| now < 1.5);
    talk(&mut daemon.client("@db")).unwrap();
    talk(&mut second).unwrap();
}

#[test]
fn sessions_are_spread_over_the_backends() {
    let peers = [echo(), echo(), echo()];
    let addresses = peers.each_ref().map(|peer| peer.address);
    let daemon = daemon(&addresses, "", "policy: least_connections");
    let mut held: Vec<HttpClient> = Vec::new();
    for _ in 0..9 {
        let mut client = daemon.client("@db");
        client.send("hello");
        client.exactly(5).unwrap();
        held.push(client);
    }
    assert_eq!(peers.each_ref().map(ScriptedPeer::connections), [3; 3]);
}
