use std::{
    future::poll_fn,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Wake,
};

use rustix::net::{RecvFlags, recv, sockopt::set_socket_send_buffer_size};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::net::{fixture, stream::Stream};

/// A peer and a socket of ours.
fn pair() -> (UnixStream, DrivenSocket) {
    let (peer, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (peer, DrivenSocket::connecting(ours.into()).unwrap())
}

#[derive(Default)]
struct WakeCount(AtomicUsize);

impl Wake for WakeCount {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[tokio::test]
async fn the_end_of_the_peer_is_seen_with_bytes_unread_before_it() {
    let (mut peer, socket) = pair();
    peer.write_all(b"not read").unwrap();
    end_turn();
    let count = Arc::new(WakeCount::default());
    let waker = Arc::clone(&count).into();
    let mut cx = Context::from_waker(&waker);
    let failure = SocketWait::Failure { is_unix: false };
    assert!(socket.poll_ready(&mut cx, SocketWait::End).is_pending());
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    end_turn();
    assert_eq!(count.0.load(Relaxed), 1);
    assert!(socket.poll_ready(&mut cx, SocketWait::End).is_ready());
    assert!(
        socket.poll_ready(&mut cx, failure).is_pending(),
        "it may still read"
    );
}

#[tokio::test]
async fn each_wait_has_its_own_task() {
    let (mut peer, socket) = pair();
    let waits = [
        SocketWait::Read,
        SocketWait::Write,
        SocketWait::Failure { is_unix: true },
    ];
    let counts = [(); 3].map(|()| Arc::new(WakeCount::default()));
    for (wait, count) in waits.into_iter().zip(&counts) {
        let waker = Arc::clone(count).into();
        let polled = socket.poll_ready(&mut Context::from_waker(&waker), wait);
        assert!(polled.is_pending());
    }
    let woken = || [0, 1, 2].map(|wait| counts[wait].0.load(Relaxed));
    // There is space from the beginning.
    end_turn();
    assert_eq!(woken(), [0, 1, 0]);
    peer.write_all(b"x").unwrap();
    end_turn();
    assert_eq!(woken(), [1, 1, 0]);
    drop(peer);
    end_turn();
    assert_eq!(woken(), [1, 1, 1]);
}

#[tokio::test]
async fn an_event_of_a_closed_socket_is_not_taken_for_one_of_the_next_in_its_slot() {
    let (mut peer, first) = pair();
    let waker = Waker::noop();
    let polled = first.poll_ready(&mut Context::from_waker(waker), SocketWait::Read);
    assert!(polled.is_pending());
    // A second descriptor keeps the socket open, and so its registration.
    let kept = first.as_fd().try_clone_to_owned().unwrap();
    let slot = first.id.slot;
    peer.write_all(b"x").unwrap();
    drop(first);
    let (_other_peer, next) = pair();
    assert_eq!(next.id.slot, slot);
    end_turn();
    let read = next.try_io(SocketWait::Read, |_| Ok(()));
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(kept);
}

#[test]
fn a_later_runtime_of_the_thread_has_a_driver_of_its_own() {
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut peer, socket) = pair();
            let written = tokio::task::spawn_blocking(move || peer.write_all(b"x"));
            let ready = poll_fn(|cx| socket.poll_ready(cx, SocketWait::Read)).await;
            ready.unwrap();
            let mut byte = [0];
            let read = socket.try_io(SocketWait::Read, |socket| {
                Ok(recv(socket, &mut byte[..], RecvFlags::empty())?)
            });
            assert_eq!((read.unwrap().1, byte), (1, *b"x"));
            written.await.unwrap().unwrap();
        });
    }
}

/// A peer and a stream of ours, whose kernel takes a few kilobytes. The first byte was sent.
fn narrow_pair() -> (UnixStream, Stream) {
    let (mut peer, ours) = UnixStream::pair().unwrap();
    set_socket_send_buffer_size(&ours, 1).unwrap();
    peer.set_nonblocking(true).unwrap();
    let ours = Stream::from_unix(ours).unwrap();
    // That one is sent at once.
    assert_eq!(ours.try_write(b"x").unwrap(), 1);
    assert_eq!(read_all(&mut peer), b"x");
    (peer, ours)
}

/// Reads all that is there.
fn read_all(peer: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    // Fails when there is nothing more.
    let _ = peer.read_to_end(&mut all);
    all
}

/// Bytes of which each part is different.
fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 7 % 251) as u8).collect()
}

#[tokio::test]
async fn small_sends_wait_for_the_end_of_the_turn_and_stay_in_order() {
    let ((mut first_peer, first), (mut second_peer, second)) = (narrow_pair(), narrow_pair());
    assert_eq!(first.try_write(b"one ").unwrap(), 4);
    assert_eq!(second.try_write(b"three").unwrap(), 5);
    assert_eq!(first.try_write(b"two").unwrap(), 3);
    assert_eq!(read_all(&mut first_peer), b"");
    end_turn();
    assert_eq!(read_all(&mut first_peer), b"one two");
    assert_eq!(read_all(&mut second_peer), b"three");
    // A send that is made at once comes after those that wait.
    assert_eq!(first.try_write(b"one ").unwrap(), 4);
    assert_eq!(first.try_write_last(b"two").unwrap(), 3);
    assert_eq!(read_all(&mut first_peer), b"one two");
    // The end does as well, of one direction or of both.
    assert_eq!(first.try_write(b"one").unwrap(), 3);
    first.shutdown_write().unwrap();
    assert_eq!(read_all(&mut first_peer), b"one");
    assert_eq!(second.try_write(b"two").unwrap(), 3);
    drop(second);
    assert_eq!(read_all(&mut second_peer), b"two");
}

#[tokio::test]
async fn a_task_that_waits_has_its_sends_made_without_another_one() {
    let (mut peer, stream) = narrow_pair();
    assert_eq!(stream.try_write(b"one").unwrap(), 3);
    while read_all(&mut peer) != b"one" {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_the_kernel_does_not_take_is_sent_when_it_has_space() {
    let (mut peer, stream) = narrow_pair();
    let sent = content(3 * MAX_QUEUED_SEND_BYTES);
    for part in sent.chunks(MAX_QUEUED_SEND_BYTES) {
        assert_eq!(stream.try_write(part).unwrap(), part.len());
    }
    end_turn();
    // It is full: no more is taken, and no end.
    let full = |result: io::Result<usize>| result.unwrap_err().kind() == io::ErrorKind::WouldBlock;
    assert!(full(stream.try_write(b"x")) && full(stream.try_write_last(b"x")));
    assert!(full(stream.shutdown_write().map(|()| 0)));
    let mut received = Vec::new();
    while received.len() < sent.len() {
        received.extend(read_all(&mut peer));
        end_turn();
    }
    assert_eq!(received, sent);
    stream.shutdown_write().unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
}

/// A stream whose peer writes and does not read, with a queued send that the kernel has not taken;
/// and the bytes that were written.
async fn overfull_pair() -> (tokio::net::TcpStream, Stream, usize) {
    let (mut peer, stream) = fixture::pair().await;
    let mut taken = 0;
    loop {
        peer.write_all(b"x").await.unwrap();
        poll_fn(|cx| stream.poll_read_ready(cx)).await.unwrap();
        assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 1);
        match stream.try_write(&content(MAX_QUEUED_SEND_BYTES)) {
            Ok(count) => taken += count,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                return (peer, stream, taken);
            }
        }
        end_turn();
    }
}

#[tokio::test]
async fn a_connection_that_is_dropped_ends_when_all_is_sent() {
    let (mut peer, stream, taken) = overfull_pair().await;
    drop(stream);
    let mut received = Vec::new();
    peer.read_to_end(&mut received).await.unwrap();
    assert_eq!(received.len(), taken);
}

#[tokio::test]
async fn a_connection_that_is_to_be_reset_is_not_waited_for() {
    let (mut peer, stream, taken) = overfull_pair().await;
    stream.set_reset_on_close();
    drop(stream);
    let mut received = Vec::new();
    let end = peer.read_to_end(&mut received).await.unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
    assert!(received.len() < taken);
}

/// Bytes of which [`narrow_pair`]'s kernel does not take all.
const MANY_BYTES: usize = 3 * MAX_QUEUED_SEND_BYTES;

/// A peer of a stream that is closing.
fn closing() -> UnixStream {
    let (peer, stream) = narrow_pair();
    for part in content(MANY_BYTES).chunks(MAX_QUEUED_SEND_BYTES) {
        assert_eq!(stream.try_write(part).unwrap(), part.len());
    }
    peer
}

/// Reads to the end; gives the number of bytes.
fn read_to_end(mut peer: UnixStream) -> usize {
    let mut received = 0;
    loop {
        match peer.read(&mut [0; 8 << 10]) {
            Ok(0) => return received,
            Ok(count) => received += count,
            // Fails when there is nothing more yet.
            Err(_) => drop(end_turn()),
        }
    }
}

#[tokio::test]
async fn of_many_connections_that_are_closing_the_oldest_is_cut() {
    let peers: Vec<_> = (0..=MAX_CLOSING).map(|_| closing()).collect();
    let received: Vec<_> = peers.into_iter().map(read_to_end).collect();
    assert!(received[0] < MANY_BYTES);
    assert_eq!(received[1..], vec![MANY_BYTES; MAX_CLOSING]);
}

#[tokio::test]
async fn connections_that_have_closed_make_no_other_end() {
    let slow = closing();
    for _ in 0..=MAX_CLOSING {
        assert_eq!(read_to_end(closing()), MANY_BYTES);
    }
    assert_eq!(read_to_end(slow), MANY_BYTES);
}

#[tokio::test]
async fn a_full_queue_is_sent_at_once_and_no_bytes_get_to_the_next_socket() {
    let ((mut first_peer, first), (mut second_peer, second)) = (narrow_pair(), narrow_pair());
    let others: Vec<_> = (0..MAX_QUEUED_BYTES / 1_000)
        .map(|_| narrow_pair())
        .collect();
    assert_eq!(first.try_write(b"one ").unwrap(), 4);
    assert_eq!(second.try_write(b"one ").unwrap(), 4);
    for (_, other) in &others {
        assert_eq!(other.try_write(&content(1_000)).unwrap(), 1_000);
    }
    let mut more = 0;
    while read_all(&mut first_peer).is_empty() {
        // The one that makes it full is of a socket that has one in it.
        assert_eq!(first.try_write(&content(100)).unwrap(), 100);
        more += 100;
    }
    assert_eq!(second.try_write(b"two").unwrap(), 3);
    assert_eq!(first.try_write_last(b"x").unwrap(), 1);
    let rest = read_all(&mut first_peer);
    assert_eq!((rest.len(), rest.last()), (101, Some(&b'x')), "{more}");
    drop(second);
    let (mut next_peer, next) = narrow_pair();
    end_turn();
    assert_eq!(read_all(&mut second_peer), b"one two");
    assert_eq!(read_all(&mut next_peer), b"");
    drop(next);
}

#[tokio::test]
async fn an_error_of_a_send_shows_behind_what_the_peer_has_sent() {
    let (mut peer, stream) = fixture::pair().await;
    tokio::io::AsyncWriteExt::write_all(&mut peer, b"last words")
        .await
        .unwrap();
    assert_eq!(stream.try_write(b"unread").unwrap(), 6);
    end_turn();
    // It has not read everything: a reset.
    drop(peer);
    poll_fn(|cx| stream.poll_read_ready(cx)).await.unwrap();
    // The second send fails in another way.
    let (_other_peer, other) = narrow_pair();
    for stream in [&stream, &other, &stream] {
        assert_eq!(stream.try_write(b"x").unwrap(), 1);
    }
    end_turn();
    assert!(!stream.is_idle_and_open());
    let mut buffer = [0; 16];
    let read = loop {
        match stream.try_read(&mut buffer) {
            Ok(count) => assert_eq!(&buffer[..count], b"last words"),
            Err(error) => break error.kind(),
        }
    };
    assert_eq!(read, io::ErrorKind::ConnectionReset);
    let written = stream.try_write(b"x").unwrap_err().kind();
    assert_eq!(written, io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_peer_that_only_reads_gets_nothing_that_the_kernel_has_not_taken() {
    let (mut peer, stream) = narrow_pair();
    let (mut taken, mut received) = (0, 0);
    while let Ok(count) = stream.try_write(&content(1_000)) {
        taken += count;
        end_turn();
        if taken < MAX_BYTES_SINCE_READ {
            received += read_all(&mut peer).len();
        }
    }
    assert!(taken > MAX_BYTES_SINCE_READ);
    drop(stream);
    assert_eq!(received + read_all(&mut peer).len(), taken);
}
