//! New connections to a backend: TCP or unix socket, PROXY header, TLS, all before one deadline.
//!
//! A failure is returned by its cause, [`ConnectError`]; its meaning for an exchange or a check is
//! decided above. Names are resolved on the control thread: here is only the list of addresses.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use rustls::pki_types::ServerName;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::time::timeout_at;

use super::{
    driver::{DrivenSocket, SocketWait},
    limits, local_error, proxy_protocol,
    stream::Stream,
    tls::{self, HandshakeError},
};
use crate::{
    base::{address::BackendAddress, clock},
    config::model::PoolTlsConfig,
    pool::{BackendState, ResolvedAddresses},
    telemetry::handshakes::HandshakeFailure,
};

/// Pause before the next attempt at a unix listener whose queue is full.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// Detail of a failure where the pool speaks HTTP/2 and ALPN has not chosen it: the backend ignored
/// the extension, or sent the alert of RFC 7301.
pub const H2_NOT_NEGOTIATED: &str = "the backend did not agree on HTTP/2 (ALPN)";

/// Cause of a connection that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The backend's name has no address.
    #[error("name not resolved")]
    Unresolved,
    /// The backend did not accept before the deadline.
    #[error("connection not accepted in time")]
    Timeout,
    /// The system could not connect: refused, unreachable, or a local resource is exhausted.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The PROXY header could not be sent on the new connection.
    #[error("{0}")]
    ProxyHeader(#[source] io::Error),
    /// The TLS handshake failed.
    #[error("{0}")]
    Tls(#[from] HandshakeError),
}

impl ConnectError {
    /// True if this machine or process lacks descriptors, ports or memory: no fault of the backend.
    pub fn is_local(&self) -> bool {
        match self {
            // EAGAIN of connect(2) on TCP: the kernel's routing cache is full.
            Self::Io(error) => {
                error.raw_os_error() == Some(libc::EAGAIN) || local_error::is_local(error)
            }
            Self::ProxyHeader(error) => local_error::is_local(error),
            Self::Tls(error) => error.is_local,
            Self::Unresolved | Self::Timeout => false,
        }
    }

    /// True if time ran out: our deadline, or the kernel's limit of SYN retransmissions.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout => true,
            Self::Io(error) => error.raw_os_error() == Some(libc::ETIMEDOUT),
            Self::Tls(error) => error.failure == HandshakeFailure::Timeout,
            Self::Unresolved | Self::ProxyHeader(_) => false,
        }
    }
}

/// Opens a connection that is ready for what the pool speaks: PROXY header sent, TLS established.
///
/// `sends_first`: bytes of ours follow at once, so the header waits for them; see
/// [`send_proxy_header`].
pub async fn connect_backend(
    state: &BackendState,
    header: Option<&[u8]>,
    tls: Option<&PoolTlsConfig>,
    sends_first: bool,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    let stream = connect(state, deadline).await?;
    let stream = send_proxy_header(stream, header, sends_first || tls.is_some())?;
    let secured = secure(stream, tls, &state.address, deadline).await;
    secured.inspect_err(|error| warn_refused(state, error))
}

/// Connects to a backend before `deadline`. Of the addresses of a name each is attempted once,
/// beginning with the one that accepted last, and each gets an equal share of the remaining time.
pub async fn connect(backend: &BackendState, deadline: Instant) -> Result<Stream, ConnectError> {
    let connected = match &backend.address {
        BackendAddress::Ip(address) | BackendAddress::Resolved { address, .. } => {
            connect_tcp(*address, deadline).await
        }
        BackendAddress::Unix(path) => connect_unix(path, deadline).await,
        BackendAddress::Name { .. } | BackendAddress::Service(_) => {
            connect_any(&backend.resolved.load_full(), deadline).await
        }
    };
    connected.inspect_err(log_local)
}

/// Connects to a backend as [`connect`] does, but to another port. Unix sockets have none.
pub async fn connect_port(
    backend: &BackendState,
    port: u16,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    if let BackendAddress::Unix(path) = &backend.address {
        return connect_unix(path, deadline).await.inspect_err(log_local);
    }
    let elsewhere = backend.resolved.load().at_port(port);
    let connected = connect_any(&elsewhere, deadline).await;
    connected.inspect_err(log_local)
}

/// Logs that a local resource is exhausted; [`local_error::log`] limits the rate.
fn log_local(error: &ConnectError) {
    if let ConnectError::Io(source) | ConnectError::ProxyHeader(source) = error
        && error.is_local()
    {
        local_error::log(source);
    }
}

/// Sends the PROXY header that a new connection begins with, if there is one; for `more` see
/// [`proxy_protocol::send_header`].
pub fn send_proxy_header(
    stream: Stream,
    header: Option<&[u8]>,
    more: bool,
) -> Result<Stream, ConnectError> {
    if let Some(header) = header {
        proxy_protocol::send_header(&stream, header, more)
            .map_err(ConnectError::ProxyHeader)
            .inspect_err(log_local)?;
    }
    Ok(stream)
}

/// Performs the TLS handshake with the backend at `address` before `deadline`, if its pool has TLS.
pub async fn secure(
    stream: Stream,
    tls: Option<&PoolTlsConfig>,
    address: &BackendAddress,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    let Some(tls) = tls else { return Ok(stream) };
    // Only a pool that verifies nothing can have a backend without a name.
    let name = tls.name_for(address).unwrap_or_else(placeholder_name);
    let handshake = tls::connect(stream, &tls.config, name);
    match timeout_at(deadline.into(), handshake).await {
        Ok(Ok(connected)) => Ok(connected.into()),
        Ok(Err(error)) if error.failure == HandshakeFailure::Alpn => Err(ConnectError::Tls(
            HandshakeError::new(HandshakeFailure::Alpn, H2_NOT_NEGOTIATED),
        )),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(ConnectError::Tls(HandshakeError::new(
            HandshakeFailure::Timeout,
            "TLS handshake not over in time",
        ))),
    }
}

/// Name for rustls where none is verified. It is an address, which is never sent as SNI.
fn placeholder_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST).into())
}

/// Logs that the certificate of a backend was refused, if that is the `error`; limited in rate.
pub fn warn_refused(state: &BackendState, error: &ConnectError) {
    let ConnectError::Tls(error) = error else {
        return;
    };
    if error.failure != HandshakeFailure::CertificateInvalid {
        return;
    }
    if let Some(suppressed) = state.certificate_log.admit(clock::now()) {
        tracing::warn!(target: "tls", pool = %state.pool, backend = %state.address,
            detail = %error, suppressed, "certificate of the backend refused");
    }
}

async fn connect_any(
    resolved: &ResolvedAddresses,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    let mut failure = ConnectError::Unresolved;
    let mut rank = 0;
    let mut left = resolved.addresses().len() as u32;
    for address in resolved.in_order() {
        let now = clock::now();
        // One address that drops packets must not take the time of all others.
        let share = deadline.saturating_duration_since(now) / left.max(1);
        left = left.saturating_sub(1);
        match connect_tcp(address, now + share).await {
            Ok(stream) => {
                resolved.prefer(address);
                return Ok(stream);
            }
            Err(error) if failure_rank(&error, address) >= rank => {
                rank = failure_rank(&error, address);
                failure = error;
            }
            Err(_) => {}
        }
    }
    Err(failure)
}

/// Rank of a failure among those of all addresses of a name; the highest is returned.
///
/// A local shortage leaves open whether the address would have accepted, so it outranks a
/// refusal. A missing source address for IPv6 is no shortage: the machine has no IPv6 at all.
fn failure_rank(error: &ConnectError, address: SocketAddr) -> u8 {
    let lacks_source = matches!(error, ConnectError::Io(error)
        if error.raw_os_error() == Some(libc::EADDRNOTAVAIL));
    match error.is_local() {
        true if address.is_ipv6() && lacks_source => 0,
        true => 2,
        false => 1,
    }
}

async fn connect_tcp(address: SocketAddr, deadline: Instant) -> Result<Stream, ConnectError> {
    let socket = new_socket(Domain::for_address(address))?;
    // Messages are written whole, so Nagle's algorithm would only delay their last segment.
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error.into()),
        _ => {}
    }
    let socket = DrivenSocket::connecting(socket.into())?;
    let connected = poll_fn(|cx| socket.poll_ready(cx, SocketWait::Write));
    match timeout_at(deadline.into(), connected).await {
        Ok(watched) => watched?,
        Err(_) => return Err(ConnectError::Timeout),
    }
    match SockRef::from(&socket).take_error()? {
        Some(error) => Err(error.into()),
        None => Ok(Stream::Tcp(socket)),
    }
}

async fn connect_unix(path: &Path, deadline: Instant) -> Result<Stream, ConnectError> {
    let address = SockAddr::unix(path)?;
    loop {
        let socket = new_socket(Domain::UNIX)?;
        match socket.connect(&address) {
            Ok(()) => {
                return Ok(Stream::Unix(DrivenSocket::connected(socket.into())?));
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            // A full queue of a unix listener is EAGAIN at once, and no event announces a free
            // place (connect(2)): all that is left is to poll.
            Err(_) if clock::now() + FULL_QUEUE_PAUSE < deadline => {
                tokio::time::sleep(FULL_QUEUE_PAUSE).await;
            }
            Err(_) => return Err(ConnectError::Timeout),
        }
    }
}

fn new_socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    limits::check_reserve(&socket)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::TcpListener;

    use super::*;
    use crate::pool::fixture::pool_of;

    #[tokio::test]
    async fn the_address_that_accepted_last_is_attempted_first() {
        // The same port; the first address refuses.
        let alive = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let second = alive.local_addr().unwrap();
        let first = SocketAddr::from(([127, 0, 0, 1], second.port()));
        let name = BackendAddress::Name {
            host: "app.test".into(),
            port: second.port(),
        };
        let state = Arc::clone(&pool_of(&[name], None).backends[0].state);
        let deadline = clock::now() + Duration::from_secs(10);
        let unresolved = connect(&state, deadline).await.unwrap_err();
        assert!(matches!(unresolved, ConnectError::Unresolved));
        let answer = ResolvedAddresses::new(vec![first, second], None);
        state.resolved.store(Arc::new(answer));
        let order = || state.resolved.load().in_order().collect::<Vec<_>>();
        assert_eq!(order(), [first, second]);
        for _ in 0..3 {
            let stream = connect(&state, deadline).await.unwrap();
            assert_eq!(stream.peer_addr(), Some(second));
            assert_eq!(order(), [second, first]);
        }
    }

    #[test]
    fn a_handshake_failure_is_the_source_of_the_connect_error() {
        use std::error::Error as _;

        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        let error = ConnectError::from(HandshakeError::from(reset));
        let handshake = error.source().unwrap();
        assert_eq!(handshake.to_string(), error.to_string());
        let reset = handshake
            .source()
            .and_then(|it| it.downcast_ref::<io::Error>());
        assert_eq!(reset.unwrap().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_local_shortage_outranks_failures_of_other_addresses() {
        let error = |number| ConnectError::from(io::Error::from_raw_os_error(number));
        let v4 = SocketAddr::from(([127, 0, 0, 1], 80));
        let v6 = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 80));
        let refused = failure_rank(&error(libc::ECONNREFUSED), v4);
        assert!(failure_rank(&error(libc::EMFILE), v6) > refused);
        assert!(
            failure_rank(&error(libc::EADDRNOTAVAIL), v4) > refused,
            "no port left"
        );
        assert!(
            failure_rank(&error(libc::EADDRNOTAVAIL), v6) < refused,
            "no address of IPv6"
        );
    }
}
