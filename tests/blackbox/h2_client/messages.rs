//! One request and its response, part by part.

use bytes::Bytes;
use h2::ext::Protocol;
use hyper::http::{HeaderMap, HeaderValue, Method};

use super::front;
use crate::harness::{
    daemon::TestDaemon,
    h2::{connect, get, patiently, read, request, until, whole},
    peer::{Gate, ScriptedPeer},
};

/// A backend that answers every request with its own head and body.
fn echo() -> ScriptedPeer {
    ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            if !connection.answer(&(request.head + &body)) {
                break;
            }
        }
    })
}

#[tokio::test]
async fn a_request_reaches_the_backend_as_http_1() {
    let backend = echo();
    let daemon = front(backend.address, "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let fields = [
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("x-one", "1"),
        ("te", "trailers"),
    ];
    let asked = request(Method::GET, "/path?query", &fields);
    let (response, _) = sender.send_request(asked, true).unwrap();
    let answer = whole(response).await.unwrap();
    assert_eq!(answer.status(), 200);
    let head = String::from_utf8(answer.body).unwrap();
    assert!(head.starts_with("GET /path?query HTTP/1.1\r\n"), "{head}");
    for line in [
        "host: test.example",
        "cookie: a=1; b=2",
        "x-one: 1",
        "Via: 2 balancer",
        "X-Forwarded-Proto: http",
        "X-Forwarded-For: 127.0.0.1",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
    }
    assert!(!head.to_lowercase().contains("\r\nte:"), "{head}");
    let logged = daemon.wait_for_access(|line| line["path"] == "/path");
    assert_eq!(logged["protocol"], "HTTP/2");
    assert_eq!(logged["host"], "test.example");
    assert_eq!(logged["status"], 200);
}

#[tokio::test]
async fn a_body_of_declared_length_keeps_it_and_another_is_chunked() {
    let backend = echo();
    let daemon = front(backend.address, "");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    for (fields, expected) in [
        (&[("content-length", "5")][..], "content-length: 5"),
        (&[][..], "transfer-encoding: chunked"),
    ] {
        let mut sender = sender.clone().ready().await.unwrap();
        let asked = request(Method::POST, "/", fields);
        let (response, mut body) = sender.send_request(asked, false).unwrap();
        body.send_data(Bytes::from_static(b"he"), false).unwrap();
        body.send_data(Bytes::from_static(b"llo"), true).unwrap();
        let text = String::from_utf8(whole(response).await.unwrap().body).unwrap();
        assert!(text.to_lowercase().contains(expected), "{text}");
        assert!(text.ends_with("\r\n\r\nhello"), "{text}");
    }
}

#[tokio::test]
async fn head_204_and_304_have_no_body() {
    let backend = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let head = match request.target.as_str() {
                "/204" => "204 No Content\r\n",
                "/304" => "304 Not Modified\r\nContent-Length: 70\r\n",
                _ => "200 OK\r\nContent-Length: 70\r\n",
            };
            if !connection.send(format!("HTTP/1.1 {head}\r\n")) {
                break;
            }
        }
    });
    let daemon = front(backend.address, "");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    for (method, path, status, length) in [
        (Method::HEAD, "/", 200, Some("70")),
        (Method::GET, "/204", 204, None),
        (Method::GET, "/304", 304, Some("70")),
    ] {
        let mut sender = sender.clone().ready().await.unwrap();
        let asked = request(method, path, &[]);
        let (response, _) = sender.send_request(asked, true).unwrap();
        let answer = whole(response).await.unwrap();
        assert_eq!(
            (answer.status(), answer.header("content-length")),
            (status, length)
        );
        assert!(answer.body.is_empty());
    }
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let backend = ScriptedPeer::start(|mut connection| {
        let head = connection.head().unwrap();
        assert_eq!(head.header("transfer-encoding"), Some("chunked"));
        let rest = connection.until(b"x-sum: 7\r\n\r\n").unwrap();
        assert!(rest.starts_with(b"4\r\ndata\r\n0\r\n"), "{rest:?}");
        connection.send(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Status: fine\r\n\r\n",
        );
    });
    let daemon = front(backend.address, "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let asked = request(Method::POST, "/", &[]);
    let (response, mut body) = sender.send_request(asked, false).unwrap();
    body.send_data(Bytes::from_static(b"data"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("7"));
    body.send_trailers(trailers).unwrap();
    let answer = whole(response).await.unwrap();
    assert_eq!(answer.body, b"ok");
    assert_eq!(answer.trailers.unwrap()["x-status"], "fine");
}

#[tokio::test]
async fn interim_responses_go_through() {
    let backend = ScriptedPeer::start(|mut connection| {
        let head = connection.head().unwrap();
        assert_eq!(head.header("expect"), Some("100-continue"));
        connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
        connection.send("HTTP/1.1 100 Continue\r\n\r\n");
        connection.exactly(5).unwrap();
        connection.answer("done");
    });
    let daemon = front(backend.address, "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let fields = [("expect", "100-continue"), ("content-length", "5")];
    let asked = request(Method::POST, "/", &fields);
    let (mut response, mut body) = sender.send_request(asked, false).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx));
        let interim = patiently(interim).await.unwrap().unwrap();
        seen.push((
            interim.status().as_u16(),
            interim.headers().get("link").cloned(),
        ));
    }
    let link = HeaderValue::from_static("</a.css>");
    assert_eq!(seen, [(103, Some(link)), (100, None)]);
    body.send_data(Bytes::from_static(b"hello"), true).unwrap();
    assert_eq!(whole(response).await.unwrap().body, b"done");
}

#[tokio::test]
async fn a_cut_response_is_a_reset_and_never_an_end() {
    let backend = ScriptedPeer::start(|mut connection| {
        if let Some(request) = connection.request() {
            match request.target.as_str() {
                "/chunked" => {
                    connection
                        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n");
                }
                _ => {
                    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart");
                }
            }
        }
    });
    let daemon = front(backend.address, "");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    for path in ["/chunked", "/length"] {
        let mut sender = sender.clone().ready().await.unwrap();
        let (response, _) = sender
            .send_request(request(Method::GET, path, &[]), true)
            .unwrap();
        // The reset may overtake the head.
        let Err(error) = whole(response).await else {
            panic!("{path} looks whole");
        };
        assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR), "{path}");
        let logged = daemon.wait_for_access(|line| line["path"] == path);
        assert_eq!(logged["reason"], "http_response_incomplete");
    }
}

#[tokio::test]
async fn a_reset_by_the_client_cancels_the_request_to_the_backend() {
    let (gate, seen) = (Gate::new(), Gate::new());
    let (door, eye) = (gate.clone(), seen.clone());
    let backend = ScriptedPeer::start(move |mut connection| {
        connection.head().unwrap();
        eye.open();
        connection.wait_for_end();
        door.open();
    });
    let daemon = front(backend.address, "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let asked = request(Method::GET, "/wait", &[]);
    let (_response, mut stream) = sender.send_request(asked, true).unwrap();
    until(|| seen.is_open()).await;
    stream.send_reset(h2::Reason::CANCEL);
    until(|| gate.is_open()).await;
    let logged = daemon.wait_for_access(|line| line["path"] == "/wait");
    assert_eq!(logged["reason"], "client_disconnected");
}

#[tokio::test]
async fn our_own_errors_are_whole_answers() {
    let daemon = front(
        crate::harness::peer::refused(),
        "limits: {request_body: 4KiB}",
    );
    let (sender, _driver) = connect(daemon.address("@web")).await;
    let answer = get(&sender, "/").await.unwrap();
    assert_eq!(answer.status(), 502);
    assert_eq!(
        answer.header("proxy-status"),
        Some("balancer; error=connection_refused")
    );
    assert!(answer.header("connection").is_none());
    let length: usize = answer.header("content-length").unwrap().parse().unwrap();
    assert_eq!(answer.body.len(), length);
    // A response before the body has been sent is whole as well.
    let mut sender = sender.clone().ready().await.unwrap();
    let asked = request(Method::POST, "/", &[("content-length", "9000")]);
    let (response, mut body) = sender.send_request(asked, false).unwrap();
    let answer = whole(response).await.unwrap();
    assert_eq!(answer.status(), 413);
    body.send_data(Bytes::from(vec![0; 9000]), true).unwrap();
}

#[tokio::test]
async fn a_websocket_comes_by_extended_connect() {
    let backend = ScriptedPeer::start(|mut connection| {
        let head = connection.head().unwrap();
        assert_eq!(
            (head.method.as_str(), head.target.as_str()),
            ("GET", "/chat")
        );
        assert_eq!(head.header("upgrade"), Some("websocket"));
        assert_eq!(head.header("sec-websocket-version"), Some("13"));
        let key = head.header("sec-websocket-key").unwrap();
        assert_eq!(key.len(), 24, "16 bytes in base64");
        let accept = if head.header("x-lie").is_some() {
            "bGll".to_owned()
        } else {
            accept(key)
        };
        connection.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\nX-A: b\r\n\r\nhi"
        ));
        let said = connection.exactly(4);
        if said.as_deref() == Some(b"ping") {
            connection.send("pong");
            assert!(connection.has_ended(), "the client's end is passed on");
        }
    });
    // It is found by the header that it has over HTTP/1.1.
    let daemon = TestDaemon::start(&format!(
        "listeners: {{web: {{bind: \"@web\"}}}}\nroutes: [{{headers: {{Upgrade: WebSocket}}, pool: app}}]\npools: {{app: {{backends: [{}], health_check: none}}}}\n",
        backend.address
    ));
    let (sender, _driver) = connect(daemon.address("@web")).await;
    until(|| sender.is_extended_connect_protocol_enabled()).await;
    let socket = |more: &[(&str, &str)]| {
        let mut asked = request(Method::CONNECT, "/chat", &[("sec-websocket-version", "13")]);
        asked
            .extensions_mut()
            .insert(Protocol::from_static("websocket"));
        for (name, value) in more {
            let name = hyper::http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            asked
                .headers_mut()
                .insert(name, HeaderValue::from_str(value).unwrap());
        }
        asked
    };
    let (response, mut say) = sender.clone().send_request(socket(&[]), false).unwrap();
    say.send_data(Bytes::from_static(b"ping"), false).unwrap();
    let response = patiently(response).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-a"], "b");
    assert!(response.headers().get("sec-websocket-accept").is_none());
    say.send_data(Bytes::new(), true).unwrap();
    let mut heard = response.into_body();
    assert_eq!(patiently(read(&mut heard)).await.unwrap(), b"hipong");
    // A backend that has not read the key has not agreed.
    let lie = socket(&[("x-lie", "1")]);
    let (response, _say) = sender.clone().send_request(lie, false).unwrap();
    let answer = whole(response).await.unwrap();
    assert_eq!(answer.status(), 502);
    assert_eq!(
        answer.header("proxy-status"),
        Some("balancer; error=http_protocol_error")
    );
}

/// The response to a key, by a program that everybody has.
fn accept(key: &str) -> String {
    let digest = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
    );
    let mut text = String::new();
    let digits: Vec<char> = ('A'..='Z')
        .chain('a'..='z')
        .chain('0'..='9')
        .chain(['+', '/'])
        .collect();
    let mut bits: String = digest
        .as_ref()
        .iter()
        .fold(String::new(), |bits, byte| bits + &format!("{byte:08b}"));
    bits.push_str("00");
    for six in bits.as_bytes().chunks(6) {
        let six = std::str::from_utf8(six).unwrap();
        text.push(digits[usize::from_str_radix(six, 2).unwrap()]);
    }
    text + "="
}
