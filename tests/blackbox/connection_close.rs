//! Disconnects, resets and half-closed connections: work for a client that left is cancelled,
//! half-closed clients are served, early responses arrive, and a response that a reset cut is never
//! taken for a whole one.

use std::{
    net::{SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    answers::expect_error,
    client::{HttpClient, ReadError},
    daemon::TestDaemon,
    peer::{Blackhole, Gate, PeerConnection, Recorder, ScriptedPeer},
    poll,
};
use balancer::base::clock;
use rustix::process::Signal;

/// Every timeout is far beyond this: what comes before it was not waited for.
const PROMPT_TIME: Duration = Duration::from_secs(3);

/// `@web` in front of `backends`, patient in everything; `more` are further keys of the pool.
fn daemon(backends: &[SocketAddr], more: &str) -> TestDaemon {
    let backends: Vec<_> = backends.iter().map(|one| format!("\"{one}\"")).collect();
    TestDaemon::start(&format!(
        "workers: 1\nlisteners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app: {{backends: [{}], \
         health_check: none, ejection: none, timeouts: {{connect: 15s, response: 15s, idle: 15s}}, {more}}}\n",
        backends.join(", ")
    ))
}

const GET_REQUEST: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
const PARTIAL_RESPONSE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nfirst part";
const PARTIAL_UPLOAD: &str =
    "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000000\r\n\r\nfirst part";

/// Behaviour of a backend from the start of a request to the end of its connection.
type BackendScript = fn(&mut PeerConnection);

/// Tells when its connection has ended.
fn witness(play: BackendScript) -> (ScriptedPeer, Recorder<Instant>) {
    let ends: Recorder<Instant> = Recorder::default();
    let told = ends.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        play(&mut connection);
        told.push(clock::now());
    });
    (peer, ends)
}

/// Checks the log line of a client that left, after `attempts` attempts, and that no backend is
/// blamed.
#[track_caller]
fn has_left(daemon: &TestDaemon, began: Instant, attempts: u32) {
    let line = daemon.wait_for_access(|line| line["reason"] == "client_disconnected");
    let took = clock::now() - began;
    assert!(took < PROMPT_TIME, "noticed after {took:?}");
    assert_eq!(line["attempts"], attempts, "{line}");
    daemon.wait_for_metric("balancer_backend_connections_active", |now| now < 0.5);
}

#[test]
fn the_work_for_a_client_that_resets_ends_at_once_wherever_it_is() {
    let table: [(&str, &str, BackendScript); 6] = [
        ("waiting for the head", GET_REQUEST, |one| {
            one.head();
            one.wait_for_end();
        }),
        ("in the head", GET_REQUEST, |one| {
            one.head();
            one.send("HTTP/1.1 200 OK\r\nX: ");
            one.wait_for_end();
        }),
        ("a response that stands still", GET_REQUEST, |one| {
            one.head();
            one.send(PARTIAL_RESPONSE);
            one.wait_for_end();
        }),
        ("a response on its way", GET_REQUEST, |one| {
            one.head();
            one.send(PARTIAL_RESPONSE);
            let part = vec![b'a'; 64 << 10];
            while one.send(&part) {}
        }),
        ("an upload that is taken", PARTIAL_UPLOAD, |one| {
            one.head();
            one.wait_for_end();
        }),
        ("an upload that was answered early", PARTIAL_UPLOAD, |one| {
            one.head();
            one.send(PARTIAL_RESPONSE);
            one.wait_for_end();
        }),
    ];
    for (what, request, play) in table {
        let (peer, ends) = witness(play);
        let daemon = daemon(&[peer.address], "");
        let mut client = daemon.client("@web");
        client.send(request);
        if what.starts_with("a response") || what.contains("early") {
            client.until(b"first part").unwrap();
        } else {
            poll(|| (peer.connections() > 0).then_some(())).unwrap();
            daemon.wait_for_metric("balancer_backend_connections_active", |now| now > 0.5);
        }
        let began = clock::now();
        client.reset();
        let ended = ends.wait_for(|all| all.first().copied());
        let took = ended.unwrap_or_else(|| panic!("{what}: never")) - began;
        println!("{what}: the backend sees the end after {took:?}");
        assert!(took < PROMPT_TIME, "{what}: {took:?}");
        has_left(&daemon, began, 1);
        assert_eq!(
            daemon.metric("balancer_backend_failures_total") as u64,
            0,
            "{what}"
        );
    }
}

#[test]
fn a_client_that_resets_while_a_connection_is_made_is_noticed_at_once() {
    let hole = Blackhole::start();
    let daemon = daemon(&[hole.address], "");
    let mut client = daemon.client("@web");
    client.send(GET_REQUEST);
    daemon.wait_for_metric("balancer_http_requests_active", |now| now > 0.5);
    let began = clock::now();
    client.reset();
    has_left(&daemon, began, 1);
    assert_eq!(daemon.metric("balancer_backend_failures_total") as u64, 0);
}

/// Takes one connection and closes it after the request; by then new connections are refused.
fn closing_behind_itself() -> (SocketAddr, thread::JoinHandle<Vec<socket2::Socket>>) {
    use socket2::{Domain, Socket, Type};

    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let (first, _) = listener.accept().unwrap();
        let mut fill: Vec<Socket> = (0..4)
            .map(|_| {
                let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                filler.set_nonblocking(true).unwrap();
                let _ = filler.connect(&address.into());
                filler
            })
            .collect();
        let mut first = HttpClient::over(first);
        first.until(b"\r\n\r\n").unwrap();
        drop(first);
        fill.push(listener.into());
        fill
    });
    (address, thread)
}

#[test]
fn a_client_that_resets_while_a_retry_connects_is_noticed_at_once() {
    let (address, held) = closing_behind_itself();
    let daemon = daemon(&[address], "");
    let mut client = daemon.client("@web");
    client.send(GET_REQUEST);
    daemon.wait_for_metric("balancer_retries_total", |count| count > 0.5);
    let began = clock::now();
    client.reset();
    has_left(&daemon, began, 2);
    drop(held.join().unwrap());
}

#[test]
fn no_retry_is_made_for_a_client_that_is_gone() {
    let [asked, left, closed] = [(); 3].map(|()| Gate::new());
    let (told, may_close, done) = (asked.clone(), left.clone(), closed.clone());
    let peer = ScriptedPeer::start(move |mut connection| {
        connection.request();
        told.open();
        may_close.wait();
        drop(connection);
        done.open();
    });
    let daemon = daemon(&[peer.address], "");
    let mut client = daemon.client("@web");
    client.send(GET_REQUEST);
    asked.wait();
    // Both ends leave while the daemon cannot look: it learns of both at the same time.
    daemon.signal(Signal::STOP);
    client.reset();
    left.open();
    closed.wait();
    daemon.signal(Signal::CONT);
    has_left(&daemon, clock::now(), 1);
    assert_eq!(peer.connections(), 1);
    assert_eq!(daemon.metric("balancer_retries_total") as u64, 0);
}

#[test]
fn a_client_that_has_ended_its_side_is_served_by_a_retry_too() {
    let bad = ScriptedPeer::start(|mut connection| drop(connection.request()));
    let good = ScriptedPeer::answering("good");
    let daemon = daemon(&[bad.address, good.address], "");
    for body in ["", "hello"] {
        // Two in a row: one of them comes to the bad one first.
        for _ in 0..2 {
            let mut client = daemon.client("@web");
            let length = body.len();
            client.send(format!(
                "PUT / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{body}"
            ));
            client.finish();
            assert_eq!(client.response().unwrap().text(), "good");
            assert_eq!(client.rest(), Ok(Vec::new()));
        }
    }
    assert!(bad.connections() > 0);
}

/// Sends 40 MiB and reads the response only then, as some clients do.
#[track_caller]
fn reads_only_afterwards(daemon: &TestDaemon) -> (u16, String) {
    let mut client = daemon.client("@web");
    let part = vec![b'a'; 1 << 20];
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n",
        40 * part.len()
    ));
    for sent in 0..40 {
        let log = || daemon.stdout.all();
        assert!(
            client.try_send(&part),
            "reset after {sent} MiB: {:?}",
            log()
        );
    }
    let response = client.response().unwrap();
    assert_eq!(response.header("Connection"), Some("close"));
    assert_eq!(client.rest(), Ok(Vec::new()), "a clean end");
    (response.status, response.text())
}

#[test]
fn an_early_answer_is_not_lost_to_a_client_that_goes_on_sending() {
    // Closes with most of the upload unread: a reset follows its response.
    let peer = ScriptedPeer::start(|mut connection| {
        connection.head();
        connection
            .send("HTTP/1.1 413 Own Limit\r\nConnection: close\r\nContent-Length: 4\r\n\r\nless");
    });
    let theirs = daemon(&[peer.address], "");
    assert_eq!(reads_only_afterwards(&theirs), (413, "less".to_owned()));
    // Reads nothing and stays, or reads everything.
    for reads in [false, true] {
        let peer = ScriptedPeer::start(move |mut connection| {
            connection.head();
            connection.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno");
            if reads {
                connection.wait_for_end();
            } else {
                connection.wait_for_bytes();
                thread::sleep(Duration::from_millis(500));
            }
        });
        let theirs = daemon(&[peer.address], "");
        assert_eq!(reads_only_afterwards(&theirs), (401, "no".to_owned()));
    }
    let ours = TestDaemon::start(&format!(
        "listeners:\n  web: {{bind: \"@web\", pool: app, limits: {{request_body: 1KiB}}}}\npools:\n  \
         app: {{backends: [\"{}\"], health_check: none}}\n",
        peer.address
    ));
    assert_eq!(reads_only_afterwards(&ours).0, 413);
    for (more, status) in [("", 404), (", deny: [127.0.0.0/8]", 403)] {
        let ours = TestDaemon::start(&format!("listeners:\n  web: {{bind: \"@web\"{more}}}\n"));
        assert_eq!(reads_only_afterwards(&ours).0, status);
    }
}

#[test]
fn an_early_answer_is_not_lost_to_a_client_that_goes_on_slowly() {
    let daemon = TestDaemon::start(
        "listeners:\n  web: {bind: \"@web\"}\nroutes:\n  - {path: /other, respond: {status: 200, body: x}}\n",
    );
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n");
    for _ in 0..8 {
        // Longer altogether than the timeout of a silent client.
        thread::sleep(Duration::from_millis(400));
        assert!(client.try_send("more"));
    }
    expect_error(&client.response().unwrap(), 404, "no_route");
    assert_eq!(client.rest(), Ok(Vec::new()), "a clean end");
}

#[test]
fn a_head_that_comes_in_the_middle_of_the_upload_goes_on_and_both_bodies_arrive() {
    let half = Gate::new();
    let opened = half.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        connection.head().unwrap();
        connection.exactly(5).unwrap();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
        let rest = connection.exactly(5).unwrap();
        connection.send("first");
        connection.send(rest);
        opened.wait();
        while connection.request().is_some() && connection.answer("again") {}
    });
    let daemon = daemon(&[peer.address], "");
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello");
    assert_eq!(client.head().unwrap().0, 200);
    client.send("other");
    assert_eq!(client.exactly(10).unwrap(), b"firstother");
    half.open();
}

/// Answers the head of the first request of its first connection before the body is there, and
/// reads it all the same.
fn hasty() -> ScriptedPeer {
    ScriptedPeer::start(|mut connection| {
        if connection.number() == 0 {
            connection.head().unwrap();
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst");
            connection.exactly(5).unwrap();
            connection.send("other");
        }
        while let Some(request) = connection.request() {
            connection.answer(&request.connection.to_string());
        }
    })
}

#[test]
fn a_connection_is_used_again_only_if_the_answer_came_after_the_request() {
    let peer = hasty();
    let daemon = daemon(&[peer.address], "");
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.head().unwrap().0, 200);
    client.send("hello");
    assert_eq!(client.exactly(10).unwrap(), b"firstother");
    for _ in 0..2 {
        assert_eq!(daemon.get("@web", "/").unwrap().text(), "1");
    }
    assert_eq!(peer.connections(), 2);
}

/// Sends `bytes` and resets, when the client has seen what there is to be seen.
fn resetting(bytes: &'static str, seen: Gate) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        if connection.request().is_none() {
            return;
        }
        connection.send(bytes);
        seen.wait();
        connection.reset();
    })
}

#[test]
fn a_reset_before_the_end_of_the_head_is_an_error_and_after_it_a_cut() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let table = [
        ("", None),
        ("HTTP/1", None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", None),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            Some("\r\n\r\n"),
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            Some("hell"),
        ),
        ("HTTP/1.1 200 OK\r\n\r\nhello", Some("hello")),
        (chunked, Some("hello")),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0",
            Some("hello"),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
            Some("hello"),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n",
            Some("hello"),
        ),
    ];
    for (bytes, part) in table {
        let gate = Gate::new();
        let peer = resetting(bytes, gate.clone());
        let daemon = daemon(&[peer.address], "");
        let mut client = daemon.client("@web");
        client.send(GET_REQUEST);
        let Some(part) = part else {
            gate.open();
            let id = expect_error(&client.response().unwrap(), 502, "connection_terminated");
            assert_eq!(daemon.access_of(&id)["attempts"], 3, "{bytes:?}");
            continue;
        };
        client.until(part.as_bytes()).unwrap();
        gate.open();
        let rest = match client.rest() {
            Ok(rest) | Err(ReadError::Reset(rest)) => String::from_utf8(rest).unwrap(),
            other => panic!("{bytes:?}: {other:?}"),
        };
        assert!(!rest.contains("0\r\n"), "{bytes:?} ends whole: {rest:?}");
        let line = daemon.wait_for_access(|line| line["status"] == 200);
        assert_eq!(line["reason"], "http_response_incomplete", "{bytes:?}");
        assert_eq!(line["attempts"], 1, "{bytes:?}");
    }
}

#[test]
fn a_reset_after_the_end_of_a_response_harms_no_other_client() {
    for bytes in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        let peer = ScriptedPeer::resetting_after(bytes);
        let daemon = daemon(&[peer.address], "");
        let mut client = daemon.client("@web");
        for _ in 0..20 {
            // A POST: it would not be sent again.
            client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
            let response = client.response().unwrap();
            if response.status == 502 {
                // The reset came while the next request was on its way: the backend may have read
                // it.
                expect_error(&response, 502, "connection_terminated");
                continue;
            }
            assert_eq!(response.text(), "hello");
        }
        let cut = daemon.metric("balancer_errors_total{reason=\"http_response_incomplete\"}");
        assert_eq!(cut as u64, 0, "{bytes:?}");
    }
}

#[test]
fn a_reset_behind_the_head_of_a_chunked_response_is_an_error_or_a_cut() {
    let peer =
        ScriptedPeer::resetting_after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let daemon = daemon(&[peer.address], "");
    for _ in 0..20 {
        let mut client = daemon.client("@web");
        client.send(GET_REQUEST);
        match client.response() {
            Ok(response) => drop(expect_error(&response, 502, "connection_terminated")),
            // The head was passed on before the reset came.
            Err(cut) => assert!(
                matches!(cut, ReadError::Short(_) | ReadError::Reset(_)),
                "{cut:?}"
            ),
        }
    }
}
