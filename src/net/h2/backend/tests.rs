//! Conversion of heads between HTTP/1.1 and HTTP/2. Connections are tested from outside.

use std::io;

use tokio::{io::AsyncWriteExt as _, net::UnixStream};

use super::{
    request,
    response::{self, ReceivedHead, ResponseExpectation},
    *,
};
use crate::{
    http::message::{BodyFraming, ResponseHead},
    http1,
    http2::{
        frame::{self, flag, kind},
        hpack::{FieldList, HpackDecoder, HpackEncoder, SizeLimits},
    },
    net::h2::{Http1Adapter as _, body_encoder::BodyEncoder, recv_buffer::BodyKind},
};

fn list(block: &[u8]) -> FieldList {
    let mut fields = FieldList::default();
    let limits = SizeLimits {
        kept: 1 << 20,
        decoded: 1 << 20,
    };
    let decoded = HpackDecoder::default().decode(block, limits, &mut fields);
    decoded.unwrap();
    fields
}

/// Fields of a request, the kind of its content, and the responses that it allows.
fn read_request(text: &str) -> io::Result<(Vec<String>, &'static str, ResponseExpectation)> {
    request::read(text.as_bytes(), |mut request| {
        let mut block = Vec::new();
        request.write(&mut HpackEncoder::default(), &mut block, true);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let fields = list(&block);
        let lines = fields.iter();
        let lines = lines.map(|(name, value)| format!("{}: {}", text(name), text(value)));
        let content = match request.content {
            BodyEncoder::Done => "nothing",
            BodyEncoder::Body(..) => "body",
            BodyEncoder::Raw => "raw",
        };
        Ok((
            lines.collect(),
            content,
            std::mem::take(&mut request.expected),
        ))
    })
}

#[test]
fn a_request_is_the_same_in_pseudo_fields() {
    let (lines, content, expected) = read_request("PUT /a?b=%20 HTTP/1.1\r\nHost: h.example:81\r\nX-A: 1\r\nx-a: 2\r\nTE: trailers\r\nConnection: close\r\nContent-Length: 3\r\n\r\n").unwrap();
    assert_eq!(
        lines,
        [
            ":method: PUT",
            ":scheme: https",
            ":path: /a?b=%20",
            ":authority: h.example:81",
            "x-a: 1",
            "x-a: 2",
            "content-length: 3",
            "te: trailers"
        ]
    );
    assert_eq!(content, "body");
    assert!(!expected.is_head && expected.accept.is_none());
}

#[test]
fn what_follows_a_request_is_what_its_fields_say() {
    for (fields, expected) in [
        ("", "nothing"),
        ("Content-Length: 0\r\n", "nothing"),
        ("Content-Length: 5\r\n", "body"),
        ("Transfer-Encoding: chunked\r\n", "body"),
        ("Connection: upgrade\r\nUpgrade: websocket\r\n", "raw"),
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        assert_eq!(read_request(&text).unwrap().1, expected, "{fields}");
    }
}

#[test]
fn a_websocket_is_asked_for_by_extended_connect() {
    let (lines, _, expected) = read_request("GET /chat HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n").unwrap();
    assert_eq!(
        lines,
        [
            ":method: CONNECT",
            ":scheme: https",
            ":path: /chat",
            ":authority: h",
            ":protocol: websocket",
            "sec-websocket-version: 13"
        ]
    );
    assert_eq!(
        expected.accept.as_deref(),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
}

#[test]
fn targets_that_no_uri_has_are_refused_and_never_changed() {
    for byte in 0x21..=0x7e_u8 {
        let target = format!("/a{}b?c{0}d", char::from(byte));
        match read_request(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")) {
            Ok((lines, ..)) => assert_eq!(lines[2], format!(":path: {target}")),
            Err(error) => {
                assert!(super::is_inexpressible(&error));
                assert!(b"#<>`".contains(&byte), "{target}");
            }
        }
    }
    for target in ["*", "/", "/?", "//a", "/a//b", "/..", "/%2e", "/{a|b}"] {
        let (lines, ..) =
            read_request(&format!("OPTIONS {target} HTTP/1.1\r\nHost: h\r\n\r\n")).unwrap();
        assert_eq!(lines[2], format!(":path: {target}"));
    }
    let (lines, ..) = read_request("GET / HTTP/1.1\r\nHost:\r\n\r\n").unwrap();
    assert_eq!(lines.len(), 3, "{lines:?}");
}

fn read_response(
    status: &str,
    fields: &[(&str, &str)],
    ends: bool,
    expected: &ResponseExpectation,
) -> Result<ReceivedHead, &'static str> {
    let mut block = Vec::new();
    HpackEncoder::default().field(&mut block, b":status", status.as_bytes());
    for (name, value) in fields {
        HpackEncoder::default().field(&mut block, name.as_bytes(), value.as_bytes());
    }
    response::read(&list(&block), ends, expected)
}

const WITH_LENGTH: &[(&str, &str)] = &[("content-length", "5")];
const WITH_TRAILER: &[(&str, &str)] = &[("content-length", "5"), ("trailer", "x")];

/// Status, fields, end of the stream, HEAD; kind of content, framing.
type FramedResponse = (
    u16,
    &'static [(&'static str, &'static str)],
    bool,
    bool,
    BodyKind,
    BodyFraming,
);

const FRAMED_RESPONSES: [FramedResponse; 10] = {
    use BodyFraming as Framing;
    use BodyKind as Kind;
    const EMPTY: Framing = Framing::Length(0);
    [
        (
            200,
            &[],
            false,
            false,
            Kind::Chunked,
            Framing::Streamed(None),
        ),
        (200, &[], true, false, Kind::None, EMPTY),
        (
            200,
            WITH_LENGTH,
            false,
            false,
            Kind::Chunked,
            Framing::Streamed(None),
        ),
        (
            200,
            WITH_TRAILER,
            false,
            false,
            Kind::Chunked,
            Framing::Streamed(None),
        ),
        (200, WITH_LENGTH, true, true, Kind::None, Framing::None),
        (200, &[], false, true, Kind::None, Framing::None),
        (204, &[], true, false, Kind::None, Framing::None),
        (204, &[], false, false, Kind::None, Framing::None),
        (304, WITH_LENGTH, true, false, Kind::None, Framing::None),
        (599, &[], true, false, Kind::None, EMPTY),
    ]
};

#[test]
fn a_response_is_framed_as_the_engine_reads_it() {
    for (status, fields, ends, is_head, body, framing) in FRAMED_RESPONSES {
        let expected = ResponseExpectation {
            is_head,
            accept: None,
        };
        let read = read_response(&status.to_string(), fields, ends, &expected).unwrap();
        let ReceivedHead::Final(found) = read else {
            panic!("{status} is final")
        };
        let mut head = ResponseHead {
            bytes: found.text.clone(),
            ..ResponseHead::default()
        };
        let method: &[u8] = if is_head { b"HEAD" } else { b"GET" };
        assert_eq!(http1::response::parse(&mut head, method), Ok(true));
        assert_eq!(
            (found.body, head.status, head.framing),
            (body, status, framing),
            "{status} {fields:?}"
        );
        assert!(head.keep_alive, "{status}");
    }
}

#[test]
fn what_is_no_response_of_http2_is_refused() {
    for (status, fields, ends) in [
        ("101", &[][..], false),
        ("100", &[], true),
        ("20", &[], true),
        ("2000", &[], true),
        ("", &[], true),
        ("+20", &[], true),
        ("200", &[("content-length", "5")], true),
        ("200", &[(":status", "200")], true),
        ("200", &[(":path", "/")], true),
        ("200", &[("a b", "c")], true),
        ("200", &[("a", "b\r\nc: d")], true),
        ("200", &[("a", "b\0")], true),
        ("200", &[("connection", "x")], true),
        ("200", &[("transfer-encoding", "chunked")], true),
        ("200", &[("upgrade", "x")], true),
        ("200", &[("keep-alive", "x")], true),
        ("200", &[("te", "trailers")], true),
        ("103", &[("connection", "x")], false),
    ] {
        let read = read_response(status, fields, ends, &ResponseExpectation::default());
        assert!(read.is_err(), "{status} {fields:?}");
    }
    assert!(response::read(&list(&[]), true, &ResponseExpectation::default()).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_kept_while_its_backend_answers_probes() {
    for is_there in [true, false] {
        let (own, mut peer) = UnixStream::pair().unwrap();
        let mut frames = Vec::new();
        frame::write_settings(&mut frames, &[]);
        peer.write_all(&frames).await.unwrap();
        let deadline = clock::now() + Duration::from_mins(1);
        let opened = H2Connection::open(own.into(), None, 100, Rc::default(), deadline).await;
        let (connection, driver) = opened.unwrap();
        let script = async {
            let stream = connection.open_stream(100).unwrap();
            let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
            assert_eq!(stream.write(request).unwrap(), request.len());
            connection.probe_if_stalled();
            assert!(connection.engine().with_backend(|it| it.probed_at) == Some(None));
            sleep(STALL_TIMEOUT).await;
            connection.probe_if_stalled();
            assert!(!connection.is_retired());
            sleep(PROBE_TIMEOUT / 2).await;
            if is_there {
                let mut sign = Vec::new();
                frame::write(&mut sign, kind::SETTINGS, flag::ACK, 0, &[]);
                peer.write_all(&sign).await.unwrap();
            }
            sleep(PROBE_TIMEOUT).await;
            assert_eq!(connection.is_retired(), !is_there);
            // Open streams go on.
            assert!(connection.engine().other_open_streams(0) == 1);
        };
        tokio::select! {
            biased;
            () = driver => panic!("the connection has ended"),
            () = script => {}
        }
    }
}
