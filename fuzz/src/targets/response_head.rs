//! Response head: an accepted one has one meaning, which survives encoding and parsing.

use balancer::{
    http::{
        head_writer::HeadWriter,
        message::{BodyFraming, HttpVersion, ResponseHead},
        rules::{HeadError, MAX_FIELDS, MAX_HEAD_BYTES},
    },
    http1::{encode::TextHead, response},
    http2::{self, response::ResponseExpectation},
    proxy::http::{ResponseExtra, SwitchExtra, delivery, interim_head, response_head, switch_head},
};

use super::{as_of_h2, block_fields, count, lines, prefixes};

fn parse(bytes: &[u8], method: &[u8]) -> Result<Option<ResponseHead>, HeadError> {
    let mut head = ResponseHead {
        bytes: bytes.to_vec(),
        ..ResponseHead::default()
    };
    Ok(response::parse(&mut head, method)?.then_some(head))
}

/// All parsed parts, as spans.
fn spans(head: &ResponseHead) -> String {
    format!(
        "{} {:?} {} {:?} {:?} {:?} {} {:?}",
        head.len,
        head.fields,
        head.status,
        head.phrase,
        head.framing,
        head.announced,
        head.keep_alive,
        head.upgrade
    )
}

/// Names and values of the fields that are kept.
fn kept<'a>(head: &ResponseHead, bytes: &'a [u8]) -> Vec<(&'a [u8], &'a [u8])> {
    head.fields
        .iter()
        .map(|field| (field.name.get(bytes), field.value.get(bytes)))
        .collect()
}

/// Request id in the encoded head.
const REQUEST_ID: (&str, &str) = ("X-Request-Id", "0123456789abcdef");

/// True for a 101 that the proxy passes on.
fn is_switch(head: &ResponseHead) -> bool {
    head.status == 101 && head.upgrade.is_some()
}

/// Writes the head as the proxy does for a client of `version`.
fn write(writer: &mut impl HeadWriter, head: &ResponseHead, version: HttpVersion) {
    if head.is_interim() {
        return interim_head(writer, head);
    }
    if is_switch(head) {
        let extra = SwitchExtra {
            request_id: REQUEST_ID,
            unanswered_key: None,
            sticky: None,
        };
        return switch_head(writer, head, extra);
    }
    let extra = ResponseExtra {
        delivery: delivery(head, version),
        keep_alive: true,
        version,
        request_id: REQUEST_ID,
        edits: None,
        date: None,
        sticky: None,
    };
    response_head(writer, head, extra);
}

/// Checks that the head as a block for a client with HTTP/2 is the same message as its `text`.
fn check_block(head: &ResponseHead, text: &ResponseHead, method: &[u8]) {
    let fields = block_fields(|out| write(out, head, HttpVersion::Http2));
    let expected = ResponseExpectation {
        is_head: method == b"HEAD",
        is_websocket: is_switch(head),
    };
    let has_content = !matches!(text.framing, BodyFraming::None | BodyFraming::Length(0));
    let ends = !(head.is_interim() || is_switch(head) || has_content);
    let mut read = ResponseHead::default();
    http2::response::read(&fields, ends, expected, &mut read).expect("what we write is valid");
    assert_eq!(text.status, read.status);
    assert_eq!(text.announced, read.announced);
    let [one, other] = [text.framing, read.framing].map(BodyFraming::declared_length);
    assert_eq!(one, other);
    let omitted = &["sec-websocket-accept"];
    assert_eq!(
        as_of_h2(kept(text, &text.bytes).into_iter(), omitted),
        as_of_h2(kept(&read, &read.bytes).into_iter(), omitted)
    );
}

fn check_encoded(head: ResponseHead, bytes: &[u8], (method, version): (&[u8], HttpVersion)) {
    assert!((100..=599).contains(&head.status));
    let switches = is_switch(&head);
    let mut wanted: Vec<_> = kept(&head, bytes);
    if !head.is_interim() {
        if !switches {
            wanted.retain(|(name, _)| !name.eq_ignore_ascii_case(REQUEST_ID.0.as_bytes()));
        }
        wanted.push((REQUEST_ID.0.as_bytes(), REQUEST_ID.1.as_bytes()));
    }
    let mut written = Vec::new();
    write(&mut TextHead::new(&mut written), &head, version);
    let lines = lines(&written);
    assert!(count(&lines, "content-length") + count(&lines, "transfer-encoding") <= 1);
    assert!(count(&lines, "connection") <= 1);
    if written.len() >= MAX_HEAD_BYTES {
        return;
    }
    let again = match parse(&written, method) {
        // One field more than a head may have.
        Err(invalid) if wanted.len() + 2 > MAX_FIELDS => {
            let _ = invalid;
            return;
        }
        again => again.expect("what we write is valid").expect("and whole"),
    };
    assert_eq!(again.len, written.len());
    assert_eq!(again.status, head.status);
    assert_eq!(again.phrase.get(&written), head.phrase.get(bytes));
    assert_eq!(kept(&again, &written), wanted);
    let framing = match (head.framing, version) {
        // The end of the body must be marked where the connection stays open.
        (BodyFraming::UntilClose | BodyFraming::Streamed(_), HttpVersion::Http11) => {
            BodyFraming::Streamed(None)
        }
        (BodyFraming::UntilClose | BodyFraming::Streamed(_), HttpVersion::Http10) => {
            BodyFraming::UntilClose
        }
        (framing, _) => framing,
    };
    assert_eq!(again.framing, framing);
    assert_eq!(again.announced, head.announced);
    assert_eq!(
        again.upgrade.map(|span| span.get(&written)),
        head.upgrade.map(|span| span.get(bytes))
    );
    // The proxy passes no other 101 on.
    if head.status != 101 || switches {
        check_block(&head, &again, method);
    }
}

fn check_prefixes(data: &[u8], method: &[u8], whole: &Result<Option<ResponseHead>, HeadError>) {
    let end = match whole {
        Ok(Some(head)) => head.len,
        _ => data.len(),
    };
    for length in prefixes(data.len(), end) {
        match (parse(&data[..length], method), whole) {
            (Ok(Some(part)), Ok(Some(whole))) => {
                assert_eq!(spans(&part), spans(whole));
            }
            (Ok(Some(_)), _) => panic!("{length} bytes are whole, all of them are not"),
            (Err(invalid), Ok(_)) => panic!("{length} bytes are refused alone: {invalid:?}"),
            (Ok(None), Ok(Some(whole))) => assert!(length < whole.len),
            (Ok(None) | Err(_), _) => {}
        }
    }
}

/// Parses `data` as the response to GET and to HEAD, whole and in part, and accepted input again.
pub fn run(data: &[u8]) {
    for method in [&b"GET"[..], b"HEAD"] {
        let whole = parse(data, method);
        check_prefixes(data, method, &whole);
        for version in [HttpVersion::Http11, HttpVersion::Http10] {
            if let Ok(Some(head)) = parse(data, method) {
                check_encoded(head, data, (method, version));
            }
        }
    }
}
