//! Sockets: listening, connecting, the stream type, and moving bytes between two streams.
//!
//! Knows backends as something to connect to. Must not know listeners' rules, requests, sessions or
//! reasons: failures are returned by their cause.

pub mod activity;
pub mod buffer;
pub mod client_hello;
pub mod connect;
pub mod copy;
pub mod driver;
#[cfg(test)]
pub(crate) mod fixture;
pub mod limits;
pub mod listen;
pub mod local_error;
pub mod proxy_protocol;
pub mod splice;
pub mod stream;
pub mod sys;
pub mod tls;
