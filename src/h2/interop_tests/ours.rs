//! Our side of a stream: heads, content and trailers that are sent and received.

use std::{cell::Cell, future::poll_fn, mem, rc::Rc};

use tokio::{
    net::UnixStream,
    task::{spawn_local, yield_now},
};

use super::{
    super::{
        StreamError, backend::H2Connection, client::IncomingRequest, connection::Connection,
        stream::H2Stream,
    },
    BodyPlan, DirectionEnd, InteropRound, InteropSide, SidePacer, StreamOutcome,
};
use crate::{
    base::clock,
    http::{
        head_writer::{HeadWriter as _, RequestLine},
        message::{BodyFraming, ResponseHead, Trailers},
        rules::HeadLimits,
    },
    http2::response::ResponseExpectation,
    net::stream::Stream,
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
    let connection = Connection::of_client(stream, &[], HEAD_LIMITS, MAX_STREAMS);
    let (ours, round) = (Rc::clone(&connection), Rc::clone(round));
    drop(spawn_local(async move {
        while let Some(request) = poll_fn(|cx| ours.poll(cx)).await {
            respond(&round, &ours, &request);
        }
    }));
    connection
}

fn respond(round: &Rc<InteropRound>, connection: &Rc<Connection>, request: &IncomingRequest) {
    assert_eq!(request.refusal, None);
    let head = &request.head;
    let index = InteropRound::index(str::from_utf8(head.text(head.target)).unwrap());
    let plan = round.plans[index].clone();
    let framing = if plan.up.is_nothing() {
        BodyFraming::None
    } else {
        BodyFraming::Streamed(plan.up.declared_length())
    };
    assert_eq!(head.framing, framing);
    let stream = H2Stream::of_request(connection, request);
    round.serve(index, async move {
        let pace = SidePacer::new(&plan, InteropSide::Server);
        let read = read_body(&stream, plan.up, &pace);
        let write = async {
            if poll_fn(|cx| stream.poll_head_ready(cx)).await.is_err() {
                return DirectionEnd::Broken;
            }
            let ends = plan.down.is_nothing();
            let sent = stream.send_head(ends, |block| {
                block.status_line(200, b"OK");
                block.framing(BodyFraming::Streamed(plan.down.declared_length()));
            });
            pace.has_sent.set(ends && sent.is_ok());
            match sent {
                Ok(_) if ends => DirectionEnd::Whole,
                Ok(_) => write_body(&stream, plan.down, &pace).await,
                Err(_) => DirectionEnd::Broken,
            }
        };
        pace.both(read, write).await
    });
}

/// Connects to a backend and drives the connection.
pub(super) async fn connect(stream: Stream) -> Rc<H2Connection> {
    let deadline = clock::now() + super::ROUND_TIMEOUT;
    let last = Cell::new(None);
    let on_use_change = Box::new(move |from, to| {
        assert_eq!(last.replace(to), from, "each use follows the one before");
    });
    let (connection, driver) =
        H2Connection::open(stream, on_use_change, 100, Rc::default(), deadline)
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
    let outgoing = loop {
        if let Some(outgoing) = connection.open_stream(usize::MAX) {
            break outgoing;
        }
        assert!(!connection.is_retired());
        yield_now().await;
    };
    let target = format!("/{index}");
    let line = RequestLine {
        method: b"POST",
        is_secure: false,
        authority: b"a",
        target: target.as_bytes(),
        is_websocket: false,
    };
    let ends = plan.up.is_nothing();
    pace.pause().await;
    let opened = outgoing.send_head(ResponseExpectation::default(), ends, |block| {
        block.request_line(line);
        block.field(b"te", b"trailers");
        block.framing(BodyFraming::Streamed(plan.up.declared_length()));
    });
    opened.unwrap();
    pace.has_sent.set(ends);
    let read = async {
        pace.pause().await;
        let mut head = ResponseHead::default();
        if poll_fn(|cx| outgoing.poll_head(&mut head, cx))
            .await
            .is_err()
        {
            return DirectionEnd::Broken;
        }
        let length = plan.down.declared_length();
        assert_eq!(head.status, 200);
        assert!(
            head.framing == BodyFraming::Streamed(length)
                || plan.down.is_nothing() && head.framing == BodyFraming::Length(0),
            "{:?}",
            head.framing
        );
        read_body(outgoing.stream(), plan.down, &pace).await
    };
    let write = async {
        if ends {
            return DirectionEnd::Whole;
        }
        write_body(outgoing.stream(), plan.up, &pace).await
    };
    pace.both(read, write).await
}

async fn write_body(stream: &H2Stream, body: BodyPlan, pace: &SidePacer) -> DirectionEnd {
    let mut place = 0;
    while place < body.length {
        pace.pause().await;
        let part = body.part(place, pace.size());
        // An end that is known is sent with the last bytes, or on its own.
        let ends = place + part.len() == body.length && !body.has_trailers && pace.below(2) == 0;
        let count = match stream.send_content(&part, ends) {
            Ok(0) => {
                if poll_fn(|cx| stream.poll_content_ready(cx)).await.is_err() {
                    return DirectionEnd::Broken;
                }
                continue;
            }
            Ok(count) => count,
            Err(_) => return DirectionEnd::Broken,
        };
        assert!(count <= part.len());
        place += count;
        pace.has_sent.set(ends && count == part.len());
        if pace.moves(count) {
            return DirectionEnd::Stopped;
        }
    }
    if pace.has_sent.get() {
        return DirectionEnd::Whole;
    }
    pace.pause().await;
    let ended = send_end(stream, body).await;
    pace.has_sent.set(ended.is_ok());
    match ended {
        Ok(()) => DirectionEnd::Whole,
        Err(_) => DirectionEnd::Broken,
    }
}

/// Ends a message whose content was sent.
async fn send_end(stream: &H2Stream, body: BodyPlan) -> Result<(), StreamError> {
    if !body.has_trailers {
        return stream.send_content(&[], true).map(drop);
    }
    poll_fn(|cx| stream.poll_head_ready(cx)).await?;
    let value = body.key.to_string();
    let sent = stream.send_trailers(|block| {
        block.trailer_start();
        block.field(b"x-key", value.as_bytes());
    });
    sent.map(drop)
}

/// Reads to the end.
async fn read_body(stream: &H2Stream, body: BodyPlan, pace: &SidePacer) -> DirectionEnd {
    let (mut place, mut content) = (0, Vec::new());
    loop {
        pace.pause().await;
        match poll_fn(|cx| stream.poll_content(cx)).await {
            Err(_) => return DirectionEnd::Broken,
            Ok(false) => break,
            Ok(true) => {}
        }
        let most = pace.size();
        let (count, is_end) = stream.read_content(&mut content, most);
        let part = mem::take(&mut content);
        assert_eq!(part.len(), count);
        assert!((1..=most).contains(&count));
        body.check(&mut place, &part);
        if pace.moves(count) {
            return DirectionEnd::Stopped;
        }
        if is_end {
            break;
        }
    }
    assert_eq!(place, body.length, "a cut that looks like an end: {body:?}");
    let mut trailers = Trailers::new();
    if body.has_trailers {
        trailers.push(b"x-key", body.key.to_string().as_bytes());
    }
    assert_eq!(stream.take_trailers(), trailers);
    // The end stays one.
    match poll_fn(|cx| stream.poll_content(cx)).await {
        Ok(false) => DirectionEnd::Whole,
        Ok(true) => panic!("something behind the end"),
        Err(_) => DirectionEnd::Broken,
    }
}
