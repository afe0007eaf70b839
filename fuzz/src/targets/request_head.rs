//! A request head: what is accepted means one thing, and the same after it was written anew and read again.

use balancer::http1::{
    encode,
    fields::{Known, Span},
    request::{Framing, Head, Limits, Refusal},
};

use super::{count, lines, prefixes};

const USUAL: Limits = Limits {
    fields: 100,
    bytes: 32 << 10,
};
/// Small enough that many inputs meet them.
const TIGHT: Limits = Limits {
    fields: 6,
    bytes: 192,
};

fn parse(bytes: &[u8], limits: Limits) -> Result<Option<Head>, Refusal> {
    let mut head = Head {
        bytes: bytes.to_vec(),
        ..Head::default()
    };
    Ok(head.parse(limits)?.then_some(head))
}

/// All that was understood, as spans.
fn spans(head: &Head) -> String {
    format!(
        "{} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {} {:?} {}",
        head.len,
        head.fields,
        head.method,
        head.target,
        head.path,
        head.host,
        head.version,
        head.framing,
        head.keep_alive,
        head.upgrade,
        head.expects_continue
    )
}

/// Names and values of the fields that are left.
fn kept(head: &Head) -> Vec<(&[u8], &[u8])> {
    let pair = |name: Span, value: Span| (head.text(name), head.text(value));
    head.fields
        .iter()
        .map(|field| pair(field.name, field.value))
        .collect()
}

/// `name` or `name:port` without anything that separates.
fn is_authority(text: &[u8]) -> bool {
    !text.is_empty()
        && text
            .iter()
            .all(|byte| byte.is_ascii_graphic() && !b"/?#@,\"\\<>{}|^`".contains(byte))
}

fn check(head: &Head) {
    let (method, target, host) = (
        head.text(head.method),
        head.text(head.target),
        head.text(head.host),
    );
    assert!(!method.is_empty() && method.iter().all(u8::is_ascii_graphic));
    assert!(target == b"*" || target.starts_with(b"/"));
    assert!(
        target
            .iter()
            .all(|byte| (0x21..=0x7e).contains(byte) && *byte != b'#')
    );
    assert!(target.starts_with(head.text(head.path)));
    assert!(is_authority(host) || host.is_empty() && head.find(Known::Host).is_none());
    assert_ne!(head.framing, Framing::Length(0));
    assert!(head.upgrade.is_none() || head.framing == Framing::None);
    assert!(!head.expects_continue || head.framing != Framing::None);
    for (name, value) in kept(head) {
        assert!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic));
        assert!(!value.iter().any(|byte| b"\r\n\0".contains(byte)));
    }
}

/// Writes the head as the proxy does when it adds nothing. `host` stands in for one that is not known.
fn write(head: &Head, host: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::request_line(&mut out, head.text(head.method), head.text(head.target));
    if head.find(Known::Host).is_none() {
        encode::field(&mut out, b"Host", host);
    }
    encode::fields(&mut out, &head.fields, &head.bytes);
    match head.framing {
        Framing::Length(length) => encode::content_length(&mut out, length),
        Framing::Chunked => encode::chunked(&mut out),
        Framing::None if matches!(head.text(head.method), b"POST" | b"PUT" | b"PATCH") => {
            encode::content_length(&mut out, 0);
        }
        Framing::None => {}
    }
    match head.upgrade {
        Some(protocol) => encode::upgrade(&mut out, head.text(protocol)),
        None if !head.keep_alive => encode::field(&mut out, b"Connection", b"close"),
        None => {}
    }
    encode::end(&mut out);
    out
}

fn check_written_anew(head: &Head) {
    // Our parser refuses the empty Host that stands for an unknown one, so that a name takes its place here.
    let host = Some(head.text(head.host)).filter(|host| !host.is_empty());
    let host = host.unwrap_or(b"unknown");
    let written = write(head, host);
    let lines = lines(&written);
    assert_eq!(count(&lines, "host"), 1);
    assert!(count(&lines, "content-length") + count(&lines, "transfer-encoding") <= 1);
    assert!(count(&lines, "connection") <= 1);
    let roomy = Limits {
        fields: 200,
        bytes: 256 << 10,
    };
    let again = parse(&written, roomy)
        .expect("what we write is valid")
        .expect("and whole");
    assert_eq!(again.len, written.len());
    for (first, second) in [(head.method, again.method), (head.target, again.target)] {
        assert_eq!(head.text(first), again.text(second));
    }
    assert!(host.eq_ignore_ascii_case(again.text(again.host)));
    let mut wanted = kept(head);
    if head.find(Known::Host).is_none() {
        wanted.insert(0, (b"Host", host));
    }
    assert_eq!(kept(&again), wanted);
    assert_eq!(again.framing, head.framing);
    assert_eq!(again.expects_continue, head.expects_continue);
    assert_eq!(
        again.upgrade.map(|span| again.text(span)),
        head.upgrade.map(|span| head.text(span))
    );
    assert_eq!(again.keep_alive, head.keep_alive || head.upgrade.is_some());
}

fn check_prefixes(data: &[u8], limits: Limits, whole: &Result<Option<Head>, Refusal>) {
    let end = match whole {
        Ok(Some(head)) => head.len,
        _ => data.len(),
    };
    for length in prefixes(data.len(), end) {
        match (parse(&data[..length], limits), whole) {
            (Ok(Some(part)), Ok(Some(whole))) => assert_eq!(spans(&part), spans(whole)),
            (Ok(Some(_)), _) => panic!("{length} bytes are whole, all of them are not"),
            (Err(refusal), Ok(_)) => panic!("{length} bytes are refused alone: {refusal:?}"),
            (Ok(None), Ok(Some(whole))) => assert!(length < whole.len),
            (Ok(None) | Err(_), _) => {}
        }
    }
}

/// Reads `data` as a request, whole and in part, and what is accepted a second time.
pub fn run(data: &[u8]) {
    for limits in [USUAL, TIGHT] {
        let whole = parse(data, limits);
        if let Ok(Some(head)) = &whole {
            check(head);
            check_written_anew(head);
        }
        check_prefixes(data, limits, &whole);
    }
}
