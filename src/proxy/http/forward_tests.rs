//! A head means the same to the other side in each wire format, and a rewritten request the same as
//! to us.

use super::*;
use crate::{
    config::model::{
        Config, ListenerConfig, PathMatch, PathPiece, PathRewrite, RewriteConfig, RouteConfig,
    },
    http1::encode::TextHead,
    http2::{
        block_head::BlockHead,
        hpack::{FieldList, HpackDecoder, HpackEncoder, SizeLimits},
    },
    route::Router,
};

fn parsed(text: &str) -> Option<RequestHead> {
    let mut head = RequestHead::default();
    head.bytes.extend_from_slice(text.as_bytes());
    let limits = crate::http::rules::HeadLimits {
        fields: 100,
        bytes: 65_536,
    };
    matches!(crate::http1::request::parse(&mut head, limits), Ok(true)).then_some(head)
}

fn routes(path: PathMatch, rewrite: PathRewrite) -> Config {
    let route = RouteConfig {
        path,
        rewrite: RewriteConfig {
            path: rewrite,
            host: Some("inner.example:81".to_owned()),
        },
        ..RouteConfig::named("route")
    };
    Config {
        listeners: vec![ListenerConfig::named("web")],
        routes: vec![route],
        ..Config::default()
    }
}

/// The head for the backend, of a request that a route takes and that has one meaning.
fn sent(config: &Config, router: &Router, head: &RequestHead) -> Option<String> {
    let path = head.text(head.path);
    let found = router.find(0, b"h", path, b"GET", &|_, _| false).ok()??;
    let target = router.rewrite(found, head.text(head.target)).ok()?;
    let origin = RequestOrigin::default();
    let changes = RequestChanges {
        target: target.as_deref(),
        host: config.routes[found].rewrite.host.as_deref(),
        edits: Some(&config.routes[found].request_headers),
        websocket_key: None,
    };
    let mut out = Vec::new();
    let rules = &config.forwarded;
    request_head(
        &mut TextHead::new(&mut out),
        head,
        rules,
        origin,
        "id",
        changes,
        NextHop::KeepAlive,
    );
    Some(String::from_utf8(out).unwrap())
}

#[test]
fn a_rewritten_request_reads_as_a_request_for_the_rewritten_path() {
    let group = |text: &str| vec![PathPiece::Text(text.to_owned()), PathPiece::Group(1)];
    let configs = [
        routes(PathMatch::Any, PathRewrite::Strip("/api".to_owned())),
        routes(
            PathMatch::Prefix("/api".to_owned()),
            PathRewrite::Replace("/new".to_owned()),
        ),
        routes(
            PathMatch::Regex(regex::Regex::new("/(?:api)?(.*)").unwrap()),
            PathRewrite::Expand(group("/")),
        ),
    ];
    let pieces = [
        "/", "/", "api", "/api/", "%61pi", "..", ".", "%2e", "%2f", "%0d%0a", "%20", "a", "\"",
        "|", "?", "%", "%3f", "://", "@", "\\",
    ];
    for (seed, config) in configs.iter().enumerate() {
        let router = Router::new(config);
        let mut random = Random::seeded(seed as u64);
        let mut seen = 0;
        for _ in 0..3_000 {
            let mut target = ["/", "/api", "http://h/api/", "*"][random.below(4)].to_owned();
            for _ in 0..random.below(7) {
                target.push_str(pieces[random.below(pieces.len())]);
            }
            let request = format!("GET {target} HTTP/1.1\r\nHost: h\r\nX-A: b\r\n\r\n");
            let Some(out) = parsed(&request).and_then(|head| sent(config, &router, &head)) else {
                continue;
            };
            seen += 1;
            let head = parsed(&out).unwrap_or_else(|| panic!("seed {seed}: {target}: {out}"));
            assert_eq!(head.len, out.len(), "seed {seed}: {target}: {out}");
            assert_eq!(head.text(head.host), b"inner.example:81", "{out}");
            assert_eq!(
                head.fields.values("x-forwarded-host", &head.bytes).next(),
                Some(&b"h"[..])
            );
            assert_eq!(head.fields.values("x-a", &head.bytes).count(), 1, "{out}");
            let sent_query = target.split_once('?').map(|(_, query)| query);
            let got = String::from_utf8_lossy(head.text(head.target));
            assert_eq!(
                got.split_once('?').map(|(_, query)| query),
                sent_query,
                "{target}"
            );
        }
        assert!(seen > 500, "seed {seed}: {seen}");
    }
}

/// Lines of a head that is written as text.
pub(super) fn text_lines(write: impl FnOnce(&mut TextHead<'_>)) -> Vec<String> {
    let mut out = Vec::new();
    write(&mut TextHead::new(&mut out));
    let text = String::from_utf8(out).unwrap();
    let lines = text.strip_suffix("\r\n\r\n").unwrap().split("\r\n");
    lines.map(str::to_owned).collect()
}

/// Fields of a head that is written as a block.
pub(super) fn block_fields(write: impl FnOnce(&mut BlockHead<'_>)) -> FieldList {
    let (mut out, mut fields) = (Vec::new(), FieldList::default());
    let mut encoder = HpackEncoder::default();
    encoder.begin_block(&mut out);
    write(&mut BlockHead::new(&mut encoder, &mut out));
    let limits = SizeLimits {
        kept: 1 << 18,
        decoded: 1 << 18,
    };
    let decoded = HpackDecoder::default().decode(&out, limits, &mut fields);
    decoded.unwrap();
    fields
}

/// The same as lines.
pub(super) fn block_lines(write: impl FnOnce(&mut BlockHead<'_>)) -> Vec<String> {
    let fields = block_fields(write);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let lines = fields.iter();
    lines
        .map(|(name, value)| format!("{}: {}", text(name), text(value)))
        .collect()
}

/// Lines of a row, with ` | ` between them.
pub(super) fn lines(row: &str) -> Vec<&str> {
    row.split(" | ").collect()
}

/// Settings of one row; by default nothing is added to what the client sent.
struct RequestRow<'a> {
    rules: ForwardedConfig,
    origin: RequestOrigin<'a>,
    id: &'a str,
    changes: RequestChanges<'a>,
    /// Hop of the text.
    hop: NextHop,
    /// The hop of the block uses TLS.
    is_secure: bool,
    /// Framing of a client with HTTP/2.
    h2: Option<BodyFraming>,
}

impl Default for RequestRow<'_> {
    fn default() -> Self {
        Self {
            rules: ForwardedConfig {
                x_forwarded: false,
                real_ip: None,
                via: false,
                ..ForwardedConfig::default()
            },
            origin: RequestOrigin::default(),
            id: "",
            changes: RequestChanges::default(),
            hop: NextHop::KeepAlive,
            is_secure: false,
            h2: None,
        }
    }
}

impl RequestRow<'_> {
    /// Checks both forms of the request `sent`.
    fn check(self, sent: &str, text: &str, block: &str) {
        let mut head = parsed(&(lines(sent).join("\r\n") + "\r\n\r\n")).expect(sent);
        if let Some(framing) = self.h2 {
            (head.version, head.framing) = (HttpVersion::Http2, framing);
        }
        let Self {
            rules,
            origin,
            id,
            changes,
            hop,
            ..
        } = self;
        let h2 = NextHop::H2 {
            is_secure: self.is_secure,
        };
        // Writing leaves the head as it is, for another attempt.
        for _ in 0..2 {
            let written =
                block_lines(|out| request_head(out, &head, &rules, origin, id, changes, h2));
            assert_eq!(written, lines(block), "{sent}");
            let written =
                text_lines(|out| request_head(out, &head, &rules, origin, id, changes, hop));
            assert_eq!(written, lines(text), "{sent}");
        }
    }
}

#[test]
fn a_request_keeps_its_parts_and_loses_those_of_the_connection() {
    RequestRow::default().check(
        "GET /a?b HTTP/1.1 | Host: a | X-A: b | X-Empty:",
        "GET /a?b HTTP/1.1 | Host: a | X-A: b | X-Empty: ",
        ":method: GET | :scheme: http | :path: /a?b | :authority: a | x-a: b | x-empty: ",
    );
    RequestRow {
        is_secure: true,
        ..RequestRow::default()
    }
    .check(
        "OPTIONS * HTTP/1.1 | X-A: b | Host: a:8080",
        "OPTIONS * HTTP/1.1 | X-A: b | Host: a:8080",
        ":method: OPTIONS | :scheme: https | :path: * | :authority: a:8080 | x-a: b",
    );
    RequestRow {
        hop: NextHop::Close,
        ..RequestRow::default()
    }
    .check(
        "GET / HTTP/1.1 | Host: a | Connection: x-hop, close | X-Hop: 1 | Keep-Alive: 1 | TE: gzip, trailers | Trailer: x",
        "GET / HTTP/1.1 | Host: a | Trailer: x | Connection: close",
        ":method: GET | :scheme: http | :path: / | :authority: a | trailer: x | te: trailers",
    );
}

#[test]
fn a_request_without_a_host_gets_one() {
    let origin = RequestOrigin {
        local: "192.0.2.1:80".parse().ok(),
        ..RequestOrigin::default()
    };
    for (sent, text, block) in [
        (
            "GET / HTTP/1.0 | X-A: b",
            "GET / HTTP/1.1 | Host: 192.0.2.1:80 | X-A: b",
            ":method: GET | :scheme: http | :path: / | :authority: 192.0.2.1:80 | x-a: b",
        ),
        (
            "GET http://url/x HTTP/1.0 | X-A: b",
            "GET /x HTTP/1.1 | Host: url | X-A: b",
            ":method: GET | :scheme: http | :path: /x | :authority: url | x-a: b",
        ),
        (
            "GET http://url/x HTTP/1.1 | X-A: b | Host: URL",
            "GET /x HTTP/1.1 | X-A: b | Host: URL",
            ":method: GET | :scheme: http | :path: /x | :authority: URL | x-a: b",
        ),
    ] {
        let row = RequestRow {
            origin,
            ..RequestRow::default()
        };
        row.check(sent, text, block);
    }
    RequestRow::default().check(
        "GET / HTTP/1.0 | X-A: b",
        "GET / HTTP/1.1 | Host:  | X-A: b",
        ":method: GET | :scheme: http | :path: / | x-a: b",
    );
}

#[test]
fn a_route_replaces_the_host() {
    let rewritten = RequestChanges {
        target: Some(b"/new"),
        host: Some("new"),
        ..RequestChanges::default()
    };
    let edits = HeaderEdits {
        set: vec![("hOST".to_owned(), "set".to_owned())],
        ..HeaderEdits::default()
    };
    let edited = RequestChanges {
        edits: Some(&edits),
        ..RequestChanges::default()
    };
    for (sent, changes, text, block) in [
        (
            "GET /x HTTP/1.1 | X-A: b | Host: a",
            rewritten,
            "GET /new HTTP/1.1 | Host: new | X-A: b",
            ":method: GET | :scheme: http | :path: /new | :authority: new | x-a: b",
        ),
        (
            "GET /x HTTP/1.1 | Host: a | X-A: b",
            edited,
            "GET /x HTTP/1.1 | X-A: b | hOST: set",
            ":method: GET | :scheme: http | :path: /x | :authority: set | x-a: b",
        ),
        (
            "GET /x HTTP/1.0 | X-A: b",
            edited,
            "GET /x HTTP/1.1 | X-A: b | hOST: set",
            ":method: GET | :scheme: http | :path: /x | :authority: set | x-a: b",
        ),
    ] {
        let row = RequestRow {
            changes,
            ..RequestRow::default()
        };
        row.check(sent, text, block);
    }
}

#[test]
fn the_body_of_a_request_has_one_framing() {
    let h1 = RequestRow::default;
    let h2 = |framing| RequestRow {
        h2: Some(framing),
        ..RequestRow::default()
    };
    // Methods and fields; the rest of a row is always the same.
    for (row, sent, text, block) in [
        (
            h1(),
            "POST | Content-Length: 7 | Expect: 100-continue",
            "POST | Expect: 100-continue | Content-Length: 7",
            "POST | expect: 100-continue | content-length: 7",
        ),
        (
            h1(),
            "DELETE | Transfer-Encoding: chunked",
            "DELETE | Transfer-Encoding: chunked",
            "DELETE",
        ),
        // Without content there is nothing to wait for.
        (
            h1(),
            "PUT | Expect: 100-continue",
            "PUT | Content-Length: 0",
            "PUT | content-length: 0",
        ),
        (h1(), "GET | Content-Length: 0", "GET", "GET"),
        (
            h2(BodyFraming::Streamed(None)),
            "POST",
            "POST | Transfer-Encoding: chunked",
            "POST",
        ),
        (
            h2(BodyFraming::Streamed(Some(9))),
            "POST",
            "POST | Content-Length: 9",
            "POST | content-length: 9",
        ),
    ] {
        let [sent, text] = [sent, text].map(|row| complete(row, "", " / HTTP/1.1 | Host: a"));
        let block = complete(
            block,
            ":method: ",
            " | :scheme: http | :path: / | :authority: a",
        );
        row.check(&sent, &text, &block);
    }
}

/// Puts `before` before the method of a row, and `behind` behind it.
fn complete(row: &str, before: &str, behind: &str) -> String {
    let (method, fields) = row.split_at(row.find(" | ").unwrap_or(row.len()));
    format!("{before}{method}{behind}{fields}")
}

#[test]
fn only_a_switch_to_websocket_goes_to_backends_with_http2() {
    RequestRow::default().check(
        "GET / HTTP/1.1 | Host: a | Connection: upgrade | Upgrade: WebSocket | Sec-WebSocket-Key: k | Sec-WebSocket-Version: 13",
        "GET / HTTP/1.1 | Host: a | Sec-WebSocket-Key: k | Sec-WebSocket-Version: 13 | Connection: upgrade | Upgrade: WebSocket",
        ":method: CONNECT | :scheme: http | :path: / | :authority: a | :protocol: websocket | sec-websocket-version: 13",
    );
    RequestRow {
        hop: NextHop::Close,
        ..RequestRow::default()
    }
    .check(
        "GET / HTTP/1.1 | Host: a | Connection: upgrade | Upgrade: other | Sec-WebSocket-Key: k",
        "GET / HTTP/1.1 | Host: a | Sec-WebSocket-Key: k | Connection: upgrade | Upgrade: other",
        ":method: GET | :scheme: http | :path: / | :authority: a | sec-websocket-key: k",
    );
    // With content it is a request like any other, whose upgrade a server may ignore.
    RequestRow::default().check(
        "POST / HTTP/1.1 | Host: a | Connection: upgrade | Upgrade: websocket | Content-Length: 3",
        "POST / HTTP/1.1 | Host: a | Content-Length: 3 | Connection: upgrade | Upgrade: websocket",
        ":method: POST | :scheme: http | :path: / | :authority: a | content-length: 3",
    );
}

#[test]
fn a_websocket_of_a_client_with_http2_gets_a_key_for_backends_with_http1() {
    let removed = HeaderEdits {
        remove: vec!["Sec-WebSocket-Key".to_owned()],
        ..HeaderEdits::default()
    };
    let block =
        ":method: CONNECT | :scheme: http | :path: / | :authority: a | :protocol: websocket | x: y";
    for (sent, edits, text) in [
        ("", None, " | Sec-WebSocket-Key: k"),
        // A key of the client has no meaning, and is not the one that the backend answers.
        (" | sec-websocket-key: own", None, " | Sec-WebSocket-Key: k"),
        ("", Some(&removed), ""),
    ] {
        let row = RequestRow {
            h2: Some(BodyFraming::None),
            changes: RequestChanges {
                websocket_key: Some("k"),
                edits,
                ..RequestChanges::default()
            },
            ..RequestRow::default()
        };
        let switch = "Connection: upgrade | Upgrade: websocket";
        row.check(
            &format!("GET / HTTP/1.1 | Host: a{sent} | X: y | {switch}"),
            &format!("GET / HTTP/1.1 | Host: a | X: y{text} | {switch}"),
            block,
        );
    }
    // The key is for WebSockets only.
    let row = RequestRow {
        changes: RequestChanges {
            websocket_key: Some("k"),
            ..RequestChanges::default()
        },
        ..RequestRow::default()
    };
    row.check(
        "GET / HTTP/1.1 | Host: a",
        "GET / HTTP/1.1 | Host: a",
        ":method: GET | :scheme: http | :path: / | :authority: a",
    );
}

/// Checks what a request with `sent` fields tells the backend in `fields`, in both formats.
fn check_fields(row: RequestRow<'_>, sent: &str, fields: &str) {
    let text = format!("GET / HTTP/1.1 | Host: a{fields}");
    let mut block = ":method: GET | :scheme: http | :path: / | :authority: a".to_owned();
    for field in lines(fields).into_iter().skip(1) {
        let (name, value) = field.split_once(": ").unwrap();
        block.push_str(&[" | ", &name.to_ascii_lowercase(), ": ", value.trim()].concat());
    }
    let sent = format!("GET / HTTP/1.1 | Host: a{sent}");
    row.check(&sent, &text, &block);
}

/// Row with every field that balancer adds.
fn full_row<'a>() -> RequestRow<'a> {
    RequestRow {
        rules: ForwardedConfig {
            rfc7239: true,
            ..ForwardedConfig::default()
        },
        origin: RequestOrigin {
            peer: "192.0.2.7".parse().ok(),
            client: "192.0.2.7".parse().ok(),
            port: Some(8443),
            is_secure: true,
            subject: Some(("Client-Subject", "CN=a")),
            ..RequestOrigin::default()
        },
        id: "0123",
        ..RequestRow::default()
    }
}

#[test]
fn a_backend_is_told_where_a_request_came_from() {
    check_fields(
        full_row(),
        " | X-Forwarded-For: 1.1.1.1 | x_forwarded_for: 1.1.1.1 | Forwarded: for=1.1.1.1 | X-Real-IP: 1.1.1.1 \
         | Client-Subject: CN=x | client_subject: CN=x | X-Request-Id: forged | X-A: b",
        " | X-A: b | X-Forwarded-For: 192.0.2.7 | X-Forwarded-Proto: https | X-Forwarded-Host: a \
         | X-Forwarded-Port: 8443 | X-Real-IP: 192.0.2.7 \
         | Forwarded: for=192.0.2.7;proto=https;host=\"a\" | Via: 1.1 balancer | Client-Subject: CN=a \
         | X-Request-Id: 0123",
    );
    let trusted = RequestOrigin {
        trusted: true,
        peer: "2001:db8::1".parse().ok(),
        client: "1.1.1.1".parse().ok(),
        port: Some(80),
        ..RequestOrigin::default()
    };
    let row = RequestRow {
        origin: trusted,
        ..full_row()
    };
    check_fields(
        row,
        " | X-Forwarded-For: 1.1.1.1 | x-forwarded-for: 10.0.0.1 | X-Forwarded-Proto: https | Forwarded: for=1.1.1.1",
        " | X-Forwarded-Proto: https | X-Forwarded-For: 1.1.1.1, 10.0.0.1, 2001:db8::1 \
         | X-Forwarded-Host: a | X-Real-IP: 1.1.1.1 \
         | Forwarded: for=1.1.1.1, for=\"[2001:db8::1]\";proto=http;host=\"a\" | Via: 1.1 balancer \
         | X-Request-Id: 0123",
    );
    let row = RequestRow {
        origin: RequestOrigin::default(),
        h2: Some(BodyFraming::None),
        id: "",
        ..full_row()
    };
    check_fields(
        row,
        "",
        " | X-Forwarded-For: unknown | X-Forwarded-Proto: http | X-Forwarded-Host: a \
         | Forwarded: for=unknown;proto=http;host=\"a\" | Via: 2 balancer",
    );
}

#[test]
fn a_route_has_the_last_word_about_fields() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let edits = HeaderEdits {
        set: vec![pair("X-Set", " new ")],
        add: vec![pair("X-A", "2")],
        remove: ["X-Forwarded-*", "x-real-ip", "Via", "Forwarded", "H*"]
            .map(str::to_owned)
            .to_vec(),
    };
    let row = RequestRow {
        changes: RequestChanges {
            edits: Some(&edits),
            ..RequestChanges::default()
        },
        ..full_row()
    };
    // Blanks around a value are not allowed in HTTP/2.
    check_fields(
        row,
        " | x_set: old | X-SET: old | X-A: 1 | Hx: 1 | Via: 1.0 b",
        " | X-A: 1 | Client-Subject: CN=a | X-Request-Id: 0123 | X-Set:  new  | X-A: 2",
    );
}
