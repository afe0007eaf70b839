//! Slow clients: uploads that drip are given up, those that are only slow are served, and none
//! costs much memory.

use std::{thread::sleep, time::Duration};

use crate::harness::{
    answers::expect_error,
    client::{HttpClient, ReadError},
    daemon::TestDaemon,
    peer::ScriptedPeer,
    poll,
};
use balancer::base::clock;

fn config(body_idle: &str, backend: &ScriptedPeer) -> String {
    timeouts(body_idle, "60s", backend)
}

/// `@web` in front of `backend`, with these for `timeouts.body_idle` and `timeouts.idle`.
fn timeouts(body_idle: &str, idle: &str, backend: &ScriptedPeer) -> String {
    format!(
        "access_log: {{when: {{sample: 100%}}}}\nlisteners:\n  web: {{bind: \"@web\", pool: app, timeouts: {{body_idle: {body_idle}}}}}\npools:\n  app: {{health_check: none, backends: [{}], timeouts: {{idle: {idle}}}}}\n",
        backend.address
    )
}

/// Sends one response of `length` bytes on each connection, as fast as it is taken.
fn large(length: usize) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        connection.request();
        connection.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
        ));
        let part = vec![b'a'; 1 << 20];
        let mut left = length;
        while left > 0 && connection.send(&part[..part.len().min(left)]) {
            left = left.saturating_sub(part.len());
        }
    })
}

/// Waits for the pace of bytes that drip; true if something came meanwhile.
fn comes_within(client: &mut HttpClient, pace: Duration) -> bool {
    client.patience(pace);
    let seen = !matches!(client.more(), Err(ReadError::TimedOut(_)));
    client.patience(crate::harness::PATIENCE);
    seen
}

#[test]
fn a_body_that_drips_is_given_up_though_every_part_comes_in_time() {
    let backend = ScriptedPeer::answering("wrong");
    let daemon = TestDaemon::start(&config("1s", &backend));
    for framing in ["Content-Length: 100000", "Transfer-Encoding: chunked"] {
        let mut client = daemon.client("@web");
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n"
        ));
        let began = clock::now();
        let pace = Duration::from_millis(50);
        let ended = poll(|| {
            let over = !client.try_send("1\r\na\r\n") || comes_within(&mut client, pace);
            over.then_some(())
        });
        assert!(ended.is_some(), "it may drip for ever");
        expect_error(&client.response().unwrap(), 408, "http_request_timeout");
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(900), "{took:?}");
    }
}

#[test]
fn a_slow_upload_at_a_steady_pace_is_served() {
    let backend = ScriptedPeer::answering("thanks");
    let daemon = TestDaemon::start(&config("2s", &backend));
    let mut client = daemon.client("@web");
    let (parts, part) = (60, [b'a'; 512]);
    let length = parts * part.len();
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
    ));
    for _ in 0..parts {
        client.send(part);
        // The pace itself: 10 KiB a second, for longer than the window.
        sleep(Duration::from_millis(50));
    }
    assert_eq!(client.response().unwrap().text(), "thanks");
    assert_eq!(backend.wait_for_requests(1)[0].body.len(), length);
}

#[test]
fn a_backend_that_takes_its_time_is_not_held_against_the_client() {
    // It reads half of the body, and the rest only much later.
    let backend = ScriptedPeer::start(|mut connection| {
        let head = connection.head().unwrap();
        let length: usize = head.header("content-length").unwrap().parse().unwrap();
        connection.each(length / 2, |_| {}).unwrap();
        sleep(Duration::from_millis(1_500));
        connection.each(length - length / 2, |_| {}).unwrap();
        connection.answer("at last");
    });
    let daemon = TestDaemon::start(&config("500ms", &backend));
    let body = vec![b'a'; 40 << 20];
    let mut client = daemon.client("@web");
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ));
    client.send(&body);
    assert_eq!(client.response().unwrap().text(), "at last");
}

#[test]
fn a_body_that_drips_is_served_once_its_response_has_begun() {
    let backend = ScriptedPeer::start(|mut connection| {
        connection.head().unwrap();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n");
        for _ in 0..20 {
            let byte = connection.exactly(1).unwrap();
            connection.send(byte);
        }
    });
    let daemon = TestDaemon::start(&timeouts("800ms", "1s", &backend));
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 20\r\n\r\n");
    assert_eq!(client.head().unwrap().0, 200);
    // Longer than both times, in steps that are shorter.
    for byte in b'a'..b'a' + 20 {
        client.send([byte]);
        assert_eq!(client.exactly(1).unwrap(), [byte]);
        sleep(Duration::from_millis(65));
    }
}

#[test]
fn a_body_of_which_nothing_comes_is_given_up_after_its_response_has_begun() {
    let backend = ScriptedPeer::start(|mut connection| {
        connection.head().unwrap();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nbegun");
        connection.wait_for_end();
    });
    let daemon = TestDaemon::start(&timeouts("60s", "300ms", &backend));
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 20\r\n\r\n");
    client.until(b"begun").unwrap();
    assert_eq!(client.rest(), Ok(Vec::new()), "less than was announced");
    daemon.wait_for_access(|line| line["reason"] == "http_request_timeout");
    let blamed = daemon.metric("balancer_backend_failures_total") as u64;
    assert_eq!(blamed, 0, "the backend is not to blame");
}

#[test]
fn a_reader_that_stops_is_given_up() {
    let backend = large(200 << 20);
    let daemon = TestDaemon::start(&timeouts("60s", "500ms", &backend));
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    client.exactly(1 << 20).unwrap();
    let began = clock::now();
    daemon.wait_for_access(|line| line["reason"] == "client_write_timeout");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let blamed = daemon.metric("balancer_backend_failures_total") as u64;
    assert_eq!(blamed, 0, "the backend is not to blame");
}

#[test]
fn a_reader_that_stands_still_for_less_than_the_idle_time_is_served() {
    let length = 20 << 20;
    let backend = large(length);
    let daemon = TestDaemon::start(&timeouts("200ms", "10s", &backend));
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(client.head().unwrap().0, 200);
    sleep(Duration::from_secs(1));
    client.each(length, |_| {}).unwrap();
}

#[test]
fn a_slow_reader_behind_a_large_buffer_is_served_to_the_end() {
    let length = 40 << 20;
    let backend = large(length);
    let daemon = TestDaemon::start(&timeouts("1s", "1s", &backend));
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(client.head().unwrap().0, 200);
    // 400 KiB a second: what the sender's system has buffered lasts for many windows.
    let slowly = 80;
    for _ in 0..slowly {
        client.each(20 << 10, |_| {}).unwrap();
        sleep(Duration::from_millis(50));
    }
    client.each(length - slowly * (20 << 10), |_| {}).unwrap();
    daemon.wait_for_access(|line| line["status"] == 200 && line["bytes_out"] == length);
}

#[test]
fn a_slow_reader_of_a_huge_response_holds_bounded_memory() {
    let backend = large(4 << 30);
    let daemon = TestDaemon::start(&config("30s", &backend));
    assert_eq!(daemon.get("@metrics", "/livez").unwrap().status, 200);
    let before = daemon.proc_status("VmRSS");
    let mut clients: Vec<HttpClient> = (0..8).map(|_| daemon.client("@web")).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        client.exactly(1 << 20).unwrap();
    }
    let sent = || daemon.metric("balancer_listener_sent_bytes_total") as u64;
    let mut last = 0;
    let stuck = poll(|| {
        let (now, stays) = (sent(), std::mem::replace(&mut last, sent()));
        sleep(Duration::from_millis(100));
        (now == stays && now == sent()).then_some(())
    });
    assert!(stuck.is_some(), "everything is full in the end");
    let grown = daemon.proc_status("VmRSS").saturating_sub(before);
    assert!(grown < 8 * 1_024, "{grown} KiB for 8 readers");
}
