//! Response head: an accepted one has one meaning, which survives encoding and parsing.

use balancer::{
    http::{
        message::{BodyFraming, HttpVersion, ResponseHead},
        rules::{HeadError, MAX_FIELDS, MAX_HEAD_BYTES},
    },
    http1::{encode::TextHead, response},
    proxy::http::{ResponseExtra, SwitchExtra, delivery, interim_head, response_head, switch_head},
};

use super::{count, lines, prefixes};

fn parse(bytes: &[u8], method: &[u8]) -> Result<Option<ResponseHead>, HeadError> {
    let mut head = ResponseHead {
        bytes: bytes.to_vec(),
        ..ResponseHead::default()
    };
    Ok(response::parse(&mut head, method)?.then_some(head))
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

/// Encodes the head as the proxy does for a client of `version`.
fn write(head: &ResponseHead, version: HttpVersion) -> Vec<u8> {
    let mut out = Vec::new();
    let writer = &mut TextHead::new(&mut out);
    if head.is_interim() {
        interim_head(writer, head);
        return out;
    }
    if is_switch(head) {
        let extra = SwitchExtra {
            request_id: REQUEST_ID,
            unanswered_key: None,
        };
        switch_head(writer, head, extra);
        return out;
    }
    let extra = ResponseExtra {
        delivery: delivery(head, version, false),
        keep_alive: true,
        version,
        request_id: REQUEST_ID,
        edits: None,
        date: None,
    };
    response_head(writer, head, extra);
    out
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
    let written = write(&head, version);
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
}

fn check_prefixes(data: &[u8], method: &[u8], whole: &Result<Option<ResponseHead>, HeadError>) {
    let end = match whole {
        Ok(Some(head)) => head.len,
        _ => data.len(),
    };
    for length in prefixes(data.len(), end) {
        match (parse(&data[..length], method), whole) {
            (Ok(Some(part)), Ok(Some(whole))) => {
                assert_eq!(format!("{part:?}"), format!("{whole:?}"));
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
