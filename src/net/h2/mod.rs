//! HTTP/2 (RFC 9113) as the streams that the HTTP/1 engine reads and writes: one virtual connection for each h2 stream.
//!
//! Towards clients a stream gives a request and takes its response (`incoming.rs`), towards backends it takes a request and
//! gives its response (`backend/`). What frames and compression are is the `h2` crate's business. Must not know listeners,
//! routes or policies.

pub mod backend;
pub mod incoming;
mod reader;
mod request;
mod response;
mod text;
pub mod watch;
mod websocket;
mod writer;

pub use self::text::Text;

/// No control bytes, no blanks at either end: RFC 9113 section 8.2.1.
fn is_plain(value: &[u8]) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !is_blank(value.first())
        && !is_blank(value.last())
        && value
            .iter()
            .all(|byte| matches!(byte, b'\t' | b' '..=0x7e | 0x80..))
}
