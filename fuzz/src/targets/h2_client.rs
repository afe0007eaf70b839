//! Frames of an HTTP/2 client: each request is one request of HTTP/1.1, and complete only if the
//! client has ended the stream. The output is valid HTTP/2, stays within the client's windows and
//! never stalls behind them.

mod received_frames;
mod sent_frames;

use std::{
    future::poll_fn,
    io::{Read, Write},
    os::unix::net::UnixStream,
    rc::Rc,
    task::{Context, Poll},
};

use balancer::{
    base::rng::Random,
    http::{
        message::{BodyFraming, RequestHead},
        rules::HeadLimits,
    },
    http1::{
        body::{BodyDecoder, BodyStep},
        request,
    },
    http2::frame::CLIENT_PREFACE,
    net::{
        h2::{
            Http1Adapter, StreamError,
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

use self::{received_frames::ReceivedFrames, sent_frames::SentFrames};

/// Empty SETTINGS, RFC 9113 section 6.5.
const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const HEAD_LIMITS: HeadLimits = HeadLimits {
    fields: 40,
    bytes: 8 << 10,
};
/// Concurrent streams.
const MAX_STREAMS: usize = 8;
/// Bytes that a client may send on all streams beyond those that were read: initial windows, growth
/// of the windows, and released bytes that are not yet announced.
const MAX_WINDOW_BYTES: u64 = ((MAX_STREAMS as u64 * 256) << 10) + MAX_GROWTH_BYTES + (512 << 10);
/// Growth of all stream windows.
const MAX_GROWTH_BYTES: u64 = 6 << 20;
/// Turns after which everything under way must have arrived.
const MAX_TURNS: usize = 10_000;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
}

/// Progress of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestProgress {
    Open,
    Whole,
    Cut,
}

/// Request and its response.
struct FuzzExchange {
    incoming: Option<IncomingStream>,
    is_refused: bool,
    text: Vec<u8>,
    reading: RequestProgress,
    response: Vec<u8>,
    written: usize,
    /// Body of the response.
    content: Vec<u8>,
    /// The exchange is dropped before its response is complete.
    is_left: bool,
    has_failed: bool,
}

impl FuzzExchange {
    fn new(connection: &Rc<Connection>, request: IncomingRequest, index: usize) -> Self {
        let incoming = IncomingStream::new(Rc::clone(connection), request);
        let is_left = index % 4 == 3 && incoming.expected_accept().is_none();
        let (response, content) = response(index, incoming.expected_accept());
        Self {
            is_refused: incoming.refusal().is_some(),
            incoming: Some(incoming),
            text: Vec::new(),
            reading: RequestProgress::Open,
            response,
            written: 0,
            content,
            is_left,
            has_failed: false,
        }
    }

    /// Reads and writes as much as possible; true if that was something.
    fn turn(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(incoming) = &self.incoming else {
            return false;
        };
        let before = (self.text.len(), self.written);
        let mut buffer = [0; 2_000];
        while self.reading == RequestProgress::Open {
            let mut target = ReadBuf::new(&mut buffer);
            match incoming.poll_read(cx, &mut target) {
                Poll::Ready(Ok(())) if target.filled().is_empty() => {
                    self.reading = RequestProgress::Whole
                }
                Poll::Ready(Ok(())) => self.text.extend_from_slice(target.filled()),
                Poll::Ready(Err(_)) => self.reading = RequestProgress::Cut,
                Poll::Pending => break,
            }
        }
        while self.written < self.response.len() && !self.has_failed {
            match incoming.poll_write(cx, &self.response[self.written..]) {
                Poll::Ready(Ok(count)) => self.written += count,
                Poll::Ready(Err(_)) => self.has_failed = true,
                Poll::Pending => break,
            }
        }
        let is_written = self.has_failed || self.written == self.response.len();
        if is_written && incoming.expected_accept().is_some() {
            incoming.finish();
        }
        if is_written && (self.is_left || self.reading != RequestProgress::Open) {
            self.incoming = None;
            return true;
        }
        before != (self.text.len(), self.written)
    }

    fn is_head(&self) -> bool {
        self.text.starts_with(b"HEAD ")
    }

    /// Content of the request; `None` if its length is unknown.
    fn request(&self) -> Option<Vec<u8>> {
        if self.is_refused {
            assert!(self.text.is_empty(), "a request and a refusal");
            return None;
        }
        let mut head = RequestHead {
            bytes: self.text.clone(),
            ..RequestHead::default()
        };
        let is_whole = request::parse(&mut head, HEAD_LIMITS).ok()?;
        assert!(is_whole, "half a head");
        let rest = &self.text[head.len..];
        let mut decoder = match head.framing {
            BodyFraming::None if head.upgrade.is_some() => return Some(rest.to_vec()),
            BodyFraming::None | BodyFraming::UntilClose => BodyDecoder::Length(0),
            BodyFraming::Length(length) => BodyDecoder::Length(length),
            BodyFraming::Streamed(_) => BodyDecoder::chunked(HEAD_LIMITS),
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
                        self.reading != RequestProgress::Whole,
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

/// Response that contains `index`, and its content.
fn response(index: usize, accept: Option<&str>) -> (Vec<u8>, Vec<u8>) {
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

/// Client, its connection, and all frames in both directions.
struct ClientFixture {
    peer: UnixStream,
    connection: Rc<Connection>,
    exchanges: Vec<FuzzExchange>,
    sent: SentFrames,
    received: ReceivedFrames,
    is_over: bool,
}

impl ClientFixture {
    /// Creates a client whose first bytes are `first`.
    fn new(first: &[u8]) -> Self {
        let (peer, ours) = UnixStream::pair().expect("two sockets");
        for one in [&peer, &ours] {
            one.set_nonblocking(true)
                .expect("sockets that do not block");
        }
        let ours = tokio::net::UnixStream::from_std(ours).expect("a socket of the runtime");
        let preface = [CLIENT_PREFACE, &EMPTY_SETTINGS, first].concat();
        let random = Random::seeded(1);
        let mut sent = SentFrames::new();
        sent.add(first);
        // All of it takes effect before any response.
        sent.settle();
        Self {
            peer,
            connection: Connection::of_client(
                Stream::from(ours),
                &preface,
                HEAD_LIMITS,
                MAX_STREAMS,
                random,
            ),
            exchanges: Vec::new(),
            sent,
            received: ReceivedFrames::new(),
            is_over: false,
        }
    }

    /// Lets both sides do all they can; true if that was something.
    fn turn(&mut self, cx: &mut Context<'_>) -> bool {
        let mut did = false;
        while let Poll::Ready(request) = self.connection.poll(cx) {
            let Some(request) = request else {
                did |= !std::mem::replace(&mut self.is_over, true);
                break;
            };
            did = true;
            let index = self.exchanges.len();
            self.exchanges
                .push(FuzzExchange::new(&self.connection, request, index));
        }
        for exchange in &mut self.exchanges {
            did |= exchange.turn(cx);
        }
        let mut buffer = [0; 32 << 10];
        while let Ok(count @ 1..) = self.peer.read(&mut buffer) {
            self.received.add(&buffer[..count], &self.sent);
            did = true;
        }
        did
    }

    /// Takes turns until two of them in a row had no effect.
    async fn settle(&mut self) {
        let mut idle_turns = 0;
        for _ in 0..MAX_TURNS {
            let did = poll_fn(|cx| Poll::Ready(self.turn(cx))).await;
            idle_turns = if did { 0 } else { idle_turns + 1 };
            if idle_turns == 2 {
                self.sent.settle();
                return;
            }
            yield_now().await;
        }
        panic!("no end of turns");
    }

    /// Stream of the response number `index`.
    fn id_of(&self, index: usize) -> Option<u32> {
        let mut all = self.received.streams.iter();
        all.find(|(_, response)| response.index == Some(index))
            .map(|(id, _)| *id)
    }

    /// Checks that unwritten output waits for the client only.
    fn check_progress(&self) {
        if self.connection.close_reason().is_some() || self.is_over {
            return;
        }
        for (index, exchange) in self.exchanges.iter().enumerate() {
            if exchange.has_failed || exchange.reading == RequestProgress::Cut {
                continue;
            }
            let id = self.id_of(index).expect("a head that no window holds up");
            let response = &self.received.streams[&id];
            if exchange.written == exchange.response.len() {
                let is_over = response.has_end || response.is_reset;
                assert!(is_over, "stream {id} is left without an end");
                continue;
            }
            let is_stuck = self.received.has_room(id, &self.sent);
            assert!(!is_stuck, "the response on stream {id} is stuck");
        }
    }

    fn check(&self) {
        let is_cut = self.connection.close_reason() == Some(StreamError::Lost);
        self.received
            .finish(is_cut, MAX_WINDOW_BYTES, MAX_GROWTH_BYTES, &self.sent);
        for (index, exchange) in self.exchanges.iter().enumerate() {
            let content = exchange.request();
            let Some(id) = self.id_of(index) else {
                continue;
            };
            let request = self.sent.streams.get(&id);
            if let (Some(content), Some(request)) = (content, request) {
                assert!(request.content.starts_with(&content), "content of others");
                if exchange.reading == RequestProgress::Whole {
                    assert!(request.has_end, "an end that the client did not come to");
                    assert_eq!(request.content, content);
                }
            }
            let response = &self.received.streams[&id];
            assert!(exchange.content.starts_with(&response.content));
            // A refused request may have been a HEAD: there is no text to know it by.
            let may_be_head = exchange.is_refused && response.content.is_empty();
            if response.has_end && !exchange.is_head() {
                assert!(may_be_head || response.content == exchange.content);
                assert!(!exchange.is_left, "what was left looks whole");
            }
        }
    }
}

async fn serve(first: &[u8], second: &[u8]) {
    let mut fixture = ClientFixture::new(first);
    fixture.settle().await;
    fixture.check_progress();
    if !fixture.is_over {
        // Frames beyond the socket buffer are cut, as by a client that dies.
        let count = fixture.peer.write(second).unwrap_or(0);
        fixture.sent.add(&second[..count]);
        fixture.settle().await;
        fixture.check_progress();
    }
    let _ = fixture.peer.shutdown(std::net::Shutdown::Write);
    fixture.sent.finish();
    for _ in 0..MAX_TURNS {
        if fixture.is_over {
            break;
        }
        fixture.settle().await;
    }
    assert!(fixture.is_over, "a connection outlives its client");
    drop(fixture.connection.take_stream());
    fixture.settle().await;
    fixture.check();
    for exchange in &fixture.exchanges {
        assert!(exchange.reading != RequestProgress::Open || exchange.is_left);
    }
    fixture.exchanges.clear();
    assert_eq!(
        fixture.connection.open_streams(),
        0,
        "streams without a user"
    );
}

/// Lets a client send `data`: the first byte tells how much of it, in 255ths, comes before the
/// client waits for responses.
pub fn run(data: &[u8]) {
    let Some((cut, frames)) = data.split_first() else {
        return;
    };
    let (first, second) = frames.split_at(frames.len() * usize::from(*cut) / 255);
    RUNTIME.with(|runtime| runtime.block_on(serve(first, second)));
}
