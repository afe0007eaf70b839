//! The data plane of one worker: accept → PROXY header, where one is asked for → HTTP exchange or TCP session.
//!
//! Read `accept.rs` first, then `http/mod.rs` or `tcp.rs`.

pub mod accept;
pub mod connections;
pub mod http;
pub mod idle;
mod introduction;
pub mod links;
mod secure;
pub mod tcp;
pub mod timer;
pub mod worker;
