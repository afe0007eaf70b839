//! Heads as they are forwarded: without hop-by-hop fields (RFC 9110 section 7.6), with the fields
//! of the request's origin and with our own framing.
//!
//! Pure: decides what a head has, for every wire format; a [`HeadWriter`] writes it. The head that
//! was read stays as it is, so that it can be written again for another backend.

use std::borrow::Cow;

use super::{
    header_edits,
    origin::{self, RequestOrigin},
    sticky::StickyCookie,
};
use crate::{
    base::rng::Random,
    config::model::{ForwardedConfig, HeaderEdits},
    http::{
        fields::KnownField,
        head_writer::{HeadWriter, RequestLine},
        message::{BodyFraming, HttpVersion, RequestHead, ResponseHead, Trailers},
        websocket,
    },
};

/// Longest request id taken over from a trusted peer, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Key of a WebSocket handshake over HTTP/1, RFC 6455 section 11.3.1.
const WEBSOCKET_KEY: &str = "Sec-WebSocket-Key";

/// Protocol of the next hop, the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// HTTP/1.1, on a connection that may be kept.
    KeepAlive,
    /// HTTP/1.1, on a connection that ends with this exchange.
    Close,
    /// HTTP/2.
    H2 {
        /// Over TLS.
        is_secure: bool,
    },
}

impl NextHop {
    /// True for HTTP/2.
    pub const fn is_h2(self) -> bool {
        matches!(self, Self::H2 { .. })
    }
}

/// Changes to a request head.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestChanges<'a> {
    /// The target to send instead of the client's.
    pub target: Option<&'a [u8]>,
    /// The Host to send instead of the client's.
    pub host: Option<&'a str>,
    /// `request_headers`.
    pub edits: Option<&'a HeaderEdits>,
    /// Key of a WebSocket whose client has none, as it uses HTTP/2; for backends with HTTP/1.
    pub websocket_key: Option<&'a str>,
}

/// The id of a request: the one a trusted peer sent, or a new one of 32 hexadecimal digits.
pub(super) fn request_id(
    id: &mut String,
    head: &RequestHead,
    rules: &ForwardedConfig,
    trusted: bool,
    random: &mut Random,
) {
    id.clear();
    let sent = head.fields.values(&rules.request_id, &head.bytes).next();
    let visible = |id: &&[u8]| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
    };
    // An id of a stranger could forge log lines, or correlate with those of somebody else.
    if let Some(sent) = sent.filter(visible).filter(|_| trusted) {
        id.push_str(&String::from_utf8_lossy(sent));
        return;
    }
    new_request_id(id, random);
}

/// Makes an id for a request that has none of its own.
pub(super) fn new_request_id(id: &mut String, random: &mut Random) {
    for _ in 0..2 {
        push_hex(id, random.bits());
    }
}

fn push_hex(text: &mut String, bits: u64) {
    for index in (0..16).rev() {
        let digit = (bits >> (index * 4)) & 0xf;
        text.push(char::from_digit(digit as u32, 16).unwrap_or('0'));
    }
}

/// Writes the head for the backend.
pub fn request_head(
    out: &mut impl HeadWriter,
    head: &RequestHead,
    rules: &ForwardedConfig,
    origin: RequestOrigin<'_>,
    id: &str,
    changes: RequestChanges<'_>,
    hop: NextHop,
) {
    let edits = changes.edits;
    let host = BackendHost::of(head, origin, changes);
    out.request_line(RequestLine {
        method: head.text(head.method),
        is_secure: hop == NextHop::H2 { is_secure: true },
        authority: &host.text,
        target: changes.target.unwrap_or_else(|| head.text(head.target)),
        is_websocket: head.is_websocket(),
    });
    if host.is_added {
        out.http1_field(b"Host", &host.text);
    }
    write_client_fields(out, head, rules, origin, changes);
    // Our own fields, and those of the route.
    origin::write(out, head, rules, origin, edits);
    if !id.is_empty() && !header_edits::is_decided(edits, &rules.request_id) {
        out.field(rules.request_id.as_bytes(), id.as_bytes());
    }
    if let Some(edits) = edits {
        header_edits::write(out, edits, |name| {
            name.eq_ignore_ascii_case(b"host") || is_key(head, name)
        });
    }
    out.framing(framing_for(head, hop));
    write_hop_by_hop(out, head, hop);
    out.end();
}

/// Host for the backend.
struct BackendHost<'a> {
    text: Cow<'a, [u8]>,
    /// It is written in addition to the fields of client and route, none of which is a Host.
    is_added: bool,
}

impl<'a> BackendHost<'a> {
    /// Finds the Host: the route's, or the client's. RFC 9112 section 3.2 requires exactly one, an
    /// empty one if no authority is known.
    fn of(head: &'a RequestHead, origin: RequestOrigin<'_>, changes: RequestChanges<'a>) -> Self {
        let (text, is_added) = if let Some(host) = changes.host {
            (Cow::Borrowed(host.as_bytes()), true)
        } else if let Some(host) = changes.edits.and_then(header_edits::host) {
            (Cow::Borrowed(host.as_bytes()), false)
        } else if let Some(host) = head.find(KnownField::Host) {
            (Cow::Borrowed(host), false)
        } else if let Some(local) = origin.local.filter(|_| head.host.is_empty()) {
            (Cow::Owned(local.to_string().into_bytes()), true)
        } else {
            (Cow::Borrowed(head.text(head.host)), true)
        };
        Self { text, is_added }
    }
}

/// Writes the fields of the client but for those that are replaced.
fn write_client_fields(
    out: &mut impl HeadWriter,
    head: &RequestHead,
    rules: &ForwardedConfig,
    origin: RequestOrigin<'_>,
    changes: RequestChanges<'_>,
) {
    let edits = changes.edits;
    let own_key = changes.websocket_key.filter(|_| head.is_websocket());
    for field in head.fields.iter() {
        let (name, value) = (head.text(field.name), head.text(field.value));
        if field.known == KnownField::Host && changes.host.is_some()
            || origin.replaces(field, name, rules)
            || header_edits::takes(edits, field, name)
        {
            continue;
        }
        if field.known == KnownField::Host {
            out.http1_field(name, value);
        } else if !is_key(head, name) {
            out.field(name, value);
        } else if own_key.is_none() {
            out.http1_field(name, value);
        }
    }
    if let Some(key) = own_key
        && !header_edits::is_decided(edits, WEBSOCKET_KEY)
    {
        out.http1_field(WEBSOCKET_KEY.as_bytes(), key.as_bytes());
    }
}

/// True for a field called `name` that is the key of the WebSocket that `head` asks for.
fn is_key(head: &RequestHead, name: &[u8]) -> bool {
    head.upgrade.is_some()
        && name.eq_ignore_ascii_case(WEBSOCKET_KEY.as_bytes())
        && head.is_websocket()
}

/// The framing of a request on its next hop.
fn framing_for(head: &RequestHead, hop: NextHop) -> BodyFraming {
    match head.framing {
        // An HTTP/1 message must not have a length and chunks: that is how requests are smuggled
        // (RFC 9112 section 6.1).
        BodyFraming::Streamed(Some(length)) if !hop.is_h2() => BodyFraming::Length(length),
        framing @ (BodyFraming::Streamed(_) | BodyFraming::Length(_)) => framing,
        // RFC 9110 section 8.6: methods that anticipate content declare an empty one.
        BodyFraming::None | BodyFraming::UntilClose => match head.text(head.method) {
            b"POST" | b"PUT" | b"PATCH" => BodyFraming::Length(0),
            _ => BodyFraming::None,
        },
    }
}

/// Writes the fields of a request that are for the next hop only. HTTP/2 backends see no upgrade
/// but that to a WebSocket, as a server may ignore `Upgrade` (RFC 9110 section 7.8).
fn write_hop_by_hop(out: &mut impl HeadWriter, head: &RequestHead, hop: NextHop) {
    let upgrade = head.upgrade.filter(|_| !hop.is_h2() || head.is_websocket());
    match upgrade {
        Some(protocol) => {
            out.http1_field(b"Connection", b"upgrade");
            out.http1_field(b"Upgrade", head.text(protocol));
        }
        None if hop == NextHop::Close => out.http1_field(b"Connection", b"close"),
        None => {}
    }
    // gRPC servers require it (RFC 9113 section 8.2.2 allows no other value).
    if hop.is_h2() && head.takes_trailers {
        out.field(b"TE", b"trailers");
    }
}

/// The framing of a response with `head` for a client of `version`. An HTTP/1 message
/// has a length or trailers: if the backend announces trailers, the length is dropped.
pub fn delivery(head: &ResponseHead, version: HttpVersion) -> BodyFraming {
    let has_trailers = || head.find(KnownField::Trailer).is_some();
    match (head.framing, version, head.framing.declared_length()) {
        (framing @ (BodyFraming::None | BodyFraming::Length(_)), ..) => framing,
        (_, HttpVersion::Http10, None) => BodyFraming::UntilClose,
        (_, HttpVersion::Http10, Some(length)) => BodyFraming::Length(length),
        (_, HttpVersion::Http2, length) => BodyFraming::Streamed(length),
        (_, _, Some(length)) if !has_trailers() => BodyFraming::Length(length),
        _ => BodyFraming::Streamed(None),
    }
}

/// Parts of a response head besides the backend's own.
#[derive(Debug, Clone, Copy)]
pub struct ResponseExtra<'a> {
    /// Framing of the body.
    pub delivery: BodyFraming,
    /// Another request may follow.
    pub keep_alive: bool,
    /// HTTP version of the client.
    pub version: HttpVersion,
    /// Name and value of the request id field.
    pub request_id: (&'a str, &'a str),
    /// `response_headers` of the route.
    pub edits: Option<&'a HeaderEdits>,
    /// Value of `Date`, if the backend sent none (RFC 9110 section 6.6.1).
    pub date: Option<&'a str>,
    /// The cookie of the sticky session, if the pool has them.
    pub sticky: Option<StickyCookie<'a>>,
}

/// Writes the final response head for the client.
pub fn response_head(out: &mut impl HeadWriter, head: &ResponseHead, extra: ResponseExtra<'_>) {
    let edits = extra.edits;
    let (id_name, id) = extra.request_id;
    out.status_line(head.status, head.text(head.phrase));
    for field in head.fields.iter() {
        let name = head.text(field.name);
        let is_id = !id.is_empty() && name.eq_ignore_ascii_case(id_name.as_bytes());
        let is_replaced = || {
            extra
                .sticky
                .is_some_and(|cookie| cookie.replaces(field, head))
        };
        if !is_id && !header_edits::takes(edits, field, name) && !is_replaced() {
            out.field(name, head.text(field.value));
        }
    }
    if let Some(date) = extra
        .date
        .filter(|_| !header_edits::is_decided(edits, "Date"))
    {
        out.field(b"Date", date.as_bytes());
    }
    if !id.is_empty() && !header_edits::is_decided(edits, id_name) {
        out.field(id_name.as_bytes(), id.as_bytes());
    }
    if let Some(edits) = edits {
        header_edits::write(out, edits, |_| false);
    }
    if let Some(cookie) = extra.sticky {
        cookie.write(out);
        cookie.write_cache_control(out, head, edits);
    }
    out.framing(match (extra.delivery, head.announced) {
        (BodyFraming::None, Some(length)) => BodyFraming::Length(length),
        (framing, _) => framing,
    });
    write_connection(out, head, extra);
    out.end();
}

/// Writes the fields of a response that are for the client's connection only.
fn write_connection(out: &mut impl HeadWriter, head: &ResponseHead, extra: ResponseExtra<'_>) {
    let is_decided = || header_edits::is_decided(extra.edits, "Upgrade");
    if let Some(protocols) = head.upgrade.filter(|_| !is_decided()) {
        out.http1_field(b"Upgrade", head.text(protocols));
        let options: &[u8] = if extra.keep_alive {
            b"upgrade"
        } else {
            b"upgrade, close"
        };
        out.http1_field(b"Connection", options);
    } else if !extra.keep_alive {
        out.http1_field(b"Connection", b"close");
    } else if extra.version == HttpVersion::Http10 {
        out.http1_field(b"Connection", b"keep-alive");
    }
}

/// Writes a 1xx head other than 101.
pub fn interim_head(out: &mut impl HeadWriter, head: &ResponseHead) {
    out.status_line(head.status, head.text(head.phrase));
    for field in head.fields.iter() {
        out.field(head.text(field.name), head.text(field.value));
    }
    out.end();
}

/// Parts of the head of a 101 besides the backend's own.
#[derive(Debug, Clone, Copy)]
pub struct SwitchExtra<'a> {
    /// Name and value of the request id field.
    pub request_id: (&'a str, &'a str),
    /// Key of the client's WebSocket, if the backend uses HTTP/2 and so has not answered it.
    pub unanswered_key: Option<&'a [u8]>,
    /// The cookie of the sticky session, if the pool has them.
    pub sticky: Option<StickyCookie<'a>>,
}

/// Writes the head of a 101, the switch to another protocol.
pub fn switch_head(out: &mut impl HeadWriter, head: &ResponseHead, extra: SwitchExtra<'_>) {
    const WEBSOCKET_ACCEPT: &[u8] = b"Sec-WebSocket-Accept";
    out.status_line(head.status, head.text(head.phrase));
    let mut has_accept = false;
    for field in head.fields.iter() {
        let (name, value) = (head.text(field.name), head.text(field.value));
        if name.eq_ignore_ascii_case(WEBSOCKET_ACCEPT) {
            has_accept = true;
            out.http1_field(name, value);
        } else if !extra
            .sticky
            .is_some_and(|cookie| cookie.replaces(field, head))
        {
            out.field(name, value);
        }
    }
    if let Some(key) = extra.unanswered_key.filter(|_| !has_accept) {
        out.http1_field(WEBSOCKET_ACCEPT, websocket::accept(key).as_bytes());
    }
    let (name, id) = extra.request_id;
    out.field(name.as_bytes(), id.as_bytes());
    if let Some(cookie) = extra.sticky {
        cookie.write(out);
    }
    if let Some(protocol) = head.upgrade {
        out.http1_field(b"Connection", b"upgrade");
        out.http1_field(b"Upgrade", head.text(protocol));
    }
    out.end();
}

/// Writes `trailers`, behind the last chunk or in a block of their own.
pub fn trailer_section(out: &mut impl HeadWriter, trailers: &Trailers) {
    out.trailer_start();
    for (name, value) in trailers.iter() {
        out.field(name, value);
    }
    out.end();
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "forward_response_tests.rs"]
mod response_tests;

#[cfg(test)]
#[path = "forward_property_tests.rs"]
mod property_tests;
