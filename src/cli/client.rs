//! Client of the admin API: one blocking request per connection, with a deadline and a size limit.
//!
//! It supports only the part of HTTP/1.1 that the admin server uses. It is not a general client and
//! not for the data plane. An HTTP library would need an async runtime for one request.

use std::{
    error::Error,
    fmt, io,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::base::{address::BindAddress, clock};

/// Maximum size of a response. The status of 10,000 backends has about 3 MiB.
const MAX_RESPONSE_BYTES: u64 = 64 << 20;

/// Address of the admin API and its credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AdminEndpoint {
    /// Unix socket or loopback address.
    pub(super) address: BindAddress,
    /// File with the bearer token; required if `address` is an IP address.
    pub(super) token_file: Option<PathBuf>,
}

/// Response of the daemon.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ApiResponse {
    /// Status code.
    pub(super) status: u16,
    /// Body in JSON.
    pub(super) body: Vec<u8>,
}

/// Failure to get a response.
#[derive(Debug)]
pub(super) enum CallError {
    /// No process listens on the address, or the user may not connect.
    Unreachable(BindAddress, io::Error),
    /// There was no response before the deadline.
    TimedOut(BindAddress, Duration),
    /// The response is not HTTP, or it was cut.
    Broken(BindAddress, String),
    /// The token file cannot be read.
    Token(PathBuf, io::Error),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(address, error) => {
                write!(f, "the daemon is not reachable at `{address}`: {error}")?;
                match address {
                    BindAddress::Unix(_) => f.write_str(socket_hint(error)),
                    BindAddress::Ip(_) => Ok(()),
                }
            }
            Self::TimedOut(address, limit) => write!(
                f,
                "the daemon at `{address}` did not respond within {} s",
                limit.as_secs()
            ),
            Self::Broken(address, what) => write!(
                f,
                "the response from `{address}` is not from balancer's admin API: {what}"
            ),
            Self::Token(path, error) => {
                write!(
                    f,
                    "cannot read the token file `{}`: {error}",
                    path.display()
                )
            }
        }
    }
}

impl Error for CallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreachable(_, error) | Self::Token(_, error) => Some(error),
            Self::TimedOut(..) | Self::Broken(..) => None,
        }
    }
}

/// Hint for a socket that cannot be opened.
fn socket_hint(error: &io::Error) -> &'static str {
    // root may open every socket, so for root the path must be wrong.
    let is_root = rustix::process::geteuid().is_root();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "\nonly root and the user of the daemon may open it: use sudo"
        }
        _ if is_root => {
            "\nif the daemon is running, give its socket with `--admin unix:PATH`, or its configuration with `-c FILE`"
        }
        _ => {
            "\nif the daemon runs as another user, use sudo; otherwise give its socket with `--admin unix:PATH`, or its \
             configuration with `-c FILE`"
        }
    }
}

/// Text for a response that is not a success: its details, and a hint.
pub(super) fn error_text(response: &ApiResponse) -> String {
    let document: serde_json::Value = serde_json::from_slice(&response.body).unwrap_or_default();
    let text = |key: &str| document.pointer(key).and_then(serde_json::Value::as_str);
    let details = text("/error/details").or_else(|| text("/error/message"));
    let details = details.map_or_else(
        || format!("the daemon responded with status {}", response.status),
        str::to_owned,
    );
    let hint = match response.status {
        401 => {
            "\ngive the token with `--token-file FILE`, or the daemon's configuration with `-c FILE`"
        }
        _ => "",
    };
    format!("error: {details}{hint}")
}

/// Sends one request without a body and waits for the complete response, at most `limit`.
pub(super) fn call(
    admin: &AdminEndpoint,
    method: &str,
    path: &str,
    limit: Duration,
) -> Result<ApiResponse, CallError> {
    send(admin, method, path, "", limit)
}

/// Posts a small JSON document and waits for the complete response, at most `limit`.
pub(super) fn post(
    admin: &AdminEndpoint,
    path: &str,
    document: &serde_json::Value,
    limit: Duration,
) -> Result<ApiResponse, CallError> {
    send(admin, "POST", path, &document.to_string(), limit)
}

fn send(
    admin: &AdminEndpoint,
    method: &str,
    path: &str,
    body: &str,
    limit: Duration,
) -> Result<ApiResponse, CallError> {
    // The token comes first: without it there is no reason to connect.
    let token = match &admin.token_file {
        Some(file) => Some(
            std::fs::read_to_string(file)
                .map_err(|error| CallError::Token(file.clone(), error))?
                .trim()
                .to_owned(),
        ),
        None => None,
    };
    let head = request_head(method, path, &admin.address, token.as_deref(), body.len());
    let request = head + body;
    let deadline = clock::now() + limit;
    let unreachable = |error| CallError::Unreachable(admin.address.clone(), error);
    let response = match &admin.address {
        BindAddress::Unix(socket) => {
            let stream = UnixStream::connect(socket).map_err(unreachable)?;
            exchange(
                DeadlineStream::new(stream, deadline, UnixStream::set_read_timeout),
                &request,
            )
        }
        BindAddress::Ip(address) => {
            let stream = connect(*address, limit).map_err(unreachable)?;
            exchange(
                DeadlineStream::new(stream, deadline, TcpStream::set_read_timeout),
                &request,
            )
        }
    };
    // A read timeout is `WouldBlock` on a socket with SO_RCVTIMEO (socket(7)), or `TimedOut` of
    // ours.
    let bytes = response.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            CallError::TimedOut(admin.address.clone(), limit)
        }
        _ => CallError::Broken(admin.address.clone(), error.to_string()),
    })?;
    parse(&bytes).map_err(|what| CallError::Broken(admin.address.clone(), what))
}

/// Connects with a timeout. A unix socket needs none: its connect does not wait for the daemon.
fn connect(address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&address, limit)
}

/// Request head. `Connection: close`, so that the response ends with the connection.
fn request_head(
    method: &str,
    path: &str,
    address: &BindAddress,
    token: Option<&str>,
    body_length: usize,
) -> String {
    let host = match address {
        BindAddress::Ip(address) => address.to_string(),
        BindAddress::Unix(_) => "localhost".to_owned(),
    };
    let authorization = token.map_or_else(String::new, |token| {
        format!("Authorization: Bearer {token}\r\n")
    });
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}Content-Length: {body_length}\r\nConnection: close\r\n\r\n"
    )
}

/// Stream whose reads share one deadline.
///
/// A read timeout alone would start again with each byte of a slow response.
struct DeadlineStream<S> {
    stream: S,
    deadline: Instant,
    set_timeout: fn(&S, Option<Duration>) -> io::Result<()>,
}

impl<S> DeadlineStream<S> {
    fn new(
        stream: S,
        deadline: Instant,
        set_timeout: fn(&S, Option<Duration>) -> io::Result<()>,
    ) -> Self {
        Self {
            stream,
            deadline,
            set_timeout,
        }
    }
}

impl<S: Read> Read for DeadlineStream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        (self.set_timeout)(&self.stream, Some(left))?;
        self.stream.read(buffer)
    }
}

fn exchange<S: Read + Write>(mut timed: DeadlineStream<S>, request: &str) -> io::Result<Vec<u8>> {
    // The request fits into the socket's buffer, so the write needs no timeout.
    timed.stream.write_all(request.as_bytes())?;
    let mut response = Vec::new();
    timed
        .take(MAX_RESPONSE_BYTES + 1)
        .read_to_end(&mut response)?;
    if response.len() as u64 > MAX_RESPONSE_BYTES {
        return Err(io::Error::other("the response is too large"));
    }
    Ok(response)
}

/// Parses a response that ended with its connection.
///
/// RFC 9112 §6.3: with a `Content-Length` the body must have that length, without one it extends to
/// the end of the connection.
fn parse(bytes: &[u8]) -> Result<ApiResponse, String> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let start = match head.parse(bytes) {
        Ok(httparse::Status::Complete(start)) => start,
        Ok(httparse::Status::Partial) => return Err("the response is incomplete".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    let field = |name: &str| {
        head.headers
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(name))
    };
    // The admin server always knows the length of its documents.
    if field("transfer-encoding").is_some() {
        return Err("a transfer coding is not expected".to_owned());
    }
    debug_assert!(start <= bytes.len(), "the parser read {start} bytes");
    let body = bytes.get(start..).unwrap_or_default();
    let body = match field("content-length") {
        None => body,
        Some(length) => std::str::from_utf8(length.value)
            .ok()
            .and_then(|text| text.parse::<usize>().ok())
            .and_then(|length| body.get(..length))
            .ok_or("the response is incomplete")?,
    };
    Ok(ApiResponse {
        status: head.code.unwrap_or_default(),
        body: body.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Serves one connection with `response`; the thread returns the request.
    fn daemon(
        response: &'static str,
    ) -> (
        AdminEndpoint,
        std::sync::mpsc::Sender<()>,
        std::thread::JoinHandle<String>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = AdminEndpoint {
            address: BindAddress::Ip(listener.local_addr().unwrap()),
            token_file: None,
        };
        let (release, released) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(response.as_bytes()).unwrap();
            let _ = released.recv();
            String::from_utf8(request).unwrap()
        });
        (admin, release, thread)
    }

    #[test]
    fn a_response_is_read_by_its_length() {
        let (admin, release, thread) =
            daemon("HTTP/1.1 422 Unprocessable Content\r\ncontent-length: 2\r\n\r\n{}");
        drop(release);
        let response = call(&admin, "POST", "/v1/reload", Duration::from_secs(10)).unwrap();
        assert_eq!((response.status, &response.body[..]), (422, &b"{}"[..]));
        let request = thread.join().unwrap();
        assert!(
            request.starts_with("POST /v1/reload HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(!request.contains("Authorization"), "{request}");
    }

    #[test]
    fn the_token_is_sent_when_there_is_one() {
        let head = request_head(
            "GET",
            "/v1/status",
            &BindAddress::Unix("/a".into()),
            Some("s3"),
            7,
        );
        assert!(head.contains("\r\nContent-Length: 7\r\n"), "{head}");
        assert!(head.contains("\r\nAuthorization: Bearer s3\r\n"), "{head}");
    }

    #[test]
    fn a_cut_response_is_an_error() {
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Le").is_err());
        assert!(parse(b"SSH-2.0-OpenSSH\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").is_err());
    }

    #[test]
    fn a_silent_daemon_ends_at_the_deadline_and_an_absent_one_at_once() {
        let (admin, release, thread) = daemon("");
        let error = call(&admin, "GET", "/v1/status", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, CallError::TimedOut(..)), "{error}");
        drop(release);
        thread.join().unwrap();
        let admin = AdminEndpoint {
            address: BindAddress::Unix("/nonexistent/admin.sock".into()),
            token_file: None,
        };
        let error = call(&admin, "GET", "/v1/status", Duration::from_secs(5)).unwrap_err();
        assert!(matches!(error, CallError::Unreachable(..)), "{error}");
    }
}
