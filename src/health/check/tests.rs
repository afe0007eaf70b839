//! Checks over HTTP/2 against scripted servers on 127.0.0.1: those of the h2 crate behave, others write frames by hand.

use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use hyper::{HeaderMap, Request, Response, header::HeaderName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
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

const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// `:status: 200`, `:status: 103`, `a: ` and a name, of RFC 7541.
const OK: &[u8] = &[0x88];
const HINTS: &[u8] = b"\x08\x03103";
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags, 0, 0, 0, stream]);
    bytes.extend(payload);
    bytes
}

/// Says hello, then `first` once and `more` for ever, until nobody takes it; gives how much was taken.
async fn flood(first: Vec<u8>, more: Vec<u8>) -> Server<usize> {
    raw(async move |mut socket| {
        // The request, so that there is a stream.
        socket.read_exact(&mut [0; 100]).await.unwrap();
        let _ = socket.write_all(&[SETTINGS, &first].concat()).await;
        let mut taken = 0;
        if !more.is_empty() {
            while socket.write_all(&more).await.is_ok() {
                taken += more.len();
            }
        }
        // Until the other side gives up.
        let _ = socket.read_to_end(&mut Vec::new()).await;
        taken
    })
    .await
}

/// What a grpc and an http check make of it.
async fn verdicts(first: &[u8], more: &[u8]) -> [String; 2] {
    let mut causes = [String::new(), String::new()];
    for (cause, kind) in causes.iter_mut().zip([grpc(""), http(Some("hello"))]) {
        let server = flood(first.to_vec(), more.to_vec()).await;
        *cause = probe(&server.address, kind).await.unwrap_err();
        let taken = server.script.await.unwrap();
        // The rest is in buffers of the kernel.
        assert!(taken < 16 << 20, "{taken}");
    }
    causes
}

#[tokio::test]
async fn what_backends_send_without_end_is_not_kept() {
    let hints = frame(1, END_HEADERS, 1, HINTS);
    let heads = verdicts(&[], &hints).await;
    assert_eq!(heads, ["too many 1xx responses"; 2]);
    // One head in ever more frames.
    let more = frame(9, 0, 1, &b"\0\x01a\x01b".repeat(100));
    let endless = verdicts(&frame(1, 0, 1, OK), &more).await;
    assert!(
        endless[0].starts_with("answer is not valid HTTP/2"),
        "{endless:?}"
    );
    // A head that is larger than we take.
    let large = [OK.to_vec(), b"\0\x01a\x01b".repeat(1000)].concat();
    let large = verdicts(&frame(1, END_HEADERS, 1, &large), &[]).await;
    assert!(
        large[0].starts_with("answer is not valid HTTP/2"),
        "{large:?}"
    );
    // Frames that mean nothing, and pings.
    let grease = verdicts(&[], &frame(0x5a, 0, 0, &[0; 1000])).await;
    assert_eq!(grease, ["answer is too long"; 2]);
    let pings = verdicts(&[], &frame(6, 0, 0, &[0; 8])).await;
    assert_eq!(pings, ["answer is too long"; 2]);
    // A body in frames without a byte.
    let head = frame(1, END_HEADERS, 1, OK);
    let [_, empty] = verdicts(&head, &frame(0, 0, 1, &[])).await;
    assert!(empty.starts_with("answer is not valid HTTP/2"), "{empty}");
}

#[tokio::test]
async fn a_few_interim_responses_are_passed_over() {
    let mut answer = frame(1, END_HEADERS, 1, HINTS).repeat(16);
    answer.extend(frame(1, END_HEADERS, 1, OK));
    answer.extend(frame(0, END_STREAM, 1, b"hello"));
    let server = flood(answer, Vec::new()).await;
    assert_eq!(probe(&server.address, http(Some("hello"))).await, Ok(()));
}

#[tokio::test]
async fn what_is_no_answer_is_named() {
    let both = |cause: &str| [cause.to_owned(), cause.to_owned()];
    let old = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    let speaks = |bytes: &'static [u8]| async move {
        raw(async move |mut socket: TcpStream| {
            socket.read_exact(&mut [0; 100]).await.unwrap();
            socket.write_all(bytes).await.unwrap();
            socket.shutdown().await.unwrap();
            let _ = socket.read_to_end(&mut Vec::new()).await;
        })
        .await
        .address
    };
    let rows: [(&'static [u8], &str); 3] = [
        (old, "the backend speaks HTTP/1, not HTTP/2"),
        (
            b"220 mail ESMTP ready for you\r\n",
            "answer is not valid HTTP/2 (FRAME_SIZE_ERROR)",
        ),
        (b"", "connection closed before the whole answer"),
    ];
    for (bytes, cause) in rows {
        assert_eq!(
            probe(&speaks(bytes).await, grpc("")).await.unwrap_err(),
            cause
        );
        assert_eq!(
            probe(&speaks(bytes).await, http(None)).await.unwrap_err(),
            cause
        );
    }
    let reset = verdicts(&frame(3, 0, 1, &[0, 0, 0, 7]), &[]).await;
    assert_eq!(
        reset,
        both("the backend refused the request (RST_STREAM REFUSED_STREAM)")
    );
    let away = |code: u8| frame(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, code]);
    for (code, name) in [(0, "NO_ERROR"), (11, "ENHANCE_YOUR_CALM")] {
        let ended = verdicts(&away(code), &[]).await;
        assert_eq!(
            ended,
            both(&format!("the backend ended the connection (GOAWAY {name})"))
        );
    }
    // An interim response that is the last one, and trailers before the head.
    let last = verdicts(&frame(1, END_HEADERS | END_STREAM, 1, HINTS), &[]).await;
    assert!(
        last[0].starts_with("answer is not valid HTTP/2"),
        "{last:?}"
    );
    let data = verdicts(&frame(0, END_STREAM, 1, b"hello"), &[]).await;
    assert!(
        data[0].starts_with("answer is not valid HTTP/2"),
        "{data:?}"
    );
}

#[tokio::test]
async fn a_connection_is_ended_in_order_when_the_answer_is_there() {
    let mut answer = [SETTINGS, &frame(4, 1, 0, &[])].concat();
    answer.extend(frame(1, END_HEADERS, 1, OK));
    answer.extend(frame(0, END_STREAM, 1, b"hello"));
    for text in ["hello", "good"] {
        let answer = answer.clone();
        let server = raw(async move |mut socket: TcpStream| {
            socket.read_exact(&mut [0; 100]).await.unwrap();
            socket.write_all(&answer).await.unwrap();
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).await.map(|_| rest)
        })
        .await;
        let result = probe(&server.address, http(Some(text))).await;
        assert_eq!(result.is_ok(), text == "hello");
        let rest = server.script.await.unwrap().unwrap();
        let goodbye = frame(7, 0, 0, &[0; 8]);
        assert!(rest.ends_with(&goodbye), "{rest:?}");
    }
}

#[tokio::test]
async fn a_server_that_goes_away_after_its_answer_has_answered() {
    let mut answer = frame(1, END_HEADERS, 1, OK);
    answer.extend(frame(0, END_STREAM, 1, b"hello"));
    answer.extend(frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]));
    let server = raw(async move |mut socket: TcpStream| {
        socket.read_exact(&mut [0; 100]).await.unwrap();
        socket
            .write_all(&[SETTINGS, &answer].concat())
            .await
            .unwrap();
    })
    .await;
    assert_eq!(probe(&server.address, http(Some("hello"))).await, Ok(()));
}

#[tokio::test]
async fn silence_lasts_until_the_deadline_wherever_it_begins() {
    let short = Duration::from_millis(50);
    let starts: [Vec<u8>; 3] = [
        Vec::new(),
        frame(1, END_HEADERS, 1, HINTS),
        frame(1, END_HEADERS, 1, b"\x88\x5f\x10application/grpc"),
    ];
    for start in starts {
        for kind in [grpc(""), http(Some("hello"))] {
            let server = flood(start.clone(), Vec::new()).await;
            let result = probe_within(&server.address, kind, short).await;
            assert_eq!(result.unwrap_err(), "no answer within 50ms");
            server.script.await.unwrap();
        }
    }
}
