//! The backend's side of an attempt: an HTTP/1 connection, or one stream of a shared HTTP/2
//! connection.
//!
//! Each difference between the two has a method here. Must not know what an exchange is.

use std::{
    io,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    outcome::BackendReuse,
    relay::{BodySink, BodySource},
};
use crate::{
    config::model::KeepaliveConfig,
    h2::{
        StreamError,
        backend::{OutgoingStream, StreamRefusal},
    },
    http2::frame::ErrorCode,
    net::{copy::RelaySide, stream::Stream},
    pool::BackendLease,
    proxy::{idle::BackendConnection, worker::Worker},
};

/// The backend's side of an attempt.
#[derive(Debug)]
pub(super) enum BackendSide {
    /// A connection of this exchange alone.
    H1(BackendConnection),
    /// A stream.
    H2(OutgoingStream),
}

impl BackendSide {
    /// The source of the response's body.
    pub(super) fn source(&mut self) -> BodySource<'_> {
        match self {
            Self::H1(connection) => BodySource::H1(&mut connection.stream),
            Self::H2(outgoing) => BodySource::H2(outgoing.stream()),
        }
    }

    /// The sink of the request's body.
    pub(super) fn sink(&mut self) -> BodySink<'_> {
        match self {
            Self::H1(connection) => BodySink::H1(&mut connection.stream),
            Self::H2(outgoing) => BodySink::H2(outgoing.stream()),
        }
    }

    /// True for a stream of a shared connection, which counts itself.
    pub(super) const fn is_shared(&self) -> bool {
        matches!(self, Self::H2(_))
    }

    /// Notes bytes of the request that were written.
    pub(super) fn note_written(&mut self, count: u64) {
        if let Self::H1(connection) = self {
            connection.written += count;
        }
    }

    /// Bytes written to the connection so far, as its kernel counts them; none of a stream.
    pub(super) fn wire_written(&self) -> u64 {
        match self {
            Self::H1(connection) => connection.wire_written(),
            Self::H2(_) => 0,
        }
    }

    /// True if the backend cannot have acted on the request that was begun when `before` bytes had
    /// been written.
    pub(super) fn is_not_processed(&self, before: u64) -> bool {
        match self {
            Self::H1(connection) if connection.wire_written() == before => true,
            // The kernel counts the SYN as one byte.
            Self::H1(connection) => {
                let acked = connection.stream.bytes_acked();
                connection.ended && acked.is_some_and(|acked| acked <= before + 1)
            }
            Self::H2(outgoing) => !outgoing.is_open(),
        }
    }

    /// The refusal of a stream that was opened `took` ago. ENHANCE_YOUR_CALM is the refusal of a
    /// new stream within the `connect` timeout; later it may come from a handler that has acted on
    /// the request.
    pub(super) fn refusal(&self, took: Duration, connect: Duration) -> Option<StreamRefusal> {
        let Self::H2(outgoing) = self else {
            return None;
        };
        let refusal = outgoing.refusal()?;
        (refusal != StreamRefusal::Overloaded || took <= connect).then_some(refusal)
    }

    /// True if a limit of ours ended the stream: the backend may have followed the protocol.
    pub(super) fn hit_own_limit(&self) -> bool {
        match self {
            Self::H1(_) => false,
            Self::H2(outgoing) => outgoing.hit_own_limit(),
        }
    }

    /// Draws the conclusions from an error while the response was read, for the connection.
    pub(super) fn note_read_error(&self, error: &io::Error) {
        if let (Self::H2(outgoing), Some(ended)) = (self, StreamError::of(error)) {
            outgoing.note_error(ended);
        }
    }

    /// True if the connection takes no further exchange because it has failed.
    pub(super) fn is_connection_over(&self) -> bool {
        match self {
            Self::H1(_) => true,
            Self::H2(outgoing) => outgoing.connection().is_retired(),
        }
    }

    /// Takes the connection out of use: one that stalls one stream would stall others.
    pub(super) fn retire(&self) {
        if let Self::H2(outgoing) = self {
            outgoing.connection().retire();
        }
    }

    /// Finds out if the connection stalls, after its exchange was abandoned.
    pub(super) fn probe_if_stalled(&self) {
        if let Self::H2(outgoing) = self {
            outgoing.connection().probe_if_stalled();
        }
    }

    /// Ends the use of the backend by an attempt whose response is complete: the one place that
    /// decides if its connection is used again. A stream ends with its response.
    pub(super) fn finish(
        self,
        reuse: BackendReuse,
        worker: &Worker,
        lease: &BackendLease,
        rules: &KeepaliveConfig,
    ) {
        if let Self::H1(connection) = self
            && reuse.keeps()
        {
            let mut idle = worker.idle.borrow_mut();
            idle.put(lease, connection, rules, worker.now());
        }
    }

    /// Makes the stream one of a tunnel, whose end at any time is no error.
    pub(super) fn begin_tunnel(&self) {
        if let Self::H2(outgoing) = self {
            outgoing.stream().set_cut_code(ErrorCode::CANCEL);
        }
    }
}

impl RelaySide for BackendSide {
    fn stream(&self) -> Option<&Stream> {
        match self {
            Self::H1(connection) => Some(&connection.stream),
            Self::H2(_) => None,
        }
    }

    fn ends_by_drop(&self) -> bool {
        match self {
            Self::H1(connection) => connection.stream.ends_by_drop(),
            Self::H2(_) => false,
        }
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::H1(connection) => connection.stream.poll_read_ready(cx),
            Self::H2(outgoing) => outgoing.stream().poll_read_ready(cx),
        }
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::H1(connection) => connection.stream.try_read(buffer),
            Self::H2(outgoing) => outgoing.stream().try_read(buffer),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::H1(connection) => connection.stream.poll_write_ready(cx),
            Self::H2(outgoing) => outgoing.stream().poll_write_ready(cx),
        }
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::H1(connection) => connection.stream.try_write(bytes),
            Self::H2(outgoing) => outgoing.stream().try_write(bytes),
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::H1(connection) => connection.stream.shutdown_write(),
            Self::H2(outgoing) => outgoing.stream().shutdown_write(),
        }
    }

    fn poll_disconnected(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(connection) => connection.stream.poll_disconnected(cx),
            Self::H2(outgoing) => outgoing.poll_closed(cx),
        }
    }

    fn unacked(&self) -> Option<u64> {
        match self {
            Self::H1(connection) => connection.stream.unacked(),
            Self::H2(outgoing) => outgoing.stream().unacked(),
        }
    }

    fn set_reset_on_close(&self) {
        if let Self::H1(connection) = self {
            connection.stream.set_reset_on_close();
        }
    }
}
