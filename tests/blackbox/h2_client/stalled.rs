//! Uploads that no backend reads: other calls on the connection go on, and memory stays bounded.
//! A client that reads nothing.

use std::collections::BTreeMap;

use super::{
    conformance::{setting, window},
    front_of,
};
use crate::harness::{
    daemon::TestDaemon,
    frames::{
        ACK, DATA, END_HEADERS, END_STREAM, GET_FIELDS, GOAWAY, HEADERS, PING, RST_STREAM,
        RawFrame, RawH2Backend, RawH2Client, SETTINGS, WINDOW_UPDATE, fields, frame,
    },
    peer::ScriptedPeer,
};

const INITIAL_WINDOW: i64 = 65_535;
const PART_BYTES: i64 = 16_384;

/// A client that sends as much as windows allow.
struct Uploader {
    client: RawH2Client,
    connection: i64,
    first: i64,
    streams: BTreeMap<u32, i64>,
}

impl Uploader {
    fn connect(daemon: &TestDaemon) -> Self {
        let mut this = Self {
            client: RawH2Client::connect(daemon.address("@web")),
            connection: INITIAL_WINDOW,
            first: INITIAL_WINDOW,
            streams: BTreeMap::new(),
        };
        this.ping();
        this
    }

    /// Reads a frame, and does what it says to windows; gives it if it says nothing to them.
    fn next(&mut self) -> Option<RawFrame> {
        let got = self.client.next().expect("a connection that goes on");
        let number = |at: usize| {
            let bytes = got.payload[at..at + 4].try_into();
            i64::from(u32::from_be_bytes(bytes.unwrap()))
        };
        match (got.kind, got.stream) {
            (SETTINGS, _) if got.flags == 0 => {
                for at in (0..got.payload.len()).step_by(6) {
                    if got.payload[at..at + 2] == [0, 4] {
                        self.first = number(at + 2);
                    }
                }
                self.client.send(frame(SETTINGS, ACK, 0, &[]));
            }
            (PING, _) if got.flags == 0 => {
                self.client.send(frame(PING, ACK, 0, &got.payload));
            }
            (WINDOW_UPDATE, 0) => self.connection += number(0),
            (WINDOW_UPDATE, stream) => {
                if let Some(window) = self.streams.get_mut(&stream) {
                    *window += number(0);
                }
            }
            (RST_STREAM | GOAWAY, _) => panic!("ended by {}", got.code()),
            _ => return Some(got),
        }
        None
    }

    /// Reads all that was written before the response to a PING.
    fn ping(&mut self) {
        self.client.send(frame(PING, 0, 0, b"all read"));
        while self.next().is_none_or(|got| got.kind != PING) {}
    }

    fn begin(&mut self, stream: u32, method: &str, path: &str) {
        let list = [
            (":method", method),
            (":scheme", "http"),
            (":path", path),
            (":authority", "test"),
        ];
        let flags = if method == "GET" { END_STREAM } else { 0 };
        self.streams.insert(stream, self.first);
        self.client
            .send(frame(HEADERS, END_HEADERS | flags, stream, &fields(&list)));
    }

    /// Sends at most that many bytes of content; returns how many.
    fn send(&mut self, stream: u32, most: i64) -> i64 {
        let window = self.streams.get_mut(&stream).unwrap();
        let count = most
            .min(PART_BYTES)
            .min(*window)
            .min(self.connection)
            .max(0);
        *window -= count;
        self.connection -= count;
        if count > 0 {
            let content = vec![b'x'; count as usize];
            self.client.send(frame(DATA, 0, stream, &content));
        }
        count
    }

    /// Sends on these streams until nothing more can be sent.
    fn fill(&mut self, streams: &[u32]) {
        loop {
            let mut sent = 0;
            for stream in streams {
                while self.send(*stream, PART_BYTES) > 0 {
                    sent += 1;
                }
            }
            if sent == 0 {
                return;
            }
            self.ping();
            self.ping();
        }
    }

    /// Sends a body of such a length, and reads the response.
    fn upload(&mut self, stream: u32, length: i64) {
        self.begin(stream, "POST", "/good");
        let mut left = length;
        while left > 0 {
            let sent = self.send(stream, left);
            left -= sent;
            if sent == 0 {
                self.next();
            }
        }
        self.client.send(frame(DATA, END_STREAM, stream, &[]));
        self.response(stream);
    }

    fn response(&mut self, stream: u32) {
        let is_end = |got: &RawFrame| got.stream == stream && got.flags & END_STREAM > 0;
        while !self.next().is_some_and(|got| is_end(&got)) {}
    }
}

/// A daemon whose `/stalled` goes to a backend that never opens a window, and all else to one that
/// reads and answers.
fn front(stalling: &ScriptedPeer, good: &ScriptedPeer, streams: usize) -> TestDaemon {
    TestDaemon::start(&format!(
        "workers: 1
listeners: {{web: {{bind: \"@web\", pool: good, http: {{h2_max_streams: {streams}}}}}}}
routes: [{{path: /stalled, pool: stalled}}]
pools:
  good: {{backends: [{}], health_check: none}}
  stalled: {{backends: [{}], protocol: h2c, health_check: none}}
",
        good.address, stalling.address
    ))
}

fn stalling() -> ScriptedPeer {
    ScriptedPeer::start(|connection| {
        if let Some(mut backend) = RawH2Backend::greet(connection) {
            while backend.next().is_some() {}
        }
    })
}

#[test]
fn uploads_that_no_backend_reads_hold_up_no_other_call() {
    for (streams, stalled) in [(100, 3), (100, 20), (100, 99), (10, 9), (1_000, 999)] {
        let (stalling, good) = (stalling(), ScriptedPeer::answering("hello"));
        let daemon = front(&stalling, &good, streams);
        let mut client = Uploader::connect(&daemon);
        let ids: Vec<u32> = (0..stalled).map(|index| 2 * index + 1).collect();
        for id in &ids {
            client.begin(*id, "POST", "/stalled");
        }
        client.fill(&ids);
        let next = 2 * stalled + 1;
        client.upload(next, 2_000_000);
        client.begin(next + 2, "GET", "/good");
        client.response(next + 2);
        client.upload(next + 4, 10);
        let resident = daemon.proc_status("VmRSS");
        assert!(resident < 120 << 10, "{stalled}: {resident} KiB");
    }
}

#[test]
fn a_large_upload_that_stalls_late_holds_up_no_other_call() {
    // It is read for a while, so that its window grows.
    let stalling = ScriptedPeer::start(|connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        let mut left = 30_000_000;
        while left > 0
            && let Some(part) = backend.until(|frame| frame.kind == DATA)
        {
            left -= i64::try_from(part.payload.len()).unwrap();
            for stream in [part.stream, 0] {
                let more = (part.payload.len() as u32).to_be_bytes();
                backend.send(frame(WINDOW_UPDATE, 0, stream, &more));
            }
        }
        while backend.next().is_some() {}
    });
    let good = ScriptedPeer::answering("hello");
    let daemon = front(&stalling, &good, 100);
    let mut client = Uploader::connect(&daemon);
    let ids: Vec<u32> = (0..20).map(|index| 2 * index + 1).collect();
    for id in &ids {
        client.begin(*id, "POST", "/stalled");
    }
    client.fill(&ids);
    client.upload(101, 2_000_000);
}

#[test]
fn a_response_whose_client_reads_nothing_ends_at_the_total_timeout() {
    let part = "x".repeat(1 << 20);
    let backend = ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/late" {
                connection.answer("late");
                continue;
            }
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
            while connection.send(&part) {}
            return;
        }
    });
    let daemon = front_of(backend.address, "", "timeouts: {connect: 1s, total: 1s}");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.send(setting(4, i32::MAX as u32));
    client.send(window(0, 1 << 30));
    let mut list = GET_FIELDS;
    // The output is full when the first has ended, and stays so: there is no room for a head.
    for (stream, path) in [(1, "/large"), (3, "/late")] {
        list[2].1 = path;
        client.ask(stream, &list);
        let logged = daemon.wait_for_access(|line| line["path"] == path);
        assert_eq!(logged["reason"], "total_timeout", "{logged}");
    }
}
