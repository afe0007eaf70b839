//! `listeners.NAME`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;

use super::{HostMatch, ListenerTlsConfig};
use crate::base::{
    address::BindAddress,
    socket_key::{SocketKey, Transport},
    units::Rate,
};

/// `listeners.NAME`.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerConfig {
    /// The key in the file.
    pub name: Arc<str>,
    /// At least one; no two listeners share one.
    pub binds: Vec<BindAddress>,
    /// Default http.
    pub protocol: ListenerProtocol,
    /// The pool for unmatched traffic: index into [`Config::pools`](super::Config::pools).
    pub pool: Option<usize>,
    /// `sni`: the pools of TLS connections by the server name they ask for, as indexes into
    /// [`Config::pools`](super::Config::pools). Their TLS is passed on as it is. Default empty:
    /// connections are not looked into.
    pub sni: BTreeMap<HostMatch, usize>,
    /// `redirect`: every request of this listener is redirected that no route takes which is
    /// `first` or names the listener.
    pub redirect: Option<RedirectConfig>,
    /// `http`.
    pub http: ListenerHttpConfig,
    /// `timeouts`.
    pub timeouts: ListenerTimeoutsConfig,
    /// `limits`.
    pub limits: ListenerLimitsConfig,
    /// `rate_limit`, for requests no route says otherwise of. Default none.
    pub rate_limit: Option<RateLimitConfig>,
    /// `accept_proxy`: connections begin with a PROXY header. Default none.
    pub accept_proxy: Option<AcceptProxyConfig>,
    /// Clients that may connect; empty is all.
    pub allow: Vec<IpNet>,
    /// Clients that may not; stronger than `allow`.
    pub deny: Vec<IpNet>,
    /// `socket`.
    pub socket: SocketConfig,
    /// `tls`; none: plain.
    pub tls: Option<ListenerTlsConfig>,
}

impl ListenerConfig {
    /// The pools that it names itself; one may occur several times.
    pub fn pools(&self) -> impl Iterator<Item = usize> {
        self.pool.into_iter().chain(self.sni.values().copied())
    }

    /// The sockets that it listens on, in the order of `binds`.
    pub fn sockets(&self) -> impl Iterator<Item = SocketKey> {
        let transport = self.protocol.transport();
        self.binds.iter().map(move |address| SocketKey {
            transport,
            address: address.clone(),
        })
    }
}

/// `listeners.NAME.protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListenerProtocol {
    /// HTTP/1.0, HTTP/1.1 and HTTP/2.
    #[default]
    Http,
    /// A byte stream.
    Tcp,
}

impl ListenerProtocol {
    /// The transport of its listening sockets.
    pub fn transport(self) -> Transport {
        match self {
            Self::Http | Self::Tcp => Transport::Tcp,
        }
    }
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// `listeners.NAME.accept_proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptProxyConfig {
    /// The version that must be used. Default `None`: any.
    pub version: Option<ProxyVersion>,
    /// Peers whose headers are believed; at least one. All others are refused.
    pub from: Vec<IpNet>,
}

/// `listeners.NAME.http`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerHttpConfig {
    /// Fields in a request head, 1..=256. Default 100.
    pub max_headers: usize,
    /// Bytes of a request head, 1 KiB..=256 KiB. Default 32 KiB.
    pub max_header_size: usize,
    /// HTTP/2 without TLS from clients that begin with it. Default true. RFC 9113 section 3.3.
    pub h2c: bool,
    /// Requests at a time on one HTTP/2 connection, 1..=1,000. Default 100.
    pub h2_max_streams: usize,
}

/// `listeners.NAME.timeouts`; `None` is `none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTimeoutsConfig {
    /// From the first byte of a request (or the accept) to the end of its head. Default 10s.
    pub header: Option<Duration>,
    /// In which a client sends 1 KiB of a request body before its response begins, or reads a byte
    /// of a response of ours. Default 30s.
    pub body_idle: Option<Duration>,
    /// Between a response and the next request. Default 75s.
    pub keepalive: Option<Duration>,
    /// From the accept to the end of the TLS handshake; with `sni` to the end of the ClientHello.
    /// Default 10s.
    pub tls: Option<Duration>,
}

/// `listeners.NAME.limits`; `None` is `none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerLimitsConfig {
    /// Connections at a time. Default: only `max_connections`.
    pub connections: Option<usize>,
    /// Connections at a time from one client address. Default none.
    pub connections_per_client: Option<usize>,
    /// Bytes of a request body. Default none.
    pub request_body: Option<u64>,
}

/// `rate_limit` of a listener or a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitConfig {
    /// Requests of one client address in the long run, 1/h..=1000000/s.
    pub per_client: Rate,
    /// Requests that may come at once, 1..=1000000. Default: those of one second, at least 1.
    pub burst: u32,
}

/// `listeners.NAME.socket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// Connections the kernel queues for us. Default 4096.
    pub backlog: u32,
    /// TCP keepalive probes after this idle time. Default 60s.
    pub keepalive: Option<Duration>,
    /// TCP Fast Open, RFC 7413. Default false.
    pub fast_open: bool,
}

/// A redirect, of a listener or a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectConfig {
    /// `https` or `{to: https, port, status}`: same host and target, other scheme.
    Https {
        /// Left out of the location when 443.
        port: u16,
        /// 301, 302, 303, 307 or 308. Default 308.
        status: u16,
    },
    /// `{to: TARGET, status}`: an absolute URL or a path, sent as it is.
    To {
        /// The value of `Location`.
        location: String,
        /// 301, 302, 303, 307 or 308. Default 308.
        status: u16,
    },
}
