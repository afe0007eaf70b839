//! WebSockets to backends that speak HTTP/2 (RFC 8441), and the error where these cannot.

use bytes::Bytes;
use hyper::http::{Method, Request, Response};

use crate::h2_backend::{config, front};
use crate::harness::{
    answers::expect_error,
    client::HttpClient,
    daemon::TestDaemon,
    h2::{
        H2Backend, ReceivedRequest, RequestSender, connect, get, patiently, pattern, read, send,
        until,
    },
    peer::ScriptedPeer,
};

const OPENING_HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fn taking() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    builder
}

/// Takes a WebSocket and sends back what comes.
async fn echo(mut asked: ReceivedRequest) {
    let protocol = asked.head.extensions.get::<h2::ext::Protocol>().unwrap();
    assert_eq!(
        (&asked.head.method, protocol.as_str()),
        (&Method::CONNECT, "websocket")
    );
    assert_eq!(asked.head.headers["sec-websocket-version"], "13");
    assert!(!asked.head.headers.contains_key("sec-websocket-key"));
    let response = Response::new(());
    let mut stream = asked.respond.send_response(response, false).unwrap();
    while let Some(data) = asked.body.data().await {
        let data = data.unwrap();
        asked
            .body
            .flow_control()
            .release_capacity(data.len())
            .unwrap();
        stream.send_data(data, false).unwrap();
    }
    stream.send_data(Bytes::new(), true).unwrap();
}

async fn open(sender: &RequestSender) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let mut sender = sender.clone().ready().await.unwrap();
    until(|| sender.is_extended_connect_protocol_enabled()).await;
    let mut asked = Request::builder()
        .method(Method::CONNECT)
        .uri("http://test.example/chat")
        .header("sec-websocket-version", "13")
        .body(())
        .unwrap();
    let protocol = h2::ext::Protocol::from_static("websocket");
    asked.extensions_mut().insert(protocol);
    sender.send_request(asked, false).unwrap()
}

#[tokio::test]
async fn a_websocket_of_either_kind_reaches_the_backend() {
    let backend = H2Backend::start_with(&taking(), echo).await;
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let h1 = tokio::task::spawn_blocking(move || {
        let mut client = HttpClient::connect(address);
        client.send(OPENING_HANDSHAKE);
        let (status, fields) = client.head().unwrap();
        assert_eq!(status, 101);
        let value = |wanted: &str| {
            let mut fields = fields.iter();
            let found = fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.clone())
        };
        let accept = value("sec-websocket-accept");
        assert_eq!(accept.as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(value("upgrade").as_deref(), Some("websocket"));
        for text in ["one", "two"] {
            client.send(text);
            assert_eq!(client.exactly(3).unwrap(), text.as_bytes());
        }
        client.finish();
        assert_eq!(client.rest().unwrap(), b"");
    });
    h1.await.unwrap();
    let (sender, _driver) = connect(address).await;
    let (response, mut body) = open(&sender).await;
    let response = patiently(response).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let mut answer = response.into_body();
    for text in ["one", "two"] {
        body.send_data(Bytes::from_static(text.as_bytes()), false)
            .unwrap();
        assert_eq!(patiently(answer.data()).await.unwrap().unwrap(), text);
    }
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(patiently(read(&mut answer)).await.unwrap(), b"");
}

#[tokio::test]
async fn a_websocket_of_a_backend_that_goes_down_is_closed_where_told() {
    let backend = H2Backend::start_with(&taking(), echo).await;
    let door = ScriptedPeer::silent();
    let check = format!(
        "health_check: {{port: {}, interval: 100ms, fall: 1, on_down: close}}",
        door.address.port()
    );
    let config = config(&[backend.address], &check).replace("health_check: none, ", "");
    let daemon = TestDaemon::start(&config);
    let (sender, _driver) = connect(daemon.address("@web")).await;
    let (response, mut body) = open(&sender).await;
    let mut answer = patiently(response).await.unwrap().into_body();
    body.send_data(Bytes::from_static(b"one"), false).unwrap();
    assert_eq!(patiently(answer.data()).await.unwrap().unwrap(), "one");
    tokio::task::spawn_blocking(move || drop(door))
        .await
        .unwrap();
    let end = patiently(answer.data()).await.unwrap();
    assert!(
        end.unwrap_err().is_reset(),
        "the stream, not its connection"
    );
    // The connection serves other requests, here with the response that no backend is up.
    assert_eq!(get(&sender, "/").await.unwrap().status(), 502);
}

#[tokio::test]
async fn a_backend_that_takes_none_is_not_asked_and_not_blamed() {
    let backend = H2Backend::start(async |asked| asked.answer(&[], "well")).await;
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let h1 = tokio::task::spawn_blocking(move || {
        let mut client = HttpClient::connect(address);
        client.send(OPENING_HANDSHAKE);
        expect_error(&client.response().unwrap(), 502, "http_upgrade_failed");
    });
    h1.await.unwrap();
    let (sender, _driver) = connect(address).await;
    let (response, _body) = open(&sender).await;
    assert_eq!(patiently(response).await.unwrap().status(), 502);
    assert_eq!(backend.requests.all().len(), 0);
    assert_eq!(get(&sender, "/").await.unwrap().body, b"well");
    let failures = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
    assert_eq!(failures, 0.0);
}

#[tokio::test]
async fn what_a_backend_answers_instead_of_taking_it_is_passed_on() {
    let backend = H2Backend::start_with(&taking(), async |mut asked: ReceivedRequest| {
        let no = Response::builder().status(403).body(()).unwrap();
        asked.respond.send_response(no, true).unwrap();
    })
    .await;
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let h1 = tokio::task::spawn_blocking(move || {
        let mut client = HttpClient::connect(address);
        client.send(OPENING_HANDSHAKE);
        assert_eq!(client.response().unwrap().status, 403);
    });
    h1.await.unwrap();
}

#[tokio::test]
async fn success_without_a_switch_is_no_websocket_for_a_client_of_http2() {
    let backend = ScriptedPeer::answering("just a page");
    let daemon = TestDaemon::start(&format!(
        "access_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\", pool: app}}}}\npools: {{app: {{backends: [{}], health_check: none}}}}\n",
        backend.address
    ));
    let (sender, _driver) = connect(daemon.address("@web")).await;
    let (response, _body) = open(&sender).await;
    assert_eq!(patiently(response).await.unwrap().status(), 502);
    let logged = daemon.wait_for_access(|line| line["path"] == "/chat");
    assert_eq!(logged["reason"], "http_upgrade_failed");
    assert_eq!(
        daemon.metric("balancer_backend_failures_total{pool=\"app\"}"),
        0.0
    );
}

#[tokio::test]
async fn other_switches_are_not_asked_of_http2() {
    let backend = H2Backend::start(async |asked| asked.answer(&[], "plain")).await;
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let h1 = tokio::task::spawn_blocking(move || {
        let mut client = HttpClient::connect(address);
        client
            .send("GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n");
        assert_eq!(client.response().unwrap().text(), "plain");
    });
    h1.await.unwrap();
    assert!(!backend.requests.all()[0].headers.contains_key("upgrade"));
}

#[tokio::test]
async fn what_a_backend_sends_before_it_hangs_up_arrives() {
    const BODY_BYTES: usize = 3_000_000;
    let backend = H2Backend::start_with(&taking(), async |mut asked: ReceivedRequest| {
        // HTTP/2 has no such field.
        let taken = Response::builder().header("sec-websocket-accept", "x");
        let taken = taken.body(()).unwrap();
        let mut stream = asked.respond.send_response(taken, false).unwrap();
        // The end, and with the drop that nothing more is wanted.
        send(&mut stream, pattern(BODY_BYTES).into()).await;
    })
    .await;
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let h1 = tokio::task::spawn_blocking(move || {
        let mut client = HttpClient::connect(address);
        client.send(OPENING_HANDSHAKE);
        let (status, fields) = client.head().unwrap();
        let accepts = fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-accept"));
        assert_eq!((status, accepts.count()), (101, 1));
        assert!(client.rest().unwrap() == pattern(BODY_BYTES));
        client.finish();
    });
    h1.await.unwrap();
    let logged = daemon.wait_for_access(|line| line["path"] == "/chat");
    assert_eq!(logged["reason"], serde_json::Value::Null);
}
