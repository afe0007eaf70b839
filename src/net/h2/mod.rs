//! HTTP/2 (RFC 9113) as the streams that the HTTP/1 engine reads and writes: one virtual connection for each h2 stream.
//!
//! `connection.rs` is a connection, from either end: what its streams share, and who drives it. `core.rs` is what changes of it,
//! `input.rs` what the peer's frames do to it, `heads.rs` what its field blocks do, `entry.rs` one stream, `recv_windows.rs` how much it may send. Towards clients a stream gives a request and takes its response (`incoming.rs`),
//! towards backends it takes a request and gives its response (`backend/`). What frames and field blocks are is in
//! `crate::http2`. Must not know listeners, routes or policies.

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
mod recv_buffer;
mod recv_windows;
mod request;
mod response_encoder;
mod state;
mod stream_entry;
mod websocket;

pub use self::http1_adapter::Http1Adapter;

use crate::http2::frame::ErrorCode;

/// Why a stream came to no good end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer has reset it.
    #[error("stream reset by the peer (RST_STREAM {0})")]
    Reset(ErrorCode),
    /// The peer has said that it will not look at it.
    #[error("connection ended by the peer (GOAWAY {0})")]
    NotProcessed(ErrorCode),
    /// We have found something wrong with it.
    #[error("not valid HTTP/2 ({0})")]
    Invalid(ErrorCode),
    /// Its message is none.
    #[error("not a valid message of HTTP/2: {0}")]
    Malformed(&'static str),
    /// Its message is larger than we take; it may be valid.
    #[error("larger than is taken: {0}")]
    TooLarge(&'static str),
    /// We have found something wrong with its connection.
    #[error("not valid HTTP/2, or more than is allowed ({0})")]
    Failed(ErrorCode),
    /// The peer has spoken HTTP/1 instead.
    #[error("the peer speaks HTTP/1, not HTTP/2")]
    Http1,
    /// Its connection is no more.
    #[error("connection closed")]
    Lost,
}

impl StreamError {
    /// Why the h2 stream ended that `error` comes from; `None` for errors of other connections.
    pub fn of(error: &std::io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }

    /// A limit of ours has ended it; the peer may have kept to the protocol.
    pub fn is_own_limit(self) -> bool {
        matches!(
            self,
            Self::TooLarge(_) | Self::Failed(ErrorCode::ENHANCE_YOUR_CALM)
        )
    }
}

/// The value without the blanks at its ends; `None` if it has control bytes. RFC 9113 section 8.2.1 forbids both, but real
/// senders leave blanks there, and over HTTP/1 they mean nothing (RFC 9112 section 5.1).
fn trimmed(value: &[u8]) -> Option<&[u8]> {
    let mut rest = value;
    while let [b' ' | b'\t', inner @ ..] | [inner @ .., b' ' | b'\t'] = rest {
        rest = inner;
    }
    let is_plain = |byte: &u8| matches!(byte, b'\t' | b' '..=0x7e | 0x80..);
    rest.iter().all(is_plain).then_some(rest)
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &[u8]) -> bool {
    let is_good = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_good)
}

/// A token in lower case: RFC 9113 section 8.2.1. No pseudo-header field has such a name.
fn is_name(name: &[u8]) -> bool {
    is_token(name) && !name.iter().any(u8::is_ascii_uppercase)
}
