//! One h2 stream of a client as a connection that carries one HTTP/1.1 exchange.
//!
//! Reading yields the request that `request.rs` writes, its body as it is consumed, and then the end; writing takes the
//! response and sends it as frames (`response.rs`). Windows open only as bytes are read: back-pressure goes through.

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    io::{self, IoSlice},
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes};
use h2::{RecvStream, server::SendResponse};
use hyper::http::{Method, Request};
use tokio::io::ReadBuf;

use super::{
    request::{self, Body},
    response::Sending,
};
use crate::{
    http1::{encode, request::Limits},
    net::{
        stream::Stream,
        tls::{Agreed, Tls},
    },
    reason::Reason,
};

/// Appended to the key of a WebSocket for its answer, RFC 6455 section 1.3.
const SOCKET_ID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

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
    reading: RefCell<Reading>,
    sending: RefCell<Sending>,
}

/// The request, as far as it was not read.
#[derive(Debug)]
struct Reading {
    /// The head, then the lines around each chunk; read up to `at`.
    framing: Vec<u8>,
    at: usize,
    body: Body,
    stream: RecvStream,
    /// Read from the stream, not by the engine: its window is still taken.
    data: Bytes,
    ended: bool,
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
        let mut framing = Vec::new();
        let (mut key, mut accept) = (String::new(), None);
        if parts.method == Method::CONNECT {
            key = base64(&nonce);
            let digest = &ring::digest::SHA1_FOR_LEGACY_USE_ONLY;
            let answer = ring::digest::digest(digest, format!("{key}{SOCKET_ID}").as_bytes());
            accept = Some(base64(answer.as_ref()).into());
        }
        let ends = stream.is_end_stream();
        let body = request::encode(&mut framing, &parts, ends, limits, &key);
        carrier.open.set(carrier.open.get() + 1);
        Self {
            carrier,
            refusal: body.err(),
            reading: RefCell::new(Reading {
                framing,
                at: 0,
                body: body.unwrap_or(Body::None),
                stream,
                data: Bytes::new(),
                ended: false,
            }),
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

    /// As `Stream::try_read`.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut target = ReadBuf::new(buffer);
        // Whoever goes on to wait polls for it, and is woken by that.
        match self.poll_read(&mut Context::from_waker(Waker::noop()), &mut target) {
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            Poll::Ready(read) => read.map(|()| target.filled().len()),
        }
    }

    /// Takes as much as there is.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut reading = self.reading.borrow_mut();
        let before = target.filled().len();
        while target.remaining() > 0 {
            match reading.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                // An error is told when nothing is left to be given first.
                _ if target.filled().len() > before => break,
                failed => return failed,
            }
            if !reading.take(target)? {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// As `Stream::poll_read_ready`.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.reading.borrow_mut().poll_ready(cx)
    }

    /// As `Stream::try_write`.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.sending.borrow_mut().write(bytes)
    }

    /// As `Stream::poll_write_ready`.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sending.borrow_mut().poll_room(cx)
    }

    /// Waits for room, and writes.
    pub fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.poll_write_ready(cx))?;
                }
                written => return Poll::Ready(written),
            }
        }
    }

    /// As [`Incoming::poll_write`], one part after the other: the head and the body behind it are frames of their own.
    pub fn poll_write_vectored(
        &self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut written = 0;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            match self.poll_write(cx, part) {
                Poll::Ready(Ok(count)) => {
                    written += count;
                    if count < part.len() {
                        break;
                    }
                }
                Poll::Pending | Poll::Ready(Err(_)) if written > 0 => break,
                failed => return failed,
            }
        }
        Poll::Ready(Ok(written))
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

impl Drop for Incoming {
    fn drop(&mut self) {
        self.sending.get_mut().cut();
        self.carrier.open.set(self.carrier.open.get() - 1);
        if let Some(waker) = self.carrier.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Reading {
    /// Ready when there is something to take, or the end.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.at == self.framing.len() && self.data.is_empty() && !self.ended {
            if self.body == Body::None {
                self.ended = true;
                continue;
            }
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    if self.body == Body::Chunked {
                        self.begin_framing();
                        encode::chunk_size(&mut self.framing, data.len());
                    }
                    self.data = data;
                }
                Some(Err(error)) => return Poll::Ready(Err(reset(error))),
                None => {
                    ready!(self.poll_end(cx))?;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The last chunk with the trailers.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(reset)?;
        if self.body == Body::Chunked {
            let trailers = trailers
                .as_ref()
                .map_or(Some(Vec::new()), request::trailers);
            let trailers = trailers.ok_or(io::ErrorKind::InvalidData)?;
            self.begin_framing();
            encode::last_chunk(&mut self.framing, &trailers);
        }
        self.ended = true;
        Poll::Ready(Ok(()))
    }

    fn begin_framing(&mut self) {
        self.framing.clear();
        self.at = 0;
    }

    /// Gives what is there; false at the end.
    fn take(&mut self, target: &mut ReadBuf<'_>) -> io::Result<bool> {
        let lines = self.framing.get(self.at..).unwrap_or_default();
        if !lines.is_empty() {
            let fits = lines.get(..target.remaining()).unwrap_or(lines);
            target.put_slice(fits);
            self.at += fits.len();
            return Ok(true);
        }
        if self.data.is_empty() {
            return Ok(false);
        }
        let count = self.data.len().min(target.remaining());
        target.put_slice(self.data.get(..count).unwrap_or_default());
        self.data.advance(count);
        self.stream
            .flow_control()
            .release_capacity(count)
            .map_err(reset)?;
        if self.data.is_empty() && self.body == Body::Chunked {
            self.begin_framing();
            encode::end(&mut self.framing);
        }
        Ok(true)
    }
}

fn reset(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group
            .iter()
            .zip([16, 8, 0])
            .fold(0_u32, |bits, (byte, shift)| {
                bits | u32::from(*byte) << shift
            });
        for place in 0..4 {
            let digit = DIGITS.get((bits >> (18 - 6 * place) & 63) as usize);
            let digit = digit.filter(|_| place <= group.len()).unwrap_or(&b'=');
            _ = text.write_char(char::from(*digit));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("\u{fff}\u{3ff}", "4L+/z78="),
        ] {
            assert_eq!(base64(text.as_bytes()), encoded, "{text}");
        }
    }
}
