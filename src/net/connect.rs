//! Making a connection to a backend, within a deadline, with the failure named by its reason.
//!
//! Names are resolved elsewhere (on the control thread); here is only the list of addresses that came out.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpSocket, UnixStream},
    time::timeout_at,
};

use super::{limits, local_error, proxy_protocol, stream::Stream};
use crate::{
    base::{address::BackendAddress, clock},
    pool::{BackendState, ResolvedAddresses},
    reason::Reason,
};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct ConnectError {
    /// `ConnectionRefused`, `ConnectionTimeout`, `ConnectionTerminated`, `DnsError` or `Overload`.
    pub reason: Reason,
    /// What the system said.
    pub source: io::Error,
}

impl ConnectError {
    fn timeout() -> Self {
        Self {
            reason: Reason::ConnectionTimeout,
            source: io::Error::new(io::ErrorKind::TimedOut, "connection not accepted in time"),
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(source: io::Error) -> Self {
        Self {
            reason: reason_of(&source),
            source,
        }
    }
}

/// Refused and unreachable are the backend's side; a lack of ports, descriptors or memory is ours.
fn reason_of(error: &io::Error) -> Reason {
    match error.raw_os_error() {
        Some(libc::ETIMEDOUT) => Reason::ConnectionTimeout,
        Some(libc::EAGAIN) => Reason::Overload,
        _ if local_error::is_local(error) => Reason::Overload,
        _ => Reason::ConnectionRefused,
    }
}

/// The reason for an error on a connection that was made: `ConnectionTerminated`, or `Overload` for a lack of our own.
pub fn reason_of_broken(error: &io::Error) -> Reason {
    if local_error::is_local(error) {
        local_error::log(error);
        return Reason::Overload;
    }
    Reason::ConnectionTerminated
}

/// Counts an attempt to connect to the backend of `state` that failed for `reason`.
pub fn count_failed(state: &BackendState, reason: Reason) {
    let metrics = state.metrics.mine();
    match reason {
        Reason::Overload => metrics.connections_local_error.add(1),
        _ => metrics.connections_failed.add(1),
    }
}

/// Connects to a backend before `deadline`. A name stands for the addresses it was last resolved to: each is tried once,
/// beginning with the one that accepted last, and each gets an equal share of the time that is left.
pub async fn connect(backend: &BackendState, deadline: Instant) -> Result<Stream, ConnectError> {
    let connected = match &backend.address {
        BackendAddress::Ip(address) => connect_tcp(*address, deadline).await,
        BackendAddress::Unix(path) => connect_unix(path, deadline).await,
        BackendAddress::Name { .. } => connect_any(&backend.resolved.load_full(), deadline).await,
    };
    connected.inspect_err(log_local)
}

/// Connects to a backend as [`connect`] does, but at another port. Unix sockets have none.
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

fn log_local(error: &ConnectError) {
    if error.reason == Reason::Overload {
        local_error::log(&error.source);
    }
}

/// Sends the PROXY header that a new connection begins with, if there is one; see [`proxy_protocol::send_header`] for `more`.
/// A failure is the backend's, `ConnectionTerminated`, unless it is a lack of our own: `Overload`.
pub fn send_proxy_header(
    stream: Stream,
    header: Option<&[u8]>,
    more: bool,
) -> Result<Stream, ConnectError> {
    let sent = header.map_or(Ok(()), |header| {
        proxy_protocol::send_header(&stream, header, more)
    });
    match sent {
        Ok(()) => Ok(stream),
        Err(source) => Err(ConnectError {
            reason: reason_of_broken(&source),
            source,
        }),
    }
}

async fn connect_any(
    resolved: &ResolvedAddresses,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    let mut failure = ConnectError {
        reason: Reason::DnsError,
        source: io::Error::new(io::ErrorKind::NotFound, "name not resolved"),
    };
    let mut weight = 0;
    let mut left = resolved.addresses().len() as u32;
    for address in resolved.in_order() {
        let now = clock::now();
        let share = deadline.saturating_duration_since(now) / left.max(1);
        left = left.saturating_sub(1);
        match connect_tcp(address, now + share).await {
            Ok(stream) => {
                resolved.prefer(address);
                return Ok(stream);
            }
            Err(error) if weigh(&error, address) >= weight => {
                weight = weigh(&error, address);
                failure = error;
            }
            Err(_) => {}
        }
    }
    Err(failure)
}

/// Which of several failures is told: a lack of our own leaves it open whether an address would have accepted. But no
/// source address for IPv6 is no such lack where the name has addresses of IPv4 as well.
fn weigh(error: &ConnectError, address: SocketAddr) -> u8 {
    let lacks_address = error.source.raw_os_error() == Some(libc::EADDRNOTAVAIL);
    match error.reason {
        Reason::Overload if address.is_ipv6() && lacks_address => 0,
        Reason::Overload => 2,
        _ => 1,
    }
}

async fn connect_tcp(address: SocketAddr, deadline: Instant) -> Result<Stream, ConnectError> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    limits::check_reserve(&socket)?;
    socket.set_nodelay(true)?;
    match timeout_at(deadline.into(), socket.connect(address)).await {
        Ok(connected) => Ok(Stream::Tcp(connected?)),
        Err(_) => Err(ConnectError::timeout()),
    }
}

async fn connect_unix(path: &Path, deadline: Instant) -> Result<Stream, ConnectError> {
    /// A full queue of a unix listener is EAGAIN at once and no event says when it has room.
    const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(10);
    loop {
        match timeout_at(deadline.into(), UnixStream::connect(path)).await {
            Ok(Ok(stream)) => {
                limits::check_reserve(&stream)?;
                return Ok(Stream::Unix(stream));
            }
            Ok(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            Ok(Err(_)) if clock::now() + FULL_QUEUE_PAUSE < deadline => {
                tokio::time::sleep(FULL_QUEUE_PAUSE).await;
            }
            Ok(Err(_)) | Err(_) => return Err(ConnectError::timeout()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::TcpListener;

    use super::*;
    use crate::pool::fixture::pool_of;

    #[tokio::test]
    async fn the_address_that_accepted_last_is_tried_first() {
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
        assert_eq!(unresolved.reason, Reason::DnsError);
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
    fn a_lack_of_our_own_is_told_before_what_other_addresses_say() {
        let error = |number| ConnectError::from(io::Error::from_raw_os_error(number));
        let v4 = SocketAddr::from(([127, 0, 0, 1], 80));
        let v6 = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 80));
        let refused = weigh(&error(libc::ECONNREFUSED), v4);
        assert!(weigh(&error(libc::EMFILE), v6) > refused);
        assert!(
            weigh(&error(libc::EADDRNOTAVAIL), v4) > refused,
            "no port left"
        );
        assert!(
            weigh(&error(libc::EADDRNOTAVAIL), v6) < refused,
            "no address of IPv6"
        );
    }
}
