//! Requests and responses with HTTP/1.1 or HTTP/2 in front, and HTTP/2 behind.

use bytes::Bytes;
use hyper::http::{HeaderMap, Method, Response};

use super::front;
use crate::harness::{
    client::HttpClient,
    h2::{
        H2Backend, ReceivedRequest, connect, connect_with, get, patiently, pattern, read, request,
        send, whole,
    },
};

/// The fields of what was asked, one a line.
fn lines(fields: &HeaderMap) -> Vec<String> {
    let lines = fields.iter();
    lines
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect()
}

#[tokio::test]
async fn a_request_has_the_pseudo_fields_and_no_field_for_one_hop() {
    let backend = H2Backend::start(async |asked| asked.answer(&[], "well")).await;
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let from_h1 = tokio::task::spawn_blocking(move || {
        let mut client = HttpClient::connect(address);
        client.send("GET /a%20b?c=d HTTP/1.1\r\nHost: Shop.example:81\r\nConnection: keep-alive, x-hop, te\r\nKeep-Alive: 5\r\nX-Hop: 1\r\nTE: trailers, deflate\r\nCookie: a=1; b=2\r\nX-Own: yes\r\n\r\n");
        client.response().unwrap()
    });
    assert_eq!(from_h1.await.unwrap().text(), "well");
    let (mut sender, _driver) = connect(address).await;
    let fields = [
        ("te", "trailers"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("x-own", "yes"),
    ];
    let asked = request(Method::GET, "/a%20b?c=d", &fields);
    let (response, _) = sender.send_request(asked, true).unwrap();
    assert_eq!(whole(response).await.unwrap().body, b"well");

    for (asked, authority, via) in backend
        .requests
        .all()
        .iter()
        .zip(["Shop.example:81", "test.example"])
        .zip(["via: 1.1 balancer", "via: 2 balancer"])
        .map(|((asked, authority), via)| (asked, authority, via))
    {
        assert_eq!(asked.method, Method::GET);
        assert_eq!(asked.uri.scheme_str(), Some("http"));
        assert_eq!(asked.uri.authority().unwrap(), authority);
        assert_eq!(asked.uri.path_and_query().unwrap(), "/a%20b?c=d");
        let lines = lines(&asked.headers);
        for wanted in [
            "te: trailers",
            "cookie: a=1; b=2",
            "x-own: yes",
            "x-forwarded-for: 127.0.0.1",
            via,
        ] {
            assert!(
                lines.iter().any(|line| line == wanted),
                "{wanted}: {lines:?}"
            );
        }
        for name in [
            "connection",
            "keep-alive",
            "x-hop",
            "host",
            "transfer-encoding",
        ] {
            assert!(!asked.headers.contains_key(name), "{name}: {lines:?}");
        }
    }
    assert_eq!(backend.connections(), 1, "both share one connection");
}

#[tokio::test]
async fn a_client_that_takes_no_trailers_is_not_said_to() {
    let backend = H2Backend::start(async |asked| asked.answer(&[], "well")).await;
    let daemon = front(backend.address, "");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    get(&sender, "/").await.unwrap();
    assert!(!backend.requests.all()[0].headers.contains_key("te"));
}

#[tokio::test]
async fn head_204_and_304_have_no_body() {
    let backend = H2Backend::start(async |mut asked: ReceivedRequest| {
        let (status, length) = match asked.path() {
            "/204" => (204, None),
            "/304" => (304, Some("70")),
            "/empty" => (200, None),
            _ => (200, Some("70")),
        };
        let mut response = Response::builder().status(status);
        if let Some(length) = length {
            response = response.header("content-length", length);
        }
        asked
            .respond
            .send_response(response.body(()).unwrap(), true)
            .unwrap();
    })
    .await;
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let cases = [
        ("HEAD", "/", 200, Some("70")),
        ("GET", "/204", 204, None),
        ("GET", "/304", 304, Some("70")),
        ("GET", "/empty", 200, Some("0")),
    ];
    let (sender, _driver) = connect(address).await;
    for (method, path, status, length) in cases {
        let mut sender = sender.clone().ready().await.unwrap();
        let asked = request(method.parse().unwrap(), path, &[]);
        let (response, _) = sender.send_request(asked, true).unwrap();
        let answer = whole(response).await.unwrap();
        let seen = (answer.status(), answer.header("content-length"));
        assert_eq!(seen, (status, length), "{method} {path}");
        assert!(answer.body.is_empty());
    }
    let h1 = tokio::task::spawn_blocking(move || {
        let mut client = HttpClient::connect(address);
        for (method, path, status, length) in cases {
            let answer = client.request(method, path).unwrap();
            let seen = (answer.status, answer.header("content-length"));
            assert_eq!(seen, (status, length), "{method} {path}");
            assert!(answer.body.is_empty());
        }
    });
    h1.await.unwrap();
}

#[tokio::test]
async fn trailers_and_interim_responses_go_through() {
    let backend = H2Backend::start(async |mut asked: ReceivedRequest| {
        let early = Response::builder()
            .status(103)
            .header("link", "</a.css>")
            .body(())
            .unwrap();
        asked.respond.send_informational(early).unwrap();
        let body = read(&mut asked.body).await.unwrap();
        let sent = asked.body.trailers().await.unwrap().unwrap();
        let mut response = Response::builder();
        // Announced, so that a client of HTTP/1.1 gets them although the length is known.
        if asked.path() == "/length" {
            response = response
                .header("content-length", body.len())
                .header("trailer", "x-sum");
        }
        let mut stream = asked
            .respond
            .send_response(response.body(()).unwrap(), false)
            .unwrap();
        stream.send_data(body.into(), false).unwrap();
        stream.send_trailers(sent).unwrap();
    })
    .await;
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    for path in ["/", "/length"] {
        let (mut sender, _driver) = connect(address).await;
        let asked = request(Method::POST, path, &[("te", "trailers")]);
        let (mut response, mut body) = sender.send_request(asked, false).unwrap();
        let early = std::future::poll_fn(|cx| response.poll_informational(cx));
        let early = patiently(early).await.unwrap().unwrap();
        assert_eq!(early.headers()["link"], "</a.css>");
        body.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "5".parse().unwrap());
        body.send_trailers(trailers.clone()).unwrap();
        let answer = whole(response).await.unwrap();
        assert_eq!(
            (answer.body.as_slice(), answer.trailers),
            (&b"hello"[..], Some(trailers))
        );
    }
    let h1 = tokio::task::spawn_blocking(move || {
        for path in ["/", "/length"] {
            let mut client = HttpClient::connect(address);
            client.send(format!("POST {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n"));
            let text = String::from_utf8(client.rest().unwrap()).unwrap();
            assert!(
                text.starts_with(
                    "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\n"
                ),
                "{text}"
            );
            assert!(
                text.ends_with("\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n"),
                "{text}"
            );
        }
    });
    h1.await.unwrap();
}

#[tokio::test]
async fn a_client_that_asks_first_is_invited_by_the_backend() {
    let backend = H2Backend::start(async |mut asked: ReceivedRequest| {
        assert_eq!(asked.head.headers["expect"], "100-continue");
        let invitation = Response::builder().status(100).body(()).unwrap();
        asked.respond.send_informational(invitation).unwrap();
        let body = read(&mut asked.body).await.unwrap();
        asked.answer(&[], body);
    })
    .await;
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let h1 = tokio::task::spawn_blocking(move || {
        let mut client = HttpClient::connect(address);
        client.send(
            "PUT / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
        );
        assert_eq!(client.head().unwrap().0, 100);
        client.send("body");
        assert_eq!(client.response().unwrap().text(), "body");
    });
    h1.await.unwrap();
}

#[tokio::test]
async fn large_bodies_pass_through_small_windows() {
    const BODY_BYTES: usize = 1_000_000;
    let mut small = h2::server::Builder::new();
    small.initial_window_size(9_000);
    let backend = H2Backend::start_with(&small, async |mut asked: ReceivedRequest| {
        let all = read(&mut asked.body).await.unwrap();
        let response = Response::new(());
        let mut stream = asked.respond.send_response(response, false).unwrap();
        send(&mut stream, all.into()).await;
    })
    .await;
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let mut small = h2::client::Builder::new();
    small.initial_window_size(7_000);
    let (mut sender, _driver) = connect_with(address, &small).await;
    let (response, mut body) = sender
        .send_request(request(Method::POST, "/", &[]), false)
        .unwrap();
    let bytes = Bytes::from(pattern(BODY_BYTES));
    let (answer, ()) = tokio::join!(whole(response), send(&mut body, bytes.clone()));
    assert!(answer.unwrap().body == bytes, "other bytes than were sent");
    let h1 = tokio::task::spawn_blocking(move || {
        let mut client = HttpClient::connect(address);
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
        ));
        client.send(&bytes);
        assert!(
            client.response().unwrap().body == bytes,
            "other bytes than were sent"
        );
    });
    h1.await.unwrap();
}
