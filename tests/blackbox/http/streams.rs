//! Long bodies: every byte arrives, and a slow side makes the other wait instead of filling memory.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use crate::{
    harness::{
        client::HttpClient,
        daemon::TestDaemon,
        peer::{Gate, PeerConnection, ScriptedPeer},
        poll,
    },
    http::{front, pool},
};

const MIB: usize = 1 << 20;
/// A prime, so that no buffer size hides a shift.
const PERIOD_BYTES: usize = 1_000_003;
/// More than this is not explained by buffers and noise.
const MOST_GROWTH: usize = 24 * MIB;

/// Bytes that repeat only after [`PERIOD_BYTES`]: a byte in the wrong place is seen.
struct BytePattern(Vec<u8>);

impl BytePattern {
    fn new() -> Self {
        let mut state = 1_u32;
        let mut bytes: Vec<u8> = (0..PERIOD_BYTES)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        bytes.extend_from_within(..MIB / 2);
        Self(bytes)
    }

    /// `length` bytes from `at` on; at most half a MiB.
    fn part(&self, at: usize, length: usize) -> &[u8] {
        &self.0[at % PERIOD_BYTES..][..length]
    }

    /// Calls `send` with the pieces of a body.
    fn send(&self, length: usize, piece: usize, mut send: impl FnMut(&[u8]) -> bool) {
        let mut at = 0;
        while at < length {
            let here = piece.min(length - at);
            if !send(self.part(at, here)) {
                return;
            }
            at += here;
        }
    }

    /// Checks the pieces of a body as they come.
    fn check(&self) -> impl FnMut(&[u8]) {
        let mut at = 0;
        move |bytes| {
            for piece in bytes.chunks(MIB / 2) {
                assert!(
                    piece == self.part(at, piece.len()),
                    "a wrong byte after {at}"
                );
                at += piece.len();
            }
        }
    }
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn resident(daemon: &TestDaemon) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        << 10
}

fn read_chunks(client: &mut HttpClient, mut take: impl FnMut(&[u8])) {
    loop {
        let line = String::from_utf8(client.until(b"\r\n").unwrap()).unwrap();
        let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
        client.each(size, &mut take).unwrap();
        client.exactly(2).unwrap();
        if size == 0 {
            return;
        }
    }
}

/// Sends a body as the target asks: `/length/N` or `/chunked/N`.
fn serve_long(mut connection: PeerConnection, pattern: &BytePattern, sent: &AtomicUsize) {
    while let Some(head) = connection.head() {
        let mut words = head.target.rsplit('/');
        let length: usize = words.next().unwrap().parse().unwrap();
        if words.next() == Some("chunked") {
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            pattern.send(length, 100_000, |piece| {
                sent.fetch_add(piece.len(), SeqCst);
                connection.send(chunk(piece))
            });
            connection.send("0\r\n\r\n");
        } else {
            connection.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
            ));
            pattern.send(length, MIB / 2, |piece| {
                sent.fetch_add(piece.len(), SeqCst);
                connection.send(piece)
            });
        }
    }
}

#[test]
fn long_responses_arrive_whole_spliced_and_chunked() {
    let peer = ScriptedPeer::start(|connection| {
        serve_long(connection, &BytePattern::new(), &AtomicUsize::new(0));
    });
    let daemon = front(peer.address, "");
    let pattern = BytePattern::new();
    let mut client = daemon.client("@web");
    for length in [300 * MIB + 7, 300_000, 65_537] {
        client.send(format!("GET /length/{length} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.head().unwrap().0, 200);
        client.each(length, pattern.check()).unwrap();
        client.send(format!("GET /chunked/{length} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.head().unwrap().0, 200);
        let mut got = 0;
        let mut check = pattern.check();
        read_chunks(&mut client, |bytes| {
            got += bytes.len();
            check(bytes);
        });
        assert_eq!(got, length);
    }
    assert_eq!(peer.connections(), 1, "each body ended where it should");
    daemon.wait_for_access(|line| line["bytes_out"] == 300 * MIB + 7);
}

/// Checks uploaded bodies and answers with their length.
fn take_long(mut connection: PeerConnection, pattern: &BytePattern) {
    while let Some(head) = connection.head() {
        let mut check = pattern.check();
        let mut got = 0;
        let mut take = |bytes: &[u8]| {
            got += bytes.len();
            check(bytes);
        };
        if let Some(length) = head.header("content-length") {
            connection.each(length.parse().unwrap(), &mut take).unwrap();
        } else {
            loop {
                let line = String::from_utf8(connection.until(b"\r\n").unwrap()).unwrap();
                let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
                connection.each(size, &mut take).unwrap();
                connection.exactly(2).unwrap();
                if size == 0 {
                    break;
                }
            }
        }
        connection.answer(&got.to_string());
    }
}

#[test]
fn long_uploads_arrive_whole_copied_spliced_and_chunked() {
    for retries in ["", ", retries: none"] {
        let peer = ScriptedPeer::start(|connection| take_long(connection, &BytePattern::new()));
        let daemon = pool(
            &format!("backends: [{}], health_check: none{retries}", peer.address),
            "",
        );
        let pattern = BytePattern::new();
        let mut client = daemon.client("@web");
        for length in [150 * MIB + 7, 300_000, 65_537] {
            client.send(format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
            ));
            pattern.send(length, MIB / 2, |piece| client.try_send(piece));
            assert_eq!(client.response().unwrap().text(), length.to_string());
            client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
            pattern.send(length, 100_000, |piece| client.try_send(chunk(piece)));
            client.send("0\r\n\r\n");
            assert_eq!(client.response().unwrap().text(), length.to_string());
        }
        assert_eq!(peer.connections(), 1);
    }
}

/// Waits until `count` has stood still for a while: nothing moves any more.
fn wait_for_standstill(count: &AtomicUsize) -> usize {
    let mut before = 0;
    let mut still = 0;
    poll(|| {
        let now = count.load(SeqCst);
        still = if now == before && now > 0 {
            still + 1
        } else {
            0
        };
        before = now;
        (still >= 40).then_some(now)
    })
    .expect("back-pressure stops the sender")
}

#[test]
fn a_slow_reader_makes_the_backend_wait_and_memory_stay_flat() {
    for kind in ["length", "chunked"] {
        let length = if kind == "length" {
            1024 * MIB
        } else {
            192 * MIB
        };
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let peer = ScriptedPeer::start(move |connection| {
            serve_long(connection, &BytePattern::new(), &count);
        });
        let daemon = front(peer.address, "");
        assert_eq!(daemon.get("@web", "/length/3").unwrap().status, 200);
        let before = resident(&daemon);
        let mut client = daemon.client("@web");
        client.send(format!("GET /{kind}/{length} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let stuck = wait_for_standstill(&sent);
        assert!(
            stuck < 64 * MIB,
            "{kind}: the backend got rid of {stuck} unread bytes"
        );
        let mut most = resident(&daemon);
        assert_eq!(client.head().unwrap().0, 200);
        for _ in 0..8 {
            client.each(length / 8, |_| ()).unwrap();
            most = most.max(resident(&daemon));
        }
        assert!(
            most < before + MOST_GROWTH,
            "{kind}: from {before} to {most} bytes"
        );
    }
}

#[test]
fn a_slow_backend_makes_the_client_wait_and_memory_stay_flat() {
    for kind in ["Content-Length: 500000000", "Transfer-Encoding: chunked"] {
        let gate = Gate::new();
        let door = gate.clone();
        let peer = ScriptedPeer::start(move |mut connection| {
            let head = connection.head().unwrap();
            if head.method == "POST" {
                door.wait();
                while !connection.has_ended() {
                    connection.each(1, |_| ()).unwrap_or_default();
                }
            } else {
                // The upload is not to meet a connection that is just being closed.
                let close = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
                connection.send(close);
            }
        });
        let daemon = front(peer.address, "");
        assert_eq!(daemon.get("@web", "/").unwrap().status, 200);
        let before = resident(&daemon);
        let mut client = daemon.client("@web");
        client.limit_writes(Duration::from_secs(1));
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{kind}\r\n\r\n"));
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let sender = thread::spawn(move || {
            let piece = if kind.starts_with('C') {
                vec![7; 100_000]
            } else {
                chunk(&[7; 100_000])
            };
            while count.load(SeqCst) < 500_000_000 && client.try_send(&piece) {
                count.fetch_add(100_000, SeqCst);
            }
            client
        });
        let stuck = wait_for_standstill(&sent);
        assert!(
            stuck < 64 * MIB,
            "{kind}: the client got rid of {stuck} unread bytes"
        );
        let most = resident(&daemon);
        assert!(
            most < before + MOST_GROWTH,
            "{kind}: from {before} to {most} bytes"
        );
        drop(sender.join().unwrap());
        gate.open();
    }
}
