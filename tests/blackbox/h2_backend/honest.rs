//! Correct backends whose traffic resembles a flood keep their connection; a flood beside it does
//! not.

use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};
use hyper::http::Method;

use super::front;
use crate::harness::{
    frames::{DATA, END_STREAM, PING, RawH2Backend, SETTINGS, WINDOW_UPDATE, frame},
    h2::{RequestSender, connect, patiently, request, send, until, whole},
    peer::{Recorder, ScriptedPeer},
};

const UPLOAD_BYTES: usize = 3_000_000;
/// Uploads at a time.
const CALL_COUNT: usize = 4;

/// A backend that gives windows back in such steps, on the connection and on the stream, and
/// answers at the end.
fn stepping(step: u32) -> ScriptedPeer {
    ScriptedPeer::start(move |connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        while let Some(part) = backend.until(|frame| frame.kind == DATA) {
            let mut left = part.payload.len() as u32;
            let mut updates = Vec::new();
            while left > 0 {
                let more = step.min(left);
                left -= more;
                for stream in [part.stream, 0] {
                    updates.extend(frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes()));
                }
            }
            backend.send(updates);
            if part.flags & END_STREAM > 0 {
                backend.answer(part.stream, "all");
            }
        }
    })
}

#[tokio::test]
async fn a_backend_may_give_windows_back_in_any_steps() {
    for step in [50, 1_000, 4_096] {
        let backend = stepping(step);
        let daemon = front(backend.address, "retries: none");
        let (sender, _driver) = connect(daemon.address("@web")).await;
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..CALL_COUNT {
            let mut sender = sender.clone();
            all.spawn(async move {
                let asked = request(Method::POST, "/", &[]);
                let (response, mut body) = sender.send_request(asked, false).unwrap();
                let bytes = Bytes::from(vec![0; UPLOAD_BYTES]);
                let (answer, ()) = tokio::join!(whole(response), send(&mut body, bytes));
                assert_eq!(answer.unwrap().body, b"all");
            });
        }
        while let Some(done) = patiently(all.join_next()).await {
            done.unwrap();
        }
        assert_eq!(backend.connections(), 1, "steps of {step}");
    }
}

#[tokio::test]
async fn a_backend_may_ping_and_change_its_settings_for_every_response() {
    let backend = ScriptedPeer::start(|connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        while let Some(stream) = backend.asked() {
            backend.send(frame(PING, 0, 0, b"estimate"));
            backend.send(frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]));
            backend.head(stream, &[(":status", "200")], false);
            for _ in 0..20 {
                backend.send(frame(DATA, 0, stream, &[]));
                backend.send(frame(DATA, 0, stream, b"part "));
            }
            backend.send(frame(DATA, END_STREAM, stream, &[]));
        }
    });
    let daemon = front(backend.address, "retries: none");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    for _ in 0..500 {
        let answer = crate::harness::h2::get(&sender, "/").await.unwrap();
        assert_eq!((answer.status(), answer.body.len()), (200, 100));
    }
    assert_eq!(backend.connections(), 1);
}

/// A backend that answers uploads, but does not read those streams of its first connection.
fn choosy(unread: &'static [u32], stuck: &Recorder<u32>) -> ScriptedPeer {
    let stuck = stuck.clone();
    ScriptedPeer::start(move |connection| {
        let is_first = connection.number() == 0;
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        while let Some(got) = backend.until(|frame| frame.kind == DATA) {
            if is_first && unread.contains(&got.stream) {
                stuck.push(got.payload.len() as u32);
                continue;
            }
            for stream in [got.stream, 0] {
                let more = (got.payload.len() as u32).to_be_bytes();
                if !got.payload.is_empty() {
                    backend.send(frame(WINDOW_UPDATE, 0, stream, &more));
                }
            }
            if got.flags & END_STREAM > 0 {
                backend.answer(got.stream, "all");
            }
        }
    })
}

/// Begins an upload; gives where its body goes and its response.
fn begin(sender: &mut RequestSender) -> (SendStream<Bytes>, ResponseFuture) {
    let asked = request(Method::POST, "/", &[]);
    let (response, body) = sender.send_request(asked, false).unwrap();
    (body, response)
}

#[tokio::test]
async fn an_upload_that_a_backend_does_not_read_leaves_window_for_others_on_its_connection() {
    let stuck = Recorder::default();
    let backend = choosy(&[5, 7, 9], &stuck);
    let daemon = front(backend.address, "retries: none");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    // From now on there is a connection, and requests come in their order.
    let (mut body, response) = begin(&mut sender);
    send(&mut body, "x".into()).await;
    whole(response).await.unwrap();
    let (mut body, response) = begin(&mut sender);
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let (mut body, response) = begin(&mut sender);
        stalled.push(response);
        drop(tokio::spawn(async move {
            send(&mut body, vec![0; 1_000_000].into()).await;
        }));
    }
    until(|| stuck.all().iter().sum::<u32>() > 50_000).await;
    let bytes = vec![0; 200_000].into();
    let (answer, ()) = tokio::join!(whole(response), send(&mut body, bytes));
    assert_eq!(answer.unwrap().body, b"all");
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_backend_connection_that_is_held_up_by_an_upload_gets_no_further_requests() {
    let stuck = Recorder::default();
    let backend = choosy(&[1], &stuck);
    let daemon = front(backend.address, "retries: none");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let (mut body, _response) = begin(&mut sender);
    drop(tokio::spawn(async move {
        send(&mut body, vec![0; 1_000_000].into()).await;
    }));
    until(|| stuck.all().iter().sum::<u32>() == 65_535).await;
    let since = balancer::base::clock::now();
    until(|| since.elapsed().as_millis() > 150).await;
    for _ in 0..3 {
        let (mut body, response) = begin(&mut sender);
        let bytes = vec![0; 200_000].into();
        let (answer, ()) = tokio::join!(whole(response), send(&mut body, bytes));
        assert_eq!(answer.unwrap().body, b"all");
    }
    assert_eq!(backend.connections(), 2);
}
