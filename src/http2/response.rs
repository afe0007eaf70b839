//! Reads a response head from its field block and accepts it only if it has exactly one meaning
//! (RFC 9113 section 8, RFC 8441).

use hyper::http::StatusCode;

use super::{fields::checked_end_to_end, hpack::FieldList};
use crate::http::{
    fields::{KnownField, Span},
    message::{BodyFraming, ResponseHead},
    rules::{HeadError, MAX_FIELDS, MAX_HEAD_BYTES, declare_length},
};

/// Bytes that a head can have beyond those of its fields: the phrase, and a protocol.
const ADDED_FIELDS_BYTES: usize = 64;
/// Bytes of a status line without its phrase, and of the empty line after the fields.
const LINE_BYTES: usize = b"HTTP/1.1 200 \r\n".len() + b"\r\n".len();
/// Bytes of a field line without name and value.
const FIELD_LINE_BYTES: usize = b": \r\n".len();

const fn malformed(detail: &'static str) -> HeadError {
    HeadError::malformed(detail)
}

/// Kinds of response that a request allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResponseExpectation {
    /// The request was HEAD: no body follows.
    pub is_head: bool,
    /// The request asked for a WebSocket.
    pub is_websocket: bool,
}

/// Fills `head` with the response in `fields`. `ends`: the stream ends with them.
///
/// # Errors
/// The response is malformed or too large; `head` holds nothing of it.
pub fn read(
    fields: &FieldList,
    ends: bool,
    expected: ResponseExpectation,
    head: &mut ResponseHead,
) -> Result<(), HeadError> {
    head.clear();
    let read = copy(fields, ends, expected, head);
    if read.is_err() {
        head.clear();
    }
    read
}

fn copy(
    fields: &FieldList,
    ends: bool,
    expected: ResponseExpectation,
    head: &mut ResponseHead,
) -> Result<(), HeadError> {
    if !fields.is_whole() {
        return Err(HeadError::too_large("the response head is too large"));
    }
    let status = status(fields)?;
    let is_interim = status.is_informational();
    // RFC 9113 section 8.6: HTTP/2 has no 101.
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(malformed("a switch of protocols"));
    }
    if is_interim && ends {
        return Err(malformed("an end without a response"));
    }
    // RFC 8441 section 5: a 2xx takes the place of 101.
    let is_switch = expected.is_websocket && status.is_success();
    let status = if is_switch {
        StatusCode::SWITCHING_PROTOCOLS
    } else {
        status
    };
    head.bytes.reserve(fields.size() + ADDED_FIELDS_BYTES);
    let phrase = status.canonical_reason().unwrap_or_default();
    head.phrase = append(head, phrase.as_bytes());
    let length = copy_fields(head, fields)?;
    head.framing = if is_interim {
        if length.is_some_and(|length| length > 0) {
            return Err(malformed("a 1xx that announces a body"));
        }
        BodyFraming::None
    } else if is_switch {
        // The bytes of the other protocol follow, no content.
        head.upgrade = Some(append(head, b"websocket"));
        BodyFraming::None
    } else if expected.is_head || status == StatusCode::NOT_MODIFIED {
        // The length that a GET would have had. A 204 has none, RFC 9110 section 8.6.
        head.announced = length.filter(|_| status != StatusCode::NO_CONTENT);
        BodyFraming::None
    } else if status == StatusCode::NO_CONTENT {
        BodyFraming::None
    } else {
        content_framing(length, ends)?
    };
    check_size(head, phrase)?;
    if status.as_u16() > 599 {
        return Err(malformed("a status outside 100..=599"));
    }
    head.fields
        .strike(|field| field.known == KnownField::ContentLength);
    head.status = status.as_u16();
    head.len = head.bytes.len();
    head.keep_alive = true;
    Ok(())
}

/// Decides the framing of a response that has content.
fn content_framing(length: Option<u64>, ends: bool) -> Result<BodyFraming, HeadError> {
    match length {
        _ if !ends => Ok(BodyFraming::Streamed(length)),
        None | Some(0) => Ok(BodyFraming::Length(0)),
        Some(_) => Err(malformed("an end before the length that was declared")),
    }
}

/// Appends `text` to the bytes of `head`.
fn append(head: &mut ResponseHead, text: &[u8]) -> Span {
    let start = head.bytes.len();
    head.bytes.extend_from_slice(text);
    Span::new(start, head.bytes.len())
}

/// Parses the only pseudo-header field, which must come first (RFC 9113 section 8.3.2). Another one
/// fails as a field name.
fn status(fields: &FieldList) -> Result<StatusCode, HeadError> {
    match fields.iter().next() {
        Some((b":status", value)) => {
            StatusCode::from_bytes(value).map_err(|_| malformed("an invalid :status"))
        }
        _ => Err(malformed("no :status")),
    }
}

/// Checks the fields and appends them to `head`; returns the declared length.
fn copy_fields(head: &mut ResponseHead, fields: &FieldList) -> Result<Option<u64>, HeadError> {
    let mut length = None;
    for (name, value) in fields.iter().skip(1) {
        let (known, value) = checked_end_to_end(name, value)?;
        match known {
            KnownField::ContentLength => declare_length(&mut length, value)?,
            // There was no key, so any value of it is wrong: RFC 8441 section 5.
            KnownField::Other if name == b"sec-websocket-accept" => continue,
            _ => {}
        }
        let (name, value) = (append(head, name), append(head, value));
        head.fields.push_known(known, name, value);
    }
    Ok(length)
}

/// Checks number and size of the fields that are passed on, in the form that HTTP/1 gives them.
fn check_size(head: &ResponseHead, phrase: &str) -> Result<(), HeadError> {
    let fields = head.fields.iter();
    let (count, bytes) = fields
        .filter(|field| field.known != KnownField::ContentLength)
        .fold((0, LINE_BYTES + phrase.len()), |(count, bytes), field| {
            let [name, value] = [field.name, field.value].map(|span| head.text(span).len());
            (count + 1, bytes + name + value + FIELD_LINE_BYTES)
        });
    if count > MAX_FIELDS || bytes > MAX_HEAD_BYTES {
        return Err(HeadError::too_large("the response head is too large"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
