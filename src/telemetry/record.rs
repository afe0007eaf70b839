//! The record of one exchange or session: filled while it runs, written once when it ends.
//!
//! The data plane uses the access log only through this record. Texts of the client stay in the
//! request head, and the log borrows them at the end. So an exchange that is not logged copies
//! nothing, and most exchanges are not logged. Read next: `access_log.rs`.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::reason::Reason;

/// Fields of one exchange or session for the access log.
#[derive(Debug, Clone)]
pub struct AccessRecord {
    /// Start: the first byte of the request, or the accept of a session.
    pub began: Instant,
    /// Name of the listener.
    pub listener: Arc<str>,
    /// Address of the client; `None` on a unix socket.
    pub client: Option<IpAddr>,
    /// TLS version of the client's connection; empty without TLS.
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
    /// Name of the backend of the last attempt.
    pub backend: Option<Arc<str>>,
    /// Number of attempts.
    pub attempts: u32,
    /// True if the last attempt used a keepalive connection.
    pub reused: bool,
    /// Time from the first byte to the end of the request head.
    pub request: Option<Duration>,
    /// Time in the queue of the pool, over all attempts; `None` if it never waited.
    pub queue: Option<Duration>,
    /// Duration of the last connect.
    pub connect: Option<Duration>,
    /// Time from the sent request head to the first byte of the response.
    pub first_byte: Option<Duration>,
    /// Reason of a local reply or a cut.
    pub reason: Option<Reason>,
}

impl AccessRecord {
    /// Creates a record that has only a start, a listener and a client.
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
            queue: None,
            connect: None,
            first_byte: None,
            reason: None,
        }
    }
}

/// Texts of an HTTP exchange, borrowed by the access log.
///
/// These are the client's own bytes. The writer escapes them.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestText<'a> {
    /// `HTTP/2`, `HTTP/1.1` or `HTTP/1.0`; empty for a TCP session.
    pub protocol: &'static str,
    /// Method as sent.
    pub method: &'a [u8],
    /// Host as sent; for a session with `sni` the server name.
    pub host: &'a [u8],
    /// Request target as sent. The writer omits the query.
    pub path: &'a [u8],
    /// Request id that the backend and the client got.
    pub request_id: &'a [u8],
    /// `traceparent`, W3C Trace Context.
    pub traceparent: &'a [u8],
    /// `User-Agent`.
    pub user_agent: &'a [u8],
    /// `Referer`.
    pub referer: &'a [u8],
}
