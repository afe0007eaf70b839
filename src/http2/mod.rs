//! HTTP/2 codec: frames (RFC 9113) and field compression (RFC 7541).
//!
//! Pure: no sockets, no streams. The effect of a frame is decided in `net/h2/`.

pub mod frame;
pub mod hpack;
