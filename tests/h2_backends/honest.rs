//! Backends that do in good faith what looks like a flood: they keep their connection, and a flood beside it does not.

use bytes::Bytes;
use hyper::http::Method;

use super::front;
use crate::support::{
    frames::{DATA, END_STREAM, PING, RawBackend, SETTINGS, WINDOW_UPDATE, frame},
    h2::{connect, patiently, request, send, whole},
    peer::Peer,
};

const UPLOAD: usize = 3_000_000;
/// Uploads at a time.
const CALLS: usize = 4;

/// A backend that gives windows back in such steps, on the connection and on the stream, and answers at the end.
fn stepping(step: u32) -> Peer {
    Peer::start(move |connection| {
        let Some(mut backend) = RawBackend::greet(connection) else {
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
        for _ in 0..CALLS {
            let mut sender = sender.clone();
            all.spawn(async move {
                let asked = request(Method::POST, "/", &[]);
                let (response, mut body) = sender.send_request(asked, false).unwrap();
                let bytes = Bytes::from(vec![0; UPLOAD]);
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
    let backend = Peer::start(|connection| {
        let Some(mut backend) = RawBackend::greet(connection) else {
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
        let answer = crate::support::h2::get(&sender, "/").await.unwrap();
        assert_eq!((answer.status(), answer.body.len()), (200, 100));
    }
    assert_eq!(backend.connections(), 1);
}
