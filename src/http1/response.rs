//! Parses a response head of a backend and accepts it only if it has exactly one meaning (RFC 9112
//! sections 4 and 6).

use std::mem::MaybeUninit;

use super::{
    HttpVersion, content_length,
    fields::{HeadFields, KnownField, Span},
    has_only_crlf, list,
    request::{HeadLimits, MAX_FIELDS},
};
use crate::reason::Reason;

/// Bytes of a response head. A backend that sends more is broken; HAProxy allows 16 KiB, nginx 4 to
/// 8 KiB.
pub const MAX_HEAD_BYTES: usize = 64 << 10;
/// Size limits of a response head and of the trailers of a response.
pub const RESPONSE_LIMITS: HeadLimits = HeadLimits {
    fields: MAX_FIELDS,
    bytes: MAX_HEAD_BYTES,
};

/// Length of a response body, RFC 9112 section 6.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResponseFraming {
    /// No body by definition: HEAD, 1xx, 204, 304.
    #[default]
    None,
    /// This many bytes.
    Length(u64),
    /// Chunked.
    Chunked,
    /// Until the backend closes the connection.
    UntilClose,
}

/// Cause for which a response head is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ResponseHeadError {
    /// Reason that gives the status.
    pub reason: Reason,
    /// Text for the log at debug level.
    pub detail: &'static str,
}

const fn invalid(detail: &'static str) -> ResponseHeadError {
    ResponseHeadError {
        reason: Reason::ProxyProtocolError,
        detail,
    }
}

const TOO_LARGE: ResponseHeadError = ResponseHeadError {
    reason: Reason::ResponseHeaderSectionSize,
    detail: "the response head is too large",
};

/// Response head: spans into the buffer it was parsed from, which the caller keeps.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// Length of the head with its empty line.
    pub len: usize,
    /// Fields; those of one hop are struck out already.
    pub fields: HeadFields,
    /// Status, 100..=599.
    pub status: u16,
    /// Reason phrase of the backend; may be empty.
    pub phrase: Span,
    /// Framing of the body.
    pub framing: ResponseFraming,
    /// Length of a chunked body, which only HTTP/2 can declare; [`ResponseHead::parse`] leaves it
    /// to its caller.
    pub declared_length: Option<u64>,
    /// Announced length of a body that is not sent: HEAD and 304.
    pub announced: Option<u64>,
    /// True if the backend allows another request on this connection.
    pub keep_alive: bool,
    /// Protocol of a 101, or the one that a 426 requires.
    pub upgrade: Option<Span>,
}

impl ResponseHead {
    /// Parses a head at the beginning of `bytes`, the response to `method`. `Ok(false)`: more bytes
    /// are needed.
    ///
    /// # Errors
    /// The response is not valid HTTP/1, or too large.
    pub fn parse(&mut self, bytes: &[u8], method: &[u8]) -> Result<bool, ResponseHeadError> {
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
            Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD_BYTES => len,
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES => return Ok(false),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(TOO_LARGE),
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
        self.len = len;
        self.status = status;
        self.phrase = response
            .reason
            .filter(|phrase| !phrase.is_empty())
            .map_or_else(Span::default, |phrase| Span::of(phrase.as_bytes(), bytes));
        self.fields.fill(response.headers, bytes);
        let version = if version == 0 {
            HttpVersion::Http10
        } else {
            HttpVersion::Http11
        };
        self.check(bytes, version, method)?;
        Ok(true)
    }

    fn check(
        &mut self,
        bytes: &[u8],
        version: HttpVersion,
        method: &[u8],
    ) -> Result<(), ResponseHeadError> {
        let framing = if self.status == 101 {
            // Tunnel data follows, no content. RFC 9110 section 8.6 and RFC 9112 section 6.1 forbid
            // a length or a coding here, so they are ignored and left out.
            ResponseFraming::UntilClose
        } else {
            self.check_framing(bytes, version)?
        };
        let fields = &mut self.fields;
        let interim = (100..200).contains(&self.status);
        if interim {
            check_interim(framing, version)?;
        }
        let closes = fields.has_connection_option(b"close", bytes);
        self.keep_alive = !closes
            && (version == HttpVersion::Http11
                || fields.has_connection_option(b"keep-alive", bytes));
        self.upgrade = fields
            .iter()
            .find(|field| field.known == KnownField::Upgrade)
            .map(|field| field.value)
            .filter(|value| !value.is_empty())
            .filter(|_| match self.status {
                101 => fields.has_connection_option(b"upgrade", bytes),
                // RFC 9110 section 15.5.22: a 426 requires `Upgrade`.
                status => status == 426,
            });
        (self.announced, self.declared_length) = (None, None);
        self.framing = if interim || self.status == 204 {
            // A body after 204 is a violation, so the following bytes cannot be trusted.
            self.keep_alive &= matches!(
                framing,
                ResponseFraming::UntilClose | ResponseFraming::Length(0)
            );
            ResponseFraming::None
        } else if method == b"HEAD" || self.status == 304 {
            if let ResponseFraming::Length(length) = framing {
                self.announced = Some(length);
            }
            ResponseFraming::None
        } else {
            framing
        };
        fields.strike(|field| field.known == KnownField::ContentLength);
        fields.strike_hop_by_hop(bytes);
        Ok(())
    }

    /// Decides the framing. As for requests, two lengths are refused: a cache that takes the other
    /// one would take the rest for the next response (response splitting).
    fn check_framing(
        &self,
        bytes: &[u8],
        version: HttpVersion,
    ) -> Result<ResponseFraming, ResponseHeadError> {
        let (mut length, mut coding) = (None, None);
        for field in self.fields.iter() {
            let value = field.value.get(bytes);
            match field.known {
                KnownField::ContentLength if length.is_some() => {
                    return Err(invalid("several Content-Length"));
                }
                KnownField::ContentLength => {
                    let value = content_length(value);
                    length = Some(value.ok_or(invalid("a malformed Content-Length"))?);
                }
                KnownField::TransferEncoding if coding.is_some() => {
                    return Err(invalid("several Transfer-Encoding"));
                }
                KnownField::TransferEncoding => coding = Some(value),
                _ => {}
            }
        }
        match (length, coding) {
            (None, None) => Ok(ResponseFraming::UntilClose),
            (Some(length), None) => Ok(ResponseFraming::Length(length)),
            (Some(_), Some(_)) => Err(invalid("both Content-Length and Transfer-Encoding")),
            (None, Some(_)) if version == HttpVersion::Http10 => {
                Err(invalid("Transfer-Encoding in HTTP/1.0"))
            }
            (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => {
                Ok(ResponseFraming::Chunked)
            }
            (None, Some(_)) => Err(invalid("a Transfer-Encoding other than chunked")),
        }
    }

    /// True for 1xx other than 101: another head follows.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// True if a 101 switches to one of the requested protocols, RFC 9110 section 7.8.
    pub fn switches_to(&self, asked: &[u8], bytes: &[u8]) -> bool {
        self.upgrade.is_some_and(|upgrade| {
            let mut protocols = list(upgrade.get(bytes)).peekable();
            protocols.peek().is_some()
                && protocols
                    .all(|protocol| list(asked).any(|wanted| wanted.eq_ignore_ascii_case(protocol)))
        })
    }
}

/// Checks a 1xx. It has no body, and HTTP/1.0 has no 1xx: a parser that thinks otherwise would take
/// the final response for the body, or this one for the final one (RFC 9110 sections 8.6 and 15.2,
/// RFC 9112 section 6.1).
fn check_interim(framing: ResponseFraming, version: HttpVersion) -> Result<(), ResponseHeadError> {
    if version == HttpVersion::Http10 {
        return Err(invalid("a 1xx in HTTP/1.0"));
    }
    match framing {
        ResponseFraming::UntilClose | ResponseFraming::Length(0) => Ok(()),
        _ => Err(invalid("a 1xx that announces a body")),
    }
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
