//! Frames of a client that speaks HTTP/2: each request that they make is one request of HTTP/1.1, and whole only if the
//! client has come to its end; what goes out is frames of HTTP/2, within the client's windows and never stuck behind them.

mod heard;
mod said;

use std::{
    future::poll_fn,
    io::{Read, Write},
    os::unix::net::UnixStream,
    rc::Rc,
    task::{Context, Poll},
};

use balancer::{
    base::rng::Random,
    http1::{
        body::{BodyDecoder, BodyStep},
        request::{RequestFraming, RequestHead, HeadLimits},
    },
    http2::frame::CLIENT_PREFACE,
    net::{
        h2::{
            StreamError, Http1Adapter,
            connection::Connection,
            incoming::{IncomingRequest, IncomingStream},
        },
        stream::Stream,
    },
};
use tokio::{
    io::ReadBuf,
    runtime::{Builder, Runtime},
    task::yield_now,
};

use self::{heard::Heard, said::Said};

/// Empty settings, RFC 9113 section 6.5.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const LIMITS: HeadLimits = HeadLimits {
    fields: 40,
    bytes: 8 << 10,
};
/// Streams at a time.
const MOST: usize = 8;
/// Bytes that a client may send on all streams, beside those that were taken: the first window of each stream, what the
/// windows of streams may grow by, and what is worth an update.
const WINDOW: u64 = ((MOST as u64 * 256) << 10) + GROWTH + (512 << 10);
/// Bytes by which the windows of all streams may grow.
const GROWTH: u64 = 6 << 20;
/// Turns after which nothing that is under way can still be on its way.
const TURNS: usize = 10_000;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Open,
    Whole,
    Cut,
}

/// A request, and its answer.
struct Exchange {
    incoming: Option<IncomingStream>,
    is_refused: bool,
    text: Vec<u8>,
    reading: Reading,
    answer: Vec<u8>,
    written: usize,
    /// The body of the answer.
    content: Vec<u8>,
    /// It is left before its answer is whole.
    is_left: bool,
    has_failed: bool,
}

impl Exchange {
    fn new(connection: &Rc<Connection>, asked: IncomingRequest, index: usize) -> Self {
        let incoming = IncomingStream::new(Rc::clone(connection), asked);
        let is_left = index % 4 == 3 && incoming.expected_accept().is_none();
        let (answer, content) = answer(index, incoming.expected_accept());
        Self {
            is_refused: incoming.refusal().is_some(),
            incoming: Some(incoming),
            text: Vec::new(),
            reading: Reading::Open,
            answer,
            written: 0,
            content,
            is_left,
            has_failed: false,
        }
    }

    /// Reads and writes what can be; true if that was something.
    fn turn(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(incoming) = &self.incoming else {
            return false;
        };
        let before = (self.text.len(), self.written);
        let mut room = [0; 2_000];
        while self.reading == Reading::Open {
            let mut target = ReadBuf::new(&mut room);
            match incoming.poll_read(cx, &mut target) {
                Poll::Ready(Ok(())) if target.filled().is_empty() => self.reading = Reading::Whole,
                Poll::Ready(Ok(())) => self.text.extend_from_slice(target.filled()),
                Poll::Ready(Err(_)) => self.reading = Reading::Cut,
                Poll::Pending => break,
            }
        }
        while self.written < self.answer.len() && !self.has_failed {
            match incoming.poll_write(cx, &self.answer[self.written..]) {
                Poll::Ready(Ok(count)) => self.written += count,
                Poll::Ready(Err(_)) => self.has_failed = true,
                Poll::Pending => break,
            }
        }
        let is_written = self.has_failed || self.written == self.answer.len();
        if is_written && incoming.expected_accept().is_some() {
            incoming.finish();
        }
        if is_written && (self.is_left || self.reading != Reading::Open) {
            self.incoming = None;
            return true;
        }
        before != (self.text.len(), self.written)
    }

    fn is_head(&self) -> bool {
        self.text.starts_with(b"HEAD ")
    }

    /// The content of the request; `None` if it is not known how long it is.
    fn request(&self) -> Option<Vec<u8>> {
        if self.is_refused {
            assert!(self.text.is_empty(), "a request and a refusal");
            return None;
        }
        let mut head = RequestHead {
            bytes: self.text.clone(),
            ..RequestHead::default()
        };
        let is_whole = head.parse(LIMITS).ok()?;
        assert!(is_whole, "half a head");
        let rest = &self.text[head.len..];
        let mut decoder = match head.framing {
            RequestFraming::None if head.upgrade.is_some() => return Some(rest.to_vec()),
            RequestFraming::None => BodyDecoder::Length(0),
            RequestFraming::Length(length) => BodyDecoder::Length(length),
            RequestFraming::Chunked => BodyDecoder::chunked(LIMITS),
        };
        let (mut at, mut content) = (0, Vec::new());
        loop {
            match decoder.step(&rest[at..]) {
                Ok(BodyStep::Data(count)) => {
                    content.extend_from_slice(&rest[at..at + count]);
                    at += count;
                }
                Ok(BodyStep::Skip(count)) => at += count,
                Ok(BodyStep::More) => {
                    assert!(
                        self.reading != Reading::Whole,
                        "a cut that looks like an end"
                    );
                    return Some(content);
                }
                Ok(BodyStep::End) => {
                    assert_eq!(at, rest.len(), "bytes behind the end");
                    return Some(content);
                }
                Err(error) => {
                    assert!(
                        error.to_string().contains("trailer"),
                        "chunks of ours: {error}"
                    );
                    return None;
                }
            }
        }
    }
}

/// An answer that says which one it is, and its content.
fn answer(index: usize, accept: Option<&str>) -> (Vec<u8>, Vec<u8>) {
    let mut content = b"hello".to_vec();
    let text = if let Some(accept) = accept {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nx-index: {index}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\nhello"
        )
    } else {
        match index % 4 {
            1 => {
                content = (0..40_000_u32).map(|place| (place / 3) as u8).collect();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nX-Index: {index}\r\nTransfer-Encoding: chunked\r\n\r\n9c40\r\n"
                );
                let end = b"\r\n0\r\nX-Sum: 1\r\n\r\n";
                return ([head.as_bytes(), &content, end].concat(), content);
            }
            2 => {
                content.clear();
                format!(
                    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 404 Not Found\r\nx-index: {index}\r\nContent-Length: 0\r\n\r\n"
                )
            }
            3 => format!("HTTP/1.1 200 OK\r\nx-index: {index}\r\nContent-Length: 10\r\n\r\nhello"),
            _ => format!("HTTP/1.1 200 OK\r\nx-index: {index}\r\nContent-Length: 5\r\n\r\nhello"),
        }
    };
    (text.into_bytes(), content)
}

/// A client, its connection, and all that they have said.
struct World {
    peer: UnixStream,
    connection: Rc<Connection>,
    exchanges: Vec<Exchange>,
    said: Said,
    heard: Heard,
    is_over: bool,
}

impl World {
    /// The client's first bytes are `first`.
    fn new(first: &[u8]) -> Self {
        let (peer, ours) = UnixStream::pair().expect("two sockets");
        for one in [&peer, &ours] {
            one.set_nonblocking(true)
                .expect("sockets that do not block");
        }
        let ours = tokio::net::UnixStream::from_std(ours).expect("a socket of the runtime");
        let greeting = [CLIENT_PREFACE, &SETTINGS, first].concat();
        let random = Random::seeded(1);
        let mut said = Said::new();
        said.add(first);
        // It is all done before there is an answer.
        said.settle();
        Self {
            peer,
            connection: Connection::of_client(Stream::from(ours), &greeting, LIMITS, MOST, random),
            exchanges: Vec::new(),
            said,
            heard: Heard::new(),
            is_over: false,
        }
    }

    /// Everybody does what can be done; true if that was something.
    fn turn(&mut self, cx: &mut Context<'_>) -> bool {
        let mut did = false;
        while let Poll::Ready(asked) = self.connection.poll(cx) {
            let Some(asked) = asked else {
                did |= !std::mem::replace(&mut self.is_over, true);
                break;
            };
            did = true;
            let index = self.exchanges.len();
            self.exchanges
                .push(Exchange::new(&self.connection, asked, index));
        }
        for exchange in &mut self.exchanges {
            did |= exchange.turn(cx);
        }
        let mut room = [0; 32 << 10];
        while let Ok(count @ 1..) = self.peer.read(&mut room) {
            self.heard.add(&room[..count], &self.said);
            did = true;
        }
        did
    }

    /// Turns until nothing has happened in two of them.
    async fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..TURNS {
            let did = poll_fn(|cx| Poll::Ready(self.turn(cx))).await;
            quiet = if did { 0 } else { quiet + 1 };
            if quiet == 2 {
                self.said.settle();
                return;
            }
            yield_now().await;
        }
        panic!("no end of turns");
    }

    /// Whose answer is on which stream.
    fn id_of(&self, index: usize) -> Option<u32> {
        let mut all = self.heard.streams.iter();
        all.find(|(_, response)| response.index == Some(index))
            .map(|(id, _)| *id)
    }

    /// What is not written can only be held up by the client.
    fn check_progress(&self) {
        if self.connection.close_reason().is_some() || self.is_over {
            return;
        }
        for (index, exchange) in self.exchanges.iter().enumerate() {
            if exchange.has_failed || exchange.reading == Reading::Cut {
                continue;
            }
            let id = self.id_of(index).expect("a head that no window holds up");
            let response = &self.heard.streams[&id];
            if exchange.written == exchange.answer.len() {
                let is_over = response.has_end || response.is_reset;
                assert!(is_over, "stream {id} is left without an end");
                continue;
            }
            let is_stuck = self.heard.has_room(id, &self.said);
            assert!(!is_stuck, "the answer on stream {id} is stuck");
        }
    }

    fn check(&self) {
        let is_cut = self.connection.close_reason() == Some(StreamError::Lost);
        self.heard.finish(is_cut, WINDOW, GROWTH, &self.said);
        for (index, exchange) in self.exchanges.iter().enumerate() {
            let content = exchange.request();
            let Some(id) = self.id_of(index) else {
                continue;
            };
            let asked = self.said.streams.get(&id);
            if let (Some(content), Some(asked)) = (content, asked) {
                assert!(asked.content.starts_with(&content), "content of others");
                if exchange.reading == Reading::Whole {
                    assert!(asked.has_end, "an end that the client did not come to");
                    assert_eq!(asked.content, content);
                }
            }
            let response = &self.heard.streams[&id];
            assert!(exchange.content.starts_with(&response.content));
            // What was refused may have been a HEAD: there is no text to know it by.
            let may_be_head = exchange.is_refused && response.content.is_empty();
            if response.has_end && !exchange.is_head() {
                assert!(may_be_head || response.content == exchange.content);
                assert!(!exchange.is_left, "what was left looks whole");
            }
        }
    }
}

async fn serve(first: &[u8], second: &[u8]) {
    let mut world = World::new(first);
    world.settle().await;
    world.check_progress();
    if !world.is_over {
        // Beyond what fits at once the frames are cut, as by a client that dies.
        let count = world.peer.write(second).unwrap_or(0);
        world.said.add(&second[..count]);
        world.settle().await;
        world.check_progress();
    }
    let _ = world.peer.shutdown(std::net::Shutdown::Write);
    world.said.finish();
    for _ in 0..TURNS {
        if world.is_over {
            break;
        }
        world.settle().await;
    }
    assert!(world.is_over, "a connection outlives its client");
    drop(world.connection.take_stream());
    world.settle().await;
    world.check();
    for exchange in &world.exchanges {
        assert!(exchange.reading != Reading::Open || exchange.is_left);
    }
    world.exchanges.clear();
    assert_eq!(world.connection.open_streams(), 0, "streams that nobody uses");
}

/// Lets a client say `data`: as much as the first byte says, of 255 parts, before it waits for answers.
pub fn run(data: &[u8]) {
    let Some((cut, frames)) = data.split_first() else {
        return;
    };
    let (first, second) = frames.split_at(frames.len() * usize::from(*cut) / 255);
    RUNTIME.with(|runtime| runtime.block_on(serve(first, second)));
}
