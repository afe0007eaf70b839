//! One embedded backend of `balancer demo`: a small HTTP/1.1 server that misbehaves on command.
//!
//! It shows how balancer handles broken backends. It is not a general web server, and the proxy
//! does not know it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
};

/// Maximum size of a request head; a larger one ends the connection.
const MAX_HEAD_BYTES: u64 = 64 << 10;

/// Time after which a backend that is down comes back by itself.
pub(super) const DOWN_DURATION: Duration = Duration::from_secs(30);

/// Behaviour of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BackendMode {
    /// Responds with 200.
    Ok,
    /// Responds with 503.
    Fail,
    /// Reads requests and never responds.
    Hang,
    /// Responds with bytes that are not HTTP.
    Garbage,
    /// Resets the connection instead of a response.
    Reset,
    /// Closes its listener and all its connections.
    Down,
}

impl BackendMode {
    /// Paths of the commands and the modes that they set.
    const MODE_PATHS: [(&'static str, Self); 6] = [
        ("/ok", Self::Ok),
        ("/fail", Self::Fail),
        ("/hang", Self::Hang),
        ("/garbage", Self::Garbage),
        ("/reset", Self::Reset),
        ("/down", Self::Down),
    ];

    fn from_path(path: &str) -> Option<Self> {
        Self::MODE_PATHS
            .iter()
            .find(|(known, _)| *known == path)
            .map(|(_, mode)| *mode)
    }
}

/// Name, address and mode of one backend.
#[derive(Debug)]
pub(super) struct DemoBackend {
    /// Name, such as `backend-1`.
    pub(super) name: String,
    /// Listening address.
    pub(super) address: SocketAddr,
    /// Current behaviour.
    pub(super) mode: watch::Sender<BackendMode>,
}

/// All backends of the demo. Each accepts commands for the others, so that one that is down can be
/// brought up again.
pub(super) type DemoBackends = Arc<[DemoBackend]>;

/// Opens the backend's listener.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // The port must be free again at once after `down` and `ok`.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// Serves backend `index` until the task is dropped. `listener` is its first listener.
pub(super) async fn serve(backends: DemoBackends, index: usize, listener: TcpListener) {
    let Some(backend) = backends.get(index) else {
        return;
    };
    let mut open = Some(listener);
    loop {
        match open.take() {
            Some(listener) => accept_until_down(&backends, index, listener).await,
            None => wait_while_down(backend).await,
        }
        if *backend.mode.borrow() != BackendMode::Down {
            open = listen(backend.address).ok();
            if open.is_none() {
                // Another process uses the port now: stay down and retry later.
                backend.mode.send_replace(BackendMode::Down);
            }
        }
    }
}

/// Accepts connections until the backend goes down.
async fn accept_until_down(backends: &DemoBackends, index: usize, listener: TcpListener) {
    let Some(backend) = backends.get(index) else {
        return;
    };
    let mut mode = backend.mode.subscribe();
    loop {
        tokio::select! {
            biased;
            () = down(&mut mode) => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(connection(Arc::clone(backends), index, stream))),
                // Out of descriptors: a delay, or this loop would use a full core.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
}

/// Waits until the backend is brought up or its time is over.
async fn wait_while_down(backend: &DemoBackend) {
    let mut mode = backend.mode.subscribe();
    let brought_up = mode.wait_for(|mode| *mode != BackendMode::Down);
    if tokio::time::timeout(DOWN_DURATION, brought_up)
        .await
        .is_err()
    {
        backend.mode.send_replace(BackendMode::Ok);
    }
}

/// Serves one connection until the peer closes it, the mode ends it, or the backend goes down.
async fn connection(backends: DemoBackends, index: usize, stream: TcpStream) {
    let Some(backend) = backends.get(index) else {
        return;
    };
    let mut mode = backend.mode.subscribe();
    let mut stream = BufReader::new(stream);
    tokio::select! {
        biased;
        // Errors are not reported: the peer sees how the connection ends.
        () = async { while exchange(&backends, backend, &mut stream).await.unwrap_or(false) {} } => (),
        // Last, so that the response to the `down` command is still sent.
        () = down(&mut mode) => (),
    }
}

/// Returns when the backend is down or dropped.
async fn down(mode: &mut watch::Receiver<BackendMode>) {
    // The result holds a lock of the channel, so it must not live across an await.
    drop(mode.wait_for(|mode| *mode == BackendMode::Down).await);
}

/// Parts of a request that the demo uses.
struct DemoRequest {
    method: String,
    path: String,
    head: String,
    close: bool,
    forwarded: bool,
}

/// Serves one request. Returns true if another one may follow.
async fn exchange(
    backends: &DemoBackends,
    backend: &DemoBackend,
    stream: &mut BufReader<TcpStream>,
) -> io::Result<bool> {
    let Some(request) = read_request(stream).await? else {
        return Ok(false);
    };
    if request.method == "POST"
        && let Some((target, mode)) = parse_command(backends, backend, &request.path)
    {
        return execute(target, mode, &request, backend, stream).await;
    }
    let mode = *backend.mode.borrow();
    match mode {
        BackendMode::Ok => {
            let (status, body) = page(backend, &request);
            respond(stream, backend, status, &body, &request).await
        }
        BackendMode::Fail => {
            let body = format!("{} fails\n", backend.name);
            respond(stream, backend, "503 Service Unavailable", &body, &request).await
        }
        BackendMode::Hang => {
            // Ends with the mode, so that a demo does not collect hanging connections.
            let mut mode = backend.mode.subscribe();
            let _ = mode.wait_for(|mode| *mode != BackendMode::Hang).await;
            Ok(false)
        }
        BackendMode::Garbage => {
            stream
                .get_mut()
                .write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
                .await?;
            Ok(false)
        }
        BackendMode::Reset => {
            // With a linger time of zero, the close sends a reset (socket(7), SO_LINGER).
            socket2::SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO))?;
            Ok(false)
        }
        BackendMode::Down => Ok(false),
    }
}

/// Parses a path: `/fail` is a command for this backend, `/fail/backend-2` one for another backend.
fn parse_command<'a>(
    backends: &'a DemoBackends,
    own: &'a DemoBackend,
    path: &str,
) -> Option<(&'a DemoBackend, BackendMode)> {
    if let Some(mode) = BackendMode::from_path(path) {
        return Some((own, mode));
    }
    let (mode, name) = path.rsplit_once('/')?;
    let target = backends.iter().find(|other| other.name == name)?;
    Some((target, BackendMode::from_path(mode)?))
}

/// Executes a command, unless the request came through a proxy.
async fn execute(
    target: &DemoBackend,
    mode: BackendMode,
    request: &DemoRequest,
    own: &DemoBackend,
    stream: &mut BufReader<TcpStream>,
) -> io::Result<bool> {
    if request.forwarded {
        let body =
            "send this command to a backend directly: through balancer it reaches any of them\n";
        return respond(stream, own, "403 Forbidden", body, request).await;
    }
    let body = match mode {
        BackendMode::Ok => format!("{} is healthy again\n", target.name),
        BackendMode::Fail => format!("{} responds with 503 from now on\n", target.name),
        BackendMode::Hang => format!("{} hangs from now on\n", target.name),
        BackendMode::Garbage => format!("{} sends garbage from now on\n", target.name),
        BackendMode::Reset => format!("{} resets connections from now on\n", target.name),
        BackendMode::Down => format!(
            "{} is down for {} s\n",
            target.name,
            DOWN_DURATION.as_secs()
        ),
    };
    // Respond first: after `down` the connection is closed.
    let more = respond(stream, own, "200 OK", &body, request).await?;
    target.mode.send_replace(mode);
    Ok(more)
}

/// Status and body of a healthy backend.
fn page(backend: &DemoBackend, request: &DemoRequest) -> (&'static str, String) {
    match request.path.as_str() {
        "/healthz" => ("200 OK", "ok\n".to_owned()),
        "/headers" => ("200 OK", request.head.clone()),
        _ => (
            "200 OK",
            format!("hello from {} ({})\n", backend.name, backend.address),
        ),
    }
}

/// Sends a response. Returns true if the connection stays open.
async fn respond(
    stream: &mut BufReader<TcpStream>,
    backend: &DemoBackend,
    status: &str,
    body: &str,
    request: &DemoRequest,
) -> io::Result<bool> {
    let connection = if request.close {
        "Connection: close\r\n"
    } else {
        ""
    };
    // RFC 9110 §9.3.2: the response to HEAD has the same head and no body.
    let sent = if request.method == "HEAD" { "" } else { body };
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nX-Backend: {}\r\n{connection}\r\n{sent}",
        body.len(),
        backend.name,
    );
    stream.get_mut().write_all(text.as_bytes()).await?;
    Ok(!request.close)
}

/// Reads a head and skips the body. `None` at the end of the connection or if it is not a request.
async fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<DemoRequest>> {
    let mut head = Vec::new();
    // Line by line, up to the empty line that ends the head.
    let mut limited = stream.take(MAX_HEAD_BYTES);
    while !head.ends_with(b"\r\n\r\n") {
        if limited.read_until(b'\n', &mut head).await? == 0 {
            return Ok(None);
        }
    }
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Request::new(&mut fields);
    if !matches!(parsed.parse(&head), Ok(httparse::Status::Complete(_))) {
        return Ok(None);
    }
    let field = |name: &str| {
        parsed
            .headers
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(name))
            .map(|field| String::from_utf8_lossy(field.value).to_ascii_lowercase())
    };
    let connection = field("connection").unwrap_or_default();
    let request = DemoRequest {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: parsed
            .path
            .unwrap_or_default()
            .split('?')
            .next()
            .unwrap_or_default()
            .to_owned(),
        head: String::from_utf8_lossy(&head).trim_end().to_owned() + "\n",
        // RFC 9112 §9.3: HTTP/1.0 closes by default, HTTP/1.1 does not.
        close: connection.contains("close")
            || parsed.version == Some(0) && !connection.contains("keep-alive"),
        // balancer adds these fields, so a request with them did not come directly.
        forwarded: field("via").is_some() || field("x-forwarded-for").is_some(),
    };
    let expects = field("expect").is_some_and(|value| value == "100-continue");
    let chunked = field("transfer-encoding").is_some();
    let length = field("content-length").and_then(|value| value.parse::<u64>().ok());
    // The body must be read, so that the next request on the connection starts at its head.
    if expects {
        stream
            .get_mut()
            .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            .await?;
    }
    if chunked {
        skip_chunks(stream).await?;
    } else {
        skip(stream, length.unwrap_or(0)).await?;
    }
    Ok(Some(request))
}

/// Skips `length` bytes.
async fn skip(stream: &mut BufReader<TcpStream>, length: u64) -> io::Result<()> {
    let skipped = tokio::io::copy(&mut stream.take(length), &mut tokio::io::sink()).await?;
    if skipped < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Skips a chunked body with its trailers (RFC 9112 §7.1).
async fn skip_chunks(stream: &mut BufReader<TcpStream>) -> io::Result<()> {
    loop {
        let line = read_line(stream).await?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(io::Error::other)?;
        if size == 0 {
            break;
        }
        skip(stream, size).await?;
        read_line(stream).await?;
    }
    while !read_line(stream).await?.is_empty() {}
    Ok(())
}

/// Reads a line without its end.
async fn read_line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = Vec::new();
    stream
        .take(MAX_HEAD_BYTES)
        .read_until(b'\n', &mut line)
        .await?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&line)
        .trim_end_matches('\r')
        .to_owned())
}
