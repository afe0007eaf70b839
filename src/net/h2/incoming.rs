//! One h2 stream of a client as a connection that carries one HTTP/1.1 exchange.
//!
//! Reading yields the request that `request.rs` writes, its body as it is consumed (`reader.rs`), and then the end; writing
//! takes the response and sends it as frames (`response.rs`).

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use hyper::http::{Method, Request};
use tokio::io::ReadBuf;

use super::{
    reader::{Body, Reader},
    request,
    response::Sending,
    text::Text,
    websocket,
};
use crate::{
    http1::request::Limits,
    net::{
        stream::Stream,
        tls::{Agreed, Tls},
    },
    reason::Reason,
};

/// Bytes of most heads.
const USUAL_HEAD: usize = 512;

/// What the streams of one connection share.
#[derive(Debug)]
pub struct Carrier {
    agreed: Option<Agreed>,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    open: Cell<usize>,
    /// Of the task that drives the connection.
    waker: RefCell<Option<Waker>>,
}

impl Carrier {
    /// The facts about `stream`, which carries the connection.
    pub fn new(stream: &Stream) -> Rc<Self> {
        Rc::new(Self {
            agreed: stream.tls().map(Tls::agreed).cloned(),
            local: stream.local_addr(),
            peer: stream.peer_addr(),
            open: Cell::new(0),
            waker: RefCell::default(),
        })
    }

    /// Streams that are in use; the task of `cx` is woken when one ends.
    pub fn poll_open(&self, cx: &Context<'_>) -> usize {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        self.open.get()
    }
}

/// A stream of a client.
#[derive(Debug)]
pub struct Incoming {
    carrier: Rc<Carrier>,
    refusal: Option<Reason>,
    /// What the backend of a WebSocket must answer.
    accept: Option<Box<str>>,
    reading: RefCell<Reader>,
    sending: RefCell<Sending>,
}

impl Incoming {
    /// The exchange that `request` asks for. `nonce` makes the key of a WebSocket.
    pub fn new(
        carrier: Rc<Carrier>,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        limits: Limits,
        nonce: [u8; 16],
    ) -> Self {
        let (parts, stream) = request.into_parts();
        let mut framing = Vec::with_capacity(USUAL_HEAD);
        let (mut key, mut accept) = (String::new(), None);
        if parts.method == Method::CONNECT {
            key = websocket::key(nonce);
            accept = Some(websocket::accept(key.as_bytes()).into());
        }
        let ends = stream.is_end_stream();
        let body = request::encode(&mut framing, &parts, ends, limits, &key);
        carrier.open.set(carrier.open.get() + 1);
        let mut reader = Reader::new();
        reader.begin(framing, body.unwrap_or(Body::None), stream);
        Self {
            carrier,
            refusal: body.err(),
            reading: RefCell::new(reader),
            sending: RefCell::new(Sending::new(
                respond,
                parts.method == Method::HEAD,
                body == Ok(Body::Raw),
            )),
            accept,
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

    /// What the TLS of the connection agreed on.
    pub fn agreed(&self) -> Option<&Agreed> {
        self.carrier.agreed.as_ref()
    }

    /// Address and port of the client.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.carrier.peer
    }

    /// Our own address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.carrier.local
    }

    /// Ready when the stream was reset, by whomever, or its connection is no more.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.sending.borrow_mut().poll_gone(cx)
    }

    /// Ends our direction of a tunnel; a response ends by itself.
    pub fn finish(&self) {
        self.sending.borrow_mut().finish();
    }
}

impl Text for Incoming {
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.reading.borrow_mut().poll_ready(cx)
    }

    fn take(&self, target: &mut ReadBuf<'_>) -> io::Result<bool> {
        self.reading.borrow_mut().take(target)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.sending.borrow_mut().write(bytes)
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sending.borrow_mut().poll_room(cx)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.sending.get_mut().cut();
        self.carrier.open.set(self.carrier.open.get() - 1);
        if let Some(waker) = self.carrier.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}
