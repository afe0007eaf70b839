//! Responses from field blocks.

use super::{super::golden_tests::field_list, *};
use crate::http::rules::HeadFault;

fn read(
    status: &str,
    fields: &[(&str, &str)],
    ends: bool,
    expected: ResponseExpectation,
) -> Result<ResponseHead, HeadError> {
    let list = [&[(":status", status)], fields].concat();
    let mut head = ResponseHead::default();
    super::read(&field_list(&list, 1 << 20), ends, expected, &mut head).map(|()| head)
}

const GET: ResponseExpectation = ResponseExpectation {
    is_head: false,
    is_websocket: false,
};
const HEAD: ResponseExpectation = ResponseExpectation {
    is_head: true,
    ..GET
};
const WEBSOCKET: ResponseExpectation = ResponseExpectation {
    is_websocket: true,
    ..GET
};

const NONE: &[(&str, &str)] = &[];
const LENGTH: &[(&str, &str)] = &[("content-length", "5")];
const WITH_TRAILER: &[(&str, &str)] = &[("content-length", "5"), ("trailer", "x")];
const EMPTY: &[(&str, &str)] = &[("content-length", "0")];

#[test]
fn a_response_is_framed_as_its_status_and_its_stream_say() {
    use BodyFraming::{Length, None as Nothing, Streamed};
    for (status, fields, ends, expected, framing, announced) in [
        (200, NONE, false, GET, Streamed(None), None),
        (200, NONE, true, GET, Length(0), None),
        (200, LENGTH, false, GET, Streamed(Some(5)), None),
        (200, EMPTY, true, GET, Length(0), None),
        (200, LENGTH, true, HEAD, Nothing, Some(5)),
        (200, NONE, false, HEAD, Nothing, None),
        (200, WITH_TRAILER, false, GET, Streamed(Some(5)), None),
        (204, NONE, true, GET, Nothing, None),
        (204, NONE, false, GET, Nothing, None),
        (204, LENGTH, false, HEAD, Nothing, None),
        (304, LENGTH, true, GET, Nothing, Some(5)),
        (103, NONE, false, GET, Nothing, None),
        (599, NONE, true, GET, Length(0), None),
        (404, LENGTH, false, WEBSOCKET, Streamed(Some(5)), None),
    ] {
        let head = read(&status.to_string(), fields, ends, expected).unwrap();
        let found = (head.status, head.framing, head.announced);
        assert_eq!(
            found,
            (status, framing, announced),
            "{fields:?} {ends} {expected:?}"
        );
        assert!(head.keep_alive && head.upgrade.is_none(), "{status}");
        assert_eq!(head.find(KnownField::ContentLength), None, "it is struck");
        assert_eq!(head.is_interim(), status == 103);
    }
}

#[test]
fn a_2xx_to_a_websocket_request_is_a_switch() {
    let fields = [
        ("sec-websocket-accept", "x"),
        ("sec-websocket-protocol", "y"),
    ];
    let head = read("200", &fields, false, WEBSOCKET).unwrap();
    assert_eq!(
        (head.status, head.text(head.phrase)),
        (101, &b"Switching Protocols"[..])
    );
    assert!(head.switches_to(b"websocket"));
    let kept: Vec<_> = head
        .fields
        .iter()
        .map(|field| head.text(field.name))
        .collect();
    assert_eq!(kept, [b"sec-websocket-protocol"]);
}

#[test]
fn each_violation_of_the_rfc_is_named() {
    let connection = "a connection-specific field";
    let (pseudo, control) = (
        "a pseudo-header field that is unknown or not first",
        "a control byte in a field value",
    );
    for (status, fields, ends, detail) in [
        ("101", NONE, false, "a switch of protocols"),
        ("100", NONE, true, "an end without a response"),
        ("100", LENGTH, false, "a 1xx that announces a body"),
        ("20", NONE, true, "an invalid :status"),
        ("2000", NONE, true, "an invalid :status"),
        ("", NONE, true, "an invalid :status"),
        ("+20", NONE, true, "an invalid :status"),
        ("600", NONE, true, "a status outside 100..=599"),
        (
            "200",
            LENGTH,
            true,
            "an end before the length that was declared",
        ),
        (
            "200",
            &[("content-length", "+5")],
            true,
            "a malformed content-length",
        ),
        ("200", &[EMPTY[0], EMPTY[0]], true, "several content-length"),
        ("200", &[(":status", "200")], true, pseudo),
        ("200", &[(":path", "/")], true, pseudo),
        ("200", &[("a", "b\0")], true, control),
        (
            "200",
            &[("a b", "c")],
            true,
            "an invalid byte in a field name",
        ),
        (
            "200",
            &[("A", "c")],
            true,
            "an upper-case letter in a field name",
        ),
        ("200", &[("a", "b\r\nc: d")], true, control),
        ("200", &[("connection", "x")], true, connection),
        ("200", &[("transfer-encoding", "chunked")], true, connection),
        ("200", &[("upgrade", "x")], true, connection),
        ("200", &[("keep-alive", "x")], true, connection),
        ("200", &[("te", "trailers")], true, connection),
        ("103", &[("connection", "x")], false, connection),
    ] {
        let found = read(status, fields, ends, GET).unwrap_err();
        assert_eq!(found, HeadError::malformed(detail), "{status} {fields:?}");
    }
    let mut head = ResponseHead::default();
    let found = super::read(&FieldList::default(), true, GET, &mut head);
    assert_eq!(found, Err(HeadError::malformed("no :status")));
}

#[test]
fn a_head_is_as_large_as_its_limits_whether_a_length_is_declared_or_not() {
    let fault = |count: usize, value: usize| {
        let value = "b".repeat(value);
        let mut fields = vec![("a", &*value); count];
        fields.push(("content-length", "5"));
        let read = read("200", &fields, false, GET);
        read.err().map(|error| error.fault)
    };
    // With the name, the colon, a blank and the line end, in a head of 19 bytes.
    let most = MAX_HEAD_BYTES - b"HTTP/1.1 200 OK\r\na: \r\n\r\n".len();
    for (count, value, expected) in [
        (MAX_FIELDS, 1, None),
        (MAX_FIELDS + 1, 1, Some(HeadFault::TooLarge)),
        (1, most, None),
        (1, most + 1, Some(HeadFault::TooLarge)),
    ] {
        assert_eq!(fault(count, value), expected, "{count} {value}");
    }
}
