//! Listening sockets: one for each worker and bind, bound before a reload changes anything, so that
//! it can still be refused.
//!
//! On TCP the workers' sockets are one `SO_REUSEPORT` group, over which the kernel spreads
//! connections; a unix socket is one queue that all workers share. A reload must not close a socket
//! of an address that stays: connections in its queue would be reset.

use std::{
    fmt,
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
};

use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::{
    driver::{DrivenSocket, SocketWait},
    stream::Stream,
};
use crate::{base::address::BindAddress, config::model::SocketConfig};

/// Most connections accepted from a queue before it is closed: a flood must not keep it open for
/// ever.
const MAX_QUEUED_ACCEPTS: usize = 65_535;

/// Most unsent bytes that the kernel takes for a client (`TCP_NOTSENT_LOWAT`), beyond those in
/// flight.
///
/// Without this limit a thousand clients that read slowly, with 2.5 MiB each, use up the memory
/// that the kernel has for TCP, and all other connections starve. Bytes in flight to a fast client
/// are not limited.
#[cfg(target_os = "linux")]
const MAX_UNSENT_BYTES: u32 = 128 << 10;

/// Seconds for which the kernel keeps a connection to itself until data arrives
/// (`TCP_DEFER_ACCEPT`). It is accepted with its first request, which saves a wait; a client that
/// says nothing is accepted after this time, and times out like any other.
const DEFER_ACCEPT_SECONDS: u32 = 1;

/// Options of a listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenOptions {
    /// Those of the configuration.
    pub config: SocketConfig,
    /// Connections need not be accepted before data has arrived.
    pub clients_speak_first: bool,
}

/// One listening socket, not yet part of a runtime.
#[derive(Debug)]
pub enum ListeningSocket {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

/// One listening socket of the calling thread's runtime.
#[derive(Debug)]
pub enum Acceptor {
    /// TCP over IPv4 or IPv6.
    Tcp(DrivenSocket),
    /// A unix socket.
    Unix(DrivenSocket),
}

/// Failure to listen on an address. The text names the address and what to do.
#[derive(Debug)]
pub struct BindError {
    /// Address as written in the configuration.
    pub address: BindAddress,
    /// Error of the system.
    pub source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, source } = self;
        write!(f, "cannot listen on {address}: ")?;
        match (source.kind(), address) {
            (io::ErrorKind::AddrInUse, BindAddress::Ip(ip)) => {
                write!(f, "port {} is taken by another process", ip.port())
            }
            (io::ErrorKind::AddrInUse, BindAddress::Unix(_)) => {
                f.write_str("another process listens there")
            }
            (io::ErrorKind::AddrNotAvailable, _) => {
                f.write_str("this machine has no such address")
            }
            (io::ErrorKind::PermissionDenied, BindAddress::Ip(ip)) if ip.port() < 1024 => f
                .write_str(
                    "not allowed; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE",
                ),
            _ => write!(f, "{source}"),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Binds `address` once for each of `workers`. TCP sockets of one bind share their port, also when
/// the configured port is 0. A port that another process listens on is an error, even if
/// `SO_REUSEPORT` would let us join it: the kernel would give it a part of our connections.
pub fn bind(
    address: &BindAddress,
    options: &ListenOptions,
    workers: usize,
) -> Result<Vec<ListeningSocket>, BindError> {
    let bound = match address {
        BindAddress::Ip(ip) => check_free(*ip).and_then(|ip| bind_tcp(ip, options, workers)),
        BindAddress::Unix(path) => bind_unix(path, options, workers),
    };
    bound.map_err(|source| bind_error(address, source))
}

/// Fails if [`bind`] would find the address taken by another process. Unix sockets cannot be
/// checked without binding them.
pub fn probe(address: &BindAddress) -> Result<(), BindError> {
    match address {
        BindAddress::Ip(ip) => check_free(*ip).map_err(|source| bind_error(address, source))?,
        BindAddress::Unix(_) => return Ok(()),
    };
    Ok(())
}

/// Binds as [`bind`] does, to a port on which we listen already: on an address that includes this
/// one, or is part of it. Without the check for other processes, which our own socket would fail.
pub fn bind_shared_port(
    address: &BindAddress,
    options: &ListenOptions,
    workers: usize,
) -> Result<Vec<ListeningSocket>, BindError> {
    match address {
        BindAddress::Ip(ip) => {
            let bound = with_ipv4_fallback(*ip, |ip| bind_tcp(ip, options, workers));
            bound.map_err(|source| bind_error(address, source))
        }
        BindAddress::Unix(_) => bind(address, options, workers),
    }
}

fn bind_error(address: &BindAddress, source: io::Error) -> BindError {
    BindError {
        address: address.clone(),
        source,
    }
}

fn bind_tcp(
    address: SocketAddr,
    options: &ListenOptions,
    workers: usize,
) -> io::Result<Vec<ListeningSocket>> {
    (0..workers)
        .map(|_| {
            let socket = new_tcp(address)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
            let listening = ListeningSocket::Tcp(socket.into());
            set_options(&listening, options)?;
            Ok(listening)
        })
        .collect()
}

/// Binds the address without `SO_REUSEPORT`, which fails if there is a listener on it, and closes
/// it again. Returns the address with its real port, and the IPv4 wildcard for `[::]` on a machine
/// without IPv6.
fn check_free(wanted: SocketAddr) -> io::Result<SocketAddr> {
    with_ipv4_fallback(wanted, |address| {
        let socket = new_tcp(address)?;
        socket.bind(&address.into())?;
        let bound = socket.local_addr()?.as_socket();
        Ok(bound.unwrap_or(address))
    })
}

/// Runs `attempt`, and on a machine without IPv6 again with the IPv4 wildcard in place of `[::]`.
fn with_ipv4_fallback<T>(
    wanted: SocketAddr,
    attempt: impl Fn(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let without_ipv6 = |error: &io::Error| {
        matches!(
            error.raw_os_error(),
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
        )
    };
    match attempt(wanted) {
        Err(error) if wanted.ip() == IpAddr::from([0_u8; 16]) && without_ipv6(&error) => {
            attempt(SocketAddr::from((Ipv4Addr::UNSPECIFIED, wanted.port())))
        }
        other => other,
    }
}

fn new_tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    // TIME_WAIT connections of an earlier process must not keep us from the port.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}

/// Binds a unix socket once and copies its descriptor. Its file is open to every user (0666), as a
/// TCP port is: access is limited by the directory. A file without a listener, left by a crash, is
/// replaced.
fn bind_unix(
    path: &Path,
    options: &ListenOptions,
    workers: usize,
) -> io::Result<Vec<ListeningSocket>> {
    remove_stale(path)?;
    let first = UnixListener::bind(path)?;
    first.set_nonblocking(true)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    let copies = (1..workers)
        .map(|_| first.try_clone().map(ListeningSocket::Unix))
        .collect::<io::Result<Vec<_>>>()?;
    let first = ListeningSocket::Unix(first);
    set_options(&first, options)?;
    Ok(std::iter::once(first).chain(copies).collect())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the path exists and is not a socket",
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        // Accepted, or its queue is full: another process listens.
        Ok(_) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// Applies `options` and starts listening with their backlog, or changes it; connections in the
/// queue stay.
///
/// Keepalive, no delay and the limit of unsent bytes are for accepted connections. They are set
/// here once, as those inherit them: a system call less for each connection.
pub fn set_options(listening: &ListeningSocket, options: &ListenOptions) -> io::Result<()> {
    let descriptor = listening.fd();
    let socket = SockRef::from(&descriptor);
    let config = &options.config;
    let backlog = i32::try_from(config.backlog).unwrap_or(i32::MAX);
    if let ListeningSocket::Tcp(_) = listening {
        socket.set_tcp_nodelay(true)?;
        socket.set_keepalive(config.keepalive.is_some())?;
        if let Some(idle) = config.keepalive {
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
        }
        #[cfg(target_os = "linux")]
        {
            let queue = if config.fast_open { config.backlog } else { 0 };
            super::sys::set_fast_open(listening.fd(), queue)?;
            let seconds = if options.clients_speak_first {
                DEFER_ACCEPT_SECONDS
            } else {
                0
            };
            super::sys::set_defer_accept(listening.fd(), seconds)?;
            socket.set_tcp_notsent_lowat(MAX_UNSENT_BYTES)?;
        }
    }
    socket.listen(backlog)
}

impl ListeningSocket {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }

    /// Address and port that are bound; `None` on unix sockets.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Makes a second descriptor of the same socket.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(Self::Tcp),
            Self::Unix(listener) => listener.try_clone().map(Self::Unix),
        }
    }
}

impl Acceptor {
    /// Registers the socket with the runtime of the calling thread.
    pub fn new(listening: ListeningSocket) -> io::Result<Self> {
        match listening {
            ListeningSocket::Tcp(listener) => DrivenSocket::shared(listener.into()).map(Self::Tcp),
            ListeningSocket::Unix(listener) => {
                DrivenSocket::shared(listener.into()).map(Self::Unix)
            }
        }
    }

    /// Accepts all connections in the queue without waiting, also those that the driver has not
    /// seen yet, and closes the socket. Without that they would be reset.
    pub fn drain_queue(self) -> io::Result<Vec<(Stream, Option<IpAddr>)>> {
        Ok(accept_queued(|| {
            self.socket().assume_ready(SocketWait::Read);
            self.try_accept()
        })
        .collect())
    }

    fn socket(&self) -> &DrivenSocket {
        let (Self::Tcp(socket) | Self::Unix(socket)) = self;
        socket
    }

    /// Accepts the next connection, with the address of its peer: an IPv4 peer of an IPv6 socket as
    /// IPv4, a unix peer as `None`.
    pub async fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        loop {
            poll_fn(|cx| self.socket().poll_ready(cx, SocketWait::Read)).await?;
            match self.try_accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                accepted => return accepted,
            }
        }
    }

    fn try_accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accepted = |listener: BorrowedFd<'_>| Ok(acceptfrom_with(listener, flags)?);
        let (descriptor, peer) = self.socket().try_io(SocketWait::Read, accepted)?;
        let socket = DrivenSocket::connected(descriptor)?;
        // Most clients have spoken by now: the first event would be one for nothing.
        socket.assume_ready(SocketWait::Read);
        match self {
            Self::Tcp(_) => {
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                let address = peer.map(|peer| peer.ip().to_canonical());
                Ok((Stream::Tcp(socket), address))
            }
            Self::Unix(_) => Ok((Stream::Unix(socket), None)),
        }
    }
}

/// Calls `accept` until the queue is empty. A connection that was aborted in the queue does not end
/// it.
fn accept_queued<T>(accept: impl Fn() -> io::Result<T>) -> impl Iterator<Item = T> {
    std::iter::repeat_with(accept)
        .take(MAX_QUEUED_ACCEPTS)
        .take_while(|accepted| {
            let kind = accepted.as_ref().err().map(io::Error::kind);
            matches!(
                kind,
                None | Some(io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
            )
        })
        .flatten()
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn options() -> ListenOptions {
        ListenOptions {
            config: SocketConfig {
                backlog: 64,
                keepalive: Some(std::time::Duration::from_mins(1)),
                fast_open: true,
            },
            clients_speak_first: false,
        }
    }

    fn unused_port(ip: &str) -> BindAddress {
        format!("{ip}:0").parse().unwrap()
    }

    #[test]
    fn all_workers_share_the_port_that_was_free() {
        let sockets = bind(&unused_port("127.0.0.1"), &options(), 3).unwrap();
        let ports: Vec<_> = sockets
            .iter()
            .map(|socket| socket.local_addr().unwrap().port())
            .collect();
        assert_eq!(ports.len(), 3);
        assert!(ports[0] != 0 && ports.iter().all(|port| *port == ports[0]));
    }

    #[test]
    fn a_taken_port_is_an_error_that_names_it() {
        // Taken with SO_REUSEPORT: the kernel would let us share it.
        let taken = bind(&unused_port("127.0.0.1"), &options(), 1).unwrap();
        let address = BindAddress::Ip(taken[0].local_addr().unwrap());
        let error = bind(&address, &options(), 2).unwrap_err();
        let BindAddress::Ip(ip) = &address else {
            unreachable!()
        };
        assert_eq!(
            error.to_string(),
            format!(
                "cannot listen on {ip}: port {} is taken by another process",
                ip.port()
            )
        );
    }

    #[test]
    fn an_address_of_another_machine_is_an_error() {
        let error = bind(&unused_port("192.0.2.1"), &options(), 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot listen on 192.0.2.1:0: this machine has no such address"
        );
    }

    #[tokio::test]
    async fn the_ipv6_wildcard_takes_ipv4_clients_and_they_look_like_ipv4() {
        let mut sockets = bind(&unused_port("[::]"), &options(), 1).unwrap();
        let port = sockets[0].local_addr().unwrap().port();
        let acceptor = Acceptor::new(sockets.remove(0)).unwrap();
        let connect = tokio::net::TcpStream::connect(("127.0.0.1", port));
        let (accepted, _client) = tokio::join!(acceptor.accept(), connect);
        let (stream, peer) = accepted.unwrap();
        assert_eq!(peer, Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(stream.peer_ip(), peer);
    }

    #[tokio::test]
    async fn accepted_connections_inherit_no_delay_and_keepalive() {
        let mut sockets = bind(&unused_port("127.0.0.1"), &options(), 1).unwrap();
        let address = sockets[0].local_addr().unwrap();
        let acceptor = Acceptor::new(sockets.remove(0)).unwrap();
        let connect = tokio::net::TcpStream::connect(address);
        let (accepted, _client) = tokio::join!(acceptor.accept(), connect);
        let Stream::Tcp(stream) = accepted.unwrap().0 else {
            unreachable!()
        };
        assert!(SockRef::from(&stream).tcp_nodelay().unwrap());
        assert!(SockRef::from(&stream).keepalive().unwrap());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_kernel_buffers_little_for_a_client_that_does_not_read() {
        let mut sockets = bind(&unused_port("127.0.0.1"), &options(), 1).unwrap();
        let address = sockets[0].local_addr().unwrap();
        let acceptor = Acceptor::new(sockets.remove(0)).unwrap();
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.set_recv_buffer_size(16 << 10).unwrap();
        client.connect(&address.into()).unwrap();
        let (stream, _) = acceptor.accept().await.unwrap();
        poll_fn(|cx| stream.poll_write_ready(cx)).await.unwrap();
        let (block, mut taken) = (vec![0; 64 << 10], 0);
        while let Ok(count) = stream.try_write(&block) {
            taken += count;
        }
        assert!((64 << 10..512 << 10).contains(&taken), "{taken} bytes");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_client_that_speaks_first_is_accepted_with_what_it_says() {
        use std::io::Write as _;

        for clients_speak_first in [false, true] {
            let options = ListenOptions {
                clients_speak_first,
                ..options()
            };
            let mut sockets = bind(&unused_port("127.0.0.1"), &options, 1).unwrap();
            let address = sockets[0].local_addr().unwrap();
            let acceptor = Acceptor::new(sockets.remove(0)).unwrap();
            acceptor.socket().assume_ready(SocketWait::Read);
            let mut client = std::net::TcpStream::connect(address).unwrap();
            let at_once = acceptor.try_accept().is_ok();
            assert_eq!(at_once, !clients_speak_first);
            if clients_speak_first {
                client.write_all(b"GET").unwrap();
                let (stream, _) = acceptor.accept().await.unwrap();
                assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 3);
            }
        }
    }

    #[tokio::test]
    async fn queued_connections_are_accepted_though_the_driver_has_not_seen_them() {
        let mut sockets = bind(&unused_port("127.0.0.1"), &options(), 1).unwrap();
        let address = sockets[0].local_addr().unwrap();
        let acceptor = Acceptor::new(sockets.remove(0)).unwrap();
        let clients: Vec<_> = (0..3)
            .map(|_| std::net::TcpStream::connect(address).unwrap())
            .collect();
        // The driver has not run since: only the system knows of them.
        let taken = acceptor.drain_queue().unwrap();
        assert_eq!(taken.len(), clients.len());
        let refused = std::net::TcpStream::connect(address).unwrap_err().kind();
        assert_eq!(refused, io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_unix_socket_is_shared_replaced_when_stale_and_kept_when_in_use() {
        let folder = std::env::temp_dir().join(format!("balancer-listen-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.sock");
        let address = BindAddress::Unix(path.clone());
        let sockets = bind(&address, &options(), 2).unwrap();
        assert_eq!(sockets.len(), 2);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        let taken = bind(&address, &options(), 1).unwrap_err().to_string();
        assert!(taken.ends_with("another process listens there"), "{taken}");
        drop(sockets);
        assert!(bind(&address, &options(), 1).is_ok());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        let file = bind(&address, &options(), 1).unwrap_err().to_string();
        assert!(
            file.ends_with("the path exists and is not a socket"),
            "{file}"
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
