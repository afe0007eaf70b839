//! What cannot be seen from outside: how much a connection holds.

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

use super::*;
use crate::net::h2::reader::{Body, Head};

const LIMITS: Limits = Limits {
    fields: 100,
    bytes: 32 << 10,
};

fn pair() -> (Rc<Connection>, UnixStream) {
    let (own, peer) = UnixStream::pair().unwrap();
    set_socket_send_buffer_size(&own, 16 << 10).unwrap();
    let connection = Connection::of_client(
        Stream::from(own),
        frame::PREFACE,
        LIMITS,
        10,
        Random::seeded(1),
    );
    (connection, peer)
}

/// Lets the connection do what it can.
async fn drive(connection: &Connection) {
    poll_fn(|cx| {
        let polled = connection.poll(cx);
        assert!(polled.is_pending(), "{polled:?}");
        Poll::Ready(())
    })
    .await;
}

fn begin(connection: &Connection, id: u32) {
    let core = &mut *connection.core.borrow_mut();
    let mut flow = Flow::new(STREAM_WINDOW, Outward::new(frame::INITIAL_WINDOW));
    flow.reader.begin(Head {
        text: Vec::new(),
        body: Body::None,
        length: None,
    });
    core.flows.insert(id, flow);
    core.last = id;
}

#[tokio::test]
async fn a_reader_that_always_lags_behind_makes_nothing_grow() {
    const PART: usize = 16 << 10;
    let (connection, mut peer) = pair();
    begin(&connection, 1);
    let add = || {
        let out = &mut connection.core.borrow_mut().out;
        frame::write(out, kind::DATA, 0, 1, &[0; PART]);
    };
    let mut waste = vec![0; PART];
    for _ in 0..500 {
        while connection.core.borrow().unwritten() < MOST_UNWRITTEN {
            add();
        }
        drive(&connection).await;
        assert!(connection.has_unwritten(), "it lags behind");
        assert!(peer.read(&mut waste).await.unwrap() > 0);
        // The readiness of the socket takes a turn of the reactor.
        yield_now().await;
    }
    let held = connection.core.borrow().out.len();
    assert!(held <= 4 * MOST_UNWRITTEN, "{held} bytes");
}

/// Whether somebody was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
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
        let core = &mut *connection.core.borrow_mut();
        core.outward = Outward::new(0);
        frame::write(&mut core.out, kind::PING, 0, 0, &vec![0; MOST_UNWRITTEN]);
    }
    let (content, head) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
    let (first, second) = (Arc::clone(&content).into(), Arc::clone(&head).into());
    let mut cx = Context::from_waker(&first);
    assert!(connection.poll_room(1, &cx).is_pending());
    cx = Context::from_waker(&second);
    assert!(connection.poll_room_for_fields(3, &cx).is_pending());
    drive(&connection).await;
    while connection.has_unwritten() {
        assert!(peer.read(&mut [0; 4096]).await.unwrap() > 0);
        yield_now().await;
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
