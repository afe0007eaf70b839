//! Valid and invalid responses, and the framing of their bodies: a case per rule of RFC 9112
//! sections 4 and 6.

use super::*;
use crate::http::rules::HeadFault;
use BodyFraming::{Length, None as Nothing, UntilClose};

const CHUNKED: BodyFraming = BodyFraming::Streamed(None);

fn parse(bytes: &[u8], method: &str) -> Result<ResponseHead, HeadError> {
    let mut head = ResponseHead {
        bytes: bytes.to_vec(),
        ..ResponseHead::default()
    };
    assert!(
        super::parse(&mut head, method.as_bytes())?,
        "it is whole: {}",
        bytes.escape_ascii()
    );
    Ok(head)
}

/// Method, status and field; framing, announced length, and true if the connection stays open.
type FramedBody = (
    &'static str,
    &'static str,
    &'static str,
    BodyFraming,
    Option<u64>,
    bool,
);

const FRAMED_BODIES: [FramedBody; 14] = [
    ("GET", "1.1 200", "Content-Length: 5", Length(5), None, true),
    ("GET", "1.1 200", "Content-Length: 0", Length(0), None, true),
    (
        "GET",
        "1.1 200",
        "Transfer-Encoding: Chunked",
        CHUNKED,
        None,
        true,
    ),
    ("GET", "1.1 200", "A: b", UntilClose, None, true),
    (
        "GET",
        "1.1 200",
        "Connection: x, Close\r\nContent-Length: 5",
        Length(5),
        None,
        false,
    ),
    (
        "GET",
        "1.0 200",
        "Content-Length: 5",
        Length(5),
        None,
        false,
    ),
    (
        "GET",
        "1.0 200",
        "Connection: keep-alive\r\nContent-Length: 5",
        Length(5),
        None,
        true,
    ),
    (
        "HEAD",
        "1.1 200",
        "Content-Length: 5",
        Nothing,
        Some(5),
        true,
    ),
    (
        "HEAD",
        "1.1 200",
        "Transfer-Encoding: chunked",
        Nothing,
        None,
        true,
    ),
    (
        "GET",
        "1.1 304",
        "Content-Length: 5",
        Nothing,
        Some(5),
        true,
    ),
    ("GET", "1.1 204", "A: b", Nothing, None, true),
    ("GET", "1.1 204", "Content-Length: 5", Nothing, None, false),
    (
        "GET",
        "1.1 204",
        "Transfer-Encoding: chunked",
        Nothing,
        None,
        false,
    ),
    ("GET", "1.1 103", "Link: x", Nothing, None, true),
];

#[test]
fn a_body_is_framed_by_method_status_and_fields() {
    for (method, status, fields, framing, announced, keep) in FRAMED_BODIES {
        let head = parse(
            format!("HTTP/{status} X\r\n{fields}\r\n\r\n").as_bytes(),
            method,
        )
        .unwrap();
        assert_eq!(
            (head.framing, head.announced, head.keep_alive),
            (framing, announced, keep),
            "{method} {status} {fields}"
        );
        assert!(
            head.fields
                .iter()
                .all(|field| matches!(field.known, KnownField::Other))
        );
    }
}

#[test]
fn what_is_not_one_valid_response_is_refused() {
    let table: [&[u8]; 33] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n A: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA\r\n\r\n",
        b"HTTP/1.1 099 X\r\n\r\n",
        b"HTTP/1.1 600 X\r\n\r\n",
        b"HTTP/1.1 2000 X\r\n\r\n",
        b"HTTP/1.1 20 X\r\n\r\n",
        b"HTTP/1.1 +20 X\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"\n",
        b"HTTP/1.0 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 X\r\nContent-Length: 5\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
    ];
    for bytes in table {
        let invalid = parse(bytes, "GET").expect_err(&bytes.escape_ascii().to_string());
        assert_eq!(
            invalid.fault,
            HeadFault::Malformed,
            "{}",
            bytes.escape_ascii()
        );
    }
    let large = format!(
        "HTTP/1.1 200 OK\r\nA: {}\r\n\r\n",
        "b".repeat(MAX_HEAD_BYTES)
    );
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(300));
    for bytes in [large, many] {
        let invalid = parse(bytes.as_bytes(), "GET").unwrap_err();
        assert_eq!(invalid.fault, HeadFault::TooLarge);
    }
}

#[test]
fn bytes_behind_the_limit_do_not_change_how_a_head_is_judged() {
    let start = "HTTP/1.1 200 OK\r\nA: ";
    let head = start.to_owned() + &"b".repeat(MAX_HEAD_BYTES - start.len());
    for later in ["", "b", "\0", "\r\n\r\n", "\r\n : \r\n"] {
        let invalid = parse((head.clone() + later).as_bytes(), "GET").unwrap_err();
        assert_eq!(invalid.fault, HeadFault::TooLarge, "{later:?}");
    }
}

#[test]
fn a_101_loses_what_it_says_of_a_body() {
    for framing in [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Content-Length: 0",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: x\r\nTransfer-Encoding: chunked",
    ] {
        let bytes =
            format!("HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: a\r\n{framing}\r\n\r\n");
        let head = parse(bytes.as_bytes(), "GET").unwrap();
        assert_eq!(
            (head.framing, head.announced),
            (BodyFraming::None, None),
            "{framing}"
        );
        assert!(head.switches_to(b"a"), "{framing}");
        assert_eq!(head.fields.iter().count(), 0, "{framing}");
    }
}

#[test]
fn a_101_switches_only_to_what_was_asked_for() {
    for (sent, asked, switches) in [
        ("Upgrade: WebSocket", "websocket", true),
        ("Upgrade: b", "a, b", true),
        ("Upgrade: c", "a, b", false),
        ("Upgrade: a, c", "a, b", false),
        ("A: b", "a", false),
    ] {
        for (option, named) in [("Connection: upgrade", switches), ("X: upgrade", false)] {
            let bytes = format!("HTTP/1.1 101 X\r\n{option}\r\n{sent}\r\n\r\n");
            let head = parse(bytes.as_bytes(), "GET").unwrap();
            assert_eq!(
                head.switches_to(asked.as_bytes()),
                named,
                "{option} {sent} {asked}"
            );
        }
    }
}
