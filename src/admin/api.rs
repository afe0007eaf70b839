//! The JSON API on `admin.bind`: `GET /v1/status`, `POST /v1/reload`.
//!
//! Who may ask: on a unix socket whoever may open it (mode 0600); on TCP, loopback only, whoever knows the token. A browser
//! on the same machine must not be turned into a tool against it: TCP requests need a loopback `Host` (DNS rebinding), and
//! no change is made for a request with an `Origin` (cross-site requests).

use std::{
    fs, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use hyper::{HeaderMap, Method, Request, StatusCode, body::Incoming, header};
use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::{TcpListener, UnixListener},
    select,
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{ControlHandle, ControlRequest, ReloadError, ReloadReport, http, status};
use crate::{
    base::address::BindAddress,
    config::{files::read_regular, model},
    net::limits::control_connections,
    snapshot::Daemon,
};

/// How often it is looked whether the socket file is still there.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a request waits for the token file.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest token file in bytes; a larger one is refused by the configuration.
const MAX_TOKEN_BYTES: u64 = 4 << 10;

/// Where the API accepts.
#[derive(Debug)]
pub struct AdminListener(AdminSocket);

#[derive(Debug)]
enum AdminSocket {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener, Arc<TokenFile>),
}

/// The bearer token of a file.
#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    /// As it was read last.
    last: Mutex<Arc<str>>,
    /// A reader has not come back: its file system may hang, and one such thread is enough.
    is_read: AtomicBool,
}

impl TokenFile {
    fn read(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            last: Mutex::new(token_of(path)?),
            is_read: AtomicBool::new(false),
        })
    }

    fn last(&self) -> Arc<str> {
        Arc::clone(&self.last.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The token that is in the file now; the last one where it cannot be read.
    async fn now(self: &Arc<Self>) -> Arc<str> {
        if !self.is_read.swap(true, SeqCst) {
            let token = Arc::clone(self);
            let reader = tokio::task::spawn_blocking(move || {
                match token_of(&token.path) {
                    Ok(now) => *token.last.lock().unwrap_or_else(PoisonError::into_inner) = now,
                    Err(error) => {
                        tracing::warn!(target: "admin", %error, "token not read again, the last one holds");
                    }
                }
                token.is_read.store(false, SeqCst);
            });
            drop(timeout(TOKEN_TIMEOUT, reader).await);
        }
        self.last()
    }
}

fn token_of(path: &Path) -> io::Result<Arc<str>> {
    let name = format!("admin token file `{}`", path.display());
    let bytes = read_regular(path, MAX_TOKEN_BYTES).map_err(|error| with_name(&error, &name))?;
    let text = String::from_utf8_lossy(&bytes);
    let token = text.trim();
    if token.is_empty() {
        let what = format!("{name} is empty");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(Arc::from(token))
}

/// The file of a unix socket, removed with its listener unless somebody else has put another one there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // At worst a stale file stays, and the next start removes it.
            drop(fs::remove_file(&self.path));
        }
    }
}

impl SocketFile {
    /// Binds the path again if nothing is there, as after a cleanup of the directory; its directory is made if it is gone.
    fn bind_again(&self) -> Option<(UnixListener, Self)> {
        let error = identity(&self.path).err()?;
        if error.kind() != io::ErrorKind::NotFound {
            return None;
        }
        if let Some(directory) = self.path.parent() {
            // Where it cannot be made, binding says so.
            let _ = fs::DirBuilder::new().mode(0o700).create(directory);
        }
        match AdminListener::unix(&self.path) {
            Ok(AdminListener(AdminSocket::Unix(listener, file))) => {
                tracing::warn!(target: "admin", socket = %self.path.display(), "the admin socket was removed, and is made again");
                Some((listener, file))
            }
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(target: "admin", %error, "the admin socket is gone");
                None
            }
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

fn with_name(error: &io::Error, what: impl std::fmt::Display) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

impl AdminListener {
    /// Binds what `config` says; `default` is the socket's path where it says nothing. Needs a tokio runtime.
    ///
    /// # Errors
    /// Names the address. A socket file that nobody listens on is replaced; a live one is an error.
    pub fn bind(config: &model::AdminConfig, default: &Path) -> io::Result<Self> {
        match &config.bind {
            None => Self::unix(default),
            Some(BindAddress::Unix(path)) => Self::unix(path),
            Some(BindAddress::Ip(address)) => Self::tcp(*address, config.token_file.as_deref()),
        }
    }

    fn unix(path: &Path) -> io::Result<Self> {
        let name = format!("admin socket `{}`", path.display());
        remove_stale(path).map_err(|error| with_name(&error, &name))?;
        let bind = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&SockAddr::unix(path)?)?;
            // Before `listen` nobody can connect, so there is no moment with wider rights.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            let file = SocketFile {
                path: path.to_path_buf(),
                identity: identity(path)?,
            };
            socket.listen(64)?;
            UnixListener::from_std(socket.into()).map(|listener| AdminSocket::Unix(listener, file))
        };
        bind().map(Self).map_err(|error| with_name(&error, &name))
    }

    fn tcp(address: SocketAddr, token_file: Option<&Path>) -> io::Result<Self> {
        let refuse = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
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
        Ok(Self(AdminSocket::Tcp(listener, token)))
    }

    /// Where it accepts: with the real port if the configuration said 0.
    pub fn address(&self) -> io::Result<BindAddress> {
        match &self.0 {
            AdminSocket::Unix(_, file) => Ok(BindAddress::Unix(file.path.clone())),
            AdminSocket::Tcp(listener, _) => listener.local_addr().map(BindAddress::Ip),
        }
    }
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is not a socket is there",
            ));
        }
        Ok(_) => {}
    }
    // Non-blocking: a live daemon whose queue is full answers EAGAIN instead of holding us up.
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

/// What one request needs to be answered.
#[derive(Clone)]
struct ApiContext {
    daemon: Arc<Daemon>,
    control: ControlHandle,
    /// The bearer token; `None` on a unix socket, where the file's mode decides.
    token: Option<Arc<TokenFile>>,
}

/// Serves until dropped. A socket file that somebody has removed is made again.
pub async fn serve_admin(listener: AdminListener, daemon: Arc<Daemon>, control: ControlHandle) {
    let mut places = http::ConnectionSlots::new(control_connections());
    match listener.0 {
        AdminSocket::Tcp(tcp, token) => {
            let context = ApiContext {
                daemon,
                control,
                token: Some(token),
            };
            loop {
                let accepted = tcp.accept().await;
                if let Some(stream) = places.accepted(accepted).await {
                    let context = context.clone();
                    let answer = move |request| answer(request, context.clone());
                    places.serve(stream, answer).await;
                }
            }
        }
        AdminSocket::Unix(unix, file) => {
            let context = ApiContext {
                daemon,
                control,
                token: None,
            };
            serve_unix(unix, file, places, context).await;
        }
    }
}

async fn serve_unix(
    mut unix: UnixListener,
    mut file: SocketFile,
    mut places: http::ConnectionSlots,
    context: ApiContext,
) {
    let mut look = interval(SOCKET_CHECK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        select! {
            accepted = unix.accept() => {
                if let Some(stream) = places.accepted(accepted).await {
                    let context = context.clone();
                    let answer = move |request| answer(request, context.clone());
                    places.serve(stream, answer).await;
                }
            }
            _ = look.tick() => if let Some(again) = file.bind_again() {
                (unix, file) = again;
            },
        }
    }
}

async fn answer(request: Request<Incoming>, context: ApiContext) -> http::AdminResponse {
    if let Some(token) = &context.token
        && let Some(refusal) = refusal(request.headers(), token).await
    {
        return refusal;
    }
    match (request.uri().path(), request.method()) {
        ("/v1/status", &Method::GET | &Method::HEAD) => {
            http::document(StatusCode::OK, &status::status(&context.daemon))
        }
        ("/v1/status", _) => http::method_not_allowed("GET, HEAD"),
        ("/v1/reload", &Method::POST) if request.headers().contains_key(header::ORIGIN) => {
            http::error(
                StatusCode::FORBIDDEN,
                "Requests made by a web page are refused.",
            )
        }
        ("/v1/reload", &Method::POST) => reload(&context.control).await,
        ("/v1/reload", _) => http::method_not_allowed("POST"),
        _ => http::error(
            StatusCode::NOT_FOUND,
            "There are /v1/status and /v1/reload here.",
        ),
    }
}

/// The two guards of TCP: `Host` and token.
async fn refusal(headers: &HeaderMap, token: &Arc<TokenFile>) -> Option<http::AdminResponse> {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if !host.is_some_and(is_loopback) {
        return Some(http::error(
            StatusCode::FORBIDDEN,
            "The Host header must name a loopback address.",
        ));
    }
    let credentials = headers
        .get(header::AUTHORIZATION)
        .map(header::HeaderValue::as_bytes);
    if let Some(given) = credentials.and_then(bearer)
        && same(given, token.now().await.as_bytes())
    {
        return None;
    }
    let mut refusal = http::error(
        StatusCode::UNAUTHORIZED,
        "The bearer token of admin.token_file is needed.",
    );
    let challenge = header::HeaderValue::from_static("Bearer");
    refusal
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge);
    Some(refusal)
}

/// The token in `Authorization: Bearer TOKEN`; the scheme's case does not matter (RFC 9110 section 11.1).
fn bearer(credentials: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = credentials.split_at_checked(b"Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}

/// Compares without telling by its time where the first difference is.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let difference = given
        .iter()
        .zip(expected)
        .fold(0, |difference, (a, b)| difference | (a ^ b));
    given.len() == expected.len() && std::hint::black_box(difference) == 0
}

/// `localhost`, `127.0.0.1:9901`, `[::1]`.
fn is_loopback(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest
            .split_once(']')
            .map(|(address, _)| address.parse::<Ipv6Addr>());
        return matches!(address, Some(Ok(address)) if IpAddr::from(address).to_canonical().is_loopback());
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

async fn reload(control: &ControlHandle) -> http::AdminResponse {
    let (tell, told) = oneshot::channel();
    let leaving = || {
        http::error(
            StatusCode::SERVICE_UNAVAILABLE,
            "The daemon is shutting down.",
        )
    };
    if control.send(ControlRequest::Reload(tell)).await.is_err() {
        return leaving();
    }
    match told.await {
        Ok(Ok(reloaded)) => {
            let ReloadReport {
                changes,
                rendered,
                warnings,
            } = reloaded;
            let document = json!({"changes": changes, "warnings": warnings, "rendered": rendered});
            http::document(StatusCode::OK, &document)
        }
        Ok(Err(failed)) => http::document(StatusCode::UNPROCESSABLE_ENTITY, &refused(&failed)),
        Err(_) => leaving(),
    }
}

fn refused(failed: &ReloadError) -> serde_json::Value {
    let mut document = http::envelope(
        StatusCode::UNPROCESSABLE_ENTITY,
        "The configuration has problems; the one in service stays.",
    );
    if let Some(object) = document.as_object_mut() {
        object.insert("problems".to_owned(), failed.json.clone());
        object.insert("rendered".to_owned(), failed.rendered.clone().into());
    }
    document
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
