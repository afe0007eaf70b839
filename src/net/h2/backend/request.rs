//! Request head that the engine writes as HTTP/1.1, sent as the field block of a stream (RFC 9113
//! section 8.3.1).

use std::{io, mem::MaybeUninit};

use super::{
    super::body_encoder::{self, BodyEncoder, MAX_FIELDS, invalid},
    response::ResponseExpectation,
};
use crate::{
    http::{fields::KnownField, websocket},
    http1::body::BodyDecoder,
    http2::hpack::HpackEncoder,
};

/// Tokenized request head.
pub(super) struct TokenizedRequest<'h, 'b> {
    method: &'b str,
    target: &'b str,
    host: &'b [u8],
    takes_trailers: bool,
    is_socket: bool,
    fields: &'h [httparse::Header<'b>],
    /// Content after the head.
    pub content: BodyEncoder,
    /// Kinds of response that it allows.
    pub expected: ResponseExpectation,
}

/// Parses the head in `bytes` and passes it to `send`.
///
/// # Errors
/// `InvalidInput`: HTTP/2 has no such request.
pub(super) fn read<T>(
    bytes: &[u8],
    send: impl FnOnce(TokenizedRequest<'_, '_>) -> io::Result<T>,
) -> io::Result<T> {
    let mut slots = [MaybeUninit::uninit(); MAX_FIELDS];
    let mut head = httparse::Request::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .parse_request_with_uninit_headers(&mut head, bytes, &mut slots);
    let (Ok(httparse::Status::Complete(_)), Some(method), Some(target)) =
        (parsed, head.method, head.path)
    else {
        return Err(invalid("no request head"));
    };
    if !target.bytes().all(is_expressible) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a request that HTTP/2 cannot express",
        ));
    }
    let fields = &*head.headers;
    let find = |name: &str| {
        let found = fields
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(name));
        found.map(|field| field.value)
    };
    let is_socket = find("upgrade").is_some();
    let mut expected = ResponseExpectation {
        is_head: method == "HEAD",
        accept: None,
    };
    let content = if is_socket {
        let key = find("sec-websocket-key").unwrap_or_default();
        expected.accept = Some(websocket::accept(key).into());
        BodyEncoder::Raw
    } else {
        match body_encoder::framing(fields)? {
            None | Some(BodyDecoder::Length(0)) => BodyEncoder::Done,
            Some(decoder) => BodyEncoder::Body(decoder, 0),
        }
    };
    send(TokenizedRequest {
        method,
        target,
        host: find("host").unwrap_or_default(),
        takes_trailers: find("te").is_some(),
        is_socket,
        fields,
        content,
        expected,
    })
}

/// Refuses bytes that no URI may have (RFC 3986 appendix A): servers reset such streams, which
/// would count against them. Those that are widely sent and accepted may pass.
const fn is_expressible(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'#' | b'<' | b'>' | b'`')
}

impl TokenizedRequest<'_, '_> {
    /// Appends the field block.
    pub(super) fn write(&self, encoder: &mut HpackEncoder, out: &mut Vec<u8>, is_secure: bool) {
        let method = if self.is_socket {
            "CONNECT"
        } else {
            self.method
        };
        encoder.field(out, b":method", method.as_bytes());
        encoder.field(out, b":scheme", if is_secure { b"https" } else { b"http" });
        encoder.field(out, b":path", self.target.as_bytes());
        if !self.host.is_empty() {
            encoder.field(out, b":authority", self.host);
        }
        if self.is_socket {
            encoder.field(out, b":protocol", b"websocket");
        }
        for field in body_encoder::end_to_end_fields(self.fields) {
            let name = field.name.as_bytes();
            let is_left_out = match KnownField::of(name) {
                KnownField::Host => true,
                _ => self.is_socket && name.eq_ignore_ascii_case(b"sec-websocket-key"),
            };
            if !is_left_out {
                encoder.field(out, name, field.value);
            }
        }
        if self.takes_trailers {
            encoder.field(out, b"te", b"trailers");
        }
    }
}
