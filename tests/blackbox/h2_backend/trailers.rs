//! Trailers: behind bodies of every framing, announced or not, as large as heads may be.

use bytes::Bytes;
use hyper::http::{HeaderMap, HeaderValue, Method, Response};

use super::{config, front};
use crate::harness::{
    client::HttpClient,
    daemon::TestDaemon,
    frames::{DATA, END_STREAM, GET_FIELDS, HEADERS, RST_STREAM, RawH2Backend, RawH2Client, frame},
    h2::{H2Backend, ReceivedRequest, connect, connect_with, read, request, whole},
    peer::ScriptedPeer,
};

/// Sends a body with its length and trailers, as the path asks for; `/none` has no length,
/// `/announced` says what comes.
async fn echo(mut asked: ReceivedRequest) {
    let body = read(&mut asked.body).await.unwrap();
    let sent = asked.body.trailers().await.unwrap();
    let mut response = Response::builder();
    if let Some(length) = asked.head.headers.get("content-length") {
        response = response.header("x-length", length);
    }
    if asked.path() != "/none" {
        response = response.header("content-length", body.len());
    }
    if asked.path() == "/announced" {
        response = response.header("trailer", "grpc-status");
    }
    let mut stream = asked
        .respond
        .send_response(response.body(()).unwrap(), false)
        .unwrap();
    if !body.is_empty() {
        stream.send_data(body.into(), false).unwrap();
    }
    let mut trailers = sent.unwrap_or_default();
    trailers.insert("grpc-status", "0".parse().unwrap());
    stream.send_trailers(trailers).unwrap();
}

#[tokio::test]
async fn trailers_go_both_ways_with_every_framing_and_announced_or_not() {
    let backend = H2Backend::start(echo).await;
    let daemon = front(backend.address, "");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    for path in ["/none", "/length", "/announced"] {
        for body in ["hello", ""] {
            for has_length in [true, false] {
                let length = body.len().to_string();
                let fields = [("content-length", &*length)];
                let fields = if has_length { &fields[..] } else { &[] };
                let mut sender = sender.clone().ready().await.unwrap();
                let asked = request(Method::POST, path, fields);
                let (response, mut stream) = sender.send_request(asked, false).unwrap();
                if !body.is_empty() {
                    stream.send_data(Bytes::from(body), false).unwrap();
                }
                let mut trailers = HeaderMap::new();
                trailers.insert("x-sum", HeaderValue::from_static("5"));
                stream.send_trailers(trailers).unwrap();
                let answer = whole(response).await.unwrap();
                let what = format!("{path} {body:?} {has_length}");
                let expected = (path != "/none").then_some(&*length);
                assert_eq!(answer.header("content-length"), expected, "{what}");
                assert_eq!(
                    answer.header("x-length"),
                    has_length.then_some(&*length),
                    "{what}"
                );
                assert_eq!(answer.body, body.as_bytes(), "{what}");
                let trailers = answer.trailers.expect(&what);
                assert_eq!(trailers["x-sum"], "5", "{what}");
                assert_eq!(trailers["grpc-status"], "0", "{what}");
            }
        }
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn over_http_1_a_length_leaves_no_place_for_trailers_that_were_not_announced() {
    let backend = H2Backend::start(echo).await;
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let h1 = tokio::task::spawn_blocking(move || {
        let mut client = HttpClient::connect(address);
        for (path, length, chunked) in [
            ("/length", Some("5"), None),
            ("/announced", None, Some("chunked")),
            ("/none", None, Some("chunked")),
            ("/length", Some("5"), None),
        ] {
            client.send(format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
            ));
            let answer = client.response().unwrap();
            let framing = (
                answer.header("content-length"),
                answer.header("transfer-encoding"),
            );
            assert_eq!(framing, (length, chunked), "{path}");
            assert_eq!(answer.text(), "hello", "{path}");
        }
    });
    h1.await.unwrap();
}

#[tokio::test]
async fn a_request_with_length_and_trailers_reaches_an_http_1_backend_with_its_length() {
    let backend = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            assert_eq!(request.header("content-length"), Some("5"));
            assert_eq!(request.header("transfer-encoding"), None);
            connection.answer(&String::from_utf8(request.body).unwrap());
        }
    });
    let text = config(&[backend.address], "").replace("protocol: h2c, ", "");
    let daemon = TestDaemon::start(&text);
    let (sender, _driver) = connect(daemon.address("@web")).await;
    for _ in 0..3 {
        let mut sender = sender.clone().ready().await.unwrap();
        let asked = request(Method::POST, "/", &[("content-length", "5")]);
        let (response, mut stream) = sender.send_request(asked, false).unwrap();
        stream.send_data(Bytes::from_static(b"he"), false).unwrap();
        stream.send_data(Bytes::from_static(b"llo"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("5"));
        stream.send_trailers(trailers).unwrap();
        assert_eq!(whole(response).await.unwrap().body, b"hello");
    }
    assert_eq!(backend.connections(), 1, "nothing is left on it");
}

#[test]
fn content_that_is_not_as_long_as_declared_is_an_error_with_trailers_too() {
    for content in [&b"abc"[..], b"abcde"] {
        let backend = ScriptedPeer::start(move |connection| {
            let Some(mut backend) = RawH2Backend::greet(connection) else {
                return;
            };
            while let Some(stream) = backend.asked() {
                backend.head(
                    stream,
                    &[(":status", "200"), ("content-length", "4")],
                    false,
                );
                backend.send(frame(DATA, 0, stream, content));
                backend.head(stream, &[("grpc-status", "0")], true);
            }
        });
        let daemon = front(backend.address, "retries: none");
        let mut client = RawH2Client::connect(daemon.address("@web"));
        client.ask(1, &GET_FIELDS);
        let end = client.until(|frame| {
            frame.kind == RST_STREAM || frame.stream == 1 && frame.flags & END_STREAM > 0
        });
        assert_eq!(end.kind, RST_STREAM, "{content:?}");
        let logged = daemon.wait_for_access(|_| true);
        assert_eq!(logged["reason"], "http_response_incomplete");
        let failures = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
        assert_eq!(failures, 1.0, "that is the backend's fault");
    }
}

#[tokio::test]
async fn trailers_may_be_as_large_as_heads_on_all_ways() {
    let new = H2Backend::start(echo).await;
    let old = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            connection.send(format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n{}",
                request.trailers
            ));
        }
    });
    let large = "x".repeat(9_000);
    for (backend, text) in [
        (new.address, config(&[new.address], "")),
        (
            old.address,
            config(&[old.address], "").replace("protocol: h2c, ", ""),
        ),
    ] {
        let daemon = TestDaemon::start(&text);
        let address = daemon.address("@web");
        let mut builder = h2::client::Builder::new();
        builder.max_header_list_size(1 << 20);
        let (mut sender, _driver) = connect_with(address, &builder).await;
        let asked = request(Method::POST, "/none", &[]);
        let (response, mut stream) = sender.send_request(asked, false).unwrap();
        stream.send_data(Bytes::from_static(b"hi"), false).unwrap();
        let mut trailers = HeaderMap::new();
        let details = HeaderValue::from_str(&large).unwrap();
        trailers.insert("grpc-status-details-bin", details.clone());
        stream.send_trailers(trailers).unwrap();
        let answer = whole(response).await.unwrap();
        assert_eq!(
            answer.trailers.unwrap()["grpc-status-details-bin"],
            details,
            "{backend}"
        );
        let large = large.clone();
        let h1 = tokio::task::spawn_blocking(move || {
            let mut client = HttpClient::connect(address);
            client.send(format!("POST /none HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nhi\r\n0\r\ngrpc-status-details-bin: {large}\r\n\r\n"));
            let text = String::from_utf8(client.rest().unwrap()).unwrap();
            assert!(text.contains(&format!("grpc-status-details-bin: {large}\r\n")));
        });
        h1.await.unwrap();
    }
}

#[tokio::test]
async fn trailers_beyond_our_limit_are_not_the_fault_of_an_http_1_backend() {
    let backend = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let large = "x".repeat(70_000);
            let (size, ext) = if request.target == "/ext" {
                ("2;", "x".repeat(300))
            } else {
                ("2", String::new())
            };
            connection.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n{size}{ext}\r\nhi\r\n0\r\nx-a: {large}\r\n\r\n"));
        }
    });
    let pool = "retries: none, ejection: {failures: 1}";
    let text = config(&[backend.address], pool).replace("protocol: h2c, ", "");
    let daemon = TestDaemon::start(&text);
    // Chunks that come with the head are looked at before that is passed on.
    for (target, reasons) in [
        ("/", &["http_response_header_section_size"][..]),
        (
            "/ext",
            &["http_response_incomplete", "proxy_protocol_error"],
        ),
    ] {
        let mut client = RawH2Client::connect(daemon.address("@web"));
        client.ask(
            1,
            &[
                GET_FIELDS[0],
                GET_FIELDS[1],
                (":path", target),
                GET_FIELDS[3],
            ],
        );
        client.until(|frame| frame.kind == HEADERS || frame.kind == RST_STREAM);
        let logged = daemon.wait_for_access(|line| line["path"] == target);
        assert!(
            reasons.iter().any(|reason| logged["reason"] == *reason),
            "{logged}"
        );
    }
    let failures = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
    assert_eq!(failures, 0.0);
    let up = daemon.metric("balancer_backend_state{pool=\"app\",state=\"up\"}");
    assert_eq!(up, 1.0);
}
