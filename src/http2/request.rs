//! Reads a request head from its field block and accepts it only if it has exactly one meaning (RFC
//! 9113 section 8, RFC 8441).
//!
//! The faults that a head of any HTTP version can have are found by [`rules`].

use super::{
    fields::{checked, is_token, trimmed},
    hpack::{FIELD_OVERHEAD, FieldList},
};
use crate::http::{
    fields::{KnownField, Span},
    message::{BodyFraming, HttpVersion, RequestHead},
    rules::{self, HeadError, HeadFault, HeadLimits, declare_length, is_authority},
};

/// Bytes that a head can have beyond those of its fields: names that are written for them, and the
/// `; ` between the crumbs of a cookie.
const ADDED_FIELDS_BYTES: usize = 64;

const fn malformed(detail: &'static str) -> HeadError {
    HeadError::malformed(detail)
}

const fn not_allowed(detail: &'static str) -> HeadError {
    HeadError {
        fault: HeadFault::MethodNotAllowed,
        detail,
    }
}

/// Pseudo-header fields, RFC 9113 section 8.3.1 and RFC 8441 section 4.
#[derive(Debug, Default)]
struct PseudoFields<'f> {
    /// Number of them.
    count: usize,
    method: Option<&'f [u8]>,
    scheme: Option<&'f [u8]>,
    authority: Option<&'f [u8]>,
    path: Option<&'f [u8]>,
    protocol: Option<&'f [u8]>,
}

/// Parts of a request that is well-formed by the rules of HTTP/2.
struct RequestParts {
    method: Span,
    target: Span,
    host: Span,
    framing: BodyFraming,
    upgrade: Option<Span>,
}

/// Fills `head` with the request in `fields`. `ends`: the stream ends with them.
///
/// # Errors
/// The request is refused. `head` holds nothing of it if its fields are malformed or too large.
pub fn read(
    fields: &FieldList,
    ends: bool,
    limits: HeadLimits,
    head: &mut RequestHead,
) -> Result<(), HeadError> {
    head.clear();
    head.version = HttpVersion::Http2;
    let parts = match copy(fields, ends, limits, head) {
        Ok(parts) => parts,
        Err(error) => {
            head.clear();
            head.version = HttpVersion::Http2;
            return Err(error);
        }
    };
    head.len = head.bytes.len();
    head.method = parts.method;
    head.framing = parts.framing;
    if !rules::is_target(head.text(parts.target)) {
        return Err(malformed("a fragment in :path"));
    }
    if !is_authority(head.text(parts.host)) {
        return Err(malformed("an invalid :authority or Host"));
    }
    head.target = parts.target;
    head.host = parts.host;
    head.upgrade = parts.upgrade;
    head.keep_alive = true;
    rules::judge_request(head)
}

/// Checks the request in `fields` by the rules of HTTP/2, and copies it into `head`.
fn copy(
    fields: &FieldList,
    ends: bool,
    limits: HeadLimits,
    head: &mut RequestHead,
) -> Result<RequestParts, HeadError> {
    if !fields.is_whole() {
        return Err(HeadError::too_large("the head is too large"));
    }
    // Size and pseudo-header fields first: they are refused before anything is copied.
    let pseudo = pseudo(fields)?;
    check_size(fields, pseudo.count, limits)?;
    let method = pseudo.method.ok_or(malformed("no :method"))?;
    let is_websocket = is_websocket(method, &pseudo, ends)?;
    let target = target(&pseudo)?;
    let host = host(&pseudo, fields)?;

    // The text, then the fields: Host first, as all later hops expect it.
    head.bytes.reserve(fields.size() + ADDED_FIELDS_BYTES);
    let method = append(head, if is_websocket { b"GET" } else { method });
    let target = append(head, target);
    let host_name = push(head, KnownField::Host, b"host", host);
    let length = copy_fields(head, fields, &pseudo, host)?;
    if is_websocket && length.is_some() {
        // RFC 9113 section 8.5: a tunnel has no content.
        return Err(malformed("a content-length with CONNECT"));
    }
    if ends && length.is_some_and(|length| length > 0) {
        return Err(malformed("an end before the content that was announced"));
    }
    let upgrade = is_websocket.then(|| {
        push(head, KnownField::Connection, b"connection", b"upgrade");
        push(head, KnownField::Upgrade, b"upgrade", b"websocket")
    });
    if head.text(target).len() > limits.bytes / 2 {
        return Err(HeadError {
            fault: HeadFault::TargetTooLong,
            detail: ":path is too long",
        });
    }
    Ok(RequestParts {
        method,
        target,
        host: host_name,
        framing: if ends || is_websocket {
            BodyFraming::None
        } else {
            BodyFraming::Streamed(length)
        },
        upgrade,
    })
}

/// Checks the method; true for a WebSocket, an extended CONNECT (RFC 8441 section 4).
fn is_websocket(method: &[u8], pseudo: &PseudoFields<'_>, ends: bool) -> Result<bool, HeadError> {
    if !is_token(method) {
        return Err(malformed("an invalid :method"));
    }
    if method != b"CONNECT" {
        return Ok(false);
    }
    if pseudo.protocol != Some(b"websocket") {
        return Err(not_allowed("CONNECT for another protocol than WebSocket"));
    }
    if ends {
        return Err(not_allowed("a WebSocket whose stream has ended"));
    }
    Ok(true)
}

/// Appends `text` to the bytes of `head`.
fn append(head: &mut RequestHead, text: &[u8]) -> Span {
    let start = head.bytes.len();
    head.bytes.extend_from_slice(text);
    Span::new(start, head.bytes.len())
}

/// Appends a field to `head`; returns its value.
fn push(head: &mut RequestHead, known: KnownField, name: &[u8], value: &[u8]) -> Span {
    let (name, value) = (append(head, name), append(head, value));
    head.fields.push_known(known, name, value);
    value
}

/// Checks the size of the head; `pseudo` of its fields are pseudo-header fields. Each field counts
/// [`FIELD_OVERHEAD`] bytes more than its text. The crumbs of a cookie count as one field, as in
/// HTTP/1: each after the first counts its own bytes and those of the `; ` before it.
fn check_size(fields: &FieldList, pseudo: usize, limits: HeadLimits) -> Result<(), HeadError> {
    let (count, size) = (fields.len() - pseudo, fields.size());
    if count <= limits.fields && size <= limits.bytes {
        return Ok(());
    }
    let crumbs = fields.iter().filter(|(name, _)| *name == b"cookie");
    let joined = crumbs.count().saturating_sub(1);
    let saved = joined * (FIELD_OVERHEAD + b"cookie".len() - b"; ".len());
    if count - joined > limits.fields {
        return Err(HeadError::too_large("too many fields"));
    }
    if size - saved > limits.bytes {
        return Err(HeadError::too_large("the head is too large"));
    }
    Ok(())
}

/// Collects the pseudo-header fields, which come first and once (RFC 9113 section 8.3). Further
/// behind, a name with a colon fails as a field name.
fn pseudo(fields: &FieldList) -> Result<PseudoFields<'_>, HeadError> {
    let mut pseudo = PseudoFields::default();
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
            b":status" => return Err(malformed("a pseudo-header field of responses")),
            _ => return Err(malformed("an unknown pseudo-header field")),
        };
        if place.replace(value).is_some() {
            return Err(malformed("a pseudo-header field twice"));
        }
        pseudo.count += 1;
    }
    let is_connect = pseudo.method == Some(b"CONNECT");
    if is_connect && pseudo.protocol.is_none() {
        return Err(not_allowed("CONNECT is not served"));
    }
    let scheme = pseudo.scheme.ok_or(malformed("no :scheme"))?;
    if !is_scheme(scheme) {
        return Err(malformed("an invalid :scheme"));
    }
    if pseudo.path.is_none() {
        return Err(malformed("no :path"));
    }
    if !is_connect && pseudo.protocol.is_some() {
        return Err(malformed(":protocol without CONNECT"));
    }
    Ok(pseudo)
}

/// True for a URI scheme, RFC 3986 section 3.1.
fn is_scheme(scheme: &[u8]) -> bool {
    let is_good = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    scheme.first().is_some_and(u8::is_ascii_alphabetic) && scheme.iter().all(is_good)
}

/// Returns the target: a path, or `*` for OPTIONS (RFC 9113 section 8.3.1). A complete URL would be
/// read as absolute-form, with another authority.
fn target<'f>(pseudo: &PseudoFields<'f>) -> Result<&'f [u8], HeadError> {
    let path = pseudo.path.unwrap_or_default();
    match path {
        [b'/', ..] if path.iter().all(u8::is_ascii_graphic) => Ok(path),
        [b'/', ..] => Err(malformed("a byte in :path that no target may have")),
        b"*" if pseudo.method == Some(b"OPTIONS") => Ok(path),
        b"*" => Err(malformed(":path is `*` without OPTIONS")),
        [] => Err(malformed("an empty :path")),
        _ => Err(malformed(":path does not begin with a slash")),
    }
}

/// Returns the authority, or Host if there is none (RFC 9113 section 8.3.1). Its syntax is checked
/// with the head.
fn host<'f>(pseudo: &PseudoFields<'f>, fields: &'f FieldList) -> Result<&'f [u8], HeadError> {
    let authority = pseudo.authority.filter(|authority| !authority.is_empty());
    let field = || fields.iter().find(|(name, _)| *name == b"host");
    let host = match authority {
        Some(authority) => authority,
        None => match field() {
            Some((_, value)) => {
                trimmed(value).ok_or(malformed("a control byte in a field value"))?
            }
            None => return Err(malformed("neither :authority nor Host")),
        },
    };
    if host.is_empty() {
        return Err(malformed("an empty Host"));
    }
    if !host.iter().all(u8::is_ascii_graphic) {
        return Err(malformed(
            "a blank, control or other byte in :authority or Host",
        ));
    }
    Ok(host)
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

/// Checks the fields behind the pseudo-header fields and appends them to `head`; returns the
/// declared length. Host must match the authority and is left out, as it was appended; crumbs of a
/// cookie are joined. A WebSocket has no key in HTTP/2.
fn copy_fields(
    head: &mut RequestHead,
    fields: &FieldList,
    pseudo: &PseudoFields<'_>,
    host: &[u8],
) -> Result<Option<u64>, HeadError> {
    let is_websocket = pseudo.protocol.is_some();
    let (mut has_host, mut has_cookies, mut length) = (false, false, None);
    for (name, value) in fields.iter().skip(pseudo.count) {
        let (known, value) = checked(name, value)?;
        match known {
            KnownField::Host if has_host => return Err(malformed("several Host")),
            KnownField::Host => {
                has_host = true;
                let [one, other] = [value, host].map(|it| without_default_port(it, pseudo.scheme));
                if !one.eq_ignore_ascii_case(other) {
                    let detail = ":authority and Host name different authorities";
                    return Err(malformed(detail));
                }
                continue;
            }
            KnownField::Cookie => {
                has_cookies = true;
                continue;
            }
            KnownField::ContentLength => declare_length(&mut length, value)?,
            KnownField::Te if value != b"trailers" => {
                return Err(malformed("TE other than trailers"));
            }
            KnownField::Te | KnownField::Http2Settings => {}
            KnownField::Other if is_websocket && name == b"sec-websocket-key" => continue,
            // RFC 9113 section 8.2.2: such fields are malformed in HTTP/2, as they would frame an
            // HTTP/1 message.
            known if known.is_hop_by_hop() => {
                return Err(malformed("a connection-specific field"));
            }
            _ => {}
        }
        push(head, known, name, value);
    }
    if has_cookies {
        join_cookies(head, fields);
    }
    Ok(length)
}

/// Joins the crumbs of a cookie to one field, RFC 9113 section 8.2.3. Empty ones would leave a
/// blank at the end.
fn join_cookies(head: &mut RequestHead, fields: &FieldList) {
    let crumbs = fields.iter().filter(|(name, _)| *name == b"cookie");
    let mut crumbs = crumbs
        .filter_map(|(_, crumb)| trimmed(crumb))
        .filter(|crumb| !crumb.is_empty());
    let Some(first) = crumbs.next() else { return };
    let name = append(head, b"cookie");
    let start = head.bytes.len();
    append(head, first);
    for crumb in crumbs {
        append(head, b"; ");
        append(head, crumb);
    }
    let value = Span::new(start, head.bytes.len());
    head.fields.push_known(KnownField::Cookie, name, value);
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
