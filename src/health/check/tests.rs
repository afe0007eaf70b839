//! Checks over HTTP/2 against scripted servers on 127.0.0.1. Those of the h2 crate behave; in `frames.rs` they do not.

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
    config::model::{Backend, BackendProtocol},
    pool,
};

/// A server for one connection, and what becomes of its script.
struct Server<T> {
    address: BackendAddress,
    script: JoinHandle<T>,
}

/// Runs `script` on the first connection.
async fn raw<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    script: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> Server<T> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = BackendAddress::Ip(listener.local_addr().unwrap());
    let script = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        script(socket).await
    });
    Server { address, script }
}

/// Runs `script` on the first request.
async fn served<F: Future<Output = ()> + Send + 'static>(
    script: impl FnOnce(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + 'static,
) -> BackendAddress {
    let server = raw(async |socket| {
        let mut connection = h2::server::handshake(socket).await.unwrap();
        let (request, respond) = connection.accept().await.unwrap().unwrap();
        tokio::spawn(script(request, respond));
        // To the end of the connection.
        connection.accept().await.is_none()
    });
    server.await.address
}

/// What a server answers.
#[derive(Clone, Default)]
struct Answer {
    status: u16,
    fields: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    /// Without them the response ends with its body, or with its head if that is empty.
    trailers: Vec<(&'static str, &'static str)>,
}

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), value.parse().unwrap())
    };
    fields.iter().map(pair).collect()
}

impl Answer {
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

/// A call that came to its end, with `body`.
fn called(body: &[u8]) -> Answer {
    Answer {
        status: 200,
        fields: vec![GRPC],
        body: body.to_vec(),
        trailers: vec![("grpc-status", "0")],
    }
}

/// A call that failed, in a head alone.
fn failed(status: &'static str) -> Answer {
    Answer {
        status: 200,
        fields: vec![GRPC, ("grpc-status", status)],
        ..Answer::default()
    }
}

fn grpc(service: &str) -> CheckKind {
    CheckKind::Grpc {
        service: service.to_owned(),
        host: None,
    }
}

fn http(body: Option<&str>) -> CheckKind {
    CheckKind::Http {
        path: "/healthz?full=1".into(),
        method: "GET".into(),
        host: None,
        expect: vec![(200, 399)],
        body: body.map(str::to_owned),
    }
}

async fn probe_within(
    address: &BackendAddress,
    kind: CheckKind,
    timeout: Duration,
) -> Result<(), String> {
    let check = HealthCheck {
        kind,
        timeout,
        ..HealthCheck::default()
    };
    let config = Pool {
        backends: vec![Backend::at(address.clone())],
        protocol: BackendProtocol::H2c,
        ..Pool::named("app")
    };
    let pool = pool::Pool::new(&config, None, clock::now());
    run(&pool.backends[0].state, &check, &pool.config).await
}

async fn probe(address: &BackendAddress, kind: CheckKind) -> Result<(), String> {
    probe_within(address, kind, Duration::from_secs(20)).await
}

/// What a check of `kind` makes of `answer`.
async fn verdict(kind: CheckKind, answer: Answer) -> Result<(), String> {
    let server = served(async |_, respond| answer.send(respond)).await;
    probe(&server, kind).await
}

#[tokio::test]
async fn a_grpc_check_is_good_when_the_service_says_serving_and_names_the_cause_when_not() {
    let serving = [0, 0, 0, 0, 2, 8, 1];
    let status = |status| [0, 0, 0, 0, 2, 8, status];
    let not_grpc = Answer {
        fields: vec![("content-type", "text/html")],
        ..called(&serving)
    };
    let web = Answer {
        fields: vec![("content-type", "application/grpc-web")],
        ..called(&serving)
    };
    let with_suffix = Answer {
        fields: vec![("content-type", "application/grpc+proto")],
        ..called(&serving)
    };
    let unavailable = Answer {
        status: 503,
        ..called(&serving)
    };
    let failed_late = Answer {
        trailers: vec![("grpc-status", "14"), ("grpc-message", "no\u{9}")],
        ..called(&serving)
    };
    let without_status = Answer {
        trailers: vec![("x", "y")],
        ..called(&serving)
    };
    let without_trailers = Answer {
        fields: vec![GRPC, ("grpc-status", "0")],
        trailers: Vec::new(),
        ..called(&serving)
    };
    let rows = [
        ("", called(&serving), ""),
        ("a.B", called(&serving), ""),
        ("", with_suffix, ""),
        ("", called(&status(2)), "the backend says NOT_SERVING"),
        ("", called(&status(0)), "the backend says UNKNOWN"),
        ("", called(&[0; 5]), "the backend says UNKNOWN"),
        (
            "a.B",
            called(&status(3)),
            "the backend says SERVICE_UNKNOWN",
        ),
        (
            "",
            called(&status(9)),
            "the backend says serving status 9, which has no name",
        ),
        (
            "a.B",
            failed("5"),
            "the backend does not know the service `a.B` (NOT_FOUND)",
        ),
        (
            "",
            failed("5"),
            "the backend does not know its health as a whole (NOT_FOUND)",
        ),
        (
            "",
            failed("12"),
            "the backend has no health service (UNIMPLEMENTED)",
        ),
        ("", failed("4"), "grpc-status 4 DEADLINE_EXCEEDED"),
        ("", failed("16"), "grpc-status 16 UNAUTHENTICATED"),
        ("", failed("17"), "grpc-status 17 which has no name"),
        ("", failed("-1"), "grpc-status is not a number"),
        ("", failed(""), "grpc-status is not a number"),
        (
            "",
            failed("0"),
            "answer is not a HealthCheckResponse: there is none",
        ),
        ("", failed_late, "grpc-status 14 UNAVAILABLE"),
        ("", without_status, "answer has no grpc-status"),
        ("", without_trailers, "answer ends without a grpc-status"),
        ("", unavailable, "status 503, expected 200"),
        ("", not_grpc, "answer is not gRPC, by its content-type"),
        ("", web, "answer is not gRPC, by its content-type"),
        (
            "",
            called(&[1, 0, 0, 0, 2, 8, 1]),
            "answer is not a HealthCheckResponse: compressed",
        ),
        (
            "",
            called(&serving[..6]),
            "answer is not a HealthCheckResponse: truncated",
        ),
        (
            "",
            called(&serving.repeat(2)),
            "answer is not a HealthCheckResponse: more than one",
        ),
        (
            "",
            called(b"<html>"),
            "answer is not a HealthCheckResponse: the prefix is damaged",
        ),
        (
            "",
            called(&[0, 0, 1, 0, 0, 8, 1]),
            "answer is not a HealthCheckResponse: too long",
        ),
        ("", called(&[0; 600]), "answer is too long"),
        ("", called(&[0; 60_000]), "answer is too long"),
    ];
    for (service, answer, cause) in rows {
        let result = verdict(grpc(service), answer).await;
        assert_eq!(result.err().as_deref().unwrap_or_default(), cause);
    }
}

#[tokio::test]
async fn a_grpc_check_calls_the_health_service_as_its_definition_says() {
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
        let mut answer = called(&[0, 0, 0, 0, 2, 8, 2]);
        if head.uri.authority().unwrap().as_str() == "orders.test" {
            answer = called(&[0, 0, 0, 0, 2, 8, 1]);
        }
        answer.send(respond);
    })
    .await;
    let kind = CheckKind::Grpc {
        service: "shop.v1.Orders".into(),
        host: Some("orders.test".into()),
    };
    assert_eq!(probe(&server, kind).await, Ok(()));
}

#[tokio::test]
async fn an_http_check_over_http2_asks_and_judges_as_over_http1() {
    let page = |status: u16, body: &str| Answer {
        status,
        body: body.into(),
        ..Answer::default()
    };
    let late = "x".repeat(http::BODY_SEARCHED - 2) + "hello";
    let rows = [
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
    for (answer, text, cause) in rows {
        let server = served(async |request, respond| {
            assert_eq!(request.method(), "GET");
            assert_eq!(request.uri().path(), "/healthz");
            assert_eq!(request.uri().query(), Some("full=1"));
            assert_eq!(*request.headers(), map(&[("user-agent", "balancer-check")]));
            assert!(request.body().is_end_stream());
            answer.send(respond);
        })
        .await;
        let result = probe(&server, http(text)).await;
        assert_eq!(result.err().as_deref().unwrap_or_default(), cause);
    }
}

#[tokio::test]
async fn the_authority_is_the_address_unless_the_file_says_another() {
    let server = served(async |request, respond| {
        let body = request.uri().authority().unwrap().to_string().into();
        let status = 200;
        Answer {
            status,
            body,
            ..Answer::default()
        }
        .send(respond);
    })
    .await;
    let own = http(Some(&server.to_string()));
    assert_eq!(probe(&server, own).await, Ok(()));
}
