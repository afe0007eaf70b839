//! Malformed requests, RFC 9113 section 8: no part of one reaches a backend.

use super::front;
use crate::harness::{
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GET_FIELDS, GOAWAY,
        HEADERS, RST_STREAM, RawH2Client, fields, frame,
    },
    peer::ScriptedPeer,
};

/// Outcome of the request on stream 1.
#[derive(Debug, PartialEq, Eq)]
enum RequestOutcome {
    /// The first byte of the field block: 0x88 is 200, 0x8c is 400, as RFC 7541 appendix A numbers
    /// them.
    Answered(u8),
    Reset(u32),
    Closed(u32),
}

fn outcome(client: &mut RawH2Client) -> RequestOutcome {
    let frame = client.until(|frame| matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY));
    match frame.kind {
        // The first block of a connection may begin with the size of the table, RFC 7541 section
        // 4.2.
        HEADERS => {
            RequestOutcome::Answered(*frame.payload.iter().find(|byte| **byte != 0x20).unwrap())
        }
        RST_STREAM => RequestOutcome::Reset(frame.code()),
        _ => RequestOutcome::Closed(frame.code()),
    }
}

const BAD_REQUEST: RequestOutcome = RequestOutcome::Answered(0x8c);
const PROTOCOL_ERROR: RequestOutcome = RequestOutcome::Reset(1);

fn with(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    GET_FIELDS.iter().chain(more).copied().collect()
}

/// The usual request with another value of a pseudo-header.
fn but(name: &str, value: &'static str) -> Vec<(&'static str, &'static str)> {
    let other = |(own, old)| (own, if own == name { value } else { old });
    GET_FIELDS.into_iter().map(other).collect()
}

fn without(name: &str) -> Vec<(&'static str, &'static str)> {
    GET_FIELDS
        .into_iter()
        .filter(|(own, _)| *own != name)
        .collect()
}

/// Requests that two readers could understand differently.
fn ambiguous_requests() -> Vec<Vec<(&'static str, &'static str)>> {
    vec![
        without(":method"),
        without(":path"),
        without(":scheme"),
        without(":authority"),
        with(&[(":path", "/b")]),
        with(&[("x-a", "b"), (":late", "x")]),
        [&[("x-a", "b")][..], &GET_FIELDS].concat(),
        but(":path", ""),
        but(":path", "a"),
        but(":path", "http://evil/"),
        but(":path", "?a"),
        but(":path", "*"),
        but(":path", "/a b"),
        but(":path", "/a\r\nx: y"),
        but(":path", "/a\tb"),
        but(":path", "/ä"),
        but(":method", "GET /x HTTP/1.1\r\nA:"),
        but(":method", ""),
        but(":authority", "a b"),
        but(":authority", "user@a"),
        but(":authority", "a,b"),
        but(":authority", "a\r\nb: c"),
        but(":authority", ""),
        with(&[("host", "other")]),
        with(&[("host", "test"), ("host", "test")]),
        with(&[("X-Upper", "a")]),
        with(&[("a b", "c")]),
        with(&[("a:b", "c")]),
        with(&[("", "c")]),
        with(&[("a", "b\r\nc: d")]),
        with(&[("a", "b\0c")]),
        with(&[("a", "b\nc")]),
        but(":path", "/ "),
        but(":path", " /"),
        but(":method", "GET "),
        but(":scheme", "http "),
        but(":authority", "test "),
        with(&[("connection", "close")]),
        with(&[("keep-alive", "1")]),
        with(&[("proxy-connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "websocket")]),
        with(&[("te", "gzip")]),
        with(&[("content-length", "1")]),
        with(&[("content-length", "0"), ("content-length", "0")]),
        with(&[("content-length", "+0")]),
        with(&[("content-length", "")]),
        with(&[("content-length", "00000000000000000000")]),
        with(&[("content-length", "0000000000000000000")]),
        with(&[(":protocol", "websocket")]),
        with(&[(":status", "200")]),
    ]
}

#[test]
fn a_request_that_could_be_read_in_two_ways_is_refused() {
    let backend = ScriptedPeer::answering("never");
    let daemon = front(backend.address, "");
    let socket = [(":method", "CONNECT"), (":authority", "a:443")];
    let table = ambiguous_requests();
    let (mut wrong, count) = (Vec::new(), table.len());
    for list in table {
        let mut client = RawH2Client::connect(daemon.address("@web"));
        client.ask(1, &list);
        let found = outcome(&mut client);
        if found != BAD_REQUEST {
            wrong.push((list, found));
            continue;
        }
        // The response is followed by an error of the stream, RFC 9113 section 8.1.1.
        let found = outcome(&mut client);
        if found != PROTOCOL_ERROR {
            wrong.push((list, found));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let all = |lines: &[String]| {
        let told = lines
            .iter()
            .filter(|line| line.contains("\"http_request_error\""));
        (told.count() == count).then_some(())
    };
    daemon.stdout.wait_for(all).expect("each is logged");
    // A tunnel to anywhere is not served: 405 has no number of its own.
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.send(frame(HEADERS, END_HEADERS, 1, &fields(&socket)));
    assert!(matches!(outcome(&mut client), RequestOutcome::Answered(first) if first != 0x88));
    assert_eq!(
        backend.connections(),
        0,
        "nothing of it may reach a backend"
    );
}

#[test]
fn a_body_is_as_long_as_it_was_said_to_be() {
    let backend = ScriptedPeer::start(|mut connection| while connection.request().is_some() {});
    let daemon = front(backend.address, "");
    let list = with(&[("content-length", "4")]);
    for body in ["abc", "abcde"] {
        let mut client = RawH2Client::connect(daemon.address("@web"));
        client.send(frame(HEADERS, END_HEADERS, 1, &fields(&list)));
        client.send(frame(DATA, END_STREAM, 1, body.as_bytes()));
        assert_eq!(outcome(&mut client), PROTOCOL_ERROR, "{body}");
    }
    // What a stream is reset for does not end the connection.
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.send(frame(HEADERS, END_HEADERS, 1, &fields(&list)));
    client.send(frame(DATA, END_STREAM, 1, b"abc"));
    assert_eq!(outcome(&mut client), PROTOCOL_ERROR);
    // Before there is a body the request can be answered.
    client.ask(3, &list);
    assert_eq!(outcome(&mut client), BAD_REQUEST);
}

#[test]
fn the_number_and_the_size_of_fields_are_limited() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(
        backend.address,
        "http: {max_headers: 20, max_header_size: 2KiB}",
    );
    let crumbs = |count| {
        GET_FIELDS
            .iter()
            .copied()
            .chain(std::iter::repeat_n(("cookie", "a=b"), count))
    };
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.ask(1, &crumbs(15).collect::<Vec<_>>());
    assert_eq!(outcome(&mut client), RequestOutcome::Answered(0x88));
    // The parts of a cookie are one field.
    client.ask(9, &crumbs(21).collect::<Vec<_>>());
    assert_eq!(outcome(&mut client), RequestOutcome::Answered(0x88));
    // 431 has no number of its own, and 502 would not have either.
    let many = GET_FIELDS
        .into_iter()
        .chain(std::iter::repeat_n(("a", "b"), 21));
    client.ask(11, &many.collect::<Vec<_>>());
    assert!(matches!(outcome(&mut client), RequestOutcome::Answered(first) if first != 0x88));
    let logged = daemon.wait_for_access(|line| line["status"] == 431);
    assert_eq!(logged["reason"], "http_request_header_section_size");
    let long = "x".repeat(200);
    let large = GET_FIELDS
        .into_iter()
        .chain(std::iter::repeat_n(("a", &*long), 11));
    client.ask(13, &large.collect::<Vec<_>>());
    assert!(matches!(outcome(&mut client), RequestOutcome::Answered(first) if first != 0x88));
    let both = |lines: &[String]| {
        let refused = lines.iter().filter(|line| line.contains("\"status\":431"));
        (refused.count() == 2).then_some(())
    };
    daemon.stdout.wait_for(both).expect("both are logged");
    // So are the bytes of a cookie, with `; ` between its parts.
    let cookie = GET_FIELDS
        .into_iter()
        .chain(std::iter::repeat_n(("cookie", &*long), 10));
    client.ask(15, &cookie.collect::<Vec<_>>());
    assert!(matches!(outcome(&mut client), RequestOutcome::Answered(first) if first != 0x88));
    client.ask(17, &GET_FIELDS);
    assert_eq!(
        outcome(&mut client),
        RequestOutcome::Answered(0x88),
        "the connection goes on"
    );
    assert_eq!(backend.wait_for_requests(3).len(), 3);
}

#[test]
fn a_field_block_without_end_is_a_flood() {
    let backend = ScriptedPeer::answering("never");
    let daemon = front(backend.address, "");
    // Names that cost one byte each: the size counts, not the bytes.
    let mut bomb = RawH2Client::connect(daemon.address("@web"));
    let mut block = fields(&GET_FIELDS);
    block.extend([0x40, 1, b'a', 100]);
    block.extend([b'x'; 100]);
    block.extend(std::iter::repeat_n(0xbe, 5_000));
    bomb.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &block));
    assert_eq!(bomb.goodbye(), ENHANCE_YOUR_CALM);
    let mut endless = RawH2Client::connect(daemon.address("@web"));
    endless.send(frame(HEADERS, END_STREAM, 1, &fields(&GET_FIELDS)));
    for _ in 0..1_000 {
        endless.send(frame(CONTINUATION, 0, 1, &[]));
    }
    assert_eq!(endless.goodbye(), ENHANCE_YOUR_CALM);
    assert_eq!(backend.connections(), 0);
}
