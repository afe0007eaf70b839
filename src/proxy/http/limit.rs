//! Whether a request is over the `rate_limit` of its route or listener, and which client it counts for.
//!
//! How buckets work is in `base/rate.rs`; which limit holds for what, in `snapshot.rs`.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::exchange::{Exchange, contains};
use crate::{
    base::clock,
    http1::{fields::Known, request},
};

impl Exchange<'_> {
    /// Takes one from the client's bucket; how long it must wait if there is none. Without a limit no clock is read.
    /// Clients on a unix socket have no address, and no limit.
    pub(super) fn take_rate(&self, route: Option<usize>) -> Result<(), Duration> {
        let snapshot = self.place.snapshot;
        let Some((buckets, limit)) = snapshot.rate_limit(self.place.listener_index, route) else {
            return Ok(());
        };
        let Some(peer) = self.client.peer else {
            return Ok(());
        };
        let client = real_client(self.head, peer, &snapshot.config.trusted_proxies);
        buckets.take(limit, client, clock::now()).inspect_err(|_| {
            self.place.counters().rate_limited.add(1);
        })
    }
}

/// The address a request comes from: the peer's, or where that is a trusted proxy the right-most address in
/// `X-Forwarded-For` that is none. What stands to the left of it the client may have made up, so it counts for nothing. An
/// entry that is no address ends the search at the proxy that wrote it.
fn real_client(head: &request::Head, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer;
    if !contains(trusted, peer) {
        return client;
    }
    let fields = head.fields.iter().rev();
    let values = fields
        .filter(|field| field.known == Known::XForwardedFor)
        .map(|field| head.text(field.value));
    for entry in values.flat_map(|value| value.rsplit(|byte| *byte == b',')) {
        let Some(address) = address(entry.trim_ascii()) else {
            return client;
        };
        client = address;
        if !contains(trusted, client) {
            return client;
        }
    }
    client
}

/// An address, with or without the port that some proxies add.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.split_once(']'))
        .map_or(text, |(inside, _)| inside);
    let found = bare.parse::<IpAddr>().ok().or_else(|| {
        let (v4, _port) = bare.split_once(':')?;
        v4.parse::<std::net::Ipv4Addr>().ok().map(IpAddr::V4)
    });
    found.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::request::{Head, Limits};

    fn client(peer: &str, fields: &str) -> String {
        let mut head = Head::default();
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        head.bytes.extend_from_slice(text.as_bytes());
        let limits = Limits {
            fields: 100,
            bytes: 32 << 10,
        };
        assert!(head.parse(limits).unwrap());
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        real_client(&head, peer.parse().unwrap(), &trusted).to_string()
    }

    #[test]
    fn the_client_is_the_right_most_address_that_is_not_trusted() {
        for (peer, fields, expected) in [
            ("192.0.2.1", "X-Forwarded-For: 192.0.2.9\r\n", "192.0.2.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "X-Forwarded-For: 192.0.2.9\r\n", "192.0.2.9"),
            (
                "10.0.0.1",
                "x-forwarded-for: 192.0.2.7,192.0.2.8 , 10.1.1.1\r\n",
                "192.0.2.8",
            ),
            (
                "10.0.0.1",
                "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-For: 10.2.2.2\r\n",
                "192.0.2.7",
            ),
            (
                "10.0.0.1",
                "X-Forwarded-For: 192.0.2.7, unknown, 10.2.2.2\r\n",
                "10.2.2.2",
            ),
            ("10.0.0.1", "X-Forwarded-For: ,\r\n", "10.0.0.1"),
            ("10.0.0.1", "X-Forwarded-For: 10.3.3.3\r\n", "10.3.3.3"),
            ("10.0.0.1", "X-Forwarded-For: 192.0.2.9:80\r\n", "192.0.2.9"),
            (
                "fd00::1",
                "X-Forwarded-For: [2001:db8::7]:4711\r\n",
                "2001:db8::7",
            ),
            ("fd00::1", "X-Forwarded-For: 2001:db8::7\r\n", "2001:db8::7"),
            (
                "10.0.0.1",
                "X-Forwarded-For: ::ffff:192.0.2.9\r\n",
                "192.0.2.9",
            ),
        ] {
            assert_eq!(client(peer, fields), expected, "{peer} {fields}");
        }
    }
}
