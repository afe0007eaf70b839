//! gRPC from HTTP/2 clients to HTTP/1.1 backends: errors are statuses, the client's deadline
//! counts.

use bytes::Bytes;
use hyper::http::Method;

use crate::h2_client::front;
use crate::harness::{
    h2::{connect, request, whole},
    peer::{ScriptedPeer, refused},
};

const GRPC_FIELDS: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

#[tokio::test]
async fn a_call_that_reaches_no_backend_is_unavailable() {
    let daemon = front(refused(), "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let asked = request(Method::POST, "/a.B/C", &GRPC_FIELDS);
    let (response, mut body) = sender.send_request(asked, false).unwrap();
    body.send_data(Bytes::from_static(b"\0\0\0\0\0"), true)
        .unwrap();
    let answer = whole(response).await.unwrap();
    assert_eq!((answer.status(), answer.body.len()), (200, 0));
    assert_eq!(answer.header("grpc-status"), Some("14"));
    assert_eq!(answer.header("content-type"), Some("application/grpc"));
    assert!(answer.header("grpc-message").is_some());
    assert_eq!(
        answer.header("proxy-status"),
        Some("balancer; error=connection_refused")
    );
}

#[tokio::test]
async fn a_call_ends_with_the_deadline_of_its_client() {
    let backend = ScriptedPeer::silent();
    let daemon = front(backend.address, "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let mut asked = request(Method::POST, "/a.B/C", &GRPC_FIELDS);
    asked
        .headers_mut()
        .insert("grpc-timeout", "150m".parse().unwrap());
    let (response, mut body) = sender.send_request(asked, false).unwrap();
    body.send_data(Bytes::from_static(b"\0\0\0\0\0"), true)
        .unwrap();
    let answer = whole(response).await.unwrap();
    assert_eq!(answer.header("grpc-status"), Some("4"));
    let logged = daemon.wait_for_access(|line| line["path"] == "/a.B/C");
    assert_eq!(logged["reason"], "total_timeout");
}

#[tokio::test]
async fn the_status_of_a_call_comes_in_trailers() {
    let backend = ScriptedPeer::start(|mut connection| {
        connection.request().unwrap();
        connection.send("HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\0\0\0\0\0\r\n0\r\ngrpc-status: 0\r\n\r\n");
    });
    let daemon = front(backend.address, "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let asked = request(Method::POST, "/a.B/C", &GRPC_FIELDS);
    let (response, mut body) = sender.send_request(asked, false).unwrap();
    body.send_data(Bytes::from_static(b"\0\0\0\0\0"), true)
        .unwrap();
    let answer = whole(response).await.unwrap();
    assert_eq!(answer.body, b"\0\0\0\0\0");
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn a_call_that_is_being_answered_ends_with_its_deadline_and_not_with_a_reset() {
    let backend = ScriptedPeer::start(|mut connection| {
        connection.request().unwrap();
        connection.send("HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\0\0\0\0\0\r\n");
        connection.wait_for_end();
    });
    let daemon = front(backend.address, "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let mut asked = request(Method::POST, "/a.B/C", &GRPC_FIELDS);
    let timeout = "150m".parse().unwrap();
    asked.headers_mut().insert("grpc-timeout", timeout);
    let (response, mut body) = sender.send_request(asked, false).unwrap();
    body.send_data(Bytes::from_static(b"\0\0\0\0\0"), true)
        .unwrap();
    let answer = whole(response).await.unwrap();
    assert_eq!(answer.body, b"\0\0\0\0\0");
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "4");
    let logged = daemon.wait_for_access(|line| line["path"] == "/a.B/C");
    assert_eq!(logged["reason"], "total_timeout");
}
