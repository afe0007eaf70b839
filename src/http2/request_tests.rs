//! Requests from field blocks: the same request, or none.

use std::collections::HashMap;

use super::{super::golden_tests::field_list, *};
use crate::base::rng::Random;

const HEAD_LIMITS: HeadLimits = HeadLimits {
    fields: 40,
    bytes: 8 << 10,
};

/// Fields of a request.
fn fields(pseudo: &[(&str, &str)], regular: &[(&str, &[u8])]) -> FieldList {
    let pseudo = pseudo.iter().map(|(name, value)| (*name, value.as_bytes()));
    let all: Vec<(&str, &[u8])> = pseudo.chain(regular.iter().copied()).collect();
    field_list(&all, 1 << 20)
}

fn get(regular: &[(&str, &[u8])]) -> FieldList {
    fields(&PSEUDO_FIELDS, regular)
}

fn read(fields: &FieldList, ends: bool) -> Result<RequestHead, HeadError> {
    let mut head = RequestHead::default();
    super::read(fields, ends, HEAD_LIMITS, &mut head).map(|()| head)
}

/// Kind of the fault in a request.
fn fault(fields: &FieldList, ends: bool) -> HeadFault {
    read(fields, ends).unwrap_err().fault
}

#[test]
fn the_body_is_framed_as_the_stream_ends() {
    let length = |value: &'static [u8]| vec![("content-length", value)];
    for (list, ends, framing) in [
        (vec![], true, BodyFraming::None),
        (vec![], false, BodyFraming::Streamed(None)),
        (length(b"7"), false, BodyFraming::Streamed(Some(7))),
        (length(b"0"), false, BodyFraming::Streamed(Some(0))),
        (length(b"0"), true, BodyFraming::None),
    ] {
        let head = read(&get(&list), ends).unwrap();
        assert_eq!(head.framing, framing, "{list:?} {ends}");
        assert_eq!(head.find(KnownField::ContentLength), None, "it is struck");
        assert_eq!(
            head.fields
                .sent_values("content-length", &head.bytes)
                .count(),
            list.len()
        );
    }
    assert_eq!(fault(&get(&length(b"7")), true), HeadFault::Malformed);
}

#[test]
fn a_websocket_is_an_upgrade_and_no_other_tunnel_is_served() {
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
        assert_eq!(fault(&tunnel, false), HeadFault::MethodNotAllowed);
    }
    let socket = connect(Some((":protocol", "websocket")));
    let head = read(&socket, false).unwrap();
    assert!(head.is_websocket());
    assert_eq!(head.framing, BodyFraming::None);
    assert_eq!(head.text(head.method), b"GET");
    let sent = |name| head.fields.sent_values(name, &head.bytes).next();
    assert_eq!(
        head.upgrade.map(|it| head.text(it)),
        Some(&b"websocket"[..])
    );
    // Routes may match on them; the key is that of the HTTP/1 side.
    assert_eq!(sent("upgrade"), Some(&b"websocket"[..]));
    assert_eq!(sent("connection"), Some(&b"upgrade"[..]));
    assert_eq!(sent("sec-websocket-key"), None);
    let kept: Vec<_> = head
        .fields
        .iter()
        .map(|field| head.text(field.name))
        .collect();
    assert_eq!(kept, [b"host"]);
    assert_eq!(
        fault(&socket, true),
        HeadFault::MethodNotAllowed,
        "nothing could be said"
    );
}

#[test]
fn a_method_in_lower_case_is_another_method() {
    let list = field_list(&with(":method", "get"), 1 << 20);
    let head = read(&list, true).unwrap();
    assert_eq!(head.text(head.method), b"get");
}

const PSEUDO_FIELDS: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "a"),
    (":path", "/"),
];

/// Fields of a request of which the one called `name` has `value`.
fn with(name: &'static str, value: &'static str) -> Vec<(&'static str, &'static str)> {
    let mut list = PSEUDO_FIELDS.to_vec();
    match list.iter_mut().find(|(other, _)| *other == name) {
        Some(field) => field.1 = value,
        None => list.push((name, value)),
    }
    list
}

/// Fields of a request with `more` behind them.
fn and(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [&PSEUDO_FIELDS[..], more].concat()
}

/// Fields of a request without those called `name`.
fn without(name: &str) -> Vec<(&'static str, &'static str)> {
    let mut list = PSEUDO_FIELDS.to_vec();
    list.retain(|(other, _)| *other != name);
    list
}

/// Each list is refused as malformed, for the cause behind it.
fn are_malformed(table: &[(Vec<(&str, &str)>, &'static str)]) {
    for (list, detail) in table {
        let found = read(&field_list(list, 1 << 20), true).unwrap_err();
        assert_eq!(found, HeadError::malformed(detail), "{list:?}");
    }
}

#[test]
fn each_violation_by_a_field_is_named() {
    let connection = "a connection-specific field";
    // RFC 9113 sections 8.2 and 8.1.1.
    are_malformed(&[
        (with("A", "b"), "an upper-case letter in a field name"),
        (with("a b", "c"), "an invalid byte in a field name"),
        (with("", "c"), "an empty field name"),
        (with("a", "b\r\n"), "a control byte in a field value"),
        (with("connection", "b"), connection),
        (with("proxy-connection", "b"), connection),
        (with("keep-alive", "b"), connection),
        (with("transfer-encoding", "chunked"), connection),
        (with("upgrade", "b"), connection),
        (with("te", "trailers, gzip"), "TE other than trailers"),
        (
            with("host", "b"),
            ":authority and Host name different authorities",
        ),
        (and(&[("host", "a"), ("host", "a")]), "several Host"),
        (with("content-length", "+1"), "a malformed content-length"),
        (
            with("content-length", "1"),
            "an end before the content that was announced",
        ),
        (
            and(&[("content-length", "0"), ("content-length", "0")]),
            "several content-length",
        ),
    ]);
}

#[test]
fn each_violation_by_a_pseudo_header_field_is_named() {
    let (authority, path) = (
        "a blank, control or other byte in :authority or Host",
        "a byte in :path that no target may have",
    );
    // RFC 9113 section 8.3.
    are_malformed(&[
        (with(":x", "b"), "an unknown pseudo-header field"),
        (with(":status", "200"), "a pseudo-header field of responses"),
        (and(&[(":path", "/")]), "a pseudo-header field twice"),
        (
            and(&[("a", "b"), (":x", "c")]),
            "a pseudo-header field that is unknown or not first",
        ),
        (without(":method"), "no :method"),
        (without(":scheme"), "no :scheme"),
        (without(":path"), "no :path"),
        (without(":authority"), "neither :authority nor Host"),
        (with(":method", "G T"), "an invalid :method"),
        (with(":scheme", "9"), "an invalid :scheme"),
        (with(":path", ""), "an empty :path"),
        (with(":path", "b"), ":path does not begin with a slash"),
        (with(":path", "*"), ":path is `*` without OPTIONS"),
        (with(":path", "/a b"), path),
        (with(":path", "/#b"), "a fragment in :path"),
        (with(":authority", "a b"), authority),
        (with(":authority", "u@a"), "an invalid :authority or Host"),
        (with(":protocol", "websocket"), ":protocol without CONNECT"),
    ]);
}

#[test]
fn nothing_of_an_earlier_request_is_left() {
    let mut head = RequestHead::default();
    let list = get(&[("te", b"trailers"), ("expect", b"100-continue")]);
    super::read(&list, false, HEAD_LIMITS, &mut head).unwrap();
    assert!(head.takes_trailers && head.expects_continue && head.keep_alive);
    assert!(super::read(&get(&[("a", b"\0")]), true, HEAD_LIMITS, &mut head).is_err());
    let rest = (
        head.bytes.len(),
        head.fields.sent().count(),
        head.host.is_empty(),
    );
    assert_eq!(rest, (0, 0, true));
    assert!(!head.takes_trailers && !head.expects_continue && !head.keep_alive);
    assert_eq!(head.version, HttpVersion::Http2);
}

#[test]
fn the_parts_of_a_cookie_are_one_field_and_count_by_their_bytes() {
    let crumbs = |count, value: &'static [u8]| vec![("cookie", value); count];
    let other = |count| vec![("a", &b"b"[..]); count];
    let head = read(&get(&crumbs(100, b"a=b")), true).unwrap();
    assert_eq!(head.fields.iter().count(), 2, "Host, and one cookie");
    let list = [other(39), crumbs(100, b"a=b")].concat();
    assert!(read(&get(&list), true).is_ok());
    let list = [other(40), crumbs(2, b"a=b")].concat();
    assert_eq!(fault(&get(&list), true), HeadFault::TooLarge);
    // The limit is that of HTTP/1: 80 * 102 bytes with the pseudo-header fields pass, 82 do not.
    let part = &[b'x'; 100];
    assert!(read(&get(&crumbs(78, part)), true).is_ok());
    for list in [crumbs(82, part), crumbs(5_000, b"")] {
        assert_eq!(fault(&get(&list), true), HeadFault::TooLarge);
    }
    let large = [b'x'; 8 << 10];
    assert_eq!(fault(&get(&[("a", &large)]), true), HeadFault::TooLarge);
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
    let head = read(&get(&list), false).unwrap();
    assert_eq!(head.framing, BodyFraming::Streamed(Some(7)));
    let value = |name| head.fields.values(name, &head.bytes).next();
    assert_eq!(value("a"), Some(&b"b c"[..]));
    assert_eq!(value("cookie"), Some(&b"d=e; f=g"[..]));
    assert_eq!(value("empty"), Some(&b""[..]));
    assert!(head.takes_trailers);
    for bad in [&b" a\r\n"[..], b"\0", b" \n", b"a\x7f "] {
        let found = fault(&get(&[("a", bad)]), true);
        assert_eq!(found, HeadFault::Malformed, "{bad:?}");
    }
}

#[test]
fn the_authority_and_host_are_the_same_with_and_without_the_usual_port() {
    let ask = |scheme, authority: Option<&'static str>, host: &'static str| {
        let mut pseudo = vec![(":method", "GET"), (":scheme", scheme), (":path", "/")];
        pseudo.extend(authority.map(|authority| (":authority", authority)));
        let asked = read(&fields(&pseudo, &[("host", host.as_bytes())]), true);
        asked.map(|head| String::from_utf8(head.text(head.host).to_vec()).unwrap())
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
        let found = ask(scheme, Some(authority), host).map_err(|error| error.fault);
        assert_eq!(
            found,
            Err(HeadFault::Malformed),
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
            Ok(head) => {
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
