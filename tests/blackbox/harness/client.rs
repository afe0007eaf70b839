//! A raw HTTP/1.1 client: sends the bytes it is given, reads answers by their framing, and says how
//! they ended.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};
use socket2::{Domain, Socket, Type};

use super::{PATIENCE, SMALL_BUFFER};

/// Names and values of header or trailer fields.
pub type HeaderFields = Vec<(String, String)>;

/// One response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// Names as sent, values without blanks around them.
    pub headers: HeaderFields,
    /// Without chunk framing.
    pub body: Vec<u8>,
    /// Trailer fields of a chunked body.
    pub trailers: HeaderFields,
}

impl HttpResponse {
    /// The value of the first field called `name`, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        field(&self.headers, name)
    }

    /// Number of fields called `name`.
    pub fn count(&self, name: &str) -> usize {
        self.headers
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .count()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }
}

fn field<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    fields
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

/// Reason why no whole response could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadError {
    /// The connection ended (cleanly) before the first byte.
    Closed,
    /// The connection was reset; with what came before.
    Reset(Vec<u8>),
    /// The connection ended in the middle; with what came.
    Short(Vec<u8>),
    /// Nothing more came in time; with what came before.
    TimedOut(Vec<u8>),
    /// The bytes are not HTTP.
    NotHttp(Vec<u8>),
}

/// A client connection; bytes read beyond a response are kept for the next one.
pub struct HttpClient<S = TcpStream> {
    stream: S,
    read: Vec<u8>,
}

impl HttpClient<TcpStream> {
    /// Connects; reads fail after [`PATIENCE`].
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address)
            .unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        Self::over(stream)
    }

    /// Connects a slow reader: its kernel takes only [`SMALL_BUFFER`] bytes ahead of it, and not
    /// all that it is sent.
    pub fn connect_slow_reader(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(SMALL_BUFFER).unwrap();
        socket
            .connect(&address.into())
            .unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        Self::over(socket.into())
    }

    /// Over a connection that the test has made.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            read: Vec::new(),
        }
    }

    /// Makes reads give up after `limit`, to show that nothing comes.
    pub fn patience(&mut self, limit: Duration) -> &mut Self {
        self.stream.set_read_timeout(Some(limit)).unwrap();
        self
    }

    /// Makes writes give up after `limit`, to find out when nothing fits any more.
    pub fn limit_writes(&mut self, limit: Duration) -> &mut Self {
        self.stream.set_write_timeout(Some(limit)).unwrap();
        self
    }

    /// Ends our sending side (FIN) and keeps reading.
    pub fn finish(&mut self) -> &mut Self {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
        self
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        reset(self.stream);
    }

    /// True if bytes can be read, or the connection has ended.
    pub fn has_input(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let found = recv(&self.stream, &mut [0_u8; 1], flags);
        !self.read.is_empty() || !matches!(found, Err(Errno::AGAIN))
    }

    /// Our own address, as the daemon sees it.
    pub fn local_address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }
}

impl HttpClient<UnixStream> {
    /// Connects to a unix socket.
    pub fn connect_unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path)
            .unwrap_or_else(|error| panic!("connect to {}: {error}", path.display()));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            read: Vec::new(),
        }
    }
}

impl<S: Read + Write> HttpClient<S> {
    /// Over any stream that the test has made, such as one under TLS.
    pub const fn under(stream: S) -> Self {
        Self {
            stream,
            read: Vec::new(),
        }
    }

    /// The underlying stream.
    pub const fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream
            .write_all(bytes.as_ref())
            .expect("the daemon takes what the client sends");
        self
    }

    /// Sends bytes; false where the other side has closed or reset.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Sends a request without a body and reads the response.
    pub fn request(&mut self, method: &str, target: &str) -> Result<HttpResponse, ReadError> {
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
        self.response_to(method)
    }

    /// Reads the response to a GET or POST.
    pub fn response(&mut self) -> Result<HttpResponse, ReadError> {
        self.response_to("GET")
    }

    /// Reads the response to a request of `method`: one to HEAD has no body. RFC 9112 section 6.3.
    pub fn response_to(&mut self, method: &str) -> Result<HttpResponse, ReadError> {
        let (status, headers) = self.head()?;
        let bodiless = method == "HEAD" || matches!(status, 100..=199 | 204 | 304);
        let chunked = field(&headers, "transfer-encoding")
            .is_some_and(|value| value.to_ascii_lowercase().ends_with("chunked"));
        let length = field(&headers, "content-length").map(|value| value.parse().unwrap());
        let (body, trailers) = match (bodiless, chunked, length) {
            (true, ..) => (Vec::new(), Vec::new()),
            (_, true, _) => self.chunks()?,
            (_, _, Some(length)) => (self.exactly(length)?, Vec::new()),
            (_, _, None) => (self.rest()?, Vec::new()),
        };
        Ok(HttpResponse {
            status,
            headers,
            body,
            trailers,
        })
    }

    /// Reads a status line and header fields only.
    pub fn head(&mut self) -> Result<(u16, HeaderFields), ReadError> {
        let head = self.until(b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut lines = text.trim_end().split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.strip_prefix("HTTP/1."))
            .and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let Some(status) = status else {
            return Err(ReadError::NotHttp(head));
        };
        Ok((status, fields(lines)))
    }

    fn chunks(&mut self) -> Result<(Vec<u8>, HeaderFields), ReadError> {
        let mut body = Vec::new();
        loop {
            let line = String::from_utf8_lossy(&self.until(b"\r\n")?).into_owned();
            let size = usize::from_str_radix(line.trim_end().split(';').next().unwrap(), 16)
                .map_err(|_| ReadError::NotHttp(line.into_bytes()))?;
            if size == 0 {
                break;
            }
            body.extend(self.exactly(size)?);
            self.exactly(2)?;
        }
        let mut trailers = Vec::new();
        loop {
            let line = String::from_utf8_lossy(&self.until(b"\r\n")?).into_owned();
            if line == "\r\n" {
                return Ok((body, trailers));
            }
            trailers.extend(fields([line.trim_end()].into_iter()));
        }
    }

    /// Hands what comes next to `take`, piece by piece, until that is `length` bytes.
    pub fn each(
        &mut self,
        mut length: usize,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), ReadError> {
        let mut buffer = vec![0; 256 << 10];
        let kept = self.read.len().min(length);
        take(&self.read.drain(..kept).collect::<Vec<_>>());
        length -= kept;
        while length > 0 {
            let room = buffer.len().min(length);
            match self.stream.read(&mut buffer[..room]) {
                Ok(0) => return Err(ReadError::Short(Vec::new())),
                Ok(count) => {
                    take(&buffer[..count]);
                    length -= count;
                }
                Err(_) => return Err(ReadError::Reset(Vec::new())),
            }
        }
        Ok(())
    }

    /// Reads up to and with `end`.
    pub fn until(&mut self, end: &[u8]) -> Result<Vec<u8>, ReadError> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|part| part == end) {
                return Ok(self.read.drain(..at + end.len()).collect());
            }
            self.more()?;
        }
    }

    /// Reads `length` bytes.
    pub fn exactly(&mut self, length: usize) -> Result<Vec<u8>, ReadError> {
        while self.read.len() < length {
            self.more()?;
        }
        Ok(self.read.drain(..length).collect())
    }

    /// Reads to the clean end of the connection.
    pub fn rest(&mut self) -> Result<Vec<u8>, ReadError> {
        loop {
            match self.more() {
                Ok(()) => (),
                Err(ReadError::Closed) => return Ok(Vec::new()),
                Err(ReadError::Short(all)) => return Ok(all),
                Err(other) => return Err(other),
            }
        }
    }

    /// Reads what comes next, for the calls that follow.
    pub fn more(&mut self) -> Result<(), ReadError> {
        let mut buffer = vec![0; 64 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) if self.read.is_empty() => Err(ReadError::Closed),
            Ok(0) => Err(ReadError::Short(std::mem::take(&mut self.read))),
            Ok(length) => {
                self.read.extend_from_slice(&buffer[..length]);
                Ok(())
            }
            Err(error) => Err(match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    ReadError::TimedOut(self.read.clone())
                }
                _ => ReadError::Reset(std::mem::take(&mut self.read)),
            }),
        }
    }
}

fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> HeaderFields {
    lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

/// One GET on a connection of its own.
pub fn get(address: SocketAddr, target: &str) -> Result<HttpResponse, ReadError> {
    let mut client = HttpClient::connect(address);
    client.send(format!(
        "GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    ));
    client.response()
}

/// Closes a connection with a reset instead of an end: a linger time of zero.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}
