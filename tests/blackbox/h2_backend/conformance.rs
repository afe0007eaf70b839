//! Rules of RFC 9113 for the frames of a backend: one line for each rule. A violation ends its
//! stream or its connection, but never a response that was complete before.

use super::front;
use crate::harness::{
    frames::{
        ACK, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, NO_ERROR, PING,
        PRIORITY, RST_STREAM, RawH2Backend, WINDOW_UPDATE, fields, frame,
    },
    peer::{Gate, Recorder, ScriptedPeer},
};

const PADDED_FLAG: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

const PROTOCOL_ERROR: u32 = 1;
const STREAM_CLOSED: u32 = 5;
const COMPRESSION_ERROR: u32 = 9;

const STATUS_OK: (&str, &str) = (":status", "200");
/// Reasons in the access log: the response had not begun, or had.
const REFUSED: &str = "proxy_protocol_error";
const CUT: &str = "http_response_incomplete";
const RESET: &str = "connection_terminated";
/// The response was complete.
const COMPLETE: &str = "";

/// The required reaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameOutcome {
    /// The connection ends with this code.
    Goaway(u32),
    /// The stream is reset with it.
    Reset(u32),
    /// Nothing: the connection goes on.
    Nothing,
}
use FrameOutcome::{Goaway, Nothing, Reset};

/// Makes the frames for a stream.
type StreamFrames = fn(u32) -> Vec<u8>;
/// Section and violation, the frames that commit it, the required reaction, and the reason in the
/// access log.
type BackendRule = (&'static str, StreamFrames, FrameOutcome, &'static str);

fn head(stream: u32, flags: u8, list: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &fields(list))
}

/// A head with more fields, which is the whole response.
fn whole(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    head(stream, END_STREAM, &[&[STATUS_OK], more].concat())
}

/// A head with more fields, and the beginning of the content.
fn begun(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    let mut all = head(stream, 0, &[&[STATUS_OK], more].concat());
    all.extend(frame(DATA, 0, stream, b"half"));
    all
}

/// Trailers behind the beginning of the content.
fn trailers(stream: u32, flags: u8, list: &[(&str, &str)]) -> Vec<u8> {
    [begun(stream, &[]), head(stream, flags, list)].concat()
}

fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

fn priority(stream: u32, on: u32) -> Vec<u8> {
    let payload = [&on.to_be_bytes()[..], &[15]].concat();
    frame(PRIORITY, 0, stream, &payload)
}

/// A head of a stream that depends on itself.
fn self_dependent(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    let payload = [&stream.to_be_bytes()[..], &[15], block].concat();
    frame(HEADERS, WITH_PRIORITY | flags, stream, &payload)
}

/// RFC 9113 sections 4 to 6: frames and the states of streams.
#[rustfmt::skip]
fn stream_rules() -> Vec<BackendRule> {
    vec![
        ("4.3: no block", |on| frame(HEADERS, END_HEADERS | END_STREAM, on, &[0xff]), Goaway(COMPRESSION_ERROR), REFUSED),
        ("5.1: HEADERS of an idle stream", |on| whole(on + 2, &[]), Goaway(PROTOCOL_ERROR), REFUSED),
        ("5.1: HEADERS of an even stream", |on| whole(on + 1, &[]), Goaway(PROTOCOL_ERROR), REFUSED),
        ("5.1: DATA of an idle stream", |on| frame(DATA, 0, on + 2, b"x"), Goaway(PROTOCOL_ERROR), REFUSED),
        ("5.1: HEADERS behind a reset", |on| [reset(on, CANCEL), whole(on, &[])].concat(), Reset(STREAM_CLOSED), RESET),
        ("5.1: a response behind a reset", |on| [reset(on, NO_ERROR), begun(on, &[])].concat(), Reset(STREAM_CLOSED), RESET),
        ("5.1: DATA behind a reset", |on| [begun(on, &[]), reset(on, CANCEL), frame(DATA, END_STREAM, on, b"x")].concat(), Reset(STREAM_CLOSED), CUT),
        ("5.1: trailers behind a reset", |on| [begun(on, &[]), reset(on, CANCEL), head(on, END_STREAM, &[("a", "b")])].concat(), Reset(STREAM_CLOSED), CUT),
        ("5.1: WINDOW_UPDATE and PRIORITY behind a reset", |on| [reset(on, CANCEL), frame(WINDOW_UPDATE, 0, on, &[0, 0, 0, 9]), priority(on, on)].concat(), Nothing, RESET),
        ("5.1: HEADERS behind the end", |on| [whole(on, &[]), whole(on, &[])].concat(), Reset(STREAM_CLOSED), COMPLETE),
        ("5.1: DATA behind the end", |on| [whole(on, &[]), frame(DATA, 0, on, b"x")].concat(), Reset(STREAM_CLOSED), COMPLETE),
        ("5.1: a reset behind the end", |on| [whole(on, &[]), reset(on, NO_ERROR)].concat(), Nothing, COMPLETE),
        ("5.3.1 of RFC 7540: a head that depends on itself", |on| self_dependent(on, END_HEADERS | END_STREAM, &fields(&[STATUS_OK])), Reset(PROTOCOL_ERROR), REFUSED),
        ("5.3.1 of RFC 7540: it comes in parts", |on| [self_dependent(on, 0, &fields(&[STATUS_OK])), frame(CONTINUATION, END_HEADERS, on, &[])].concat(), Reset(PROTOCOL_ERROR), REFUSED),
        ("5.3.1 of RFC 7540: trailers that depend on themselves", |on| [begun(on, &[]), self_dependent(on, END_HEADERS | END_STREAM, &fields(&[("a", "b")]))].concat(), Reset(PROTOCOL_ERROR), CUT),
        ("5.3.1 of RFC 7540: PRIORITY before a head", |on| priority(on, on), Reset(PROTOCOL_ERROR), REFUSED),
        ("5.3.1 of RFC 7540: PRIORITY before the end", |on| [begun(on, &[]), priority(on, on)].concat(), Reset(PROTOCOL_ERROR), CUT),
        ("5.3.1 of RFC 7540: PRIORITY of an idle stream", |on| priority(on + 2, on + 2), Goaway(PROTOCOL_ERROR), REFUSED),
        ("5.3.1 of RFC 7540: another stream", |on| [priority(on, on + 2), whole(on, &[])].concat(), Nothing, COMPLETE),
        ("6.2: padding beyond HEADERS", |on| frame(HEADERS, END_HEADERS | PADDED_FLAG, on, &[9, 0x88]), Goaway(PROTOCOL_ERROR), REFUSED),
        ("6.4: RST_STREAM of an idle stream", |on| reset(on + 2, CANCEL), Goaway(PROTOCOL_ERROR), REFUSED),
    ]
}

/// RFC 9113 section 8: responses that are malformed.
#[rustfmt::skip]
fn response_rules() -> Vec<BackendRule> {
    vec![
        ("8.1: DATA before a head", |on| frame(DATA, 0, on, b"x"), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.1: the end without a head", |on| frame(DATA, END_STREAM, on, &[]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.1: an interim response that is the end", |on| head(on, END_STREAM, &[(":status", "103")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.1: trailers without an end", |on| trailers(on, 0, &[("a", "b")]), Reset(PROTOCOL_ERROR), CUT),
        ("8.1: a second head", |on| trailers(on, END_STREAM, &[STATUS_OK]), Reset(PROTOCOL_ERROR), CUT),
        ("8.1.1: more than content-length", |on| [begun(on, &[("content-length", "3")])].concat(), Reset(PROTOCOL_ERROR), CUT),
        ("8.1.1: less than content-length", |on| [begun(on, &[("content-length", "5")]), frame(DATA, END_STREAM, on, &[])].concat(), Reset(PROTOCOL_ERROR), CUT),
        ("8.1.1: less than content-length, and trailers", |on| [begun(on, &[("content-length", "5")]), head(on, END_STREAM, &[("a", "b")])].concat(), Reset(PROTOCOL_ERROR), CUT),
        ("8.1.1: no content, but content-length", |on| whole(on, &[("content-length", "1")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.1.1: two lengths", |on| begun(on, &[("content-length", "4"), ("content-length", "4")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.1.1: a length that is none", |on| begun(on, &[("content-length", "x")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.2.1: a name in upper case", |on| whole(on, &[("X-TEST", "ok")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.2.1: it is in an interim response", |on| head(on, 0, &[(":status", "103"), ("X-TEST", "ok")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.2.1: it is in trailers", |on| trailers(on, END_STREAM, &[("X-TEST", "ok")]), Reset(PROTOCOL_ERROR), CUT),
        ("8.2.1: a value with NUL", |on| whole(on, &[("x-test", "o\0k")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.2.2: connection", |on| whole(on, &[("connection", "keep-alive")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.2.2: keep-alive", |on| whole(on, &[("keep-alive", "timeout=5")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.2.2: transfer-encoding", |on| begun(on, &[("transfer-encoding", "chunked")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.2.2: upgrade", |on| whole(on, &[("upgrade", "h2c")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.2.2: TE", |on| begun(on, &[("te", "trailers")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.2.2: connection in trailers", |on| trailers(on, END_STREAM, &[("connection", "close")]), Reset(PROTOCOL_ERROR), CUT),
        ("8.3: an unknown pseudo-field", |on| whole(on, &[(":test", "ok")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.3: a pseudo-field of requests", |on| whole(on, &[(":path", "/")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.3: a pseudo-field behind a field", |on| head(on, END_STREAM, &[("a", "b"), STATUS_OK]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.3: a pseudo-field in trailers", |on| trailers(on, END_STREAM, &[(":test", "ok")]), Reset(PROTOCOL_ERROR), CUT),
        ("8.3.2: no status", |on| head(on, END_STREAM, &[("a", "b")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.3.2: two statuses", |on| whole(on, &[STATUS_OK]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.3.2: an empty status", |on| head(on, END_STREAM, &[(":status", "")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.3.2: a status of two digits", |on| head(on, 0, &[(":status", "20")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.3.2: a status that is none", |on| head(on, 0, &[(":status", "099")]), Reset(PROTOCOL_ERROR), REFUSED),
        ("8.6: a switch of protocols", |on| head(on, 0, &[(":status", "101")]), Reset(PROTOCOL_ERROR), REFUSED),
    ]
}

/// The reaction to `frames`, and the reason in the access log.
fn outcome(frames: StreamFrames) -> (Option<FrameOutcome>, String) {
    let (over, found) = (Gate::new(), Recorder::default());
    let (waits, noted) = (over.clone(), found.clone());
    let backend = ScriptedPeer::start(move |connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        let Some(stream) = backend.asked() else {
            return;
        };
        backend.send(frames(stream));
        // What is refused as a whole is reset when its exchange is over.
        waits.wait();
        backend.send(frame(PING, 0, 0, &[0; 8]));
        let told = backend.until(|frame| {
            frame.kind == RST_STREAM && frame.stream == stream
                || frame.kind == GOAWAY
                || frame.kind == PING && frame.flags == ACK
        });
        noted.push(told.map(|frame| match frame.kind {
            RST_STREAM => Reset(frame.code()),
            GOAWAY => Goaway(frame.code()),
            _ => Nothing,
        }));
    });
    let daemon = front(backend.address, "retries: none");
    // The response of the daemon, or a cut one: the log says which.
    drop(daemon.get("@web", "/"));
    let logged = daemon.wait_for_access(|line| line["path"] == "/");
    over.open();
    let first = found.wait_for(|all| all.first().copied()).flatten();
    let reason = logged["reason"].as_str().unwrap_or_default();
    (first, reason.to_owned())
}

#[test]
fn wrong_frames_of_a_backend_end_what_they_are_wrong_for() {
    let mut wrong = Vec::new();
    for (what, frames, expected, reason) in [stream_rules(), response_rules()].concat() {
        let (found, logged) = outcome(frames);
        if found != Some(expected) || logged != reason {
            wrong.push((what, found, logged, expected, reason));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
