//! Bodies of all sizes and forms, there and back: with and without a length, trailers, a first
//! attempt that fails.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use h2::SendStream;
use hyper::http::{HeaderMap, HeaderValue, Method, Response};

use super::front_of;
use crate::harness::{
    daemon::TestDaemon,
    frames::{END_STREAM, GET_FIELDS, HEADERS, RawH2Backend, RawH2Client},
    h2::{H2Backend, connect, patiently, pattern, read, request, whole},
    peer::ScriptedPeer,
};

/// Around the sizes of buffers and windows, and of what is kept for a further attempt.
const SIZES: [usize; 7] = [0, 1, 4_097, 65_536, 65_537, 81_920, 300_000];

/// Sends `bytes` in parts of at most `most`, and no end.
async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes, most: usize) {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len().min(most));
        let room = patiently(poll_fn(|cx| stream.poll_capacity(cx))).await;
        let Some(Ok(room)) = room else { return };
        let part = bytes.split_to(room.min(bytes.len()).min(most));
        if stream.send_data(part, false).is_err() {
            return;
        }
    }
}

/// Answers with the body, and with the trailers if there were some.
async fn echo() -> H2Backend {
    H2Backend::start(|mut asked| async move {
        let bytes = read(&mut asked.body).await.unwrap();
        let trailers = asked.body.trailers().await.unwrap();
        let head = Response::new(());
        let mut stream = asked.respond.send_response(head, false).unwrap();
        send(&mut stream, bytes.into(), usize::MAX).await;
        let _ = stream.send_trailers(trailers.unwrap_or_default());
    })
    .await
}

/// Answers with the body in small chunks or with its length. With `is_flaky` every other request
/// that can be sent again is not answered.
fn echo_of_http_1(is_chunked: bool, is_flaky: bool) -> ScriptedPeer {
    let count = AtomicUsize::new(0);
    ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            let place = count.fetch_add(1, Relaxed);
            if is_flaky && place.is_multiple_of(2) && request.body.len() <= 64 << 10 {
                return;
            }
            let length = request.body.len();
            let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
            if is_chunked {
                text.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                for part in request.body.chunks(333) {
                    text.extend(format!("{:x}\r\n", part.len()).into_bytes());
                    text.extend([part, b"\r\n"].concat());
                }
                text.extend(b"0\r\n\r\n");
            } else {
                text.extend(format!("Content-Length: {length}\r\n\r\n").into_bytes());
                text.extend(request.body);
            }
            if !connection.send(&text) {
                return;
            }
        }
    })
}

/// Sends bodies in all forms; each comes back as it is.
async fn check(daemon: &TestDaemon, brings_trailers: bool) {
    let (sender, _driver) = connect(daemon.address("@web")).await;
    for form in 0..SIZES.len() * 8 {
        let size = SIZES[form / 8];
        let [has_length, has_trailers, is_in_parts] = [1, 2, 4].map(|bit| form & bit > 0);
        let what = format!("{size} {has_length} {has_trailers} {is_in_parts}");
        let length = size.to_string();
        let fields = [("content-length", &*length)];
        let fields = if has_length { &fields[..] } else { &[] };
        let asked = request(Method::PUT, "/", fields);
        let mut sender = sender.clone().ready().await.unwrap();
        let (response, mut stream) = sender.send_request(asked, false).unwrap();
        let most = if is_in_parts { 1_000 } else { usize::MAX };
        let upload = async {
            send(&mut stream, pattern(size).into(), most).await;
            if has_trailers {
                let sum = ("x-sum".parse().unwrap(), HeaderValue::from_static("7"));
                let _ = stream.send_trailers(HeaderMap::from_iter([sum]));
            } else {
                let _ = stream.send_data(Bytes::new(), true);
            }
        };
        let ((), answer) = tokio::join!(upload, whole(response));
        let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(answer.status(), 200, "{what}");
        assert!(answer.body == pattern(size), "{what}");
        let trailers = answer.trailers.unwrap_or_default();
        let expected = has_trailers && brings_trailers;
        assert_eq!(trailers.contains_key("x-sum"), expected, "{what}");
    }
}

#[tokio::test]
async fn a_body_goes_to_an_http_2_backend_and_back_as_it_is() {
    let backend = echo().await;
    for retries in ["none", "{attempts: 3}"] {
        let pool = format!("protocol: h2c, retries: {retries}");
        check(&front_of(backend.address, "", &pool), true).await;
    }
}

#[tokio::test]
async fn a_body_goes_to_an_http_1_backend_and_back_as_it_is() {
    for is_chunked in [false, true] {
        let backend = echo_of_http_1(is_chunked, false);
        check(&front_of(backend.address, "", ""), false).await;
    }
}

#[tokio::test]
async fn a_body_that_is_sent_again_is_whole() {
    let backend = echo_of_http_1(false, true);
    let pool = "retries: {attempts: 3, methods: [PUT], budget: 100%}";
    check(&front_of(backend.address, "", pool), false).await;
}

/// Clients of gRPC take a head with a status but without the end of the stream for the head of a
/// response whose status is missing.
#[test]
fn a_response_without_content_ends_with_its_head() {
    let of_http_2 = ScriptedPeer::start(|connection| {
        if let Some(mut backend) = RawH2Backend::greet(connection) {
            while let Some(stream) = backend.asked() {
                backend.head(stream, &[(":status", "200"), ("grpc-status", "5")], true);
            }
        }
    });
    let of_http_1 = ScriptedPeer::answering("");
    for (backend, pool) in [(of_http_1, ""), (of_http_2, "protocol: h2c")] {
        let daemon = front_of(backend.address, "", pool);
        let mut client = RawH2Client::connect(daemon.address("@web"));
        client.ask(1, &GET_FIELDS);
        let head = client.until(|frame| frame.kind == HEADERS);
        assert!(head.flags & END_STREAM > 0, "{pool}");
    }
}

#[test]
fn a_request_of_no_length_ends_with_its_head() {
    let (sender, heads) = std::sync::mpsc::channel();
    let backend = ScriptedPeer::start(move |connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        while let Some(head) = backend.until(|frame| frame.kind == HEADERS) {
            sender.send(head.flags).unwrap();
            backend.answer(head.stream, "hello");
        }
    });
    let daemon = front_of(backend.address, "", "protocol: h2c");
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.response().unwrap().text(), "hello");
    assert!(heads.recv().unwrap() & END_STREAM > 0);
}
