//! HTTP/2 codec: frames (RFC 9113), field compression (RFC 7541), and the messages that field
//! blocks hold.
//!
//! Pure: no sockets, no streams. The effect of a frame is decided in `h2/`. A block is decoded
//! by [`hpack`], then read as a message by [`request`], [`response`] or [`trailers`];
//! [`block_head`] writes messages.

pub mod block_head;
pub mod fields;
pub mod frame;
#[cfg(test)]
pub(crate) mod golden_tests;
pub mod hpack;
pub mod request;
pub mod response;
pub mod trailers;
