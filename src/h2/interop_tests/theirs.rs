//! The other side of a stream: the h2 crate.

use std::{future::poll_fn, pin::Pin, rc::Rc, task::Poll};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client, server};
use hyper::http::{HeaderMap, Request, Response};
use tokio::{net::UnixStream, task::spawn_local};

use super::{BodyPlan, DirectionEnd, InteropRound, InteropSide, SidePacer, StreamOutcome, ours};

pub(super) type H2Sender = client::SendRequest<Bytes>;

/// More resets than a round has.
const MAX_RESETS: usize = 1_000;

pub(super) async fn connect(round: &Rc<InteropRound>, socket: UnixStream) -> H2Sender {
    let (sender, mut connection) = client::Builder::new()
        .initial_window_size(round.window.get())
        .initial_connection_window_size(round.window.get())
        .initial_max_send_streams(ours::MAX_STREAMS)
        .max_concurrent_reset_streams(MAX_RESETS)
        .handshake(socket)
        .await
        .unwrap();
    let round = Rc::clone(round);
    drop(spawn_local(poll_fn(move |cx| {
        round.resize(cx, |stream, all| {
            connection.set_target_window_size(all);
            // Fails until the last change was acknowledged.
            connection.set_initial_window_size(stream).is_ok()
        });
        Pin::new(&mut connection).poll(cx).map(Result::unwrap)
    })));
    sender
}

/// Sends a request by its plan.
pub(super) async fn send_request(
    round: Rc<InteropRound>,
    sender: H2Sender,
    index: usize,
) -> StreamOutcome {
    let plan = &round.plans[index];
    let pace = SidePacer::new(plan, InteropSide::Client);
    let mut sender = sender.ready().await.unwrap();
    let request = Request::post(format!("http://a/{index}")).header("te", "trailers");
    let request = if plan.up.is_chunked {
        request
    } else {
        request.header("content-length", plan.up.length)
    };
    let is_nothing = plan.up.is_nothing();
    let request = request.body(()).unwrap();
    let (response, mut stream) = sender.send_request(request, is_nothing).unwrap();
    pace.has_sent.set(is_nothing);
    let read = async {
        match response.await {
            Ok(response) => read(response.into_body(), plan.down, &pace).await,
            Err(_) => DirectionEnd::Broken,
        }
    };
    let write = async {
        if is_nothing {
            return DirectionEnd::Whole;
        }
        write(&mut stream, plan.up, &pace).await
    };
    let seen = pace.both(read, write).await;
    finish(&mut stream, seen);
    seen
}

/// Serves requests as a backend.
pub(super) fn serve(round: &Rc<InteropRound>, socket: UnixStream) {
    let round = Rc::clone(round);
    drop(spawn_local(async move {
        let mut connection = server::Builder::new()
            .initial_window_size(round.window.get())
            .initial_connection_window_size(round.window.get())
            .max_concurrent_streams(ours::MAX_STREAMS as u32)
            .max_concurrent_reset_streams(MAX_RESETS)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .handshake(socket)
            .await
            .unwrap();
        let accept = poll_fn(|cx| {
            round.resize(cx, |stream, all| {
                connection.set_target_window_size(all);
                // Fails until the last change was acknowledged.
                connection.set_initial_window_size(stream).is_ok()
            });
            while let Poll::Ready(accepted) = connection.poll_accept(cx) {
                match accepted {
                    Some(accepted) => respond(&round, accepted.unwrap()),
                    None => return Poll::Ready(()),
                }
            }
            Poll::Pending
        });
        accept.await;
    }));
}

fn respond(
    round: &Rc<InteropRound>,
    (request, mut respond): (Request<RecvStream>, server::SendResponse<Bytes>),
) {
    let index = InteropRound::index(request.uri().path());
    let plan = round.plans[index].clone();
    round.serve(index, async move {
        let pace = SidePacer::new(&plan, InteropSide::Server);
        pace.pause().await;
        let mut response = Response::builder();
        if !plan.down.is_chunked {
            response = response.header("content-length", plan.down.length);
        }
        let is_nothing = plan.down.is_nothing();
        let response = response.body(()).unwrap();
        let Ok(mut stream) = respond.send_response(response, is_nothing) else {
            // Reset before the response.
            return StreamOutcome {
                read: Some(DirectionEnd::Broken),
                write: Some(DirectionEnd::Broken),
                has_sent: false,
            };
        };
        pace.has_sent.set(is_nothing);
        let write = async {
            if is_nothing {
                return DirectionEnd::Whole;
            }
            write(&mut stream, plan.down, &pace).await
        };
        let read = read(request.into_body(), plan.up, &pace);
        let seen = pace.both(read, write).await;
        finish(&mut stream, seen);
        seen
    });
}

/// Resets the stream if this side was to stop.
fn finish(stream: &mut SendStream<Bytes>, seen: StreamOutcome) {
    if [seen.read, seen.write].contains(&Some(DirectionEnd::Stopped)) {
        stream.send_reset(Reason::CANCEL);
    }
}

async fn write(stream: &mut SendStream<Bytes>, body: BodyPlan, pace: &SidePacer) -> DirectionEnd {
    let mut place = 0;
    while place < body.length {
        pace.pause().await;
        stream.reserve_capacity(pace.size().min(body.length - place));
        let capacity = poll_fn(|cx| stream.poll_capacity(cx)).await;
        let Some(Ok(capacity)) = capacity else {
            return DirectionEnd::Broken;
        };
        let part = body.part(place, capacity);
        let count = part.len();
        place += count;
        let is_end = place == body.length && !body.has_trailers;
        if stream.send_data(part.into(), is_end).is_err() {
            return DirectionEnd::Broken;
        }
        pace.has_sent.set(is_end);
        if pace.moves(count) {
            return DirectionEnd::Stopped;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-key", body.key.into());
    let ended = match (body.has_trailers, body.length) {
        (true, _) => stream.send_trailers(trailers),
        (false, 0) => stream.send_data(Bytes::new(), true),
        (false, _) => Ok(()),
    };
    pace.has_sent.set(ended.is_ok());
    if ended.is_ok() {
        DirectionEnd::Whole
    } else {
        DirectionEnd::Broken
    }
}

async fn read(mut stream: RecvStream, body: BodyPlan, pace: &SidePacer) -> DirectionEnd {
    let mut place = 0;
    while let Some(data) = stream.data().await {
        let Ok(data) = data else {
            return DirectionEnd::Broken;
        };
        body.check(&mut place, &data);
        let first = pace.below(data.len() + 1);
        for part in [first, data.len() - first] {
            pace.pause().await;
            let released = stream.flow_control().release_capacity(part);
            released.unwrap();
        }
        if pace.moves(data.len()) {
            return DirectionEnd::Stopped;
        }
    }
    let Ok(trailers) = stream.trailers().await else {
        return DirectionEnd::Broken;
    };
    assert_eq!(place, body.length, "a cut that looks like an end: {body:?}");
    let key = trailers.and_then(|trailers| trailers.get("x-key").cloned());
    let expected = body.has_trailers.then(|| body.key.to_string());
    assert_eq!(
        key.as_ref().map(|it| it.to_str().unwrap()),
        expected.as_deref()
    );
    DirectionEnd::Whole
}
