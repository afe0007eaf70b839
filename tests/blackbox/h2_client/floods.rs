//! Floods end the connection with ENHANCE_YOUR_CALM, RFC 9113 section 10.5.

use super::front;
use crate::harness::{
    frames::{
        DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GET_FIELDS, GOAWAY, HEADERS, PING,
        PRIORITY, RST_STREAM, RawH2Client, SETTINGS, WINDOW_UPDATE, fields, frame,
    },
    peer::ScriptedPeer,
};

/// Far more frames of one kind than a peer may send that asks for nothing.
const FLOOD_FRAMES: usize = 10_000;

#[test]
fn frames_that_only_cost_are_limited() {
    let backend = ScriptedPeer::silent();
    let daemon = front(backend.address, "");
    for (what, bytes) in [
        ("ping", frame(PING, 0, 0, &[0; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("priority", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("empty data", frame(DATA, 0, 1, &[])),
        ("window", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("unknown", frame(0x77, 0, 0, &[])),
    ] {
        let mut client = RawH2Client::connect(daemon.address("@web"));
        client.send(frame(HEADERS, END_HEADERS, 1, &fields(&GET_FIELDS)));
        assert_eq!(
            client.flood(&bytes, FLOOD_FRAMES),
            ENHANCE_YOUR_CALM,
            "{what}"
        );
    }
}

#[test]
fn rapid_resets_end_the_connection_and_start_few_requests() {
    let backend = ScriptedPeer::start(|mut connection| while connection.request().is_some() {});
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    for stream in (1..20_000).step_by(2) {
        let mut both = frame(
            HEADERS,
            END_STREAM | END_HEADERS,
            stream,
            &fields(&GET_FIELDS),
        );
        both.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        if !client.send(both) {
            break;
        }
    }
    assert_eq!(client.goodbye(), ENHANCE_YOUR_CALM);
    assert!(backend.connections() <= 250, "{}", backend.connections());
}

#[test]
fn a_deadline_makes_no_rapid_reset_free() {
    let backend = ScriptedPeer::start(|mut connection| while connection.request().is_some() {});
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let mut call = GET_FIELDS.to_vec();
    call.extend([("content-type", "application/grpc"), ("grpc-timeout", "1n")]);
    for stream in (1..20_000).step_by(2) {
        let mut both = frame(HEADERS, END_STREAM | END_HEADERS, stream, &fields(&call));
        both.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        if !client.send(both) {
            break;
        }
    }
    assert_eq!(client.goodbye(), ENHANCE_YOUR_CALM);
    assert!(backend.connections() <= 250, "{}", backend.connections());
}

#[test]
fn a_request_that_is_reset_at_once_never_begins() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let mut all = frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(&GET_FIELDS));
    all.extend(frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]));
    all.extend(frame(
        HEADERS,
        END_STREAM | END_HEADERS,
        3,
        &fields(&GET_FIELDS),
    ));
    client.send(all);
    client.until(|frame| frame.stream == 3 && frame.flags & END_STREAM > 0);
    assert_eq!(backend.wait_for_requests(1).len(), 1);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn resets_that_a_client_makes_us_send_count_as_its_own() {
    let backend = ScriptedPeer::start(|mut connection| while connection.request().is_some() {});
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    for stream in (1..20_000).step_by(2) {
        let mut both = frame(
            HEADERS,
            END_STREAM | END_HEADERS,
            stream,
            &fields(&GET_FIELDS),
        );
        // A window that grows by nothing is an error of the stream, RFC 9113 section 6.9.
        both.extend(frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
        if !client.send(both) {
            break;
        }
    }
    let code = client.goodbye();
    assert!(code == ENHANCE_YOUR_CALM || code == 1, "{code}");
    assert!(backend.connections() <= 250, "{}", backend.connections());
}

#[test]
fn honest_traffic_is_no_flood() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    for turn in 0..600 {
        let stream = 2 * turn + 1;
        client.ask(stream, &GET_FIELDS);
        let is_end = |frame: &crate::harness::frames::RawFrame| {
            frame.stream == stream && frame.flags & END_STREAM > 0
        };
        let end = client.until(is_end);
        assert_eq!(end.kind, DATA);
        // What a client says to a response: two windows and a ping.
        client.send(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 5]));
        client.send(frame(WINDOW_UPDATE, 0, stream, &[0, 0, 0, 5]));
        client.send(frame(PING, 0, 0, &[0; 8]));
    }
}

#[test]
fn frames_that_are_cheap_buy_no_resets() {
    let backend = ScriptedPeer::start(|mut connection| while connection.request().is_some() {});
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.send(frame(HEADERS, END_HEADERS, 1, &fields(&GET_FIELDS)));
    let upload = frame(DATA, 0, 1, b"x").repeat(30);
    for stream in (3..1_000).step_by(2) {
        client.ask(stream, &GET_FIELDS);
        client.send(&upload);
        // The request has begun when its reset comes.
        client.send(frame(PING, 0, 0, &[0; 8]));
        let answer = client.until(|frame| matches!(frame.kind, PING | GOAWAY));
        if answer.kind == GOAWAY {
            assert_eq!(answer.code(), ENHANCE_YOUR_CALM);
            return;
        }
        client.send(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    panic!("the connection goes on");
}

#[test]
fn heads_for_a_stream_that_was_reset_are_limited() {
    let backend = ScriptedPeer::silent();
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.ask(1, &GET_FIELDS);
    // Nothing may follow the end: we reset it.
    client.send(frame(DATA, 0, 1, b"x"));
    let late = frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(&GET_FIELDS));
    assert_eq!(client.flood(&late, FLOOD_FRAMES), ENHANCE_YOUR_CALM);
}

#[test]
fn the_remainder_of_an_upload_that_was_answered_early_is_no_offence() {
    let daemon = front(crate::harness::peer::refused(), "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.send(frame(HEADERS, END_HEADERS, 1, &fields(&GET_FIELDS)));
    let reset = client.until(|frame| frame.kind == RST_STREAM);
    assert_eq!((reset.stream, reset.code()), (1, 0));
    // The connection has nothing else to do, and what was on its way comes bit by bit.
    for _ in 0..300 {
        client.send(frame(DATA, 0, 1, &[0; 100]));
        client.send(frame(PING, 0, 0, &[0; 8]));
        let answer = client.until(|frame| frame.kind != WINDOW_UPDATE);
        assert_eq!(answer.kind, PING);
    }
}

#[test]
fn heads_that_are_errors_of_their_stream_are_limited() {
    const WITH_PRIORITY: u8 = 0x20;
    let backend = ScriptedPeer::answering("never");
    let daemon = front(backend.address, "");
    // It depends on itself, RFC 7540 section 5.3.1.
    let bad = |stream: u32| {
        let payload = [&stream.to_be_bytes()[..], &[15], &fields(&GET_FIELDS)].concat();
        let flags = END_STREAM | END_HEADERS | WITH_PRIORITY;
        frame(HEADERS, flags, stream, &payload)
    };
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let burst: Vec<_> = (1..20_000).step_by(2).flat_map(bad).collect();
    client.send(burst);
    assert_eq!(
        client.goodbye(),
        ENHANCE_YOUR_CALM,
        "on streams of their own"
    );
    let mut client = RawH2Client::connect(daemon.address("@web"));
    assert_eq!(
        client.flood(&bad(1), FLOOD_FRAMES),
        ENHANCE_YOUR_CALM,
        "on one"
    );
    assert_eq!(backend.connections(), 0);
    // Behind the client's own reset.
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.send(frame(HEADERS, END_HEADERS, 1, &fields(&GET_FIELDS)));
    client.send(frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]));
    let late = frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(&GET_FIELDS));
    assert_eq!(client.flood(&late, FLOOD_FRAMES), ENHANCE_YOUR_CALM, "late");
}
