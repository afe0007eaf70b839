//! Passes a final response on to the client, and decides what becomes of both connections.
//!
//! Only a broken first chunk is still a failure that may be retried elsewhere; what comes later
//! cuts the response. Does not know how the head was read (`await_response.rs`), nor whether there
//! would be another attempt (`attempts.rs`).

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    attempt::{Attempt, poll_upload},
    buffers::ExchangeBuffers,
    connection::ClientConnection,
    deadline::Deadline,
    exchange::{Exchange, ForwardSettings},
    forward::{self, ResponseExtra},
    grpc,
    outcome::{
        AfterExchange, AttemptError, AttemptOutcome, AttemptPhase, BackendReuse, ClientReuse,
        after_cut, after_response,
    },
    pump::{Pump, PumpError},
};
use crate::{
    base::clock,
    http::{fields::KnownField, message::BodyFraming, rules::RESPONSE_LIMITS},
    http1::{body::BodyDecoder, encode::TextHead},
    net::{activity::ActivityTracker, h2::StreamError, local_error},
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
    mut backend: BackendConnection,
    upload: &mut Pump,
) -> Result<AttemptOutcome, AttemptError> {
    let is_h2 = exchange.client.stream.h2_request().is_some();
    let ExchangeBuffers {
        request, response, ..
    } = &*exchange.buffers;
    let delivery = forward::delivery(response, request.version, is_h2);
    // The request may still be read to its end during the response, but the head goes out now:
    // announcing `close` is always correct.
    let keep_alive = ClientReuse {
        request_read: upload.has_read_all(),
        response_delimited: delivery != BodyFraming::UntilClose,
        ..exchange.client_reuse()
    }
    .keeps();
    let framing = response.framing;
    let mut download = encode_response(exchange, attempt, delivery, keep_alive);
    if !keep_alive {
        download.is_last();
    }
    // The chunks of an HTTP/2 response are our own encoding of its DATA frames.
    if matches!(framing, BodyFraming::Streamed(_)) && backend.stream.h2_response().is_none() {
        check_first_chunk(exchange, &mut download, &mut backend).await?;
    }
    attempt.record_response(exchange);
    let request_sent = upload.is_done();
    let settings = attempt.settings;
    let relayed = relay(exchange, settings, &mut backend, upload, &mut download).await;
    exchange.record.bytes_out = download.body();
    let exact = download.has_read_all() && download.is_drained();
    let (out, bytes, _) = download.into_buffers();
    exchange.buffers.client_out = out;
    exchange.buffers.response.bytes = bytes;
    if let Err(cut) = relayed {
        let next = record_cut(exchange, attempt, &backend, cut, delivery);
        return Ok(AttemptOutcome::Responded(next));
    }
    attempt.pool.record_success(attempt.lease);
    let reuse = BackendReuse {
        requested: exchange.buffers.response.keep_alive,
        request_sent,
        response_delimited: framing != BodyFraming::UntilClose,
        exact,
    };
    if reuse.keeps() {
        keep_backend(exchange, attempt, backend);
    }
    let client_is_done = !exchange.head().keep_alive && upload.has_read_all();
    let next = after_response(keep_alive, client_is_done);
    Ok(AttemptOutcome::Responded(next))
}

/// Keeps the connection of a completed attempt for another one.
fn keep_backend(exchange: &Exchange<'_>, attempt: Attempt<'_>, backend: BackendConnection) {
    let rules = &attempt.pool.config.keepalive;
    let mut idle = exchange.context.worker.idle.borrow_mut();
    idle.put(attempt.lease, backend, rules, clock::now());
}

/// Records a response that was cut in its body, and ends its streams and connections.
fn record_cut(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    backend: &BackendConnection,
    cut: CutResponse,
    delivery: BodyFraming,
) -> AfterExchange {
    let reason = cut.reason;
    exchange.record.reason = Some(reason);
    exchange.record.is_cut = true;
    if !cut.own_limit {
        attempt.record_backend_failure(reason);
    }
    // A connection that stalls one response may stall others: retire it.
    if let Some(stream) = backend.stream.h2_response()
        && reason == Reason::ResponseIdleTimeout
    {
        stream.connection().retire();
    }
    // gRPC clients map RST_STREAM to INTERNAL: end the call with its own status.
    if reason == Reason::TotalTimeout
        && grpc::is_call(exchange.head())
        && let Some(stream) = exchange.client.stream.h2_request()
    {
        stream.end_call(grpc::status(reason));
    }
    after_cut(reason, delivery == BodyFraming::UntilClose)
}

/// Encodes the head for the client, and prepares to pass the body on.
fn encode_response(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    delivery: BodyFraming,
    keep_alive: bool,
) -> Pump {
    let ExchangeBuffers {
        request,
        request_id,
        response,
        client_out,
        ..
    } = &mut *exchange.buffers;
    let mut out = std::mem::take(client_out);
    out.clear();
    let id_name = &exchange.context.snapshot.config.forwarded.request_id;
    let extra = ResponseExtra {
        delivery,
        keep_alive,
        version: request.version,
        request_id: (id_name, request_id),
        edits: attempt.settings.route.map(|route| &route.response_headers),
        date: None,
    };
    if response.find(KnownField::Date).is_some() {
        forward::response_head(&mut TextHead::new(&mut out), response, extra);
    } else {
        exchange.context.worker.with_date(|date| {
            let date = Some(date);
            let extra = ResponseExtra { date, ..extra };
            forward::response_head(&mut TextHead::new(&mut out), response, extra);
        });
    }
    let decoder = match response.framing {
        BodyFraming::None => None,
        BodyFraming::Length(length) => Some(BodyDecoder::Length(length)),
        BodyFraming::Streamed(_) => Some(BodyDecoder::chunked(RESPONSE_LIMITS)),
        BodyFraming::UntilClose => Some(BodyDecoder::UntilClose),
    };
    let is_chunked = matches!(delivery, BodyFraming::Streamed(_));
    let bytes = std::mem::take(&mut response.bytes);
    let mut download = Pump::new(out, bytes, response.len, decoder, is_chunked);
    if let (BodyFraming::Length(length), BodyFraming::Streamed(_)) = (delivery, response.framing) {
        download.set_framing(false, Some(length));
    }
    download.allow_splice();
    download
}

/// Decodes the first chunk before the head is sent, so that a broken one is a 502 rather than a
/// cut.
async fn check_first_chunk(
    exchange: &mut Exchange<'_>,
    download: &mut Pump,
    backend: &mut BackendConnection,
) -> Result<(), AttemptError> {
    let failure =
        |reason, detail: String| AttemptError::new(AttemptPhase::Response, reason, detail);
    let deadline = Some(clock::now() + FIRST_CHUNK_TIMEOUT);
    let timer: &mut Timer = &mut exchange.client.timer;
    let decoded = poll_fn(|cx| match download.poll_first(cx, &mut backend.stream) {
        Poll::Pending => timer.poll(cx, deadline).map(Ok),
        ready @ Poll::Ready(_) => ready,
    })
    .await;
    match decoded {
        Ok(()) => Ok(()),
        Err(PumpError::Malformed(error)) => Err(AttemptError {
            own_limit: error.is_own_limit(),
            ..failure(reasons::of_first_chunk(&error), error.to_string())
        }),
        Err(PumpError::Read(error)) => Err(failure(
            reasons::of_broken_connection(&error),
            error.to_string(),
        )),
        Err(_) => Err(failure(
            Reason::ConnectionTerminated,
            "closed before the first chunk".to_owned(),
        )),
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
    settings: &ForwardSettings<'_>,
    backend: &mut BackendConnection,
    upload: &mut Pump,
    download: &mut Pump,
) -> Result<(), CutResponse> {
    let mut relay = ResponseRelay {
        exchange,
        settings,
        backend,
        upload_ended: upload.is_done(),
        upload,
        download,
        activity: ActivityTracker::new(clock::now()),
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
fn is_own_limit(error: &PumpError) -> bool {
    match error {
        PumpError::Malformed(error) => error.is_own_limit(),
        PumpError::Read(error) => StreamError::of(error).is_some_and(StreamError::is_own_limit),
        _ => false,
    }
}

/// Both directions while a response is passed on.
struct ResponseRelay<'r, 'e> {
    exchange: &'r mut Exchange<'e>,
    settings: &'r ForwardSettings<'r>,
    backend: &'r mut BackendConnection,
    upload: &'r mut Pump,
    upload_ended: bool,
    download: &'r mut Pump,
    activity: ActivityTracker,
}

impl ResponseRelay<'_, '_> {
    /// Ready when the response has been passed on, or must be cut.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CutResponse>> {
        let sent_on = self.poll_upload(cx)?;
        let before = self.download.moved();
        let client = &mut self.exchange.client.stream;
        let result = self.download.poll(cx, &mut self.backend.stream, client);
        let after = self.download.moved();
        let counters = self.exchange.context.counters();
        counters.sent.add(after.1 - before.1);
        match result {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(PumpError::Write(_))) => {
                return Poll::Ready(Err(Reason::ClientDisconnected.into()));
            }
            Poll::Ready(Err(PumpError::Read(error))) if local_error::is_local(&error) => {
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
            self.activity.last = clock::now();
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
        let mut at = clock::now();
        let before = self.upload.moved();
        match poll_upload(self.exchange, self.backend, self.upload, &mut at, cx) {
            Poll::Ready(Ok(()) | Err(PumpError::Write(_))) => self.upload_ended = true,
            Poll::Ready(Err(error)) => return Err(reasons::of_request_body(&error)),
            Poll::Pending => {}
        }
        Ok(self.upload.moved() != before)
    }

    /// Ready when nothing was moved in either direction, nor acknowledged, for `timeouts.idle`, or
    /// when the total timeout has passed.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let ClientConnection { stream, timer, .. } = &mut *self.exchange.client;
        let unacked = || [stream.unacked(), self.backend.stream.unacked()];
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
