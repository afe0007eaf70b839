//! Conversion of HTTP/2 requests: the result is the same request, or none.

use std::collections::HashMap;

use super::{Http1Request, *};
use crate::{
    base::rng::Random,
    http::{
        message::{BodyFraming, RequestHead},
        rules::HeadFault,
    },
    http1::request,
    http2::hpack::{HpackDecoder, HpackEncoder, SizeLimits},
};

const HEAD_LIMITS: HeadLimits = HeadLimits {
    fields: 40,
    bytes: 8 << 10,
};

/// Fields of a request.
fn fields(pseudo: &[(&str, &str)], regular: &[(&str, &[u8])]) -> FieldList {
    let mut block = Vec::new();
    for (name, value) in pseudo {
        HpackEncoder::default().field(&mut block, name.as_bytes(), value.as_bytes());
    }
    for (name, value) in regular {
        HpackEncoder::default().field(&mut block, name.as_bytes(), value);
    }
    let mut fields = FieldList::default();
    let limits = SizeLimits {
        kept: 1 << 20,
        decoded: 1 << 20,
    };
    let decoded = HpackDecoder::default().decode(&block, limits, &mut fields);
    decoded.unwrap();
    fields
}

fn get(regular: &[(&str, &[u8])]) -> FieldList {
    let pseudo = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ];
    fields(&pseudo, regular)
}

/// Head as the engine parses it.
fn read(fields: &FieldList, ends: bool) -> Result<(Http1Request, RequestHead), H2RequestError> {
    let request = super::read(fields, ends, HEAD_LIMITS, || "key".to_owned())?;
    let mut head = RequestHead {
        bytes: request.head.text.clone(),
        ..RequestHead::default()
    };
    let whole = request::parse(&mut head, HEAD_LIMITS).map_err(|refusal| match refusal.fault {
        HeadFault::TooLarge => H2RequestError::TooLarge,
        HeadFault::MethodNotAllowed => H2RequestError::MethodNotAllowed,
        _ => H2RequestError::Malformed,
    })?;
    assert!(whole, "a head that does not end");
    let length = head.bytes.len();
    assert_eq!(head.len, length, "something stands behind the head");
    Ok((request, head))
}

#[test]
fn the_body_is_framed_as_the_stream_ends() {
    for (list, ends, body, framing) in [
        (&[][..], true, BodyKind::None, BodyFraming::None),
        (&[], false, BodyKind::Chunked, BodyFraming::Streamed(None)),
        (
            &[("content-length", &b"7"[..])],
            false,
            BodyKind::Chunked,
            BodyFraming::Streamed(None),
        ),
        (
            &[("content-length", b"0")],
            true,
            BodyKind::None,
            BodyFraming::None,
        ),
    ] {
        let (request, head) = read(&get(list), ends).unwrap();
        let found = (request.head.body, head.framing);
        assert_eq!(found, (body, framing), "{list:?} {ends}");
    }
    let refused = read(&get(&[("content-length", b"7")]), true);
    assert_eq!(refused.unwrap_err(), H2RequestError::Malformed);
}

#[test]
fn a_websocket_becomes_an_upgrade_and_no_other_tunnel_is_served() {
    let connect = |protocol| {
        let mut pseudo = vec![
            (":method", "CONNECT"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/chat"),
        ];
        pseudo.extend(protocol);
        fields(&pseudo, &[("sec-websocket-key", b"theirs")])
    };
    for tunnel in [connect(None), connect(Some((":protocol", "connect-udp")))] {
        assert_eq!(
            read(&tunnel, false).unwrap_err(),
            H2RequestError::MethodNotAllowed
        );
    }
    let socket = connect(Some((":protocol", "websocket")));
    let (request, head) = read(&socket, false).unwrap();
    assert_eq!(
        (request.head.body, head.framing),
        (BodyKind::Raw, BodyFraming::None)
    );
    assert_eq!(request.accept.as_deref(), Some(&*websocket::accept(b"key")));
    assert_eq!(head.text(head.method), b"GET");
    assert_eq!(
        head.upgrade.map(|it| head.text(it)),
        Some(&b"websocket"[..])
    );
    let mut keys = head.fields.values("sec-websocket-key", &head.bytes);
    assert_eq!((keys.next(), keys.next()), (Some(&b"key"[..]), None));
    assert!(read(&socket, true).is_err(), "nothing could be said");
}

#[test]
fn the_parts_of_a_cookie_are_one_field_and_count_by_their_bytes() {
    let crumbs = |count, value: &'static [u8]| vec![("cookie", value); count];
    let other = |count| vec![("a", &b"b"[..]); count];
    let (_, head) = read(&get(&crumbs(100, b"a=b")), true).unwrap();
    assert_eq!(head.fields.iter().count(), 2, "Host, and one cookie");
    // With Host.
    let list = [other(38), crumbs(100, b"a=b")].concat();
    assert!(read(&get(&list), true).is_ok());
    let list = [other(40), crumbs(2, b"a=b")].concat();
    let refused = read(&get(&list), true);
    assert_eq!(refused.unwrap_err(), H2RequestError::TooLarge);
    // The limit is that of HTTP/1: 80 * 102 bytes with the pseudo-header fields pass, 82 do not.
    let part = &[b'x'; 100];
    assert!(read(&get(&crumbs(78, part)), true).is_ok());
    for list in [crumbs(82, part), crumbs(5_000, b"")] {
        let refused = read(&get(&list), true);
        assert_eq!(refused.unwrap_err(), H2RequestError::TooLarge);
    }
    let large = [b'x'; 8 << 10];
    let refused = read(&get(&[("a", &large)]), true);
    assert_eq!(refused.unwrap_err(), H2RequestError::TooLarge);
}

#[test]
fn blanks_at_the_ends_of_values_mean_nothing() {
    let list = [
        ("a", &b" b c\t"[..]),
        ("cookie", b"d=e "),
        ("cookie", b"\t "),
        ("cookie", b" f=g"),
        ("te", b" trailers "),
        ("content-length", b" 7 "),
        ("host", b" a\t"),
        ("empty", b" \t "),
    ];
    let (request, head) = read(&get(&list), false).unwrap();
    assert_eq!(request.head.length, Some(7));
    let value = |name| head.fields.values(name, &head.bytes).next();
    assert_eq!(value("a"), Some(&b"b c"[..]));
    assert_eq!(value("cookie"), Some(&b"d=e; f=g"[..]));
    assert_eq!(value("empty"), Some(&b""[..]));
    assert!(head.takes_trailers);
    for bad in [&b" a\r\n"[..], b"\0", b" \n", b"a\x7f "] {
        let refused = read(&get(&[("a", bad)]), true);
        assert_eq!(refused.unwrap_err(), H2RequestError::Malformed, "{bad:?}");
    }
}

#[test]
fn the_authority_and_host_are_the_same_with_and_without_the_usual_port() {
    let ask = |scheme, authority: Option<&'static str>, host: &'static str| {
        let mut pseudo = vec![(":method", "GET"), (":scheme", scheme), (":path", "/")];
        pseudo.extend(authority.map(|authority| (":authority", authority)));
        let asked = read(&fields(&pseudo, &[("host", host.as_bytes())]), true);
        asked.map(|(_, head)| String::from_utf8(head.text(head.host).to_vec()).unwrap())
    };
    for (scheme, authority, host, expected) in [
        ("http", Some("a:80"), "a", "a:80"),
        ("http", Some("a"), "A:80", "a"),
        ("HTTPS", Some("a:443"), "a", "a:443"),
        ("https", Some("a"), "a:443", "a"),
        ("https", Some("[::1]"), "[::1]:443", "[::1]"),
        ("http", Some("a:"), "a:80", "a:"),
        ("http", Some(""), "a:80", "a:80"),
        ("http", None, "a", "a"),
    ] {
        let found = ask(scheme, authority, host);
        assert_eq!(
            found.as_deref(),
            Ok(expected),
            "{scheme} {authority:?} {host}"
        );
    }
    for (scheme, authority, host) in [
        ("http", "a:443", "a"),
        ("https", "a:80", "a"),
        ("https", "a:443", "a:80"),
        ("other", "a:80", "a"),
        ("http", "b", "a"),
        ("http", "", ""),
        ("http", "a:8080", "a"),
        ("http", "aa:80", "a"),
    ] {
        let found = ask(scheme, Some(authority), host);
        assert_eq!(
            found,
            Err(H2RequestError::Malformed),
            "{scheme} {authority} {host}"
        );
    }
}

fn pick<'a, T: ?Sized>(random: &mut Random, choices: &[&'a T]) -> &'a T {
    choices[random.below(choices.len())]
}

fn value(random: &mut Random) -> Vec<u8> {
    let pieces: [&[u8]; 12] = [
        b"a",
        b"b=c",
        b"; ",
        b" ",
        b"\t",
        b",",
        b":",
        b"\xff",
        b"%0d%0a",
        b"chunked",
        b"5",
        b"http://x/",
    ];
    (0..random.below(5))
        .flat_map(|_| pick(random, &pieces).to_vec())
        .collect()
}

/// Parts of a request that must be preserved: method, target, host, and the other fields in any
/// order.
type RequestMeaning = (String, String, String, Vec<(String, Vec<u8>)>);

/// Meaning of an HTTP/2 request, computed independently.
fn meaning(sent: &FieldList) -> RequestMeaning {
    let trim = |value: &[u8]| value.trim_ascii().to_vec();
    let (mut fields, mut cookies, mut texts) = (Vec::new(), Vec::new(), HashMap::new());
    for (name, value) in sent.iter() {
        let text = String::from_utf8_lossy(value).into_owned();
        match str::from_utf8(name).unwrap() {
            name @ (":method" | ":path" | ":authority" | ":scheme" | "host") => {
                texts.insert(name, text);
            }
            "te" | "content-length" | "http2-settings" => {}
            "cookie" if trim(value).is_empty() => {}
            "cookie" => cookies.push(trim(value)),
            name => fields.push((name.to_owned(), trim(value))),
        }
    }
    if !cookies.is_empty() {
        fields.push(("cookie".to_owned(), cookies.join(&b"; "[..])));
    }
    fields.sort();
    let authority = texts.get(":authority").filter(|text| !text.is_empty());
    let host = texts.get("host").map(|host| host.trim().to_owned());
    let authority = authority.cloned().or(host);
    (
        texts[":method"].clone(),
        texts[":path"].clone(),
        authority.unwrap_or_default(),
        fields,
    )
}

fn meaning_of(head: &RequestHead) -> RequestMeaning {
    let text = |span| String::from_utf8(head.text(span).to_vec()).unwrap();
    let mut fields: Vec<_> = head
        .fields
        .iter()
        .filter(|field| field.known != KnownField::Host)
        .map(|field| (text(field.name), head.text(field.value).to_vec()))
        .collect();
    fields.sort();
    (
        text(head.method),
        text(head.target),
        text(head.host),
        fields,
    )
}

/// Names of random fields.
const FIELD_NAMES: [&str; 13] = [
    "a",
    "cookie",
    "x-forwarded-for",
    "x_a",
    "te",
    "connection",
    "content-length",
    "host",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "keep-alive",
    "b",
];

#[test]
fn a_request_means_the_same_afterwards_or_is_refused() {
    let seed = 0x9113;
    let mut random = Random::seeded(seed);
    let (mut passed, mut refused) = (0, 0);
    for round in 0..20_000 {
        let method = pick(
            &mut random,
            &["GET", "POST", "OPTIONS", "PURGE", "M-SEARCH", "CONNECT"],
        );
        let path = pick(
            &mut random,
            &["/", "/b?c=d", "/%20", "/;x", "*", "/a b", "http://x/", ""],
        );
        let authority = pick(&mut random, &["a", "a:80", "A", "u@a", "[::1]", "a b", ""]);
        // The last names are refused; most rounds have none of them.
        let known = if random.below(3) > 0 {
            2
        } else {
            FIELD_NAMES.len()
        };
        let list: Vec<(&str, Vec<u8>)> = (0..random.below(6))
            .map(|_| (FIELD_NAMES[random.below(known)], value(&mut random)))
            .collect();
        let list: Vec<(&str, &[u8])> = list
            .iter()
            .map(|(name, value)| (*name, &value[..]))
            .collect();
        let mut pseudo = vec![(":method", method), (":scheme", "http"), (":path", path)];
        if random.below(4) > 0 {
            pseudo.push((":authority", authority));
        }
        let sent = fields(&pseudo, &list);
        let ends = random.below(2) == 0;
        match read(&sent, ends) {
            Ok((_, head)) => {
                assert_eq!(
                    meaning_of(&head),
                    meaning(&sent),
                    "seed {seed}, round {round}"
                );
                passed += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(
        passed > 1_000 && refused > 1_000,
        "{passed} passed, {refused} refused"
    );
}
