//! The relay: bytes both ways between a client and a backend, until both have ended or one has failed.
//!
//! What one side does is passed on as it was: the end of a direction (FIN) as the end of that direction only, a reset as a
//! reset. Small messages cost one receive and one send; a direction that proves long is spliced. Must not know what the
//! bytes mean, or whose session it is.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};

use super::{
    buffer::{Buffer, Size},
    splice::{Fault, Splice},
    stream::Stream,
};
use crate::{base::clock, reason::Reason, telemetry::metrics::Count};

/// A direction is spliced once reads of at least [`LARGE_READ`] have brought this many bytes.
const LONG: usize = 256 * 1024;

/// Reads below this are messages, not bulk.
const LARGE_READ: usize = 16 * 1024;

/// So many small rounds in a row end the splicing of a direction.
const SMALL_ROUNDS: u32 = 8;

/// Bytes that one direction moves before the worker's other tasks get their turn.
const TURN: usize = 1024 * 1024;

/// Counters that grow while the relay runs, so that a scrape sees long transfers.
#[derive(Debug, Clone, Copy)]
pub struct Meter<'a> {
    /// Bytes from the client, passed on to the backend.
    pub received: &'a Count,
    /// Bytes to the client.
    pub sent: &'a Count,
}

/// Why a relay ended before both sides had ended their directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// No byte moved for the idle timeout.
    Idle,
    /// The caller wanted it: the drain deadline.
    Stopped,
    /// The client has reset the connection, or no longer takes bytes.
    Client(io::ErrorKind),
    /// The backend has reset the connection, or no longer takes bytes.
    Backend(io::ErrorKind),
}

impl Cut {
    /// The word for logs and metrics.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Idle => Reason::IdleTimeout,
            Self::Stopped => Reason::DrainTimeout,
            Self::Client(_) => Reason::ClientDisconnected,
            Self::Backend(_) => Reason::BackendReset,
        }
    }
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayEnd {
    /// Bytes passed on from the client to the backend.
    pub bytes_in: u64,
    /// Bytes passed on from the backend to the client.
    pub bytes_out: u64,
    /// `Ok` when both sides ended their directions in order.
    pub end: Result<(), Cut>,
}

/// Relays until both directions have ended, or until `stop`. `idle` is over both directions: silence in one is no silence.
/// `first` is what was read of the client already: the backend gets it before anything else.
///
/// The caller drops the streams afterwards; that sends the FIN of the direction that ended last. After a cut both are set to
/// be reset by it, so that no side takes the cut for an orderly end.
pub async fn relay_until(
    stop: impl Future<Output = ()>,
    client: &Stream,
    backend: &Stream,
    first: Vec<u8>,
    idle: Option<Duration>,
    meter: Meter<'_>,
) -> RelayEnd {
    let mut up = Flow::new(client, backend);
    up.way = Way::Copy(Copying::of(first));
    let mut down = Flow::new(backend, client);
    let mut last_moved = clock::now();
    let mut timer = pin!(sleep_until((last_moved + idle.unwrap_or_default()).into()));
    let mut stop = pin!(stop);
    let end = poll_fn(|cx| {
        let before = (up.moved, down.moved);
        let up_fault = up.poll(cx, down.ended);
        let down_fault = down.poll(cx, up.ended);
        meter.received.add(up.moved - before.0);
        meter.sent.add(down.moved - before.1);
        let cut = up_fault
            .map(|fault| fault.cut(Cut::Client, Cut::Backend))
            .or_else(|| down_fault.map(|fault| fault.cut(Cut::Backend, Cut::Client)));
        if let Some(cut) = cut {
            return Poll::Ready(Err(cut));
        }
        if up.ended && down.ended {
            return Poll::Ready(Ok(()));
        }
        if (up.moved, down.moved) != before {
            last_moved = clock::now();
        }
        if stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(Cut::Stopped));
        }
        idle.map_or(Poll::Pending, |idle| {
            ready!(poll_silence(timer.as_mut(), cx, last_moved + idle));
            Poll::Ready(Err(Cut::Idle))
        })
    })
    .await;
    if end.is_err() {
        client.set_reset_on_close();
        backend.set_reset_on_close();
    }
    RelayEnd {
        bytes_in: up.moved,
        bytes_out: down.moved,
        end,
    }
}

/// As [`relay_until`], with nothing read yet and nobody to stop it.
pub async fn relay(
    client: &Stream,
    backend: &Stream,
    idle: Option<Duration>,
    meter: Meter<'_>,
) -> RelayEnd {
    let never = std::future::pending();
    relay_until(never, client, backend, Vec::new(), idle, meter).await
}

/// Ready at `over`. The timer is set again only when it fires too early, not for every message.
fn poll_silence(mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>, over: Instant) -> Poll<()> {
    loop {
        ready!(timer.as_mut().poll(cx));
        if clock::now() >= over {
            return Poll::Ready(());
        }
        timer.as_mut().reset(over.into());
    }
}

impl Fault {
    fn cut(self, source: fn(io::ErrorKind) -> Cut, sink: fn(io::ErrorKind) -> Cut) -> Cut {
        match self {
            Self::Read(error) => source(error.kind()),
            Self::Write(error) => sink(error.kind()),
            Self::Unsupported => source(io::ErrorKind::Unsupported),
        }
    }
}

/// One direction of a relay.
struct Flow<'a> {
    from: &'a Stream,
    to: &'a Stream,
    way: Way,
    /// Bytes passed on.
    moved: u64,
    /// The source has ended, and the sink has been told.
    ended: bool,
    /// Watches the source for a reset while it is not read. Made when first needed: most sessions never do.
    gone: Option<Pin<Box<dyn Future<Output = ()> + 'a>>>,
}

/// How a direction is moved.
enum Way {
    Copy(Copying),
    Splice { splice: Splice, small_rounds: u32 },
}

impl<'a> Flow<'a> {
    fn new(from: &'a Stream, to: &'a Stream) -> Self {
        Self {
            from,
            to,
            way: Way::Copy(Copying::default()),
            moved: 0,
            ended: false,
            gone: None,
        }
    }

    /// Moves what can be moved now; a fault ends the relay. `last`: the other direction has ended already, so that the
    /// coming drop of the sink tells it the end.
    fn poll(&mut self, cx: &mut Context<'_>, last: bool) -> Option<Fault> {
        let turn_over = self.moved + TURN as u64;
        while !self.ended {
            match self.poll_move(cx) {
                Poll::Pending if self.held() > 0 => return self.poll_source_gone(cx),
                Poll::Pending => return None,
                Poll::Ready(Ok(0)) => match self.poll_end(cx, last) {
                    Poll::Pending => return None,
                    // Who has ended its own direction already may be gone.
                    Poll::Ready(Err(error)) if !last => return Some(Fault::Write(error)),
                    Poll::Ready(_) => self.ended = true,
                },
                Poll::Ready(Ok(count)) => self.moved += count as u64,
                Poll::Ready(Err(fault)) => return Some(fault),
            }
            if self.moved >= turn_over {
                cx.waker().wake_by_ref();
                return None;
            }
        }
        if last {
            return None;
        }
        self.poll_source_gone(cx)
    }

    /// Tells the sink that its source has ended. Under TLS the drop would not do: that looks like a cut.
    fn poll_end(&self, cx: &mut Context<'_>, last: bool) -> Poll<io::Result<()>> {
        if last && self.to.tls().is_none() {
            return Poll::Ready(Ok(()));
        }
        loop {
            match self.to.shutdown_write() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.to.poll_write_ready(cx))?;
                }
                ended => return Poll::Ready(ended),
            }
        }
    }

    fn poll_move(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Fault>> {
        match &mut self.way {
            Way::Copy(copying) => {
                let moved = ready!(copying.poll_move(cx, self.from, self.to));
                if copying.is_long() {
                    self.way = Way::Splice {
                        splice: Splice::new(None),
                        small_rounds: 0,
                    };
                }
                Poll::Ready(moved)
            }
            Way::Splice {
                splice,
                small_rounds,
            } => {
                let fresh = splice.held() == 0;
                let moved = ready!(splice.poll_move(cx, self.from, self.to));
                match &moved {
                    Ok(count) if fresh && count + splice.held() < LARGE_READ => *small_rounds += 1,
                    Ok(_) if fresh => *small_rounds = 0,
                    Ok(_) | Err(_) => {}
                }
                if matches!(moved, Err(Fault::Unsupported)) {
                    self.way = Way::Copy(Copying::forever());
                    return self.poll_move(cx);
                }
                if *small_rounds >= SMALL_ROUNDS && splice.held() == 0 {
                    self.way = Way::Copy(Copying::default());
                }
                Poll::Ready(moved)
            }
        }
    }

    /// Bytes taken from the source and not passed on.
    fn held(&self) -> usize {
        match &self.way {
            Way::Copy(copying) => copying.to - copying.from,
            Way::Splice { splice, .. } => splice.held(),
        }
    }

    fn poll_source_gone(&mut self, cx: &mut Context<'_>) -> Option<Fault> {
        let from = self.from;
        let gone = self.gone.get_or_insert_with(|| Box::pin(from.gone()));
        match gone.as_mut().poll(cx) {
            Poll::Ready(()) => Some(Fault::Read(io::ErrorKind::ConnectionReset.into())),
            Poll::Pending => None,
        }
    }
}

/// One direction moved by reading and writing.
struct Copying {
    /// Only while there are bytes in it.
    buffer: Option<Buffer>,
    from: usize,
    to: usize,
    /// Of the next buffer.
    size: Size,
    /// Grows with large reads and shrinks with small ones; [`LONG`] is bulk.
    run: usize,
    may_splice: bool,
}

impl Default for Copying {
    fn default() -> Self {
        Self {
            buffer: None,
            from: 0,
            to: 0,
            size: Size::Small,
            run: 0,
            may_splice: cfg!(target_os = "linux"),
        }
    }
}

impl Copying {
    /// For streams that cannot be spliced.
    fn forever() -> Self {
        Self {
            may_splice: false,
            ..Self::default()
        }
    }

    /// For a source of which `first` was read already.
    fn of(first: Vec<u8>) -> Self {
        Self {
            to: first.len(),
            buffer: (!first.is_empty()).then(|| first.into()),
            ..Self::default()
        }
    }

    fn is_long(&self) -> bool {
        self.may_splice && self.run >= LONG && self.buffer.is_none()
    }

    /// As [`Splice::poll_move`].
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &Stream,
        to: &Stream,
    ) -> Poll<Result<usize, Fault>> {
        while self.buffer.is_none() {
            ready!(from.poll_read_ready(cx)).map_err(Fault::Read)?;
            let mut buffer = Buffer::take(self.size);
            match from.try_read(&mut buffer) {
                Ok(0) => return Poll::Ready(Ok(0)),
                Ok(count) => {
                    self.learn(count);
                    (self.from, self.to) = (0, count);
                    self.buffer = Some(buffer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(Fault::Read(error))),
            }
        }
        loop {
            ready!(to.poll_write_ready(cx)).map_err(Fault::Write)?;
            let pending = self
                .buffer
                .as_ref()
                .and_then(|buffer| buffer.get(self.from..self.to))
                .unwrap_or_default();
            match to.try_write(pending) {
                Ok(count) => {
                    self.from += count;
                    if self.from >= self.to {
                        self.buffer = None;
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(Fault::Write(error))),
            }
        }
    }

    fn learn(&mut self, count: usize) {
        if count >= self.size.bytes() {
            self.size = self.size.larger();
        } else if count < LARGE_READ {
            self.size = Size::Small;
        }
        self.run = if count >= LARGE_READ {
            self.run + count
        } else {
            self.run / 2
        };
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    use super::*;
    use crate::net::fixture::pair;

    async fn run(client: Stream, backend: Stream, idle: Option<Duration>) -> RelayEnd {
        let (received, sent) = (Count::default(), Count::default());
        let meter = Meter {
            received: &received,
            sent: &sent,
        };
        let end = relay(&client, &backend, idle, meter).await;
        assert_eq!((received.get(), sent.get()), (end.bytes_in, end.bytes_out));
        end
    }

    /// `length` bytes that differ from place to place, and the same again for comparing.
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
    async fn what_was_read_already_comes_first_and_is_counted() {
        let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
        let (received, sent) = (Count::default(), Count::default());
        let meter = Meter {
            received: &received,
            sent: &sent,
        };
        // More than the system takes at once from somebody whose peer reads nothing.
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
        assert_eq!(end.end, Err(Cut::Backend(io::ErrorKind::ConnectionReset)));
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
        assert_eq!(end.end, Err(Cut::Client(io::ErrorKind::ConnectionReset)));
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
        assert_eq!(end.end, Err(Cut::Client(io::ErrorKind::ConnectionReset)));
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
        assert_eq!(end.end, Err(Cut::Client(io::ErrorKind::ConnectionReset)));
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
        let (end, got) = tokio::join!(run(Stream::Unix(ours), theirs, None), script);
        assert!(got == up);
        assert_eq!(end.end, Ok(()));
    }

    #[tokio::test]
    async fn bulk_is_spliced_and_messages_are_not() {
        let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
        let mut flow = Flow::new(&ours, &theirs);
        let mut spliced_after = async |length: usize, times: usize| {
            for _ in 0..times {
                let bytes = vec![7; length];
                let mut got = vec![0; length];
                let pumped = poll_fn(|cx| match flow.poll(cx, false) {
                    Some(fault) => Poll::Ready(fault),
                    None => Poll::Pending,
                });
                tokio::select! {
                    fault = pumped => panic!("{fault:?}"),
                    _ = async { tokio::join!(client.write_all(&bytes), backend.read_exact(&mut got)) } => {}
                }
                assert_eq!(got, bytes);
            }
            matches!(flow.way, Way::Splice { .. })
        };
        assert!(!spliced_after(1_000, 2_000).await);
        assert!(spliced_after(8_000_000, 1).await);
        assert!(!spliced_after(1_000, 100).await);
    }

    #[tokio::test]
    async fn silence_for_the_idle_timeout_cuts_with_a_reset() {
        let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
        let idle = Duration::from_millis(60);
        let began = clock::now();
        let script = async {
            // Traffic in one direction keeps the session, though the other is silent.
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
        assert_eq!(end.end, Err(Cut::Idle));
        assert_eq!(seen, io::ErrorKind::ConnectionReset);
        assert!(talked - began > idle && clock::now() - talked >= idle * 9 / 10);
    }

    #[tokio::test]
    async fn a_stopped_relay_resets_both() {
        let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
        let (count, stop) = (Count::default(), tokio::sync::Notify::new());
        let meter = Meter {
            received: &count,
            sent: &count,
        };
        stop.notify_one();
        let end = relay_until(stop.notified(), &ours, &theirs, Vec::new(), None, meter).await;
        drop((ours, theirs));
        assert_eq!(end.end, Err(Cut::Stopped));
        for peer in [&mut client, &mut backend] {
            let seen = peer.read(&mut [0; 1]).await.unwrap_err();
            assert_eq!(seen.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn an_idle_flow_holds_no_buffer_and_no_pipe() {
        let ((mut client, ours), (mut backend, theirs)) = (pair().await, pair().await);
        let mut flow = Flow::new(&ours, &theirs);
        client.write_all(b"hello").await.unwrap();
        let mut got = [0; 5];
        tokio::select! {
            _ = backend.read_exact(&mut got) => {}
            () = poll_fn(|cx| flow.poll(cx, false).map_or(Poll::Pending, |_| Poll::Ready(()))) => {}
        }
        assert!(matches!(&flow.way, Way::Copy(copying) if copying.buffer.is_none()));
        assert_eq!((&got, flow.held()), (b"hello", 0));
        assert!(size_of::<Flow<'_>>() <= 160, "{}", size_of::<Flow<'_>>());
    }
}
