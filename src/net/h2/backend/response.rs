//! Response head of a backend's stream, written as the equivalent HTTP/1.1 head.
//!
//! The result is still parsed by `http1::response`, as strictly as bytes from a socket.

use hyper::http::StatusCode;

use super::super::recv_buffer::{BodyKind, Http1Head};
use crate::{
    http::fields::{self, KnownField},
    http1::encode,
    http2::{
        fields::{is_name, trimmed},
        hpack::FieldList,
    },
};

/// Bytes that we add to the fields of a backend.
const ADDED_FIELDS_BYTES: usize = 128;

/// Kinds of response that a request allows.
#[derive(Debug, Default)]
pub(in super::super) struct ResponseExpectation {
    /// The request was HEAD: no body follows.
    pub is_head: bool,
    /// `Sec-WebSocket-Accept` for the key of the request, if it asked for a WebSocket.
    pub accept: Option<Box<str>>,
}

/// One received head.
#[derive(Debug)]
pub(in super::super) enum ReceivedHead {
    /// Of status 1xx.
    Interim(Vec<u8>),
    Final(Http1Head),
}

/// Parses the head in `fields`. `ends`: the stream ends with it.
pub(in super::super) fn read(
    fields: &FieldList,
    ends: bool,
    expected: &ResponseExpectation,
) -> Result<ReceivedHead, &'static str> {
    let status = status(fields)?;
    let mut text = Vec::with_capacity(fields.size() + ADDED_FIELDS_BYTES);
    match status.as_u16() {
        // RFC 9113 section 8.6: HTTP/2 removed 101.
        101 => return Err("a switch of protocols"),
        100..200 if ends => return Err("an end without a response"),
        100..200 => {
            status_line(&mut text, status);
            if write_fields(&mut text, fields)?.is_some_and(|length| length > 0) {
                return Err("a 1xx that announces a body");
            }
            encode::end(&mut text);
            return Ok(ReceivedHead::Interim(text));
        }
        _ => {}
    }
    if let Some(accept) = expected.accept.as_ref().filter(|_| status.is_success()) {
        // RFC 8441 section 5: a 2xx takes the place of 101.
        status_line(&mut text, StatusCode::SWITCHING_PROTOCOLS);
        write_fields(&mut text, fields)?;
        encode::upgrade(&mut text, b"websocket");
        encode::field(&mut text, b"sec-websocket-accept", accept.as_bytes());
        encode::end(&mut text);
        return Ok(ReceivedHead::Final(Http1Head {
            text,
            body: BodyKind::Raw,
            length: None,
        }));
    }
    let has_content =
        !expected.is_head && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED;
    status_line(&mut text, status);
    let length = write_fields(&mut text, fields)?;
    let body = if has_content && !ends {
        encode::chunked(&mut text);
        BodyKind::Chunked
    } else {
        // For HEAD and 304 it is the length that a GET would have had.
        match length {
            Some(1..) if has_content => return Err("an end before the length that was declared"),
            Some(length) => encode::content_length(&mut text, length),
            None if has_content => encode::content_length(&mut text, 0),
            None => {}
        }
        BodyKind::None
    };
    encode::end(&mut text);
    Ok(ReceivedHead::Final(Http1Head {
        text,
        body,
        length: length.filter(|_| has_content),
    }))
}

/// Parses the only pseudo-header field, which must come first (RFC 9113 section 8.3.2). Another one
/// fails as a field name.
fn status(fields: &FieldList) -> Result<StatusCode, &'static str> {
    let first = fields.iter().next();
    let value = first
        .filter(|(name, _)| *name == b":status")
        .map(|(_, value)| value);
    let status = value.and_then(|value| StatusCode::from_bytes(value).ok());
    status.ok_or("no status")
}

fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    let phrase = status.canonical_reason().unwrap_or_default();
    encode::status_line(out, status.as_u16(), phrase.as_bytes());
}

/// Checks the fields and writes all but the length, which is returned.
fn write_fields(out: &mut Vec<u8>, fields: &FieldList) -> Result<Option<u64>, &'static str> {
    let mut length = None;
    for (name, value) in fields.iter().skip(1) {
        let known = KnownField::of(name);
        // RFC 9113 sections 8.2.1 and 8.2.2.
        let value = trimmed(value).filter(|_| is_name(name) && !known.is_hop_by_hop());
        let value = value.ok_or("a field that HTTP/2 does not have")?;
        match known {
            KnownField::ContentLength if length.is_some() => return Err("several lengths"),
            KnownField::ContentLength => {
                let value = fields::content_length(value);
                length = Some(value.ok_or("a malformed length")?);
            }
            // There was no key, so any value of it is wrong: RFC 8441 section 5.
            _ if name == b"sec-websocket-accept" => {}
            _ => encode::field(out, name, value),
        }
    }
    Ok(length)
}
