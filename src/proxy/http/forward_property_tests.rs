//! Random heads, edits and origins: both wire formats carry the same message.

use super::{tests::block_fields, *};
use crate::{
    http::{fields::HeadFields, rules::HeadLimits},
    http1::{self, encode::TextHead},
    http2::{self, hpack::FieldList, response::ResponseExpectation},
};

/// One of `choices`.
fn choose<'a, T: ?Sized>(random: &mut Random, choices: &[&'a T]) -> &'a T {
    choices[random.below(choices.len())]
}

/// True once in `count` times.
fn is_one_in(random: &mut Random, count: usize) -> bool {
    random.below(count) == 0
}

/// Names of fields about which there is a rule, and others.
const NAMES: &[&str] = &[
    "X-A",
    "x-b",
    "X_A",
    "Accept",
    "Cookie",
    "Content-Type",
    "User-Agent",
    "Authorization",
    "Connection",
    "Keep-Alive",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Upgrade",
    "HTTP2-Settings",
    "Forwarded",
    "X-Forwarded-For",
    "x-forwarded-proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded",
    "X-Forwarded-Prefix",
    "X_Forwarded_For",
    "X-Real-IP",
    "X_Real-IP",
    "True-Client-IP",
    "Client",
    "cli_ent",
    "Client-Subject",
    "Client_Subject",
    "X-Request-Id",
    "x-request_id",
    "Via",
    "Date",
    "Server",
    "Set-Cookie",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Accept",
    "Sec-WebSocket-Version",
    "Expect",
    "Content-Lengths",
];

const VALUES: &[&str] = &[
    "",
    "a",
    "a, b",
    "x-a",
    "close",
    "trailers",
    "gzip, trailers;q=1",
    "192.0.2.9",
    "unknown",
    "for=192.0.2.9;proto=https",
    "https",
    "8443",
    "100-continue",
    "100",
    "\u{e4}",
    "a \t b",
    "0123456789abcdef",
    "websocket",
    "dGhlIHNhbXBsZSBub25jZQ==",
];

/// Lines of random fields; Cookie at most once, as HTTP/2 joins several.
fn fields(random: &mut Random) -> String {
    let mut lines = String::new();
    for _ in 0..random.below(9) {
        let name = choose(random, NAMES);
        if name != "Cookie" || !lines.contains("Cookie") {
            lines.push_str(&[name, ": ", choose(random, VALUES), "\r\n"].concat());
        }
    }
    lines
}

/// A random request as HTTP/1.1; most are valid.
fn request(random: &mut Random) -> String {
    let method = choose(
        random,
        &["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "X"],
    );
    let target = choose(
        random,
        &[
            "/",
            "/a?b=c",
            "*",
            "http://h.example:81/x",
            "http://h.example:81",
        ],
    );
    let version = choose(random, &["1.1", "1.1", "1.1", "1.0"]);
    let host = choose(
        random,
        &[
            "Host: h.example:81\r\n",
            "host: H.Example:81\r\n",
            "Host: [::1]\r\n",
            "",
        ],
    );
    let framing = choose(
        random,
        &[
            "",
            "",
            "",
            "Content-Length: 0\r\n",
            "Content-Length: 17\r\n",
            "Transfer-Encoding: chunked\r\n",
        ],
    );
    let upgrade = choose(
        random,
        &[
            "",
            "",
            "",
            "Connection: upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: a\r\n",
            "Connection: Upgrade\r\nUpgrade: other\r\n",
        ],
    );
    let mut parts = [
        host.to_owned(),
        framing.to_owned(),
        upgrade.to_owned(),
        fields(random),
    ];
    let (one, other) = (random.below(4), random.below(4));
    parts.swap(one, other);
    format!("{method} {target} HTTP/{version}\r\n{}\r\n", parts.concat())
}

/// Random edits, as the configuration allows them.
fn edits(random: &mut Random, is_request: bool) -> HeaderEdits {
    const EDITED: &[&str] = &[
        "X-A",
        "x-b",
        "X_A",
        "X-New",
        "Date",
        "Via",
        "X-Forwarded-For",
        "X-Forwarded-Port",
        "Forwarded",
        "x-real-ip",
        "X-Request-Id",
        "Client-Subject",
        "Sec-WebSocket-Key",
        "Server",
    ];
    const PREFIXES: &[&str] = &["X-*", "x-forwarded-*", "H*", "Up*", "C*", "Sec-*"];
    let mut edits = HeaderEdits::default();
    for _ in 0..random.below(3) {
        let (name, value) = (choose(random, EDITED), choose(random, VALUES));
        edits.set.push((name.to_owned(), value.to_owned()));
    }
    if is_request && is_one_in(random, 6) {
        edits
            .set
            .push(("Host".to_owned(), "set.example".to_owned()));
    }
    if is_one_in(random, 3) {
        edits.add.push((
            choose(random, EDITED).to_owned(),
            choose(random, VALUES).to_owned(),
        ));
    }
    for _ in 0..random.below(3) {
        let list = if is_one_in(random, 2) {
            EDITED
        } else {
            PREFIXES
        };
        edits.remove.push(choose(random, list).to_owned());
    }
    edits
}

fn rules(random: &mut Random) -> ForwardedConfig {
    ForwardedConfig {
        x_forwarded: is_one_in(random, 2),
        real_ip: is_one_in(random, 2).then(|| "X-Real-IP".to_owned()),
        rfc7239: is_one_in(random, 2),
        via: is_one_in(random, 2),
        ..ForwardedConfig::default()
    }
}

fn origin(random: &mut Random) -> RequestOrigin<'static> {
    let address = |random: &mut Random| {
        let all = ["192.0.2.7", "10.0.0.1", "2001:db8::7", ""];
        choose(random, &all).parse().ok()
    };
    RequestOrigin {
        peer: address(random),
        trusted: is_one_in(random, 2),
        client: address(random),
        is_unlisted: is_one_in(random, 2),
        client_header: is_one_in(random, 2).then_some("Client"),
        port: is_one_in(random, 2).then_some(8443),
        local: is_one_in(random, 2).then(|| ([192, 0, 2, 1], 80).into()),
        is_secure: is_one_in(random, 2),
        subject: is_one_in(random, 2).then_some(("Client-Subject", choose(random, &["", "CN=a"]))),
    }
}

/// A random response as HTTP/1.1; most are valid.
fn response(random: &mut Random) -> String {
    let status = choose(
        random,
        &[
            "200 OK",
            "204 No Content",
            "304 ",
            "404 Gone Away",
            "426 Upgrade Required",
            "101 Switching Protocols",
            "103 Early Hints",
        ],
    );
    let version = choose(random, &["1.1", "1.1", "1.0"]);
    let framing = choose(
        random,
        &[
            "",
            "Content-Length: 0\r\n",
            "Content-Length: 17\r\n",
            "Transfer-Encoding: chunked\r\n",
        ],
    );
    let upgrade = choose(
        random,
        &[
            "",
            "",
            "Connection: upgrade\r\nUpgrade: websocket\r\n",
            "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: b\r\n",
        ],
    );
    let mut parts = [framing.to_owned(), upgrade.to_owned(), fields(random)];
    let (one, other) = (random.below(3), random.below(3));
    parts.swap(one, other);
    format!("HTTP/{version} {status}\r\n{}\r\n", parts.concat())
}

fn parsed_response(text: &str, method: &[u8]) -> Option<ResponseHead> {
    let mut head = ResponseHead {
        bytes: text.as_bytes().to_vec(),
        ..ResponseHead::default()
    };
    matches!(http1::response::parse(&mut head, method), Ok(true)).then_some(head)
}

fn parsed_request(text: &[u8]) -> Option<RequestHead> {
    let limits = HeadLimits {
        fields: 100,
        bytes: 1 << 16,
    };
    let mut head = RequestHead {
        bytes: text.to_vec(),
        ..RequestHead::default()
    };
    matches!(http1::request::parse(&mut head, limits), Ok(true)).then_some(head)
}

/// Fields in order, names in lower case, Host first and Cookie last as HTTP/2 is read; without
/// `omitted`.
fn comparable(fields: &HeadFields, bytes: &[u8], omitted: &str) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fields
        .iter()
        .map(|field| {
            let name = String::from_utf8_lossy(field.name.get(bytes)).to_ascii_lowercase();
            (name, field.value.get(bytes).trim_ascii().to_vec())
        })
        .filter(|(name, value)| name != omitted && !(name == "cookie" && value.is_empty()))
        .collect();
    all.sort_by_key(|(name, _)| match name.as_str() {
        "host" => 0,
        "cookie" => 2,
        _ => 1,
    });
    all
}

/// Checks that a backend reads the same request from both formats.
fn check_request(seed: u64, head: &RequestHead, text: &RequestHead, block: &FieldList) {
    let is_websocket = head.is_websocket();
    let ends = head.framing == BodyFraming::None && !is_websocket;
    let limits = HeadLimits {
        fields: 100,
        bytes: 1 << 16,
    };
    let mut read = RequestHead::default();
    let outcome = http2::request::read(block, ends, limits, &mut read);
    assert_eq!(outcome, Ok(()), "seed {seed}");
    for (one, other) in [
        (text.method, read.method),
        (text.target, read.target),
        (text.host, read.host),
    ] {
        assert_eq!(text.text(one), read.text(other), "seed {seed}");
    }
    let omitted = if is_websocket {
        "sec-websocket-key"
    } else {
        ""
    };
    assert_eq!(
        comparable(&text.fields, &text.bytes, omitted),
        comparable(&read.fields, &read.bytes, ""),
        "seed {seed}"
    );
    let [one, other] = [text.framing, read.framing];
    assert_eq!(
        one.declared_length(),
        other.declared_length(),
        "seed {seed}"
    );
    assert_eq!(
        one == BodyFraming::None,
        other == BodyFraming::None,
        "seed {seed}"
    );
    assert_eq!(text.expects_continue, read.expects_continue, "seed {seed}");
    assert_eq!(text.is_websocket(), read.is_websocket(), "seed {seed}");
    assert_eq!(head.takes_trailers, read.takes_trailers, "seed {seed}");
}

#[test]
fn a_backend_reads_the_same_request_from_text_and_from_a_block() {
    let (mut seen, mut websockets) = (0, 0);
    for seed in 0..30_000 {
        let random = &mut Random::seeded(seed);
        let Some(mut head) = parsed_request(request(random).as_bytes()) else {
            continue;
        };
        // HTTP/2 has no method for a WebSocket; RFC 6455 section 4.1 knows GET only.
        if head.is_websocket() && head.text(head.method) != b"GET" {
            continue;
        }
        let (rules, origin, edits) = (rules(random), origin(random), edits(random, true));
        if is_one_in(random, 2) && head.version == HttpVersion::Http11 {
            head.version = HttpVersion::Http2;
            if let Some(length) = head.framing.declared_length() {
                head.framing = BodyFraming::Streamed(Some(length));
            }
        }
        let sets_host = header_edits::host(&edits).is_some();
        let changes = RequestChanges {
            target: is_one_in(random, 3).then_some(b"/new"),
            host: (is_one_in(random, 3) && !sets_host).then_some("new.example"),
            edits: Some(&edits),
            websocket_key: (head.version == HttpVersion::Http2).then_some("k"),
        };
        let mut written = Vec::new();
        let writer = &mut TextHead::new(&mut written);
        request_head(
            writer,
            &head,
            &rules,
            origin,
            "0123",
            changes,
            NextHop::KeepAlive,
        );
        // An HTTP/1.0 request whose host is not known is none of HTTP/2.
        let Some(text) = parsed_request(&written) else {
            assert!(
                head.host.is_empty() && origin.local.is_none(),
                "seed {seed}"
            );
            continue;
        };
        let h2 = NextHop::H2 { is_secure: false };
        let block =
            block_fields(|out| request_head(out, &head, &rules, origin, "0123", changes, h2));
        check_request(seed, &head, &text, &block);
        seen += 1;
        websockets += usize::from(head.is_websocket());
    }
    assert!(seen > 8_000 && websockets > 150, "{seen} {websockets}");
}

/// Writes the head that a client with `version` gets for `head`, as the proxy does.
fn write_response(
    out: &mut impl HeadWriter,
    head: &ResponseHead,
    version: HttpVersion,
    edits: &HeaderEdits,
) {
    let request_id = ("X-Request-Id", "0123");
    if head.is_interim() {
        interim_head(out, head);
    } else if head.status == 101 {
        let extra = SwitchExtra {
            request_id,
            unanswered_key: Some(b"k"),
            sticky: None,
        };
        switch_head(out, head, extra);
    } else {
        let extra = ResponseExtra {
            delivery: delivery(head, version),
            keep_alive: true,
            version,
            request_id,
            edits: Some(edits),
            date: Some("now"),
            sticky: None,
        };
        response_head(out, head, extra);
    }
}

#[test]
fn a_client_reads_the_same_response_from_text_and_from_a_block() {
    let (mut seen, mut switches) = (0, 0);
    for seed in 0..30_000 {
        let random = &mut Random::seeded(seed);
        let method: &[u8] = choose(random, &[&b"GET"[..], b"HEAD"]);
        let Some(head) = parsed_response(&response(random), method) else {
            continue;
        };
        if head.status == 101 && head.upgrade.is_none() {
            continue;
        }
        let edits = edits(random, false);
        let mut written = Vec::new();
        let writer = &mut TextHead::new(&mut written);
        write_response(writer, &head, HttpVersion::Http11, &edits);
        let text = parsed_response(&String::from_utf8(written).unwrap(), method).unwrap();
        let block = block_fields(|out| write_response(out, &head, HttpVersion::Http2, &edits));
        let expected = ResponseExpectation {
            is_head: method == b"HEAD",
            is_websocket: head.status == 101,
        };
        let ends = !head.is_interim()
            && head.status != 101
            && matches!(text.framing, BodyFraming::None | BodyFraming::Length(0));
        let mut read = ResponseHead::default();
        let outcome = http2::response::read(&block, ends, expected, &mut read);
        assert_eq!(outcome, Ok(()), "seed {seed}");
        assert_eq!(text.status, read.status, "seed {seed}");
        assert_eq!(text.announced, read.announced, "seed {seed}");
        let omitted = "sec-websocket-accept";
        assert_eq!(
            comparable(&text.fields, &text.bytes, omitted),
            comparable(&read.fields, &read.bytes, omitted),
            "seed {seed}"
        );
        let [one, other] = [text.framing, read.framing].map(BodyFraming::declared_length);
        assert_eq!(one, other, "seed {seed}");
        seen += 1;
        switches += usize::from(head.status == 101);
    }
    assert!(seen > 8_000 && switches > 500, "{seen} {switches}");
}
