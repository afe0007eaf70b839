//! Writes an HTTP/2 request as the one HTTP/1.1 request that means the same, or says why there is none.
//!
//! Typed all the way: no byte of the client's reaches the head that could end a line or begin a field. What this writes is
//! read by `http1::request` all the same, as strictly as if it had come from a socket.

use hyper::http::{HeaderMap, Method, header, request::Parts};

use super::{is_plain, reader::Body};
use crate::{
    http1::{encode, fields::Known, request::Limits},
    reason::Reason,
};

/// What is added to a field's bytes for its size, RFC 9113 section 6.5.2.
const FIELD_OVERHEAD: usize = 32;

/// Appends the head to `out`. `ends`: the stream ends with the fields. `key` is the nonce for a WebSocket, encoded.
pub(super) fn encode(
    out: &mut Vec<u8>,
    parts: &Parts,
    ends: bool,
    limits: Limits,
    key: &str,
) -> Result<Body, Reason> {
    check_size(parts, limits)?;
    let is_socket = parts.method == Method::CONNECT;
    if is_socket {
        let protocol = parts.extensions.get::<h2::ext::Protocol>();
        if ends || protocol.is_none_or(|protocol| protocol.as_str() != "websocket") {
            return Err(Reason::MethodNotAllowed);
        }
    }
    let method = if is_socket {
        "GET"
    } else {
        parts.method.as_str()
    };
    encode::request_line(out, method.as_bytes(), target(parts)?);
    encode::field(out, b"host", host(parts)?);
    let length = fields(out, &parts.headers, is_socket)?;
    cookies(out, &parts.headers);
    let body = match (is_socket, length, ends) {
        (true, false, _) => {
            encode::upgrade(out, b"websocket");
            encode::field(out, b"sec-websocket-key", key.as_bytes());
            Body::Raw
        }
        // RFC 9113 section 8.5: what follows is no content, so it has no length.
        (true, true, _) => return Err(Reason::RequestError),
        (false, _, true) => Body::None,
        (false, true, false) => Body::Plain,
        (false, false, false) => {
            encode::chunked(out);
            Body::Chunked
        }
    };
    encode::end(out);
    Ok(body)
}

/// Fields are counted one by one, each part of a cookie too: the many small ones are the attack (RFC 9113 section 10.5.1).
fn check_size(parts: &Parts, limits: Limits) -> Result<(), Reason> {
    let mut bytes = parts
        .uri
        .path_and_query()
        .map_or(0, |path| path.as_str().len());
    for (name, value) in &parts.headers {
        bytes += name.as_str().len() + value.len() + FIELD_OVERHEAD;
    }
    if parts.headers.len() > limits.fields || bytes > limits.bytes {
        return Err(Reason::RequestHeaderSectionSize);
    }
    Ok(())
}

/// RFC 9113 section 8.3.1: a path, or `*` for OPTIONS. A whole URL would be read as one.
fn target(parts: &Parts) -> Result<&[u8], Reason> {
    let target = parts.uri.path_and_query().ok_or(Reason::RequestError)?;
    let target = target.as_str().as_bytes();
    let is_good = match target {
        [b'/', ..] => target.iter().all(|byte| (0x21..=0x7e).contains(byte)),
        b"*" => parts.method == Method::OPTIONS,
        _ => false,
    };
    is_good.then_some(target).ok_or(Reason::RequestError)
}

/// One authority, RFC 9113 section 8.3.1. What it may consist of is checked when the head is read.
fn host(parts: &Parts) -> Result<&[u8], Reason> {
    let mut fields = parts.headers.get_all(header::HOST).iter();
    let field = fields.next().map(header::HeaderValue::as_bytes);
    let authority = parts.uri.authority().map(|it| it.as_str().as_bytes());
    let host = match (authority, field) {
        (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => None,
        (authority, field) => authority.or(field),
    };
    let is_good = |host: &&[u8]| host.iter().all(u8::is_ascii_graphic);
    host.filter(is_good)
        .filter(|_| fields.next().is_none())
        .ok_or(Reason::RequestError)
}

/// Writes all fields but Host and cookies; true if one of them is a length. The key of a WebSocket is ours.
fn fields(out: &mut Vec<u8>, fields: &HeaderMap, is_socket: bool) -> Result<bool, Reason> {
    let mut length = false;
    for (name, value) in fields {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        let known = Known::of(name);
        if !is_plain(value) {
            return Err(Reason::RequestError);
        }
        match known {
            Known::Host | Known::Cookie => continue,
            Known::Other if is_socket && name == b"sec-websocket-key" => continue,
            Known::Te if value != b"trailers" => return Err(Reason::RequestError),
            Known::Te | Known::Http2Settings => {}
            // RFC 9113 section 8.2.2.
            known if known.is_hop_by_hop() => return Err(Reason::RequestError),
            // Several are refused when the head is read.
            Known::ContentLength => length = true,
            _ => {}
        }
        encode::field(out, name, value);
    }
    Ok(length)
}

/// The crumbs of a cookie are one field in HTTP/1, RFC 9113 section 8.2.3. Empty ones would leave a blank at the end.
fn cookies(out: &mut Vec<u8>, fields: &HeaderMap) {
    let crumbs = fields.get_all(header::COOKIE).iter();
    let mut crumbs = crumbs.filter(|crumb| !crumb.is_empty());
    let Some(first) = crumbs.next() else { return };
    out.extend_from_slice(b"cookie: ");
    out.extend_from_slice(first.as_bytes());
    for crumb in crumbs {
        out.extend_from_slice(b"; ");
        out.extend_from_slice(crumb.as_bytes());
    }
    encode::end(out);
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
