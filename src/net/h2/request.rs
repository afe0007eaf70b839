//! Writes an HTTP/2 request as the equivalent HTTP/1.1 request, or refuses it.
//!
//! No byte of the client can end a line or begin a field of that head. The result is still parsed
//! by `http1::request`, as strictly as bytes from a socket: request smuggling from HTTP/2 to
//! HTTP/1.1 needs both checks to fail.

use super::recv_buffer::{BodyKind, Http1Head};
use crate::{
    http::{
        fields::{self, KnownField},
        rules::HeadLimits,
        websocket,
    },
    http1::encode,
    http2::{
        fields::{is_name, is_token, trimmed},
        hpack::{FIELD_OVERHEAD, FieldList},
    },
};

/// Capacity for most heads.
const TYPICAL_HEAD_BYTES: usize = 512;
/// Bytes that we add to the fields of the client.
const ADDED_FIELDS_BYTES: usize = 128;

/// Fault of fields that are refused as a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum H2RequestError {
    /// They violate RFC 9113 section 8, or cannot be expressed in HTTP/1.1.
    #[error("malformed request")]
    Malformed,
    /// They exceed the limits for a head.
    #[error("request head too large")]
    TooLarge,
    /// CONNECT, other than for a WebSocket (RFC 8441).
    #[error("method not allowed")]
    MethodNotAllowed,
}

/// Converted request.
#[derive(Debug)]
pub(super) struct Http1Request {
    pub head: Http1Head,
    pub is_head: bool,
    /// `Sec-WebSocket-Accept` that the backend of a WebSocket must send.
    pub accept: Option<Box<str>>,
}

/// Pseudo-header fields, RFC 9113 section 8.3.1 and RFC 8441 section 4.
#[derive(Debug, Default)]
struct PseudoFields<'f> {
    method: Option<&'f [u8]>,
    scheme: Option<&'f [u8]>,
    authority: Option<&'f [u8]>,
    path: Option<&'f [u8]>,
    protocol: Option<&'f [u8]>,
}

/// Findings about the regular fields.
#[derive(Debug, Default)]
struct RegularFields<'f> {
    has_host: bool,
    length: Option<&'f [u8]>,
    has_cookies: bool,
}

/// Empty head of a stream whose request was refused.
pub(super) const fn empty_head() -> Http1Head {
    Http1Head {
        text: Vec::new(),
        body: BodyKind::None,
        length: None,
    }
}

/// Converts the request in `fields`. `ends`: the stream ends with them. `key` makes the key of a
/// WebSocket.
pub(super) fn read(
    fields: &FieldList,
    ends: bool,
    limits: HeadLimits,
    key: impl FnOnce() -> String,
) -> Result<Http1Request, H2RequestError> {
    if !fields.is_whole() {
        return Err(H2RequestError::TooLarge);
    }
    // Size and pseudo-header fields first: they are refused before anything is written.
    let (pseudo, behind) = pseudo(fields)?;
    if !is_within(fields, behind, limits) {
        return Err(H2RequestError::TooLarge);
    }
    let method = pseudo
        .method
        .filter(|method| is_token(method))
        .ok_or(H2RequestError::Malformed)?;
    let is_socket = method == b"CONNECT";
    if is_socket && (ends || pseudo.protocol != Some(b"websocket")) {
        return Err(H2RequestError::MethodNotAllowed);
    }
    let mut text = Vec::with_capacity(TYPICAL_HEAD_BYTES.max(fields.size() + ADDED_FIELDS_BYTES));
    let http1_method = if is_socket { b"GET" } else { method };
    encode::request_line(&mut text, http1_method, target(&pseudo)?);
    let host = host(&pseudo, fields)?;
    encode::field(&mut text, b"host", host);
    let is_host = |value: &[u8]| {
        let [one, other] = [value, host].map(|it| without_default_port(it, pseudo.scheme));
        one.eq_ignore_ascii_case(other)
    };
    let regular = write_fields(&mut text, fields.iter().skip(behind), is_host, is_socket)?;
    if regular.has_cookies {
        cookies(&mut text, fields);
    }
    let length = content_length(&regular)?;
    // Framing comes last, and is always ours.
    let (mut body, mut accept) = (BodyKind::None, None);
    match (is_socket, length, ends) {
        (true, None, _) => {
            body = BodyKind::Raw;
            accept = Some(write_handshake(&mut text, &key()));
        }
        // RFC 9113 sections 8.5 and 8.1.1: a tunnel has no content length, and the announced
        // content must follow.
        (true, Some(_), _) | (false, Some(1..), true) => return Err(H2RequestError::Malformed),
        (false, _, true) => {}
        (false, _, false) => {
            encode::chunked(&mut text);
            body = BodyKind::Chunked;
        }
    }
    encode::end(&mut text);
    Ok(Http1Request {
        head: Http1Head { text, body, length },
        is_head: method == b"HEAD",
        accept,
    })
}

/// Parses the declared length of the content.
fn content_length(regular: &RegularFields<'_>) -> Result<Option<u64>, H2RequestError> {
    match regular.length {
        Some(length) => match fields::content_length(length) {
            None => Err(H2RequestError::Malformed),
            length => Ok(length),
        },
        None => Ok(None),
    }
}

/// Writes the fields of a WebSocket handshake; returns the `Sec-WebSocket-Accept` for `key`.
fn write_handshake(out: &mut Vec<u8>, key: &str) -> Box<str> {
    encode::upgrade(out, b"websocket");
    encode::field(out, b"sec-websocket-key", key.as_bytes());
    websocket::accept(key.as_bytes()).into()
}

/// True if the head is within `limits`; `pseudo` of its fields are pseudo-header fields. Each field
/// counts [`FIELD_OVERHEAD`] bytes more than its text. The crumbs of a cookie count as one field,
/// as in HTTP/1: each after the first counts its own bytes and those of the `; ` before it.
fn is_within(fields: &FieldList, pseudo: usize, limits: HeadLimits) -> bool {
    let (count, size) = (fields.len() - pseudo, fields.size());
    if count <= limits.fields && size <= limits.bytes {
        return true;
    }
    let crumbs = fields.iter().filter(|(name, _)| *name == b"cookie");
    let joined = crumbs.count().saturating_sub(1);
    let saved = joined * (FIELD_OVERHEAD + b"cookie".len() - b"; ".len());
    count - joined <= limits.fields && size - saved <= limits.bytes
}

/// Collects the pseudo-header fields, which come first and once (RFC 9113 section 8.3); also
/// returns their number. Further behind, a name with a colon fails as a field name.
fn pseudo(fields: &FieldList) -> Result<(PseudoFields<'_>, usize), H2RequestError> {
    let (mut pseudo, mut count) = (PseudoFields::default(), 0);
    for (name, value) in fields
        .iter()
        .take_while(|(name, _)| name.first() == Some(&b':'))
    {
        let place = match name {
            b":method" => &mut pseudo.method,
            b":scheme" => &mut pseudo.scheme,
            b":authority" => &mut pseudo.authority,
            b":path" => &mut pseudo.path,
            b":protocol" => &mut pseudo.protocol,
            _ => return Err(H2RequestError::Malformed),
        };
        if place.replace(value).is_some() {
            return Err(H2RequestError::Malformed);
        }
        count += 1;
    }
    let is_connect = pseudo.method == Some(b"CONNECT");
    let is_complete = pseudo.scheme.is_some_and(is_scheme) && pseudo.path.is_some();
    let is_plain_connect = is_connect && pseudo.protocol.is_none();
    if is_plain_connect {
        return Err(H2RequestError::MethodNotAllowed);
    }
    if !is_complete || pseudo.protocol.is_some() && !is_connect {
        return Err(H2RequestError::Malformed);
    }
    Ok((pseudo, count))
}

/// True for a URI scheme, RFC 3986 section 3.1.
fn is_scheme(scheme: &[u8]) -> bool {
    let is_good = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    scheme.first().is_some_and(u8::is_ascii_alphabetic) && scheme.iter().all(is_good)
}

/// Returns the target: a path, or `*` for OPTIONS (RFC 9113 section 8.3.1). A complete URL would be
/// read as absolute-form, with another authority.
fn target<'f>(pseudo: &PseudoFields<'f>) -> Result<&'f [u8], H2RequestError> {
    let is_good = |target: &&[u8]| match *target {
        [b'/', ..] => target.iter().all(u8::is_ascii_graphic),
        b"*" => pseudo.method == Some(b"OPTIONS"),
        _ => false,
    };
    pseudo.path.filter(is_good).ok_or(H2RequestError::Malformed)
}

/// Returns the authority, or Host if there is none (RFC 9113 section 8.3.1). Its syntax is checked
/// with the head.
fn host<'f>(pseudo: &PseudoFields<'f>, fields: &'f FieldList) -> Result<&'f [u8], H2RequestError> {
    let field = || fields.iter().find(|(name, _)| *name == b"host");
    let authority = pseudo.authority.filter(|authority| !authority.is_empty());
    let host = authority.or_else(|| trimmed(field()?.1));
    let is_good = |host: &&[u8]| !host.is_empty() && host.iter().all(u8::is_ascii_graphic);
    host.filter(is_good).ok_or(H2RequestError::Malformed)
}

/// Strips a port that is empty or the default of the scheme, RFC 3986 section 6.2.3.
fn without_default_port<'a>(authority: &'a [u8], scheme: Option<&[u8]>) -> &'a [u8] {
    let port: &[u8] = match scheme {
        Some(scheme) if scheme.eq_ignore_ascii_case(b"https") => b":443",
        Some(scheme) if scheme.eq_ignore_ascii_case(b"http") => b":80",
        _ => b":",
    };
    let name = authority.strip_suffix(port);
    name.or(authority.strip_suffix(b":")).unwrap_or(authority)
}

/// Checks the regular fields and writes them. Host must match the authority and is left out, like
/// cookies and the length; a WebSocket key is replaced by ours.
fn write_fields<'f>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (&'f [u8], &'f [u8])>,
    is_host: impl Fn(&[u8]) -> bool,
    is_socket: bool,
) -> Result<RegularFields<'f>, H2RequestError> {
    let mut regular = RegularFields::default();
    for (name, value) in fields {
        let value = trimmed(value).filter(|_| is_name(name));
        let value = value.ok_or(H2RequestError::Malformed)?;
        let (mut is_wrong, mut is_left_out) = (false, false);
        match KnownField::of(name) {
            KnownField::Host => {
                is_left_out = true;
                is_wrong = std::mem::replace(&mut regular.has_host, true) || !is_host(value);
            }
            KnownField::Cookie => {
                is_left_out = true;
                regular.has_cookies = true;
            }
            KnownField::ContentLength => {
                is_left_out = true;
                is_wrong = regular.length.replace(value).is_some();
            }
            KnownField::Te => is_wrong = value != b"trailers",
            KnownField::Http2Settings => {}
            KnownField::Other => is_left_out = is_socket && name == b"sec-websocket-key",
            // RFC 9113 section 8.2.2: such fields are malformed in HTTP/2, as they would frame the
            // HTTP/1 message.
            known => is_wrong = known.is_hop_by_hop(),
        }
        if is_wrong {
            return Err(H2RequestError::Malformed);
        }
        if !is_left_out {
            encode::field(out, name, value);
        }
    }
    Ok(regular)
}

/// Joins the crumbs of a cookie, RFC 9113 section 8.2.3. Empty ones would leave a blank at the end.
fn cookies(out: &mut Vec<u8>, fields: &FieldList) {
    let crumbs = fields.iter().filter(|(name, _)| *name == b"cookie");
    let mut crumbs = crumbs
        .filter_map(|(_, crumb)| trimmed(crumb))
        .filter(|crumb| !crumb.is_empty());
    let Some(first) = crumbs.next() else { return };
    out.extend_from_slice(b"cookie: ");
    out.extend_from_slice(first);
    for crumb in crumbs {
        out.extend_from_slice(b"; ");
        out.extend_from_slice(crumb);
    }
    encode::end(out);
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
