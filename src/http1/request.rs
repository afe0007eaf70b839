//! Parses a request head and accepts it only if it has exactly one meaning (RFC 9112 sections 2 to
//! 6, 9).

use std::mem::MaybeUninit;

use super::{has_only_crlf, length_and_coding, take_fields, up_to, version_of};
use crate::http::{
    fields::{KnownField, Span, list},
    message::{BodyFraming, HttpVersion, RequestHead},
    rules::{self, HeadError, HeadFault, HeadLimits, MAX_FIELDS, is_authority},
};

const fn malformed(detail: &'static str) -> HeadError {
    HeadError::malformed(detail)
}

/// Parses a head at the beginning of `head.bytes`. `Ok(false)`: more bytes are needed.
///
/// # Errors
/// The request is refused; nothing after it on the connection may be read as a request.
pub fn parse(head: &mut RequestHead, limits: HeadLimits) -> Result<bool, HeadError> {
    head.forget();
    let RequestHead { bytes, fields, .. } = head;
    let bytes = up_to(bytes, limits.bytes);
    let mut slots = [MaybeUninit::<httparse::Header<'_>>::uninit(); MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let slots = slots
        .get_mut(..limits.fields.min(MAX_FIELDS))
        .unwrap_or_default();
    let outcome = httparse::ParserConfig::default().parse_request_with_uninit_headers(
        &mut request,
        bytes,
        slots,
    );
    let len = match outcome {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < limits.bytes => {
            return check_partial(bytes, limits).map(|()| false);
        }
        Ok(httparse::Status::Partial) => return Err(too_large(bytes, limits)),
        Err(error) => return Err(refusal_of(error, bytes)),
    };
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(malformed("the request line is incomplete"));
    };
    if target.len() > limits.bytes / 2 {
        return Err(too_large(bytes, limits));
    }
    take_fields(fields, request.headers, bytes);
    let (method, target) = (
        Span::of(method.as_bytes(), bytes),
        Span::of(target.as_bytes(), bytes),
    );
    head.len = len;
    head.method = method;
    head.version = version_of(version);
    check(head, target).map(|()| true)
}

/// Checks what the tokenizer leaves open. Bytes and line ends come first, as the meaning of fields
/// depends on them.
fn check(head: &mut RequestHead, target: Span) -> Result<(), HeadError> {
    debug_assert!(
        head.len <= head.bytes.len(),
        "the head was found in the bytes"
    );
    let text = head.bytes.get(..head.len).unwrap_or_default();
    if text.starts_with(b"\n") || text.starts_with(b"\r\n\r") || text.starts_with(b"\r\n\n") {
        return Err(malformed("empty lines before the request"));
    }
    if !has_only_crlf(text) {
        return Err(malformed("a line ends without a carriage return"));
    }
    if head.text(head.method) == b"CONNECT" {
        return Err(HeadError {
            fault: HeadFault::MethodNotAllowed,
            detail: "CONNECT is not served",
        });
    }
    head.framing = framing(head)?;
    check_target(head, target)?;
    check_connection(head);
    rules::judge_request(head)
}

/// Decides the framing, RFC 9112 section 6.3: one length, or chunked, or none. Everything else is
/// refused, as two lengths, or a length beside `chunked`, let a second parser find another end of
/// the body (CL.TE and TE.CL smuggling).
fn framing(head: &RequestHead) -> Result<BodyFraming, HeadError> {
    match length_and_coding(&head.fields, &head.bytes)? {
        (None | Some(0), None) => Ok(BodyFraming::None),
        (Some(length), None) => Ok(BodyFraming::Length(length)),
        (Some(_), Some(_)) => Err(malformed("both Content-Length and Transfer-Encoding")),
        (None, Some(_)) if head.version == HttpVersion::Http10 => {
            Err(malformed("Transfer-Encoding in HTTP/1.0"))
        }
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(BodyFraming::Streamed(None))
        }
        (None, Some(coding)) => Err(refused_coding(coding)),
    }
}

/// Checks target and Host, RFC 9112 section 3.2 and RFC 9110 section 7.2: one authority, one path.
/// Two different authorities would let routing and the backend disagree about the site.
fn check_target(head: &mut RequestHead, target: Span) -> Result<(), HeadError> {
    let bytes = &head.bytes;
    let text = target.get(bytes);
    if !rules::is_target(text) {
        return Err(malformed(
            "a fragment, or a byte that is not ASCII, in the target",
        ));
    }
    let mut hosts = head
        .fields
        .iter()
        .filter(|field| field.known == KnownField::Host)
        .map(|field| field.value);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(malformed("several Host"));
    }
    if host.is_none() && head.version == HttpVersion::Http11 {
        return Err(malformed("no Host"));
    }
    if host.is_some_and(|host| !is_authority(host.get(bytes))) {
        return Err(malformed("an invalid Host"));
    }
    let is_options = head.method.get(bytes) == b"OPTIONS";
    (head.target, head.host) = match text {
        [b'/', ..] => (target, host.unwrap_or_default()),
        b"*" if is_options => (target, host.unwrap_or_default()),
        _ => split_absolute(text, bytes, host, is_options)?,
    };
    Ok(())
}

/// Reads connection options and upgrade: RFC 9110 sections 7.6.1 and 7.8.
fn check_connection(head: &mut RequestHead) {
    let RequestHead {
        bytes,
        fields,
        version,
        framing,
        ..
    } = head;
    let modern = *version == HttpVersion::Http11;
    let closes = fields.has_connection_option(b"close", bytes);
    head.keep_alive = !closes && (modern || fields.has_connection_option(b"keep-alive", bytes));
    let upgrade = fields
        .iter()
        .find(|field| field.known == KnownField::Upgrade)
        .map(|field| field.value);
    // The body is sent before the switch, so its end must be beyond doubt.
    let may_upgrade = modern
        && !matches!(framing, BodyFraming::Streamed(_))
        && fields.has_connection_option(b"upgrade", bytes);
    head.upgrade = upgrade.filter(|value| {
        may_upgrade && !value.is_empty() && !list(value.get(bytes)).any(carries_http)
    });
}

/// True for protocols that carry HTTP again, such as h2c (RFC 9113 section 3.1) or TLS (RFC 2817):
/// requests inside them would bypass routes, limits and the log (h2c smuggling).
fn carries_http(protocol: &[u8]) -> bool {
    [&b"h2"[..], b"h3", b"http", b"tls"].iter().any(|prefix| {
        protocol
            .get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    })
}

/// Splits `http://host/path?query`; the authority must equal Host, RFC 9112 section 3.2.2.
fn split_absolute(
    text: &[u8],
    bytes: &[u8],
    host: Option<Span>,
    is_options: bool,
) -> Result<(Span, Span), HeadError> {
    let scheme_end = [&b"http://"[..], b"https://"]
        .iter()
        .find(|scheme| {
            text.get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        })
        .map(|scheme| scheme.len());
    let rest = scheme_end
        .and_then(|end| text.get(end..))
        .ok_or(malformed("the target is neither a path nor a URL"))?;
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?'))
        .unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !is_authority(authority) {
        return Err(malformed("an invalid authority in the target"));
    }
    if host.is_some_and(|host| !host.get(bytes).eq_ignore_ascii_case(authority)) {
        return Err(malformed("the target and Host name different authorities"));
    }
    let target = match path {
        [b'/', ..] => Span::of(path, bytes),
        // An empty path means `/`, or `*` for OPTIONS (RFC 9110 section 4.2.3).
        [] if is_options => return Err(malformed("OPTIONS for a server needs the target `*`")),
        [] => slash_of(text, bytes),
        _ => return Err(malformed("a query without a path in the target")),
    };
    Ok((target, Span::of(authority, bytes)))
}

/// Returns a span over one `/` of the scheme's `//`: the target of a URL without a path.
fn slash_of(text: &[u8], bytes: &[u8]) -> Span {
    let slash = text
        .iter()
        .position(|byte| *byte == b'/')
        .unwrap_or_default();
    text.get(slash..=slash)
        .map(|slash| Span::of(slash, bytes))
        .unwrap_or_default()
}

/// Error of a head that exceeds its limit: 414 if the first line is too long, otherwise 431.
fn too_large(bytes: &[u8], limits: HeadLimits) -> HeadError {
    let line = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    if line > limits.bytes / 2 {
        HeadError {
            fault: HeadFault::TargetTooLong,
            detail: "the request line is too long",
        }
    } else {
        HeadError {
            fault: HeadFault::TooLarge,
            detail: "the head is too large",
        }
    }
}

/// Refuses early what can no longer become a valid head; never what would be accepted if it came at
/// once.
fn check_partial(bytes: &[u8], limits: HeadLimits) -> Result<(), HeadError> {
    let is_line_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let start = bytes.iter().position(|byte| !is_line_end(byte));
    let line = bytes.get(start.unwrap_or_default()..).unwrap_or_default();
    let target = line
        .split(|byte| is_line_end(byte) || *byte == b' ')
        .nth(1)
        .unwrap_or_default();
    if target.len() > limits.bytes / 2 {
        return Err(too_large(bytes, limits));
    }
    Ok(())
}

fn refusal_of(error: httparse::Error, bytes: &[u8]) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError {
            fault: HeadFault::TooLarge,
            detail: "too many fields",
        },
        httparse::Error::Version if asks_for_other_version(bytes) => HeadError {
            fault: HeadFault::VersionUnsupported,
            detail: "an unknown protocol version",
        },
        httparse::Error::HeaderName => malformed("an invalid field name"),
        httparse::Error::HeaderValue => malformed("an invalid field value"),
        httparse::Error::NewLine => malformed("an invalid line end"),
        httparse::Error::Token => malformed("an invalid method, target or line"),
        _ => malformed("an invalid request line"),
    }
}

/// True if the first line ends in a well-formed `HTTP/x.y` that we do not speak.
fn asks_for_other_version(bytes: &[u8]) -> bool {
    let line = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default()
        .trim_ascii_end();
    matches!(
        line,
        [.., b' ', b'H', b'T', b'T', b'P', b'/', major @ b'0'..=b'9', b'.', minor @ b'0'..=b'9']
            if !matches!((major, minor), (b'1', b'0' | b'1'))
    )
}

/// Error of an unsupported coding: 501 for a well-formed list of known codings before a final
/// `chunked`, 400 otherwise; RFC 9112 section 6.1.
fn refused_coding(coding: &[u8]) -> HeadError {
    const KNOWN_CODINGS: [&[u8]; 8] = [
        b"gzip",
        b"x-gzip",
        b"deflate",
        b"compress",
        b"x-compress",
        b"br",
        b"zstd",
        b"identity",
    ];
    let mut tokens: Vec<&[u8]> = list(coding).collect();
    let last = tokens.pop().unwrap_or_default();
    let others_known = !tokens.is_empty()
        && tokens.iter().all(|token| {
            KNOWN_CODINGS
                .iter()
                .any(|known| known.eq_ignore_ascii_case(token))
        });
    if last.eq_ignore_ascii_case(b"chunked") && others_known {
        HeadError {
            fault: HeadFault::CodingUnsupported,
            detail: "a transfer coding other than chunked",
        }
    } else {
        malformed("a malformed Transfer-Encoding")
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
