//! Malformed requests, RFC 9113 section 8.1.1: a response, and then an error of the stream.

use super::{
    conformance::{OK, PADDED_FLAG, PROTOCOL_ERROR, WITH_PRIORITY, setting, status, window},
    front,
};
use crate::harness::{
    client::HttpClient,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GET_FIELDS, HEADERS, PING, PREFACE,
        RST_STREAM, RawFrame, RawH2Client, WINDOW_UPDATE, fields, frame,
    },
    peer::ScriptedPeer,
};

/// Number of the status 400, RFC 7541 appendix A.
const BAD_REQUEST: u8 = 0x8c;

/// RFC 9113 section 8: heads that are no requests.
#[rustfmt::skip]
fn malformed_heads() -> Vec<(&'static str, Vec<(&'static str, &'static str)>)> {
    let [method, scheme, path, authority] = GET_FIELDS;
    let with = |more: &[_]| [&GET_FIELDS[..], more].concat();
    vec![
        ("8.1.1: a content-length that is none", with(&[("content-length", "x")])),
        ("8.2.1: a name in upper case", with(&[("X-TEST", "ok")])),
        ("8.2.1: a name that is no token", with(&[("x test", "ok")])),
        ("8.2.1: a value with NUL", with(&[("x-test", "o\0k")])),
        ("8.2.2: connection", with(&[("connection", "keep-alive")])),
        ("8.2.2: keep-alive", with(&[("keep-alive", "timeout=5")])),
        ("8.2.2: proxy-connection", with(&[("proxy-connection", "close")])),
        ("8.2.2: transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("8.2.2: upgrade", with(&[("upgrade", "h2c")])),
        ("8.2.2: TE with more than trailers", with(&[("te", "trailers, deflate")])),
        ("8.3: an unknown pseudo-field", with(&[(":test", "ok")])),
        ("8.3: a pseudo-field of responses", with(&[(":status", "200")])),
        ("8.3: a pseudo-field behind a field", [&[("x-test", "ok")][..], &GET_FIELDS].concat()),
        ("8.3.1: an empty path", vec![method, scheme, (":path", ""), authority]),
        ("8.3.1: no method", vec![scheme, path, authority]),
        ("8.3.1: no scheme", vec![method, path, authority]),
        ("8.3.1: no path", vec![method, scheme, authority]),
        ("8.3.1: two methods", with(&[method])),
        ("8.3.1: two schemes", with(&[scheme])),
        ("8.3.1: two paths", with(&[path])),
        ("8.3.1: two authorities", with(&[authority])),
        ("8.3.1: another host", with(&[("host", "other")])),
        ("8.3.1: a host that is none", vec![method, scheme, path, (":authority", "a,b")]),
    ]
}

/// True if the response that begins with `head` has a JSON body, and ends with a reset.
fn is_malformed(client: &mut RawH2Client, head: &RawFrame) -> bool {
    let (body, end) = rest_of(client, head);
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    body["error"]["code"] == 400 && end == Some(PROTOCOL_ERROR)
}

/// Body behind `head`, and the code of the reset that ends it; `None` is END_STREAM.
fn rest_of(client: &mut RawH2Client, head: &RawFrame) -> (Vec<u8>, Option<u32>) {
    let (mut body, mut is_end) = (Vec::new(), head.flags & END_STREAM > 0);
    while !is_end {
        let part = client.until(|frame| frame.stream == head.stream && frame.kind != WINDOW_UPDATE);
        if part.kind == RST_STREAM {
            return (body, Some(part.code()));
        }
        assert_eq!(part.kind, DATA);
        is_end = part.flags & END_STREAM > 0;
        body.extend(part.payload);
    }
    (body, None)
}

/// A request on stream `id` with this head, in all forms that frames allow.
#[rustfmt::skip]
fn forms(id: u32, list: &[(&str, &str)]) -> [(&'static str, Vec<u8>); 6] {
    let block = fields(list);
    let end = END_HEADERS | END_STREAM;
    let (first, second) = block.split_at(9);
    let head = |flags, parts: [&[u8]; 3]| frame(HEADERS, flags, id, &parts.concat());
    [
        ("without a body", head(end, [&[], &block, &[]])),
        ("with a body", [head(END_HEADERS, [&[], &block, &[]]), frame(DATA, END_STREAM, id, b"body")].concat()),
        ("before a body that never comes", head(END_HEADERS, [&[], &block, &[]])),
        ("with padding", head(end | PADDED_FLAG, [&[2], &block, &[0; 2]])),
        ("with a priority", head(end | WITH_PRIORITY, [&[0, 0, 0, 0, 15], &block, &[]])),
        ("in parts", [head(END_STREAM, [&[], first, &[]]), frame(CONTINUATION, END_HEADERS, id, second)].concat()),
    ]
}

#[test]
fn a_malformed_request_is_answered_400_and_its_stream_is_reset() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let (mut wrong, mut sent) = (Vec::new(), 0);
    for (what, list) in malformed_heads() {
        // One connection: the error of a stream does not concern the others.
        let mut client = RawH2Client::connect(daemon.address("@web"));
        for place in 0..6 {
            let stream = 4 * place as u32 + 1;
            let (form, bytes) = forms(stream, &list)[place].clone();
            client.send(bytes);
            sent += 1;
            let head = client.until(|frame| frame.stream == stream && frame.kind != WINDOW_UPDATE);
            let is_refused = head.kind == HEADERS && status(&head) == BAD_REQUEST;
            if !is_refused || !is_malformed(&mut client, &head) {
                wrong.push((what, form));
                break;
            }
            client.ask(stream + 2, &GET_FIELDS);
            let head = client.until(|frame| frame.stream == stream + 2 && frame.kind == HEADERS);
            assert_eq!(status(&head), OK, "{what}");
            assert_eq!(rest_of(&mut client, &head), (b"hello".to_vec(), None));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let all = |lines: &[String]| {
        let logged = lines
            .iter()
            .filter(|line| line.contains("\"http_request_error\""));
        (logged.count() == sent).then_some(())
    };
    daemon.stdout.wait_for(all).expect("each is logged");
    assert_eq!(backend.wait_for_requests(sent).len(), sent);
}

#[test]
fn the_answer_to_a_malformed_request_waits_for_the_window_like_any_other() {
    let backend = ScriptedPeer::answering("never");
    let daemon = front(backend.address, "");
    let mut client = RawH2Client(HttpClient::connect(daemon.address("@web")));
    client.send(PREFACE);
    client.send(setting(4, 10));
    client.ask(1, &[&GET_FIELDS[..], &[("X-TEST", "ok")]].concat());
    let head = client.until(|frame| frame.kind == HEADERS);
    let part = client.until(|frame| frame.kind == DATA);
    assert_eq!((part.payload.len(), part.flags), (10, 0));
    client.send(window(1, 1_000));
    let (body, end) = rest_of(&mut client, &head);
    assert_eq!(end, Some(PROTOCOL_ERROR));
    assert!(body.ends_with(b"}"), "{body:?}");
}

#[test]
fn what_is_refused_but_well_formed_ends_without_an_error() {
    let backend = ScriptedPeer::answering("never");
    let daemon = front(backend.address, "http: {max_headers: 20}");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let with = |more: &[_]| [&GET_FIELDS[..], more].concat();
    let connect = vec![(":method", "CONNECT"), (":authority", "a:443")];
    for (place, (code, list)) in [
        (405, connect),
        (417, with(&[("expect", "tea")])),
        (431, with(&[("a", "b"); 21])),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = 2 * place as u32 + 1;
        client.ask(stream, &list);
        let head = client.until(|frame| frame.stream == stream && frame.kind != WINDOW_UPDATE);
        assert_eq!(head.kind, HEADERS, "{code}");
        let (body, end) = rest_of(&mut client, &head);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["error"]["code"], end), (&code.into(), None));
    }
}

#[test]
fn the_refusal_of_a_head_request_has_no_body_and_its_method_is_logged() {
    let backend = ScriptedPeer::answering("never");
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let [_, scheme, path, authority] = GET_FIELDS;
    let method = (":method", "HEAD");
    for (place, (code, list)) in [
        (
            400,
            vec![method, scheme, path, authority, ("connection", "close")],
        ),
        (400, vec![method, scheme, (":path", "/a#b"), authority]),
        (400, vec![method, scheme, path, (":authority", "a,b")]),
        (
            417,
            vec![method, scheme, path, authority, ("expect", "tea")],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = 2 * place as u32 + 1;
        client.ask(stream, &list);
        let head = client.until(|frame| frame.stream == stream && frame.kind == HEADERS);
        let end = (code == 400).then_some(PROTOCOL_ERROR);
        assert_eq!(rest_of(&mut client, &head), (Vec::new(), end), "{list:?}");
    }
    let all = |lines: &[String]| {
        let logged = lines
            .iter()
            .filter(|line| line.contains("\"method\":\"HEAD\""));
        (logged.count() == 4).then_some(())
    };
    daemon.stdout.wait_for(all).expect("each is logged");
}

#[test]
fn a_client_may_send_all_of_a_request_that_is_refused_for_what_it_expects() {
    let backend = ScriptedPeer::answering("never");
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let list = [&GET_FIELDS[..], &[("expect", "tea")]].concat();
    client.send(frame(HEADERS, END_HEADERS, 1, &fields(&list)));
    let head = client.until(|frame| frame.kind == HEADERS);
    assert_eq!(rest_of(&mut client, &head).1, None);
    for flags in [0, END_STREAM] {
        client.send(frame(DATA, flags, 1, b"rest"));
        client.send(frame(PING, 0, 0, b"all read"));
        let next = client.until(|frame| matches!(frame.kind, PING | RST_STREAM));
        assert_eq!(next.kind, PING, "many clients take a reset for a failure");
    }
}
