//! The data plane of one worker: accept → PROXY header and TLS handshake where the listener has
//! them → its service: HTTP exchanges, or a TCP session.
//!
//! Read `accept.rs` first, then `http/serve.rs`, or `session.rs` and `tcp.rs`.

pub mod accept;
mod accepted;
pub mod connections;
pub mod h2_connections;
pub mod http;
pub mod idle;
mod passthrough;
mod permit;
mod proxy_header;
mod reasons;
mod relay_stop;
mod secure;
mod session;
#[cfg(test)]
mod simulation;
pub mod tcp;
pub mod timer;
mod waiting;
pub mod worker;
