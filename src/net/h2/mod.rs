//! HTTP/2 (RFC 9113) as the streams that the HTTP/1 engine reads and writes: one virtual connection for each h2 stream.
//!
//! What frames and compression are is the `h2` crate's business. Must not know listeners, routes or pools.

pub mod incoming;
mod request;
mod response;
pub mod watch;
