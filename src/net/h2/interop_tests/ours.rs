//! Our side of a stream: HTTP/1.1 text that is written and read.

use std::{future::poll_fn, rc::Rc, sync::Arc};

use tokio::{
    io::ReadBuf,
    net::UnixStream,
    task::{spawn_local, yield_now},
};

use super::{
    super::{
        Http1Adapter, backend::H2Connection, connection::Connection, incoming::IncomingStream,
    },
    BodyPlan, DirectionEnd, InteropRound, InteropSide, SidePacer, StreamOutcome,
};
use crate::{
    base::{clock, rng::Random},
    config::{NoFiles, parse},
    http::{
        message::{BodyFraming, RequestHead, ResponseHead},
        rules::{HeadLimits, RESPONSE_LIMITS},
    },
    http1::{
        self,
        body::{BodyDecoder, BodyStep},
        request, response,
    },
    net::stream::Stream,
    pool::Pool,
};

const HEAD_LIMITS: HeadLimits = HeadLimits {
    fields: 40,
    bytes: 8 << 10,
};
/// Concurrent streams.
pub(super) const MAX_STREAMS: usize = 10;

/// Creates a pair of sockets with random buffer sizes.
pub(super) fn sockets(round: &InteropRound) -> (UnixStream, Stream) {
    let (theirs, ours) = UnixStream::pair().unwrap();
    if round.below(2) == 0 {
        for end in [&theirs, &ours] {
            let size = 2_000 << round.below(6);
            socket2::SockRef::from(end)
                .set_send_buffer_size(size)
                .unwrap();
        }
    }
    (theirs, Stream::from(ours))
}

/// Creates and drives a client's connection, whose requests are served.
pub(super) fn serve(round: &Rc<InteropRound>, stream: Stream) -> Rc<Connection> {
    let connection =
        Connection::of_client(stream, &[], HEAD_LIMITS, MAX_STREAMS, Random::seeded(1));
    let (ours, round) = (Rc::clone(&connection), Rc::clone(round));
    drop(spawn_local(async move {
        while let Some(incoming_request) = poll_fn(|cx| ours.poll(cx)).await {
            let incoming = IncomingStream::new(Rc::clone(&ours), incoming_request);
            respond(&round, incoming);
        }
    }));
    connection
}

fn respond(round: &Rc<InteropRound>, incoming: IncomingStream) {
    assert_eq!(incoming.refusal(), None);
    let declared = incoming.declared_length();
    // The head is there with the stream.
    let mut buffer = [0; 9_000];
    let mut target = ReadBuf::new(&mut buffer);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(incoming.poll_read(&mut cx, &mut target).is_ready());
    let mut head = RequestHead {
        bytes: target.filled().to_vec(),
        ..RequestHead::default()
    };
    assert_eq!(request::parse(&mut head, HEAD_LIMITS), Ok(true));
    let index = InteropRound::index(str::from_utf8(head.text(head.target)).unwrap());
    let decoder = match head.framing {
        BodyFraming::None => BodyDecoder::Length(0),
        BodyFraming::Length(length) => BodyDecoder::Length(length),
        BodyFraming::Streamed(_) => BodyDecoder::chunked(RESPONSE_LIMITS),
        BodyFraming::UntilClose => panic!("a request has no such body"),
    };
    let pause = head.bytes[head.len..].to_vec();
    let plan = round.plans[index].clone();
    let length = (!plan.up.is_chunked && !plan.up.is_nothing()).then_some(plan.up.length as u64);
    assert_eq!(declared, length);
    round.serve(index, async move {
        let pace = SidePacer::new(&plan, InteropSide::Server);
        pace.moves(pause.len());
        let text = message("HTTP/1.1 200 OK\r\n", plan.down, &pace);
        let read = read_body(&incoming, pause, decoder, plan.up, &pace);
        pace.both(read, write(&incoming, &text, &pace)).await
    });
}

/// Connects to a backend and drives the connection.
pub(super) async fn connect(stream: Stream) -> Rc<H2Connection> {
    let text = "listeners: {web: {bind: \":1\", pool: a}}\npools: {a: {backends: [\"h:1\"], protocol: h2c}}\n";
    let loaded = parse("a.yaml".as_ref(), text, &NoFiles).unwrap();
    let pool = Pool::new(&loaded.config.pools[0], None, clock::now());
    let state = Arc::clone(&pool.backends[0].state);
    let deadline = clock::now() + super::ROUND_TIMEOUT;
    let (connection, driver) =
        H2Connection::open(stream, Some(&state), 100, Rc::default(), deadline)
            .await
            .unwrap();
    drop(spawn_local(driver));
    connection
}

/// Sends a request by its plan.
pub(super) async fn send_request(
    round: Rc<InteropRound>,
    connection: Rc<H2Connection>,
    index: usize,
) -> StreamOutcome {
    let plan = &round.plans[index];
    let pace = SidePacer::new(plan, InteropSide::Client);
    let stream = loop {
        if let Some(stream) = connection.open_stream(usize::MAX) {
            break stream;
        }
        assert!(!connection.is_retired());
        yield_now().await;
    };
    let first = format!("POST /{index} HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n");
    let text = message(&first, plan.up, &pace);
    let read = read_response(&stream, plan.down, &pace);
    pace.both(read, write(&stream, &text, &pace)).await
}

/// Complete message that begins with `first`.
fn message(first: &str, body: BodyPlan, pace: &SidePacer) -> Vec<u8> {
    let mut text = first.as_bytes().to_vec();
    if !body.is_chunked {
        text.extend(format!("Content-Length: {}\r\n", body.length).bytes());
    }
    if !body.is_chunked && !body.has_trailers {
        text.extend(b"\r\n");
        text.extend(body.part(0, body.length));
        return text;
    }
    text.extend(b"Transfer-Encoding: chunked\r\n\r\n");
    let mut place = 0;
    while place < body.length {
        let part = body.part(place, pace.size());
        text.extend(format!("{:x}\r\n", part.len()).bytes());
        text.extend(&part);
        text.extend(b"\r\n");
        place += part.len();
    }
    let trailers = format!("x-key: {}\r\n", body.key);
    let trailers = if body.has_trailers { &*trailers } else { "" };
    text.extend(format!("0\r\n{trailers}\r\n").bytes());
    text
}

async fn write(stream: &impl Http1Adapter, text: &[u8], pace: &SidePacer) -> DirectionEnd {
    let mut pause = text;
    while !pause.is_empty() {
        pace.pause().await;
        let part = &pause[..pace.size().min(pause.len())];
        let Ok(count) = poll_fn(|cx| stream.poll_write(cx, part)).await else {
            return DirectionEnd::Broken;
        };
        pause = &pause[count..];
        pace.has_sent.set(pause.is_empty());
        if pace.moves(count) {
            return DirectionEnd::Stopped;
        }
    }
    DirectionEnd::Whole
}

/// Appends received bytes; an error is the end of this direction.
async fn read(
    stream: &impl Http1Adapter,
    text: &mut Vec<u8>,
    pace: &SidePacer,
) -> Result<usize, DirectionEnd> {
    pace.pause().await;
    let mut buffer = vec![0; pace.size()];
    let mut target = ReadBuf::new(&mut buffer);
    let read = poll_fn(|cx| stream.poll_read(cx, &mut target)).await;
    let bytes = target.filled();
    text.extend(bytes);
    match read {
        Err(_) => Err(DirectionEnd::Broken),
        Ok(()) if pace.moves(bytes.len()) => Err(DirectionEnd::Stopped),
        Ok(()) => Ok(bytes.len()),
    }
}

async fn read_response(
    stream: &impl Http1Adapter,
    body: BodyPlan,
    pace: &SidePacer,
) -> DirectionEnd {
    let mut head = ResponseHead::default();
    while http1::head_end(&head.bytes, 0).is_none() {
        match read(stream, &mut head.bytes, pace).await {
            Ok(0) => panic!("an end without a head"),
            Ok(_) => {}
            Err(end) => return end,
        }
    }
    assert_eq!(response::parse(&mut head, b"POST"), Ok(true));
    let decoder = match head.framing {
        BodyFraming::None => BodyDecoder::Length(0),
        BodyFraming::Length(length) => BodyDecoder::Length(length),
        BodyFraming::Streamed(_) => BodyDecoder::chunked(RESPONSE_LIMITS),
        BodyFraming::UntilClose => panic!("HTTP/2 has no such body"),
    };
    let pause = head.bytes.split_off(head.len);
    read_body(stream, pause, decoder, body, pace).await
}

/// Reads to the end; `text` is the beginning of the body.
async fn read_body(
    stream: &impl Http1Adapter,
    mut text: Vec<u8>,
    mut decoder: BodyDecoder,
    body: BodyPlan,
    pace: &SidePacer,
) -> DirectionEnd {
    let mut place = 0;
    loop {
        let count = match decoder.step(&text).unwrap() {
            BodyStep::Data(count) => {
                body.check(&mut place, &text[..count]);
                count
            }
            BodyStep::Skip(count) => count,
            BodyStep::More => match read(stream, &mut text, pace).await {
                Ok(0) => panic!("a cut that looks like an end: {body:?}"),
                Ok(_) => 0,
                Err(end) => return end,
            },
            BodyStep::End => break,
        };
        text.drain(..count);
    }
    assert!(text.is_empty(), "more than a body");
    assert_eq!(place, body.length);
    let trailers = format!("x-key: {}\r\n", body.key);
    let trailers = if body.has_trailers { &*trailers } else { "" };
    assert_eq!(str::from_utf8(decoder.trailers()), Ok(trailers));
    match read(stream, &mut text, pace).await {
        Ok(0) => DirectionEnd::Whole,
        Ok(_) => panic!("something behind the end"),
        Err(end) => end,
    }
}
