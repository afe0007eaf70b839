//! Frames of an HTTP/2 backend: for any input a response has the content that the backend sent on
//! its stream, and is complete, to the client as well, only if the backend has ended the stream.

use std::{
    future::poll_fn,
    io::{Read, Write},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use balancer::{
    base::clock,
    h2::backend::{H2Connection, OutgoingStream},
    http::{
        head_writer::{HeadWriter, RequestLine},
        message::{BodyFraming, ResponseHead},
        rules::{RESPONSE_LIMITS, is_allowed_in_trailers},
    },
    http1::body::{BodyDecoder, BodyStep},
    http2::{block_head::BlockHead, response::ResponseExpectation},
    proxy::http::{BodyEncoding, BodyRelay, BodySink, BodySource},
};
use tokio::task::{LocalSet, spawn_local, yield_now};

use super::{RUNTIME, h2_client::sent_frames::SentFrames, pair};

/// Empty SETTINGS, RFC 9113 section 6.5.
const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const PLAIN_REQUEST: RequestLine<'_> = RequestLine {
    method: b"GET",
    is_secure: false,
    authority: b"a",
    target: b"/",
    is_websocket: false,
};
/// Stream of the request.
const STREAM_ID: u32 = 1;

/// Reads heads up to the final one; `None` if there is none.
async fn read_head(outgoing: &OutgoingStream) -> Option<ResponseHead> {
    loop {
        let mut head = ResponseHead::default();
        poll_fn(|cx| outgoing.poll_head(&mut head, cx)).await.ok()?;
        assert!((100..=599).contains(&head.status));
        assert_ne!(head.status, 101, "no switch was asked for");
        if !head.is_interim() {
            return Some(head);
        }
        assert_eq!(head.framing, BodyFraming::None);
    }
}

/// Sends the body to an HTTP/1 client in chunks; returns them, and true if the relay has ended
/// well.
async fn relay(outgoing: &OutgoingStream) -> (Vec<u8>, bool) {
    let (mut client, mut to) = pair();
    let mut relay = BodyRelay::new(Vec::new(), Vec::new(), 0, None);
    relay.set_sink(BodyEncoding::Chunked, None);
    let mut out = Vec::new();
    loop {
        let polled = poll_fn(|cx| {
            let source = BodySource::H2(outgoing.stream());
            Poll::Ready(relay.poll(cx, source, BodySink::H1(&mut to)))
        });
        let polled = polled.await;
        // Fails when there is nothing more.
        drop(client.read_to_end(&mut out));
        if let Poll::Ready(ended) = polled {
            return (out, ended.is_ok());
        }
        yield_now().await;
    }
}

/// Content of a chunked body; `None` if it is incomplete.
fn decode(mut chunks: &[u8]) -> (Vec<u8>, bool) {
    let (mut decoder, mut content) = (BodyDecoder::chunked(RESPONSE_LIMITS), Vec::new());
    loop {
        match decoder.step(chunks).expect("chunks of ours") {
            BodyStep::Data(count) => {
                content.extend_from_slice(&chunks[..count]);
                chunks = &chunks[count..];
            }
            BodyStep::Skip(count) => chunks = &chunks[count..],
            BodyStep::More => return (content, false),
            BodyStep::End => break,
        }
    }
    assert!(chunks.is_empty(), "bytes behind the end");
    let trailers = decoder.take_trailers();
    let mut names = trailers.iter().map(|(name, _)| name);
    assert!(names.all(is_allowed_in_trailers), "forbidden trailers");
    (content, true)
}

async fn respond(frames: &[u8]) {
    let (mut peer, ours) = pair();
    peer.write_all(&EMPTY_SETTINGS).expect("space for a frame");
    let deadline = clock::now() + Duration::from_secs(60);
    let on_use_change = Box::new(|_, _| ());
    let opened = H2Connection::open(ours, on_use_change, 1, Rc::default(), deadline).await;
    let (connection, driver) = opened.expect("settings are all it needs");
    drop(spawn_local(driver));
    let outgoing = connection.open_stream(1).expect("a stream");
    let write = |block: &mut BlockHead<'_>| block.request_line(PLAIN_REQUEST);
    outgoing
        .send_head(ResponseExpectation::default(), true, write)
        .expect("a connection without faults");
    yield_now().await;
    yield_now().await;
    // Frames beyond the socket buffer are cut, as by a backend that dies.
    let count = peer.write(frames).unwrap_or(0);
    peer.shutdown(std::net::Shutdown::Write)
        .expect("an open socket");
    let mut sent = SentFrames::new();
    sent.add(&frames[..count]);
    sent.finish();
    let Some(head) = read_head(&outgoing).await else {
        return;
    };
    let response = sent.streams.remove(&STREAM_ID).unwrap_or_default();
    match head.framing {
        // Nothing more is read of it.
        BodyFraming::None => {}
        BodyFraming::Length(length) => {
            assert!(length == 0 && response.has_end, "only END_STREAM says so");
        }
        BodyFraming::UntilClose => panic!("a stream has an end of its own"),
        BodyFraming::Streamed(length) => {
            let (chunks, is_good) = relay(&outgoing).await;
            let (content, is_whole) = decode(&chunks);
            assert_eq!(is_good, is_whole, "a cut that looks like an end");
            assert!(response.content.starts_with(&content), "other content");
            if is_whole {
                assert!(response.has_end, "an end that the backend did not come to");
                assert_eq!(response.content, content);
                assert!(length.is_none_or(|length| length == content.len() as u64));
            }
        }
    }
}

/// Responds to a request with `data`.
pub fn run(data: &[u8]) {
    RUNTIME.with(|runtime| LocalSet::new().block_on(runtime, respond(data)));
}
