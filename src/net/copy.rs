//! The relay: bytes both ways between a client and a backend, until both have ended or one has
//! failed.
//!
//! Each side sees what the other one did: the end of a direction (FIN) as the end of that direction
//! only, a reset as a reset. Small messages cost one receive and one send; a direction that proves
//! to be bulk is spliced. Must not know what the bytes mean, or whose session it is.

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

/// Bytes in reads of at least [`BULK_READ_BYTES`] after which a direction is spliced.
const SPLICE_THRESHOLD_BYTES: usize = 256 * 1024;

/// Least size of a read that counts as bulk; smaller ones are messages.
const BULK_READ_BYTES: usize = 16 * 1024;

/// Small rounds in a row after which a direction is copied again: splicing messages costs more.
const MAX_SMALL_ROUNDS: u32 = 8;

/// Bytes that one direction moves before it yields to the worker's other tasks.
const YIELD_EVERY_BYTES: usize = 1024 * 1024;

/// Counters that grow while the relay runs, so that a scrape sees long transfers.
#[derive(Debug, Clone, Copy)]
pub struct RelayMeter<'a> {
    /// Bytes from the client that were sent to the backend.
    pub received: &'a MetricCell,
    /// Bytes sent to the client.
    pub sent: &'a MetricCell,
}

/// Cause of a relay that ended before both sides had ended their directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// For the idle timeout no byte moved, and none that was written was acknowledged.
    #[error("idle for too long")]
    Idle,
    /// The caller stopped it, for example at the drain deadline.
    #[error("stopped")]
    Stopped,
    /// The client has reset the connection, or no longer takes bytes.
    #[error("client: {0}")]
    Client(io::ErrorKind),
    /// The backend has reset the connection, or no longer takes bytes.
    #[error("backend: {0}")]
    Backend(io::ErrorKind),
}

/// One side of a relay: a stream of bytes in both directions.
pub trait RelaySide {
    /// The socket, if it is a plain one or TLS over one, that the kernel may splice.
    fn stream(&self) -> Option<&Stream>;

    /// As [`Stream::ends_by_drop`].
    fn ends_by_drop(&self) -> bool;

    /// As [`Stream::poll_read_ready`].
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// As [`Stream::try_read`].
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// As [`Stream::poll_write_ready`].
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// As [`Stream::try_write`].
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// As [`Stream::shutdown_write`].
    fn shutdown_write(&self) -> io::Result<()>;

    /// As [`Stream::poll_disconnected`].
    fn poll_disconnected(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// As [`Stream::unacked`].
    fn unacked(&self) -> Option<u64>;

    /// As [`Stream::set_reset_on_close`].
    fn set_reset_on_close(&self);
}

impl RelaySide for Stream {
    fn stream(&self) -> Option<&Stream> {
        Some(self)
    }

    fn ends_by_drop(&self) -> bool {
        self.ends_by_drop()
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.try_read(buffer)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(cx)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.shutdown_write()
    }

    fn poll_disconnected(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_disconnected(cx)
    }

    fn unacked(&self) -> Option<u64> {
        self.unacked()
    }

    fn set_reset_on_close(&self) {
        self.set_reset_on_close();
    }
}

/// Result of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayEnd {
    /// Bytes from the client that were sent to the backend.
    pub bytes_in: u64,
    /// Bytes from the backend that were sent to the client.
    pub bytes_out: u64,
    /// `Ok` when both sides ended their directions in order.
    pub end: Result<(), RelayError>,
}

/// Relays until both directions have ended, or until `stop`.
///
/// `first` was read from the client before, and is sent to the backend before anything else. `idle`
/// is for both directions together; a peer that reads slowly is not idle.
///
/// The caller drops the streams afterwards; that sends the FIN of the direction that ended last.
/// After an error the drop resets both, so that neither side takes the cut for an orderly end.
pub async fn relay_until(
    stop: impl Future<Output = ()>,
    client: &impl RelaySide,
    backend: &impl RelaySide,
    first: Vec<u8>,
    idle: Option<Duration>,
    meter: RelayMeter<'_>,
) -> RelayEnd {
    let mut up = Direction::new(client, backend);
    up.mode = TransferMode::Copy(CopyTransfer::with_pending(first));
    let mut down = Direction::new(backend, client);
    let mut activity = ActivityTracker::new(clock::now());
    let deadline = activity.deadline(idle.unwrap_or_default());
    let mut timer = pin!(sleep_until(deadline.into()));
    let mut stop = pin!(stop);
    let end = poll_fn(|cx| {
        // Move both directions.
        let before = (up.moved, down.moved);
        let up_error = up.poll(cx, down.ended);
        let down_error = down.poll(cx, up.ended);
        meter.received.add(up.moved - before.0);
        meter.sent.add(down.moved - before.1);

        // Ends.
        if let Some(error) = relay_error(up_error, down_error) {
            return Poll::Ready(Err(error));
        }
        if up.ended && down.ended {
            return Poll::Ready(Ok(()));
        }
        if stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(RelayError::Stopped));
        }

        // Idle timeout.
        if (up.moved, down.moved) != before {
            activity.last = clock::now();
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

/// As [`relay_until`], with nothing read before and without a stop.
#[cfg(test)]
pub(super) async fn relay(
    client: &Stream,
    backend: &Stream,
    idle: Option<Duration>,
    meter: RelayMeter<'_>,
) -> RelayEnd {
    let never = std::future::pending();
    relay_until(never, client, backend, Vec::new(), idle, meter).await
}

/// Ready at `deadline`. The timer is set again only when it would fire too late or has fired too
/// early: activity moves the deadline into the future with every message, and must not cost a
/// timer.
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

/// Names the side that an error of either direction is about.
fn relay_error(up: Option<TransferError>, down: Option<TransferError>) -> Option<RelayError> {
    let up = up.map(|error| error.into_relay_error(RelayError::Client, RelayError::Backend));
    up.or_else(|| down.map(|error| error.into_relay_error(RelayError::Backend, RelayError::Client)))
}

impl TransferError {
    fn into_relay_error(
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
struct Direction<'a, F, T> {
    from: &'a F,
    to: &'a T,
    mode: TransferMode,
    /// Bytes sent to the sink.
    moved: u64,
    /// The source has ended, and the sink has seen that end.
    ended: bool,
}

/// Means by which a direction is moved.
enum TransferMode {
    Copy(CopyTransfer),
    Splice {
        splice: SpliceTransfer,
        small_rounds: u32,
    },
}

impl<'a, F: RelaySide, T: RelaySide> Direction<'a, F, T> {
    fn new(from: &'a F, to: &'a T) -> Self {
        Self {
            from,
            to,
            mode: TransferMode::Copy(CopyTransfer::default()),
            moved: 0,
            ended: false,
        }
    }

    /// Moves what can be moved now; an error ends the relay. `last`: the other direction has ended
    /// already, so the coming drop of the sink sends the FIN.
    fn poll(&mut self, cx: &mut Context<'_>, last: bool) -> Option<TransferError> {
        let yield_at = self.moved + YIELD_EVERY_BYTES as u64;
        while !self.ended {
            match self.poll_move(cx) {
                // The sink takes nothing, so the source is not read: a reset would go unseen.
                Poll::Pending if self.pending() > 0 => return self.poll_source_disconnected(cx),
                Poll::Pending => return None,
                Poll::Ready(Ok(0)) => match self.poll_end(cx, last) {
                    Poll::Pending => return None,
                    // A sink that has ended its own direction may be closed by now.
                    Poll::Ready(Err(error)) if !last => return Some(TransferError::Write(error)),
                    Poll::Ready(_) => self.ended = true,
                },
                Poll::Ready(Ok(count)) => self.moved += count as u64,
                Poll::Ready(Err(error)) => return Some(error),
            }
            if self.moved >= yield_at {
                cx.waker().wake_by_ref();
                return None;
            }
        }
        if last {
            return None;
        }
        self.poll_source_disconnected(cx)
    }

    /// Ends the sink's direction, as its source has ended. Under TLS a drop is not enough: without
    /// `close_notify` it looks like a truncation.
    fn poll_end(&self, cx: &mut Context<'_>, last: bool) -> Poll<io::Result<()>> {
        if last && self.to.ends_by_drop() {
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

    /// Moves some bytes, and changes the mode when their sizes suggest the other one.
    fn poll_move(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, TransferError>> {
        match &mut self.mode {
            TransferMode::Copy(copy) => {
                let moved = ready!(copy.poll_move(cx, self.from, self.to));
                if copy.is_bulk() {
                    self.mode = TransferMode::Splice {
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
                // A round begins with an empty pipe; what is sent in pieces counts once.
                let is_new_round = splice.pending() == 0;
                let moved = match (self.from.stream(), self.to.stream()) {
                    (Some(from), Some(to)) => ready!(splice.poll_move(cx, from, to)),
                    _ => Err(TransferError::Unsupported),
                };
                match &moved {
                    Ok(count) if is_new_round && count + splice.pending() < BULK_READ_BYTES => {
                        *small_rounds += 1;
                    }
                    Ok(_) if is_new_round => *small_rounds = 0,
                    Ok(_) | Err(_) => {}
                }
                if matches!(moved, Err(TransferError::Unsupported)) {
                    self.mode = TransferMode::Copy(CopyTransfer::without_splice());
                    return self.poll_move(cx);
                }
                if *small_rounds >= MAX_SMALL_ROUNDS && splice.pending() == 0 {
                    self.mode = TransferMode::Copy(CopyTransfer::default());
                }
                Poll::Ready(moved)
            }
        }
    }

    /// Bytes taken from the source and not yet sent.
    fn pending(&self) -> usize {
        match &self.mode {
            TransferMode::Copy(copy) => copy.end - copy.start,
            TransferMode::Splice { splice, .. } => splice.pending(),
        }
    }

    /// The error of a source that was reset while it was not read.
    fn poll_source_disconnected(&self, cx: &mut Context<'_>) -> Option<TransferError> {
        match self.from.poll_disconnected(cx) {
            Poll::Ready(()) => Some(TransferError::Read(io::ErrorKind::ConnectionReset.into())),
            Poll::Pending => None,
        }
    }
}

/// One direction that is moved by reading and writing.
struct CopyTransfer {
    /// Only while there are bytes in it: `start..end`.
    buffer: Option<PooledBuffer>,
    start: usize,
    end: usize,
    /// Size of the next buffer.
    next_size: BufferSize,
    /// Grows with large reads, halves with each small one; [`SPLICE_THRESHOLD_BYTES`] is bulk.
    bulk_bytes: usize,
    may_splice: bool,
}

impl Default for CopyTransfer {
    fn default() -> Self {
        Self {
            buffer: None,
            start: 0,
            end: 0,
            next_size: BufferSize::Small,
            bulk_bytes: 0,
            may_splice: cfg!(target_os = "linux"),
        }
    }
}

impl CopyTransfer {
    /// For streams that cannot be spliced.
    fn without_splice() -> Self {
        Self {
            may_splice: false,
            ..Self::default()
        }
    }

    /// Begins with `first`, which was read from the source before.
    fn with_pending(first: Vec<u8>) -> Self {
        Self {
            end: first.len(),
            buffer: (!first.is_empty()).then(|| first.into()),
            ..Self::default()
        }
    }

    fn is_bulk(&self) -> bool {
        self.may_splice && self.bulk_bytes >= SPLICE_THRESHOLD_BYTES && self.buffer.is_none()
    }

    /// As [`SpliceTransfer::poll_move`].
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &impl RelaySide,
        to: &impl RelaySide,
    ) -> Poll<Result<usize, TransferError>> {
        while self.buffer.is_none() {
            ready!(from.poll_read_ready(cx)).map_err(TransferError::Read)?;
            let mut buffer = PooledBuffer::take(self.next_size);
            match from.try_read(&mut buffer) {
                Ok(0) => return Poll::Ready(Ok(0)),
                Ok(count) => {
                    self.record_read(count);
                    (self.start, self.end) = (0, count);
                    self.buffer = Some(buffer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(TransferError::Read(error))),
            }
        }
        loop {
            ready!(to.poll_write_ready(cx)).map_err(TransferError::Write)?;
            let buffer = self.buffer.as_deref().unwrap_or_default();
            debug_assert!(self.end <= buffer.len(), "pending bytes without a buffer");
            let pending = buffer.get(self.start..self.end).unwrap_or_default();
            match to.try_write(pending) {
                Ok(count) => {
                    self.start += count;
                    if self.start >= self.end {
                        self.buffer = None;
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(TransferError::Write(error))),
            }
        }
    }

    /// Adapts buffer size and bulk count to a read of `count` bytes.
    fn record_read(&mut self, count: usize) {
        if count >= self.next_size.bytes() {
            self.next_size = self.next_size.larger();
        } else if count < BULK_READ_BYTES {
            self.next_size = BufferSize::Small;
        }
        self.bulk_bytes = if count >= BULK_READ_BYTES {
            self.bulk_bytes + count
        } else {
            self.bulk_bytes / 2
        };
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
