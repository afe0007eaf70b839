//! Heads as they are forwarded: without hop-by-hop fields (RFC 9110 section 7.6), with forwarding
//! fields (RFC 7239) and with our own framing.
//!
//! Pure: writes HTTP/1 text, also for HTTP/2 streams, which translate it.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use crate::{
    base::rng::Random,
    config::model::{ForwardedConfig, HeaderEdits},
    http::{
        fields::{HeadField, HeadFields, KnownField, is_same_or_twin},
        message::{BodyFraming, HttpVersion, RequestHead, ResponseHead},
    },
    http1::encode,
};

/// Longest request id taken over from a trusted peer, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// The origin of a request. `Default` is a connection in the clear without addresses.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestOrigin<'a> {
    /// Address of the connection's other end; `None` on a unix socket.
    pub peer: Option<IpAddr>,
    /// The peer is in `trusted_proxies`.
    pub trusted: bool,
    /// Address of the client: the peer's own, or the one that a trusted peer names.
    pub client: Option<IpAddr>,
    /// The peer's `X-Forwarded-For` gives another address of the client.
    pub is_unlisted: bool,
    /// `trusted_proxies.client_header`.
    pub client_header: Option<&'a str>,
    /// Local port that the client reached; `None` on a unix socket.
    pub port: Option<u16>,
    /// Address that the client connected to: the authority of an HTTP/1.0 request without one.
    pub local: Option<SocketAddr>,
    /// The client uses TLS.
    pub is_secure: bool,
    /// The client uses HTTP/2.
    pub is_h2: bool,
    /// Name of the field with the subject of the client's certificate, and the subject; empty
    /// without a certificate.
    pub subject: Option<(&'a str, &'a str)>,
}

impl RequestOrigin<'_> {
    /// The scheme of the request, RFC 9110 section 4.2.
    const fn scheme(self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
    }
}

/// Protocol of the next hop, the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// HTTP/1.1, on a connection that may be kept.
    KeepAlive,
    /// HTTP/1.1, on a connection that ends with this exchange.
    Close,
    /// HTTP/2.
    H2,
}

/// Changes of a route to a request head.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestChanges<'a> {
    /// The target to send instead of the client's.
    pub target: Option<&'a [u8]>,
    /// The Host to send instead of the client's.
    pub host: Option<&'a str>,
    /// `request_headers`.
    pub edits: Option<&'a HeaderEdits>,
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
    out: &mut Vec<u8>,
    head: &mut RequestHead,
    rules: &ForwardedConfig,
    origin: RequestOrigin<'_>,
    id: &str,
    changes: RequestChanges<'_>,
    hop: NextHop,
) {
    let edits = changes.edits;
    let target = changes.target.unwrap_or_else(|| head.text(head.target));
    encode::request_line(out, head.text(head.method), target);
    add_host(out, head, origin, changes);
    // The client's fields, without those that are replaced.
    let received = ReceivedForwarding::of(head, origin, rules);
    let RequestHead { fields, bytes, .. } = &mut *head;
    let is_host_rewritten = changes.host.is_some();
    fields.strike(|field| {
        is_replaced(field, bytes, rules, origin)
            || field.known == KnownField::Host && is_host_rewritten
    });
    if let Some(edits) = edits {
        strike_edited(fields, bytes, edits);
    }
    encode::fields(out, fields, bytes);
    // Our own fields, and those of the route.
    add_forwarding(out, head, rules, origin, &received, edits);
    if let Some((name, subject @ [_, ..])) = origin.subject.map(|(name, it)| (name, it.as_bytes()))
        && !is_decided(edits, name)
    {
        encode::field(out, name.as_bytes(), subject);
    }
    if !id.is_empty() && !is_decided(edits, &rules.request_id) {
        encode::field(out, rules.request_id.as_bytes(), id.as_bytes());
    }
    if let Some(edits) = edits {
        add_edited(out, edits);
    }
    add_framing(out, head, hop);
    add_hop_by_hop(out, head, hop);
    encode::end(out);
}

/// Writes `Host` if the client's is rewritten or missing. RFC 9112 section 3.2 requires exactly
/// one, an empty one if no authority is known.
fn add_host(
    out: &mut Vec<u8>,
    head: &RequestHead,
    origin: RequestOrigin<'_>,
    changes: RequestChanges<'_>,
) {
    if let Some(host) = changes.host {
        return encode::field(out, b"Host", host.as_bytes());
    }
    if head.find(KnownField::Host).is_some() || changes.edits.is_some_and(sets_host) {
        return;
    }
    match origin.local.filter(|_| head.host.is_empty()) {
        Some(local) => encode::field(out, b"Host", local.to_string().as_bytes()),
        None => encode::field(out, b"Host", head.text(head.host)),
    }
}

/// Writes the framing of a request.
fn add_framing(out: &mut Vec<u8>, head: &RequestHead, hop: NextHop) {
    match head.framing {
        BodyFraming::Length(length) => encode::content_length(out, length),
        // The length that an HTTP/2 client has declared. An HTTP/1 message must not have both: that
        // is how requests are smuggled (RFC 9112 section 6.1). To HTTP/2 the chunks do not go out.
        BodyFraming::Streamed(length) => {
            if let Some(length) = length {
                encode::content_length(out, length);
            }
            if hop == NextHop::H2 || length.is_none() {
                encode::chunked(out);
            }
        }
        // RFC 9110 section 8.6: methods that anticipate content declare an empty one.
        BodyFraming::None | BodyFraming::UntilClose => {
            if matches!(head.text(head.method), b"POST" | b"PUT" | b"PATCH") {
                encode::content_length(out, 0);
            }
        }
    }
}

/// Writes the fields of a request that are for the next hop only.
fn add_hop_by_hop(out: &mut Vec<u8>, head: &RequestHead, hop: NextHop) {
    let upgrade = head
        .upgrade
        .filter(|_| hop != NextHop::H2 || is_websocket(head));
    match upgrade {
        Some(protocol) => encode::upgrade(out, head.text(protocol)),
        None if hop == NextHop::Close => encode::field(out, b"Connection", b"close"),
        None => {}
    }
    // gRPC servers require it (RFC 9113 section 8.2.2 allows no other value).
    if hop == NextHop::H2 && head.takes_trailers {
        encode::field(out, b"TE", b"trailers");
    }
}

/// True for a switch to WebSocket alone (RFC 6455 section 4.1), without content: the only upgrade
/// that HTTP/2 knows (RFC 8441). HTTP/2 backends do not see any other, as a server may ignore
/// `Upgrade` (RFC 9110 section 7.8).
pub(super) fn is_websocket(head: &RequestHead) -> bool {
    let protocol = head.upgrade.map(|protocol| head.text(protocol));
    head.framing == BodyFraming::None
        && protocol.is_some_and(|it| it.eq_ignore_ascii_case(b"websocket"))
}

/// True if `set` or `remove` name a field that balancer would add: then it does not.
pub(super) fn is_decided(edits: Option<&HeaderEdits>, name: &str) -> bool {
    edits.is_some_and(|edits| named(edits).any(|edited| edited.matches(name.as_bytes())))
}

/// A name in `set` or `remove`.
#[derive(Clone, Copy)]
enum EditedName<'a> {
    Name(&'a [u8]),
    /// All names with this prefix.
    Prefix(&'a [u8]),
}

impl EditedName<'_> {
    /// True for this name, and for a twin with underscores that a server could take for it.
    fn matches(self, name: &[u8]) -> bool {
        match self {
            Self::Name(edited) => is_same_or_twin(name, edited),
            Self::Prefix(prefix) => name
                .get(..prefix.len())
                .is_some_and(|start| is_same_or_twin(start, prefix)),
        }
    }

    fn strikes(self, field: &HeadField, name: &[u8]) -> bool {
        // Without these fields the message would be another one, or invalid.
        let is_essential = || {
            field.known.is_hop_by_hop()
                || matches!(
                    field.known,
                    KnownField::Host | KnownField::ContentLength | KnownField::Expect
                )
        };
        self.matches(name) && (matches!(self, Self::Name(_)) || !is_essential())
    }
}

/// Names of the fields that are struck out: those in `remove` and `set`.
fn named(edits: &HeaderEdits) -> impl Iterator<Item = EditedName<'_>> {
    let set = edits
        .set
        .iter()
        .map(|(name, _)| EditedName::Name(name.as_bytes()));
    let removed = edits
        .remove
        .iter()
        .map(|name| match name.strip_suffix('*') {
            Some(prefix) => EditedName::Prefix(prefix.as_bytes()),
            None => EditedName::Name(name.as_bytes()),
        });
    removed.chain(set)
}

fn sets_host(edits: &HeaderEdits) -> bool {
    let mut names = edits.set.iter().map(|(name, _)| name);
    names.any(|name| name.eq_ignore_ascii_case("host"))
}

/// Forwarding fields that a trusted peer sent; their values are appended to.
#[derive(Default)]
struct ReceivedForwarding {
    forwarded_for: String,
    forwarded: String,
    proto: bool,
    host: bool,
    port: bool,
}

impl ReceivedForwarding {
    fn of(head: &RequestHead, origin: RequestOrigin<'_>, rules: &ForwardedConfig) -> Self {
        let mut received = Self::default();
        if !origin.trusted {
            return received;
        }
        for field in head.fields.iter() {
            let joined = match field.known {
                KnownField::XForwardedFor if rules.x_forwarded => &mut received.forwarded_for,
                KnownField::Forwarded if rules.rfc7239 => &mut received.forwarded,
                _ => {
                    received.proto |= field.known == KnownField::XForwardedProto;
                    received.host |= field.known == KnownField::XForwardedHost;
                    received.port |= field.known == KnownField::XForwardedPort;
                    continue;
                }
            };
            joined.push_str(&String::from_utf8_lossy(head.text(field.value)));
            joined.push_str(", ");
        }
        if let Some(client) = origin.client.filter(|_| origin.is_unlisted) {
            _ = write!(received.forwarded_for, "{client}, ");
        }
        if received.forwarded.is_empty() && origin.client != origin.peer {
            push_node(&mut received.forwarded, origin.client);
            received.forwarded.push_str(", ");
        }
        received
    }
}

/// True for fields that are replaced: those of balancer's own, and forwarding fields of peers that
/// are not trusted, which could spoof an address. Those of trusted peers are kept or appended to.
fn is_replaced(
    field: &HeadField,
    bytes: &[u8],
    rules: &ForwardedConfig,
    origin: RequestOrigin<'_>,
) -> bool {
    let name = field.name.get(bytes);
    let is = |own: &str| is_same_or_twin(name, own.as_bytes());
    if is(&rules.request_id)
        || rules.real_ip.as_deref().is_some_and(is)
        || origin.subject.is_some_and(|(own, _)| is(own))
    {
        return true;
    }
    match field.known {
        KnownField::XForwardedFor => !origin.trusted || rules.x_forwarded,
        KnownField::Forwarded => !origin.trusted || rules.rfc7239,
        known if known.is_forwarding() => !origin.trusted,
        _ => origin.client_header.is_some_and(|own| {
            is(own) && !(origin.trusted && name.eq_ignore_ascii_case(own.as_bytes()))
        }),
    }
}

/// Configured names of fields by which backends identify the client: a trailer must not have one of
/// them. `http1::body` drops those that do not depend on the configuration.
pub(super) fn own_names(rules: &ForwardedConfig, origin: RequestOrigin<'_>) -> Vec<Box<str>> {
    let real_ip = rules.real_ip.as_deref().filter(|name| *name != "X-Real-IP");
    let subject = origin.subject.map(|(name, _)| name);
    let names = [real_ip, origin.client_header, subject];
    names.into_iter().flatten().map(Box::from).collect()
}

fn add_forwarding(
    out: &mut Vec<u8>,
    head: &RequestHead,
    rules: &ForwardedConfig,
    origin: RequestOrigin<'_>,
    received: &ReceivedForwarding,
    edits: Option<&HeaderEdits>,
) {
    let host = head.text(head.host);
    if rules.x_forwarded {
        if !is_decided(edits, "X-Forwarded-For") {
            out.extend_from_slice(b"X-Forwarded-For: ");
            out.extend_from_slice(received.forwarded_for.as_bytes());
            push_address(out, origin.peer);
            encode::end(out);
        }
        if !received.proto && !is_decided(edits, "X-Forwarded-Proto") {
            encode::field(out, b"X-Forwarded-Proto", origin.scheme().as_bytes());
        }
        if !received.host && !host.is_empty() && !is_decided(edits, "X-Forwarded-Host") {
            encode::field(out, b"X-Forwarded-Host", host);
        }
        // A trusted peer that names a scheme was reached at another port than ours.
        if let Some(port) = origin.port.filter(|_| !received.port && !received.proto)
            && !is_decided(edits, "X-Forwarded-Port")
        {
            out.extend_from_slice(b"X-Forwarded-Port: ");
            encode::number(out, u64::from(port));
            encode::end(out);
        }
    }
    if let (Some(name), Some(_)) = (&rules.real_ip, origin.client)
        && !is_decided(edits, name)
    {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        push_address(out, origin.client);
        encode::end(out);
    }
    if rules.rfc7239 && !is_decided(edits, "Forwarded") {
        let mut value = received.forwarded.clone();
        push_node(&mut value, origin.peer);
        value.push_str(";proto=");
        value.push_str(origin.scheme());
        if !host.is_empty() {
            // The request parser has refused authorities with quotes and backslashes.
            _ = write!(value, ";host=\"{}\"", String::from_utf8_lossy(host));
        }
        encode::field(out, b"Forwarded", value.as_bytes());
    }
    if rules.via && !is_decided(edits, "Via") {
        let version: &[u8] = match head.version {
            HttpVersion::Http10 => b"1.0 balancer",
            HttpVersion::Http11 if !origin.is_h2 => b"1.1 balancer",
            HttpVersion::Http11 | HttpVersion::Http2 => b"2 balancer",
        };
        encode::field(out, b"Via", version);
    }
}

/// Writes a node of `Forwarded`, RFC 7239 section 6.
fn push_node(value: &mut String, node: Option<IpAddr>) {
    match node {
        Some(IpAddr::V4(node)) => _ = write!(value, "for={node}"),
        Some(IpAddr::V6(node)) => _ = write!(value, "for=\"[{node}]\""),
        None => value.push_str("for=unknown"),
    }
}

/// Writes an address. IPv4 by hand, which is cheaper than formatting: this happens per request.
fn push_address(out: &mut Vec<u8>, address: Option<IpAddr>) {
    match address {
        Some(IpAddr::V4(address)) => {
            for (place, octet) in address.octets().into_iter().enumerate() {
                if place > 0 {
                    out.push(b'.');
                }
                encode::number(out, u64::from(octet));
            }
        }
        Some(IpAddr::V6(address)) => out.extend_from_slice(address.to_string().as_bytes()),
        None => out.extend_from_slice(b"unknown"),
    }
}

/// Strikes out the fields that `remove` and `set` name, and their twins with underscores.
fn strike_edited(fields: &mut HeadFields, bytes: &[u8], edits: &HeaderEdits) {
    for edited in named(edits) {
        fields.strike(|field| edited.strikes(field, field.name.get(bytes)));
    }
}

/// Writes the fields of `set` and `add`.
fn add_edited(out: &mut Vec<u8>, edits: &HeaderEdits) {
    for (name, value) in edits.set.iter().chain(&edits.add) {
        encode::field(out, name.as_bytes(), value.as_bytes());
    }
}

/// The framing of a response with `head` for a client of `version`, or of HTTP/2. An HTTP/1 message
/// has a length or trailers: if the backend announces trailers, the length is dropped.
pub fn delivery(head: &ResponseHead, version: HttpVersion, is_h2: bool) -> BodyFraming {
    let has_trailers = || head.find(KnownField::Trailer).is_some();
    match (head.framing, version, head.framing.declared_length()) {
        (framing @ (BodyFraming::None | BodyFraming::Length(_)), ..) => framing,
        (_, HttpVersion::Http10, None) => BodyFraming::UntilClose,
        (_, HttpVersion::Http10, Some(length)) => BodyFraming::Length(length),
        (_, _, length) if is_h2 => BodyFraming::Streamed(length),
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
}

/// Writes the final response head for the client.
pub fn response_head(out: &mut Vec<u8>, head: &mut ResponseHead, extra: ResponseExtra<'_>) {
    encode::status_line(out, head.status, head.text(head.phrase));
    let (name, id) = extra.request_id;
    let ResponseHead { fields, bytes, .. } = head;
    fields.strike(|field| {
        !id.is_empty() && field.name.get(bytes).eq_ignore_ascii_case(name.as_bytes())
    });
    if let Some(edits) = extra.edits {
        strike_edited(fields, bytes, edits);
    }
    encode::fields(out, fields, bytes);
    if let Some(date) = extra.date.filter(|_| !is_decided(extra.edits, "Date")) {
        encode::field(out, b"Date", date.as_bytes());
    }
    if !id.is_empty() && !is_decided(extra.edits, name) {
        encode::field(out, name.as_bytes(), id.as_bytes());
    }
    if let Some(edits) = extra.edits {
        add_edited(out, edits);
    }
    match extra.delivery {
        BodyFraming::Length(length) => encode::content_length(out, length),
        BodyFraming::Streamed(length) => {
            if let Some(length) = length {
                encode::content_length(out, length);
            }
            encode::chunked(out);
        }
        BodyFraming::None => {
            if let Some(length) = head.announced {
                encode::content_length(out, length);
            }
        }
        BodyFraming::UntilClose => {}
    }
    let upgrade = head.upgrade.filter(|_| !is_decided(extra.edits, "Upgrade"));
    if let Some(protocols) = upgrade {
        encode::field(out, b"Upgrade", protocols.get(bytes));
        let options: &[u8] = if extra.keep_alive {
            b"upgrade"
        } else {
            b"upgrade, close"
        };
        encode::field(out, b"Connection", options);
    } else if !extra.keep_alive {
        encode::field(out, b"Connection", b"close");
    } else if extra.version == HttpVersion::Http10 {
        encode::field(out, b"Connection", b"keep-alive");
    }
    encode::end(out);
}

/// Writes a 1xx head, a 101 with its protocol and the id of the request.
pub fn interim_head(out: &mut Vec<u8>, head: &ResponseHead, request_id: (&str, &str)) {
    encode::status_line(out, head.status, head.text(head.phrase));
    encode::fields(out, &head.fields, &head.bytes);
    if let Some(protocol) = head.upgrade {
        let (name, id) = request_id;
        encode::field(out, name.as_bytes(), id.as_bytes());
        encode::upgrade(out, head.text(protocol));
    }
    encode::end(out);
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
