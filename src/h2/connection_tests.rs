//! Properties that cannot be seen from outside, such as the memory that a connection holds.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Wake,
};

use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::yield_now,
};

use super::{
    super::{stream::H2Stream, stream_entry::SendWindow},
    *,
};
use crate::{
    http::message::BodyFraming,
    http2::{frame::flag, hpack::HpackEncoder},
    net::{driver::end_turn, fixture::paused},
};

const HEAD_LIMITS: HeadLimits = HeadLimits {
    fields: 100,
    bytes: 32 << 10,
};

fn pair() -> (Rc<Connection>, UnixStream) {
    let (own, peer) = UnixStream::pair().unwrap();
    set_socket_send_buffer_size(&own, 16 << 10).unwrap();
    let stream = Stream::from(own);
    let connection = Connection::of_client(stream, frame::CLIENT_PREFACE, HEAD_LIMITS, 10);
    (connection, peer)
}

/// Drives the connection as far as it goes now.
async fn drive(connection: &Connection) {
    poll_fn(|cx| {
        let polled = connection.poll(cx);
        assert!(polled.is_pending(), "{polled:?}");
        Poll::Ready(())
    })
    .await;
}

fn begin(connection: &Connection, id: u32) {
    let state = &mut *connection.state.borrow_mut();
    let mut entry = state.new_entry();
    entry.recv_buffer.begin_content(BodyFraming::None, false);
    state.streams.insert(id, entry);
    state.last_stream_id = id;
}

#[tokio::test]
async fn a_reader_that_always_lags_behind_makes_nothing_grow() {
    const PART_BYTES: usize = 16 << 10;
    let (connection, mut peer) = pair();
    begin(&connection, 1);
    let add = || {
        let out = &mut connection.state.borrow_mut().out;
        frame::write(out, kind::DATA, 0, 1, &[0; PART_BYTES]);
    };
    let mut waste = vec![0; PART_BYTES];
    for _ in 0..500 {
        while connection.state.borrow().unwritten() < MAX_UNWRITTEN_BYTES {
            add();
        }
        drive(&connection).await;
        assert!(connection.has_unwritten(), "it lags behind");
        assert!(peer.read(&mut waste).await.unwrap() > 0);
        end_turn();
    }
    let held = connection.state.borrow().out.len();
    assert!(held <= 4 * MAX_UNWRITTEN_BYTES, "{held} bytes");
}

/// Records a wake-up.
#[derive(Default)]
struct WakeRecord(AtomicBool);

impl Wake for WakeRecord {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

#[tokio::test]
async fn a_head_waits_for_no_window_and_content_does() {
    let (connection, mut peer) = pair();
    begin(&connection, 1);
    begin(&connection, 3);
    {
        let state = &mut *connection.state.borrow_mut();
        state.send_window = SendWindow::new(0);
        frame::write(
            &mut state.out,
            kind::PING,
            0,
            0,
            &vec![0; MAX_UNWRITTEN_BYTES],
        );
    }
    let (content, head) = (
        Arc::new(WakeRecord::default()),
        Arc::new(WakeRecord::default()),
    );
    let (first, second) = (Arc::clone(&content).into(), Arc::clone(&head).into());
    let mut cx = Context::from_waker(&first);
    assert!(connection.poll_send_content(1, &cx).is_pending());
    cx = Context::from_waker(&second);
    assert!(connection.poll_send_fields(3, &cx).is_pending());
    drive(&connection).await;
    while connection.has_unwritten() {
        assert!(peer.read(&mut [0; 4096]).await.unwrap() > 0);
        end_turn();
        drive(&connection).await;
    }
    assert!(head.0.load(Relaxed) && !content.0.load(Relaxed));
    peer.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    peer.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 9])
        .await
        .unwrap();
    for _ in 0..100 {
        drive(&connection).await;
        yield_now().await;
    }
    assert!(content.0.load(Relaxed));
}

/// Bytes of a request.
fn request_frames(id: u32) -> Vec<u8> {
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ];
    let mut out = Vec::new();
    frame::write_fields(&mut out, id, true, |out| {
        for (name, value) in fields {
            HpackEncoder::default().field(out, name.as_bytes(), value.as_bytes());
        }
    });
    out
}

/// Takes all requests, as exchanges whose backend has not responded.
fn take_requests(connection: &Rc<Connection>) -> Vec<H2Stream> {
    let mut taken = Vec::new();
    while let Some(request) = connection.state.borrow_mut().next_request() {
        taken.push(H2Stream::of_request(connection, &request));
    }
    taken
}

/// Resets ten requests after `age`, `rounds` times; false if the connection was closed. The
/// requests name `deadline`.
async fn resets(rounds: u32, deadline: Option<Duration>, age: Duration) -> bool {
    let (connection, _peer) = pair();
    let recv = |bytes: &[u8]| connection.state.borrow_mut().recv(bytes);
    let mut settings = Vec::new();
    frame::write_settings(&mut settings, &[]);
    recv(&settings);
    for round in 0..rounds {
        let ids = (0..10).map(|index| 20 * round + 2 * index + 1);
        for id in ids.clone() {
            recv(&request_frames(id));
        }
        let taken = take_requests(&connection);
        assert_eq!(taken.len(), 10);
        for stream in &taken {
            if let Some(deadline) = deadline {
                stream.allow_reset_after(deadline);
            }
        }
        tokio::time::advance(age).await;
        for id in ids {
            let mut reset = Vec::new();
            frame::write_u32(&mut reset, kind::RST_STREAM, id, ErrorCode::CANCEL.0);
            recv(&reset);
        }
        drop(taken);
        connection.state.borrow_mut().out.clear();
        if connection.close_reason().is_some() {
            return false;
        }
    }
    true
}

#[test]
fn resets_of_old_streams_and_at_deadlines_are_not_rapid_and_others_are() {
    paused(async {
        let ms = Duration::from_millis;
        assert!(resets(300, None, ms(100)).await, "old streams");
        assert!(!resets(300, None, ms(40)).await, "young streams");
        for (deadline, age, lives) in [
            (ms(300), 300, true),
            (ms(300), 90, false),
            (ms(50), 50, true),
            // The reset was delayed less than the request.
            (ms(50), 48, true),
            (ms(50), 20, false),
            (ms(20), 20, true),
            (Duration::from_nanos(1), 1, false),
            (ms(1_000), 100, true),
        ] {
            let outcome = resets(300, Some(deadline), ms(age)).await;
            assert_eq!(outcome, lives, "{deadline:?} {age}");
        }
    });
}

#[test]
fn what_we_end_ourselves_is_not_charged_to_the_client() {
    paused(async {
        let (connection, _peer) = pair();
        let recv = |bytes: &[u8]| connection.state.borrow_mut().recv(bytes);
        let mut settings = Vec::new();
        frame::write_settings(&mut settings, &[]);
        recv(&settings);
        for round in 0..1_000 {
            let id = 2 * round + 1;
            recv(&request_frames(id));
            // An exchange that ends without a response, such as one whose backend fails.
            drop(take_requests(&connection));
            let mut late = Vec::new();
            frame::write_u32(&mut late, kind::RST_STREAM, id, ErrorCode::CANCEL.0);
            recv(&late);
            connection.state.borrow_mut().out.clear();
        }
        assert_eq!(connection.close_reason(), None);
    });
}

/// Distant sender: sends as much as the windows allow, and receives our frames a round trip later.
struct FarSender {
    connection: Rc<Connection>,
    id: u32,
    window: i64,
    window_of_all: i64,
    pings: usize,
}

impl FarSender {
    fn recv(&self, bytes: &[u8]) {
        self.connection.state.borrow_mut().recv(bytes);
    }

    /// Sends as much as it may; all of it is read at once.
    fn burst(&mut self) -> usize {
        let mut count = 0;
        while self.window.min(self.window_of_all) > 0 {
            let part = self.window.min(self.window_of_all).min(16 << 10);
            self.window -= part;
            self.window_of_all -= part;
            count += part as usize;
            let mut bytes = Vec::new();
            frame::write(&mut bytes, kind::DATA, 0, self.id, &vec![0; part as usize]);
            self.recv(&bytes);
            let (read, _) = self.connection.read_content(self.id, usize::MAX, |_| ());
            assert_eq!(read, part as usize);
        }
        count
    }

    /// Handles our frames and replies to PINGs.
    fn recv_frames(&mut self) {
        let out = std::mem::take(&mut self.connection.state.borrow_mut().out);
        let mut rest = out.strip_prefix(frame::CLIENT_PREFACE).unwrap_or(&out);
        while let Some(head) = frame::Frame::read(rest) {
            let (payload, behind) = rest[frame::HEADER_BYTES..].split_at(head.length);
            rest = behind;
            match head.kind {
                kind::WINDOW_UPDATE => {
                    let more = i64::from(frame::u31(payload, 0).unwrap());
                    if head.stream == 0 {
                        self.window_of_all += more;
                    } else {
                        self.window += more;
                    }
                }
                kind::PING => {
                    self.pings += 1;
                    let mut ack = Vec::new();
                    frame::write(&mut ack, kind::PING, flag::ACK, 0, payload);
                    self.recv(&ack);
                }
                _ => {}
            }
        }
    }

    /// Number of round trips of 100 ms until `bytes` are received.
    async fn round_trips(&mut self, bytes: usize) -> usize {
        let (mut sent, mut trips) = (0, 0);
        while sent < bytes {
            sent += self.burst();
            tokio::time::advance(Duration::from_millis(100)).await;
            self.recv_frames();
            trips += 1;
        }
        trips
    }
}

#[test]
fn long_transfers_over_long_ways_get_windows_that_fit_and_few_pings() {
    paused(async {
        let mut head = Vec::new();
        let pseudo_fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/"),
        ];
        frame::write_settings(&mut head, &[]);
        frame::write(&mut head, kind::SETTINGS, flag::ACK, 0, &[]);
        let (client, _peer) = pair();
        let (own, _other) = UnixStream::pair().unwrap();
        let backend = Connection::of_backend(Stream::from(own), 100);
        backend.state.borrow_mut().recv(&head);
        let (id, _) = backend
            .open_stream(ResponseExpectation::default(), true, |_| {})
            .unwrap();
        let mut response_head = Vec::new();
        frame::write_fields(&mut response_head, id, false, |out| {
            HpackEncoder::default().status(out, 200);
        });
        backend.state.borrow_mut().recv(&response_head);
        frame::write_fields(&mut head, 1, false, |out| {
            for (name, value) in pseudo_fields {
                HpackEncoder::default().field(out, name.as_bytes(), value.as_bytes());
            }
        });
        client.state.borrow_mut().recv(&head);
        for (connection, name) in [(client, "upload"), (backend, "response")] {
            let first = connection.state.borrow().windows.first;
            let mut sender = FarSender {
                connection,
                id: 1,
                window: i64::from(first),
                window_of_all: i64::from(frame::INITIAL_WINDOW),
                pings: 0,
            };
            sender.recv_frames();
            // With the former window of 256 KiB this took 80 round trips.
            let trips = sender.round_trips(20 << 20).await;
            assert!(trips <= 20, "{name}: {trips} round trips");
            assert_eq!(sender.pings, 1, "{name}");
            let trips = sender.round_trips(200 << 20).await;
            assert!(trips <= 60, "{name}: {trips} round trips");
            assert_eq!(sender.pings, 1, "{name}");
            assert_eq!(sender.connection.close_reason(), None);
        }
    });
}
