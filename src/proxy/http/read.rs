//! Reads the head of a request from the client.
//!
//! The only place that waits for the rest of a head. Must not know what becomes of the request.

use std::{future::poll_fn, task::Poll, time::Instant};

use super::{
    client_side::{ClientSide, H2ClientSide},
    connection::ClientConnection,
    relay::poll_fill_head,
};
use crate::{
    http::{message::RequestHead, rules::HeadLimits},
    http1::{self, request},
    http2::frame::CLIENT_PREFACE,
    proxy::reasons,
    reason::Reason,
    snapshot::Listener,
};

/// Result of reading a head.
pub(super) enum HeadReadOutcome {
    /// The head is complete and valid.
    Complete,
    /// The client closed.
    Closed,
    /// Spurious readiness: nothing could be read yet.
    NothingYet,
    /// The client sent the HTTP/2 preface, which is among the bytes read.
    Http2,
    /// The head is malformed, too large or too slow.
    Refused(Reason),
}

/// True if `bytes` begin with the HTTP/2 preface, false if they are a part of it so far.
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

/// Reads a head within the limits of `listener`, and counts the bytes. `began` is the time of its
/// first byte.
pub(super) async fn head(
    client: &mut ClientConnection,
    head: &mut RequestHead,
    listener: &Listener,
    began: Instant,
) -> HeadReadOutcome {
    let deadline = client
        .first_request_deadline
        .or_else(|| listener.config.timeouts.header.map(|header| began + header));
    // HTTP/2 with prior knowledge: only as the first bytes of a connection in the clear (RFC 9113
    // section 3.3).
    let may_be_h2 = client.is_unused && listener.config.http.h2c && client.side.is_plain();
    let before = head.bytes.len();
    let reading = read_head(client, head, limits(listener), deadline, may_be_h2).await;
    let received = (head.bytes.len() - before) as u64;
    // A request for which nothing was read was pipelined behind another one.
    client.pipelined_requests = if received > 0 {
        1
    } else {
        client.pipelined_requests + 1
    };
    listener.state.metrics.mine().received.add(received);
    reading
}

/// The head that came with an HTTP/2 stream; counts its bytes.
pub(super) fn received_head(
    side: &H2ClientSide,
    head: &RequestHead,
    listener: &Listener,
) -> HeadReadOutcome {
    let counters = listener.state.metrics.mine();
    counters.received.add(head.bytes.len() as u64);
    let Some(refusal) = side.refusal else {
        return HeadReadOutcome::Complete;
    };
    HeadReadOutcome::Refused(reasons::of_request_head(refusal))
}

/// Reads until a whole head is there.
async fn read_head(
    client: &mut ClientConnection,
    head: &mut RequestHead,
    limits: HeadLimits,
    deadline: Option<Instant>,
    may_be_h2: bool,
) -> HeadReadOutcome {
    // Bytes that were searched for the end of the head.
    let mut searched = 0;
    // A head is parsed when its first bytes are there, so that garbage is refused at once, and
    // when its end is; parsing each byte that drips in would cost quadratic time.
    let mut parsed_once = false;
    loop {
        let bytes = head.bytes.len();
        let due = !parsed_once && bytes > 0 || bytes >= limits.bytes;
        if due || http1::head_end(&head.bytes, searched).is_some() {
            parsed_once = true;
            match request::parse(head, limits) {
                Ok(true) => return HeadReadOutcome::Complete,
                Ok(false) => {}
                Err(_) if may_be_h2 && has_preface(&head.bytes) == Some(true) => {
                    return HeadReadOutcome::Http2;
                }
                // Could be the start of the preface: wait for more.
                Err(_) if may_be_h2 && has_preface(&head.bytes).is_some() => parsed_once = false,
                Err(refusal) => {
                    tracing::debug!(target: "http", client = ?client.peer, detail = refusal.detail, "request refused");
                    return HeadReadOutcome::Refused(reasons::of_request_head(refusal.fault));
                }
            }
        }
        searched = bytes;
        let ClientConnection { side, timer, .. } = &mut *client;
        let ClientSide::H1(stream) = side else {
            debug_assert!(false, "the head of a stream comes whole");
            return HeadReadOutcome::Closed;
        };
        let read = poll_fn(|cx| match poll_fill_head(stream, cx, &mut head.bytes) {
            // Without a byte there is no request yet: the caller waits without buffers.
            Poll::Pending if bytes == 0 => Poll::Ready(None),
            Poll::Pending => timer.poll(cx, deadline).map(|()| None),
            Poll::Ready(read) => Poll::Ready(Some(read)),
        });
        match read.await {
            Some(Ok(1..)) => {}
            Some(_) => return HeadReadOutcome::Closed,
            None if bytes == 0 => return HeadReadOutcome::NothingYet,
            None => return HeadReadOutcome::Refused(Reason::RequestTimeout),
        }
    }
}
