//! Comparison of the two routes by which a field block becomes a message: through HTTP/1.1 text and
//! its parser, and directly. For tests and fuzzing.
//!
//! The route through text decides. Where the other one differs on purpose, [`AllowedDifference`]
//! has a name for it, and the difference is checked to be exactly that.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "called by tests and fuzzing only"
)]

pub mod blocks;

use self::blocks::{Block, BlockKind};
use super::{
    backend::response as old_response,
    recv_buffer,
    request::{self as old_request, H2RequestError},
};
use crate::{
    http::{
        fields::{HeadFields, KnownField},
        message::{BodyFraming, RequestHead, ResponseHead},
        rules::{HeadError, HeadFault, HeadLimits, MAX_FIELDS, MAX_HEAD_BYTES},
    },
    http1::{
        self,
        body::{BodyDecoder, BodyError, BodyStep},
    },
    http2::{self, hpack::FieldList, response::ResponseExpectation, trailers::TrailersError},
};

/// Difference that is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowedDifference {
    /// The text was too large only because of lines that are no fields of the block: Host for an
    /// authority, the framing, the handshake of a WebSocket. The limits are for what the peer has
    /// sent, and the block has no such fields. Without these lines the text gives the same verdict.
    AddedLines,
}

/// Comparison that found no fault.
#[derive(Debug)]
pub struct Agreement {
    /// Verdict of the direct route; the detail is empty if the message is accepted.
    pub detail: &'static str,
    /// Parts of an accepted message that have few values, such as its framing.
    pub shape: String,
    /// Difference to the other route.
    pub difference: Option<AllowedDifference>,
}

/// Parts of a message that make its shape; no field name has upper-case letters or blanks.
const SHAPES: [&str; 8] = [
    "Framing",
    "Upgrade",
    "WebSocket",
    "Takes trailers",
    "Expects 100",
    "Status",
    "Announced",
    "Interim",
];

/// Refusal, and the parts of the head that the log would show.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RefusedMessage {
    fault: HeadFault,
    logged: Vec<String>,
}

/// Parts of a message that must be the same by both routes, or its refusal. Bytes are escaped.
type Verdict = Result<Vec<String>, RefusedMessage>;

/// Compares both routes for `block`.
///
/// # Errors
/// They differ.
pub fn compare(block: &Block) -> Result<Agreement, String> {
    let list = block.list();
    let (old, (new, detail), difference) = match block.kind {
        BlockKind::Request => {
            let old = request_by_text(&list, block, 0);
            let new = request_directly(&list, block);
            let is_allowed = is_too_large(&old)
                && request_by_text(&list, block, added_request_lines(&list)) == new.0;
            (old, new, is_allowed)
        }
        BlockKind::Response => {
            let old = response_by_text(&list, block);
            let new = response_directly(&list, block);
            let is_allowed = is_too_large(&old) && fits_without_added_lines(&list, block, &new.0);
            (old, new, is_allowed)
        }
        BlockKind::Trailers => {
            let old = trailers_by_text(&list, block.limits);
            (old, trailers_directly(&list, block.limits), false)
        }
    };
    if old != new && !difference {
        let [old, new] = [old, new].map(|verdict| cut(&format!("{verdict:?}")));
        return Err(format!("{block}by text:  {old}\ndirectly: {new}\n{detail}"));
    }
    let is_shape = |part: &&String| SHAPES.iter().any(|shape| part.starts_with(shape));
    let shape: Vec<&str> = new
        .iter()
        .flatten()
        .filter(is_shape)
        .map(|part| &**part)
        .collect();
    Ok(Agreement {
        detail,
        shape: shape.join(", "),
        difference: (old != new).then_some(AllowedDifference::AddedLines),
    })
}

fn is_too_large(verdict: &Verdict) -> bool {
    matches!(verdict, Err(refused) if refused.fault == HeadFault::TooLarge)
}

/// Beginning of `text`.
fn cut(text: &str) -> String {
    text.chars().take(1_500).collect()
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Refusal of which the log shows nothing.
const fn unlogged(fault: HeadFault) -> RefusedMessage {
    RefusedMessage {
        fault,
        logged: Vec::new(),
    }
}

/// Names in lower case and values of the fields that are kept, but those that are called as in
/// `left_out`.
fn kept(fields: &HeadFields, bytes: &[u8], left_out: &[&str]) -> impl Iterator<Item = String> {
    fields.iter().filter_map(move |field| {
        let name = show(&field.name.get(bytes).to_ascii_lowercase());
        let is_kept = !left_out.contains(&name.as_str());
        is_kept.then(|| format!("{name}: {}", show(field.value.get(bytes))))
    })
}

/// Key of a WebSocket, which only the text has.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Parts of a request; `is_websocket`: it may have a key of the text.
fn request_view(head: &RequestHead, is_websocket: bool) -> Vec<String> {
    for field in head.fields.sent() {
        let known = KnownField::of(head.text(field.name));
        assert_eq!(known, field.known, "a field under another name");
    }
    assert_eq!(head.len, head.bytes.len(), "bytes behind the head");
    assert!(head.keep_alive);
    let mut view = vec![
        format!("Method: {}", show(head.text(head.method))),
        format!("Target: {}", show(head.text(head.target))),
        format!("Path: {}", show(head.text(head.path))),
        format!("Host: {}", show(head.text(head.host))),
        format!("Framing: {:?}", head.framing),
        format!("Upgrade: {:?}", head.upgrade.map(|it| show(head.text(it)))),
        format!("WebSocket: {}", head.is_websocket()),
        format!("Takes trailers: {}", head.takes_trailers),
        format!("Expects 100: {}", head.expects_continue),
    ];
    let key: &[&str] = if is_websocket {
        &["sec-websocket-key"]
    } else {
        &[]
    };
    view.extend(kept(&head.fields, &head.bytes, key));
    view
}

/// Refusal with what is left in `head`.
fn refused_request(error: HeadError, head: &RequestHead) -> RefusedMessage {
    const FRAMING: [&str; 5] = [
        "transfer-encoding",
        "content-length",
        "connection",
        "upgrade",
        "sec-websocket-key",
    ];
    let mut logged = vec![
        show(head.text(head.method)),
        show(head.text(head.host)),
        show(head.text(head.path)),
    ];
    logged.extend(kept(&head.fields, &head.bytes, &FRAMING));
    logged.retain(|part| !part.is_empty());
    RefusedMessage {
        fault: error.fault,
        logged,
    }
}

/// Reads a request by way of its text, of which `uncounted` lines do not count.
fn request_by_text(list: &FieldList, block: &Block, uncounted: usize) -> Verdict {
    let Block { ends, limits, .. } = *block;
    let request = old_request::read(list, ends, limits, || KEY.to_owned());
    let request = request.map_err(|error| {
        unlogged(match error {
            H2RequestError::Malformed => HeadFault::Malformed,
            H2RequestError::TooLarge => HeadFault::TooLarge,
            H2RequestError::MethodNotAllowed => HeadFault::MethodNotAllowed,
        })
    })?;
    let mut head = RequestHead {
        bytes: request.head.text,
        ..RequestHead::default()
    };
    let limits = HeadLimits {
        fields: limits.fields + uncounted,
        ..limits
    };
    let parsed = http1::request::parse(&mut head, limits);
    assert!(
        parsed.map_err(|error| refused_request(error, &head))?,
        "half a head"
    );
    if let BodyFraming::Streamed(length) = &mut head.framing {
        *length = request.head.length;
    }
    Ok(request_view(&head, request.accept.is_some()))
}

/// Number of lines of the text for which the block has no field: Host, and those of the framing,
/// which are one, or the three of a WebSocket's handshake.
fn added_request_lines(list: &FieldList) -> usize {
    let has = |wanted: &[u8]| list.iter().any(|(name, _)| name == wanted);
    usize::from(!has(b"host")) + if has(b":protocol") { 3 } else { 1 }
}

fn request_directly(list: &FieldList, block: &Block) -> (Verdict, &'static str) {
    let mut head = RequestHead {
        bytes: b"of an earlier request".to_vec(),
        takes_trailers: true,
        ..RequestHead::default()
    };
    match http2::request::read(list, block.ends, block.limits, &mut head) {
        Ok(()) => (Ok(request_view(&head, false)), ""),
        Err(error) => (Err(refused_request(error, &head)), error.detail),
    }
}

fn response_view(head: &ResponseHead) -> Vec<String> {
    assert_eq!(head.len, head.bytes.len(), "bytes behind the head");
    let mut view = vec![
        format!("Status: {}", head.status),
        format!("Phrase: {}", show(head.text(head.phrase))),
        format!("Framing: {:?}", head.framing),
        format!("Announced: {:?}", head.announced),
        format!("Upgrade: {:?}", head.upgrade.map(|it| show(head.text(it)))),
        format!("Interim: {}", head.is_interim()),
    ];
    view.extend(response_fields(head));
    view
}

/// Fields of a response but the accept of a WebSocket, which only the text has.
fn response_fields(head: &ResponseHead) -> Vec<String> {
    let accept: &[&str] = if head.status == 101 {
        &["sec-websocket-accept"]
    } else {
        &[]
    };
    kept(&head.fields, &head.bytes, accept).collect()
}

/// Text of a response, and the length that was declared beside it.
fn response_text(list: &FieldList, block: &Block) -> Result<(Vec<u8>, Option<u64>), HeadFault> {
    if !list.is_whole() {
        return Err(HeadFault::TooLarge);
    }
    let expected = old_response::ResponseExpectation {
        is_head: block.is_head,
        accept: block.is_websocket.then(|| KEY.into()),
    };
    match old_response::read(list, block.ends, &expected) {
        Ok(old_response::ReceivedHead::Interim(text)) => Ok((text, None)),
        Ok(old_response::ReceivedHead::Final(head)) => Ok((head.text, head.length)),
        Err(_) => Err(HeadFault::Malformed),
    }
}

fn response_by_text(list: &FieldList, block: &Block) -> Verdict {
    let (text, declared) = response_text(list, block).map_err(unlogged)?;
    let mut head = ResponseHead {
        bytes: text,
        ..ResponseHead::default()
    };
    let method: &[u8] = if block.is_head { b"HEAD" } else { b"GET" };
    let parsed = http1::response::parse(&mut head, method);
    assert!(
        parsed.map_err(|error| unlogged(error.fault))?,
        "half a head"
    );
    if let BodyFraming::Streamed(length) = &mut head.framing {
        *length = declared;
    }
    Ok(response_view(&head))
}

fn response_directly(list: &FieldList, block: &Block) -> (Verdict, &'static str) {
    let mut head = ResponseHead {
        bytes: b"of an earlier response".to_vec(),
        announced: Some(7),
        ..ResponseHead::default()
    };
    let expected = ResponseExpectation {
        is_head: block.is_head,
        is_websocket: block.is_websocket,
    };
    match http2::response::read(list, block.ends, expected, &mut head) {
        Ok(()) => {
            assert!(head.keep_alive);
            (Ok(response_view(&head)), "")
        }
        Err(error) => (Err(unlogged(error.fault)), error.detail),
    }
}

/// True if the text of a response is within the limits without its added lines, and the others say
/// the same as `new`.
fn fits_without_added_lines(list: &FieldList, block: &Block, new: &Verdict) -> bool {
    const ADDED: [&[u8]; 5] = [
        b"Transfer-Encoding: ",
        b"Content-Length: ",
        b"Connection: ",
        b"Upgrade: ",
        b"sec-websocket-accept: ",
    ];
    let Ok((text, _)) = response_text(list, block) else {
        return false;
    };
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let lines: Vec<&[u8]> = lines
        .filter(|line| !ADDED.iter().any(|name| line.starts_with(name)))
        .collect();
    // The status line and the empty line are no fields.
    let fields = &lines[1..lines.len() - 1];
    let bytes: usize = lines.iter().map(|line| line.len()).sum();
    let status = str::from_utf8(&lines[0][9..12]).expect("a status");
    let is_right = match new {
        Err(refused) => refused.fault == HeadFault::Malformed && status > "599",
        Ok(view) => {
            let fields = fields.iter().map(|line| show(line.trim_ascii_end()));
            // The parts before them are not lines of the text.
            let own = view
                .iter()
                .skip(6)
                .map(|field| field.trim_ascii_end().to_owned());
            own.eq(fields) && view[0] == format!("Status: {status}")
        }
    };
    fields.len() <= MAX_FIELDS && bytes <= MAX_HEAD_BYTES && is_right
}

fn trailers_by_text(list: &FieldList, limits: HeadLimits) -> Verdict {
    if !list.is_whole() {
        return Err(unlogged(HeadFault::TooLarge));
    }
    let section = recv_buffer::trailer_section(list).ok_or(unlogged(HeadFault::Malformed))?;
    let mut text = Vec::new();
    http1::encode::last_chunk(&mut text, &section);
    let (mut decoder, mut rest) = (BodyDecoder::chunked(limits), &text[..]);
    loop {
        match decoder.step(rest) {
            Ok(BodyStep::Skip(count)) => rest = &rest[count..],
            Ok(BodyStep::End) => break,
            Ok(step) => panic!("{step:?} in an empty body"),
            Err(BodyError::TrailersTooLarge) => return Err(unlogged(HeadFault::TooLarge)),
            Err(_) => return Err(unlogged(HeadFault::Malformed)),
        }
    }
    assert!(rest.is_empty(), "bytes behind the trailers");
    let lines = decoder.trailers().split_inclusive(|byte| *byte == b'\n');
    Ok(lines
        .map(|line| show(line.strip_suffix(b"\r\n").expect("a line")))
        .collect())
}

fn trailers_directly(list: &FieldList, limits: HeadLimits) -> (Verdict, &'static str) {
    match http2::trailers::read(list, limits) {
        Ok(trailers) => {
            let fields = trailers.iter();
            let lines = fields.map(|(name, value)| format!("{}: {}", show(name), show(value)));
            (Ok(lines.collect()), "")
        }
        Err(TrailersError::TooLarge) => {
            let refused = unlogged(HeadFault::TooLarge);
            (Err(refused), "a trailer section that is too large")
        }
        Err(TrailersError::Malformed(detail)) => (Err(unlogged(HeadFault::Malformed)), detail),
    }
}

#[cfg(test)]
#[path = "oracle_tests.rs"]
mod tests;
