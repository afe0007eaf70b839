//! The listening socket of the JSON API: a unix socket, or a loopback address with a token.
//!
//! Permissions: a unix socket is open to everybody who may open its file (mode 0600). On TCP the
//! client must know the token. Read next: `api.rs`, which serves the connections.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::token::TokenFile;
use crate::{base::address::BindAddress, config::model};

/// Connections that the kernel queues until we accept them.
const SOCKET_BACKLOG: i32 = 64;

/// Bound admin API.
#[derive(Debug)]
pub struct AdminListener(pub(super) AdminSocket);

#[derive(Debug)]
pub(super) enum AdminSocket {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener, Arc<TokenFile>),
}

/// File of a unix socket. It is removed on drop, unless another file has replaced it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // If this fails, a stale file stays. The next start removes it.
            drop(fs::remove_file(&self.path));
        }
    }
}

impl SocketFile {
    /// Binds the path again if its file is gone, for example after a cleanup of `/tmp`.
    ///
    /// Creates the directory too. A file that somebody else has put there is left alone.
    pub(super) fn bind_again(&self) -> Option<(UnixListener, Self)> {
        let error = identity(&self.path).err()?;
        if error.kind() != io::ErrorKind::NotFound {
            return None;
        }
        if let Some(directory) = self.path.parent() {
            // An error here also fails the bind below, which reports it.
            let _ = fs::DirBuilder::new().mode(0o700).create(directory);
        }
        match bind_unix(&self.path) {
            Ok((listener, file)) => {
                tracing::warn!(target: "admin", socket = %self.path.display(), "the admin socket was removed; created it again");
                Some((listener, file))
            }
            Err(error) => {
                // Only at debug level: the caller repeats this every second.
                tracing::debug!(target: "admin", %error, "cannot create the admin socket again");
                None
            }
        }
    }
}

/// Device and inode of a file.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

fn with_name(error: &io::Error, name: impl std::fmt::Display) -> io::Error {
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

impl AdminListener {
    /// Binds the address of `config`, or the unix socket `default` if it has none.
    ///
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// The error names the address. A socket file without a listener is replaced; one with a
    /// listener is an error.
    pub fn bind(config: &model::AdminConfig, default: &Path) -> io::Result<Self> {
        let unix = |path| bind_unix(path).map(|(listener, file)| AdminSocket::Unix(listener, file));
        let socket = match &config.bind {
            None => unix(default),
            Some(BindAddress::Unix(path)) => unix(path),
            Some(BindAddress::Ip(address)) => bind_tcp(*address, config.token_file.as_deref()),
        };
        socket.map(Self)
    }

    /// Local address, with the real port if the configuration says port 0.
    pub fn address(&self) -> io::Result<BindAddress> {
        match &self.0 {
            AdminSocket::Unix(_, file) => Ok(BindAddress::Unix(file.path.clone())),
            AdminSocket::Tcp(listener, _) => listener.local_addr().map(BindAddress::Ip),
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let name = format!("admin socket `{}`", path.display());
    remove_stale(path).map_err(|error| with_name(&error, &name))?;
    let bind = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // Before `listen`, so that the socket never accepts with wider permissions.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let file = SocketFile {
            path: path.to_path_buf(),
            identity: identity(path)?,
        };
        socket.listen(SOCKET_BACKLOG)?;
        UnixListener::from_std(socket.into()).map(|listener| (listener, file))
    };
    bind().map_err(|error| with_name(&error, &name))
}

/// Binds a loopback address. The configuration has the same rules; here they hold for every caller.
fn bind_tcp(address: SocketAddr, token_file: Option<&Path>) -> io::Result<AdminSocket> {
    let refuse = |message: String| io::Error::new(io::ErrorKind::InvalidInput, message);
    if !address.ip().to_canonical().is_loopback() {
        return Err(refuse(format!("admin address `{address}` is not loopback")));
    }
    let path = token_file
        .ok_or_else(|| refuse(format!("admin address `{address}` needs a token_file")))?;
    let token = Arc::new(TokenFile::read(path)?);
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    let listener =
        bind().map_err(|error| with_name(&error, format!("admin address `{address}`")))?;
    Ok(AdminSocket::Tcp(listener, token))
}

/// Removes a socket file that no process listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the file exists and is not a socket",
            ));
        }
        Ok(_) => {}
    }
    // Non-blocking: if the queue of a live daemon is full, connect returns EAGAIN at once.
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens on it",
        )),
    }
}
