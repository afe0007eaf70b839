//! The origin of a request, and the fields that tell it to the backend: `X-Forwarded-*`,
//! `Forwarded` (RFC 7239), `Via` and those that the configuration names.
//!
//! Pure. Such fields of strangers are replaced; those of trusted peers are kept or appended to.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use super::header_edits::is_decided;
use crate::{
    base::short_text::ShortText,
    config::model::{ForwardedConfig, HeaderEdits},
    http::{
        fields::{HeadField, KnownField, is_same_or_twin},
        head_writer::HeadWriter,
        message::{HttpVersion, RequestHead},
    },
};

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
    /// Name of the field with the subject of the client's certificate, and the subject; empty
    /// without a certificate.
    pub subject: Option<(&'a str, &'a str)>,
}

impl RequestOrigin<'_> {
    /// The scheme of the request, RFC 9110 section 4.2.
    const fn scheme(self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
    }

    /// True for fields that are replaced: those of balancer's own, and forwarding fields of peers
    /// that are not trusted, which could spoof an address.
    pub(super) fn replaces(self, field: &HeadField, name: &[u8], rules: &ForwardedConfig) -> bool {
        let is = |own: &str| is_same_or_twin(name, own.as_bytes());
        if is(&rules.request_id)
            || rules.real_ip.as_deref().is_some_and(is)
            || self.subject.is_some_and(|(own, _)| is(own))
        {
            return true;
        }
        match field.known {
            KnownField::XForwardedFor => !self.trusted || rules.x_forwarded,
            KnownField::Forwarded => !self.trusted || rules.rfc7239,
            known if known.is_forwarding() => !self.trusted,
            _ => self.client_header.is_some_and(|own| {
                is(own) && !(self.trusted && name.eq_ignore_ascii_case(own.as_bytes()))
            }),
        }
    }

    /// Configured names of fields by which backends identify the client: a trailer must not have
    /// one of them. `http1::body` drops those that do not depend on the configuration.
    pub(super) fn own_names(self, rules: &ForwardedConfig) -> Vec<Box<str>> {
        let real_ip = rules.real_ip.as_deref().filter(|name| *name != "X-Real-IP");
        let subject = self.subject.map(|(name, _)| name);
        let names = [real_ip, self.client_header, subject];
        names.into_iter().flatten().map(Box::from).collect()
    }
}

/// Writes the fields that tell the origin of the request with `head`, but for those that `edits`
/// decide about.
pub(super) fn write(
    out: &mut impl HeadWriter,
    head: &RequestHead,
    rules: &ForwardedConfig,
    origin: RequestOrigin<'_>,
    edits: Option<&HeaderEdits>,
) {
    let received = ReceivedForwarding::of(head, origin, rules);
    if rules.x_forwarded {
        write_x_forwarded(out, head, origin, &received, edits);
    }
    if let (Some(name), Some(client)) = (&rules.real_ip, origin.client)
        && !is_decided(edits, name)
    {
        out.field(name.as_bytes(), ShortText::address(client).as_bytes());
    }
    if rules.rfc7239 && !is_decided(edits, "Forwarded") {
        write_forwarded(out, head, origin, received.forwarded);
    }
    if rules.via && !is_decided(edits, "Via") {
        let version: &[u8] = match head.version {
            HttpVersion::Http10 => b"1.0 balancer",
            HttpVersion::Http11 => b"1.1 balancer",
            HttpVersion::Http2 => b"2 balancer",
        };
        out.field(b"Via", version);
    }
    if let Some((name, subject @ [_, ..])) = origin.subject.map(|(name, it)| (name, it.as_bytes()))
        && !is_decided(edits, name)
    {
        out.field(name.as_bytes(), subject);
    }
}

/// Writes `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`.
fn write_x_forwarded(
    out: &mut impl HeadWriter,
    head: &RequestHead,
    origin: RequestOrigin<'_>,
    received: &ReceivedForwarding,
    edits: Option<&HeaderEdits>,
) {
    let host = head.text(head.host);
    if !is_decided(edits, "X-Forwarded-For") {
        let peer = origin.peer.map(ShortText::address);
        let peer = peer.as_ref().map_or(&b"unknown"[..], ShortText::as_bytes);
        if received.forwarded_for.is_empty() {
            out.field(b"X-Forwarded-For", peer);
        } else {
            let list = [received.forwarded_for.as_bytes(), peer].concat();
            out.field(b"X-Forwarded-For", &list);
        }
    }
    if !received.proto && !is_decided(edits, "X-Forwarded-Proto") {
        out.field(b"X-Forwarded-Proto", origin.scheme().as_bytes());
    }
    if !received.host && !host.is_empty() && !is_decided(edits, "X-Forwarded-Host") {
        out.field(b"X-Forwarded-Host", host);
    }
    // A trusted peer that names a scheme was reached at another port than ours.
    if let Some(port) = origin.port.filter(|_| !received.port && !received.proto)
        && !is_decided(edits, "X-Forwarded-Port")
    {
        let port = ShortText::number(port.into());
        out.field(b"X-Forwarded-Port", port.as_bytes());
    }
}

/// Writes `Forwarded` with the elements that were `received`.
fn write_forwarded(
    out: &mut impl HeadWriter,
    head: &RequestHead,
    origin: RequestOrigin<'_>,
    received: String,
) {
    let host = head.text(head.host);
    let mut value = received;
    push_node(&mut value, origin.peer);
    value.push_str(";proto=");
    value.push_str(origin.scheme());
    if !host.is_empty() {
        // The rules for requests have refused authorities with quotes and backslashes.
        _ = write!(value, ";host=\"{}\"", String::from_utf8_lossy(host));
    }
    out.field(b"Forwarded", value.as_bytes());
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

/// Writes a node of `Forwarded`, RFC 7239 section 6.
fn push_node(value: &mut String, node: Option<IpAddr>) {
    match node {
        Some(IpAddr::V4(node)) => _ = write!(value, "for={node}"),
        Some(IpAddr::V6(node)) => _ = write!(value, "for=\"[{node}]\""),
        None => value.push_str("for=unknown"),
    }
}
