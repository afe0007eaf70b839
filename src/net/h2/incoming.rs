//! One stream of a client, offered as a connection with one HTTP/1.1 exchange.
//!
//! Reading gives the request as `request.rs` has written it, then the body as it is consumed
//! (`recv_buffer.rs`). Writing takes the response and sends it as frames (`response_encoder.rs`).

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll},
};

use tokio::io::ReadBuf;

use super::{
    connection::Connection, http1_adapter::Http1Adapter, recv_buffer, request::H2RequestError,
    response_encoder::ResponseEncoder,
};
use crate::net::tls::NegotiatedTls;

/// Request on a new stream.
#[derive(Debug)]
pub struct IncomingRequest {
    pub(super) id: u32,
    pub(super) is_head: bool,
    pub(super) accept: Option<Box<str>>,
    pub(super) refusal: Option<H2RequestError>,
}

/// Stream of a client.
#[derive(Debug)]
pub struct IncomingStream {
    connection: Rc<Connection>,
    id: u32,
    refusal: Option<H2RequestError>,
    /// `Sec-WebSocket-Accept` that the backend must send.
    accept: Option<Box<str>>,
    encoder: RefCell<ResponseEncoder>,
}

impl IncomingStream {
    /// Creates the stream of `request`.
    pub fn new(connection: Rc<Connection>, request: IncomingRequest) -> Self {
        let encoder = ResponseEncoder::new(request.is_head, request.accept.is_some());
        Self {
            connection,
            id: request.id,
            refusal: request.refusal,
            accept: request.accept,
            encoder: RefCell::new(encoder),
        }
    }

    /// Fault for which the request was refused.
    pub const fn refusal(&self) -> Option<H2RequestError> {
        self.refusal
    }

    /// Marks the request as malformed: the stream ends with an error behind the response, RFC 9113
    /// section 8.1.1.
    pub fn set_malformed(&self) {
        self.connection.set_malformed(self.id);
    }

    /// True if the request is malformed.
    pub fn is_malformed(&self) -> bool {
        self.connection.is_malformed(self.id)
    }

    /// `Sec-WebSocket-Accept` for the key in the request, RFC 6455 section 4.2.2.
    pub fn expected_accept(&self) -> Option<&str> {
        self.accept.as_deref()
    }

    /// Length that the client declared of its body, which is read in chunks.
    pub fn declared_length(&self) -> Option<u64> {
        self.connection.declared_length(self.id)
    }

    /// Parameters that TLS negotiated.
    pub fn negotiated_tls(&self) -> Option<&NegotiatedTls> {
        self.connection.info.agreed.as_ref()
    }

    /// Address and port of the client.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.connection.info.peer
    }

    /// Local address and port.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.connection.info.local
    }

    /// Ready when the stream is reset, or its connection closed.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.connection.poll_closed(self.id, cx).map(drop)
    }

    /// As `Stream::unacked`.
    pub fn unacked(&self) -> Option<u64> {
        self.connection.unacked_on_stream(self.id)
    }

    /// Ends a gRPC call whose response has begun, with the error `status`.
    pub fn end_call(&self, status: u8) {
        let mut encoder = self.encoder.borrow_mut();
        encoder.end_call(&self.connection, self.id, status);
    }

    /// Ends our direction of a tunnel; a response ends by itself.
    pub fn finish(&self) {
        self.encoder.borrow_mut().finish(&self.connection, self.id);
    }
}

impl Http1Adapter for IncomingStream {
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection
            .poll_ready(self.id, cx)
            .map_err(recv_buffer::cut)
    }

    fn take(&self, target: &mut ReadBuf<'_>) -> io::Result<bool> {
        Ok(self.connection.read(self.id, target))
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut encoder = self.encoder.borrow_mut();
        encoder.write(&self.connection, self.id, bytes)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.encoder
            .borrow()
            .poll_writable(&self.connection, self.id, cx)
    }
}

impl Drop for IncomingStream {
    fn drop(&mut self) {
        // An incomplete response is reset, so that it cannot look complete.
        self.connection.close(self.id, self.encoder.get_mut().cut());
    }
}
