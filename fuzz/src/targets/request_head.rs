//! Request head: an accepted one has one meaning, which survives encoding and parsing.

use balancer::{
    config::model::ForwardedConfig,
    http::{
        fields::{KnownField, Span, is_same_or_twin},
        head_writer::HeadWriter,
        message::{BodyFraming, RequestHead},
        rules::{HeadError, HeadLimits},
    },
    http1::{encode::TextHead, request},
    http2,
    proxy::http::{NextHop, RequestChanges, RequestOrigin, request_head},
};

use super::{as_of_h2, block_fields, count, lines, prefixes};

const USUAL_LIMITS: HeadLimits = HeadLimits {
    fields: 100,
    bytes: 32 << 10,
};
/// Small enough that many inputs reach them.
const TIGHT_LIMITS: HeadLimits = HeadLimits {
    fields: 6,
    bytes: 192,
};

fn parse(bytes: &[u8], limits: HeadLimits) -> Result<Option<RequestHead>, HeadError> {
    let mut head = RequestHead {
        bytes: bytes.to_vec(),
        ..RequestHead::default()
    };
    Ok(request::parse(&mut head, limits)?.then_some(head))
}

/// All parsed parts, as spans.
fn spans(head: &RequestHead) -> String {
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

/// Names and values of the fields that are kept.
fn kept(head: &RequestHead) -> Vec<(&[u8], &[u8])> {
    let pair = |name: Span, value: Span| (head.text(name), head.text(value));
    head.fields
        .iter()
        .map(|field| pair(field.name, field.value))
        .collect()
}

/// True for `name` or `name:port` without separators.
fn is_authority(text: &[u8]) -> bool {
    !text.is_empty()
        && text
            .iter()
            .all(|byte| byte.is_ascii_graphic() && !b"/?#@,\"\\<>{}|^`".contains(byte))
}

fn check(head: &RequestHead) {
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
    assert!(is_authority(host) || host.is_empty() && head.find(KnownField::Host).is_none());
    assert_ne!(head.framing, BodyFraming::Length(0));
    assert!(head.upgrade.is_none() || !matches!(head.framing, BodyFraming::Streamed(_)));
    assert!(!head.expects_continue || head.framing != BodyFraming::None);
    for (name, value) in kept(head) {
        assert!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic));
        assert!(!value.iter().any(|byte| b"\r\n\0".contains(byte)));
    }
}

/// Authority for an old request that names none.
const LOCAL_AUTHORITY: &str = "127.0.0.1:80";

/// Writes the head as the proxy does. `plain` adds nothing.
fn write(out: &mut impl HeadWriter, head: &RequestHead, plain: bool, hop: NextHop) {
    let rules = ForwardedConfig {
        x_forwarded: !plain,
        rfc7239: !plain,
        via: !plain,
        real_ip: (!plain).then(|| "X-Real-IP".to_owned()),
        ..ForwardedConfig::default()
    };
    let origin = RequestOrigin {
        peer: Some([192, 0, 2, 7].into()),
        client: Some([192, 0, 2, 7].into()),
        trusted: plain,
        local: LOCAL_AUTHORITY.parse().ok(),
        ..RequestOrigin::default()
    };
    let id = if plain { "" } else { "0123456789abcdef" };
    let changes = RequestChanges::default();
    request_head(out, head, &rules, origin, id, changes, hop);
}

/// Names and values that the proxy passes on, and the Host that it adds.
fn wanted(head: &RequestHead, plain: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut wanted: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    if head.find(KnownField::Host).is_none() {
        let host = head.text(head.host);
        let host = if host.is_empty() {
            LOCAL_AUTHORITY.as_bytes()
        } else {
            host
        };
        wanted.push((b"Host".to_vec(), host.to_vec()));
    }
    let ours = ForwardedConfig::default().request_id.into_bytes();
    for field in head.fields.iter() {
        let (name, value) = (head.text(field.name), head.text(field.value));
        let claim = field.known.is_forwarding() && !plain;
        if !claim && !is_same_or_twin(name, &ours) {
            wanted.push((name.to_vec(), value.to_vec()));
        }
    }
    wanted
}

/// Names of the fields that the proxy adds.
fn added_names(plain: bool, has_host: bool) -> Vec<&'static [u8]> {
    if plain {
        return Vec::new();
    }
    let mut names: Vec<&[u8]> = vec![b"X-Forwarded-For", b"X-Forwarded-Proto"];
    if has_host {
        names.push(b"X-Forwarded-Host");
    }
    names.extend([&b"X-Real-IP"[..], b"Forwarded", b"Via", b"X-Request-Id"]);
    names
}

fn check_encoded(head: &RequestHead, plain: bool) {
    let hop = if head.keep_alive {
        NextHop::KeepAlive
    } else {
        NextHop::Close
    };
    let mut written = Vec::new();
    write(&mut TextHead::new(&mut written), head, plain, hop);
    let wanted = wanted(head, plain);
    let lines = lines(&written);
    assert_eq!(count(&lines, "host"), 1);
    assert!(count(&lines, "content-length") + count(&lines, "transfer-encoding") <= 1);
    assert!(count(&lines, "connection") <= 1);
    let wide_limits = HeadLimits {
        fields: 200,
        bytes: 256 << 10,
    };
    let again = parse(&written, wide_limits)
        .expect("what we write is valid")
        .expect("and whole");
    assert_eq!(again.len, written.len());
    for (first, second) in [(head.method, again.method), (head.target, again.target)] {
        assert_eq!(head.text(first), again.text(second));
    }
    if !head.host.is_empty() {
        let host = again.text(again.host);
        assert!(head.text(head.host).eq_ignore_ascii_case(host));
    }
    let found = kept(&again);
    let (same, added) = found.split_at(wanted.len());
    assert!(
        same.iter()
            .zip(&wanted)
            .all(|(found, wanted)| *found == (&wanted.0, &wanted.1)),
        "{found:?} is not {wanted:?}"
    );
    let names: Vec<&[u8]> = added.iter().map(|(name, _)| *name).collect();
    let ours = added_names(plain, !head.host.is_empty());
    assert_eq!(names, ours);
    assert_eq!(again.framing, head.framing);
    assert_eq!(again.expects_continue, head.expects_continue);
    assert_eq!(
        again.upgrade.map(|span| again.text(span)),
        head.upgrade.map(|span| head.text(span))
    );
    assert_eq!(again.keep_alive, head.keep_alive || head.upgrade.is_some());
    check_block(head, &again, plain);
}

/// Checks that the head as a block is the same message as its `text`.
fn check_block(head: &RequestHead, text: &RequestHead, plain: bool) {
    let is_websocket = head.is_websocket();
    // HTTP/2 has no method for a WebSocket.
    if is_websocket && head.text(head.method) != b"GET" {
        return;
    }
    let h2 = NextHop::H2 { is_secure: plain };
    let fields = block_fields(|out| write(out, head, plain, h2));
    let ends = head.framing == BodyFraming::None && !is_websocket;
    let wide_limits = HeadLimits {
        fields: 300,
        bytes: 1 << 20,
    };
    let mut read = RequestHead::default();
    http2::request::read(&fields, ends, wide_limits, &mut read).expect("what we write is valid");
    for (one, other) in [
        (text.method, read.method),
        (text.target, read.target),
        (text.host, read.host),
    ] {
        assert_eq!(text.text(one), read.text(other));
    }
    let key = if is_websocket {
        "sec-websocket-key"
    } else {
        ""
    };
    assert_eq!(
        as_of_h2(kept(text).into_iter(), &["host", key]),
        as_of_h2(kept(&read).into_iter(), &["host"])
    );
    let [one, other] = [text.framing, read.framing].map(BodyFraming::declared_length);
    assert_eq!(one, other);
    assert_eq!(text.expects_continue, read.expects_continue);
    assert_eq!(head.takes_trailers, read.takes_trailers);
    assert_eq!(is_websocket, read.is_websocket());
}

fn check_prefixes(data: &[u8], limits: HeadLimits, whole: &Result<Option<RequestHead>, HeadError>) {
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

/// Parses `data` as a request, whole and in part, and accepted input again.
pub fn run(data: &[u8]) {
    for limits in [USUAL_LIMITS, TIGHT_LIMITS] {
        let whole = parse(data, limits);
        check_prefixes(data, limits, &whole);
        for plain in [true, false] {
            if let Ok(Some(head)) = parse(data, limits) {
                check(&head);
                check_encoded(&head, plain);
            }
        }
    }
}
