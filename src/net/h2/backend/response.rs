//! The response head of a backend's h2 stream as the HTTP/1.1 head that means the same.
//!
//! Typed all the way; what is written here is read by `http1::response` all the same, as strictly as if it had come from a
//! socket.

use std::io;

use hyper::http::{HeaderMap, Response, StatusCode, header, response::Parts};

use super::super::{reader::Body, writer::invalid};
use crate::http1::{encode, fields::Known};

/// What the answer can be.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// To HEAD: no body follows.
    pub is_head: bool,
    /// A WebSocket was asked for, with a key that this is the answer to.
    pub accept: Option<String>,
}

/// The final head, and what follows it. `ends`: the stream ends with it.
pub(super) fn head(parts: &Parts, ends: bool, expected: &Expected) -> io::Result<(Vec<u8>, Body)> {
    let Parts {
        status, headers, ..
    } = parts;
    let mut out = Vec::with_capacity(512);
    if let Some(accept) = expected.accept.as_ref().filter(|_| status.is_success()) {
        // RFC 8441 section 5: success is what 101 is in HTTP/1.
        status_line(&mut out, StatusCode::SWITCHING_PROTOCOLS);
        fields(&mut out, headers, false)?;
        encode::upgrade(&mut out, b"websocket");
        encode::field(&mut out, b"sec-websocket-accept", accept.as_bytes());
        encode::end(&mut out);
        return Ok((out, Body::Raw));
    }
    let has_content = !expected.is_head
        && *status != StatusCode::NO_CONTENT
        && *status != StatusCode::NOT_MODIFIED;
    let has_length = headers.contains_key(header::CONTENT_LENGTH);
    // Behind a body of known length HTTP/1 has no trailers: where they are announced, the length gives way to them.
    let is_chunked = has_content && !ends && (!has_length || headers.contains_key(header::TRAILER));
    status_line(&mut out, *status);
    fields(&mut out, headers, !is_chunked)?;
    let body = if is_chunked {
        encode::chunked(&mut out);
        Body::Chunked
    } else if has_content && !ends {
        Body::Plain
    } else {
        if has_content && !has_length {
            encode::content_length(&mut out, 0);
        }
        Body::None
    };
    encode::end(&mut out);
    Ok((out, body))
}

/// A head of status 1xx.
pub(super) fn interim(response: &Response<()>) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    status_line(&mut out, response.status());
    fields(&mut out, response.headers(), true)?;
    encode::end(&mut out);
    Ok(out)
}

fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    let phrase = status.canonical_reason().unwrap_or_default();
    encode::status_line(out, status.as_u16(), phrase.as_bytes());
}

fn fields(out: &mut Vec<u8>, fields: &HeaderMap, with_length: bool) -> io::Result<()> {
    for (name, value) in fields {
        let name = name.as_str().as_bytes();
        let known = Known::of(name);
        // RFC 9113 section 8.2.2.
        if known.is_hop_by_hop() {
            return Err(invalid("a field that HTTP/2 does not have"));
        }
        let is_left_out = match known {
            Known::ContentLength => !with_length,
            // The answer to a key that was not sent: RFC 8441 section 5.
            _ => name == b"sec-websocket-accept",
        };
        if !is_left_out {
            encode::field(out, name, value.as_bytes());
        }
    }
    Ok(())
}
