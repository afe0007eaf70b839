//! The address of a request's client: that of its connection, or the one that a trusted proxy
//! names.
//!
//! Access rules, limits, the log and the forwarding fields all use it. See docs/configuration.md,
//! "The client's address".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::{
    config::model::TrustedProxiesConfig,
    http::{fields::KnownField, message::RequestHead},
};

/// The client of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ClientAddress {
    /// The client's address; `None` on a unix socket.
    pub(super) client: Option<IpAddr>,
    /// The connection comes from one of `trusted_proxies`.
    pub(super) trusted: bool,
    /// The `X-Forwarded-For` of the trusted proxy gives another address.
    pub(super) is_unlisted: bool,
}

impl ClientAddress {
    /// Finds the client of the request `head` on a connection from `peer`.
    pub(super) fn of(
        head: &RequestHead,
        peer: Option<IpAddr>,
        rules: &TrustedProxiesConfig,
    ) -> Self {
        let trusted = peer.filter(|peer| contains(&rules.from, *peer));
        let Some(proxy) = trusted else {
            return Self {
                client: peer,
                ..Self::default()
            };
        };
        let listed = || listed(head, proxy, &rules.from);
        let client = match &rules.client_header {
            None => listed(),
            Some(name) => named(head, name).unwrap_or(proxy),
        };
        Self {
            client: Some(client),
            trusted: true,
            is_unlisted: rules.client_header.is_some() && client != proxy && client != listed(),
        }
    }
}

/// True if `client` may connect. `deny` takes precedence; an empty `allow` allows all. A peer on a
/// unix socket has no address and is allowed.
pub(in crate::proxy) fn is_allowed(
    client: Option<IpAddr>,
    allow: &[IpNet],
    deny: &[IpNet],
) -> bool {
    let Some(client) = client else { return true };
    !contains(deny, client) && (allow.is_empty() || contains(allow, client))
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

/// The right-most address in `X-Forwarded-For` that is not trusted. Entries further left are
/// client-controlled and ignored. An entry that is no address ends the search at the proxy that
/// wrote it.
fn listed(head: &RequestHead, proxy: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let mut client = proxy;
    let fields = head.fields.iter().rev();
    let values = fields
        .filter(|field| field.known == KnownField::XForwardedFor)
        .map(|field| head.text(field.value));
    for entry in values.flat_map(|value| value.rsplit(|byte| *byte == b',')) {
        let Some(address) = address(entry) else {
            return client;
        };
        client = address;
        if !contains(trusted, client) {
            return client;
        }
    }
    client
}

/// The address in the only field called `name`; `None` if there is no such field, more than one, or
/// another value. A field that `Connection` lists counts as well: the client must not be able to
/// strike out what its proxy has written.
fn named(head: &RequestHead, name: &str) -> Option<IpAddr> {
    let mut fields = head.fields.sent().filter(|field| {
        let sent = head.text(field.name);
        sent.eq_ignore_ascii_case(name.as_bytes())
    });
    let field = fields.next()?;
    match fields.next() {
        None => address(head.text(field.value)),
        Some(_) => None,
    }
}

/// An address, with or without the port that some proxies add.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry.trim_ascii()).ok()?;
    if let Some((inside, port)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        let address = inside.parse::<Ipv6Addr>().ok()?;
        let is_fine = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return is_fine.then(|| IpAddr::V6(address).to_canonical());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, port) = text.split_once(':')?;
    let address = address.parse::<Ipv4Addr>().ok()?;
    is_port(port).then_some(IpAddr::V4(address))
}

fn is_port(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http::rules::HeadLimits, http1::request};

    fn found(peer: &str, header: Option<&str>, fields: &str) -> (String, bool) {
        let mut head = RequestHead::default();
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        head.bytes.extend_from_slice(text.as_bytes());
        let limits = HeadLimits {
            fields: 100,
            bytes: 32 << 10,
        };
        assert!(request::parse(&mut head, limits).unwrap());
        let rules = TrustedProxiesConfig {
            from: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            client_header: header.map(str::to_owned),
        };
        let found = ClientAddress::of(&head, Some(peer.parse().unwrap()), &rules);
        (found.client.unwrap().to_string(), found.is_unlisted)
    }

    #[test]
    fn the_client_is_the_right_most_address_that_is_not_trusted() {
        for (peer, value, expected) in [
            ("192.0.2.1", "192.0.2.9", "192.0.2.1"),
            ("10.0.0.1", "192.0.2.9", "192.0.2.9"),
            ("10.0.0.1", "192.0.2.7,192.0.2.8 , 10.1.1.1", "192.0.2.8"),
            (
                "10.0.0.1",
                "192.0.2.7\r\nx-forwarded-for: 10.2.2.2",
                "192.0.2.7",
            ),
            (
                "10.0.0.1",
                "192.0.2.7\r\nX_Forwarded_For: 192.0.2.8",
                "192.0.2.7",
            ),
            ("10.0.0.1", "192.0.2.7, unknown, 10.2.2.2", "10.2.2.2"),
            ("10.0.0.1", "192.0.2.7, , 10.2.2.2", "10.2.2.2"),
            ("10.0.0.1", ",", "10.0.0.1"),
            ("10.0.0.1", "10.3.3.3", "10.3.3.3"),
            ("10.0.0.1", "192.0.2.9:80", "192.0.2.9"),
            ("10.0.0.1", "192.0.2.9:", "10.0.0.1"),
            ("10.0.0.1", "192.0.2.9:99999", "10.0.0.1"),
            ("10.0.0.1", "192.0.2.9:x", "10.0.0.1"),
            ("fd00::1", "[2001:db8::7]:4711", "2001:db8::7"),
            ("fd00::1", "[2001:db8::7]", "2001:db8::7"),
            ("fd00::1", "[2001:db8::7]x", "fd00::1"),
            ("fd00::1", "[192.0.2.9]:80", "fd00::1"),
            ("fd00::1", "2001:db8::7", "2001:db8::7"),
            ("10.0.0.1", "::ffff:192.0.2.9", "192.0.2.9"),
            ("10.0.0.1", "192.0.2.9, ::ffff:10.1.1.1", "192.0.2.9"),
        ] {
            let fields = format!("X-Forwarded-For: {value}\r\n");
            assert_eq!(found(peer, None, &fields).0, expected, "{peer} {value}");
        }
        assert_eq!(found("10.0.0.1", None, "").0, "10.0.0.1");
    }

    #[test]
    fn a_client_header_goes_before_the_list_and_is_one_address_or_nothing() {
        for (peer, fields, expected) in [
            ("10.0.0.1", "Client: 192.0.2.9\r\n", ("192.0.2.9", true)),
            ("192.0.2.1", "Client: 192.0.2.9\r\n", ("192.0.2.1", false)),
            (
                "10.0.0.1",
                "client: [2001:db8::7]:1\r\n",
                ("2001:db8::7", true),
            ),
            (
                "10.0.0.1",
                "X-Forwarded-For: 192.0.2.9\r\n",
                ("10.0.0.1", false),
            ),
            (
                "10.0.0.1",
                "Client: a\r\nX-Forwarded-For: 192.0.2.9\r\n",
                ("10.0.0.1", false),
            ),
            (
                "10.0.0.1",
                "Client: 192.0.2.8, 192.0.2.9\r\n",
                ("10.0.0.1", false),
            ),
            (
                "10.0.0.1",
                "Client: 192.0.2.8\r\nClient: 192.0.2.8\r\n",
                ("10.0.0.1", false),
            ),
            (
                "10.0.0.1",
                "Connection: client\r\nClient: 192.0.2.9\r\n",
                ("192.0.2.9", true),
            ),
            (
                "10.0.0.1",
                "Client: 192.0.2.9\r\nX-Forwarded-For: 192.0.2.1, 192.0.2.9\r\n",
                ("192.0.2.9", false),
            ),
        ] {
            let (client, is_unlisted) = found(peer, Some("Client"), fields);
            assert_eq!((client.as_str(), is_unlisted), expected, "{peer} {fields}");
        }
    }
}
