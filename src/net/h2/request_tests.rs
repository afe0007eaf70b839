//! What an HTTP/2 request becomes, and that it is the same request or none.

use hyper::http::{HeaderName, HeaderValue, Request};

use super::*;
use crate::{
    base::rng::Random,
    http1::request::{Framing, Head},
};

const LIMITS: Limits = Limits {
    fields: 40,
    bytes: 8 << 10,
};

fn parts(method: &str, uri: &str, fields: &[(&str, &[u8])]) -> Option<Parts> {
    let mut request = Request::builder().method(method).uri(uri).body(()).ok()?;
    for (name, value) in fields {
        let name = HeaderName::from_lowercase(name.as_bytes()).ok()?;
        let value = HeaderValue::from_bytes(value).ok()?;
        request.headers_mut().append(name, value);
    }
    Some(request.into_parts().0)
}

/// The head as the engine reads it.
fn read(parts: &Parts, ends: bool) -> Result<(Body, Head), Reason> {
    let mut bytes = Vec::new();
    let body = encode(&mut bytes, parts, ends, LIMITS, "key")?;
    let length = bytes.len();
    let mut head = Head {
        bytes,
        ..Head::default()
    };
    let whole = head.parse(LIMITS).map_err(|refusal| refusal.reason)?;
    assert!(whole, "a head that does not end");
    assert_eq!(head.len, length, "something stands behind the head");
    Ok((body, head))
}

#[test]
fn the_body_is_framed_as_the_stream_ends() {
    for (fields, ends, body, framing) in [
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
        let parts = parts("POST", "http://a/", fields).unwrap();
        let (found, head) = read(&parts, ends).unwrap();
        assert_eq!((found, head.framing), (body, framing), "{fields:?} {ends}");
    }
}

#[test]
fn a_websocket_becomes_an_upgrade_and_no_other_tunnel_is_served() {
    let mut tunnel = parts(
        "CONNECT",
        "http://a/chat",
        &[("sec-websocket-key", b"theirs")],
    )
    .unwrap();
    assert_eq!(read(&tunnel, false).unwrap_err(), Reason::MethodNotAllowed);
    tunnel
        .extensions
        .insert(h2::ext::Protocol::from_static("connect-udp"));
    assert_eq!(read(&tunnel, false).unwrap_err(), Reason::MethodNotAllowed);
    tunnel
        .extensions
        .insert(h2::ext::Protocol::from_static("websocket"));
    let (body, head) = read(&tunnel, false).unwrap();
    assert_eq!((body, head.framing), (Body::Raw, Framing::None));
    assert_eq!(head.text(head.method), b"GET");
    assert_eq!(
        head.upgrade.map(|it| head.text(it)),
        Some(&b"websocket"[..])
    );
    let mut keys = head.fields.values("sec-websocket-key", &head.bytes);
    assert_eq!((keys.next(), keys.next()), (Some(&b"key"[..]), None));
    assert!(read(&tunnel, true).is_err(), "nothing could be said");
}

#[test]
fn fields_are_counted_with_each_part_of_a_cookie() {
    let few: Vec<_> = (0..40).map(|_| ("cookie", &b"a=b"[..])).collect();
    let (_, head) = read(&parts("GET", "http://a/", &few).unwrap(), true).unwrap();
    assert_eq!(head.fields.iter().count(), 2, "Host, and one cookie");
    let many: Vec<_> = (0..41).map(|_| ("cookie", &b"a=b"[..])).collect();
    let refused = read(&parts("GET", "http://a/", &many).unwrap(), true);
    assert_eq!(refused.unwrap_err(), Reason::RequestHeaderSectionSize);
    let large = [b'x'; 8 << 10];
    let refused = read(&parts("GET", "http://a/", &[("a", &large)]).unwrap(), true);
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
fn meaning(parts: &Parts) -> Meaning {
    let (mut fields, mut cookies) = (Vec::new(), Vec::new());
    for (name, value) in &parts.headers {
        match name.as_str() {
            "host" | "te" | "content-length" | "http2-settings" => {}
            "cookie" if value.is_empty() => {}
            "cookie" => cookies.push(value.as_bytes().to_vec()),
            name => fields.push((name.to_owned(), value.as_bytes().to_vec())),
        }
    }
    if !cookies.is_empty() {
        fields.push(("cookie".to_owned(), cookies.join(&b"; "[..])));
    }
    fields.sort();
    let host = parts.headers.get("host").map(|host| host.to_str().unwrap());
    (
        parts.method.to_string(),
        parts.uri.path_and_query().unwrap().to_string(),
        parts
            .uri
            .authority()
            .map_or_else(|| host.unwrap_or_default().to_owned(), ToString::to_string),
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
        let uri = pick(
            &mut random,
            &[
                "http://a/",
                "http://a:80/b?c=d",
                "/only/path",
                "http://A/%20",
                "http://u@a/",
                "http://a/;x",
                "*",
                "http://[::1]/",
            ],
        );
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
        let fields: Vec<(&str, &[u8])> = list
            .iter()
            .map(|(name, value)| (*name, &value[..]))
            .collect();
        let Some(parts) = parts(method, uri, &fields) else {
            continue;
        };
        let ends = random.below(2) == 0;
        match read(&parts, ends) {
            Ok((_, head)) => {
                assert_eq!(
                    meaning_of(&head),
                    meaning(&parts),
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
