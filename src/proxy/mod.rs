//! The data plane of one worker: accept → HTTP exchange or TCP session.

pub mod connections;
pub mod http;
pub mod idle;
pub mod timer;
pub mod worker;
