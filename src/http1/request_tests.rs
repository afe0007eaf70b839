//! Accepted and refused requests: a case per rule of RFC 9112 sections 2 to 7 and 11.

use super::*;
use HeadFault::{CodingUnsupported as Other, Malformed as Bad};

const HEAD_LIMITS: HeadLimits = HeadLimits {
    fields: 100,
    bytes: 32 << 10,
};

fn parse(bytes: &[u8]) -> Result<RequestHead, HeadError> {
    let mut head = RequestHead {
        bytes: bytes.to_vec(),
        ..RequestHead::default()
    };
    assert!(
        super::parse(&mut head, HEAD_LIMITS)?,
        "it is whole: {}",
        bytes.escape_ascii()
    );
    Ok(head)
}

/// Parses `POST / HTTP/1.1` with a Host and `fields`.
fn with(fields: &str) -> Result<RequestHead, HeadError> {
    parse(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n").as_bytes())
}

/// Framing fields, and the framing or the reason of the refusal.
const BODY_LENGTHS: [(&str, Result<BodyFraming, HeadFault>); 44] = [
    ("X-A: b", Ok(BodyFraming::None)),
    ("Content-Length: 0", Ok(BodyFraming::None)),
    ("content-length:5", Ok(BodyFraming::Length(5))),
    ("Content-Length: \t 005 ", Ok(BodyFraming::Length(5))),
    (
        "Content-Length: 999999999999999999",
        Ok(BodyFraming::Length(999_999_999_999_999_999)),
    ),
    (
        "Transfer-Encoding: chunked",
        Ok(BodyFraming::Streamed(None)),
    ),
    (
        "TRANSFER-ENCODING: CHUNKED",
        Ok(BodyFraming::Streamed(None)),
    ),
    ("Content-Length: 5\r\nTransfer-Encoding: chunked", Err(Bad)),
    ("Transfer-Encoding: chunked\r\nContent-Length: 5", Err(Bad)),
    ("transfer-encoding: chunked\r\ncONTENT-lENGTH: 0", Err(Bad)),
    ("Transfer-Encoding: identity\r\nContent-Length: 5", Err(Bad)),
    ("Content-Length: 5\r\nContent-Length: 5", Err(Bad)),
    ("Content-Length: 5\r\nContent-Length: 6", Err(Bad)),
    ("Content-Length: 5, 5", Err(Bad)),
    ("Content-Length: 5,6", Err(Bad)),
    ("Content-Length:", Err(Bad)),
    ("Content-Length:\r\nContent-Length: 5", Err(Bad)),
    ("Content-Length: +5", Err(Bad)),
    ("Content-Length: -5", Err(Bad)),
    ("Content-Length: -0", Err(Bad)),
    ("Content-Length: 0x5", Err(Bad)),
    ("Content-Length: 5_0", Err(Bad)),
    ("Content-Length: 5 0", Err(Bad)),
    ("Content-Length: 5.0", Err(Bad)),
    ("Content-Length: \"5\"", Err(Bad)),
    ("Content-Length: 1000000000000000000", Err(Bad)),
    ("Content-Length: 18446744073709551616", Err(Bad)),
    ("Content-Length: 18446744073709551621", Err(Bad)),
    ("Transfer-Encoding:", Err(Bad)),
    ("Transfer-Encoding: identity", Err(Bad)),
    ("Transfer-Encoding: gzip", Err(Bad)),
    ("Transfer-Encoding: gzip, chunked", Err(Other)),
    ("Transfer-Encoding: chunked, gzip", Err(Bad)),
    ("Transfer-Encoding: chunked, chunked", Err(Bad)),
    ("Transfer-Encoding: chunked, identity", Err(Bad)),
    ("Transfer-Encoding: ,chunked", Err(Bad)),
    ("Transfer-Encoding: chunked,", Err(Bad)),
    ("Transfer-Encoding: xchunked", Err(Bad)),
    ("Transfer-Encoding: chunked;q=1", Err(Bad)),
    ("Transfer-Encoding: \"chunked\"", Err(Bad)),
    ("Transfer-Encoding: chunked\x0b", Err(Bad)),
    ("Transfer-Encoding: chun ked", Err(Bad)),
    (
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        Err(Bad),
    ),
    (
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
        Err(Bad),
    ),
];

#[test]
fn a_body_has_one_length_or_the_request_is_refused() {
    for (fields, wanted) in BODY_LENGTHS {
        let found = with(fields).map(|head| head.framing);
        assert_eq!(found.map_err(|refusal| refusal.fault), wanted, "{fields}");
    }
    let old = parse(b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(old.unwrap_err().fault, Bad);
}

#[test]
fn lines_names_and_bytes_are_as_the_standard_has_them_or_refused() {
    let table: [&[u8]; 39] = [
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\r\n\r\n",
        b"GET / HTTP/1.1\rHost: a\r\n\r\n",
        b"GET / HTTP/1.1\n\rHost: a\r\n\r\n",
        b"\n GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\0: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\t: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX(Y): a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\xc3\xa4: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\"X\": a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET / http/1.1\r\nHost: a\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1\r\nHost: a\r\n\r\n",
        b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G\xc3\x84T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GE T / HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    for bytes in table {
        let refusal = parse(bytes).expect_err(&bytes.escape_ascii().to_string());
        assert_eq!(
            refusal.fault,
            HeadFault::Malformed,
            "{}",
            bytes.escape_ascii()
        );
    }
    for version in ["0.9", "1.2", "2.0", "3.0", "9.9"] {
        let refusal = parse(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n").as_bytes());
        assert_eq!(
            refusal.unwrap_err().fault,
            HeadFault::VersionUnsupported,
            "{version}"
        );
    }
}

/// Target, path and host of a request.
type TargetParts = (&'static str, &'static str, &'static str);

/// Request line and field, and the parts; `None`: refused.
const TARGETS_AND_HOSTS: [(&str, &str, Option<TargetParts>); 35] = [
    ("GET /a?b HTTP/1.1", "Host: x", Some(("/a?b", "/a", "x"))),
    ("GET / HTTP/1.1", "Host: x:80", Some(("/", "/", "x:80"))),
    (
        "GET / HTTP/1.1",
        "Host: [::1]:80",
        Some(("/", "/", "[::1]:80")),
    ),
    (
        "GET http://x/a HTTP/1.1",
        "Host: X",
        Some(("/a", "/a", "x")),
    ),
    ("GET http://x HTTP/1.1", "Host: x", Some(("/", "/", "x"))),
    ("GET http://x/ HTTP/1.0", "A: b", Some(("/", "/", "x"))),
    ("GET / HTTP/1.0", "A: b", Some(("/", "/", ""))),
    ("OPTIONS * HTTP/1.1", "Host: x", Some(("*", "*", "x"))),
    ("BREW-42 / HTTP/1.1", "Host: x", Some(("/", "/", "x"))),
    ("get / HTTP/1.1", "Host: x", Some(("/", "/", "x"))),
    ("GET http://x/ HTTP/1.1", "Host: y", None),
    ("GET http://x:80/ HTTP/1.1", "Host: x", None),
    ("GET http://u@x/ HTTP/1.1", "Host: u@x", None),
    ("GET http:///a HTTP/1.1", "Host: x", None),
    ("GET http://x?a HTTP/1.1", "Host: x", None),
    ("GET ftp://x/ HTTP/1.1", "Host: x", None),
    ("GET x:80 HTTP/1.1", "Host: x:80", None),
    ("GET * HTTP/1.1", "Host: x", None),
    ("OPTIONS http://x HTTP/1.1", "Host: x", None),
    ("GET a HTTP/1.1", "Host: x", None),
    ("GET / HTTP/1.1", "A: b", None),
    ("GET / HTTP/1.1", "Host: x\r\nHost: x", None),
    ("GET / HTTP/1.0", "Host: x\r\nhost: y", None),
    ("GET / HTTP/1.1", "Host:", None),
    ("GET / HTTP/1.1", "Host: x, y", None),
    ("GET / HTTP/1.1", "Host: x y", None),
    ("GET / HTTP/1.1", "Host: u@x", None),
    ("GET / HTTP/1.1", "Host: x/y", None),
    ("GET / HTTP/1.1", "Host: x:y", None),
    ("GET / HTTP/1.1", "Host: x:123456", None),
    ("GET / HTTP/1.1", "Host: x:65536", None),
    ("GET / HTTP/1.1", "Host: x%2fy", None),
    (
        "GET / HTTP/1.1",
        "Host: x:65535",
        Some(("/", "/", "x:65535")),
    ),
    ("GET / HTTP/1.1", "Host: [::1", None),
    ("GET / HTTP/1.1", "Host: [x]", None),
];

#[test]
fn target_and_host_name_one_authority_or_the_request_is_refused() {
    for (line, fields, wanted) in TARGETS_AND_HOSTS {
        let found = parse(format!("{line}\r\n{fields}\r\n\r\n").as_bytes());
        match (found, wanted) {
            (Ok(head), Some((target, path, host))) => {
                let text = |span| std::str::from_utf8(head.text(span)).unwrap().to_owned();
                assert_eq!(
                    [text(head.target), text(head.path), text(head.host)],
                    [target, path, host],
                    "{line}"
                );
            }
            (Err(refusal), None) => assert_eq!(refusal.fault, HeadFault::Malformed, "{line}"),
            (found, _) => panic!("{line} {fields}: {found:?}"),
        }
    }
}

#[test]
fn limits_have_their_own_reasons() {
    let line = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(17_000));
    let many = "X: y\r\n".repeat(100);
    let large = format!("X: {}", "y".repeat(33_000));
    assert_eq!(
        parse(line.as_bytes()).unwrap_err().fault,
        HeadFault::TargetTooLong
    );
    for fields in [many.trim_end(), &large] {
        assert_eq!(with(fields).unwrap_err().fault, HeadFault::TooLarge);
    }
    assert!(with("X: y\r\n".repeat(99).trim_end()).is_ok());
    let connect = parse(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
    assert_eq!(connect.unwrap_err().fault, HeadFault::MethodNotAllowed);
}

#[test]
fn connection_upgrade_and_expect_mean_what_they_say_and_no_more() {
    let names = |head: &RequestHead| -> Vec<String> {
        let name = |field: &crate::http::fields::HeadField| {
            String::from_utf8_lossy(head.text(field.name)).into_owned()
        };
        head.fields.iter().map(name).collect()
    };
    let head = with("Connection: X-A, host, authorization\r\nX-A: 1\r\nAuthorization: b\r\nX_Forwarded_For: c\r\nContent_Length: 9\r\nTE: trailers").unwrap();
    assert_eq!(names(&head), ["Host", "Authorization"]);
    for (fields, upgrade) in [
        ("Connection: upgrade\r\nUpgrade: websocket", true),
        ("Connection: x, UPGRADE\r\nUpgrade: a/1, b", true),
        ("Upgrade: websocket", false),
        ("Connection: upgrade", false),
        ("Connection: upgrade\r\nUpgrade: h2c", false),
        ("Connection: upgrade\r\nUpgrade: websocket, H2C-14", false),
        ("Connection: upgrade\r\nUpgrade: H2", false),
        ("Connection: upgrade\r\nUpgrade: HTTP/2.0", false),
        ("Connection: upgrade\r\nUpgrade: TLS/1.2", false),
        (
            "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1",
            true,
        ),
        (
            "Connection: upgrade\r\nUpgrade: tcp\r\nTransfer-Encoding: chunked",
            false,
        ),
    ] {
        let head = with(fields).unwrap();
        assert_eq!(head.upgrade.is_some(), upgrade, "{fields}");
        assert!(!names(&head).iter().any(|name| name == "Upgrade"));
    }
    let head = with("Expect: 100-continue\r\nContent-Length: 1").unwrap();
    assert!(head.expects_continue && names(&head).contains(&"Expect".to_owned()));
    let head = with("Expect: 100-continue").unwrap();
    assert!(!head.expects_continue && !names(&head).contains(&"Expect".to_owned()));
    for odd in ["100-continu", "100-continue, x", "", "200-ok"] {
        let refusal = with(&format!("Expect: {odd}\r\nContent-Length: 1")).unwrap_err();
        assert_eq!(refusal.fault, HeadFault::ExpectationFailed, "{odd}");
    }
}

#[test]
fn connection_cannot_remove_what_goes_from_end_to_end() {
    for (name, stays) in [
        ("Host", true),
        ("Cookie", true),
        ("Proxy-Authorization", true),
        ("Content-Encoding", true),
        ("If-Match", true),
        ("Sec-Fetch-Site", true),
        ("x-forwarded-port", true),
        ("Cache-Control", true),
        ("Traceparent", true),
        ("X-Secret", false),
        ("Keep-Alive", false),
        ("TE", false),
    ] {
        let fields = if name == "Host" {
            "Connection: host".to_owned()
        } else {
            format!("Connection: close, {}\r\n{name}: b", name.to_lowercase())
        };
        let head = with(&fields).unwrap();
        let found = head
            .fields
            .iter()
            .any(|field| head.text(field.name).eq_ignore_ascii_case(name.as_bytes()));
        assert_eq!(found, stays, "{name}");
    }
}

#[test]
fn a_refused_head_keeps_nothing_of_the_one_before() {
    let mut head = parse(b"DELETE /x HTTP/1.0\r\nHost: first\r\n\r\n").unwrap();
    head.bytes = b"GE T / HTTP/1.1\r\nHost: second\r\n\r\n".to_vec();
    assert!(super::parse(&mut head, HEAD_LIMITS).is_err());
    assert!(head.method.is_empty() && head.host.is_empty() && head.fields.iter().next().is_none());
}

#[test]
fn bytes_behind_the_limit_do_not_change_how_a_head_is_judged() {
    for (start, fault) in [
        ("GET /", HeadFault::TargetTooLong),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: ", HeadFault::TooLarge),
    ] {
        let head = start.to_owned() + &"x".repeat(HEAD_LIMITS.bytes - start.len());
        for later in [
            "",
            "x",
            " / HTTP/1.1\r\n\r\n",
            "\0",
            "\r\n\r\n",
            "\r\n : \r\n",
        ] {
            let judged = parse((head.clone() + later).as_bytes());
            assert_eq!(judged.unwrap_err().fault, fault, "{start} {later:?}");
        }
    }
    let end = "\r\nX: y\r\n\r\n";
    let start = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(16_000));
    let longest = start.clone() + &"x".repeat(HEAD_LIMITS.bytes - start.len() - end.len()) + end;
    let head = parse((longest + "\0").as_bytes()).unwrap();
    assert_eq!(head.len, HEAD_LIMITS.bytes);
}

#[test]
fn a_head_that_comes_in_two_pieces_is_judged_as_one_that_comes_at_once() {
    let fields = format!("Host: a\r\nX: {}\r\n\r\n", "y".repeat(20_000));
    let method = "M".repeat(17_000);
    let target = "x".repeat(16_380);
    for line in [
        "\r\nGET / HTTP/1.1".to_owned(),
        format!("{method} / HTTP/1.1"),
        format!("GET /{target} HTTP/1.1"),
    ] {
        let fields = if line.len() > 1000 {
            "Host: a\r\n\r\n"
        } else {
            &fields
        };
        let whole = format!("{line}\r\n{fields}");
        assert!(parse(whole.as_bytes()).is_ok());
        for cut in [line.len() - 3, whole.len() - 3] {
            let mut head = RequestHead {
                bytes: whole.as_bytes()[..cut].to_vec(),
                ..RequestHead::default()
            };
            assert_eq!(super::parse(&mut head, HEAD_LIMITS), Ok(false), "{cut}");
        }
    }
}
