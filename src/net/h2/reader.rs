//! A message that comes as frames, given out as the bytes of HTTP/1.1: its head, then its body framed as the head says.
//!
//! Windows open only as bytes are taken: back-pressure goes through.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::RecvStream;
use hyper::http::HeaderMap;
use tokio::io::ReadBuf;

use super::is_plain;
use crate::http1::{encode, fields::Known};

/// What follows the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// Nothing.
    None,
    /// The bytes of a declared length.
    Plain,
    /// A body that ends when the stream says so, as chunks.
    Chunked,
    /// Another protocol, RFC 8441.
    Raw,
}

/// A message, as far as it was not taken.
#[derive(Debug)]
pub(super) struct Reader {
    /// The head, then the lines around each chunk; taken up to `at`.
    framing: Vec<u8>,
    at: usize,
    body: Body,
    /// `None` before the final head.
    stream: Option<RecvStream>,
    /// Received, and not taken: its window is still in use.
    data: Bytes,
    ended: bool,
    /// The trailers may not be passed on.
    spoilt: bool,
}

impl Reader {
    /// Nothing is there yet.
    pub(super) const fn new() -> Self {
        Self {
            framing: Vec::new(),
            at: 0,
            body: Body::None,
            stream: None,
            data: Bytes::new(),
            ended: false,
            spoilt: false,
        }
    }

    /// `head` is to be given out, and then the body that `stream` brings.
    pub(super) fn begin(&mut self, head: Vec<u8>, body: Body, stream: RecvStream) {
        self.interim(head);
        self.body = body;
        self.stream = Some(stream);
    }

    /// `head` is to be given out, and another one will follow.
    pub(super) fn interim(&mut self, head: Vec<u8>) {
        (self.framing, self.at) = (head, 0);
    }

    /// Something is there that was received before.
    pub(super) fn has_bytes(&self) -> bool {
        self.at < self.framing.len() || !self.data.is_empty()
    }

    /// Ready when there is something to take, or the end. Only after [`Reader::begin`], or while [`Reader::has_bytes`].
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.has_bytes() && !self.ended {
            if self.spoilt {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            let Some(stream) = self.stream.as_mut().filter(|_| self.body != Body::None) else {
                self.ended = true;
                break;
            };
            match ready!(stream.poll_data(cx)) {
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
                    let trailers = ready!(stream.poll_trailers(cx)).map_err(reset)?;
                    self.end(trailers.as_ref());
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The message is whole.
    fn end(&mut self, trailers: Option<&HeaderMap>) {
        if self.body == Body::Chunked {
            let Some(trailers) = trailers.map_or(Some(Vec::new()), trailer_section) else {
                self.spoilt = true;
                return;
            };
            self.begin_framing();
            encode::last_chunk(&mut self.framing, &trailers);
        }
        self.ended = true;
    }

    fn begin_framing(&mut self) {
        self.framing.clear();
        self.at = 0;
    }

    /// Gives some of what is there; false at the end.
    pub(super) fn take(&mut self, target: &mut ReadBuf<'_>) -> io::Result<bool> {
        let lines = self.framing.get(self.at..).unwrap_or_default();
        if !lines.is_empty() {
            let fits = lines.get(..target.remaining()).unwrap_or(lines);
            target.put_slice(fits);
            self.at += fits.len();
            return Ok(true);
        }
        let Some(stream) = self.stream.as_mut().filter(|_| !self.data.is_empty()) else {
            return Ok(false);
        };
        let count = self.data.len().min(target.remaining());
        target.put_slice(self.data.get(..count).unwrap_or_default());
        self.data.advance(count);
        stream
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

/// The stream or its connection was ended by an error; the cause stays within.
pub(super) fn reset(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

/// Trailers as the section behind the last chunk; `None` if they may not be passed on.
pub(super) fn trailer_section(fields: &HeaderMap) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for (name, value) in fields {
        if !is_plain(value.as_bytes()) || Known::of(name.as_str().as_bytes()).is_hop_by_hop() {
            return None;
        }
        encode::field(&mut out, name.as_str().as_bytes(), value.as_bytes());
    }
    Some(out)
}
