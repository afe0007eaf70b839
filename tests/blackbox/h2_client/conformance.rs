//! Rules of RFC 9113 and RFC 7541 for frames that are wrong, or only odd: one line for each rule.

use super::front;
use crate::harness::{
    client::HttpClient,
    frames::{
        ACK, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, GET_FIELDS, GOAWAY, HEADERS,
        PING, PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, RawFrame, RawH2Client, SETTINGS,
        WINDOW_UPDATE, fields, frame, goaway,
    },
    peer::ScriptedPeer,
};

pub const PADDED_FLAG: u8 = 8;
pub const WITH_PRIORITY: u8 = 0x20;
const MAX_WINDOW: u32 = 0x7fff_ffff;

pub const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;

/// The required reaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameOutcome {
    /// The connection ends with this code.
    Goaway(u32),
    /// Stream 1 is reset with it.
    Reset(u32),
    /// Stream 1 is answered, by a head whose status has this number (RFC 7541 appendix A).
    Answered(u8),
    /// Nothing: the connection goes on.
    Nothing,
}
use FrameOutcome::{Answered, Goaway, Nothing, Reset};

/// Section and violation, the bytes that commit it, and the required reaction.
type FrameRule = (&'static str, Vec<Vec<u8>>, FrameOutcome);

/// Number of the status 200, RFC 7541 appendix A.
pub const OK: u8 = 0x88;

/// A PING: its response shows that the connection goes on.
const PING_PROBE: [u8; 8] = *b"goes on?";

fn outcome(address: std::net::SocketAddr, frames: &[Vec<u8>]) -> FrameOutcome {
    let mut client = RawH2Client(HttpClient::connect(address));
    client.send(PREFACE);
    client.send(frames.concat());
    outcome_of(&mut client)
}

/// The same, but each frame is sent after the one before was handled.
fn outcome_in_steps(address: std::net::SocketAddr, frames: &[Vec<u8>]) -> FrameOutcome {
    let mut client = RawH2Client(HttpClient::connect(address));
    client.send(PREFACE);
    for frame in frames {
        client.send(frame);
        let found = outcome_of(&mut client);
        if found != Nothing {
            return found;
        }
    }
    Nothing
}

fn outcome_of(client: &mut RawH2Client) -> FrameOutcome {
    client.send(frame(PING, 0, 0, &PING_PROBE));
    let is_told = |kind, stream| kind == GOAWAY || stream == 1 && kind != WINDOW_UPDATE;
    let found = client.until(|frame| {
        is_told(frame.kind, frame.stream)
            || frame.kind == PING && frame.flags == ACK && frame.payload == PING_PROBE
    });
    match found.kind {
        GOAWAY => Goaway(found.code()),
        RST_STREAM => Reset(found.code()),
        HEADERS => Answered(status(&found)),
        _ => Nothing,
    }
}

/// Number of the status in a head, RFC 7541 appendix A.
pub fn status(head: &RawFrame) -> u8 {
    // The first block may begin with the size of the table, RFC 7541 section 4.2.
    *head.payload.iter().find(|byte| **byte != 0x20).unwrap()
}

/// The same where nothing but the response is waited for.
fn answer(address: std::net::SocketAddr, frames: &[Vec<u8>]) -> FrameOutcome {
    let mut client = RawH2Client(HttpClient::connect(address));
    client.send(PREFACE);
    client.send(frames.concat());
    let found = client.until(|frame| matches!(frame.kind, GOAWAY | HEADERS | RST_STREAM));
    match found.kind {
        GOAWAY => Goaway(found.code()),
        RST_STREAM => Reset(found.code()),
        _ => Answered(status(&found)),
    }
}

fn hello() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[])
}

pub fn setting(name: u16, value: u32) -> Vec<u8> {
    let payload = [&name.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

/// A request whose body is to come.
fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &fields(&GET_FIELDS))
}

fn whole(stream: u32) -> Vec<u8> {
    frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        stream,
        &fields(&GET_FIELDS),
    )
}

pub fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

fn block(bytes: &[u8]) -> Vec<u8> {
    let all = [&fields(&GET_FIELDS)[..], bytes].concat();
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &all)
}

/// A request with padding or priority.
fn dressed(flags: u8, before: &[u8], after: &[u8]) -> Vec<u8> {
    let payload = [before, &fields(&GET_FIELDS), after].concat();
    frame(HEADERS, END_HEADERS | END_STREAM | flags, 1, &payload)
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

fn priority(stream: u32, on: u32) -> Vec<u8> {
    let payload = [&on.to_be_bytes()[..], &[15]].concat();
    frame(PRIORITY, 0, stream, &payload)
}

/// HEADERS with a field block, for a stream that depends on itself.
fn self_dependent(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    let payload = [&stream.to_be_bytes()[..], &[15], block].concat();
    frame(HEADERS, WITH_PRIORITY | flags, stream, &payload)
}

/// RFC 9113 sections 3 to 5: framing and the states of streams.
#[rustfmt::skip]
fn framing_rules() -> Vec<FrameRule> {
    let large = vec![0; 16_385];
    let end = END_HEADERS | END_STREAM;
    vec![
        ("3.4: no settings first", vec![whole(1)], Goaway(PROTOCOL_ERROR)),
        ("3.4: an acknowledgement first", vec![frame(SETTINGS, ACK, 0, &[])], Goaway(PROTOCOL_ERROR)),
        ("4.1: an unknown kind", vec![hello(), frame(0x16, 0xff, 0, &[0; 8])], Nothing),
        ("4.1: unknown flags", vec![hello(), frame(PING, 0x16, 0, &[0; 8])], Nothing),
        ("4.2: DATA too long", vec![hello(), open(1), frame(DATA, 0, 1, &large)], Goaway(FRAME_SIZE_ERROR)),
        ("4.2: HEADERS too long", vec![hello(), frame(HEADERS, end, 1, &large)], Goaway(FRAME_SIZE_ERROR)),
        ("4.3: no block", vec![hello(), frame(HEADERS, end, 1, &[0xff])], Goaway(COMPRESSION_ERROR)),
        ("4.3: something within a block", vec![hello(), frame(HEADERS, END_STREAM, 1, &[0x82]), frame(PRIORITY, 0, 1, &[0; 5])], Goaway(PROTOCOL_ERROR)),
        ("4.3: another stream within a block", vec![hello(), frame(HEADERS, END_STREAM, 1, &[0x82]), whole(3)], Goaway(PROTOCOL_ERROR)),
        ("4.3: an unknown kind within a block", vec![hello(), frame(HEADERS, END_STREAM, 1, &[0x82]), frame(0x16, 0, 1, &[])], Goaway(PROTOCOL_ERROR)),
        ("5.1: DATA before a head", vec![hello(), frame(DATA, END_STREAM, 1, b"x")], Goaway(PROTOCOL_ERROR)),
        ("5.1: RST_STREAM before a head", vec![hello(), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])], Goaway(PROTOCOL_ERROR)),
        ("5.1: WINDOW_UPDATE before a head", vec![hello(), window(1, 9)], Goaway(PROTOCOL_ERROR)),
        ("5.1: CONTINUATION before a head", vec![hello(), frame(CONTINUATION, end, 1, &[0x82])], Goaway(PROTOCOL_ERROR)),
        ("5.1: PRIORITY before a head", vec![hello(), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])], Nothing),
        ("5.1: DATA behind the end", vec![hello(), whole(1), frame(DATA, END_STREAM, 1, b"x")], Reset(STREAM_CLOSED)),
        ("5.1: HEADERS behind the end", vec![hello(), whole(1), whole(1)], Reset(STREAM_CLOSED)),
        ("5.1: CONTINUATION behind the end", vec![hello(), whole(1), frame(CONTINUATION, end, 1, &[0x82])], Goaway(PROTOCOL_ERROR)),
        ("5.1.1: an even stream", vec![hello(), whole(2)], Goaway(PROTOCOL_ERROR)),
        ("5.1.1: an earlier stream", vec![hello(), whole(5), whole(3)], Goaway(PROTOCOL_ERROR)),
    ]
}

/// RFC 9113 section 5.1: streams that the client has reset. Each frame is complete.
#[rustfmt::skip]
fn reset_rules() -> Vec<FrameRule> {
    let end = END_HEADERS | END_STREAM;
    let trailers = || frame(HEADERS, end, 1, &fields(&[("a", "b")]));
    vec![
        ("5.1: HEADERS behind a reset", vec![hello(), open(1), reset(1), whole(1)], Reset(STREAM_CLOSED)),
        ("5.1: HEADERS behind a whole request and its reset", vec![hello(), whole(1), reset(1), whole(1)], Reset(STREAM_CLOSED)),
        ("5.1: trailers behind a reset", vec![hello(), open(1), reset(1), trailers()], Reset(STREAM_CLOSED)),
        ("5.1: HEADERS behind later streams and a reset", vec![hello(), open(1), open(3), reset(3), reset(1), whole(1)], Reset(STREAM_CLOSED)),
        ("5.1: DATA behind a reset", vec![hello(), open(1), reset(1), frame(DATA, 0, 1, b"x")], Reset(STREAM_CLOSED)),
        ("5.1: the end behind a reset", vec![hello(), open(1), reset(1), frame(DATA, END_STREAM, 1, &[])], Reset(STREAM_CLOSED)),
        ("5.1: padding behind a reset", vec![hello(), open(1), reset(1), frame(DATA, PADDED_FLAG, 1, &[2, 1, 1])], Reset(STREAM_CLOSED)),
        ("5.1: WINDOW_UPDATE behind a reset", vec![hello(), open(1), reset(1), window(1, 9)], Nothing),
        ("5.1: PRIORITY behind a reset", vec![hello(), open(1), reset(1), priority(1, 3)], Nothing),
        ("5.1: RST_STREAM behind a reset", vec![hello(), open(1), reset(1), reset(1)], Nothing),
        ("5.1.1: an earlier stream than the one that was reset", vec![hello(), open(5), reset(5), whole(3)], Goaway(PROTOCOL_ERROR)),
        ("5.3.1 of RFC 7540: a stream that was reset and depends on itself", vec![hello(), open(1), reset(1), priority(1, 1)], Nothing),
        ("5.3.1 of RFC 7540: a head of a stream that was reset, and depends on itself", vec![hello(), open(1), reset(1), self_dependent(end, 1, &fields(&GET_FIELDS))], Reset(STREAM_CLOSED)),
    ]
}

/// RFC 7540 section 5.3.1: a stream cannot depend on itself. Each frame is complete.
#[rustfmt::skip]
fn dependency_rules() -> Vec<FrameRule> {
    let end = END_HEADERS | END_STREAM;
    let request = fields(&GET_FIELDS);
    let padded = [&[2, 0x80, 0, 0, 1, 15][..], &request, &[0; 2]].concat();
    vec![
        ("5.3.1: a head", vec![hello(), self_dependent(end, 1, &request)], Reset(PROTOCOL_ERROR)),
        ("5.3.1: a head before a body", vec![hello(), self_dependent(END_HEADERS, 1, &request), frame(DATA, END_STREAM, 1, b"x")], Reset(PROTOCOL_ERROR)),
        ("5.3.1: a head with padding, exclusive", vec![hello(), frame(HEADERS, end | WITH_PRIORITY | PADDED_FLAG, 1, &padded)], Reset(PROTOCOL_ERROR)),
        ("5.3.1: a head of the second request", vec![hello(), whole(3), self_dependent(end, 5, &request), whole(1)], Goaway(PROTOCOL_ERROR)),
        ("5.3.1: it is no head, but its stream counts", vec![hello(), self_dependent(end, 5, &request), whole(3)], Goaway(PROTOCOL_ERROR)),
        ("5.3.1: trailers", vec![hello(), open(1), self_dependent(end, 1, &fields(&[("a", "b")]))], Reset(PROTOCOL_ERROR)),
        ("5.3.1: a head of an even stream", vec![hello(), self_dependent(end, 2, &request)], Goaway(PROTOCOL_ERROR)),
        ("5.3.1: a head that cannot be decoded", vec![hello(), self_dependent(end, 1, &[0xff])], Goaway(COMPRESSION_ERROR)),
        ("5.3.1: PRIORITY of an open stream", vec![hello(), open(1), priority(1, 1)], Reset(PROTOCOL_ERROR)),
        ("5.3.1: PRIORITY behind a whole request", vec![hello(), whole(1), priority(1, 1)], Reset(PROTOCOL_ERROR)),
        ("5.3.1: PRIORITY, exclusive", vec![hello(), open(1), priority(1, 0x8000_0001)], Reset(PROTOCOL_ERROR)),
        // RFC 9113 section 6.4: no RST_STREAM for an idle stream.
        ("5.3.1: PRIORITY of an idle stream", vec![hello(), priority(1, 1)], Goaway(PROTOCOL_ERROR)),
        ("5.3.1: PRIORITY of a stream that an error has closed", vec![hello(), self_dependent(end, 3, &request), priority(3, 3)], Nothing),
        ("5.3.1: another stream", vec![hello(), open(1), priority(1, 3)], Nothing),
    ]
}

/// RFC 9113 section 6: definitions of the frames.
#[rustfmt::skip]
fn frame_rules() -> Vec<FrameRule> {
    let end = END_HEADERS | END_STREAM;
    vec![
        ("6.1: DATA of no stream", vec![hello(), frame(DATA, 0, 0, b"x")], Goaway(PROTOCOL_ERROR)),
        ("6.1: padding beyond DATA", vec![hello(), open(1), frame(DATA, PADDED_FLAG, 1, &[5, 1, 1])], Goaway(PROTOCOL_ERROR)),
        ("6.1: padding without a length", vec![hello(), open(1), frame(DATA, PADDED_FLAG, 1, &[])], Goaway(FRAME_SIZE_ERROR)),
        ("6.1: nothing but padding", vec![hello(), open(1), frame(DATA, PADDED_FLAG, 1, &[2, 1, 1])], Nothing),
        ("6.2: HEADERS of no stream", vec![hello(), whole(0)], Goaway(PROTOCOL_ERROR)),
        ("6.2: padding beyond HEADERS", vec![hello(), frame(HEADERS, end | PADDED_FLAG, 1, &[9, 0x82])], Goaway(PROTOCOL_ERROR)),
        ("6.2: too short for the priority", vec![hello(), frame(HEADERS, end | WITH_PRIORITY, 1, &[0; 4])], Goaway(FRAME_SIZE_ERROR)),
        ("6.3: PRIORITY of no stream", vec![hello(), frame(PRIORITY, 0, 0, &[0; 5])], Goaway(PROTOCOL_ERROR)),
        ("6.3: PRIORITY too short", vec![hello(), frame(PRIORITY, 0, 1, &[0; 4])], Goaway(FRAME_SIZE_ERROR)),
        ("6.4: RST_STREAM of no stream", vec![hello(), frame(RST_STREAM, 0, 0, &[0; 4])], Goaway(PROTOCOL_ERROR)),
        ("6.4: RST_STREAM too short", vec![hello(), whole(1), frame(RST_STREAM, 0, 1, &[0; 3])], Goaway(FRAME_SIZE_ERROR)),
        ("6.5: an acknowledgement with settings", vec![hello(), frame(SETTINGS, ACK, 0, &[0; 6])], Goaway(FRAME_SIZE_ERROR)),
        ("6.5: SETTINGS of a stream", vec![hello(), frame(SETTINGS, 0, 1, &[])], Goaway(PROTOCOL_ERROR)),
        ("6.5: half a setting", vec![hello(), frame(SETTINGS, 0, 0, &[0; 3])], Goaway(FRAME_SIZE_ERROR)),
        ("6.5.2: ENABLE_PUSH of 2", vec![setting(2, 2)], Goaway(PROTOCOL_ERROR)),
        ("6.5.2: a window beyond the largest", vec![setting(4, MAX_WINDOW + 1)], Goaway(FLOW_CONTROL_ERROR)),
        ("6.5.2: frames below the smallest", vec![setting(5, 16_383)], Goaway(PROTOCOL_ERROR)),
        ("6.5.2: frames beyond the largest", vec![setting(5, 1 << 24)], Goaway(PROTOCOL_ERROR)),
        ("6.5.2: an unknown setting", vec![setting(0xfa, 1)], Nothing),
        ("6.6: a promise of a client", vec![hello(), frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])], Goaway(PROTOCOL_ERROR)),
        ("6.7: PING of a stream", vec![hello(), frame(PING, 0, 1, &[0; 8])], Goaway(PROTOCOL_ERROR)),
        ("6.7: PING too short", vec![hello(), frame(PING, 0, 0, &[0; 6])], Goaway(FRAME_SIZE_ERROR)),
        ("6.7: an unrequested acknowledgement", vec![hello(), frame(PING, ACK, 0, b"surplus!")], Nothing),
        ("6.8: GOAWAY of a stream", vec![hello(), frame(GOAWAY, 0, 1, &[0; 8])], Goaway(PROTOCOL_ERROR)),
        ("6.8: GOAWAY too short", vec![hello(), frame(GOAWAY, 0, 0, &[0; 7])], Goaway(FRAME_SIZE_ERROR)),
        ("6.9: a window that grows by nothing", vec![hello(), window(0, 0)], Goaway(PROTOCOL_ERROR)),
        ("6.9: a stream's that grows by nothing", vec![hello(), open(1), window(1, 0)], Reset(PROTOCOL_ERROR)),
        ("6.9: WINDOW_UPDATE too short", vec![hello(), frame(WINDOW_UPDATE, 0, 0, &[0; 3])], Goaway(FRAME_SIZE_ERROR)),
        ("6.9.1: a window beyond the largest", vec![hello(), window(0, MAX_WINDOW), window(0, MAX_WINDOW)], Goaway(FLOW_CONTROL_ERROR)),
        ("6.9.1: a stream's beyond the largest", vec![hello(), open(1), window(1, MAX_WINDOW), window(1, MAX_WINDOW)], Reset(FLOW_CONTROL_ERROR)),
        ("6.9.2: all windows beyond the largest", vec![hello(), open(1), window(1, MAX_WINDOW - 65_535), setting(4, MAX_WINDOW)], Goaway(FLOW_CONTROL_ERROR)),
        ("6.9.2: windows below nothing", vec![hello(), open(1), setting(4, 0), setting(4, 5)], Nothing),
        ("6.10: CONTINUATION of no stream", vec![hello(), frame(HEADERS, END_STREAM, 1, &[0x82]), frame(CONTINUATION, END_HEADERS, 0, &[])], Goaway(PROTOCOL_ERROR)),
        ("6.10: CONTINUATION of nothing", vec![hello(), open(1), frame(CONTINUATION, END_HEADERS, 1, &[])], Goaway(PROTOCOL_ERROR)),
    ]
}

/// Trailers that are none, RFC 9113 sections 8.1 to 8.3.
#[rustfmt::skip]
fn malformed_trailers() -> Vec<FrameRule> {
    let request = |list: &[(&str, &str)], flags| {
        vec![hello(), open(1), frame(DATA, 0, 1, b"x"), frame(HEADERS, END_HEADERS | flags, 1, &fields(list))]
    };
    vec![
        ("8.1: trailers without an end", request(&[("x-test", "ok")], 0), Reset(PROTOCOL_ERROR)),
        ("8.1: a pseudo-field in trailers without an end", request(&[(":method", "POST")], 0), Reset(PROTOCOL_ERROR)),
        ("8.1: a pseudo-field in trailers", request(&[(":method", "POST")], END_STREAM), Reset(PROTOCOL_ERROR)),
        ("8.1: a second head", request(&GET_FIELDS, END_STREAM), Reset(PROTOCOL_ERROR)),
        ("8.2.1: a name in upper case in trailers", request(&[("X-TEST", "ok")], END_STREAM), Reset(PROTOCOL_ERROR)),
        ("8.2.1: a value with NUL in trailers", request(&[("x-test", "o\0k")], END_STREAM), Reset(PROTOCOL_ERROR)),
        ("8.2.2: connection in trailers", request(&[("connection", "keep-alive")], END_STREAM), Reset(PROTOCOL_ERROR)),
        ("8.2.2: transfer-encoding in trailers", request(&[("transfer-encoding", "chunked")], END_STREAM), Reset(PROTOCOL_ERROR)),
        ("8.2.2: TE in trailers", request(&[("te", "trailers, deflate")], END_STREAM), Reset(PROTOCOL_ERROR)),
        ("8.3: an unknown pseudo-field in trailers", request(&[(":test", "ok")], END_STREAM), Reset(PROTOCOL_ERROR)),
        ("8.3: a pseudo-field of responses in trailers", request(&[(":status", "200")], END_STREAM), Reset(PROTOCOL_ERROR)),
        ("8.3: a pseudo-field behind a trailer", request(&[("x-test", "ok"), (":path", "/")], END_STREAM), Reset(PROTOCOL_ERROR)),
    ]
}

/// RFC 9113 section 8.1.1: content that is not as long as `content-length` says.
#[rustfmt::skip]
fn length_rules() -> Vec<FrameRule> {
    let post = |length| fields(&[&GET_FIELDS[..], &[("content-length", length)]].concat());
    let head = |length| frame(HEADERS, END_HEADERS, 1, &post(length));
    let data = |flags, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    let trailers = || frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&[("a", "b")]));
    vec![
        ("8.1.1: more than content-length", vec![hello(), head("1"), data(END_STREAM, b"test")], Reset(PROTOCOL_ERROR)),
        ("8.1.1: more than content-length in two frames", vec![hello(), head("1"), data(0, b"test"), data(END_STREAM, b"test")], Reset(PROTOCOL_ERROR)),
        ("8.1.1: more than content-length before the end", vec![hello(), head("4"), data(0, b"test"), data(0, b"x")], Reset(PROTOCOL_ERROR)),
        ("8.1.1: content, and a content-length of 0", vec![hello(), head("0"), data(0, b"x")], Reset(PROTOCOL_ERROR)),
        ("8.1.1: less than content-length", vec![hello(), head("5"), data(END_STREAM, b"test")], Reset(PROTOCOL_ERROR)),
        ("8.1.1: less than content-length, and trailers", vec![hello(), head("5"), data(0, b"test"), trailers()], Reset(PROTOCOL_ERROR)),
        ("8.1.1: padding is no content", vec![hello(), head("3"), data(PADDED_FLAG | END_STREAM, &[1, b'a', b'b', 0])], Reset(PROTOCOL_ERROR)),
    ]
}

/// RFC 7541: field blocks.
#[rustfmt::skip]
fn block_rules() -> Vec<FrameRule> {
    let end = END_HEADERS | END_STREAM;
    vec![
        ("hpack 2.3.3: index 0", vec![hello(), block(&[0x80])], Goaway(COMPRESSION_ERROR)),
        ("hpack 2.3.3: no such index", vec![hello(), block(&[0xc6])], Goaway(COMPRESSION_ERROR)),
        ("hpack 2.3.3: no such name", vec![hello(), block(&[0x7e, 1, b'x'])], Goaway(COMPRESSION_ERROR)),
        ("hpack 4.2: a size behind a field", vec![hello(), block(&[0x3f, 1])], Goaway(COMPRESSION_ERROR)),
        ("hpack 5.1: a number without end", vec![hello(), block(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1])], Goaway(COMPRESSION_ERROR)),
        ("hpack 5.2: eight bits of padding", vec![hello(), block(&[0, 1, b'x', 0x82, 0x1f, 0xff])], Goaway(COMPRESSION_ERROR)),
        ("hpack 5.2: padding of zeros", vec![hello(), block(&[0, 1, b'x', 0x81, 0x1e])], Goaway(COMPRESSION_ERROR)),
        ("hpack 5.2: the end symbol", vec![hello(), block(&[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff])], Goaway(COMPRESSION_ERROR)),
        ("hpack 6.3: a table beyond what is allowed", vec![hello(), frame(HEADERS, end, 1, &[0x3f, 0xe2, 0x1f, 0x82])], Goaway(COMPRESSION_ERROR)),
    ]
}

#[test]
fn wrong_frames_end_what_they_are_wrong_for() {
    // A request without an end gets no response.
    let backend = ScriptedPeer::start(|mut connection| while connection.request().is_some() {});
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let mut wrong = Vec::new();
    for (what, frames, expected) in [framing_rules(), frame_rules(), block_rules()].concat() {
        let found = outcome(address, &frames);
        if found != expected {
            wrong.push((what, found, expected));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn errors_of_a_stream_are_the_same_in_one_read_and_in_many() {
    let backend = ScriptedPeer::start(|mut connection| while connection.request().is_some() {});
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let mut wrong = Vec::new();
    let rules = [
        reset_rules(),
        dependency_rules(),
        malformed_trailers(),
        length_rules(),
    ];
    for (what, frames, expected) in rules.concat() {
        for (parts, found) in [
            ("one read", outcome(address, &frames)),
            ("steps", outcome_in_steps(address, &frames)),
        ] {
            if found != expected {
                wrong.push((what, parts, found, expected));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_fields_of_a_head_that_is_an_error_are_known_to_the_next_one() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let end = END_HEADERS | END_STREAM;
    // Each block enters a field, the last one uses all of them (RFC 7541 section 6.1).
    let entered = |name: u8| [&fields(&GET_FIELDS)[..], &[0x40, 1, name, 1, b'1']].concat();
    let (first, second) = (entered(b'a'), entered(b'b'));
    client.send(self_dependent(end, 1, &first));
    client.send(self_dependent(END_STREAM, 3, &second[..9]));
    client.send(frame(CONTINUATION, END_HEADERS, 3, &second[9..]));
    client.send(open(5));
    client.send(reset(5));
    client.send(frame(HEADERS, end, 5, &entered(b'c')));
    let all = [&fields(&GET_FIELDS)[..], &[0xbe, 0xbf, 0xc0]].concat();
    client.send(frame(HEADERS, end, 7, &all));
    client.until(|frame| frame.stream == 7 && frame.kind == HEADERS);
    let request = backend.wait_for_requests(1)[0].clone();
    let found = ["a", "b", "c"].map(|name| request.header(name).map(str::to_owned));
    assert_eq!(found.each_ref().map(Option::as_deref), [Some("1"); 3]);
}

#[test]
fn what_is_only_odd_is_answered() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let request = fields(&GET_FIELDS);
    let end = END_HEADERS | END_STREAM;
    let (first, second) = request.split_at(20);
    let size = [&[0x20, 0x3f, 0xe1, 0x1f][..], &request].concat();
    #[rustfmt::skip]
    let table: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("padding", vec![hello(), dressed(PADDED_FLAG, &[3], &[0; 3])]),
        ("priority", vec![hello(), dressed(WITH_PRIORITY, &[0x80, 0, 0, 0, 255], &[])]),
        ("both", vec![hello(), dressed(PADDED_FLAG | WITH_PRIORITY, &[1, 0, 0, 0, 0, 1], &[9])]),
        ("a block in parts", vec![hello(), frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, 0, 1, &[]), frame(CONTINUATION, END_HEADERS, 1, second)]),
        ("sizes of the table", vec![hello(), frame(HEADERS, end, 1, &size)]),
        ("a body in padding", vec![hello(), open(1), frame(DATA, PADDED_FLAG, 1, &[1, b'a', 0]), frame(DATA, PADDED_FLAG | END_STREAM, 1, &[1, b'b', 0])]),
        ("trailers", vec![hello(), open(1), frame(HEADERS, end, 1, &fields(&[("a", "b")]))]),
        ("a window of nothing", vec![setting(4, 0), whole(1)]),
        ("GOAWAY first", vec![hello(), goaway(0, 0), whole(1)]),
        ("the reserved bit", vec![hello(), {
            let mut bytes = whole(1);
            bytes[5] |= 0x80;
            bytes
        }]),
    ];
    for (what, frames) in table {
        assert_eq!(answer(address, &frames), Answered(OK), "{what}");
    }
}
