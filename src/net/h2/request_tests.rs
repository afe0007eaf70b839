//! What an HTTP/2 request becomes, and that it is the same request or none.

use std::collections::HashMap;

use super::{Request, *};
use crate::{
    base::rng::Random,
    http1::request::{Framing, Head},
    http2::hpack::{self, Decoder},
};

const LIMITS: Limits = Limits {
    fields: 40,
    bytes: 8 << 10,
};

/// A request by its pseudo-header fields and others.
fn fields(pseudo: &[(&str, &str)], regular: &[(&str, &[u8])]) -> Fields {
    let mut block = Vec::new();
    for (name, value) in pseudo {
        hpack::field(&mut block, name.as_bytes(), value.as_bytes());
    }
    for (name, value) in regular {
        hpack::field(&mut block, name.as_bytes(), value);
    }
    let mut fields = Fields::default();
    let decoded = Decoder::default().decode(&block, 1 << 20, &mut fields);
    decoded.unwrap();
    fields
}

fn get(regular: &[(&str, &[u8])]) -> Fields {
    let pseudo = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ];
    fields(&pseudo, regular)
}

/// The head as the engine reads it.
fn read(fields: &Fields, ends: bool) -> Result<(Request, Head), Reason> {
    let request = super::read(fields, ends, LIMITS, || "key".to_owned())?;
    let mut head = Head {
        bytes: request.head.text.clone(),
        ..Head::default()
    };
    let whole = head.parse(LIMITS).map_err(|refusal| refusal.reason)?;
    assert!(whole, "a head that does not end");
    let length = head.bytes.len();
    assert_eq!(head.len, length, "something stands behind the head");
    Ok((request, head))
}

#[test]
fn the_body_is_framed_as_the_stream_ends() {
    for (list, ends, body, framing) in [
        (&[][..], true, Body::None, Framing::None),
        (&[], false, Body::Chunked, Framing::Chunked),
        (
            &[("content-length", &b"7"[..])],
            false,
            Body::Plain,
            Framing::Length(7),
        ),
        (&[("content-length", b"0")], true, Body::None, Framing::None),
    ] {
        let (request, head) = read(&get(list), ends).unwrap();
        let found = (request.head.body, head.framing);
        assert_eq!(found, (body, framing), "{list:?} {ends}");
    }
    let refused = read(&get(&[("content-length", b"7")]), true);
    assert_eq!(refused.unwrap_err(), Reason::RequestError);
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
        assert_eq!(read(&tunnel, false).unwrap_err(), Reason::MethodNotAllowed);
    }
    let socket = connect(Some((":protocol", "websocket")));
    let (request, head) = read(&socket, false).unwrap();
    assert_eq!(
        (request.head.body, head.framing),
        (Body::Raw, Framing::None)
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
fn fields_are_counted_with_each_part_of_a_cookie() {
    let crumbs = |count| vec![("cookie", &b"a=b"[..]); count];
    let (_, head) = read(&get(&crumbs(40)), true).unwrap();
    assert_eq!(head.fields.iter().count(), 2, "Host, and one cookie");
    let refused = read(&get(&crumbs(41)), true);
    assert_eq!(refused.unwrap_err(), Reason::RequestHeaderSectionSize);
    let large = [b'x'; 8 << 10];
    let refused = read(&get(&[("a", &large)]), true);
    assert_eq!(refused.unwrap_err(), Reason::RequestHeaderSectionSize);
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

/// What came in, as far as it has to come out: method, target, host, and the other fields in no order.
type Meaning = (String, String, String, Vec<(String, Vec<u8>)>);

/// The meaning of an h2 request, worked out the plain way.
fn meaning(sent: &Fields) -> Meaning {
    let (mut fields, mut cookies, mut texts) = (Vec::new(), Vec::new(), HashMap::new());
    for (name, value) in sent.iter() {
        let text = String::from_utf8_lossy(value).into_owned();
        match str::from_utf8(name).unwrap() {
            name @ (":method" | ":path" | ":authority" | ":scheme" | "host") => {
                texts.insert(name, text);
            }
            "te" | "content-length" | "http2-settings" => {}
            "cookie" if value.is_empty() => {}
            "cookie" => cookies.push(value.to_vec()),
            name => fields.push((name.to_owned(), value.to_vec())),
        }
    }
    if !cookies.is_empty() {
        fields.push(("cookie".to_owned(), cookies.join(&b"; "[..])));
    }
    fields.sort();
    let authority = texts.get(":authority").or(texts.get("host")).cloned();
    (
        texts[":method"].clone(),
        texts[":path"].clone(),
        authority.unwrap_or_default(),
        fields,
    )
}

fn meaning_of(head: &Head) -> Meaning {
    let text = |span| String::from_utf8(head.text(span).to_vec()).unwrap();
    let mut fields: Vec<_> = head
        .fields
        .iter()
        .filter(|field| field.known != Known::Host)
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
        let names = [
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
        // The rare ones are refused; most rounds have none.
        let known = if random.below(3) > 0 { 2 } else { names.len() };
        let list: Vec<(&str, Vec<u8>)> = (0..random.below(6))
            .map(|_| (names[random.below(known)], value(&mut random)))
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
