//! gRPC with HTTP/2 on both sides: all four kinds of calls, statuses, deadlines.

use std::time::Duration;

use bytes::Bytes;
use hyper::http::{HeaderMap, Method, Response};

use crate::h2_backend::{config, front};
use crate::harness::{
    daemon::TestDaemon,
    frames::RawH2Backend,
    h2::{H2Backend, ReceivedRequest, connect, get, patiently, request, until, whole},
    peer::{Gate, Recorder, ScriptedPeer},
};

const GRPC_FIELDS: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

/// A message with its prefix.
fn message(text: &str) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes.into()
}

/// Answers each message as it comes, and the end with a status.
async fn echo(mut asked: ReceivedRequest) {
    assert_eq!(asked.head.headers["te"], "trailers");
    let response = Response::builder().header("content-type", "application/grpc");
    let mut stream = asked
        .respond
        .send_response(response.body(()).unwrap(), false)
        .unwrap();
    while let Some(data) = asked.body.data().await {
        let Ok(data) = data else { return };
        asked
            .body
            .flow_control()
            .release_capacity(data.len())
            .unwrap();
        stream.send_data(data, false).unwrap();
    }
    let mut status = HeaderMap::new();
    status.insert("grpc-status", "0".parse().unwrap());
    stream.send_trailers(status).unwrap();
}

#[tokio::test]
async fn messages_of_a_stream_go_both_ways_one_by_one() {
    let backend = H2Backend::start(echo).await;
    let daemon = front(backend.address, "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let (response, mut body) = sender
        .send_request(request(Method::POST, "/a.B/Chat", &GRPC_FIELDS), false)
        .unwrap();
    // The head comes before the first message is sent, and each response before the next one.
    let mut answer = patiently(response).await.unwrap().into_body();
    for number in 0..100 {
        let sent = message(&format!("message {number}"));
        body.send_data(sent.clone(), false).unwrap();
        let mut back = Vec::new();
        while back.len() < sent.len() {
            let data = patiently(answer.data()).await.unwrap().unwrap();
            answer.flow_control().release_capacity(data.len()).unwrap();
            back.extend_from_slice(&data);
        }
        assert_eq!(back, sent);
    }
    body.send_data(Bytes::new(), true).unwrap();
    assert!(patiently(answer.data()).await.is_none());
    let trailers = patiently(answer.trailers()).await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test]
async fn an_error_without_messages_is_passed_on() {
    let backend = H2Backend::start(async |asked: ReceivedRequest| {
        let fields = [
            ("content-type", "application/grpc"),
            ("grpc-status", "5"),
            ("grpc-message", "none%20such"),
        ];
        asked.answer(&fields, Bytes::new());
    })
    .await;
    let daemon = front(backend.address, "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let (response, mut body) = sender
        .send_request(request(Method::POST, "/a.B/C", &GRPC_FIELDS), false)
        .unwrap();
    body.send_data(message(""), true).unwrap();
    let answer = whole(response).await.unwrap();
    assert_eq!(answer.header("grpc-status"), Some("5"));
    assert_eq!(answer.header("grpc-message"), Some("none%20such"));
}

#[tokio::test]
async fn the_deadline_of_a_call_reaches_the_backend_and_ends_the_stream() {
    let ended = Recorder::default();
    let noted = ended.clone();
    let backend = H2Backend::start(move |mut asked: ReceivedRequest| {
        let noted = noted.clone();
        async move {
            let timeout = asked.head.headers["grpc-timeout"].clone();
            let reset = std::future::poll_fn(|cx| asked.respond.poll_reset(cx)).await;
            noted.push((timeout, reset.unwrap()));
        }
    })
    .await;
    let daemon = front(backend.address, "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let mut asked = request(Method::POST, "/a.B/C", &GRPC_FIELDS);
    let timeout = "150m".parse().unwrap();
    asked.headers_mut().insert("grpc-timeout", timeout);
    let (response, mut body) = sender.send_request(asked, false).unwrap();
    body.send_data(message("x"), true).unwrap();
    let answer = whole(response).await.unwrap();
    assert_eq!(answer.header("grpc-status"), Some("4"));
    until(|| ended.all().len() == 1).await;
    assert_eq!(
        ended.all()[0],
        ("150m".parse().unwrap(), h2::Reason::CANCEL)
    );
}

#[tokio::test]
async fn the_time_that_a_client_gives_its_call_is_not_that_of_others() {
    let gate = Gate::new();
    let opened = gate.clone();
    let backend = ScriptedPeer::start(move |connection| {
        opened.wait();
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        while let Some(stream) = backend.asked() {
            backend.answer(stream, "well");
        }
    });
    let daemon = front(backend.address, "retries: none, timeouts: {connect: 20s}");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let fields = [GRPC_FIELDS[0], GRPC_FIELDS[1], ("grpc-timeout", "200m")];
    let (call, _) = sender
        .send_request(request(Method::POST, "/a.B/Call", &fields), true)
        .unwrap();
    // It waits for the same connection.
    let other = tokio::spawn(async move { get(&sender, "/").await.unwrap().body });
    assert_eq!(whole(call).await.unwrap().header("grpc-status"), Some("4"));
    gate.open();
    assert_eq!(patiently(other).await.unwrap(), b"well");
    assert_eq!(backend.connections(), 1);
    let failures = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
    assert_eq!(failures, 0.0);
}

#[tokio::test]
async fn calls_get_another_connection_when_one_has_fallen_silent() {
    let backend = ScriptedPeer::start(|connection| {
        let is_first = connection.number() == 0;
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        while let Some(stream) = backend.asked() {
            if !is_first {
                backend.answer(stream, "well");
            }
        }
    });
    let daemon = front(backend.address, "retries: none");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    // Each is given up long before the backend would be held to have not answered.
    let calls = async {
        loop {
            let fields = [GRPC_FIELDS[0], GRPC_FIELDS[1], ("grpc-timeout", "400m")];
            let mut sender = sender.clone().ready().await.unwrap();
            let (call, _) = sender
                .send_request(request(Method::POST, "/a.B/Call", &fields), true)
                .unwrap();
            if whole(call).await.unwrap().body == b"well" {
                break;
            }
        }
    };
    patiently(calls).await;
    assert_eq!(backend.connections(), 2);
}

/// Longer than the minimum rate of an upload is waited for, with a byte now and then.
async fn drip(body: &mut h2::SendStream<Bytes>) {
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        body.send_data(message("tick"), false).unwrap();
    }
}

/// Reads all messages and answers with their number; then one now and then; then the status.
async fn collect(mut asked: ReceivedRequest) {
    let mut length = 0;
    while let Some(Ok(data)) = asked.body.data().await {
        length += data.len();
        let taken = asked.body.flow_control().release_capacity(data.len());
        taken.unwrap();
    }
    let response = Response::builder().header("content-type", "application/grpc");
    let response = response.body(()).unwrap();
    let mut stream = asked.respond.send_response(response, false).unwrap();
    stream
        .send_data(message(&length.to_string()), false)
        .unwrap();
    drip(&mut stream).await;
    let mut status = HeaderMap::new();
    status.insert("grpc-status", "0".parse().unwrap());
    stream.send_trailers(status).unwrap();
}

#[tokio::test]
async fn calls_whose_messages_are_few_and_small_go_on() {
    for path in ["/a.B/Chat", "/a.B/Collect"] {
        let backend = H2Backend::start(|asked| async {
            if asked.path() == "/a.B/Chat" {
                echo(asked).await;
            } else {
                collect(asked).await;
            }
        })
        .await;
        let daemon = TestDaemon::start(
            &config(&[backend.address], "timeouts: {idle: 500ms}")
                .replace("pool: app}", "pool: app, timeouts: {body_idle: 200ms}}"),
        );
        let (mut sender, _driver) = connect(daemon.address("@web")).await;
        let asked = request(Method::POST, path, &GRPC_FIELDS);
        let (response, mut body) = sender.send_request(asked, false).unwrap();
        let sent = async {
            drip(&mut body).await;
            body.send_data(Bytes::new(), true).unwrap();
        };
        let (answer, ()) = tokio::join!(whole(response), sent);
        let trailers = answer.unwrap().trailers.unwrap();
        assert_eq!(trailers["grpc-status"], "0", "{path}");
    }
}

#[tokio::test]
async fn a_call_on_which_nothing_moves_ends_with_the_idle_time() {
    let backend = H2Backend::start(collect).await;
    let daemon = front(backend.address, "timeouts: {idle: 300ms}");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let asked = request(Method::POST, "/a.B/Collect", &GRPC_FIELDS);
    let (response, mut body) = sender.send_request(asked, false).unwrap();
    body.send_data(message("only one"), false).unwrap();
    let answer = whole(response).await.unwrap();
    assert_eq!(answer.header("grpc-status"), Some("14"));
    let logged = daemon.wait_for_access(|line| line["path"] == "/a.B/Collect");
    assert_eq!(logged["reason"], "http_request_timeout");
    assert_eq!(daemon.metric("balancer_backend_failures_total"), 0.0);
}

#[tokio::test]
async fn an_upload_that_is_no_call_keeps_its_minimum_rate() {
    let backend = H2Backend::start(collect).await;
    let daemon = TestDaemon::start(
        &config(&[backend.address], "")
            .replace("pool: app}", "pool: app, timeouts: {body_idle: 300ms}}"),
    );
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let asked = request(Method::POST, "/upload", &[]);
    let (response, mut body) = sender.send_request(asked, false).unwrap();
    let drips = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            // Fails once the daemon has given up.
            let _ = body.send_data(Bytes::from_static(b"x"), false);
        }
    };
    let (answer, ()) = tokio::join!(whole(response), drips);
    assert_eq!(answer.unwrap().status(), 408);
}
