//! Checks of servers that write frames by hand, and of servers without HTTP/2.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const SETTINGS_FRAME: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// `:status: 200`, in HPACK (RFC 7541).
const STATUS_200: &[u8] = &[0x88];
/// `:status: 103`.
const STATUS_103: &[u8] = b"\x08\x03103";
const TOO_MUCH: &str = "not valid HTTP/2, or more than is allowed (ENHANCE_YOUR_CALM)";
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags, 0, 0, 0, stream]);
    bytes.extend(payload);
    bytes
}

/// Sends SETTINGS and reads the request, so that there is a stream.
async fn handshake(socket: &mut TcpStream) {
    socket.write_all(SETTINGS_FRAME).await.unwrap();
    socket.read_exact(&mut [0; 100]).await.unwrap();
}

/// Sends `first` once and then `more` until the other side stops reading. The script returns the
/// number of bytes it could send.
async fn flood(first: Vec<u8>, more: Vec<u8>) -> ScriptedServer<usize> {
    raw(async move |mut socket| {
        handshake(&mut socket).await;
        let _ = socket.write_all(&first).await;
        let mut sent = 0;
        if !more.is_empty() {
            while socket.write_all(&more).await.is_ok() {
                sent += more.len();
            }
        }
        // Until the other side closes.
        let _ = socket.read_to_end(&mut Vec::new()).await;
        sent
    })
    .await
}

/// The causes of a grpc check and an http check.
async fn causes(first: &[u8], more: &[u8]) -> [String; 2] {
    let mut found = [String::new(), String::new()];
    for (cause, kind) in found.iter_mut().zip([grpc(""), http(Some("hello"))]) {
        let server = flood(first.to_vec(), more.to_vec()).await;
        *cause = probe(&server.address, kind).await.unwrap_err();
        let sent = server.script.await.unwrap();
        // Sent bytes may also wait in buffers of the kernel.
        assert!(sent < 16 << 20, "{sent}");
    }
    found
}

#[tokio::test]
async fn an_endless_response_is_not_kept_in_memory() {
    let hints = frame(1, END_HEADERS, 1, STATUS_103);
    let heads = causes(&[], &hints).await;
    // The connection or the check reaches its limit first.
    let too_many = "answer is not valid HTTP: more than 16 interim responses";
    for cause in heads {
        assert!(cause == TOO_MUCH || cause == too_many, "{cause}");
    }
    // One head in ever more frames.
    let more = frame(9, 0, 1, &b"\0\x01a\x01b".repeat(100));
    let endless = causes(&frame(1, 0, 1, STATUS_200), &more).await;
    assert_eq!(endless, [TOO_MUCH; 2]);
    // A head that is larger than we accept, and one that is larger than we decode.
    let value = [b'b'; 100];
    for (count, cause) in [
        (2_000, "larger than is taken: its head"),
        (12_000, TOO_MUCH),
    ] {
        let field = [b"\x40\x01a\x64", &value[..]].concat();
        let large = [STATUS_200.to_vec(), field, vec![0xbe; count]].concat();
        let large = causes(&frame(1, END_HEADERS, 1, &large), &[]).await;
        assert_eq!(large, [cause; 2]);
    }
    // Frames that mean nothing, and pings.
    let grease = causes(&[], &frame(0x5a, 0, 0, &[0; 1000])).await;
    assert_eq!(grease, [TOO_MUCH; 2]);
    let pings = causes(&[], &frame(6, 0, 0, &[0; 8])).await;
    assert_eq!(pings, [TOO_MUCH; 2]);
    // A body in frames without a byte.
    let head = frame(1, END_HEADERS, 1, STATUS_200);
    let [_, empty] = causes(&head, &frame(0, 0, 1, &[])).await;
    assert_eq!(empty, TOO_MUCH);
}

#[tokio::test]
async fn a_few_interim_responses_are_passed_over() {
    let mut response = frame(1, END_HEADERS, 1, STATUS_103).repeat(16);
    response.extend(frame(1, END_HEADERS, 1, STATUS_200));
    response.extend(frame(0, END_STREAM, 1, b"hello"));
    let server = flood(response, Vec::new()).await;
    assert_eq!(probe(&server.address, http(Some("hello"))).await, Ok(()));
}

#[tokio::test]
async fn the_cause_of_a_broken_response_is_named() {
    let both = |cause: &str| [cause.to_owned(), cause.to_owned()];
    let old = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    let speaks = |bytes: &'static [u8]| async move {
        raw(async move |mut socket: TcpStream| {
            // The preface, which an HTTP/1 server reads as a request.
            socket.read_exact(&mut [0; 24]).await.unwrap();
            socket.write_all(bytes).await.unwrap();
            socket.shutdown().await.unwrap();
            let _ = socket.read_to_end(&mut Vec::new()).await;
        })
        .await
        .address
    };
    let cases: [(&'static [u8], &str); 3] = [
        (old, "the peer speaks HTTP/1, not HTTP/2"),
        (
            b"220 mail ESMTP ready for you\r\n",
            "not valid HTTP/2, or more than is allowed (FRAME_SIZE_ERROR)",
        ),
        (b"", "connection closed"),
    ];
    for (bytes, cause) in cases {
        assert_eq!(
            probe(&speaks(bytes).await, grpc("")).await.unwrap_err(),
            cause
        );
        assert_eq!(
            probe(&speaks(bytes).await, http(None)).await.unwrap_err(),
            cause
        );
    }
    let reset = causes(&frame(3, 0, 1, &[0, 0, 0, 7]), &[]).await;
    assert_eq!(
        reset,
        both("stream reset by the peer (RST_STREAM REFUSED_STREAM)")
    );
    let away = |code: u8| frame(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, code]);
    for (code, name) in [(0, "NO_ERROR"), (11, "ENHANCE_YOUR_CALM")] {
        let ended = causes(&away(code), &[]).await;
        assert_eq!(
            ended,
            both(&format!("connection ended by the peer (GOAWAY {name})"))
        );
    }
    // An interim response that is the last one, and trailers before the head.
    let last = causes(&frame(1, END_HEADERS | END_STREAM, 1, STATUS_103), &[]).await;
    let cause = "not a valid message of HTTP/2: an end without a response";
    assert_eq!(last, both(cause));
    let data = causes(&frame(0, END_STREAM, 1, b"hello"), &[]).await;
    let cause = "not a valid message of HTTP/2: content before the head";
    assert_eq!(data, both(cause));
}

#[tokio::test]
async fn a_connection_is_closed_in_order_after_the_response() {
    let mut response = frame(4, 1, 0, &[]);
    response.extend(frame(1, END_HEADERS, 1, STATUS_200));
    response.extend(frame(0, END_STREAM, 1, b"hello"));
    for text in ["hello", "good"] {
        let response = response.clone();
        let server = raw(async move |mut socket: TcpStream| {
            handshake(&mut socket).await;
            socket.write_all(&response).await.unwrap();
            let mut received = Vec::new();
            socket.read_to_end(&mut received).await.map(|_| received)
        })
        .await;
        let result = probe(&server.address, http(Some(text))).await;
        assert_eq!(result.is_ok(), text == "hello");
        let received = server.script.await.unwrap().unwrap();
        let goaway = frame(7, 0, 0, &[0; 8]);
        assert!(received.ends_with(&goaway), "{received:?}");
    }
}

#[tokio::test]
async fn a_response_before_goaway_counts() {
    let mut response = frame(1, END_HEADERS, 1, STATUS_200);
    response.extend(frame(0, END_STREAM, 1, b"hello"));
    response.extend(frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]));
    let server = raw(async move |mut socket: TcpStream| {
        handshake(&mut socket).await;
        socket.write_all(&response).await.unwrap();
    })
    .await;
    assert_eq!(probe(&server.address, http(Some("hello"))).await, Ok(()));
}

#[tokio::test]
async fn a_stalled_response_fails_at_the_deadline_in_every_phase() {
    let short = Duration::from_millis(200);
    let starts: [Vec<u8>; 3] = [
        Vec::new(),
        frame(1, END_HEADERS, 1, STATUS_103),
        frame(1, END_HEADERS, 1, b"\x88\x5f\x10application/grpc"),
    ];
    for start in starts {
        for kind in [grpc(""), http(Some("hello"))] {
            let server = flood(start.clone(), Vec::new()).await;
            let result = probe_within(&server.address, kind, short).await;
            assert_eq!(result.unwrap_err(), "no answer within 200ms");
            server.script.await.unwrap();
        }
    }
}
