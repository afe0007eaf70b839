//! The record of one exchange or session: filled on the way, emitted once, on finish or drop.
//!
//! No other line of the data plane touches the access log. Texts that come from the client stay in the request head and
//! are lent to the writer at the end, so that an exchange which is not logged copies nothing.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::reason::Reason;

/// Facts of one exchange or session.
#[derive(Debug, Clone)]
pub struct AccessRecord {
    /// When it began: first byte of the request, or the accept of a session.
    pub began: Instant,
    /// Name of the listener.
    pub listener: Arc<str>,
    /// Address of the client; `None` on a unix socket.
    pub client: Option<IpAddr>,
    /// Version of TLS that the client speaks; empty without.
    pub tls: &'static str,
    /// Status sent to the client; 0 when none was sent.
    pub status: u16,
    /// Bytes of the request body, or from the client of a session.
    pub bytes_in: u64,
    /// Bytes of the response body, or to the client of a session.
    pub bytes_out: u64,
    /// Name of the route.
    pub route: Option<Arc<str>>,
    /// Name of the pool.
    pub pool: Option<Arc<str>>,
    /// Name of the last backend tried.
    pub backend: Option<Arc<str>>,
    /// Tries on backends.
    pub attempts: u32,
    /// The last try used a keepalive connection.
    pub reused: bool,
    /// Time to the whole request head.
    pub request: Option<Duration>,
    /// Time of the last connect.
    pub connect: Option<Duration>,
    /// From sending the request to the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// Why balancer answered itself or cut.
    pub reason: Option<Reason>,
}

impl AccessRecord {
    /// A record of which nothing is known yet but where it began.
    pub fn begin(began: Instant, listener: &Arc<str>, client: Option<IpAddr>) -> Self {
        Self {
            began,
            listener: Arc::clone(listener),
            client,
            tls: "",
            status: 0,
            bytes_in: 0,
            bytes_out: 0,
            route: None,
            pool: None,
            backend: None,
            attempts: 0,
            reused: false,
            request: None,
            connect: None,
            first_byte: None,
            reason: None,
        }
    }
}

/// Texts of an HTTP exchange, lent to the access log. Bytes as they came: the writer escapes them.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestText<'a> {
    /// `HTTP/1.1` or `HTTP/1.0`; empty for a TCP session.
    pub protocol: &'static str,
    /// As sent.
    pub method: &'a [u8],
    /// As sent.
    pub host: &'a [u8],
    /// Path without the query.
    pub path: &'a [u8],
    /// The id sent to the backend and the client.
    pub request_id: &'a [u8],
    /// `traceparent`, W3C Trace Context.
    pub traceparent: &'a [u8],
    /// `User-Agent`.
    pub user_agent: &'a [u8],
    /// `Referer`.
    pub referer: &'a [u8],
}
