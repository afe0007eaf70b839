//! Relays over loopback: ends, resets, bulk, idle timeouts.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::*;
use crate::net::fixture::pair;

async fn run(client: Stream, backend: Stream, idle: Option<Duration>) -> RelayEnd {
    let (received, sent) = (MetricCell::default(), MetricCell::default());
    let meter = RelayMeter {
        received: &received,
        sent: &sent,
    };
    let end = relay(&client, &backend, idle, meter).await;
    assert_eq!((received.get(), sent.get()), (end.bytes_in, end.bytes_out));
    end
}

/// Returns `length` bytes that differ from place to place, the same for each call.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32)
        .map(|place| (place.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8)
        .collect()
}

#[tokio::test]
async fn an_end_of_one_direction_is_passed_on_and_the_other_goes_on() {
    let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
    let script = async {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        backend.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        backend.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        backend.write_all(b", late").await.unwrap();
        drop(backend);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        rest
    };
    let (end, rest) = tokio::join!(run(ours, theirs, None), script);
    assert_eq!(rest, b", late");
    assert_eq!(
        end,
        RelayEnd {
            bytes_in: 8,
            bytes_out: 12,
            end: Ok(())
        }
    );
}

#[tokio::test]
async fn bytes_read_before_come_first_and_are_counted() {
    let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
    let (received, sent) = (MetricCell::default(), MetricCell::default());
    let meter = RelayMeter {
        received: &received,
        sent: &sent,
    };
    // More than the system takes at once for a peer that reads nothing.
    let first = pattern(20_000_000, 4);
    let script = async {
        client.write_all(b"and the rest").await.unwrap();
        client.shutdown().await.unwrap();
        backend.write_all(b"answer").await.unwrap();
        client.read_exact(&mut [0; 6]).await.unwrap();
        let mut got = Vec::new();
        backend.read_to_end(&mut got).await.unwrap();
        drop(backend);
        got
    };
    let never = std::future::pending();
    let relayed = relay_until(never, &ours, &theirs, first.clone(), None, meter);
    let (end, got) = tokio::join!(relayed, script);
    assert!(got == [&first[..], b"and the rest"].concat());
    assert_eq!((end.end, end.bytes_in), (Ok(()), got.len() as u64));
    assert_eq!((received.get(), sent.get()), (got.len() as u64, 6));
}

#[tokio::test]
async fn a_backend_may_end_its_direction_first() {
    let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
    let script = async {
        backend.write_all(b"greeting").await.unwrap();
        backend.shutdown().await.unwrap();
        let mut greeting = Vec::new();
        client.read_to_end(&mut greeting).await.unwrap();
        assert_eq!(greeting, b"greeting");
        client.write_all(b"upload").await.unwrap();
        client.shutdown().await.unwrap();
        let mut upload = Vec::new();
        backend.read_to_end(&mut upload).await.unwrap();
        upload
    };
    let (end, upload) = tokio::join!(run(ours, theirs, None), script);
    assert_eq!(upload, b"upload");
    assert_eq!(end.end, Ok(()));
}

#[tokio::test]
async fn a_reset_by_the_backend_reaches_the_client_as_a_reset() {
    let ((mut client, ours), (backend, theirs)) = (pair().await, pair().await);
    let script = async {
        backend.set_zero_linger().unwrap();
        drop(backend);
        client.read(&mut [0; 1]).await.unwrap_err().kind()
    };
    let (end, seen) = tokio::join!(run(ours, theirs, None), script);
    assert_eq!(seen, io::ErrorKind::ConnectionReset);
    assert_eq!(
        end.end,
        Err(RelayError::Backend(io::ErrorKind::ConnectionReset))
    );
}

#[tokio::test]
async fn a_reset_by_the_client_reaches_the_backend_as_a_reset() {
    let ((client, ours), (mut backend, theirs)) = (pair().await, pair().await);
    let script = async {
        client.set_zero_linger().unwrap();
        drop(client);
        backend.read(&mut [0; 1]).await.unwrap_err().kind()
    };
    let (end, seen) = tokio::join!(run(ours, theirs, None), script);
    assert_eq!(seen, io::ErrorKind::ConnectionReset);
    assert_eq!(
        end.end,
        Err(RelayError::Client(io::ErrorKind::ConnectionReset))
    );
}

#[tokio::test]
async fn a_reset_is_seen_while_the_other_side_takes_nothing() {
    let ((mut client, ours), (backend, theirs)) = (pair().await, pair().await);
    let script = async {
        // Until nothing fits any more: the relay then waits for the backend alone.
        let block = pattern(256 * 1024, 0);
        let full = Duration::from_millis(300);
        while tokio::time::timeout(full, client.write_all(&block))
            .await
            .is_ok()
        {}
        client.set_zero_linger().unwrap();
        drop(client);
        backend
    };
    let (end, _backend) = tokio::join!(run(ours, theirs, None), script);
    assert_eq!(
        end.end,
        Err(RelayError::Client(io::ErrorKind::ConnectionReset))
    );
    assert!(end.bytes_in > 0);
}

#[tokio::test]
async fn a_reset_after_a_half_close_is_seen() {
    let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
    let script = async {
        client.shutdown().await.unwrap();
        assert_eq!(backend.read(&mut [0; 1]).await.unwrap(), 0);
        client.set_zero_linger().unwrap();
        drop(client);
        backend
    };
    let (end, _backend) = tokio::join!(run(ours, theirs, None), script);
    assert_eq!(
        end.end,
        Err(RelayError::Client(io::ErrorKind::ConnectionReset))
    );
}

async fn send_and_end(mut stream: impl AsyncWriteExt + Unpin, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
}

#[tokio::test]
async fn large_transfers_both_ways_at_once_arrive_whole() {
    let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
    let (up, down) = (pattern(12_000_001, 1), pattern(9_000_007, 2));
    let script = async {
        let (client_reads, client_writes) = client.split();
        let (backend_reads, backend_writes) = backend.split();
        let read_all = async |mut stream: tokio::net::tcp::ReadHalf<'_>| {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            bytes
        };
        tokio::join!(
            send_and_end(client_writes, &up),
            send_and_end(backend_writes, &down),
            read_all(backend_reads),
            read_all(client_reads),
        )
    };
    let (end, ((), (), got_up, got_down)) = tokio::join!(run(ours, theirs, None), script);
    assert!(got_up == up && got_down == down);
    assert_eq!(
        (end.bytes_in, end.bytes_out, end.end),
        (up.len() as u64, down.len() as u64, Ok(()))
    );
}

#[tokio::test]
async fn unix_sockets_are_relayed_too() {
    let (mut client, ours) = UnixStream::pair().unwrap();
    let (mut backend, theirs) = pair().await;
    let up = pattern(3_000_000, 3);
    let script = async {
        let mut got = Vec::new();
        tokio::join!(
            send_and_end(&mut client, &up),
            backend.read_to_end(&mut got)
        )
        .1
        .unwrap();
        drop(backend);
        got
    };
    let (end, got) = tokio::join!(run(ours.into(), theirs, None), script);
    assert!(got == up);
    assert_eq!(end.end, Ok(()));
}

#[tokio::test]
async fn bulk_is_spliced_and_messages_are_not() {
    let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
    let mut direction = Direction::new(&ours, &theirs);
    let mut spliced_after = async |length: usize, times: usize| {
        for _ in 0..times {
            let bytes = vec![7; length];
            let mut got = vec![0; length];
            let pumped = poll_fn(|cx| match direction.poll(cx, false) {
                Some(error) => Poll::Ready(error),
                None => Poll::Pending,
            });
            tokio::select! {
                error = pumped => panic!("{error:?}"),
                _ = async { tokio::join!(client.write_all(&bytes), backend.read_exact(&mut got)) } => {}
            }
            assert_eq!(got, bytes);
        }
        matches!(direction.mode, TransferMode::Splice { .. })
    };
    assert!(!spliced_after(1_000, 2_000).await);
    assert!(spliced_after(8_000_000, 1).await);
    assert!(!spliced_after(1_000, 100).await);
}

#[tokio::test]
async fn no_traffic_for_the_idle_timeout_cuts_with_a_reset() {
    let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
    let idle = Duration::from_millis(60);
    let began = clock::now();
    let script = async {
        // Traffic in one direction keeps the session, though the other has none.
        for _ in 0..8 {
            tokio::time::sleep(idle / 3).await;
            backend.write_all(b"x").await.unwrap();
            client.read_exact(&mut [0; 1]).await.unwrap();
        }
        let talked = clock::now();
        let seen = client.read(&mut [0; 1]).await.unwrap_err().kind();
        (seen, talked)
    };
    let (end, (seen, talked)) = tokio::join!(run(ours, theirs, Some(idle)), script);
    assert_eq!(end.end, Err(RelayError::Idle));
    assert_eq!(seen, io::ErrorKind::ConnectionReset);
    assert!(talked - began > idle && clock::now() - talked >= idle * 9 / 10);
}

/// Writes to `from` until nothing is taken any more; returns the bytes written.
async fn fill(from: &mut tokio::net::TcpStream) -> usize {
    let (block, mut sent) = (vec![7; 64 << 10], 0);
    while let Ok(count) = tokio::time::timeout(Duration::from_millis(100), from.write(&block)).await
    {
        sent += count.unwrap();
    }
    sent
}

#[tokio::test]
async fn a_peer_that_reads_slowly_is_not_idle_and_one_that_stops_is() {
    let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
    let idle = Duration::from_millis(400);
    let script = async {
        let sent = fill(&mut backend).await;
        // Nothing more is moved for a long time: all that changes is what the client acknowledges.
        let (mut read, mut buffer) = (0, vec![0; 256 << 10]);
        let began = clock::now();
        while clock::now() - began < 5 * idle {
            read += client.read(&mut buffer).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        (sent, read, clock::now())
    };
    let (end, (sent, read, stopped)) = tokio::join!(run(ours, theirs, Some(idle)), script);
    assert!(read < sent, "{read} of {sent}");
    assert_eq!(end.end, Err(RelayError::Idle));
    let took = clock::now() - stopped;
    assert!(took > idle / 2 && took < 4 * idle, "{took:?}");
}

#[tokio::test]
async fn a_peer_that_drains_its_buffers_is_not_idle() {
    let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
    let idle = Duration::from_millis(400);
    let bytes = pattern(2_000_000, 9);
    let script = async {
        backend.write_all(&bytes).await.unwrap();
        // All bytes are in kernel buffers, so the relay has nothing to do.
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            let mut buffer = vec![0; 64 << 10];
            let count = client.read(&mut buffer).await.unwrap();
            got.extend_from_slice(&buffer[..count]);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop((client, backend));
        got
    };
    let (end, got) = tokio::join!(run(ours, theirs, Some(idle)), script);
    assert!(got == bytes);
    assert_eq!(end.end, Ok(()));
}

#[tokio::test]
async fn a_stopped_relay_resets_both() {
    let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
    let (count, stop) = (MetricCell::default(), tokio::sync::Notify::new());
    let meter = RelayMeter {
        received: &count,
        sent: &count,
    };
    stop.notify_one();
    let end = relay_until(stop.notified(), &ours, &theirs, Vec::new(), None, meter).await;
    drop((ours, theirs));
    assert_eq!(end.end, Err(RelayError::Stopped));
    for peer in [&mut client, &mut backend] {
        let seen = peer.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(seen.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn an_idle_direction_holds_no_buffer_and_no_pipe() {
    let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
    let mut direction = Direction::new(&ours, &theirs);
    client.write_all(b"hello").await.unwrap();
    let mut got = [0; 5];
    tokio::select! {
        _ = backend.read_exact(&mut got) => {}
        () = poll_fn(|cx| direction.poll(cx, false).map_or(Poll::Pending, |_| Poll::Ready(()))) => {}
    }
    assert!(matches!(&direction.mode, TransferMode::Copy(copy) if copy.buffer.is_none()));
    assert_eq!((&got, direction.pending()), (b"hello", 0));
    assert!(
        size_of_val(&direction) <= 160,
        "{}",
        size_of_val(&direction)
    );
}
