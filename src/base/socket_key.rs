//! The identity of a listening socket: a transport protocol and an address.
//!
//! Ports of TCP and UDP are two number spaces (RFC 768, RFC 9293): a DNS listener on TCP 53 and one
//! on UDP 53 do not clash, so an address alone does not say which socket is meant.

use std::fmt;

use super::address::BindAddress;

/// Transport protocol of a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// Connections: TCP, or stream sockets where the address is a path.
    Tcp,
    /// Datagrams. No listener protocol uses them yet.
    Udp,
}

/// Key of a listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketKey {
    /// The number space that the port belongs to.
    pub transport: Transport,
    /// As written in the configuration.
    pub address: BindAddress,
}

impl SocketKey {
    /// A socket that accepts connections.
    pub fn tcp(address: BindAddress) -> Self {
        Self {
            transport: Transport::Tcp,
            address,
        }
    }

    /// True for two sockets on one port of one transport. Port 0 is another port each time.
    pub fn shares_port_with(&self, other: &Self) -> bool {
        let (BindAddress::Ip(one), BindAddress::Ip(two)) = (&self.address, &other.address) else {
            return false;
        };
        self.transport == other.transport && one.port() == two.port() && one.port() != 0
    }

    /// True if one socket on `self` keeps others from listening on `other`: a wildcard address
    /// takes its port on all addresses.
    pub fn overlaps(&self, other: &Self) -> bool {
        let is_wildcard = |key: &Self| matches!(key.address, BindAddress::Ip(address) if address.ip().is_unspecified());
        self == other || self.shares_port_with(other) && (is_wildcard(self) || is_wildcard(other))
    }
}

impl fmt::Display for SocketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport {
            Transport::Tcp => self.address.fmt(f),
            Transport::Udp => write!(f, "{} (UDP)", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn key(transport: Transport, address: &str) -> SocketKey {
        SocketKey {
            transport,
            address: address.parse().unwrap(),
        }
    }

    #[test]
    fn keys_that_differ_only_in_transport_are_two_sockets() {
        let (tcp, udp) = (
            key(Transport::Tcp, "127.0.0.1:53"),
            key(Transport::Udp, "127.0.0.1:53"),
        );
        assert_ne!(tcp, udp);
        assert!(!tcp.overlaps(&udp) && !tcp.shares_port_with(&udp));
        assert!(!key(Transport::Udp, "[::]:53").overlaps(&tcp));
        let table = HashMap::from([(tcp.clone(), "tcp"), (udp.clone(), "udp")]);
        assert_eq!((table[&tcp], table[&udp]), ("tcp", "udp"));
        assert_ne!(tcp.to_string(), udp.to_string());
    }

    #[test]
    fn a_wildcard_overlaps_every_address_of_its_port_and_no_other_port() {
        let tcp = |address| key(Transport::Tcp, address);
        assert!(tcp(":80").overlaps(&tcp("127.0.0.1:80")));
        assert!(tcp("127.0.0.1:80").overlaps(&tcp("0.0.0.0:80")));
        assert!(tcp("127.0.0.1:80").overlaps(&tcp("127.0.0.1:80")));
        assert!(!tcp("127.0.0.1:80").overlaps(&tcp("127.0.0.2:80")));
        assert!(!tcp(":80").overlaps(&tcp("127.0.0.1:81")));
        assert!(tcp("127.0.0.1:80").shares_port_with(&tcp("127.0.0.2:80")));
        assert!(!tcp("127.0.0.1:0").shares_port_with(&tcp("127.0.0.2:0")));
        assert!(!tcp("unix:/a").overlaps(&tcp("unix:/b")));
    }
}
