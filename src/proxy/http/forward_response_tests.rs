//! A response means the same to the client in each wire format.

use super::{
    tests::{block_lines, lines, text_lines},
    *,
};
use crate::http1::response;

/// The response in `row`, to GET.
fn parsed(row: &str) -> ResponseHead {
    let mut head = ResponseHead {
        bytes: (lines(row).join("\r\n") + "\r\n\r\n").into_bytes(),
        ..ResponseHead::default()
    };
    assert_eq!(response::parse(&mut head, b"GET"), Ok(true), "{row}");
    head
}

/// Checks both forms of the response `sent` to GET.
fn check_response(sent: &str, extra: ResponseExtra<'_>, text: &str, block: &str) {
    let head = parsed(sent);
    for _ in 0..2 {
        let written = block_lines(|out| response_head(out, &head, extra));
        assert_eq!(written, lines(block), "{sent}");
        let written = text_lines(|out| response_head(out, &head, extra));
        assert_eq!(written, lines(text), "{sent}");
    }
}

/// Additions to a response by default.
fn extra<'a>(delivery: BodyFraming) -> ResponseExtra<'a> {
    ResponseExtra {
        delivery,
        keep_alive: true,
        version: HttpVersion::Http11,
        request_id: ("X-Request-Id", "0123"),
        edits: None,
        date: None,
        sticky: None,
    }
}

#[test]
fn a_response_keeps_its_meaning() {
    for (sent, extra, text, block) in [
        (
            "HTTP/1.1 200 Fine | X-A: b | Content-Length: 3 | x-request-id: own | Keep-Alive: 1",
            extra(BodyFraming::Length(3)),
            "HTTP/1.1 200 Fine | X-A: b | X-Request-Id: 0123 | Content-Length: 3",
            ":status: 200 | x-a: b | x-request-id: 0123 | content-length: 3",
        ),
        (
            "HTTP/1.1 404 | Transfer-Encoding: chunked | Trailer: x",
            ResponseExtra {
                keep_alive: false,
                date: Some("now"),
                ..extra(BodyFraming::Streamed(None))
            },
            "HTTP/1.1 404  | Trailer: x | Date: now | X-Request-Id: 0123 | Transfer-Encoding: chunked | Connection: close",
            ":status: 404 | trailer: x | date: now | x-request-id: 0123",
        ),
        (
            "HTTP/1.1 304 Not Modified | Content-Length: 9",
            ResponseExtra {
                version: HttpVersion::Http10,
                request_id: ("X-Request-Id", ""),
                ..extra(BodyFraming::None)
            },
            "HTTP/1.1 304 Not Modified | Content-Length: 9 | Connection: keep-alive",
            ":status: 304 | content-length: 9",
        ),
        (
            "HTTP/1.1 426 Upgrade Required | Upgrade: a, b | Connection: upgrade",
            extra(BodyFraming::UntilClose),
            "HTTP/1.1 426 Upgrade Required | X-Request-Id: 0123 | Upgrade: a, b | Connection: upgrade",
            ":status: 426 | x-request-id: 0123",
        ),
    ] {
        check_response(sent, extra, text, block);
    }
}

#[test]
fn a_route_edits_a_response() {
    let edits = HeaderEdits {
        set: vec![("Server".to_owned(), "us".to_owned())],
        remove: ["Date", "x-*", "Up*"].map(str::to_owned).to_vec(),
        ..HeaderEdits::default()
    };
    let extra = ResponseExtra {
        edits: Some(&edits),
        date: Some("now"),
        keep_alive: false,
        ..extra(BodyFraming::Length(0))
    };
    check_response(
        "HTTP/1.1 426 Upgrade Required | Server: them | X-A: b | Y: z | Upgrade: a | Content-Length: 0",
        extra,
        "HTTP/1.1 426 Upgrade Required | Y: z | Server: us | Content-Length: 0 | Connection: close",
        ":status: 426 | y: z | server: us | content-length: 0",
    );
}

#[test]
fn a_client_with_http2_has_a_declared_length_and_trailers() {
    let head = ResponseHead {
        framing: BodyFraming::Streamed(Some(7)),
        status: 200,
        ..ResponseHead::default()
    };
    for (version, delivered) in [
        (HttpVersion::Http10, BodyFraming::Length(7)),
        (HttpVersion::Http11, BodyFraming::Length(7)),
        (HttpVersion::Http2, BodyFraming::Streamed(Some(7))),
    ] {
        assert_eq!(delivery(&head, version), delivered, "{version:?}");
    }
    let extra = ResponseExtra {
        request_id: ("X-Request-Id", ""),
        ..extra(BodyFraming::Streamed(Some(7)))
    };
    let written = block_lines(|out| response_head(out, &head, extra));
    assert_eq!(written, [":status: 200", "content-length: 7"]);
}

#[test]
fn a_switch_is_answered_in_the_way_of_the_client() {
    const KEY: &[u8] = b"dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    let switch = "HTTP/1.1 101 Switching Protocols | Connection: upgrade | Upgrade: websocket";
    for (sent, unanswered_key, text) in [
        ("", None, String::new()),
        (
            " | Sec-WebSocket-Accept: x",
            None,
            " | Sec-WebSocket-Accept: x".to_owned(),
        ),
        // A backend with HTTP/2 knows no keys.
        ("", Some(KEY), format!(" | Sec-WebSocket-Accept: {ACCEPT}")),
        (
            " | sec-websocket-accept: x",
            Some(KEY),
            " | sec-websocket-accept: x".to_owned(),
        ),
    ] {
        let head = parsed(&format!("{switch} | X-A: b{sent}"));
        let extra = SwitchExtra {
            request_id: ("X-Request-Id", "0123"),
            unanswered_key,
            sticky: None,
        };
        let written = text_lines(|out| switch_head(out, &head, extra));
        let expected = format!(
            "HTTP/1.1 101 Switching Protocols | X-A: b{text} | X-Request-Id: 0123 | Connection: upgrade | Upgrade: websocket"
        );
        assert_eq!(written, lines(&expected));
        let written = block_lines(|out| switch_head(out, &head, extra));
        assert_eq!(written, [":status: 200", "x-a: b", "x-request-id: 0123"]);
    }
}

#[test]
fn interim_responses_and_trailers_are_written_in_both_formats() {
    let head = parsed("HTTP/1.1 103 Early Hints | Link: </a>");
    let written = text_lines(|out| interim_head(out, &head));
    assert_eq!(written, ["HTTP/1.1 103 Early Hints", "Link: </a>"]);
    let written = block_lines(|out| interim_head(out, &head));
    assert_eq!(written, [":status: 103", "link: </a>"]);

    let mut trailers = Trailers::new();
    trailers.push(b"Grpc-Status", b"0");
    trailers.push(b"client_subject", b"CN=x");
    let written = text_lines(|out| trailer_section(out, &trailers));
    assert_eq!(written, ["0", "Grpc-Status: 0", "client_subject: CN=x"]);
    let written = block_lines(|out| trailer_section(out, &trailers));
    assert_eq!(written, ["grpc-status: 0", "client_subject: CN=x"]);
}

#[test]
fn a_sticky_cookie_is_set_once_and_kept_out_of_shared_caches() {
    let cookie = |field| Some(StickyCookie { name: "lb", field });
    let new = cookie(Some("lb=1; Path=/"));
    let edits = HeaderEdits {
        set: vec![("Cache-Control".to_owned(), "public".to_owned())],
        remove: vec!["Set-Cookie".to_owned()],
        ..HeaderEdits::default()
    };
    let own = "Set-Cookie: lb=1; Path=/";
    for (sent, sticky, edits, fields) in [
        ("", new, None, format!(" | {own} | Cache-Control: private")),
        ("", cookie(None), None, String::new()),
        (
            " | Cache-Control: public, max-age=9",
            new,
            None,
            format!(" | Cache-Control: public, max-age=9 | {own} | Cache-Control: private"),
        ),
        (
            " | cache-control: No-Store",
            new,
            None,
            format!(" | cache-control: No-Store | {own}"),
        ),
        (
            " | Cache-Control: max-age=9, private",
            new,
            None,
            format!(" | Cache-Control: max-age=9, private | {own}"),
        ),
        // A cookie of this name is ours; others pass.
        (
            " | Set-Cookie: lb=2 | set-cookie: a=lb=1",
            cookie(None),
            None,
            " | set-cookie: a=lb=1".to_owned(),
        ),
        (
            " | Set-Cookie: lb=2 | Set-Cookie: lb2=3",
            None,
            None,
            " | Set-Cookie: lb=2 | Set-Cookie: lb2=3".to_owned(),
        ),
        // Edits are of the backend's fields.
        (
            " | Set-Cookie: a=1",
            new,
            Some(&edits),
            format!(" | Cache-Control: public | {own}"),
        ),
    ] {
        let extra = ResponseExtra {
            sticky,
            edits,
            request_id: ("X-Request-Id", ""),
            ..extra(BodyFraming::Length(0))
        };
        let sent = format!("HTTP/1.1 200 OK | Content-Length: 0{sent}");
        let text = format!("HTTP/1.1 200 OK{fields} | Content-Length: 0");
        let written = text_lines(|out| response_head(out, &parsed(&sent), extra));
        assert_eq!(written, lines(&text), "{sent}");
    }
}

#[test]
fn a_switch_sets_the_sticky_cookie_in_place_of_the_backends() {
    let head = parsed(
        "HTTP/1.1 101 Switching Protocols | Connection: upgrade | Upgrade: x | Set-Cookie: lb=2",
    );
    let extra = SwitchExtra {
        request_id: ("X-Request-Id", "0"),
        unanswered_key: None,
        sticky: Some(StickyCookie {
            name: "lb",
            field: Some("lb=1; Path=/"),
        }),
    };
    let written = text_lines(|out| switch_head(out, &head, extra));
    let expected = "HTTP/1.1 101 Switching Protocols | X-Request-Id: 0 | Set-Cookie: lb=1; Path=/ | Connection: upgrade | Upgrade: x";
    assert_eq!(written, lines(expected));
}
