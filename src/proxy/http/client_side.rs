//! The client's side of an exchange: an HTTP/1 connection, or one stream of an HTTP/2 connection.
//!
//! Each difference between the two has a method here. Must not know what an exchange is.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

use super::relay::{BodySink, BodySource};
use crate::{
    h2::{StreamError, stream::H2Stream},
    http::{head_writer::HeadWriter as _, rules::HeadFault},
    http2::{block_head::BlockHead, frame::ErrorCode},
    net::{
        copy::RelaySide,
        proxy_protocol::ConnectionEnds,
        stream::Stream,
        tls::{NegotiatedTls, TlsStream},
    },
};

/// Facts about an HTTP/2 connection that its streams share.
#[derive(Debug)]
pub(super) struct H2ClientFacts {
    /// Parameters that TLS negotiated.
    pub negotiated: Option<Box<NegotiatedTls>>,
    /// Both ends of the connection; `None` on a unix socket.
    pub ends: Option<ConnectionEnds>,
}

/// Stream of an HTTP/2 client.
#[derive(Debug)]
pub struct H2ClientSide {
    pub(super) stream: H2Stream,
    pub(super) facts: Rc<H2ClientFacts>,
    /// Fault for which its request is refused.
    pub(super) refusal: Option<HeadFault>,
}

impl H2ClientSide {
    /// True if the request is malformed, as opposed to one that is refused for a limit of ours.
    pub(super) fn is_malformed(&self) -> bool {
        self.refusal == Some(HeadFault::Malformed)
    }
}

/// The client's side of an exchange.
#[derive(Debug)]
pub enum ClientSide {
    /// A connection with one exchange after the other.
    H1(Stream),
    /// A stream with one exchange.
    H2(H2ClientSide),
}

impl From<Stream> for ClientSide {
    fn from(stream: Stream) -> Self {
        Self::H1(stream)
    }
}

impl ClientSide {
    /// The source of the request's body.
    pub(super) fn source(&mut self) -> BodySource<'_> {
        match self {
            Self::H1(stream) => BodySource::H1(stream),
            Self::H2(side) => BodySource::H2(&side.stream),
        }
    }

    /// The sink of the response's body.
    pub(super) fn sink(&mut self) -> BodySink<'_> {
        match self {
            Self::H1(stream) => BodySink::H1(stream),
            Self::H2(side) => BodySink::H2(&side.stream),
        }
    }

    /// Ready when a head can be sent: over HTTP/1 it waits in our buffer, over HTTP/2 in that of
    /// the connection, which all streams share.
    pub(super) fn poll_head_ready(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::H1(_) => Poll::Ready(Ok(())),
            Self::H2(side) => side
                .stream
                .poll_head_ready(cx)
                .map_err(StreamError::into_io),
        }
    }

    /// TLS of the connection itself; none of a stream.
    pub(super) const fn tls(&self) -> Option<&TlsStream> {
        match self {
            Self::H1(stream) => stream.tls(),
            Self::H2(_) => None,
        }
    }

    /// Parameters of the connection's TLS.
    pub(super) fn negotiated_tls(&self) -> Option<&NegotiatedTls> {
        match self {
            Self::H1(stream) => stream.negotiated_tls(),
            Self::H2(side) => side.facts.negotiated.as_deref(),
        }
    }

    /// Version of TLS as the log writes it; empty without TLS.
    pub(super) fn tls_version(&self) -> &'static str {
        self.negotiated_tls().map_or("", NegotiatedTls::version)
    }

    /// Both ends of the connection; `None` on a unix socket.
    pub(super) fn ends(&self) -> Option<ConnectionEnds> {
        match self {
            Self::H1(stream) => ConnectionEnds::of(stream),
            Self::H2(side) => side.facts.ends,
        }
    }

    /// True for a stream whose request is malformed.
    pub(super) fn is_malformed(&self) -> bool {
        match self {
            Self::H1(_) => false,
            Self::H2(side) => side.is_malformed(),
        }
    }

    /// Ready when the client wants no response any more: it has reset its stream, or ended its
    /// direction of an HTTP/1 connection.
    ///
    /// It may still read, but hardly any client does so. While a request waits, the client has
    /// nearly always closed the connection, and would take a backend's time for nothing.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(stream) => stream.poll_peer_ended(cx),
            Self::H2(side) => side.stream.poll_closed(cx).map(drop),
        }
    }

    /// True if an HTTP/1 connection has nothing to read and was not closed. A stream has no other
    /// request.
    pub(super) fn is_idle_and_open(&self) -> bool {
        match self {
            Self::H1(stream) => stream.is_idle_and_open(),
            Self::H2(_) => false,
        }
    }

    /// True if nothing has arrived that was not read, and the client has not ended.
    pub(super) fn has_no_pending_input(&self) -> bool {
        match self {
            Self::H1(stream) => stream.has_no_pending_input(),
            Self::H2(_) => false,
        }
    }

    /// True if the client sends HTTP/1 in the clear.
    pub(super) const fn is_plain(&self) -> bool {
        match self {
            Self::H1(stream) => stream.is_plain(),
            Self::H2(_) => false,
        }
    }

    /// Reads what the client has sent into `waste`; ready with the count, 0 at the end.
    pub(super) fn poll_discard(
        &mut self,
        cx: &mut Context<'_>,
        waste: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::H1(stream) => stream.poll_read_buf(cx, waste),
            Self::H2(side) => match ready!(side.stream.poll_content(cx)) {
                Ok(true) => Poll::Ready(Ok(side.stream.read_slice(waste))),
                Ok(false) => Poll::Ready(Ok(0)),
                Err(ended) => Poll::Ready(Err(ended.into_io())),
            },
        }
    }

    /// Writes bytes of a whole HTTP/1 message, or content of a stream.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        ends: bool,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::H1(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::H2(side) => loop {
                match side.stream.send_content(bytes, ends) {
                    Ok(0) if !bytes.is_empty() => {
                        ready!(side.stream.poll_content_ready(cx)).map_err(StreamError::into_io)?;
                    }
                    sent => return Poll::Ready(sent.map_err(StreamError::into_io)),
                }
            },
        }
    }

    /// Ends a gRPC call whose response has begun with the error `status` in trailers. gRPC clients
    /// map RST_STREAM to INTERNAL, for any cause.
    pub(super) fn end_call(&self, status: u8) {
        let Self::H2(side) = self else { return };
        let status = status.to_string();
        let write = |block: &mut BlockHead<'_>| block.field(b"grpc-status", status.as_bytes());
        // Fails only on a closed stream.
        let _ = side.stream.send_trailers(write);
    }

    /// Makes the stream one of a tunnel, whose end at any time is no error.
    pub(super) fn begin_tunnel(&self) {
        if let Self::H2(side) = self {
            side.stream.set_cut_code(ErrorCode::CANCEL);
        }
    }
}

impl RelaySide for ClientSide {
    fn stream(&self) -> Option<&Stream> {
        match self {
            Self::H1(stream) => Some(stream),
            Self::H2(_) => None,
        }
    }

    fn ends_by_drop(&self) -> bool {
        match self {
            Self::H1(stream) => stream.ends_by_drop(),
            Self::H2(_) => false,
        }
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::H1(stream) => stream.poll_read_ready(cx),
            Self::H2(side) => side.stream.poll_read_ready(cx),
        }
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::H1(stream) => stream.try_read(buffer),
            Self::H2(side) => side.stream.try_read(buffer),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::H1(stream) => stream.poll_write_ready(cx),
            Self::H2(side) => side.stream.poll_write_ready(cx),
        }
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::H1(stream) => stream.try_write(bytes),
            Self::H2(side) => side.stream.try_write(bytes),
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::H1(stream) => stream.shutdown_write(),
            Self::H2(side) => side.stream.shutdown_write(),
        }
    }

    fn poll_disconnected(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(stream) => stream.poll_disconnected(cx),
            Self::H2(side) => side.stream.poll_disconnected(cx),
        }
    }

    fn unacked(&self) -> Option<u64> {
        match self {
            Self::H1(stream) => stream.unacked(),
            Self::H2(side) => side.stream.unacked(),
        }
    }

    fn set_reset_on_close(&self) {
        // A stream that is incomplete is reset anyway.
        if let Self::H1(stream) = self {
            stream.set_reset_on_close();
        }
    }
}
