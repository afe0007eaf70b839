//! The response head of a backend's h2 stream as the HTTP/1.1 head that means the same.
//!
//! What is written here is read by `http1::response` all the same, as strictly as if it had come from a socket.

use hyper::http::StatusCode;

use super::super::{
    is_name,
    recv_buffer::{BodyKind, Http1Head},
    trimmed,
};
use crate::{
    http1::{self, encode, fields::KnownField},
    http2::hpack::FieldList,
};

/// Bytes of what we add to the fields of a backend.
const ADDED_FIELDS_BYTES: usize = 128;

/// What the answer can be.
#[derive(Debug, Default)]
pub(in super::super) struct ResponseExpectation {
    /// To HEAD: no body follows.
    pub is_head: bool,
    /// A WebSocket was asked for, with a key that this is the answer to.
    pub accept: Option<Box<str>>,
}

/// One head.
#[derive(Debug)]
pub(in super::super) enum ReceivedHead {
    /// Of status 1xx.
    Interim(Vec<u8>),
    Final(Http1Head),
}

/// Reads the head in `fields`. `ends`: the stream ends with it.
pub(in super::super) fn read(
    fields: &FieldList,
    ends: bool,
    expected: &ResponseExpectation,
) -> Result<ReceivedHead, &'static str> {
    let status = status(fields)?;
    let mut text = Vec::with_capacity(fields.size() + ADDED_FIELDS_BYTES);
    match status.as_u16() {
        // RFC 9113 section 8.6: HTTP/2 has no switch.
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
        // RFC 8441 section 5: success is what 101 is in HTTP/1.
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
        // Without content it is the length that there would be.
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

/// The one pseudo-header field, which comes first: RFC 9113 section 8.3.2. Others are no names.
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

/// Checks the fields and writes all but the length, which it gives.
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
                let value = http1::content_length(value);
                length = Some(value.ok_or("a malformed length")?);
            }
            // The answer to a key that was not sent: RFC 8441 section 5.
            _ if name == b"sec-websocket-accept" => {}
            _ => encode::field(out, name, value),
        }
    }
    Ok(length)
}
