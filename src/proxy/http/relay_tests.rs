//! Bodies from any source to any sink.

#[cfg(test)]
#[path = "relay_cases.rs"]
mod cases;
#[cfg(test)]
#[path = "relay_model_tests.rs"]
mod model;
#[cfg(test)]
#[path = "relay_peers.rs"]
mod peers;

use std::{cell::Cell, future::poll_fn, rc::Rc, task::Waker};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::*;
use crate::{
    config::model::TlsVersion,
    h2::connection::Connection,
    http::rules::RESPONSE_LIMITS,
    http2::frame::{self, CLIENT_PREFACE, flag, kind},
    net::{fixture::pair, tls::fixture::connected},
};

#[test]
fn a_filter_sees_the_whole_body_and_its_output_is_encoded_for_the_sink() {
    for (encoding, expected) in [
        (BodyEncoding::Plain, &b"hello world"[..]),
        (BodyEncoding::Frames, b"hello world"),
        (
            BodyEncoding::Chunked,
            b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        ),
    ] {
        let count = Rc::new(Cell::new(0));
        let decoder = Some(BodyDecoder::Length(11));
        let mut relay = BodyRelay::new(Vec::new(), b"hello world".to_vec(), 0, decoder);
        relay.set_filter(BodyFilter::Counting(Rc::clone(&count)));
        relay.set_sink(encoding, None);
        relay.allow_splice();
        relay.replay(true);
        relay.decode().unwrap();
        assert_eq!((relay.out.as_slice(), count.get()), (expected, 11));
        assert!(relay.ended && !relay.begins_splice());
    }
}

#[test]
fn small_chunks_share_a_frame_and_nothing_else_is_copied() {
    let chunks = [b"1\r\nx\r\n".repeat(1_000).as_slice(), b"0\r\n\r\n"].concat();
    for (decoder, input, copied) in [
        (Some(BodyDecoder::chunked(RESPONSE_LIMITS)), chunks, 1_000),
        (Some(BodyDecoder::Length(5)), b"hello".to_vec(), 0),
        (None, b"hello".to_vec(), 0),
    ] {
        let mut relay = BodyRelay::new(Vec::new(), input, 0, decoder);
        relay.set_sink(BodyEncoding::Frames, None);
        relay.replay(true);
        relay.decode().unwrap();
        assert_eq!(relay.out.len(), copied);
        assert_eq!(relay.raw.is_empty(), copied > 0);
    }
}

#[tokio::test]
async fn trailers_wait_for_space_in_the_output() {
    let (own, _peer) = UnixStream::pair().unwrap();
    let mut sent = CLIENT_PREFACE.to_vec();
    frame::write_settings(&mut sent, &[]);
    let ends = flag::END_STREAM | flag::END_HEADERS;
    // GET, http, `/`, and an authority of one byte.
    let block = [0x82, 0x86, 0x84, 0x41, 1, b'a'];
    frame::write(&mut sent, kind::HEADERS, ends, 1, &block);
    let connection = Connection::of_client(Stream::from(own), &sent, RESPONSE_LIMITS, 10);
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Some(request)) = connection.poll(&mut cx) else {
        panic!("a request is there");
    };
    let stream = H2Stream::of_request(&connection, &request);
    stream.send_content(&vec![0; 65_535], false).unwrap();
    assert!(stream.poll_head_ready(&cx).is_pending(), "it is full");
    let input = b"0\r\nX-A: b\r\n\r\n".to_vec();
    let decoder = Some(BodyDecoder::chunked(RESPONSE_LIMITS));
    let mut relay = BodyRelay::new(Vec::new(), input, 0, decoder);
    relay.set_sink(BodyEncoding::Frames, None);
    relay.replay(true);
    let mut poll = || {
        let (from, to) = (BodySource::H2(&stream), BodySink::H2(&stream));
        let polled = relay.poll(&mut cx, from, to);
        (polled.is_ready(), relay.waits_for_sink())
    };
    assert_eq!(poll(), (false, true));
    assert!(
        connection
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    );
    assert!(!connection.has_unwritten(), "the socket has room for all");
    assert_eq!(poll(), (true, false));
}

/// Relays `content` from the peer of `from` to that of `to`; returns what arrives.
async fn relayed(
    content: &[u8],
    (mut source, mut from): (impl AsyncWrite + Unpin, Stream),
    (mut sink, mut to): (impl AsyncRead + Unpin, Stream),
    relay: &mut BodyRelay,
) -> Vec<u8> {
    let mut arrived = vec![0; content.len()];
    let relayed = poll_fn(|cx| relay.poll(cx, BodySource::H1(&mut from), BodySink::H1(&mut to)));
    let (sent, relayed, read) = tokio::join!(
        async {
            source.write_all(content).await?;
            source.flush().await
        },
        relayed,
        sink.read_exact(&mut arrived)
    );
    sent.unwrap();
    relayed.unwrap();
    read.unwrap();
    arrived
}

#[tokio::test]
async fn a_body_to_or_from_tls_is_copied() {
    let content: Vec<u8> = (0..300_000_u32).map(|place| (place / 3) as u8).collect();
    for is_source in [false, true] {
        let decoder = BodyDecoder::Length(content.len() as u64);
        let mut relay = BodyRelay::new(Vec::new(), Vec::new(), 0, Some(decoder));
        relay.allow_splice();
        let (plain, tls) = (pair().await, connected(TlsVersion::Tls13).await);
        let arrived = if is_source {
            relayed(&content, tls, plain, &mut relay).await
        } else {
            relayed(&content, plain, tls, &mut relay).await
        };
        assert!(arrived == content && relay.is_done());
        assert!(!relay.may_splice, "the kernel was not asked");
    }
}

#[test]
fn a_body_is_spliced_when_it_is_no_longer_kept_for_a_further_attempt() {
    for (length, is_kept) in [(MAX_REPLAY_BYTES, true), (MAX_REPLAY_BYTES + 1, false)] {
        let decoder = Some(BodyDecoder::Length(1 << 20));
        let mut relay = BodyRelay::new(Vec::new(), vec![b'a'; length], 0, decoder);
        relay.allow_splice();
        relay.keep_for_replay();
        relay.replay(true);
        relay.decode().unwrap();
        assert_eq!(relay.can_replay(), is_kept);
        assert_eq!(relay.begins_splice(), !is_kept);
    }
}

#[test]
fn a_message_without_a_body_is_its_head() {
    for encoding in [
        BodyEncoding::Plain,
        BodyEncoding::Chunked,
        BodyEncoding::Frames,
    ] {
        let mut relay = BodyRelay::without_body(Vec::new(), Vec::new());
        for _ in 0..2 {
            relay.rewind(encoding, None).extend_from_slice(b"head");
            relay.replay(false);
            assert_eq!(relay.out, b"head");
            assert!(relay.has_read_all() && relay.can_replay() && !relay.owes_end());
        }
    }
}
