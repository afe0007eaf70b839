//! What the bytes of HTTP/2 mean, and how they are written: frames (RFC 9113), and the compression of heads (RFC 7541).
//!
//! Pure: no sockets, no streams. What becomes of a frame is decided in `net/h2/`.

pub mod frame;
pub mod hpack;
