//! A message that the engine writes as bytes of HTTP/1.1, sent as frames: what a head consists of, and the body behind it.
//!
//! Bounded: bytes are taken only as far as the peer's windows and the stream's send buffer have room.

use std::{
    borrow::Cow,
    io,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::SendStream;
use hyper::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::http1::{
    body::{Decoder, Step},
    fields::Known,
    head_end,
};

/// Most bytes of a head that we write ourselves: the peer's, and what routes add.
const MAX_HEAD: usize = 512 << 10;
/// Most fields of such a head.
pub(super) const MAX_FIELDS: usize = 512;
/// How much room is asked for when the next write is not known.
const ROOM: usize = 16 << 10;

#[derive(Debug)]
enum Phase {
    /// Within the body. So many bytes to come are known to be of it.
    Body(Decoder, usize),
    /// Bytes of another protocol.
    Raw,
    /// The stream has been ended.
    Done,
}

/// What is sent behind a head.
#[derive(Debug)]
pub(super) struct Writer {
    stream: SendStream<Bytes>,
    phase: Phase,
}

pub(super) fn gone<T>(error: h2::Error) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::BrokenPipe, error))
}

pub(super) fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The head whose beginning is in `head` and which goes on with `input`, when it is whole, and how many bytes of `input`
/// belong to it. What is not whole is kept in `head`.
pub(super) fn collect<'i>(
    head: &mut Vec<u8>,
    input: &'i [u8],
) -> io::Result<(Option<Cow<'i, [u8]>>, usize)> {
    if head.is_empty()
        && let Some(whole) = head_end(input, 0).and_then(|end| input.get(..end))
    {
        return Ok((Some(Cow::Borrowed(whole)), whole.len()));
    }
    let before = head.len();
    head.extend_from_slice(input);
    let Some(end) = head_end(head, before) else {
        if head.len() > MAX_HEAD {
            return Err(invalid("a head that does not end"));
        }
        return Ok((None, input.len()));
    };
    head.truncate(end);
    Ok((Some(Cow::Owned(std::mem::take(head))), end - before))
}

/// The fields that go on (RFC 9113 section 8.2.2), and how the body is framed, where a field says so.
pub(super) fn fields(fields: &[httparse::Header<'_>]) -> io::Result<(HeaderMap, Option<Decoder>)> {
    let mut kept = HeaderMap::with_capacity(fields.len());
    let mut decoder = None;
    for field in fields {
        let known = Known::of(field.name.as_bytes());
        match known {
            Known::ContentLength => {
                let length = str::from_utf8(field.value)
                    .ok()
                    .and_then(|it| it.parse().ok());
                decoder = Some(Decoder::Length(length.ok_or(invalid("no length"))?));
            }
            Known::TransferEncoding => decoder = Some(Decoder::chunked()),
            _ => {}
        }
        if known.is_hop_by_hop() {
            continue;
        }
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(invalid("a field that HTTP/2 does not have"));
        };
        kept.append(name, value);
    }
    Ok((kept, decoder))
}

/// Marks as sensitive what is not likely to be said again: the h2 crate enters everything else in the table of the connection
/// (RFC 7541 section 2.3.2) and keeps it for as long as the connection lives.
pub(super) fn spare_table(fields: &mut HeaderMap) {
    for (name, value) in fields {
        value.set_sensitive(!says_the_same_again(name));
    }
}

/// Whether the next response is likely to have the same value: others, such as the id of the request, would fill the table
/// with what is never used again, which costs up to 12 KiB.
fn says_the_same_again(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::ACCEPT_RANGES
            | header::ACCESS_CONTROL_ALLOW_CREDENTIALS
            | header::ACCESS_CONTROL_ALLOW_HEADERS
            | header::ACCESS_CONTROL_ALLOW_METHODS
            | header::ACCESS_CONTROL_ALLOW_ORIGIN
            | header::ACCESS_CONTROL_EXPOSE_HEADERS
            | header::ACCESS_CONTROL_MAX_AGE
            | header::ALLOW
            | header::ALT_SVC
            | header::CACHE_CONTROL
            | header::CONTENT_ENCODING
            | header::CONTENT_LANGUAGE
            | header::CONTENT_SECURITY_POLICY
            | header::CONTENT_TYPE
            | header::PRAGMA
            | header::REFERRER_POLICY
            | header::SERVER
            | header::STRICT_TRANSPORT_SECURITY
            | header::VARY
            | header::VIA
            | header::X_CONTENT_TYPE_OPTIONS
            | header::X_FRAME_OPTIONS
            | header::X_XSS_PROTECTION
    ) || matches!(
        name.as_str(),
        "cross-origin-embedder-policy"
            | "cross-origin-opener-policy"
            | "cross-origin-resource-policy"
            | "grpc-accept-encoding"
            | "grpc-encoding"
            | "grpc-status"
            | "permissions-policy"
            | "x-powered-by"
    )
}

impl Writer {
    /// The body comes as `decoder` reads it.
    pub(super) const fn body(stream: SendStream<Bytes>, decoder: Decoder) -> Self {
        Self {
            stream,
            phase: Phase::Body(decoder, 0),
        }
    }

    /// What comes is another protocol.
    pub(super) const fn raw(stream: SendStream<Bytes>) -> Self {
        Self {
            stream,
            phase: Phase::Raw,
        }
    }

    /// The head was the end of the stream.
    pub(super) const fn done(stream: SendStream<Bytes>) -> Self {
        Self {
            stream,
            phase: Phase::Done,
        }
    }

    /// Sends body bytes as far as there is room.
    pub(super) fn write(&mut self, input: &[u8]) -> io::Result<usize> {
        if matches!(self.phase, Phase::Done) {
            // The body of an answer to HEAD, where the engine did not know the method of a request it refused.
            return Ok(input.len());
        }
        self.stream.reserve_capacity(input.len());
        let room = self.stream.capacity();
        let mut data = BytesMut::with_capacity(room.min(input.len()));
        let (mut used, mut ended) = (0, false);
        if let Phase::Body(decoder, known) = &mut self.phase {
            loop {
                let rest = input.get(used..).unwrap_or_default();
                if *known == 0 {
                    match decoder.step(rest).map_err(|error| invalid(error.0))? {
                        Step::Data(count) => *known = count,
                        Step::Skip(count) => used += count,
                        Step::More => break,
                        Step::End => {
                            ended = true;
                            break;
                        }
                    }
                    continue;
                }
                let count = (*known).min(rest.len()).min(room - data.len());
                if count == 0 {
                    break;
                }
                data.extend_from_slice(rest.get(..count).unwrap_or_default());
                *known -= count;
                used += count;
            }
        } else {
            used = room.min(input.len());
            data.extend_from_slice(input.get(..used).unwrap_or_default());
        }
        if used == 0 && !ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.send(data.freeze(), ended)?;
        Ok(used)
    }

    fn send(&mut self, data: Bytes, ended: bool) -> io::Result<()> {
        let trailers = match &self.phase {
            Phase::Body(decoder, _) if ended => read_trailers(decoder.trailers())?,
            _ => None,
        };
        let last = ended && trailers.is_none();
        if last || !data.is_empty() {
            self.stream.send_data(data, last).or_else(gone)?;
        }
        if let Some(trailers) = trailers {
            self.stream.send_trailers(trailers).or_else(gone)?;
        }
        if ended {
            self.phase = Phase::Done;
        } else {
            // Room that is not used may be another stream's.
            self.stream.reserve_capacity(0);
        }
        Ok(())
    }

    /// Ready when a write takes something, or fails.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.phase, Phase::Done) {
            return Poll::Ready(Ok(()));
        }
        self.stream.reserve_capacity(ROOM);
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(gone(error)),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the stream is no more, whoever ended it; says why, if it was reset.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Option<h2::Reason>> {
        self.stream.poll_reset(cx).map(Result::ok)
    }

    /// Ends a tunnel. A message ends by its own framing, or not at all.
    pub(super) fn finish(&mut self) {
        if matches!(self.phase, Phase::Raw) {
            // Fails only on a stream that is no more.
            let _ = self.stream.send_data(Bytes::new(), true);
            self.phase = Phase::Done;
        }
    }

    /// Makes sure that what is not whole does not look whole; `reason` is that of a message that is not.
    pub(super) fn cut(&mut self, reason: h2::Reason) {
        match self.phase {
            Phase::Done => {}
            Phase::Raw => self.stream.send_reset(h2::Reason::CANCEL),
            Phase::Body(..) => self.stream.send_reset(reason),
        }
    }
}

/// The fields of a trailer section; `None` if there are none.
fn read_trailers(section: &[u8]) -> io::Result<Option<HeaderMap>> {
    if section.is_empty() {
        return Ok(None);
    }
    let mut trailers = HeaderMap::new();
    for line in section.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii_end();
        let Some(colon) = memchr::memchr(b':', line) else {
            continue;
        };
        let (name, value) = line.split_at(colon);
        let name = HeaderName::from_bytes(name);
        let value = HeaderValue::from_bytes(value.get(1..).unwrap_or_default().trim_ascii());
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(invalid("a trailer that HTTP/2 does not have"));
        };
        trailers.append(name, value);
    }
    spare_table(&mut trailers);
    Ok(Some(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_again_goes_into_the_table_of_the_connection() {
        for (name, kept) in [
            ("content-type", true),
            ("via", true),
            ("permissions-policy", true),
            ("grpc-status", true),
            ("x-request-id", false),
            ("date", false),
            ("server-timing", false),
        ] {
            let mut fields = HeaderMap::new();
            fields.insert(name, HeaderValue::from_static("x"));
            spare_table(&mut fields);
            assert_eq!(!fields[name].is_sensitive(), kept, "{name}");
        }
    }
}
