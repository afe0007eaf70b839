//! Scripted backends: each connection runs a script in a thread; every request that is read is
//! recorded.

use std::{
    cell::RefCell,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use socket2::{Domain, SockRef, Socket, Type};

use super::{PATIENCE, client};

/// A gate that scripts wait at until the test opens it. Clones are the same gate.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Releases all waiters, now and later.
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// True if it is open now.
    pub fn is_open(&self) -> bool {
        *self.0.0.lock().unwrap()
    }

    /// Waits until it is open.
    pub fn wait(&self) {
        let (open, changed) = &*self.0;
        let (open, _) = changed
            .wait_timeout_while(open.lock().unwrap(), PATIENCE, |open| !*open)
            .unwrap();
        assert!(*open, "the gate was not opened");
    }
}

/// A list that grows, and that tests wait for.
pub struct Recorder<T>(Arc<(Mutex<Vec<T>>, Condvar)>);

impl<T> Clone for Recorder<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Recorder<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> Recorder<T> {
    /// Adds one.
    pub fn push(&self, item: T) {
        self.0.0.lock().unwrap().push(item);
        self.0.1.notify_all();
    }

    /// All so far.
    pub fn all(&self) -> Vec<T> {
        self.0.0.lock().unwrap().clone()
    }

    /// Waits until `found` finds something in the list; `None` after [`PATIENCE`].
    pub fn wait_for<F>(&self, mut found: impl FnMut(&[T]) -> Option<F>) -> Option<F> {
        let (list, grown) = &*self.0;
        let mut result = None;
        let _ = grown
            .wait_timeout_while(list.lock().unwrap(), PATIENCE, |list| {
                result = found(list);
                result.is_none()
            })
            .unwrap();
        result
    }
}

/// A request as a backend got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendRequest {
    /// As sent.
    pub method: String,
    /// As sent.
    pub target: String,
    /// The whole head as sent, with its last empty line.
    pub head: String,
    /// Without chunk framing.
    pub body: Vec<u8>,
    /// The lines behind the last chunk.
    pub trailers: String,
    /// Number of the connection that carried it, counted from 0.
    pub connection: usize,
}

impl BackendRequest {
    /// The value of the first field called `name`, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }
}

/// The backend's end of one connection, in the hands of a script.
pub struct PeerConnection {
    stream: TcpStream,
    read: Vec<u8>,
    number: usize,
    requests: Recorder<BackendRequest>,
}

impl PeerConnection {
    /// Reads and records one request with its whole body; `None` at the end of the connection.
    pub fn request(&mut self) -> Option<BackendRequest> {
        let head = self.head()?;
        self.whole(head)
    }

    /// Reads and records the rest of the request that begins with `head`; `None` at the end of the
    /// connection.
    pub fn whole(&mut self, head: BackendRequest) -> Option<BackendRequest> {
        let field = |name: &str| {
            head.header(name)
                .map(|value| value.trim().to_ascii_lowercase())
        };
        let (mut body, mut trailers) = (Vec::new(), String::new());
        if field("transfer-encoding").is_some() {
            loop {
                let line = String::from_utf8(self.until(b"\r\n")?).unwrap();
                let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
                if size == 0 {
                    break;
                }
                body.extend(self.exactly(size)?);
                self.exactly(2)?;
            }
            while !trailers.ends_with("\r\n\r\n") && trailers != "\r\n" {
                trailers.push_str(&String::from_utf8_lossy(&self.until(b"\r\n")?));
            }
        } else if let Some(length) = field("content-length") {
            body = self.exactly(length.parse().unwrap())?;
        }
        let request = BackendRequest {
            body,
            trailers,
            ..head
        };
        self.requests.push(request.clone());
        Some(request)
    }

    /// Reads a request head only and records nothing; `None` at the end of the connection.
    pub fn head(&mut self) -> Option<BackendRequest> {
        let head = String::from_utf8_lossy(&self.until(b"\r\n\r\n")?).into_owned();
        let mut words = head.split(' ');
        Some(BackendRequest {
            method: words.next().unwrap_or_default().to_owned(),
            target: words.next().unwrap_or_default().to_owned(),
            head: head.clone(),
            body: Vec::new(),
            trailers: String::new(),
            connection: self.number,
        })
    }

    /// Sends bytes; false where the other side is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Sends each part as a segment of its own.
    pub fn send_pieces<P: AsRef<[u8]>>(&mut self, pieces: impl IntoIterator<Item = P>) -> bool {
        pieces.into_iter().all(|piece| self.send(piece))
    }

    /// Answers 200 with `body`.
    pub fn answer(&mut self, body: &str) -> bool {
        self.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    /// Reads `length` bytes; `None` at the end of the connection.
    pub fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            self.more()?;
        }
        Some(self.read.drain(..length).collect())
    }

    /// Reads up to and with `end`; `None` at the end of the connection.
    pub fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|part| part == end) {
                return Some(self.read.drain(..at + end.len()).collect());
            }
            self.more()?;
        }
    }

    /// Number of this connection, counted from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Waits until something can be read, and leaves it unread: closing then is a reset.
    pub fn wait_for_bytes(&self) {
        let _ = self.stream.peek(&mut [0]);
    }

    /// Hands what comes next to `take`, piece by piece, until that is `length` bytes; `None` at the
    /// end of the connection.
    pub fn each(&mut self, mut length: usize, mut take: impl FnMut(&[u8])) -> Option<()> {
        while length > 0 {
            if self.read.is_empty() {
                self.more()?;
            }
            let here = self.read.len().min(length);
            take(&self.read[..here]);
            self.read.drain(..here);
            length -= here;
        }
        Some(())
    }

    /// True once the other side has ended or reset the connection, and all it sent was read.
    pub fn has_ended(&mut self) -> bool {
        self.read.is_empty() && self.more().is_none()
    }

    /// Reads what comes next; `None` at the end of the connection.
    pub fn some(&mut self) -> Option<Vec<u8>> {
        if self.read.is_empty() {
            self.more()?;
        }
        Some(std::mem::take(&mut self.read))
    }

    /// Reads to the end of the connection: all bytes, or how it failed.
    pub fn rest(&mut self) -> Result<Vec<u8>, io::ErrorKind> {
        let mut rest = std::mem::take(&mut self.read);
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => Ok(rest),
            Err(error) => Err(error.kind()),
        }
    }

    /// The bare connection; nothing of it must have been read.
    pub fn into_stream(self) -> TcpStream {
        assert!(self.read.is_empty(), "bytes would be lost");
        self.stream
    }

    /// Waits until the other side ends or resets the connection.
    pub fn wait_for_end(&mut self) {
        while self.more().is_some() {}
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        client::reset(self.stream);
    }

    /// Sends bytes and the FIN in one segment, so that the reader gets both at once.
    pub fn send_last(mut self, bytes: impl AsRef<[u8]>) {
        let _ = SockRef::from(&self.stream).set_tcp_cork(true);
        self.send(bytes);
    }

    /// Ends our sending side (FIN) and keeps the rest open.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    fn more(&mut self) -> Option<()> {
        let mut buffer = vec![0; 64 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) | Err(_) => None,
            Ok(length) => {
                self.read.extend_from_slice(&buffer[..length]);
                Some(())
            }
        }
    }
}

/// A listening backend; it stops listening when dropped.
pub struct ScriptedPeer {
    /// Address that it listens on.
    pub address: SocketAddr,
    /// Requests, in the order of arrival.
    pub requests: Recorder<BackendRequest>,
    accepted: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl ScriptedPeer {
    /// Runs `script` for every connection, each in a thread of its own.
    pub fn start(script: impl Fn(PeerConnection) + Send + Sync + 'static) -> Self {
        Self::start_at(refused(), script)
    }

    /// Like [`ScriptedPeer::start`], at a given address: a backend that comes back where it was.
    pub fn start_at(
        address: SocketAddr,
        script: impl Fn(PeerConnection) + Send + Sync + 'static,
    ) -> Self {
        let listener =
            TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        Self::start_on(listener, script)
    }

    /// Like [`ScriptedPeer::start`], on a socket that the test has prepared.
    pub fn start_on(
        listener: TcpListener,
        script: impl Fn(PeerConnection) + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let requests = Recorder::default();
        let accepted = Arc::new(AtomicUsize::new(0));
        let stopped = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (requests, accepted, stopped) = (
                requests.clone(),
                Arc::clone(&accepted),
                Arc::clone(&stopped),
            );
            let script = Arc::new(script);
            move || {
                for stream in listener.incoming() {
                    if stopped.load(SeqCst) {
                        return;
                    }
                    let stream = stream.unwrap();
                    let _ = stream.set_nodelay(true);
                    let connection = PeerConnection {
                        stream,
                        read: Vec::new(),
                        number: accepted.fetch_add(1, SeqCst),
                        requests: requests.clone(),
                    };
                    let script = Arc::clone(&script);
                    thread::spawn(move || script(connection));
                }
            }
        });
        Self {
            address,
            requests,
            accepted,
            stopped,
            thread: Some(thread),
        }
    }

    /// A well-behaved server: answers every request of a connection with `body`.
    pub fn answering(body: &str) -> Self {
        let body = body.to_owned();
        Self::start(
            move |mut connection| {
                while connection.request().is_some() && connection.answer(&body) {}
            },
        )
    }

    /// Like [`ScriptedPeer::answering`], but at `/slow` not before the gate opens.
    pub fn slow(gate: &Gate, body: &str) -> Self {
        let (door, body) = (gate.clone(), body.to_owned());
        Self::start(move |mut connection| {
            while let Some(request) = connection.request() {
                if request.target == "/slow" {
                    door.wait();
                }
                if !connection.answer(&body) {
                    return;
                }
            }
        })
    }

    /// Reads one request, then sends `bytes` and ends the connection.
    pub fn saying(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |mut connection| {
            if connection.request().is_some() {
                connection.send_last(&bytes);
            }
        })
    }

    /// Reads one request, sends `bytes`, then resets the connection.
    pub fn resetting_after(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |mut connection| {
            if connection.request().is_some() {
                connection.send(&bytes);
                connection.reset();
            }
        })
    }

    /// Takes requests and answers nothing until the other side gives up.
    pub fn silent() -> Self {
        Self::start(|mut connection| while connection.request().is_some() {})
    }

    /// Number of connections accepted so far.
    pub fn connections(&self) -> usize {
        self.accepted.load(SeqCst)
    }

    /// Waits until `count` requests were read and gives them all.
    pub fn wait_for_requests(&self, count: usize) -> Vec<BackendRequest> {
        self.requests
            .wait_for(|all| (all.len() >= count).then(|| all.to_vec()))
            .unwrap_or_else(|| {
                panic!(
                    "fewer than {count} requests came: {:?}",
                    self.requests.all()
                )
            })
    }
}

impl Drop for ScriptedPeer {
    fn drop(&mut self) {
        self.stopped.store(true, SeqCst);
        // Wakes the accept call, which then sees the flag and closes the listener.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An address that neither accepts nor refuses connections: its accept queue is full and stays
/// full.
pub struct Blackhole {
    /// Address to connect to in vain.
    pub address: SocketAddr,
    _listener: Socket,
    _fillers: Vec<Socket>,
}

impl Blackhole {
    /// Listens with a queue of one and fills it.
    pub fn start() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let fillers = (0..4)
            .map(|_| {
                let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                filler.set_nonblocking(true).unwrap();
                // In progress, or done for the first: both fill the queue.
                let _ = filler.connect(&address.into());
                filler
            })
            .collect();
        Self {
            address,
            _listener: listener,
            _fillers: fillers,
        }
    }
}

/// An address of this machine without a listener, so that connecting is refused.
///
/// It stays bound until the calling thread, which is the test's, ends: no other socket gets its
/// port from the kernel meanwhile, and a [`ScriptedPeer`] may listen there, because both have
/// `SO_REUSEADDR`.
pub fn refused() -> SocketAddr {
    thread_local! {
        static BOUND: RefCell<Vec<Socket>> = const { RefCell::new(Vec::new()) };
    }
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    BOUND.with_borrow_mut(|bound| bound.push(socket));
    address
}
