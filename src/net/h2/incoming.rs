//! One h2 stream of a client as a connection that carries one HTTP/1.1 exchange.
//!
//! Reading gives the request that `request.rs` has written, its body as it is consumed (`reader.rs`), and then the end;
//! writing takes the response and sends it as frames (`response.rs`).

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll},
};

use tokio::io::ReadBuf;

use super::{
    connection::Connection, http1_adapter::Http1Adapter, recv_buffer,
    response_encoder::ResponseEncoder,
};
use crate::{net::tls::NegotiatedTls, reason::Reason};

/// A request on a stream that has begun.
#[derive(Debug)]
pub struct IncomingRequest {
    pub(super) id: u32,
    pub(super) is_head: bool,
    pub(super) accept: Option<Box<str>>,
    pub(super) refusal: Option<Reason>,
}

/// A stream of a client.
#[derive(Debug)]
pub struct IncomingStream {
    connection: Rc<Connection>,
    id: u32,
    refusal: Option<Reason>,
    /// What the backend of a WebSocket must answer.
    accept: Option<Box<str>>,
    encoder: RefCell<ResponseEncoder>,
}

impl IncomingStream {
    /// The exchange that was asked for.
    pub fn new(connection: Rc<Connection>, asked: IncomingRequest) -> Self {
        let encoder = ResponseEncoder::new(asked.is_head, asked.accept.is_some());
        Self {
            connection,
            id: asked.id,
            refusal: asked.refusal,
            accept: asked.accept,
            encoder: RefCell::new(encoder),
        }
    }

    /// Why there is no request to be read.
    pub const fn refusal(&self) -> Option<Reason> {
        self.refusal
    }

    /// The `Sec-WebSocket-Accept` that belongs to the key in the request, RFC 6455 section 4.2.2.
    pub fn expected_accept(&self) -> Option<&str> {
        self.accept.as_deref()
    }

    /// Length that the client has declared of its body, which is read in chunks.
    pub fn declared_length(&self) -> Option<u64> {
        self.connection.declared_length(self.id)
    }

    /// What the TLS of the connection agreed on.
    pub fn negotiated_tls(&self) -> Option<&NegotiatedTls> {
        self.connection.info.agreed.as_ref()
    }

    /// Address and port of the client.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.connection.info.peer
    }

    /// Our own address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.connection.info.local
    }

    /// Ready when the stream was reset, by whomever, or its connection is no more.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.connection.poll_closed(self.id, cx).map(drop)
    }

    /// As `Stream::unacked`.
    pub fn unacked(&self) -> Option<u64> {
        self.connection.unacked_on_stream(self.id)
    }

    /// Ends a call of gRPC that has begun to be answered with `status`, which is that of a failure.
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
        // What is not whole must not look whole.
        self.connection.close(self.id, self.encoder.get_mut().cut());
    }
}
