//! HTTP/2 connections (RFC 9113), from clients and to backends: frames, streams, windows.
//!
//! `connection.rs` is the connection, from either end, and drives it. `state.rs` holds its state,
//! `input.rs` handles the peer's frames, `heads.rs` its field blocks. `stream_entry.rs` is the
//! state of one stream, `recv_buffer.rs` what was received on it, `stream.rs` the stream as its
//! exchange uses it. `recv_windows.rs` bounds what a peer may send, `flood_guard.rs` the frames
//! that only cost work. `client.rs` gives the requests of a client, `backend/` opens streams to
//! backends. `spare.rs` keeps memory for the next stream. The codec of frames, field blocks and
//! messages is `crate::http2`. Must not know pools, counters, reasons, nor what a message is for.

pub mod backend;
pub mod client;
mod closed_streams;
pub mod connection;
mod flood_guard;
mod heads;
mod input;
#[cfg(test)]
mod interop_tests;
mod recv_buffer;
mod recv_windows;
mod spare;
mod state;
pub mod stream;
mod stream_entry;

pub use self::spare::put_request as recycle_request;

use std::time::Duration;

use crate::http2::frame::ErrorCode;

/// Idle time after which the encoder of field blocks gives its memory back. A client that sends
/// one request after the other goes on with its table.
pub const FIELD_TABLE_IDLE: Duration = Duration::from_secs(1);

/// Cause of a stream that did not end properly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer sent RST_STREAM.
    #[error("stream reset by the peer (RST_STREAM {0})")]
    Reset(ErrorCode),
    /// The peer's GOAWAY excluded the stream: it was not processed and may be sent again.
    #[error("connection ended by the peer (GOAWAY {0})")]
    NotProcessed(ErrorCode),
    /// The peer violated the protocol on this stream.
    #[error("not valid HTTP/2 ({0})")]
    Invalid(ErrorCode),
    /// The peer's message is malformed (RFC 9113 section 8.1.1).
    #[error("not a valid message of HTTP/2: {0}")]
    Malformed(&'static str),
    /// The message exceeds a limit of ours; it may be valid.
    #[error("larger than is taken: {0}")]
    TooLarge(&'static str),
    /// We closed the connection with an error.
    #[error("not valid HTTP/2, or more than is allowed ({0})")]
    Failed(ErrorCode),
    /// The peer answered with HTTP/1.
    #[error("the peer speaks HTTP/1, not HTTP/2")]
    Http1,
    /// The connection was closed without GOAWAY.
    #[error("connection closed")]
    Lost,
}

impl StreamError {
    /// Wraps the error for readers and writers of bytes.
    pub fn into_io(self) -> std::io::Error {
        std::io::Error::new(std::io::ErrorKind::ConnectionReset, self)
    }

    /// Returns the stream error inside `error`; `None` for errors of other connections.
    pub fn of(error: &std::io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }

    /// True if a limit of ours ended the stream: the peer may have followed the protocol.
    pub fn is_own_limit(self) -> bool {
        matches!(
            self,
            Self::TooLarge(_) | Self::Failed(ErrorCode::ENHANCE_YOUR_CALM)
        )
    }
}
