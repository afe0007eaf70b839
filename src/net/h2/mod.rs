//! HTTP/2 (RFC 9113): each stream is offered to the HTTP/1 engine as a connection with one
//! exchange.
//!
//! `connection.rs` is the connection, from either end, and drives it. `state.rs` holds its state,
//! `input.rs` handles the peer's frames, `heads.rs` its field blocks. `stream_entry.rs` is the
//! state of one stream, `recv_windows.rs` bounds what a peer may send, `flood_guard.rs` the frames
//! that only cost work. Towards clients a stream gives a request and takes its response
//! (`incoming.rs`), towards backends it takes a request and gives the response (`backend/`). The
//! codec of frames and field blocks is `crate::http2`. Must not know listeners, routes or policies.

pub mod backend;
mod body_encoder;
mod closed_streams;
pub mod connection;
mod flood_guard;
mod heads;
mod http1_adapter;
pub mod incoming;
mod input;
#[cfg(test)]
mod interop_tests;
#[doc(hidden)]
pub mod oracle;
mod recv_buffer;
mod recv_windows;
mod request;
mod response_encoder;
mod state;
mod stream_entry;

pub use self::{http1_adapter::Http1Adapter, request::H2RequestError};

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
