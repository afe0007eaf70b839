//! What a head looks like on the other side: hop-by-hop fields gone, forwarding fields added, framing written anew.
//!
//! RFC 9110 section 7.6, RFC 7239.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use crate::{
    base::rng::Random,
    config::model::{ForwardedConfig, HeaderEdits},
    http1::{
        HttpVersion, encode,
        fields::{HeadField, HeadFields, KnownField, is_same_or_twin},
        request, response,
    },
};

/// Longest request id taken over from a trusted peer, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Where a request came from. `Default` is a plain connection without addresses.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestOrigin<'a> {
    /// Address of the connection's other end; `None` on a unix socket.
    pub peer: Option<IpAddr>,
    /// The peer is in `trusted_proxies`.
    pub trusted: bool,
    /// Address of the client: the peer's own, or the one that a trusted peer names.
    pub client: Option<IpAddr>,
    /// A reader of the peer's `X-Forwarded-For` would take another address for the client's.
    pub is_unlisted: bool,
    /// `trusted_proxies.client_header`.
    pub client_header: Option<&'a str>,
    /// Local port that the client reached; `None` on a unix socket.
    pub port: Option<u16>,
    /// Where the client connected to: the authority of an HTTP/1.0 request that names none.
    pub local: Option<SocketAddr>,
    /// The client speaks TLS.
    pub is_secure: bool,
    /// The client speaks HTTP/2.
    pub is_h2: bool,
    /// Name of the field that tells the subject of the client's certificate, and the subject; empty without one.
    pub subject: Option<(&'a str, &'a str)>,
}

impl RequestOrigin<'_> {
    /// The scheme of the request, RFC 9110 section 4.2.
    const fn scheme(self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
    }
}

/// What the backend is spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// HTTP/1.1, on a connection that may be kept.
    KeepAlive,
    /// HTTP/1.1, on a connection that ends with this exchange.
    Close,
    /// HTTP/2.
    H2,
}

/// What a route changes in a request head.
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
    head: &request::RequestHead,
    rules: &ForwardedConfig,
    trusted: bool,
    random: &mut Random,
) {
    id.clear();
    let sent = head.fields.values(&rules.request_id, &head.bytes).next();
    let visible = |id: &&[u8]| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
    };
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
    for place in (0..16).rev() {
        let digit = (bits >> (place * 4)) & 0xf;
        text.push(char::from_digit(digit as u32, 16).unwrap_or('0'));
    }
}

/// Writes the head that the backend gets.
pub fn request_head(
    out: &mut Vec<u8>,
    head: &mut request::RequestHead,
    rules: &ForwardedConfig,
    origin: RequestOrigin<'_>,
    id: &str,
    changes: RequestChanges<'_>,
    hop: NextHop,
) {
    let RequestChanges {
        target,
        host,
        edits,
    } = changes;
    let target = target.unwrap_or_else(|| head.text(head.target));
    encode::request_line(out, head.text(head.method), target);
    // RFC 9112 section 3.2: exactly one, and an empty one where nothing is known.
    if let Some(host) = host {
        encode::field(out, b"Host", host.as_bytes());
    } else if head.find(KnownField::Host).is_none() && !edits.is_some_and(sets_host) {
        match origin.local.filter(|_| head.host.is_empty()) {
            Some(local) => encode::field(out, b"Host", local.to_string().as_bytes()),
            None => encode::field(out, b"Host", head.text(head.host)),
        }
    }
    let earlier = ReceivedForwarding::of(head, origin, rules);
    let request::RequestHead { fields, bytes, .. } = &mut *head;
    fields.strike(|field| {
        is_replaced(field, bytes, rules, origin)
            || field.known == KnownField::Host && host.is_some()
    });
    if let Some(edits) = edits {
        strike_edited(fields, bytes, edits);
    }
    encode::fields(out, fields, bytes);
    add_forwarding(out, head, rules, origin, &earlier, edits);
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
    match head.framing {
        request::RequestFraming::Length(length) => encode::content_length(out, length),
        request::RequestFraming::Chunked => {
            if let Some(length) = head.declared_length {
                encode::content_length(out, length);
            }
            if hop == NextHop::H2 || head.declared_length.is_none() {
                encode::chunked(out);
            }
        }
        // RFC 9110 section 8.6: methods that anticipate content say that there is none.
        request::RequestFraming::None => {
            if matches!(head.text(head.method), b"POST" | b"PUT" | b"PATCH") {
                encode::content_length(out, 0);
            }
        }
    }
    match head
        .upgrade
        .filter(|_| hop != NextHop::H2 || is_websocket(head))
    {
        Some(protocol) => encode::upgrade(out, head.text(protocol)),
        None if hop == NextHop::Close => encode::field(out, b"Connection", b"close"),
        None => {}
    }
    if hop == NextHop::H2 && head.takes_trailers {
        encode::field(out, b"TE", b"trailers");
    }
    encode::end(out);
}

/// A switch to WebSocket and nothing else (RFC 6455 section 4.1), without content: the only one that HTTP/2 knows (RFC
/// 8441). Backends that speak it are asked for no other, which the client may expect of any server (RFC 9110 section 7.8).
pub(super) fn is_websocket(head: &request::RequestHead) -> bool {
    let protocol = head.upgrade.map(|protocol| head.text(protocol));
    head.framing == request::RequestFraming::None
        && protocol.is_some_and(|it| it.eq_ignore_ascii_case(b"websocket"))
}

/// True where `set` or `remove` name a field that balancer would add: then it adds none.
pub(super) fn is_decided(edits: Option<&HeaderEdits>, name: &str) -> bool {
    edits.is_some_and(|edits| named(edits).any(|edited| edited.matches(name.as_bytes())))
}

/// A name in `set` or `remove`.
#[derive(Clone, Copy)]
enum EditedName<'a> {
    Name(&'a [u8]),
    /// All names that begin with it.
    Prefix(&'a [u8]),
}

impl EditedName<'_> {
    /// True for this name, and for one that a server could take for it.
    fn matches(self, name: &[u8]) -> bool {
        match self {
            Self::Name(edited) => is_same_or_twin(name, edited),
            Self::Prefix(prefix) => name
                .get(..prefix.len())
                .is_some_and(|start| is_same_or_twin(start, prefix)),
        }
    }

    fn strikes(self, field: &HeadField, name: &[u8]) -> bool {
        // Without these the message is another one, or none.
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

/// The names of which no field is left as it came.
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

/// Values of forwarding fields that a trusted peer sent, to be appended to.
#[derive(Default)]
struct ReceivedForwarding {
    forwarded_for: String,
    forwarded: String,
    proto: bool,
    host: bool,
    port: bool,
}

impl ReceivedForwarding {
    fn of(head: &request::RequestHead, origin: RequestOrigin<'_>, rules: &ForwardedConfig) -> Self {
        let mut earlier = Self::default();
        if !origin.trusted {
            return earlier;
        }
        for field in head.fields.iter() {
            let joined = match field.known {
                KnownField::XForwardedFor if rules.x_forwarded => &mut earlier.forwarded_for,
                KnownField::Forwarded if rules.rfc7239 => &mut earlier.forwarded,
                _ => {
                    earlier.proto |= field.known == KnownField::XForwardedProto;
                    earlier.host |= field.known == KnownField::XForwardedHost;
                    earlier.port |= field.known == KnownField::XForwardedPort;
                    continue;
                }
            };
            joined.push_str(&String::from_utf8_lossy(head.text(field.value)));
            joined.push_str(", ");
        }
        if let Some(client) = origin.client.filter(|_| origin.is_unlisted) {
            _ = write!(earlier.forwarded_for, "{client}, ");
        }
        if earlier.forwarded.is_empty() && origin.client != origin.peer {
            push_node(&mut earlier.forwarded, origin.client);
            earlier.forwarded.push_str(", ");
        }
        earlier
    }
}

/// Forwarding fields of peers that are not trusted go, those of trusted ones are kept or appended to.
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

/// Names of fields by which backends know the client, as far as the configuration chooses them: no trailer has one of them.
/// Those that every configuration has are dropped by `http1::body`.
pub(super) fn own_names(rules: &ForwardedConfig, origin: RequestOrigin<'_>) -> Vec<Box<str>> {
    let real_ip = rules.real_ip.as_deref().filter(|name| *name != "X-Real-IP");
    let subject = origin.subject.map(|(name, _)| name);
    let names = [real_ip, origin.client_header, subject];
    names.into_iter().flatten().map(Box::from).collect()
}

fn add_forwarding(
    out: &mut Vec<u8>,
    head: &request::RequestHead,
    rules: &ForwardedConfig,
    origin: RequestOrigin<'_>,
    earlier: &ReceivedForwarding,
    edits: Option<&HeaderEdits>,
) {
    let host = head.text(head.host);
    if rules.x_forwarded {
        if !is_decided(edits, "X-Forwarded-For") {
            out.extend_from_slice(b"X-Forwarded-For: ");
            out.extend_from_slice(earlier.forwarded_for.as_bytes());
            push_address(out, origin.peer);
            encode::end(out);
        }
        if !earlier.proto && !is_decided(edits, "X-Forwarded-Proto") {
            encode::field(out, b"X-Forwarded-Proto", origin.scheme().as_bytes());
        }
        if !earlier.host && !host.is_empty() && !is_decided(edits, "X-Forwarded-Host") {
            encode::field(out, b"X-Forwarded-Host", host);
        }
        // The scheme that a trusted peer names was spoken at another port than ours.
        if let Some(port) = origin.port.filter(|_| !earlier.port && !earlier.proto)
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
        let mut value = earlier.forwarded.clone();
        push_node(&mut value, origin.peer);
        value.push_str(";proto=");
        value.push_str(origin.scheme());
        if !host.is_empty() {
            // An authority has no quote and no backslash: it was checked when the request was read.
            _ = write!(value, ";host=\"{}\"", String::from_utf8_lossy(host));
        }
        encode::field(out, b"Forwarded", value.as_bytes());
    }
    if rules.via && !is_decided(edits, "Via") {
        let version: &[u8] = match head.version {
            _ if origin.is_h2 => b"2 balancer",
            HttpVersion::Http10 => b"1.0 balancer",
            HttpVersion::Http11 => b"1.1 balancer",
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

/// IPv4 addresses are written by hand: this happens for every request.
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

/// Strikes out what `remove` and `set` name, and what a server could take for it.
fn strike_edited(fields: &mut HeadFields, bytes: &[u8], edits: &HeaderEdits) {
    for edited in named(edits) {
        fields.strike(|field| edited.strikes(field, field.name.get(bytes)));
    }
}

/// Writes what `set` and `add` give.
fn add_edited(out: &mut Vec<u8>, edits: &HeaderEdits) {
    for (name, value) in edits.set.iter().chain(&edits.add) {
        encode::field(out, name.as_bytes(), value.as_bytes());
    }
}

/// How the body of a response goes to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyDelivery {
    /// No body.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunked. A length that is told beside that is the one of HTTP/2.
    Chunked(Option<u64>),
    /// Until we close: for HTTP/1.0 clients, when the length is not known.
    UntilClose,
}

impl BodyDelivery {
    /// How to deliver a response with `head` to a client that speaks `version`, or HTTP/2. HTTP/1 has a length or trailers:
    /// where the backend announces trailers, the length gives way to them.
    pub fn of(
        head: &response::ResponseHead,
        bytes: &[u8],
        version: HttpVersion,
        is_h2: bool,
    ) -> Self {
        let has_trailers = || head.fields.find(KnownField::Trailer, bytes).is_some();
        match (head.framing, version, head.declared_length) {
            (response::ResponseFraming::None, ..) => Self::None,
            (response::ResponseFraming::Length(length), ..) => Self::Length(length),
            (_, HttpVersion::Http11, length) if is_h2 => Self::Chunked(length),
            (_, HttpVersion::Http11, None) => Self::Chunked(None),
            (_, HttpVersion::Http11, Some(_)) if has_trailers() => Self::Chunked(None),
            (_, _, Some(length)) => Self::Length(length),
            (_, HttpVersion::Http10, None) => Self::UntilClose,
        }
    }
}

/// What a response head is made of besides the backend's own.
#[derive(Debug, Clone, Copy)]
pub struct ResponseExtra<'a> {
    /// How the body goes to the client.
    pub delivery: BodyDelivery,
    /// Another request may follow.
    pub keep_alive: bool,
    /// What the client speaks.
    pub version: HttpVersion,
    /// Name and value of the request id field.
    pub request_id: (&'a str, &'a str),
    /// `response_headers` of the route.
    pub edits: Option<&'a HeaderEdits>,
    /// Value of `Date`, where the backend sent none (RFC 9110 section 6.6.1).
    pub date: Option<&'a str>,
}

/// Writes the final response head that the client gets.
pub fn response_head(
    out: &mut Vec<u8>,
    head: &mut response::ResponseHead,
    bytes: &[u8],
    extra: ResponseExtra<'_>,
) {
    encode::status_line(out, head.status, head.phrase.get(bytes));
    let (name, id) = extra.request_id;
    head.fields.strike(|field| {
        !id.is_empty() && field.name.get(bytes).eq_ignore_ascii_case(name.as_bytes())
    });
    if let Some(edits) = extra.edits {
        strike_edited(&mut head.fields, bytes, edits);
    }
    encode::fields(out, &head.fields, bytes);
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
        BodyDelivery::Length(length) => encode::content_length(out, length),
        BodyDelivery::Chunked(length) => {
            if let Some(length) = length {
                encode::content_length(out, length);
            }
            encode::chunked(out);
        }
        BodyDelivery::None => {
            if let Some(length) = head.announced {
                encode::content_length(out, length);
            }
        }
        BodyDelivery::UntilClose => {}
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

/// Writes a 1xx head, or a 101 with the protocol that was switched to and the id of the request.
pub fn interim_head(
    out: &mut Vec<u8>,
    head: &response::ResponseHead,
    bytes: &[u8],
    request_id: (&str, &str),
) {
    encode::status_line(out, head.status, head.phrase.get(bytes));
    encode::fields(out, &head.fields, bytes);
    if let Some(protocol) = head.upgrade {
        let (name, id) = request_id;
        encode::field(out, name.as_bytes(), id.as_bytes());
        encode::upgrade(out, protocol.get(bytes));
    }
    encode::end(out);
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
