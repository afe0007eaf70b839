//! Heads as they are turned into those of HTTP/2 and back. What goes over connections is tested from outside.

use hyper::http::{HeaderMap, HeaderValue, Method, Response};

use super::{
    request::{self, Content},
    response::{self, Expected},
};
use crate::{
    http1::response::{Framing, Head},
    net::h2::reader::Body,
};

fn asked(text: &str) -> std::io::Result<request::Asked> {
    request::read(text.as_bytes(), true)
}

#[test]
fn a_request_is_the_same_in_pseudo_fields() {
    let asked = asked("PUT /a?b=%20 HTTP/1.1\r\nHost: h.example:81\r\nX-A: 1\r\nx-a: 2\r\nTE: trailers\r\nContent-Length: 3\r\n\r\n").unwrap();
    let request = asked.request;
    assert_eq!(request.method(), Method::PUT);
    assert_eq!(request.uri(), "https://h.example:81/a?b=%20");
    let fields = request.headers();
    let values: Vec<_> = fields.get_all("x-a").iter().collect();
    assert_eq!(values, ["1", "2"]);
    assert_eq!(
        (&fields["te"], &fields["content-length"]),
        (
            &HeaderValue::from_static("trailers"),
            &HeaderValue::from_static("3")
        )
    );
    assert_eq!(fields.len(), 4, "{fields:?}");
    assert!(matches!(asked.content, Content::Body(_)));
    assert!(!asked.expected.is_head && asked.expected.accept.is_none());
}

#[test]
fn what_follows_a_request_is_what_its_fields_say() {
    let content = |fields: &str| {
        let text = format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        match asked(&text).unwrap().content {
            Content::Nothing => "nothing",
            Content::Body(_) => "body",
            Content::Raw => "raw",
        }
    };
    assert_eq!(content(""), "nothing");
    assert_eq!(content("Content-Length: 5\r\n"), "body");
    assert_eq!(content("Transfer-Encoding: chunked\r\n"), "body");
    assert_eq!(
        content("Connection: upgrade\r\nUpgrade: websocket\r\n"),
        "raw"
    );
}

#[test]
fn odd_hosts_and_targets_are_kept_or_refused_and_never_changed() {
    for host in [
        "",
        "h",
        "h:",
        "h:80",
        "[::1]:80",
        "a_b",
        "~!$&'()*+,;=",
        "1.2.3.4",
    ] {
        let request = asked(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"))
            .unwrap()
            .request;
        let told = match request.uri().authority() {
            Some(authority) => authority.as_str(),
            None => request.headers()["host"].to_str().unwrap(),
        };
        assert_eq!(told, host);
        let both = request.uri().authority().is_some() && request.headers().contains_key("host");
        assert!(!both, "{host}");
    }
    for byte in 0x21..=0x7e_u8 {
        let target = format!("/a{}b?c{0}d", char::from(byte));
        let Ok(asked) = asked(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")) else {
            continue;
        };
        let uri = asked.request.uri();
        assert_eq!(uri.path_and_query().unwrap().as_str(), target);
    }
    for target in ["*", "/", "/?", "//a", "/a//b", "/..", "/%2e"] {
        let asked = asked(&format!("OPTIONS {target} HTTP/1.1\r\nHost: h\r\n\r\n")).unwrap();
        assert_eq!(
            asked.request.uri().path_and_query().unwrap().as_str(),
            target
        );
    }
}

#[test]
fn a_name_that_is_too_long_is_nobody_elses_fault() {
    let name = "x".repeat(70_000);
    let error = asked(&format!("GET / HTTP/1.1\r\nHost: h\r\n{name}: 1\r\n\r\n")).unwrap_err();
    assert!(super::is_inexpressible(&error));
}

fn answer(
    status: u16,
    fields: &[(&'static str, &'static str)],
    ends: bool,
    is_head: bool,
) -> (String, Body) {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    let (parts, ()) = response.body(()).unwrap().into_parts();
    let expected = Expected {
        is_head,
        accept: None,
    };
    let (text, body) = response::head(&parts, ends, &expected).unwrap();
    (String::from_utf8(text).unwrap(), body)
}

#[test]
fn a_response_is_framed_as_the_engine_reads_it() {
    const LENGTH: &[(&str, &str)] = &[("content-length", "5")];
    const TRAILER: &[(&str, &str)] = &[("content-length", "5"), ("trailer", "x")];
    let table = [
        (200, &[][..], false, false, Body::Chunked, Framing::Chunked),
        (200, &[], true, false, Body::None, Framing::Length(0)),
        (200, LENGTH, false, false, Body::Plain, Framing::Length(5)),
        (200, TRAILER, false, false, Body::Chunked, Framing::Chunked),
        (200, LENGTH, true, true, Body::None, Framing::None),
        (200, &[], false, true, Body::None, Framing::None),
        (204, &[], true, false, Body::None, Framing::None),
        (204, &[], false, false, Body::None, Framing::None),
        (304, LENGTH, true, false, Body::None, Framing::None),
        (599, &[], true, false, Body::None, Framing::Length(0)),
    ];
    for (status, fields, ends, is_head, body, framing) in table {
        let (text, found) = answer(status, fields, ends, is_head);
        let mut head = Head::default();
        let method: &[u8] = if is_head { b"HEAD" } else { b"GET" };
        assert_eq!(head.parse(text.as_bytes(), method), Ok(true), "{text}");
        assert_eq!(
            (found, head.status, head.framing),
            (body, status, framing),
            "{text}"
        );
        assert!(head.keep_alive, "{text}");
    }
}

#[test]
fn fields_of_one_hop_are_no_response() {
    for name in [
        "connection",
        "transfer-encoding",
        "upgrade",
        "keep-alive",
        "te",
    ] {
        let mut fields = HeaderMap::new();
        fields.insert(name, HeaderValue::from_static("x"));
        let mut response = Response::new(());
        *response.headers_mut() = fields;
        let expected = Expected {
            is_head: false,
            accept: None,
        };
        let (parts, ()) = response.into_parts();
        assert!(response::head(&parts, true, &expected).is_err(), "{name}");
    }
}
