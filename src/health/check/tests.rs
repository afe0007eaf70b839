//! Checks over HTTP/2 against scripted servers on 127.0.0.1. Those of the h2 crate follow the
//! protocol; those in `frames.rs` break it.

mod frames;

use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use hyper::{HeaderMap, Request, Response, header::HeaderName};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::*;
use crate::{
    base::clock,
    config::model::{BackendConfig, BackendProtocol, ExpectedText},
    pool,
};

/// A server for one connection, with the task of its script.
struct ScriptedServer<T> {
    address: BackendAddress,
    script: JoinHandle<T>,
}

/// Runs `script` on the first connection.
async fn raw<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    script: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> ScriptedServer<T> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = BackendAddress::Ip(listener.local_addr().unwrap());
    let script = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        script(socket).await
    });
    ScriptedServer { address, script }
}

/// Runs `script` on the first request.
async fn served<F: Future<Output = ()> + Send + 'static>(
    script: impl FnOnce(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + 'static,
) -> BackendAddress {
    let server = raw(async |socket| {
        let mut connection = h2::server::handshake(socket).await.unwrap();
        let (request, respond) = connection.accept().await.unwrap().unwrap();
        tokio::spawn(script(request, respond));
        // Until the end of the connection.
        connection.accept().await.is_none()
    });
    server.await.address
}

/// The response of a server.
#[derive(Clone, Default)]
struct FakeResponse {
    status: u16,
    fields: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    /// If empty, the response ends with its body, or with its head if the body is empty too.
    trailers: Vec<(&'static str, &'static str)>,
}

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), value.parse().unwrap())
    };
    fields.iter().map(pair).collect()
}

impl FakeResponse {
    fn send(self, mut respond: SendResponse<Bytes>) {
        let mut head = Response::builder().status(self.status).body(()).unwrap();
        *head.headers_mut() = map(&self.fields);
        let ends = self.trailers.is_empty();
        let mut stream = respond
            .send_response(head, ends && self.body.is_empty())
            .unwrap();
        if !self.body.is_empty() {
            stream.send_data(self.body.into(), ends).unwrap();
        }
        if !ends {
            stream.send_trailers(map(&self.trailers)).unwrap();
        }
    }
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

/// A call with status OK and `body`.
fn called(body: &[u8]) -> FakeResponse {
    FakeResponse {
        status: 200,
        fields: vec![GRPC],
        body: body.to_vec(),
        trailers: vec![("grpc-status", "0")],
    }
}

/// A call that failed, as a head alone.
fn failed(status: &'static str) -> FakeResponse {
    FakeResponse {
        status: 200,
        fields: vec![GRPC, ("grpc-status", status)],
        ..FakeResponse::default()
    }
}

fn grpc(service: &str) -> CheckKind {
    CheckKind::Grpc {
        service: service.to_owned(),
        host: None,
    }
}

fn http(body: Option<&str>) -> CheckKind {
    CheckKind::Http(Box::new(HttpCheckConfig {
        path: "/healthz?full=1".into(),
        body: body.map(|text| ExpectedText::Bytes(text.as_bytes().to_vec())),
        ..HttpCheckConfig::default()
    }))
}

async fn probe_within(
    address: &BackendAddress,
    kind: CheckKind,
    timeout: Duration,
) -> Result<(), String> {
    let check = HealthCheckConfig {
        kind,
        timeout,
        ..HealthCheckConfig::default()
    };
    let config = PoolConfig {
        backends: vec![BackendConfig::at(address.clone())],
        protocol: BackendProtocol::H2c,
        ..PoolConfig::named("app")
    };
    let pool = pool::Pool::new(&config, None, clock::now());
    let outcome = run(&check, &pool.config, &pool.backends[0]).await;
    outcome.result.map_err(|error| error.to_string())
}

async fn probe(address: &BackendAddress, kind: CheckKind) -> Result<(), String> {
    probe_within(address, kind, Duration::from_secs(20)).await
}

/// The result of a check of `kind` that gets `response`.
async fn result_of(kind: CheckKind, response: FakeResponse) -> Result<(), String> {
    let server = served(async |_, respond| response.send(respond)).await;
    probe(&server, kind).await
}

/// A message that says SERVING, behind its prefix.
const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];

/// Checks cases of a service, the response and the expected cause; empty is good.
async fn check_grpc(cases: &[(&str, FakeResponse, &str)]) {
    for (service, response, cause) in cases {
        let result = result_of(grpc(service), response.clone()).await;
        assert_eq!(result.err().as_deref().unwrap_or_default(), *cause);
    }
}

#[tokio::test]
async fn a_grpc_check_is_good_when_the_service_says_serving_and_names_the_cause_when_not() {
    let says = |status| called(&[0, 0, 0, 0, 2, 8, status]);
    let failed_late = FakeResponse {
        trailers: vec![("grpc-status", "14"), ("grpc-message", "no")],
        ..called(&SERVING)
    };
    let unknown = "the backend does not know the service `a.B` (NOT_FOUND)";
    let none = "the backend does not know its health as a whole (NOT_FOUND)";
    let unnamed = "the backend says serving status 9, which has no name";
    let unimplemented = "the backend has no health service (UNIMPLEMENTED)";
    check_grpc(&[
        ("", called(&SERVING), ""),
        ("a.B", called(&SERVING), ""),
        ("", says(2), "the backend says NOT_SERVING"),
        ("", says(0), "the backend says UNKNOWN"),
        ("", called(&[0; 5]), "the backend says UNKNOWN"),
        ("a.B", says(3), "the backend says SERVICE_UNKNOWN"),
        ("", says(9), unnamed),
        ("a.B", failed("5"), unknown),
        ("", failed("5"), none),
        ("", failed("12"), unimplemented),
        ("", failed("4"), "grpc-status 4 DEADLINE_EXCEEDED"),
        ("", failed("16"), "grpc-status 16 UNAUTHENTICATED"),
        ("", failed("17"), "grpc-status 17, which has no name"),
        ("", failed("-1"), "grpc-status is not a number"),
        ("", failed(""), "grpc-status is not a number"),
        ("", failed_late, "grpc-status 14 UNAVAILABLE"),
    ])
    .await;
}

#[tokio::test]
async fn a_grpc_check_accepts_only_the_whole_response_of_a_call() {
    let of_type = |kind| FakeResponse {
        fields: vec![("content-type", kind)],
        ..called(&SERVING)
    };
    let unavailable = FakeResponse {
        status: 503,
        ..called(&SERVING)
    };
    let without_status = FakeResponse {
        trailers: vec![("x", "y")],
        ..called(&SERVING)
    };
    let without_trailers = FakeResponse {
        fields: vec![GRPC, ("grpc-status", "0")],
        trailers: Vec::new(),
        ..called(&SERVING)
    };
    let not_grpc = "answer is not gRPC, by its content-type";
    let message = |cause| format!("answer is not a HealthCheckResponse: {cause}");
    check_grpc(&[
        ("", of_type("application/grpc+proto"), ""),
        ("", of_type("text/html"), not_grpc),
        ("", of_type("application/grpc-web"), not_grpc),
        ("", of_type(""), not_grpc),
        ("", unavailable, "status 503, expected 200"),
        ("", without_status, "answer has no grpc-status"),
        ("", without_trailers, "answer ends without a grpc-status"),
        ("", failed("0"), &message("there is none")),
        ("", called(&[1, 0, 0, 0, 2, 8, 1]), &message("compressed")),
        ("", called(&SERVING[..6]), &message("truncated")),
        ("", called(&SERVING.repeat(2)), &message("more than one")),
        ("", called(b"<html>"), &message("the prefix is damaged")),
        ("", called(&[0, 0, 1, 0, 0, 8, 1]), &message("too long")),
        ("", called(&[0; 600]), "answer is too long"),
        ("", called(&vec![0; 60_000]), "answer is too long"),
    ])
    .await;
}

#[tokio::test]
async fn a_grpc_check_calls_the_health_service_as_configured() {
    let server = served(async |request, respond| {
        let (head, mut body) = request.into_parts();
        assert_eq!(head.method, "POST");
        assert_eq!(head.uri.scheme_str(), Some("http"));
        assert_eq!(head.uri.path(), "/grpc.health.v1.Health/Check");
        let expected = [
            GRPC,
            ("te", "trailers"),
            ("grpc-timeout", "20000m"),
            ("user-agent", "balancer-check"),
        ];
        assert_eq!(head.headers, map(&expected));
        let mut message = Vec::new();
        while let Some(data) = body.data().await {
            message.extend(data.unwrap());
        }
        assert_eq!(message, *b"\0\0\0\0\x10\x0a\x0eshop.v1.Orders");
        let mut response = called(&[0, 0, 0, 0, 2, 8, 2]);
        if head.uri.authority().unwrap().as_str() == "orders.test" {
            response = called(&[0, 0, 0, 0, 2, 8, 1]);
        }
        response.send(respond);
    })
    .await;
    let kind = CheckKind::Grpc {
        service: "shop.v1.Orders".into(),
        host: Some("orders.test".into()),
    };
    assert_eq!(probe(&server, kind).await, Ok(()));
}

#[tokio::test]
async fn an_http_check_is_the_same_over_http2_as_over_http1() {
    let page = |status: u16, body: &str| FakeResponse {
        status,
        body: body.into(),
        ..FakeResponse::default()
    };
    let late = "x".repeat(http::MAX_SEARCHED_BYTES - 2) + "hello";
    let cases = [
        (page(200, ""), None, ""),
        (page(204, ""), None, ""),
        (page(302, "hello"), None, ""),
        (page(404, "hello"), None, "status 404, expected 200-399"),
        (page(503, ""), Some("hello"), "status 503, expected 200-399"),
        (page(200, "say hello now"), Some("hello"), ""),
        (
            page(200, ""),
            Some("hello"),
            "body does not contain `hello`",
        ),
        (
            page(200, "good"),
            Some("hello"),
            "body does not contain `hello`",
        ),
        (page(200, &late[3..]), Some("hello"), ""),
        (
            page(200, &late),
            Some("hello"),
            "body does not contain `hello`",
        ),
        (
            page(200, &"x".repeat(1 << 20)),
            Some("hello"),
            "body does not contain `hello`",
        ),
        (page(200, &"x".repeat(1 << 20)), None, ""),
    ];
    for (response, text, cause) in cases {
        let server = served(async |request, respond| {
            assert_eq!(request.method(), "GET");
            assert_eq!(request.uri().path(), "/healthz");
            assert_eq!(request.uri().query(), Some("full=1"));
            assert_eq!(*request.headers(), map(&[("user-agent", "balancer-check")]));
            assert!(request.body().is_end_stream());
            response.send(respond);
        })
        .await;
        let result = probe(&server, http(text)).await;
        assert_eq!(result.err().as_deref().unwrap_or_default(), cause);
    }
}

#[tokio::test]
async fn the_authority_is_the_address_unless_configured() {
    let server = served(async |request, respond| {
        let body = request.uri().authority().unwrap().to_string().into();
        let status = 200;
        FakeResponse {
            status,
            body,
            ..FakeResponse::default()
        }
        .send(respond);
    })
    .await;
    let own = http(Some(&server.to_string()));
    assert_eq!(probe(&server, own).await, Ok(()));
}
