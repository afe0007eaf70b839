//! Reads the head of a request from the client, or finds out why there is none.
//!
//! The only place that waits for a request that has begun. Knows nothing of what the request will be used for.

use std::{future::poll_fn, task::Poll, time::Instant};

use super::{
    ClientConnection,
    pump::{INITIAL_BUFFER_BYTES, poll_fill},
};
use crate::{
    http1::{
        self,
        request::{self, HeadLimits},
    },
    http2::frame::CLIENT_PREFACE,
    proxy::reasons,
    reason::Reason,
    snapshot::Listener,
};

/// How reading a head ended.
pub(super) enum HeadReadOutcome {
    Whole,
    /// The client closed.
    Nothing,
    /// There is nothing to read: the driver had not noticed that all was taken.
    NotYet,
    /// The client speaks HTTP/2; its preface is among what was read.
    Http2,
    Refused(Reason),
}

/// The beginning of a connection is that of the preface; true for all of it.
fn has_preface(bytes: &[u8]) -> Option<bool> {
    if bytes.len() < CLIENT_PREFACE.len() {
        CLIENT_PREFACE.starts_with(bytes).then_some(false)
    } else {
        bytes.starts_with(CLIENT_PREFACE).then_some(true)
    }
}

/// Limits of the heads and trailers of requests.
pub(super) fn limits(listener: &Listener) -> HeadLimits {
    HeadLimits {
        fields: listener.config.http.max_headers,
        bytes: listener.config.http.max_header_size,
    }
}

/// Reads a head by the rules of `listener`, and counts what was read. `began` is the time of its first byte.
pub(super) async fn head(
    client: &mut ClientConnection,
    head: &mut request::RequestHead,
    listener: &Listener,
    began: Instant,
) -> HeadReadOutcome {
    let deadline = client
        .first_request_deadline
        .or_else(|| listener.config.timeouts.header.map(|header| began + header));
    if let Some(error) = client.stream.refusal() {
        return HeadReadOutcome::Refused(reasons::of_h2_request(error));
    }
    let may_be_h2 = client.is_unused && listener.config.http.h2c && client.stream.is_plain();
    let before = head.bytes.len();
    let reading = read_head(client, head, limits(listener), deadline, may_be_h2).await;
    let received = (head.bytes.len() - before) as u64;
    head.declared_length = client.stream.declared_length();
    client.pipelined_requests = if received > 0 {
        1
    } else {
        client.pipelined_requests + 1
    };
    listener.state.metrics.mine().received.add(received);
    reading
}

/// Reads until a whole head is there.
async fn read_head(
    client: &mut ClientConnection,
    head: &mut request::RequestHead,
    limits: HeadLimits,
    deadline: Option<Instant>,
    may_be_h2: bool,
) -> HeadReadOutcome {
    let mut searched = 0;
    // A head is parsed when its first bytes are there, so that garbage is refused at once, and when its end is; not for
    // every byte that drips in.
    let mut parsed_once = false;
    loop {
        let bytes = head.bytes.len();
        let due = !parsed_once && bytes > 0 || bytes >= limits.bytes;
        if due || http1::head_end(&head.bytes, searched).is_some() {
            parsed_once = true;
            match head.parse(limits) {
                Ok(true) => return HeadReadOutcome::Whole,
                Ok(false) => {}
                Err(_) if may_be_h2 && has_preface(&head.bytes) == Some(true) => {
                    return HeadReadOutcome::Http2;
                }
                // Not even an HTTP/1 client begins like this: the rest of it decides.
                Err(_) if may_be_h2 && has_preface(&head.bytes).is_some() => parsed_once = false,
                Err(refusal) => {
                    tracing::debug!(target: "http", client = ?client.peer, detail = refusal.detail, "request refused");
                    return HeadReadOutcome::Refused(refusal.reason);
                }
            }
        }
        searched = bytes;
        if head.bytes.capacity() - bytes < INITIAL_BUFFER_BYTES / 4 {
            head.bytes.reserve(INITIAL_BUFFER_BYTES);
        }
        let ClientConnection { stream, timer, .. } = &mut *client;
        let read = poll_fn(|cx| match poll_fill(stream, cx, &mut head.bytes) {
            Poll::Pending if bytes == 0 => Poll::Ready(None),
            Poll::Pending => timer.poll(cx, deadline).map(|()| None),
            Poll::Ready(read) => Poll::Ready(Some(read)),
        });
        match read.await {
            Some(Ok(1..)) => {}
            Some(_) => return HeadReadOutcome::Nothing,
            None if bytes == 0 => return HeadReadOutcome::NotYet,
            None => return HeadReadOutcome::Refused(Reason::RequestTimeout),
        }
    }
}
