//! Parses a response head of a backend and accepts it only if it has exactly one meaning (RFC 9112
//! sections 4 and 6).

use std::mem::MaybeUninit;

use super::{has_only_crlf, length_and_coding, take_fields, up_to, version_of};
use crate::http::{
    fields::{KnownField, Span},
    message::{BodyFraming, HttpVersion, ResponseHead},
    rules::{HeadError, MAX_FIELDS, MAX_HEAD_BYTES},
};

const fn invalid(detail: &'static str) -> HeadError {
    HeadError::malformed(detail)
}

/// Parses a head at the beginning of `head.bytes`, the response to `method`. `Ok(false)`: more
/// bytes are needed.
///
/// # Errors
/// The response is not valid HTTP/1, or too large.
pub fn parse(head: &mut ResponseHead, method: &[u8]) -> Result<bool, HeadError> {
    head.forget();
    let ResponseHead { bytes, fields, .. } = head;
    let bytes = up_to(bytes, MAX_HEAD_BYTES);
    // The tokenizer skips any number of empty lines; no status line begins with one.
    if matches!(bytes.first(), Some(b'\r' | b'\n')) {
        return Err(invalid("empty lines before the response"));
    }
    let mut slots = [MaybeUninit::<httparse::Header<'_>>::uninit(); MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let outcome = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut slots,
    );
    let len = match outcome {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES => return Ok(false),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(HeadError::too_large("the response head is too large"));
        }
        Err(httparse::Error::Status) => return Err(invalid("an invalid status line")),
        Err(httparse::Error::HeaderName | httparse::Error::HeaderValue) => {
            return Err(invalid("an invalid field"));
        }
        Err(_) => return Err(invalid("not an HTTP/1 response")),
    };
    if !bytes.starts_with(b"HTTP/1.") || !bytes.get(..len).is_some_and(has_only_crlf) {
        return Err(invalid("a line ends without a carriage return"));
    }
    let (Some(version), Some(status)) = (response.version, response.code) else {
        return Err(invalid("the status line is incomplete"));
    };
    if !(100..=599).contains(&status) {
        return Err(invalid("a status outside 100..=599"));
    }
    take_fields(fields, response.headers, bytes);
    let phrase = response
        .reason
        .filter(|phrase| !phrase.is_empty())
        .map_or_else(Span::default, |phrase| Span::of(phrase.as_bytes(), bytes));
    head.len = len;
    head.status = status;
    head.phrase = phrase;
    check(head, version_of(version), method)?;
    Ok(true)
}

fn check(head: &mut ResponseHead, version: HttpVersion, method: &[u8]) -> Result<(), HeadError> {
    let framing = if head.status == 101 {
        // Tunnel data follows, no content. RFC 9110 section 8.6 and RFC 9112 section 6.1 forbid a
        // length or a coding here, so they are ignored and left out.
        BodyFraming::UntilClose
    } else {
        framing(head, version)?
    };
    let ResponseHead { bytes, fields, .. } = head;
    let interim = (100..200).contains(&head.status);
    if interim {
        check_interim(framing, version)?;
    }
    let closes = fields.has_connection_option(b"close", bytes);
    head.keep_alive = !closes
        && (version == HttpVersion::Http11 || fields.has_connection_option(b"keep-alive", bytes));
    head.upgrade = fields
        .iter()
        .find(|field| field.known == KnownField::Upgrade)
        .map(|field| field.value)
        .filter(|value| !value.is_empty())
        .filter(|_| match head.status {
            101 => fields.has_connection_option(b"upgrade", bytes),
            // RFC 9110 section 15.5.22: a 426 requires `Upgrade`.
            status => status == 426,
        });
    head.framing = if interim || head.status == 204 {
        // A body after 204 is a violation, so the following bytes cannot be trusted.
        head.keep_alive &= matches!(framing, BodyFraming::UntilClose | BodyFraming::Length(0));
        BodyFraming::None
    } else if method == b"HEAD" || head.status == 304 {
        if let BodyFraming::Length(length) = framing {
            head.announced = Some(length);
        }
        BodyFraming::None
    } else {
        framing
    };
    fields.strike(|field| field.known == KnownField::ContentLength);
    fields.strike_hop_by_hop(bytes);
    Ok(())
}

/// Decides the framing. As for requests, two lengths are refused: a cache that takes the other one
/// would take the rest for the next response (response splitting).
fn framing(head: &ResponseHead, version: HttpVersion) -> Result<BodyFraming, HeadError> {
    match length_and_coding(&head.fields, &head.bytes)? {
        (None, None) => Ok(BodyFraming::UntilClose),
        (Some(length), None) => Ok(BodyFraming::Length(length)),
        (Some(_), Some(_)) => Err(invalid("both Content-Length and Transfer-Encoding")),
        (None, Some(_)) if version == HttpVersion::Http10 => {
            Err(invalid("Transfer-Encoding in HTTP/1.0"))
        }
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(BodyFraming::Streamed(None))
        }
        (None, Some(_)) => Err(invalid("a Transfer-Encoding other than chunked")),
    }
}

/// Checks a 1xx. It has no body, and HTTP/1.0 has no 1xx: a parser that thinks otherwise would take
/// the final response for the body, or this one for the final one (RFC 9110 sections 8.6 and 15.2,
/// RFC 9112 section 6.1).
fn check_interim(framing: BodyFraming, version: HttpVersion) -> Result<(), HeadError> {
    if version == HttpVersion::Http10 {
        return Err(invalid("a 1xx in HTTP/1.0"));
    }
    match framing {
        BodyFraming::UntilClose | BodyFraming::Length(0) => Ok(()),
        _ => Err(invalid("a 1xx that announces a body")),
    }
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
