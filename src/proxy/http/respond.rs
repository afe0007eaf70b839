//! Passes a final response on to the client, and decides what becomes of both connections.
//!
//! Only a broken first chunk is still a failure that may be retried elsewhere; what comes later
//! cuts the response. Does not know how the head was read (`await_response.rs`), nor whether there
//! would be another attempt (`attempts.rs`).

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{
    attempt::{Attempt, poll_upload},
    backend_side::BackendSide,
    buffers::ExchangeBuffers,
    client_side::ClientSide,
    connection::ClientConnection,
    deadline::Deadline,
    exchange::{Exchange, ForwardSettings},
    forward::{self, ResponseExtra},
    grpc,
    outcome::{
        AfterExchange, AttemptError, AttemptOutcome, AttemptPhase, BackendReuse, ClientReuse,
        after_cut, after_response,
    },
    relay::{BodyEncoding, BodyRelay, BodyRelayError, poll_fill_head},
};
use crate::{
    h2::StreamError,
    http::{fields::KnownField, message::BodyFraming, rules::RESPONSE_LIMITS},
    http1::{
        body::{BodyDecoder, BodyError, BodyStep},
        encode::TextHead,
    },
    http2::block_head::BlockHead,
    net::{activity::ActivityTracker, copy::RelaySide as _, local_error, stream::Stream},
    proxy::{idle::BackendConnection, reasons, timer::Timer},
    reason::Reason,
};

/// Time from the head of a chunked response to its first chunk, after which the head is passed on
/// alone. Most servers send both together, so that a broken first chunk can still become a clean
/// 502.
const FIRST_CHUNK_TIMEOUT: Duration = Duration::from_millis(20);

/// Passes on the final response whose head is in the buffers.
pub(super) async fn respond(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    mut backend: BackendSide,
    upload: &mut BodyRelay,
) -> Result<AttemptOutcome, AttemptError> {
    let ExchangeBuffers {
        request, response, ..
    } = &*exchange.buffers;
    let delivery = forward::delivery(response, request.version);
    // The request may still be read to its end during the response, but the head goes out now:
    // announcing `close` is always correct.
    let keep_alive = ClientReuse {
        request_read: upload.has_read_all(),
        response_delimited: delivery != BodyFraming::UntilClose,
        ..exchange.client_reuse()
    }
    .keeps();
    let framing = response.framing;
    if let (BodyFraming::Streamed(_), BackendSide::H1(connection)) = (framing, &mut backend) {
        check_first_chunk(exchange, connection).await?;
    }
    attempt.record_response(exchange);
    let request_sent = upload.is_done();
    if let Err(reason) = send_head(exchange, attempt, delivery, keep_alive).await {
        (exchange.record.reason, exchange.record.is_cut) = (Some(reason), true);
        return Ok(AttemptOutcome::Responded(AfterExchange::Reset));
    }
    let mut download = download(exchange, &backend, delivery);
    if !keep_alive {
        download.is_last();
    }
    let relayed = relay(exchange, attempt, &mut backend, upload, &mut download).await;
    exchange.record.bytes_out = download.body();
    let exact = download.has_read_all() && download.is_drained();
    let (out, bytes, _) = download.into_buffers();
    exchange.buffers.client_out = out;
    exchange.buffers.response.bytes = bytes;
    if let Err(cut) = relayed {
        let next = record_cut(exchange, attempt, &backend, cut, delivery);
        return Ok(AttemptOutcome::Responded(next));
    }
    attempt.record_outcome(exchange.record.status, exchange.context.worker.now());
    let reuse = BackendReuse {
        requested: exchange.buffers.response.keep_alive,
        request_sent,
        response_delimited: framing != BodyFraming::UntilClose,
        exact,
    };
    let rules = &attempt.pool.config.keepalive;
    backend.finish(reuse, exchange.context.worker, attempt.lease, rules);
    let client_is_done = !exchange.head().keep_alive && upload.has_read_all();
    let next = after_response(keep_alive, client_is_done);
    Ok(AttemptOutcome::Responded(next))
}

/// The body behind the head, whose buffer it takes; the head for an HTTP/1 client goes before it.
fn download(
    exchange: &mut Exchange<'_>,
    backend: &BackendSide,
    delivery: BodyFraming,
) -> BodyRelay {
    let ExchangeBuffers {
        response,
        client_out,
        ..
    } = &mut *exchange.buffers;
    let framing = response.framing;
    let (out, bytes) = (
        std::mem::take(client_out),
        std::mem::take(&mut response.bytes),
    );
    let decoder = match (framing, backend) {
        (BodyFraming::None, _) => Some(BodyDecoder::Length(0)),
        (_, BackendSide::H2(_)) => None,
        (BodyFraming::Length(length), _) => Some(BodyDecoder::Length(length)),
        (BodyFraming::Streamed(_), _) => Some(BodyDecoder::chunked(RESPONSE_LIMITS)),
        (BodyFraming::UntilClose, _) => Some(BodyDecoder::UntilClose),
    };
    let mut download = BodyRelay::new(out, bytes, response.len, decoder);
    let (encoding, length) = match (&exchange.client.side, delivery, framing) {
        (ClientSide::H2(_), ..) => (BodyEncoding::Frames, None),
        (_, BodyFraming::Streamed(_), _) => (BodyEncoding::Chunked, None),
        // The backend has an end mark of its own, and declared the length as well.
        (_, BodyFraming::Length(length), BodyFraming::Streamed(_)) => {
            (BodyEncoding::Plain, Some(length))
        }
        _ => (BodyEncoding::Plain, None),
    };
    download.set_sink(encoding, length);
    download.replay(!framing.is_empty());
    download.allow_splice();
    download
}

/// Records a response that was cut in its body, and ends its streams and connections.
fn record_cut(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    backend: &BackendSide,
    cut: CutResponse,
    delivery: BodyFraming,
) -> AfterExchange {
    let reason = cut.reason;
    exchange.record.reason = Some(reason);
    exchange.record.is_cut = true;
    if !cut.own_limit {
        attempt.record_backend_failure(reason);
    }
    // A connection that stalls one response may stall others.
    if reason == Reason::ResponseIdleTimeout {
        backend.retire();
    }
    if reason == Reason::TotalTimeout && grpc::is_call(exchange.head()) {
        exchange.client.side.end_call(grpc::status(reason));
    }
    after_cut(reason, delivery == BodyFraming::UntilClose)
}

/// Sends the head to an HTTP/2 client; encodes it for an HTTP/1 client, where it goes out with the
/// first of the body.
async fn send_head(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    delivery: BodyFraming,
    keep_alive: bool,
) -> Result<(), Reason> {
    let timeouts = &exchange.context.listener.config.timeouts;
    let total = attempt.settings.deadline;
    exchange.client.head_ready(timeouts, total).await?;
    let sticky = attempt.sticky_cookie(exchange);
    let Exchange {
        client,
        buffers,
        context,
        ..
    } = &mut *exchange;
    let ExchangeBuffers {
        request,
        request_id,
        response,
        client_out,
        ..
    } = &mut **buffers;
    let extra = ResponseExtra {
        delivery,
        keep_alive,
        version: request.version,
        request_id: (&context.snapshot.config.forwarded.request_id, request_id),
        edits: attempt.settings.route.map(|route| &route.response_headers),
        date: None,
        sticky,
    };
    client_out.clear();
    let has_date = response.find(KnownField::Date).is_some();
    context.worker.with_date(|date| {
        let date = (!has_date).then_some(date);
        let extra = ResponseExtra { date, ..extra };
        match &client.side {
            ClientSide::H1(_) => {
                forward::response_head(&mut TextHead::new(client_out), response, extra);
                Ok(())
            }
            ClientSide::H2(side) => {
                // A gRPC call that fails at once must end with its head ("Trailers-Only").
                let ends = response.framing.is_empty();
                let write = |block: &mut BlockHead<'_>| {
                    forward::response_head(block, response, extra);
                };
                let sent = side.stream.send_head(ends, write);
                let sent = sent.map_err(|_| Reason::ClientDisconnected)?;
                context.counters().sent.add(sent as u64);
                Ok(())
            }
        }
    })
}

/// Looks at the first chunk before the head is sent, so that a broken one is a 502 rather than a
/// cut. It is decoded again when it is passed on.
async fn check_first_chunk(
    exchange: &mut Exchange<'_>,
    backend: &mut BackendConnection,
) -> Result<(), AttemptError> {
    let deadline = Some(exchange.context.worker.now() + FIRST_CHUNK_TIMEOUT);
    let timer: &mut Timer = &mut exchange.client.timer;
    let response = &mut exchange.buffers.response;
    let mut decoder = BodyDecoder::chunked(RESPONSE_LIMITS);
    let mut at = response.len;
    let checked = poll_fn(|cx| {
        match poll_first_chunk(
            cx,
            &mut decoder,
            &mut response.bytes,
            &mut at,
            &mut backend.stream,
        ) {
            Poll::Pending => timer.poll(cx, deadline).map(Ok),
            ready @ Poll::Ready(_) => ready,
        }
    });
    checked.await.map_err(|error| match error {
        FirstChunkError::Malformed(error) => AttemptError {
            own_limit: error.is_own_limit(),
            ..response_failure(reasons::of_first_chunk(&error), error.to_string())
        },
        FirstChunkError::Read(error) => {
            response_failure(reasons::of_broken_connection(&error), error.to_string())
        }
        FirstChunkError::Closed => response_failure(
            Reason::ConnectionTerminated,
            "closed before the first chunk".to_owned(),
        ),
    })
}

fn response_failure(reason: Reason, detail: String) -> AttemptError {
    AttemptError::new(AttemptPhase::Response, reason, detail)
}

/// Cause for which there is no first chunk.
enum FirstChunkError {
    Malformed(BodyError),
    Read(io::Error),
    Closed,
}

/// Ready when the body in `bytes` has some content or its end, and what was read is well-formed.
/// Bytes before `at` were decoded; more are read behind them.
fn poll_first_chunk(
    cx: &mut Context<'_>,
    decoder: &mut BodyDecoder,
    bytes: &mut Vec<u8>,
    at: &mut usize,
    stream: &mut Stream,
) -> Poll<Result<(), FirstChunkError>> {
    let mut has_content = false;
    loop {
        let undecoded = bytes.get(*at..).unwrap_or_default();
        match decoder
            .step(undecoded)
            .map_err(FirstChunkError::Malformed)?
        {
            BodyStep::Data(count) => {
                has_content = true;
                *at += count;
            }
            BodyStep::Skip(count) => *at += count,
            BodyStep::End => return Poll::Ready(Ok(())),
            BodyStep::More if has_content => return Poll::Ready(Ok(())),
            BodyStep::More => {
                if ready!(poll_fill_head(stream, cx, bytes)).map_err(FirstChunkError::Read)? == 0 {
                    return Poll::Ready(Err(FirstChunkError::Closed));
                }
            }
        }
    }
}

/// A response that was cut in its body.
#[derive(Debug, Clone, Copy)]
struct CutResponse {
    reason: Reason,
    /// A limit of ours ended it: the backend is not to blame.
    own_limit: bool,
}

impl From<Reason> for CutResponse {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            own_limit: false,
        }
    }
}

/// Passes the response on, and sends the rest of the request.
async fn relay(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    backend: &mut BackendSide,
    upload: &mut BodyRelay,
    download: &mut BodyRelay,
) -> Result<(), CutResponse> {
    let now = exchange.context.worker.now();
    let mut relay = ResponseRelay {
        exchange,
        settings: attempt.settings,
        backend,
        upload_ended: upload.is_done(),
        upload,
        download,
        activity: ActivityTracker::new(now),
    };
    loop {
        let step = poll_fn(|cx| Poll::Ready(relay.poll(cx))).await;
        if let Poll::Ready(ended) = step {
            return ended;
        }
        if relay.exchange.client.is_disconnected_when_woken().await {
            return Err(Reason::ClientDisconnected.into());
        }
    }
}

/// True if the rest of the response may be valid, and was only more than we take.
fn is_own_limit(error: &BodyRelayError) -> bool {
    match error {
        BodyRelayError::Malformed(error) => error.is_own_limit(),
        BodyRelayError::Read(error) => {
            StreamError::of(error).is_some_and(StreamError::is_own_limit)
        }
        _ => false,
    }
}

/// Both directions while a response is passed on.
struct ResponseRelay<'r, 'e> {
    exchange: &'r mut Exchange<'e>,
    settings: &'r ForwardSettings<'r>,
    backend: &'r mut BackendSide,
    upload: &'r mut BodyRelay,
    upload_ended: bool,
    download: &'r mut BodyRelay,
    activity: ActivityTracker,
}

impl ResponseRelay<'_, '_> {
    /// Ready when the response has been passed on, or must be cut.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CutResponse>> {
        let sent_on = self.poll_upload(cx)?;
        let before = self.download.moved();
        let client = self.exchange.client.side.sink();
        let result = self.download.poll(cx, self.backend.source(), client);
        if let Poll::Ready(Err(BodyRelayError::Read(error))) = &result {
            self.backend.note_read_error(error);
        }
        let after = self.download.moved();
        let counters = self.exchange.context.counters();
        counters.sent.add(after.1 - before.1);
        match result {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(BodyRelayError::Write(_))) => {
                return Poll::Ready(Err(Reason::ClientDisconnected.into()));
            }
            Poll::Ready(Err(BodyRelayError::Read(error))) if local_error::is_local(&error) => {
                return Poll::Ready(Err(reasons::of_broken_connection(&error).into()));
            }
            Poll::Ready(Err(error)) => {
                return Poll::Ready(Err(CutResponse {
                    reason: reasons::of_response_body(&error),
                    own_limit: is_own_limit(&error),
                }));
            }
            Poll::Pending => {}
        }
        if sent_on || after != before {
            self.activity.last = self.exchange.context.worker.now();
        }
        self.poll_deadline(cx).map(|reason| Err(reason.into()))
    }

    fn waits_for_reader(&self) -> bool {
        self.download.waits_for_sink()
    }

    /// True if the backend waits for the client's body, and so is not to blame.
    fn waits_for_body(&self) -> bool {
        !self.waits_for_reader() && !self.upload_ended && !self.upload.waits_for_sink()
    }

    /// Sends the rest of the request; true if bytes were moved.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<bool, Reason> {
        if self.upload_ended {
            return Ok(false);
        }
        let mut at = self.exchange.context.worker.now();
        let before = self.upload.moved();
        match poll_upload(self.exchange, self.backend, self.upload, &mut at, cx) {
            Poll::Ready(Ok(()) | Err(BodyRelayError::Write(_))) => self.upload_ended = true,
            Poll::Ready(Err(error)) => return Err(reasons::of_request_body(&error)),
            Poll::Pending => {}
        }
        Ok(self.upload.moved() != before)
    }

    /// Ready when nothing was moved in either direction, nor acknowledged, for `timeouts.idle`, or
    /// when the total timeout has passed.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let ClientConnection { side, timer, .. } = &mut *self.exchange.client;
        let unacked = || [side.unacked(), self.backend.unacked()];
        let idle = self.settings.timeouts.idle;
        let total = self.settings.deadline;
        let end = total.map(|total| total.at);
        let passed = timer.poll_idle(cx, &mut self.activity, idle, end, unacked);
        passed.map(|passed| Deadline::reason_of(passed, total).unwrap_or_else(|| self.stalled()))
    }

    /// The reason of an idle timeout, by the side that is waited for.
    fn stalled(&self) -> Reason {
        if self.waits_for_reader() {
            Reason::ClientWriteTimeout
        } else if self.waits_for_body() {
            Reason::RequestTimeout
        } else {
            Reason::ResponseIdleTimeout
        }
    }
}
