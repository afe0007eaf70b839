//! Frames of an HTTP/2 client: each request has the content that the client sent on its stream, and
//! is complete only if the client has ended the stream. The output is valid HTTP/2, stays within
//! the client's windows and never stalls behind them.

mod received_frames;
pub mod sent_frames;

use std::{
    future::poll_fn,
    io::{Read, Write},
    mem,
    os::unix::net::UnixStream,
    rc::Rc,
    task::{Context, Poll},
};

use balancer::{
    h2::{
        StreamError, client::IncomingRequest, connection::Connection, recycle_request,
        stream::H2Stream,
    },
    http::{
        head_writer::HeadWriter,
        message::BodyFraming,
        rules::{HeadFault, HeadLimits, is_allowed_in_trailers},
    },
    http2::{
        block_head::BlockHead,
        frame::{CLIENT_PREFACE, ErrorCode},
    },
    net::driver::end_turn,
};
use tokio::task::yield_now;

use self::{received_frames::ReceivedFrames, sent_frames::SentFrames};
use super::{RUNTIME, pair};

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

/// Progress of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestProgress {
    Open,
    Whole,
    Cut,
}

/// Part of a response.
enum ResponsePart {
    /// Head; nothing follows it if it ends the stream.
    Head {
        status: u16,
        framing: BodyFraming,
        ends: bool,
    },
    /// Content; the stream may end behind it.
    Content { bytes: Vec<u8>, ends: bool },
    /// Trailers, which end the stream.
    Trailers,
}

/// Request and its response.
struct FuzzExchange {
    index: usize,
    stream: Option<H2Stream>,
    refusal: Option<HeadFault>,
    is_tunnel: bool,
    framing: BodyFraming,
    /// Content of the request.
    request: Vec<u8>,
    reading: RequestProgress,
    /// Parts that are not sent yet, in reverse order.
    response: Vec<ResponsePart>,
    /// Bytes of the next part that are sent.
    written: usize,
    /// Content of the response.
    content: Vec<u8>,
    /// The exchange is dropped before its response is complete.
    is_left: bool,
    has_failed: bool,
}

impl FuzzExchange {
    fn new(connection: &Rc<Connection>, asked: IncomingRequest, index: usize) -> Self {
        let (head, refusal) = (&asked.head, asked.refusal.map(|refusal| refusal.fault));
        let stream = H2Stream::of_request(connection, &asked);
        let is_head = head.text(head.method) == b"HEAD";
        let is_tunnel = refusal.is_none() && head.upgrade.is_some();
        let (mut response, content) = response(index, is_head, is_tunnel);
        // As the proxy does, whose own responses have no trailers.
        if refusal == Some(HeadFault::Malformed) {
            stream.end_with_reset(ErrorCode::PROTOCOL_ERROR);
            response.retain(|part| !matches!(part, ResponsePart::Trailers));
        }
        let exchange = Self {
            index,
            stream: Some(stream),
            refusal,
            is_tunnel,
            framing: head.framing,
            request: Vec::new(),
            reading: RequestProgress::Open,
            response: response.into_iter().rev().collect(),
            written: 0,
            content,
            is_left: index % 4 == 3 && !is_tunnel && !is_head,
            has_failed: false,
        };
        recycle_request(asked.head);
        exchange
    }

    /// Reads and writes as much as possible; true if that was something.
    fn turn(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(stream) = self.stream.take() else {
            return false;
        };
        let before = (self.request.len(), self.response.len(), self.written);
        while self.reading == RequestProgress::Open
            && let Poll::Ready(progress) = self.read(&stream, cx)
        {
            self.reading = progress;
        }
        while !self.has_failed
            && let Some(part) = self.response.pop()
        {
            match self.write(&stream, &part, cx) {
                Poll::Ready(Ok(())) => self.written = 0,
                Poll::Ready(Err(_)) => self.has_failed = true,
                Poll::Pending => {
                    self.response.push(part);
                    break;
                }
            }
        }
        if self.is_written() && (self.is_left || self.reading != RequestProgress::Open) {
            return true;
        }
        self.stream = Some(stream);
        before != (self.request.len(), self.response.len(), self.written)
    }

    fn is_written(&self) -> bool {
        self.has_failed || self.response.is_empty()
    }

    /// Reads content once.
    fn read(&mut self, stream: &H2Stream, cx: &Context<'_>) -> Poll<RequestProgress> {
        let is_end = match stream.poll_content(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(_)) => return Poll::Ready(RequestProgress::Cut),
            Poll::Ready(Ok(false)) => true,
            Poll::Ready(Ok(true)) => {
                let (count, is_end) = stream.read_content(&mut self.request, 2_000);
                assert!((1..=2_000).contains(&count));
                is_end
            }
        };
        if !is_end {
            return Poll::Ready(RequestProgress::Open);
        }
        let trailers = stream.take_trailers();
        let mut names = trailers.iter().map(|(name, _)| name);
        assert!(names.all(is_allowed_in_trailers), "forbidden trailers");
        Poll::Ready(RequestProgress::Whole)
    }

    /// Sends as much as possible of `part`; ready when all of it is sent.
    fn write(
        &mut self,
        stream: &H2Stream,
        part: &ResponsePart,
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        match part {
            ResponsePart::Content { bytes, ends } => loop {
                let rest = &bytes[self.written..];
                let sent = match stream.send_content(rest, *ends) {
                    Ok(sent) => sent,
                    Err(ended) => return Poll::Ready(Err(ended)),
                };
                self.written += sent;
                if sent == rest.len() {
                    return Poll::Ready(Ok(()));
                }
                match stream.poll_content_ready(cx) {
                    Poll::Ready(Ok(())) => {}
                    stopped => return stopped,
                }
            },
            ResponsePart::Head {
                status,
                framing,
                ends,
            } => self.write_block(stream, *ends, cx, |block, index| {
                block.status_line(*status, b"");
                if *status < 200 && *status != 101 {
                    block.field(b"Link", b"</a>");
                    return;
                }
                block.field(b"X-Index", index.as_bytes());
                block.framing(*framing);
            }),
            ResponsePart::Trailers => self.write_block(stream, true, cx, |block, _| {
                block.field(b"X-Sum", b"1");
            }),
        }
    }

    fn write_block(
        &self,
        stream: &H2Stream,
        ends: bool,
        cx: &Context<'_>,
        write: impl FnOnce(&mut BlockHead<'_>, &str),
    ) -> Poll<Result<(), StreamError>> {
        stream.poll_head_ready(cx).map(|ready| {
            let index = self.index.to_string();
            ready?;
            let write = |block: &mut BlockHead<'_>| write(block, &index);
            stream.send_head(ends, write).map(drop)
        })
    }

    /// Checks the request against what its client has sent, and the response against ours.
    fn check(&self, id: u32, sent: &SentFrames, received: &ReceivedFrames) {
        let response = &received.streams[&id];
        assert!(self.content.starts_with(&response.content));
        if response.has_end {
            assert!(response.content == self.content);
            assert!(!self.is_left, "what was left looks whole");
            let is_malformed = self.refusal == Some(HeadFault::Malformed);
            assert!(!is_malformed, "a malformed request is an error");
        }
        // Content is read behind a head that is understood, such as one with another expectation.
        let is_understood = matches!(self.framing, BodyFraming::Streamed(_));
        if self.refusal == Some(HeadFault::Malformed) || self.refusal.is_some() && !is_understood {
            return assert!(self.request.is_empty(), "a request and a refusal");
        }
        let Some(request) = sent.streams.get(&id) else {
            return;
        };
        let content = &self.request;
        assert!(request.content.starts_with(content), "content of others");
        if self.reading != RequestProgress::Whole {
            return;
        }
        assert!(request.has_end, "an end that the client did not come to");
        assert_eq!(request.content, *content);
        match self.framing {
            BodyFraming::None => assert!(content.is_empty() || self.is_tunnel),
            BodyFraming::Streamed(length) => {
                assert!(length.is_none_or(|length| length == content.len() as u64));
            }
            framing => panic!("{framing:?} over HTTP/2"),
        }
    }
}

/// Response number `index`, and its content.
fn response(index: usize, is_head: bool, is_tunnel: bool) -> (Vec<ResponsePart>, Vec<u8>) {
    let head = |status, length| ResponsePart::Head {
        status,
        framing: BodyFraming::Streamed(length),
        ends: is_head,
    };
    let hello = |ends| ResponsePart::Content {
        bytes: b"hello".to_vec(),
        ends,
    };
    let mut parts = match index % 4 {
        _ if is_tunnel => {
            let switch = ResponsePart::Head {
                status: 101,
                framing: BodyFraming::None,
                ends: false,
            };
            let end = ResponsePart::Content {
                bytes: Vec::new(),
                ends: true,
            };
            vec![switch, hello(false), end]
        }
        1 => {
            let content = ResponsePart::Content {
                bytes: (0..40_000_u32).map(|place| (place / 3) as u8).collect(),
                ends: false,
            };
            vec![head(200, None), content, ResponsePart::Trailers]
        }
        2 => {
            let interim = ResponsePart::Head {
                status: 103,
                framing: BodyFraming::None,
                ends: false,
            };
            let last = ResponsePart::Head {
                status: 404,
                framing: BodyFraming::Length(0),
                ends: true,
            };
            vec![interim, last]
        }
        3 => vec![head(200, Some(10)), hello(false)],
        _ => vec![head(200, Some(5)), hello(true)],
    };
    if is_head {
        parts.retain(|part| matches!(part, ResponsePart::Head { .. }));
    }
    let contents = parts.iter().map(|part| match part {
        ResponsePart::Content { bytes, .. } => &bytes[..],
        ResponsePart::Head { .. } | ResponsePart::Trailers => &[],
    });
    let content = contents.collect::<Vec<_>>().concat();
    (parts, content)
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
        let (peer, ours) = pair();
        let preface = [CLIENT_PREFACE, &EMPTY_SETTINGS, first].concat();
        let mut sent = SentFrames::new();
        sent.add(first);
        // All of it takes effect before any response.
        sent.settle();
        Self {
            peer,
            connection: Connection::of_client(ours, &preface, HEAD_LIMITS, MAX_STREAMS),
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
                did |= !mem::replace(&mut self.is_over, true);
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
            end_turn();
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
            if exchange.is_written() {
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
            if let Some(id) = self.id_of(index) {
                exchange.check(id, &self.sent, &self.received);
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
