//! Making a connection to a backend, within a deadline, with the failure named by its reason.
//!
//! Names are resolved elsewhere (on the control thread); here is only the list of addresses that came out.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpSocket, UnixStream},
    time::timeout_at,
};

use super::{proxy_protocol, stream::Stream};
use crate::{
    base::{address::BackendAddress, clock},
    pool::BackendState,
    reason::Reason,
};

thread_local! {
    /// Where the next connect to a backend with several addresses begins.
    static TURN: Cell<usize> = const { Cell::new(0) };
}

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
        Some(
            libc::EADDRNOTAVAIL
            | libc::EMFILE
            | libc::ENFILE
            | libc::ENOBUFS
            | libc::ENOMEM
            | libc::EAGAIN,
        ) => Reason::Overload,
        _ => Reason::ConnectionRefused,
    }
}

/// Connects to a backend before `deadline`. A name stands for the addresses it was last resolved to: each is tried once,
/// beginning with another one each time, and each gets an equal share of the time that is left.
pub async fn connect(backend: &BackendState, deadline: Instant) -> Result<Stream, ConnectError> {
    match &backend.address {
        BackendAddress::Ip(address) => connect_tcp(*address, deadline).await,
        BackendAddress::Unix(path) => connect_unix(path, deadline).await,
        BackendAddress::Name { .. } => connect_any(&backend.resolved.load_full(), deadline).await,
    }
}

/// Connects to a backend as [`connect`] does, but at another port. Unix sockets have none.
pub async fn connect_port(
    backend: &BackendState,
    port: u16,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    if let BackendAddress::Unix(path) = &backend.address {
        return connect_unix(path, deadline).await;
    }
    let mut addresses = backend.resolved.load().to_vec();
    for address in &mut addresses {
        address.set_port(port);
    }
    connect_any(&addresses, deadline).await
}

/// Sends the PROXY header that a new connection begins with, if there is one; see [`proxy_protocol::send`] for `more`.
/// A failure is the backend's: `ConnectionTerminated`.
pub fn introduce(
    stream: Stream,
    header: Option<&[u8]>,
    more: bool,
) -> Result<Stream, ConnectError> {
    let sent = header.map_or(Ok(()), |header| proxy_protocol::send(&stream, header, more));
    match sent {
        Ok(()) => Ok(stream),
        Err(source) => Err(ConnectError {
            reason: Reason::ConnectionTerminated,
            source,
        }),
    }
}

async fn connect_any(resolved: &[SocketAddr], deadline: Instant) -> Result<Stream, ConnectError> {
    let turn = TURN.get();
    TURN.set(turn.wrapping_add(1));
    let mut failure = ConnectError {
        reason: Reason::DnsError,
        source: io::Error::new(io::ErrorKind::NotFound, "name not resolved"),
    };
    for step in 0..resolved.len() {
        let Some(address) = resolved.get(turn.wrapping_add(step) % resolved.len()) else {
            continue;
        };
        let now = clock::now();
        let share = deadline.saturating_duration_since(now) / (resolved.len() - step) as u32;
        match connect_tcp(*address, now + share).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn connect_tcp(address: SocketAddr, deadline: Instant) -> Result<Stream, ConnectError> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
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
            Ok(Ok(stream)) => return Ok(Stream::Unix(stream)),
            Ok(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            Ok(Err(_)) if clock::now() + FULL_QUEUE_PAUSE < deadline => {
                tokio::time::sleep(FULL_QUEUE_PAUSE).await;
            }
            Ok(Err(_)) | Err(_) => return Err(ConnectError::timeout()),
        }
    }
}
