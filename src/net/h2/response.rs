//! Turns the bytes of an HTTP/1.1 response, as the engine writes them, into the frames of an h2 stream.
//!
//! Bounded: bytes are taken only as far as the client's windows and the stream's send buffer have room.

use std::{
    io,
    mem::MaybeUninit,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::{SendStream, server::SendResponse};
use hyper::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::http1::{
    body::{Decoder, Step},
    fields::Known,
    head_end,
};

/// Most bytes of a head that we write ourselves: a backend's, and what routes add.
const MAX_HEAD: usize = 512 << 10;
/// Most fields of such a head.
const MAX_FIELDS: usize = 512;
/// How much room is asked for when the next write is not known.
const ROOM: usize = 16 << 10;

#[derive(Debug)]
enum Phase {
    /// Within a head; what is there of it.
    Head(Vec<u8>),
    /// Within the body. So many bytes to come are known to be of it.
    Body(Decoder, usize),
    /// Bytes of another protocol.
    Raw,
    /// The stream has been ended.
    Done,
}

/// The response of one stream.
#[derive(Debug)]
pub(super) struct Sending {
    respond: SendResponse<Bytes>,
    /// After the final head.
    body: Option<SendStream<Bytes>>,
    phase: Phase,
    is_head: bool,
    /// A switch to another protocol was asked for.
    may_switch: bool,
}

fn gone<T>(error: h2::Error) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::BrokenPipe, error))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Sending {
    /// The response to a request that was HEAD or not, and asked for another protocol or not.
    pub(super) fn new(respond: SendResponse<Bytes>, is_head: bool, may_switch: bool) -> Self {
        Self {
            respond,
            body: None,
            phase: Phase::Head(Vec::new()),
            is_head,
            may_switch,
        }
    }

    /// Takes what can be sent or buffered; `WouldBlock` when that is nothing.
    pub(super) fn write(&mut self, input: &[u8]) -> io::Result<usize> {
        let mut used = 0;
        while used < input.len() {
            let rest = input.get(used..).unwrap_or_default();
            let count = match &mut self.phase {
                Phase::Head(_) => self.write_head(rest)?,
                Phase::Body(..) | Phase::Raw => match self.write_body(rest) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && used > 0 => break,
                    count => count?,
                },
                // The body of an answer to HEAD, where the engine did not know the method of a request it refused.
                Phase::Done => rest.len(),
            };
            used += count;
        }
        Ok(used)
    }

    fn write_head(&mut self, input: &[u8]) -> io::Result<usize> {
        let Phase::Head(head) = &mut self.phase else {
            return Ok(0);
        };
        let before = head.len();
        head.extend_from_slice(input);
        let Some(end) = head_end(head, before) else {
            if head.len() > MAX_HEAD {
                return Err(invalid("a head that does not end"));
            }
            return Ok(input.len());
        };
        let head = std::mem::take(head);
        self.send_head(head.get(..end).unwrap_or_default())?;
        Ok(end - before)
    }

    fn send_head(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut room = [MaybeUninit::uninit(); MAX_FIELDS];
        let mut head = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default()
            .parse_response_with_uninit_headers(&mut head, bytes, &mut room);
        let status = head.code.and_then(|code| StatusCode::from_u16(code).ok());
        let (Ok(httparse::Status::Complete(_)), Some(status)) = (parsed, status) else {
            return Err(invalid("no response head"));
        };
        let (fields, decoder) = self.fields(head.headers, status)?;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return self.begin_raw(fields);
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        if status.is_informational() {
            return self.respond.send_informational(response).or_else(gone);
        }
        let ends = decoder.is_done();
        self.body = Some(self.respond.send_response(response, ends).or_else(gone)?);
        self.phase = if ends {
            Phase::Done
        } else {
            Phase::Body(decoder, 0)
        };
        Ok(())
    }

    /// The fields that go on, and how the body is framed.
    fn fields(
        &self,
        fields: &[httparse::Header<'_>],
        status: StatusCode,
    ) -> io::Result<(HeaderMap, Decoder)> {
        let mut kept = HeaderMap::with_capacity(fields.len());
        let mut decoder = Decoder::UntilClose;
        for field in fields {
            let known = Known::of(field.name.as_bytes());
            match known {
                Known::ContentLength => {
                    let length = str::from_utf8(field.value)
                        .ok()
                        .and_then(|it| it.parse().ok());
                    decoder = Decoder::Length(length.ok_or(invalid("no length"))?);
                }
                Known::TransferEncoding => decoder = Decoder::chunked(),
                _ => {}
            }
            // RFC 9113 section 8.2.2.
            if known.is_hop_by_hop() {
                continue;
            }
            let (name, value) = read_field(field.name.as_bytes(), field.value)
                .ok_or(invalid("a field that HTTP/2 does not have"))?;
            kept.append(name, value);
        }
        if self.is_head || matches!(status.as_u16(), 204 | 304) {
            decoder = Decoder::Length(0);
        }
        Ok((kept, decoder))
    }

    /// RFC 8441 section 5: the switch of HTTP/1 is a plain 200 here, and its handshake ends with us.
    fn begin_raw(&mut self, mut fields: HeaderMap) -> io::Result<()> {
        if !self.may_switch {
            return Err(invalid("a switch that was not asked for"));
        }
        fields.remove("sec-websocket-accept");
        let mut response = Response::new(());
        *response.headers_mut() = fields;
        self.body = Some(self.respond.send_response(response, false).or_else(gone)?);
        self.phase = Phase::Raw;
        Ok(())
    }

    /// Sends body bytes as far as there is room.
    fn write_body(&mut self, input: &[u8]) -> io::Result<usize> {
        let Some(stream) = &mut self.body else {
            return Err(invalid("a body before its head"));
        };
        stream.reserve_capacity(input.len());
        let room = stream.capacity();
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
        let Some(stream) = &mut self.body else {
            return Ok(());
        };
        let trailers = match &self.phase {
            Phase::Body(decoder, _) if ended => read_trailers(decoder.trailers())?,
            _ => None,
        };
        let last = ended && trailers.is_none();
        if last || !data.is_empty() {
            stream.send_data(data, last).or_else(gone)?;
        }
        if let Some(trailers) = trailers {
            stream.send_trailers(trailers).or_else(gone)?;
        }
        if ended {
            self.phase = Phase::Done;
        } else {
            // Room that is not used may be another stream's.
            stream.reserve_capacity(0);
        }
        Ok(())
    }

    /// Ready when a write takes something, or fails.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.body else {
            return Poll::Ready(Ok(()));
        };
        if matches!(self.phase, Phase::Done) {
            return Poll::Ready(Ok(()));
        }
        stream.reserve_capacity(ROOM);
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(gone(error)),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the stream is no more, whoever ended it.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.body {
            Some(stream) => stream.poll_reset(cx).map(drop),
            None => self.respond.poll_reset(cx).map(drop),
        }
    }

    /// Ends a tunnel. A response ends by its own framing, or not at all.
    pub(super) fn finish(&mut self) {
        if let (Phase::Raw, Some(stream)) = (&self.phase, &mut self.body) {
            // Fails only on a stream that is no more.
            let _ = stream.send_data(Bytes::new(), true);
            self.phase = Phase::Done;
        }
    }

    /// Makes sure that what is not whole does not look whole.
    pub(super) fn cut(&mut self) {
        match self.phase {
            Phase::Done => {}
            Phase::Raw => self.respond.send_reset(h2::Reason::CANCEL),
            _ => self.respond.send_reset(h2::Reason::INTERNAL_ERROR),
        }
    }
}

/// A field as HTTP/2 has it. The h2 crate enters what is not marked as sensitive in the table of the connection (RFC 7541
/// section 2.3.2) and keeps it for as long as the connection lives.
fn read_field(name: &[u8], value: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name).ok()?;
    let mut value = HeaderValue::from_bytes(value).ok()?;
    value.set_sensitive(!says_the_same_again(&name));
    Some((name, value))
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
        let (name, value) = read_field(name, value.get(1..).unwrap_or_default().trim_ascii())
            .ok_or(invalid("a trailer that HTTP/2 does not have"))?;
        trailers.append(name, value);
    }
    Ok(Some(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_again_goes_into_the_table_of_the_connection() {
        for (name, value, kept) in [
            ("Content-Type", "text/html", true),
            ("via", "1.1 balancer", true),
            ("Permissions-Policy", "camera=()", true),
            ("grpc-status", "0", true),
            ("X-Request-Id", "5f0c", false),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT", false),
            ("server-timing", "db;dur=53", false),
        ] {
            let (_, read) = read_field(name.as_bytes(), value.as_bytes()).unwrap();
            assert_eq!(
                (!read.is_sensitive(), read.as_bytes()),
                (kept, value.as_bytes()),
                "{name}"
            );
        }
        assert!(read_field(b"a b", b"").is_none() && read_field(b"a", b"\n").is_none());
    }
}
