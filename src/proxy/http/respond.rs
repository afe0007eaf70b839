//! After the response head of a try: pass the response on to the client, or open a tunnel after a 101, and say what
//! becomes of both connections.
//!
//! Only a broken first chunk is still a failure that may be tried again elsewhere; what comes later cuts the response.
//! Does not know how the head was got (`attempt.rs`), nor why there would be another try (`exchange.rs`).

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{io::AsyncWriteExt, time::timeout};

use super::{
    AfterExchange, ClientConnection,
    attempt::{
        Attempt, AttemptOutcome, ConnectionInUse, is_gone_when_woken, poll_upload,
        record_backend_failure,
    },
    exchange::{Exchange, ForwardSettings, Io, describe, write_all},
    forward::{self, BodyDelivery, ResponseExtra},
    grpc,
    pump::{Pump, PumpError},
    retry::{AttemptError, AttemptPhase},
};
use crate::{
    base::clock,
    http1::{
        body::BodyDecoder,
        fields::KnownField,
        request,
        response::{self, ResponseFraming},
    },
    net::{
        activity::ActivityTracker,
        copy::{self, RelayMeter},
        h2::StreamError,
        local_error,
    },
    proxy::{
        idle::BackendConnection,
        reasons,
        relay_stop::RelayStop,
        timer::{PassedDeadline, Timer},
    },
    reason::Reason,
    telemetry::metrics::class_index,
};

/// How long a chunked response may take from its head to its first chunk before the head is passed on alone. Most
/// servers send both together, so that a broken first chunk can still become a clean 502.
const FIRST_CHUNK_TIMEOUT: Duration = Duration::from_millis(20);

/// How long a backend may take to read what the client sent behind its request to switch protocols: at most a buffer.
const EARLY_DATA_TIMEOUT: Duration = Duration::from_secs(10);

/// Passes a final response on.
pub(super) async fn respond(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    mut backend: BackendConnection,
    upload: &mut Pump,
    io: &mut Io<'_>,
) -> Result<AttemptOutcome, AttemptError> {
    let is_h2 = exchange.client.stream.h2_request().is_some();
    let version = exchange.head.version;
    let delivery = BodyDelivery::of(io.response, io.response_bytes, version, is_h2);
    // Whether the request was read to its end is known for sure only afterwards; a client that is told `close` has been
    // told the truth in every case.
    let keep_alive = exchange.head.keep_alive
        && !exchange.must_close()
        && upload.has_read_all()
        && delivery != BodyDelivery::UntilClose;
    let mut download = encode_response(exchange, attempt, delivery, keep_alive, io);
    if !keep_alive {
        download.is_last();
    }
    // Over HTTP/2 the chunks are our own.
    if io.response.framing == ResponseFraming::Chunked && backend.stream.h2_response().is_none() {
        check_first_chunk(exchange, &mut download, &mut backend).await?;
    }
    count_answer(exchange, attempt, io.response);
    // A backend that answers before it has the whole request may leave the rest unread, and take it for another one.
    let was_asked = upload.is_done();
    let (relayed, own_limit) = relay(
        exchange,
        attempt.settings,
        &mut backend,
        upload,
        &mut download,
    )
    .await;
    exchange.record.bytes_out = download.body();
    let exact = download.has_read_all() && download.is_drained();
    let (out, bytes, _) = download.into_buffers();
    *io.out = out;
    *io.response_bytes = bytes;
    if let Err(reason) = relayed {
        exchange.record.reason = Some(reason);
        exchange.record.cut = true;
        if !own_limit {
            record_backend_failure(attempt, reason);
        }
        // Where one response stands still, others of the connection may as well.
        if let Some(stream) = backend.stream.h2_response()
            && reason == Reason::ResponseIdleTimeout
        {
            stream.connection().retire();
        }
        // Its client would take a reset for a fault, and waits as long as we did.
        if reason == Reason::TotalTimeout
            && grpc::is_call(exchange.head)
            && let Some(stream) = exchange.client.stream.h2_request()
        {
            stream.end_call(grpc::status(reason));
        }
        let looks_whole = delivery == BodyDelivery::UntilClose;
        // Nobody reads what is still to be sent: the kernel must not keep it.
        let unread = matches!(
            reason,
            Reason::ClientDisconnected | Reason::ClientWriteTimeout
        );
        return Ok(AttemptOutcome::Answered(if looks_whole || unread {
            AfterExchange::Reset
        } else {
            AfterExchange::Close
        }));
    }
    attempt.pool.record_success(attempt.lease);
    let reusable = exact
        && io.response.keep_alive
        && was_asked
        && io.response.framing != ResponseFraming::UntilClose;
    if reusable {
        let rules = &attempt.pool.config.keepalive;
        let mut idle = exchange.context.worker.idle.borrow_mut();
        idle.put(attempt.lease, backend, rules, clock::now());
    }
    Ok(AttemptOutcome::Answered(if keep_alive {
        AfterExchange::KeepAlive
    } else if !exchange.head.keep_alive && upload.has_read_all() {
        // The client asked for it and has nothing more to send.
        AfterExchange::Close
    } else {
        AfterExchange::Linger
    }))
}

/// Writes the head for the client, and makes ready for the body.
fn encode_response(
    exchange: &Exchange<'_>,
    attempt: Attempt<'_>,
    delivery: BodyDelivery,
    keep_alive: bool,
    io: &mut Io<'_>,
) -> Pump {
    let mut out = std::mem::take(io.out);
    let bytes = std::mem::take(io.response_bytes);
    out.clear();
    let extra = ResponseExtra {
        delivery,
        keep_alive,
        version: exchange.head.version,
        request_id: exchange.request_id_field(),
        edits: attempt.settings.route.map(|route| &route.response_headers),
        date: None,
    };
    if io.response.fields.find(KnownField::Date, &bytes).is_some() {
        forward::response_head(&mut out, io.response, &bytes, extra);
    } else {
        exchange.context.worker.with_date(|date| {
            let date = Some(date);
            forward::response_head(
                &mut out,
                io.response,
                &bytes,
                ResponseExtra { date, ..extra },
            );
        });
    }
    let decoder = match io.response.framing {
        ResponseFraming::None => None,
        ResponseFraming::Length(length) => Some(BodyDecoder::Length(length)),
        ResponseFraming::Chunked => Some(BodyDecoder::chunked(response::RESPONSE_LIMITS)),
        ResponseFraming::UntilClose => Some(BodyDecoder::UntilClose),
    };
    let is_chunked = matches!(delivery, BodyDelivery::Chunked(_));
    let mut download = Pump::new(out, bytes, io.response.len, decoder, is_chunked);
    if let (BodyDelivery::Length(length), ResponseFraming::Chunked) =
        (delivery, io.response.framing)
    {
        download.set_framing(false, Some(length));
    }
    download.allow_splice();
    download
}

/// Looks at the first chunk before the head is sent, so that a broken one is a 502 rather than a cut.
async fn check_first_chunk(
    exchange: &mut Exchange<'_>,
    download: &mut Pump,
    backend: &mut BackendConnection,
) -> Result<(), AttemptError> {
    let failure = |reason, detail: String| AttemptError {
        phase: AttemptPhase::Response,
        reason,
        stale: false,
        refusal: None,
        not_processed: false,
        own_limit: false,
        detail,
    };
    let deadline = Some(clock::now() + FIRST_CHUNK_TIMEOUT);
    let timer: &mut Timer = &mut exchange.client.timer;
    let looked = poll_fn(|cx| match download.poll_first(cx, &mut backend.stream) {
        Poll::Pending => timer.poll(cx, deadline).map(Ok),
        ready @ Poll::Ready(_) => ready,
    })
    .await;
    match looked {
        Ok(()) => Ok(()),
        Err(PumpError::Malformed(error)) => {
            let reason = reasons::of_first_chunk(&error);
            let own_limit = error.is_own_limit();
            let detail = error.to_string();
            Err(AttemptError {
                own_limit,
                ..failure(reason, detail)
            })
        }
        Err(PumpError::Read(error)) => Err(failure(
            reasons::of_broken_connection(&error),
            describe(&error),
        )),
        Err(_) => Err(failure(
            Reason::ConnectionTerminated,
            "closed before the first chunk".to_owned(),
        )),
    }
}

fn count_answer(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    response: &response::ResponseHead,
) {
    exchange.record.status = response.status;
    let metrics = attempt.lease.state.metrics.mine();
    if let Some(count) = metrics.requests.get(class_index(response.status)) {
        count.add(1);
    }
    if let Some(first_byte) = exchange.record.first_byte {
        metrics.response.observe(first_byte);
    }
}

/// Moves the response, and the rest of the request. An error is the reason for a cut; with it true if that is a limit of
/// ours.
async fn relay(
    exchange: &mut Exchange<'_>,
    settings: &ForwardSettings<'_>,
    backend: &mut BackendConnection,
    upload: &mut Pump,
    download: &mut Pump,
) -> (Result<(), Reason>, bool) {
    let mut relay = ResponseRelay {
        exchange,
        settings,
        backend,
        upload_ended: upload.is_done(),
        upload,
        download,
        activity: ActivityTracker::new(clock::now()),
        own_limit: false,
    };
    loop {
        let step = poll_fn(|cx| Poll::Ready(relay.poll(cx))).await;
        if let Poll::Ready(ended) = step {
            return (ended, relay.own_limit);
        }
        if is_gone_when_woken(&relay.exchange.client.stream).await {
            return (Err(Reason::ClientDisconnected), false);
        }
    }
}

/// True if what ended a response may be valid, and was only more than we take.
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
    /// A limit of ours has ended the response.
    own_limit: bool,
}

impl ResponseRelay<'_, '_> {
    /// Ready when the response has been passed on, or must be cut.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
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
                return Poll::Ready(Err(Reason::ClientDisconnected));
            }
            Poll::Ready(Err(PumpError::Read(error))) if local_error::is_local(&error) => {
                return Poll::Ready(Err(reasons::of_broken_connection(&error)));
            }
            Poll::Ready(Err(error)) => {
                self.own_limit = is_own_limit(&error);
                return Poll::Ready(Err(reasons::of_response_body(&error)));
            }
            Poll::Pending => {}
        }
        if sent_on || after != before {
            self.activity.last = clock::now();
        }
        self.poll_deadline(cx).map(Err)
    }

    fn waits_for_reader(&self) -> bool {
        self.download.waits_for_sink()
    }

    /// A backend that still waits for the client's body is not to blame.
    fn waits_for_body(&self) -> bool {
        !self.waits_for_reader() && !self.upload_ended && !self.upload.waits_for_sink()
    }

    /// Sends on what is left of the request; true if some of it was moved.
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

    /// Ready when nothing was moved in either direction, nor acknowledged, for `timeouts.idle`.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let ClientConnection { stream, timer, .. } = &mut *self.exchange.client;
        let unacked = || [stream.unacked(), self.backend.stream.unacked()];
        let idle = self.settings.timeouts.idle;
        let passed = timer.poll_idle(cx, &mut self.activity, idle, self.settings.end, unacked);
        passed.map(|passed| match passed {
            PassedDeadline::End => Reason::TotalTimeout,
            PassedDeadline::Idle => self.stalled(),
        })
    }

    /// The reason for a cut by the side that is waited for.
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

/// Sends the rest of a request that was answered with 101 before it was whole: its client goes on with it before it uses
/// the new protocol, RFC 9110 section 7.8.
async fn finish_upload(
    exchange: &mut Exchange<'_>,
    settings: &ForwardSettings<'_>,
    backend: &mut BackendConnection,
    upload: &mut Pump,
) -> Result<(), Reason> {
    let mut activity = ActivityTracker::new(clock::now());
    while !upload.is_done() {
        let mut poll = |cx: &mut Context<'_>| {
            match poll_upload(exchange, backend, upload, &mut activity.last, cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(PumpError::Write(_))) => {
                    return Poll::Ready(Err(Reason::BackendReset));
                }
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(reasons::of_request_body(&error)));
                }
                Poll::Pending => {}
            }
            let ClientConnection { stream, timer, .. } = &mut *exchange.client;
            let unacked = || [stream.unacked(), backend.stream.unacked()];
            let idle = settings.timeouts.tcp_idle;
            let passed = timer.poll_idle(cx, &mut activity, idle, None, unacked);
            passed.map(|_| Err(Reason::IdleTimeout))
        };
        if let Poll::Ready(Err(reason)) = poll_fn(|cx| Poll::Ready(poll(cx))).await {
            return Err(reason);
        }
        if !upload.is_done() && is_gone_when_woken(&exchange.client.stream).await {
            return Err(Reason::ClientDisconnected);
        }
    }
    Ok(())
}

/// After a 101 both connections carry something else, RFC 9110 section 7.8.
pub(super) async fn tunnel(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    mut backend: BackendConnection,
    upload: &mut Pump,
    io: &mut Io<'_>,
) -> AfterExchange {
    let _in_use = ConnectionInUse::new(&backend, &attempt.lease.state);
    count_answer(exchange, attempt, io.response);
    attempt.pool.record_success(attempt.lease);
    io.out.clear();
    let id = exchange.request_id_field();
    forward::interim_head(io.out, io.response, io.response_bytes, id);
    let behind = io.response_bytes.get(io.response.len..).unwrap_or_default();
    io.out.extend_from_slice(behind);
    let context = exchange.context;
    let counters = context.counters();
    counters.sent.add(io.out.len() as u64);
    let timeouts = &context.listener.config.timeouts;
    if let Err(reason) = write_all(exchange.client, io.out, timeouts).await {
        exchange.record.reason = Some(reason);
        return AfterExchange::Reset;
    }
    if let Err(reason) = finish_upload(exchange, attempt.settings, &mut backend, upload).await {
        exchange.record.reason = Some(reason);
        return AfterExchange::Reset;
    }
    // What the client sent behind its request belongs to the new protocol.
    let early = match exchange.head.framing {
        request::RequestFraming::None => exchange.head.bytes.get(exchange.head.len..),
        _ => Some(upload.unread()),
    };
    let early = early.unwrap_or_default();
    let written = AsyncWriteExt::write_all(&mut backend.stream, early);
    if !matches!(timeout(EARLY_DATA_TIMEOUT, written).await, Ok(Ok(()))) {
        exchange.record.reason = Some(Reason::BackendReset);
        return AfterExchange::Reset;
    }
    let early = early.len() as u64;
    let meter = RelayMeter {
        received: &counters.received,
        sent: &counters.sent,
    };
    let idle = attempt.settings.timeouts.tcp_idle;
    let mut cut = context.worker.cut.clone();
    let stop = async move {
        let _ = cut.wait_for(|cut| *cut).await;
    };
    let relay_stop = RelayStop::default();
    let stop = relay_stop.wait(stop, attempt.lease);
    let client = &exchange.client.stream;
    let end = copy::relay_until(stop, client, &backend.stream, Vec::new(), idle, meter).await;
    exchange.record.bytes_in = early + end.bytes_in;
    exchange.record.bytes_out = behind.len() as u64 + end.bytes_out;
    if let Err(cut) = end.end {
        exchange.record.reason = Some(relay_stop.reason(cut));
        return AfterExchange::Reset;
    }
    AfterExchange::Close
}
