//! HTTP messages and the rules about them, the same for every version: what a head, a body and
//! trailers mean, and which of them are refused.
//!
//! `http1` and `http2` read and write the wire formats of these messages. Pure: no sockets, no
//! tasks. Must not know a wire format. Start at [`message`], then [`rules`], [`head_writer`].

pub mod cookies;
pub mod fields;
pub mod grpc;
pub mod head_writer;
pub mod message;
pub mod rules;
pub mod websocket;
