//! A PROXY header, independent of the version that it is written in.

use std::net::{IpAddr, SocketAddr};

use crate::net::stream::Stream;

/// Both ends of a client's connection. IPv4 addresses are always given as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionEnds {
    /// Address of the client.
    pub source: SocketAddr,
    /// Address that the client connected to.
    pub destination: SocketAddr,
}

impl ConnectionEnds {
    /// Ends in canonical form: an IPv4-mapped IPv6 address becomes the IPv4 address.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        let canonical =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self {
            source: canonical(source),
            destination: canonical(destination),
        }
    }

    /// The ends of `stream` itself; `None` on unix sockets.
    pub fn of(stream: &Stream) -> Option<Self> {
        Some(Self::new(stream.peer_addr()?, stream.local_addr()?))
    }
}

/// The client as a header describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    /// `LOCAL`, `UNKNOWN`, or a kind of connection that a listener of ours cannot have: the
    /// addresses of the connection itself hold, as the specification demands (section 2.2).
    Own,
    /// The client is connected to a unix socket: it has no address.
    Unix,
    /// The client's own connection.
    Proxied(ConnectionEnds),
}

impl ProxyHeader {
    /// Address of the client, when the connection itself comes from `peer`.
    pub fn client(&self, peer: Option<IpAddr>) -> Option<IpAddr> {
        match self {
            Self::Own => peer,
            Self::Unix => None,
            Self::Proxied(ends) => Some(ends.source.ip()),
        }
    }

    /// Both ends of the client's connection; `own` are those of its last hop.
    pub fn ends(&self, own: impl FnOnce() -> Option<ConnectionEnds>) -> Option<ConnectionEnds> {
        match self {
            Self::Own => own(),
            Self::Unix => None,
            Self::Proxied(ends) => Some(*ends),
        }
    }
}
