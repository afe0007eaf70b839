//! Many streams, large bodies, small windows, and how connections end.

use std::time::Duration;

use bytes::Bytes;
use h2::client;
use hyper::http::Method;
use rustix::process::Signal;

use super::{front, front_of};
use crate::harness::{
    client::HttpClient,
    daemon::TestDaemon,
    frames::{
        DATA, END_HEADERS, END_STREAM, GET_FIELDS, GOAWAY, HEADERS, NO_ERROR, RST_STREAM,
        RawH2Client, fields, frame,
    },
    h2::{connect, connect_with, get, patiently, pattern, read, request, send, until, whole},
    peer::{Gate, ScriptedPeer},
};

#[tokio::test]
async fn large_bodies_pass_through_small_windows() {
    const BODY_BYTES: usize = 3_000_000;
    let backend = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            connection.send(head);
            for part in request.body.chunks(70_001) {
                connection.send(format!("{:x}\r\n", part.len()));
                connection.send(part);
                connection.send("\r\n");
            }
            connection.send("0\r\n\r\n");
        }
    });
    let daemon = front(backend.address, "");
    let mut small = client::Builder::new();
    small.initial_window_size(7_000);
    let (mut sender, _driver) = connect_with(daemon.address("@web"), &small).await;
    let asked = request(Method::POST, "/", &[]);
    let (response, mut body) = sender.send_request(asked, false).unwrap();
    let bytes = Bytes::from(pattern(BODY_BYTES));
    let (answer, ()) = tokio::join!(whole(response), send(&mut body, bytes.clone()));
    assert!(answer.unwrap().body == bytes, "other bytes than were sent");
}

#[tokio::test]
async fn many_streams_on_many_connections_all_get_their_own_answer() {
    let backend = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            if !connection.answer(&request.target) {
                break;
            }
        }
    });
    let daemon = front(backend.address, "");
    let mut all = tokio::task::JoinSet::new();
    for client in 0..16 {
        let (sender, _driver) = connect(daemon.address("@web")).await;
        for stream in 0..32 {
            let sender = sender.clone();
            all.spawn(async move {
                let path = format!("/{client}/{stream}");
                let answer = get(&sender, &path).await.unwrap();
                assert_eq!((answer.status(), answer.body), (200, path.into_bytes()));
            });
        }
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    assert_eq!(backend.wait_for_requests(512).len(), 512);
}

#[tokio::test]
async fn a_stream_that_is_not_read_holds_up_no_other() {
    let backend = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let length = if request.target == "/long" {
                1_000_000
            } else {
                5
            };
            let body = "x".repeat(length);
            if !connection.answer(&body) {
                break;
            }
        }
    });
    let daemon = front_of(backend.address, "", "timeouts: {idle: 300ms}");
    let mut wide = client::Builder::new();
    wide.initial_connection_window_size(1 << 20);
    let (mut sender, _driver) = connect_with(daemon.address("@web"), &wide).await;
    let asked = request(Method::GET, "/long", &[]);
    let (stalled, _) = sender.send_request(asked, true).unwrap();
    let stalled = patiently(stalled).await.unwrap();
    assert_eq!(get(&sender, "/short").await.unwrap().body, b"xxxxx");
    let logged = daemon.wait_for_access(|line| line["path"] == "/long");
    assert_eq!(logged["reason"], "client_write_timeout");
    let error = patiently(read(&mut stalled.into_body())).await.unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
    assert_eq!(get(&sender, "/short").await.unwrap().body, b"xxxxx");
}

#[tokio::test]
async fn a_stream_whose_reader_stands_still_goes_on_where_it_was() {
    const BODY_BYTES: usize = 2_000_000;
    let backend = ScriptedPeer::start(|mut connection| {
        while connection.request().is_some() {
            let body = "x".repeat(BODY_BYTES);
            if !connection.answer(&body) {
                break;
            }
        }
    });
    let daemon = front_of(
        backend.address,
        "timeouts: {body_idle: 200ms}",
        "timeouts: {idle: 10s}",
    );
    let (sender, _driver) = connect(daemon.address("@web")).await;
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let asked = request(Method::GET, "/", &[]);
        let (response, _) = sender.clone().send_request(asked, true).unwrap();
        all.spawn(async move {
            let mut body = patiently(response).await.unwrap().into_body();
            tokio::time::sleep(Duration::from_secs(1)).await;
            patiently(read(&mut body)).await.unwrap().len()
        });
    }
    while let Some(length) = all.join_next().await {
        assert_eq!(length.unwrap(), BODY_BYTES);
    }
}

#[tokio::test]
async fn streams_whose_readers_stand_still_hold_bounded_memory() {
    let backend = ScriptedPeer::start(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        let part = vec![b'a'; 1 << 20];
        while connection.send(&part) {}
    });
    let daemon = front_of(backend.address, "", "timeouts: {idle: 3s}");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    let before = daemon.proc_status("VmRSS");
    let mut stalled = Vec::new();
    for _ in 0..50 {
        let asked = request(Method::GET, "/", &[]);
        let (response, _) = sender.clone().send_request(asked, true).unwrap();
        stalled.push(patiently(response).await.unwrap());
    }
    let mut most = before;
    until(|| {
        most = most.max(daemon.proc_status("VmRSS"));
        let lines = daemon.stdout.all();
        let over = lines
            .iter()
            .filter(|line| line.contains("client_write_timeout"));
        over.count() == stalled.len()
    })
    .await;
    let grown = most.saturating_sub(before);
    assert!(grown < 50 * 600, "{grown} KiB for 50 streams");
}

#[tokio::test]
async fn an_early_answer_comes_with_no_reset_while_the_client_goes_on_sending() {
    const BODY_BYTES: usize = 40_000_000;
    let backend = ScriptedPeer::start(|mut connection| {
        connection.head();
        connection.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno");
        connection.wait_for_bytes();
    });
    let theirs = front(backend.address, "");
    let ours = front(backend.address, "deny: [127.0.0.0/8]");
    for (daemon, status) in [(&theirs, 401), (&ours, 403)] {
        let (mut sender, driver) = connect(daemon.address("@web")).await;
        let asked = request(Method::POST, "/", &[("content-length", "40000000")]);
        let (response, mut body) = sender.send_request(asked, false).unwrap();
        // Everything is sent before anything is read.
        send(&mut body, Bytes::from(vec![0; BODY_BYTES])).await;
        assert_eq!(whole(response).await.unwrap().status(), status);
        assert!(!driver.is_finished());
    }
}

#[test]
fn a_client_that_stops_in_a_body_that_was_answered_is_told_so_without_an_error() {
    let backend = ScriptedPeer::answering("wrong");
    let daemon = front(backend.address, "deny: [127.0.0.0/8]");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.send(frame(HEADERS, END_HEADERS, 1, &fields(&GET_FIELDS)));
    client.until(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0);
    let reset = client.until(|frame| frame.kind == RST_STREAM);
    assert_eq!((reset.stream, reset.code()), (1, NO_ERROR));
}

#[tokio::test]
async fn a_body_that_the_backend_does_not_read_is_not_taken_from_the_client() {
    let gate = Gate::new();
    let door = gate.clone();
    let backend = ScriptedPeer::start(move |mut connection| {
        connection.head().unwrap();
        door.wait();
        let mut left = 20_000_000;
        connection.each(left, |part| left -= part.len()).unwrap();
        connection.answer("all");
    });
    let daemon = front(backend.address, "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let asked = request(Method::POST, "/", &[("content-length", "20000000")]);
    let (response, mut body) = sender.send_request(asked, false).unwrap();
    let upload = tokio::spawn(async move {
        send(&mut body, Bytes::from(vec![0; 20_000_000])).await;
    });
    let stopped = tokio::time::timeout(Duration::from_millis(500), whole(response));
    assert!(stopped.await.is_err(), "nothing is answered yet");
    assert!(!upload.is_finished(), "somebody has stored the body");
    gate.open();
    patiently(upload).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go_away() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "timeouts: {keepalive: 100ms}");
    let (sender, driver) = connect(daemon.address("@web")).await;
    assert_eq!(get(&sender, "/").await.unwrap().body, b"hello");
    patiently(driver).await.unwrap().unwrap();
    assert!(sender.ready().await.is_err());
}

#[tokio::test]
async fn a_connection_without_a_request_ends_with_the_time_for_the_first() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "timeouts: {header: 100ms}");
    let (_sender, driver) = connect(daemon.address("@web")).await;
    patiently(driver).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_closed_for_a_new_one_and_a_busy_one_is_not() {
    let (gate, seen) = (Gate::new(), Gate::new());
    let (door, eye) = (gate.clone(), seen.clone());
    let backend = ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/slow" {
                eye.open();
                door.wait();
            }
            if !connection.answer("finished") {
                return;
            }
        }
    });
    let daemon = TestDaemon::start(&format!(
        "workers: 1\nmax_connections: 2\nlisteners: {{web: {{bind: \"@web\", pool: app}}}}\npools: {{app: {{backends: [{}], health_check: none}}}}\n",
        backend.address
    ));
    let (busy, busy_driver) = connect(daemon.address("@web")).await;
    let (idle, idle_driver) = connect(daemon.address("@web")).await;
    assert_eq!(get(&idle, "/").await.unwrap().status(), 200);
    let (response, _) = busy
        .clone()
        .send_request(request(Method::GET, "/slow", &[]), true)
        .unwrap();
    until(|| seen.is_open()).await;
    let (third, _driver) = connect(daemon.address("@web")).await;
    assert_eq!(get(&third, "/").await.unwrap().status(), 200);
    patiently(idle_driver).await.unwrap().unwrap();
    assert!(!busy_driver.is_finished());
    gate.open();
    assert_eq!(whole(response).await.unwrap().body, b"finished");
}

#[tokio::test]
async fn a_drain_lets_streams_end_and_takes_no_new_ones() {
    let (gate, seen) = (Gate::new(), Gate::new());
    let (door, eye) = (gate.clone(), seen.clone());
    let backend = ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/slow" {
                eye.open();
                door.wait();
            }
            if !connection.answer("finished") {
                return;
            }
        }
    });
    let mut daemon = front(backend.address, "");
    let (sender, driver) = connect(daemon.address("@web")).await;
    let (idle, idle_driver) = connect(daemon.address("@web")).await;
    assert_eq!(get(&idle, "/").await.unwrap().body, b"finished");
    let (response, _) = sender
        .clone()
        .send_request(request(Method::GET, "/slow", &[]), true)
        .unwrap();
    until(|| seen.is_open()).await;
    daemon.signal(Signal::TERM);
    patiently(idle_driver).await.unwrap().unwrap();
    gate.open();
    assert_eq!(whole(response).await.unwrap().body, b"finished");
    patiently(driver).await.unwrap().unwrap();
    assert!(daemon.wait_exit().success());
}

#[test]
fn a_client_that_does_not_see_that_we_leave_gets_no_more_streams_either() {
    let gate = Gate::new();
    let door = gate.clone();
    let backend = ScriptedPeer::start(move |mut connection| {
        while connection.request().is_some() {
            door.wait();
            connection.answer("finished");
        }
    });
    let mut daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.ask(1, &GET_FIELDS);
    backend.wait_for_requests(1);
    daemon.signal(Signal::TERM);
    // The first one names no stream; its PING is not answered.
    let goaway = |client: &mut RawH2Client| client.until(|frame| frame.kind == GOAWAY).payload;
    assert_eq!(goaway(&mut client)[..4], [0x7f, 0xff, 0xff, 0xff]);
    assert_eq!(goaway(&mut client)[..4], [0, 0, 0, 1]);
    client.ask(3, &GET_FIELDS);
    let refused = client.until(|frame| frame.stream == 3);
    assert_eq!((refused.kind, refused.code()), (RST_STREAM, 7));
    gate.open();
    let end = client.until(|frame| frame.stream == 1 && frame.kind == DATA);
    assert_eq!(end.payload, b"finished");
    assert!(daemon.wait_exit().success());
}

#[test]
fn without_h2c_a_plain_listener_speaks_http_1_only() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "http: {h2c: false}");
    let mut client = daemon.client("@web");
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(client.response().unwrap().status, 505);
}

#[test]
fn the_preface_is_known_in_pieces_and_http_1_is_not_mistaken_for_it() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let mut pieces = HttpClient::connect(daemon.address("@web"));
    for piece in ["P", "RI * HT", "TP/2", ".0\r\n", "\r\nSM", "\r\n\r\n"] {
        pieces.send(piece);
    }
    // Our settings come first: a frame of kind 4.
    assert_eq!(pieces.exactly(9).unwrap()[3], 4);
    for (text, status) in [
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", 505),
        ("PRI * HTTP/2.1\r\n\r\n", 505),
        ("PRI / HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    ] {
        let mut client = daemon.client("@web");
        client.send(text);
        assert_eq!(client.response().unwrap().status, status, "{text}");
    }
    let mut later = daemon.client("@web");
    assert_eq!(later.request("GET", "/").unwrap().status, 200);
    later.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(later.response().unwrap().status, 505, "not after a request");
}
