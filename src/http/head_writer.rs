//! Interface to write a head, so that each rule about what we send stands once for all formats.
//!
//! `proxy::http` decides what a head has, and in which order; a format decides how that is written,
//! and which of it the format does not have. `http1::encode` writes text, `http2::block_head` field
//! blocks. Must not know why a field is there.

use super::message::BodyFraming;

/// Beginning of a request: the request line of HTTP/1, the pseudo-header fields of HTTP/2.
#[derive(Debug, Clone, Copy)]
pub struct RequestLine<'a> {
    /// Method; `GET` for a WebSocket.
    pub method: &'a [u8],
    /// The scheme is https.
    pub is_secure: bool,
    /// Host and port, also of a Host that is written with [`HeadWriter::http1_field`]; empty if
    /// none is known.
    pub authority: &'a [u8],
    /// Origin-form or `*`.
    pub target: &'a [u8],
    /// The request asks for a WebSocket.
    pub is_websocket: bool,
}

/// Writer of the head of one message, or of its trailers: one of the first three methods, then
/// fields and the framing, then the end.
pub trait HeadWriter {
    /// Begins the head of a request.
    fn request_line(&mut self, line: RequestLine<'_>);

    /// Begins the head of a response. The status of a switch to a WebSocket is 101.
    fn status_line(&mut self, status: u16, phrase: &[u8]);

    /// Begins the trailers behind the content of a message.
    fn trailer_start(&mut self);

    /// Writes a field.
    fn field(&mut self, name: &[u8], value: &[u8]);

    /// Writes a field that only HTTP/1 has: Host, the fields of a connection, the key of a
    /// WebSocket and its answer.
    fn http1_field(&mut self, name: &[u8], value: &[u8]);

    /// Writes what tells the recipient where the body ends.
    fn framing(&mut self, framing: BodyFraming);

    /// Ends the head or the trailers.
    fn end(&mut self);
}
