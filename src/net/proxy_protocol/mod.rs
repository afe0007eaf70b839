//! The PROXY protocol, versions 1 and 2: the address of a client, told by a load balancer in front
//! of us, and by us to a backend.
//!
//! `header.rs` is the header, `parse.rs` and `encode.rs` its bytes (both pure), `stream.rs`
//! receives one from a stream, or sends one. Which peers are trusted is not known here.

mod encode;
mod header;
mod parse;
mod stream;
#[cfg(test)]
mod tests;

pub use self::{
    encode::{encode, encode_local},
    header::{ConnectionEnds, ProxyHeader},
    parse::{MAX_HEADER_BYTES, ProxyHeaderError, parse},
    stream::{ReceiveHeaderError, receive_header, send_header},
};
