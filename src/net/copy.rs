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
    activity::ActivityTracker,
    buffer::{BufferSize, PooledBuffer},
    splice::{SpliceTransfer, TransferError},
    stream::Stream,
};
use crate::{base::clock, telemetry::metrics::MetricCell};

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
pub struct RelayMeter<'a> {
    /// Bytes from the client, passed on to the backend.
    pub received: &'a MetricCell,
    /// Bytes to the client.
    pub sent: &'a MetricCell,
}

/// Why a relay ended before both sides had ended their directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayError {
    /// No byte moved for the idle timeout, and none that was written was acknowledged.
    Idle,
    /// The caller wanted it: the drain deadline.
    Stopped,
    /// The client has reset the connection, or no longer takes bytes.
    Client(io::ErrorKind),
    /// The backend has reset the connection, or no longer takes bytes.
    Backend(io::ErrorKind),
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayEnd {
    /// Bytes passed on from the client to the backend.
    pub bytes_in: u64,
    /// Bytes passed on from the backend to the client.
    pub bytes_out: u64,
    /// `Ok` when both sides ended their directions in order.
    pub end: Result<(), RelayError>,
}

/// Relays until both directions have ended, or until `stop`. `idle` is over both directions: silence in one is no silence.
/// A peer that reads slowly is not idle either.
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
    meter: RelayMeter<'_>,
) -> RelayEnd {
    let mut up = Direction::new(client, backend);
    up.way = TransferMode::Copy(CopyTransfer::of(first));
    let mut down = Direction::new(backend, client);
    let mut activity = ActivityTracker::new(clock::now());
    let mut timer = pin!(sleep_until(
        activity.deadline(idle.unwrap_or_default()).into()
    ));
    let mut stop = pin!(stop);
    let end = poll_fn(|cx| {
        let before = (up.moved, down.moved);
        let up_fault = up.poll(cx, down.ended);
        let down_fault = down.poll(cx, up.ended);
        meter.received.add(up.moved - before.0);
        meter.sent.add(down.moved - before.1);
        let cut = up_fault
            .map(|fault| fault.cut(RelayError::Client, RelayError::Backend))
            .or_else(|| down_fault.map(|fault| fault.cut(RelayError::Backend, RelayError::Client)));
        if let Some(cut) = cut {
            return Poll::Ready(Err(cut));
        }
        if up.ended && down.ended {
            return Poll::Ready(Ok(()));
        }
        if (up.moved, down.moved) != before {
            activity.last = clock::now();
        }
        if stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(RelayError::Stopped));
        }
        let Some(idle) = idle else {
            return Poll::Pending;
        };
        loop {
            ready!(poll_timer(timer.as_mut(), cx, activity.deadline(idle)));
            let unacked = [client.unacked(), backend.unacked()];
            if activity.is_over(idle, unacked, clock::now()) {
                return Poll::Ready(Err(RelayError::Idle));
            }
        }
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
    meter: RelayMeter<'_>,
) -> RelayEnd {
    let never = std::future::pending();
    relay_until(never, client, backend, Vec::new(), idle, meter).await
}

/// Ready at `deadline`. The timer is set again when it would fire too late, or has fired too early: not for every message.
fn poll_timer(mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
    if timer.deadline().into_std() > deadline {
        timer.as_mut().reset(deadline.into());
    }
    loop {
        ready!(timer.as_mut().poll(cx));
        if clock::now() >= deadline {
            return Poll::Ready(());
        }
        timer.as_mut().reset(deadline.into());
    }
}

impl TransferError {
    fn cut(
        self,
        source: fn(io::ErrorKind) -> RelayError,
        sink: fn(io::ErrorKind) -> RelayError,
    ) -> RelayError {
        match self {
            Self::Read(error) => source(error.kind()),
            Self::Write(error) => sink(error.kind()),
            Self::Unsupported => source(io::ErrorKind::Unsupported),
        }
    }
}

/// One direction of a relay.
struct Direction<'a> {
    from: &'a Stream,
    to: &'a Stream,
    way: TransferMode,
    /// Bytes passed on.
    moved: u64,
    /// The source has ended, and the sink has been told.
    ended: bool,
    /// Watches the source for a reset while it is not read. Made when first needed: most sessions never do.
    gone: Option<Pin<Box<dyn Future<Output = ()> + 'a>>>,
}

/// How a direction is moved.
enum TransferMode {
    Copy(CopyTransfer),
    Splice {
        splice: SpliceTransfer,
        small_rounds: u32,
    },
}

impl<'a> Direction<'a> {
    fn new(from: &'a Stream, to: &'a Stream) -> Self {
        Self {
            from,
            to,
            way: TransferMode::Copy(CopyTransfer::default()),
            moved: 0,
            ended: false,
            gone: None,
        }
    }

    /// Moves what can be moved now; a fault ends the relay. `last`: the other direction has ended already, so that the
    /// coming drop of the sink tells it the end.
    fn poll(&mut self, cx: &mut Context<'_>, last: bool) -> Option<TransferError> {
        let turn_over = self.moved + TURN as u64;
        while !self.ended {
            match self.poll_move(cx) {
                Poll::Pending if self.held() > 0 => return self.poll_source_gone(cx),
                Poll::Pending => return None,
                Poll::Ready(Ok(0)) => match self.poll_end(cx, last) {
                    Poll::Pending => return None,
                    // Who has ended its own direction already may be gone.
                    Poll::Ready(Err(error)) if !last => return Some(TransferError::Write(error)),
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

    fn poll_move(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, TransferError>> {
        match &mut self.way {
            TransferMode::Copy(copying) => {
                let moved = ready!(copying.poll_move(cx, self.from, self.to));
                if copying.is_long() {
                    self.way = TransferMode::Splice {
                        splice: SpliceTransfer::new(None),
                        small_rounds: 0,
                    };
                }
                Poll::Ready(moved)
            }
            TransferMode::Splice {
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
                if matches!(moved, Err(TransferError::Unsupported)) {
                    self.way = TransferMode::Copy(CopyTransfer::forever());
                    return self.poll_move(cx);
                }
                if *small_rounds >= SMALL_ROUNDS && splice.held() == 0 {
                    self.way = TransferMode::Copy(CopyTransfer::default());
                }
                Poll::Ready(moved)
            }
        }
    }

    /// Bytes taken from the source and not passed on.
    fn held(&self) -> usize {
        match &self.way {
            TransferMode::Copy(copying) => copying.to - copying.from,
            TransferMode::Splice { splice, .. } => splice.held(),
        }
    }

    fn poll_source_gone(&mut self, cx: &mut Context<'_>) -> Option<TransferError> {
        let from = self.from;
        let gone = self
            .gone
            .get_or_insert_with(|| Box::pin(from.disconnected()));
        match gone.as_mut().poll(cx) {
            Poll::Ready(()) => Some(TransferError::Read(io::ErrorKind::ConnectionReset.into())),
            Poll::Pending => None,
        }
    }
}

/// One direction moved by reading and writing.
struct CopyTransfer {
    /// Only while there are bytes in it.
    buffer: Option<PooledBuffer>,
    from: usize,
    to: usize,
    /// Of the next buffer.
    size: BufferSize,
    /// Grows with large reads and shrinks with small ones; [`LONG`] is bulk.
    run: usize,
    may_splice: bool,
}

impl Default for CopyTransfer {
    fn default() -> Self {
        Self {
            buffer: None,
            from: 0,
            to: 0,
            size: BufferSize::Small,
            run: 0,
            may_splice: cfg!(target_os = "linux"),
        }
    }
}

impl CopyTransfer {
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

    /// As [`SpliceTransfer::poll_move`].
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &Stream,
        to: &Stream,
    ) -> Poll<Result<usize, TransferError>> {
        while self.buffer.is_none() {
            ready!(from.poll_read_ready(cx)).map_err(TransferError::Read)?;
            let mut buffer = PooledBuffer::take(self.size);
            match from.try_read(&mut buffer) {
                Ok(0) => return Poll::Ready(Ok(0)),
                Ok(count) => {
                    self.learn(count);
                    (self.from, self.to) = (0, count);
                    self.buffer = Some(buffer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(TransferError::Read(error))),
            }
        }
        loop {
            ready!(to.poll_write_ready(cx)).map_err(TransferError::Write)?;
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
                Err(error) => return Poll::Ready(Err(TransferError::Write(error))),
            }
        }
    }

    fn learn(&mut self, count: usize) {
        if count >= self.size.bytes() {
            self.size = self.size.larger();
        } else if count < LARGE_READ {
            self.size = BufferSize::Small;
        }
        self.run = if count >= LARGE_READ {
            self.run + count
        } else {
            self.run / 2
        };
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
