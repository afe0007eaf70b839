//! TLS streams (rustls), either end. An idle connection holds no buffer.
//!
//! `records.rs` turns records into bytes and back, without a socket; `session.rs` adds the socket
//! and the bytes that wait; `stream.rs` is what [`super::stream::Stream`] is made of. A connection
//! begins in `handshake.rs`; `server.rs` is the configuration of a listener. Must not know who is
//! at the other end.

#[cfg(test)]
pub(crate) mod fixture;
mod handshake;
mod records;
mod server;
mod session;
mod stream;
#[cfg(test)]
mod tests;

pub(super) use self::handshake::connect;
pub use self::{
    handshake::{HandshakeError, accept},
    server::ServerTls,
    stream::{NegotiatedTls, TlsStream},
};
