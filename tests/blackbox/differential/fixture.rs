//! Fixture for one case: a backend that records requests and sends scripted bytes, and a client
//! that reads with the strict reader of `wire.rs`. It works with any proxy between the two.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use rustix::net::{RecvFlags, recv};

use super::{
    corpus::CorpusCase,
    wire::{self, ParseOutcome, ParsedMessage},
};
use crate::harness::poll;

/// Message, or part of one, that reached the backend.
#[derive(Debug, Clone)]
pub enum BackendEvent {
    /// A whole message.
    Whole(ParsedMessage),
    /// Bytes that two readers could read differently.
    Unclear(&'static str, String),
    /// The beginning of a message whose rest never came.
    Part,
}

/// An event and the backend connection it came on.
pub type PlacedEvent = (usize, BackendEvent);

#[derive(Default)]
struct EventLines {
    events: Vec<PlacedEvent>,
    /// Streams to look at for bytes that are not read yet, and what was read and is no whole
    /// message.
    live: Vec<(usize, TcpStream, Vec<u8>)>,
    next: usize,
}

/// Progress of the client, for scripts that wait for it.
#[derive(Default)]
struct Progress {
    received: usize,
    has_whole: bool,
    script_done: bool,
}

#[derive(Clone, Default)]
struct FixtureState {
    lines: Arc<Mutex<EventLines>>,
    progress: Arc<(Mutex<Progress>, Condvar)>,
    scripts: Arc<Vec<CorpusCase>>,
    patience: Duration,
}

/// The fixture: its backend runs until the test ends.
pub struct ProxyFixture {
    /// Address of the backend.
    pub backend: SocketAddr,
    shared: FixtureState,
}

/// End of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// In order.
    Fin,
    /// By a reset.
    Reset,
    /// Not at all, in the time allowed.
    Never,
}

/// Everything that the client received.
#[derive(Debug, Clone)]
pub struct Transcript {
    /// Final responses, and 101.
    pub answers: Vec<ParsedMessage>,
    /// Statuses of the 1xx before the first final response.
    pub interim: Vec<u16>,
    /// The last response lasted until the end of the connection.
    pub until_end: bool,
    /// Reason why the strict reader gave up.
    pub unclear: Option<&'static str>,
    /// A response began and did not end.
    pub part: Option<Vec<u8>>,
    /// Everything.
    pub bytes: Vec<u8>,
    /// End of the connection.
    pub end: ConnectionEnd,
}

impl ProxyFixture {
    /// Starts a backend that speaks `scripts`; nothing waits longer than `patience`.
    pub fn new(scripts: Vec<CorpusCase>, patience: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = listener.local_addr().unwrap();
        let shared = FixtureState {
            scripts: Arc::new(scripts),
            patience,
            ..FixtureState::default()
        };
        let of_backend = shared.clone();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                let shared = of_backend.clone();
                thread::spawn(move || CorpusBackend::new(shared, stream, number).run());
            }
        });
        Self { backend, shared }
    }

    /// Sends a request case through the proxy at `front`, in `pieces` writes or a few less, and
    /// ends the sending side.
    pub fn play_request(
        &self,
        front: SocketAddr,
        case: &CorpusCase,
        pieces: usize,
    ) -> (Transcript, Vec<PlacedEvent>) {
        let mut bytes = case.bytes.clone();
        if !case.is("cut") {
            bytes.extend_from_slice(b"GET /after HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        }
        let mut client = self.connect(front);
        for piece in bytes.chunks(bytes.len().div_ceil(pieces)) {
            // A proxy that refuses early may close while we are still sending.
            let _ = client.write_all(piece);
        }
        let _ = client.shutdown(Shutdown::Write);
        let method = if bytes.starts_with(b"HEAD ") {
            "HEAD"
        } else {
            "GET"
        };
        let transcript = self.read(&client, Vec::new(), method);
        (transcript, self.events(front))
    }

    /// Asks for a response case through the proxy, then for something else on the same connection.
    pub fn play_response(
        &self,
        front: SocketAddr,
        number: usize,
        case: &CorpusCase,
    ) -> (Transcript, Option<Transcript>, Vec<PlacedEvent>) {
        *self.shared.progress.0.lock().unwrap() = Progress::default();
        let client = self.connect(front);
        let method = if case.is("HEAD") { "HEAD" } else { "GET" };
        let _ = (&client).write_all(&request_for(case, number));
        let (first, rest) = self.read_one(&client, method);
        let whole = first.unclear.is_none() && !first.answers.is_empty() && !first.until_end;
        self.tell(|progress| progress.has_whole = true);
        // The script has said its last before anything else is asked, so that what it says too much
        // is there in time.
        self.wait(|progress| progress.script_done || progress.received == 0);
        let switched = first
            .answers
            .first()
            .is_some_and(|answer| answer.status() == 101);
        let second = (whole && !switched && first.end == ConnectionEnd::Never).then(|| {
            let follow =
                format!("GET /ok/{number} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let _ = (&client).write_all(follow.as_bytes());
            self.read(&client, rest, "GET")
        });
        (first, second, self.events(front))
    }

    fn connect(&self, front: SocketAddr) -> TcpStream {
        let client = TcpStream::connect(front).unwrap_or_else(|error| panic!("{front}: {error}"));
        client.set_nodelay(true).unwrap();
        client.set_read_timeout(Some(self.shared.patience)).unwrap();
        client
            .set_write_timeout(Some(self.shared.patience))
            .unwrap();
        client
    }

    /// Reads one response; what came behind it, too.
    fn read_one(&self, client: &TcpStream, method: &str) -> (Transcript, Vec<u8>) {
        let mut bytes = Vec::new();
        let mut end = ConnectionEnd::Never;
        loop {
            let (transcript, used) = understand(&bytes, method, end, true);
            let whole = !transcript.answers.is_empty() && !transcript.until_end;
            if whole || transcript.unclear.is_some() || end != ConnectionEnd::Never {
                return (transcript, bytes.split_off(used.min(bytes.len())));
            }
            end = match self.more(client, &mut bytes) {
                None => continue,
                Some(ConnectionEnd::Never) => return (transcript, Vec::new()),
                Some(end) => end,
            };
        }
    }

    /// Reads to the end of the connection.
    fn read(&self, client: &TcpStream, mut bytes: Vec<u8>, method: &str) -> Transcript {
        let end = loop {
            if let Some(end) = self.more(client, &mut bytes) {
                break end;
            }
        };
        understand(&bytes, method, end, false).0
    }

    fn more(&self, mut client: &TcpStream, bytes: &mut Vec<u8>) -> Option<ConnectionEnd> {
        let mut buffer = [0; 16 << 10];
        match client.read(&mut buffer) {
            Ok(0) => Some(ConnectionEnd::Fin),
            Ok(count) => {
                bytes.extend_from_slice(&buffer[..count]);
                self.tell(|progress| progress.received += count);
                None
            }
            Err(error) => Some(match error.kind() {
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                    ConnectionEnd::Never
                }
                _ => ConnectionEnd::Reset,
            }),
        }
    }

    /// Events at the backend since the last call, once proxy and backend have processed everything.
    fn events(&self, front: SocketAddr) -> Vec<PlacedEvent> {
        // The proxy responds to this after all that it had to do before.
        let client = self.connect(front);
        let _ = (&client).write_all(b"GET /sync HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        self.read(&client, Vec::new(), "GET");
        poll(|| {
            let lines = self.shared.lines.lock().unwrap();
            let quiet = lines.live.iter().all(|(_, stream, _)| {
                let peeked = recv(
                    stream,
                    &mut [0_u8; 1],
                    RecvFlags::PEEK | RecvFlags::DONTWAIT,
                );
                !matches!(peeked, Ok((_, 1..)))
            });
            quiet.then_some(())
        });
        let mut lines = self.shared.lines.lock().unwrap();
        let mut events = std::mem::take(&mut lines.events);
        for (number, _, rest) in &mut lines.live {
            if !rest.is_empty() {
                events.push((*number, BackendEvent::Part));
            }
        }
        lines.live.retain(|(_, _, rest)| rest.is_empty());
        events
    }

    fn tell(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.shared.progress.0.lock().unwrap());
        self.shared.progress.1.notify_all();
    }

    fn wait(&self, until: impl Fn(&Progress) -> bool) {
        self.shared.wait(until);
    }
}

impl FixtureState {
    fn script_done(&self) {
        self.progress.0.lock().unwrap().script_done = true;
        self.progress.1.notify_all();
    }

    fn wait(&self, until: impl Fn(&Progress) -> bool) {
        let (progress, changed) = &*self.progress;
        let _ = changed
            .wait_timeout_while(progress.lock().unwrap(), self.patience, |progress| {
                !until(progress)
            })
            .unwrap();
    }
}

/// The request for a response case.
fn request_for(case: &CorpusCase, number: usize) -> Vec<u8> {
    let (mut method, mut version, mut fields, mut body) = ("GET", "1.1", String::new(), 0);
    if case.is("HEAD") {
        method = "HEAD";
    }
    if case.is("old") {
        version = "1.0";
    }
    if case.is("upgrade") {
        fields.push_str("Connection: upgrade\r\nUpgrade: websocket\r\n");
        fields.push_str("Sec-WebSocket-Version: 13\r\n");
        fields.push_str("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
    }
    if case.is("upload") {
        method = "POST";
        body = 40_000;
        fields.push_str("Content-Length: 40000\r\n");
    }
    if case.is("unfinished") {
        method = "POST";
        body = 10;
        fields.push_str("Content-Length: 100000\r\n");
    }
    let place = if case.is("slow") { "/slow" } else { "/r" };
    let head = format!("{method} {place}/{number} HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
    let mut request = head.into_bytes();
    request.resize(request.len() + body, b'u');
    request
}

/// Reads answers from `bytes` until the end, or only the first; and how many bytes those are.
fn understand(
    bytes: &[u8],
    method: &str,
    end: ConnectionEnd,
    only_first: bool,
) -> (Transcript, usize) {
    let mut transcript = Transcript {
        answers: Vec::new(),
        interim: Vec::new(),
        until_end: false,
        unclear: None,
        part: None,
        bytes: bytes.to_vec(),
        end,
    };
    let mut at = 0;
    while at < bytes.len() && (!only_first || transcript.answers.is_empty()) {
        let method = if transcript.answers.is_empty() {
            method
        } else {
            "GET"
        };
        match wire::response(&bytes[at..], method) {
            ParseOutcome::Whole(message, used) => {
                at += used;
                match message.status() {
                    status @ (100 | 102..=199) => transcript.interim.push(status),
                    101 => {
                        // What follows is another protocol.
                        transcript.answers.push(message);
                        break;
                    }
                    _ => transcript.answers.push(message),
                }
            }
            ParseOutcome::UntilEnd(mut message, body) => {
                message.body = bytes[at + body..].to_vec();
                transcript.until_end = true;
                if end == ConnectionEnd::Fin {
                    transcript.answers.push(message);
                } else {
                    transcript.part = Some(bytes[at..].to_vec());
                }
                at = bytes.len();
            }
            ParseOutcome::Part => {
                transcript.part = Some(bytes[at..].to_vec());
                break;
            }
            ParseOutcome::Unclear(problem) => {
                transcript.unclear = Some(problem);
                break;
            }
        }
    }
    (transcript, at)
}

/// The backend's end of one connection.
struct CorpusBackend {
    shared: FixtureState,
    stream: TcpStream,
    number: usize,
    /// A script has answered the request that is still being read.
    answered_early: bool,
    /// A script has ended this connection.
    spoke: bool,
}

impl CorpusBackend {
    fn new(shared: FixtureState, stream: TcpStream, number: usize) -> Self {
        let _ = stream.set_nodelay(true);
        let _ = stream.set_write_timeout(Some(shared.patience));
        let watched = stream.try_clone().unwrap();
        shared
            .lines
            .lock()
            .unwrap()
            .live
            .push((number, watched, Vec::new()));
        Self {
            shared,
            stream,
            number,
            answered_early: false,
            spoke: false,
        }
    }

    fn run(mut self) {
        // Waiting is done without the lock, reading and recording with it: a holder sees both or
        // neither.
        while matches!(self.stream.peek(&mut [0]), Ok(1..)) {
            let Some(replies) = self.take() else { break };
            if !replies
                .into_iter()
                .all(|(seen, target)| self.reply(seen, &target))
            {
                break;
            }
        }
        self.end();
        let Self {
            shared,
            stream,
            spoke,
            ..
        } = self;
        // With the last handle the connection ends, and where the script wants it, by a reset.
        drop(stream);
        if spoke {
            shared.script_done();
        }
    }

    fn end(&self) {
        let mut lines = self.shared.lines.lock().unwrap();
        if let Some(at) = lines
            .live
            .iter()
            .position(|(number, ..)| *number == self.number)
        {
            let (_, _, rest) = lines.live.swap_remove(at);
            if !rest.is_empty() {
                lines.events.push((self.number, BackendEvent::Part));
            }
        }
    }

    /// Reads what is there; the requests to be answered. `None`: the connection is over.
    fn take(&mut self) -> Option<Vec<(usize, String)>> {
        let shared = self.shared.clone();
        let mut lines = shared.lines.lock().unwrap();
        let lines = &mut *lines;
        let mut buffer = vec![0; 64 << 10];
        let count = self
            .stream
            .read(&mut buffer)
            .ok()
            .filter(|count| *count > 0)?;
        let (_, _, rest) = lines
            .live
            .iter_mut()
            .find(|(number, ..)| *number == self.number)?;
        rest.extend_from_slice(&buffer[..count]);
        let mut replies = Vec::new();
        loop {
            match wire::request(rest) {
                ParseOutcome::Whole(message, used) => {
                    rest.drain(..used);
                    lines.next += 1;
                    let target = message.word(1).to_owned();
                    if !std::mem::take(&mut self.answered_early) {
                        replies.push((lines.next, target.clone()));
                    }
                    if target != "/sync" {
                        lines
                            .events
                            .push((self.number, BackendEvent::Whole(message)));
                    }
                    if rest.is_empty() {
                        return Some(replies);
                    }
                }
                ParseOutcome::Unclear(problem) => {
                    let bytes = wire::latin(rest);
                    rest.clear();
                    lines
                        .events
                        .push((self.number, BackendEvent::Unclear(problem, bytes)));
                    return None;
                }
                ParseOutcome::Part | ParseOutcome::UntilEnd(..) => {
                    replies.extend(self.early(rest));
                    return Some(replies);
                }
            }
        }
    }

    /// A request that is answered as soon as its head is there.
    fn early(&mut self, rest: &[u8]) -> Option<(usize, String)> {
        wire::find(rest, b"\r\n\r\n")?;
        let head = wire::latin(rest);
        let target = head.split(' ').nth(1)?;
        let is_early = self.script(target)?.is("early") && !self.answered_early;
        self.answered_early |= is_early;
        is_early.then(|| (0, target.to_owned()))
    }

    fn script(&self, target: &str) -> Option<CorpusCase> {
        let number = target
            .strip_prefix("/r/")
            .or_else(|| target.strip_prefix("/slow/"))?;
        self.shared
            .scripts
            .get(number.parse::<usize>().ok()?)
            .cloned()
    }

    /// Answers one request; false if the connection is over.
    fn reply(&mut self, seen: usize, target: &str) -> bool {
        if let Some(script) = self.script(target) {
            self.spoke = !self.speak(&script);
            if !self.spoke {
                self.shared.script_done();
            }
            return !self.spoke;
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\nX-Seen: {seen}\r\nX-Target: {target}\r\nContent-Length: 0\r\n\r\n"
        );
        self.stream.write_all(answer.as_bytes()).is_ok()
    }

    /// Plays a script: `{pause}` waits until the client has got something, `{idle}` until it has a
    /// whole response, `{drip}` sends the remaining bytes one by one, more slowly than any timeout.
    fn speak(&mut self, script: &CorpusCase) -> bool {
        let mut rest = &script.bytes[..];
        let last = script.is("close");
        while let Some(at) = wire::find(rest, b"{") {
            let step_end = at + wire::find(&rest[at..], b"}").unwrap();
            let (said, step) = (&rest[..at], &rest[at + 1..step_end]);
            rest = &rest[step_end + 1..];
            let before = self.shared.progress.0.lock().unwrap().received;
            let _ = self.stream.write_all(said);
            match step {
                b"nothing" => {}
                b"pause" => self.shared.wait(|progress| progress.received > before),
                b"idle" => self.shared.wait(|progress| progress.has_whole),
                b"drip" => {
                    for byte in rest {
                        if self.stream.write_all(&[*byte]).is_err() {
                            return false;
                        }
                        thread::sleep(Duration::from_millis(40));
                    }
                    rest = &[];
                }
                other => panic!("an unknown step: {}", other.escape_ascii()),
            }
        }
        if last {
            // The FIN comes in the same segment, so that the reader gets both at once.
            let _ = socket2::SockRef::from(&self.stream).set_tcp_cork(true);
        }
        let sent = self.stream.write_all(rest).is_ok();
        if script.is("reset") {
            let stream = socket2::SockRef::from(&self.stream);
            stream.set_linger(Some(Duration::ZERO)).unwrap();
            return false;
        }
        if last {
            let _ = self.stream.shutdown(Shutdown::Write);
            self.shared.script_done();
            // Closing with bytes unread would be a reset.
            let _ = self.stream.set_read_timeout(Some(self.shared.patience));
            while matches!(self.stream.read(&mut [0; 4096]), Ok(1..)) {}
            return false;
        }
        sent
    }
}
