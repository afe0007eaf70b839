//! Encodes the HTTP/1.1 response that the engine writes as HEADERS and DATA of a client's stream.

use std::{
    io,
    mem::MaybeUninit,
    task::{Context, Poll},
};

use super::{
    body_encoder::{self, BodyEncoder, MAX_FIELDS, invalid},
    connection::Connection,
    state::broken_pipe,
};
use crate::{
    http1::body::BodyDecoder,
    http2::{frame::ErrorCode, hpack::HpackEncoder},
};

/// Encoder of one response.
#[derive(Debug)]
pub(super) struct ResponseEncoder {
    /// Incomplete head.
    head: Vec<u8>,
    /// Set after the final head.
    body: Option<BodyEncoder>,
    is_head: bool,
    /// A switch to another protocol was requested.
    may_switch: bool,
}

impl ResponseEncoder {
    /// Creates the encoder of the response to a request.
    pub(super) const fn new(is_head: bool, may_switch: bool) -> Self {
        Self {
            head: Vec::new(),
            body: None,
            is_head,
            may_switch,
        }
    }

    /// Takes what can be sent or buffered; `WouldBlock` if that is nothing.
    pub(super) fn write(
        &mut self,
        connection: &Connection,
        id: u32,
        input: &[u8],
    ) -> io::Result<usize> {
        let mut used = 0;
        while used < input.len() {
            let rest = input.get(used..).unwrap_or_default();
            let written = match &mut self.body {
                None => self.collect(connection, id, rest),
                Some(body) => body.write(connection, id, rest),
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && used > 0 => break,
                count => used += count?,
            }
        }
        Ok(used)
    }

    /// Sends a head once it is complete.
    fn collect(&mut self, connection: &Connection, id: u32, input: &[u8]) -> io::Result<usize> {
        if !connection.can_send_fields() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (whole, count) = body_encoder::collect(&mut self.head, input)?;
        if let Some(head) = whole {
            self.send_head(connection, id, &head)?;
        }
        Ok(count)
    }

    fn send_head(&mut self, connection: &Connection, id: u32, bytes: &[u8]) -> io::Result<()> {
        let mut slots = [MaybeUninit::uninit(); MAX_FIELDS];
        let mut head = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default()
            .parse_response_with_uninit_headers(&mut head, bytes, &mut slots);
        let (Ok(httparse::Status::Complete(_)), Some(status)) = (parsed, head.code) else {
            return Err(invalid("no response head"));
        };
        // RFC 8441 section 5: a 101 of HTTP/1.1 is a 200 here, without the key handshake.
        let is_switch = status == 101;
        if is_switch && !self.may_switch {
            return Err(invalid("a switch that was not asked for"));
        }
        let body = match status {
            101 => Some(BodyEncoder::Raw),
            100..200 => None,
            204 | 304 => Some(BodyEncoder::Done),
            _ if self.is_head => Some(BodyEncoder::Done),
            _ => match body_encoder::framing(head.headers)?.unwrap_or(BodyDecoder::UntilClose) {
                BodyDecoder::Length(0) => Some(BodyEncoder::Done),
                decoder => Some(BodyEncoder::Body(decoder, 0)),
            },
        };
        let ends = matches!(body, Some(BodyEncoder::Done));
        let write = |encoder: &mut HpackEncoder, out: &mut Vec<u8>| {
            encoder.status(out, if is_switch { 200 } else { status });
            for field in body_encoder::end_to_end_fields(head.headers) {
                let is_ours = is_switch && field.name.eq_ignore_ascii_case("sec-websocket-accept");
                if !is_ours {
                    encoder.field(out, field.name.as_bytes(), field.value);
                }
            }
        };
        connection
            .send_fields(id, ends, write)
            .map_err(broken_pipe)?;
        self.body = body;
        Ok(())
    }

    /// Ready when a write makes progress or fails.
    pub(super) fn poll_writable(
        &self,
        connection: &Connection,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<io::Result<()>> {
        match &self.body {
            Some(body) => body.poll_writable(connection, id, cx),
            None => connection.poll_send_fields(id, cx).map_err(broken_pipe),
        }
    }

    /// Ends our direction of a tunnel. A response ends by its own framing, or is incomplete.
    pub(super) fn finish(&mut self, connection: &Connection, id: u32) {
        if let Some(body) = &mut self.body {
            body.finish(connection, id);
        }
    }

    /// Ends a gRPC call whose response has begun, with `status` in trailers. A reset would be
    /// reported by the client as INTERNAL, for any cause.
    pub(super) fn end_call(&mut self, connection: &Connection, id: u32, status: u8) {
        if let Some(body @ BodyEncoder::Body(..)) = &mut self.body {
            let status = status.to_string();
            let write = |encoder: &mut HpackEncoder, out: &mut Vec<u8>| {
                encoder.field(out, b"grpc-status", status.as_bytes());
            };
            // Fails only on a closed stream.
            if connection.send_fields(id, true, write).is_ok() {
                *body = BodyEncoder::Done;
            }
        }
    }

    /// Code for a reset at this point.
    pub(super) fn cut(&self) -> ErrorCode {
        let code = ErrorCode::INTERNAL_ERROR;
        self.body.as_ref().map_or(code, |body| body.cut(code))
    }
}
