//! Correct clients whose traffic resembles a flood keep their connection; a flood beside it does
//! not.

use super::front;
use crate::harness::{
    frames::{
        ACK, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GET_FIELDS, GOAWAY, HEADERS, PING,
        PRIORITY, REFUSED_STREAM, RST_STREAM, RawH2Client, SETTINGS, WINDOW_UPDATE, fields, frame,
    },
    peer::{Gate, ScriptedPeer},
};

/// RFC 9218 section 7.1.
const PRIORITY_UPDATE: u8 = 0x10;
const POST_FIELDS: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "test"),
];

/// The same fields with the path whose response waits for the gate of [`ScriptedPeer::slow`].
fn held(fields: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let path = |(name, value)| (name, if name == ":path" { "/slow" } else { value });
    fields.iter().copied().map(path).collect()
}

fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

/// The connection goes on: its peer answers a PING.
fn goes_on(client: &mut RawH2Client, what: &str) {
    client.send(frame(PING, 0, 0, b"goes on?"));
    let found = client.until(|frame| frame.kind == GOAWAY || frame.payload == b"goes on?");
    assert_eq!((found.kind, found.flags), (PING, ACK), "{what}");
}

/// A backend that answers each request with that number of bytes.
fn sending(length: usize) -> ScriptedPeer {
    ScriptedPeer::answering(&"x".repeat(length))
}

/// Reads one response, and acknowledges its bytes on the connection and on the stream in steps.
fn download(client: &mut RawH2Client, stream: u32, step: u32) {
    client.ask(stream, &GET_FIELDS);
    loop {
        let part = client.until(|frame| matches!(frame.kind, DATA | GOAWAY | RST_STREAM));
        assert_eq!(part.kind, DATA, "cut");
        let mut left = part.payload.len() as u32;
        let mut updates = Vec::new();
        while left > 0 {
            let more = step.min(left);
            left -= more;
            // Those for a stream that is over are honest as well.
            updates.extend(window(stream, more));
            updates.extend(window(0, more));
        }
        client.send(updates);
        if part.flags & END_STREAM > 0 {
            return;
        }
    }
}

#[test]
fn a_client_may_acknowledge_what_it_got_in_any_steps() {
    for (length, step) in [(20_000, 1), (1_000_000, 100), (20_000_000, 4_096)] {
        let backend = sending(length);
        let daemon = front(backend.address, "");
        let mut client = RawH2Client::connect(daemon.address("@web"));
        for stream in [1, 3] {
            download(&mut client, stream, step);
        }
        goes_on(&mut client, "step by step");
        // The bytes have been acknowledged: there is nothing left to acknowledge.
        assert_eq!(client.flood(&window(0, 1), 3 * length), ENHANCE_YOUR_CALM);
    }
}

#[test]
fn browsers_may_set_priorities_for_every_request_however_late_its_answer_is() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "hello");
    let daemon = front(backend.address, "http: {h2_max_streams: 1000}");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let streams = (0..500).map(|index| 2 * index + 1);
    for stream in streams.clone() {
        client.ask(stream, &held(&GET_FIELDS));
    }
    for _ in 0..8 {
        for stream in streams.clone() {
            let update = [&stream.to_be_bytes()[..], b"u=1, i"].concat();
            client.send(frame(PRIORITY_UPDATE, 0, 0, &update));
            client.send(frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 15]));
        }
    }
    goes_on(&mut client, "priorities");
    gate.open();
}

#[test]
fn pings_and_settings_midway_are_part_of_traffic() {
    let backend = sending(100_000);
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    for index in 0..200 {
        download(&mut client, 2 * index + 1, 4_096);
        client.send(frame(PING, 0, 0, b"estimate"));
        client.send(frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]));
        client.send(frame(SETTINGS, ACK, 0, &[]));
    }
    goes_on(&mut client, "pings and settings");
}

/// Answers of all streams that have been asked for: the good ones, and the refused ones.
fn outcomes(client: &mut RawH2Client, count: usize) -> (usize, usize) {
    let (mut good, mut refused) = (0, 0);
    while good + refused < count {
        let end = client.until(|frame| {
            matches!(frame.kind, RST_STREAM | GOAWAY)
                || frame.kind == DATA && frame.flags & END_STREAM > 0
        });
        match end.kind {
            DATA => good += 1,
            RST_STREAM if end.code() == REFUSED_STREAM => refused += 1,
            _ => panic!("ended by {}", end.code()),
        }
    }
    (good, refused)
}

#[test]
fn streams_above_a_limit_that_the_client_cannot_know_are_refused_and_the_others_live() {
    for (count, is_upload) in [(350_u32, false), (350, true), (2_000, false), (2_000, true)] {
        let gate = Gate::new();
        let backend = ScriptedPeer::slow(&gate, "hello");
        let daemon = front(backend.address, "");
        let mut client = RawH2Client::connect(daemon.address("@web"));
        let mut burst = Vec::new();
        for index in 0..count {
            let stream = 2 * index + 1;
            if is_upload {
                burst.extend(frame(
                    HEADERS,
                    END_HEADERS,
                    stream,
                    &fields(&held(&POST_FIELDS)),
                ));
                burst.extend(frame(DATA, END_STREAM, stream, b"some"));
            } else {
                let flags = END_HEADERS | END_STREAM;
                burst.extend(frame(HEADERS, flags, stream, &fields(&held(&GET_FIELDS))));
            }
        }
        client.send(burst);
        let refused = count as usize - 100;
        assert_eq!(outcomes(&mut client, refused), (0, refused));
        client.send(frame(SETTINGS, ACK, 0, &[]));
        gate.open();
        assert_eq!(outcomes(&mut client, 100), (100, 0));
        download(&mut client, 2 * count + 1, 4_096);
    }
}

#[test]
fn a_client_that_never_acknowledges_our_settings_is_not_refused_for_ever() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "hello");
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    for stream in (1..40_000).step_by(2) {
        if !client.ask(stream, &held(&GET_FIELDS)) {
            break;
        }
    }
    assert_eq!(client.goodbye(), ENHANCE_YOUR_CALM);
    assert!(backend.connections() <= 100);
    gate.open();
}

#[test]
fn uploads_that_are_answered_early_leave_the_connection_as_it_was() {
    const UPLOAD_COUNT: u32 = 600;
    // No connection to a backend: each is answered at once.
    let daemon = front(
        crate::harness::peer::refused(),
        "http: {h2_max_streams: 1000}",
    );
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let streams = (0..UPLOAD_COUNT).map(|index| 2 * index + 1);
    for stream in streams.clone() {
        client.send(frame(HEADERS, END_HEADERS, stream, &fields(&POST_FIELDS)));
    }
    for _ in 0..UPLOAD_COUNT {
        let reset = client.until(|frame| matches!(frame.kind, RST_STREAM | GOAWAY));
        assert_eq!((reset.kind, reset.code()), (RST_STREAM, 0));
    }
    // What the client has sent before it saw the responses.
    for _ in 0..5 {
        for stream in streams.clone() {
            client.send(frame(DATA, 0, stream, b"some of it"));
        }
    }
    for stream in streams {
        client.send(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    goes_on(&mut client, "early answers");
}

#[test]
fn an_empty_frame_for_each_empty_part_of_a_body_is_no_flood() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.send(frame(HEADERS, END_HEADERS, 1, &fields(&POST_FIELDS)));
    for part in 0..3_000 {
        client.send(frame(DATA, 0, 1, &[]));
        client.send(frame(DATA, 0, 1, &[]));
        client.send(frame(DATA, 0, 1, format!("{part}\n").as_bytes()));
    }
    client.send(frame(DATA, END_STREAM, 1, &[]));
    let end = client
        .until(|frame| frame.kind == GOAWAY || frame.stream == 1 && frame.flags & END_STREAM > 0);
    assert_eq!((end.kind, end.stream), (DATA, 1));
    // One byte of padding is no content.
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.send(frame(HEADERS, END_HEADERS, 1, &fields(&POST_FIELDS)));
    assert_eq!(
        client.flood(&frame(DATA, 8, 1, &[1, 0]), 100_000),
        ENHANCE_YOUR_CALM
    );
}
