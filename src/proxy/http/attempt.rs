//! One try on one backend: connect or reuse → send the request → read the response head; what follows is `respond.rs`.
//!
//! Until the first byte of a final response head is on its way to the client a try can fail and be followed by another;
//! after that it can only be completed or cut.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use super::{
    AfterExchange, ClientConnection,
    acquire::{self, AcquireError},
    exchange::{Exchange, ForwardSettings, Io, describe, write_all},
    forward, grpc,
    interim::is_flood,
    pump::{INITIAL_BUFFER_BYTES, Pump, PumpError, poll_fill},
    respond,
    retry::{AttemptError, AttemptPhase},
};
use crate::{
    base::clock,
    http1::{HttpVersion, head_end, response},
    net::{
        activity::ActivityTracker,
        h2::backend::{self, OutgoingStream, StreamRefusal},
        local_error,
        stream::Stream,
    },
    pool::{BackendLease, BackendState, Pool},
    proxy::{idle::BackendConnection, reasons, timer::PassedDeadline},
    reason::Reason,
};

/// Bytes of a response head that are parsed as they come.
const EAGER_PARSE_BYTES: usize = 512;

/// What a try is made with.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub pool: &'a Arc<Pool>,
    pub lease: &'a BackendLease,
    pub settings: &'a ForwardSettings<'a>,
    /// No idle connection may be used.
    pub fresh: bool,
    /// The PROXY header that the connection must have begun with; `None`: it must not have had one.
    pub proxy_header: Option<&'a [u8]>,
}

/// How a try ended that did not fail by the backend's fault.
pub(super) enum AttemptOutcome {
    /// The client got its response, or part of it.
    Answered(AfterExchange),
    /// The client is to blame, or has asked for what cannot be, or the time for the whole exchange is over, or another limit
    /// of ours was passed that no other backend would keep; nothing was answered yet.
    Client(Reason),
}

/// Why there is no response head.
#[derive(Debug, thiserror::Error)]
enum ResponseError {
    #[error("{1}")]
    Backend(Reason, String),
    /// A limit of ours on what a backend may send: the backend is not to blame.
    #[error("{1}")]
    Limit(Reason, String),
    /// No backend is to blame, and there is no further try.
    #[error("{0}")]
    Client(Reason),
}

/// Counts a connection in use while it lives.
pub(super) struct ConnectionInUse<'a>(&'a BackendState);

impl<'a> ConnectionInUse<'a> {
    /// Counts `connection` to the backend of `state`; one of HTTP/2, which is used by others as well, counts itself.
    pub(super) fn new(connection: &BackendConnection, state: &'a BackendState) -> Option<Self> {
        if connection.stream.h2_response().is_some() {
            return None;
        }
        state.metrics.mine().connections_active.add(1);
        Some(Self(state))
    }
}

impl Drop for ConnectionInUse<'_> {
    fn drop(&mut self) {
        self.0.metrics.mine().connections_active.sub(1);
    }
}

/// Makes one try.
pub(super) async fn run(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    upload: &mut Pump,
    io: &mut Io<'_>,
) -> Result<AttemptOutcome, AttemptError> {
    exchange.record.first_byte = None;
    let mut backend = match acquire::acquire_connection(exchange, attempt).await {
        Ok(backend) => backend,
        Err(AcquireError::Backend(failure)) => return Err(failure),
        Err(AcquireError::Client(reason)) => return Ok(AttemptOutcome::Client(reason)),
    };
    let in_use = ConnectionInUse::new(&backend, &attempt.lease.state);
    backend.exchanges += 1;
    let before = backend.wire_written();
    io.response_bytes.clear();
    io.response_bytes.reserve(INITIAL_BUFFER_BYTES);
    let sent = clock::now();
    let found = response_head(exchange, attempt.settings, &mut backend, upload, io, sent).await;
    match found {
        Ok(()) => {}
        Err(ResponseError::Client(reason)) => {
            if let Some(stream) = backend.stream.h2_response() {
                stream.connection().probe_if_stalled();
            }
            return Ok(AttemptOutcome::Client(reason));
        }
        Err(ResponseError::Limit(reason, detail)) => {
            return Err(AttemptError {
                phase: AttemptPhase::Response,
                reason,
                stale: false,
                refusal: None,
                not_processed: false,
                own_limit: true,
                detail,
            });
        }
        Err(ResponseError::Backend(reason, detail)) => {
            let stream = backend.stream.h2_response();
            // Where one request gets no answer, others would wait for theirs as long.
            if let Some(stream) = stream.filter(|_| reason == Reason::ConnectionReadTimeout) {
                stream.connection().retire();
            }
            let is_end = reason == Reason::ConnectionTerminated && io.response_bytes.is_empty();
            let refusal = refusal(&backend, attempt.settings, sent).filter(|_| is_end);
            let is_old = exchange.record.reused
                && stream.is_none_or(|stream| stream.connection().is_retired());
            return Err(AttemptError {
                phase: AttemptPhase::Response,
                reason,
                stale: is_end && is_old && refusal.is_none(),
                refusal,
                not_processed: refusal.is_some() || is_not_processed(&backend, before),
                own_limit: stream.is_some_and(OutgoingStream::hit_own_limit),
                detail,
            });
        }
    }
    // For a client of HTTP/2 success would be the switch that it has asked for, RFC 8441 section 5.
    let is_socket = exchange.client.stream.expected_accept().is_some();
    if is_socket && (200..300).contains(&io.response.status) {
        return Ok(AttemptOutcome::Client(Reason::UpgradeFailed));
    }
    if io.response.status == 101 {
        drop(in_use);
        return Ok(AttemptOutcome::Answered(
            Box::pin(respond::tunnel(exchange, attempt, backend, upload, io)).await,
        ));
    }
    respond::respond(exchange, attempt, backend, upload, io).await
}

/// How the backend has refused a request of HTTP/2 that was sent at `sent`. ENHANCE_YOUR_CALM decides about a new stream as
/// long as a connection could take to be made; later it may be the answer of a handler.
fn refusal(
    backend: &BackendConnection,
    settings: &ForwardSettings<'_>,
    sent: Instant,
) -> Option<StreamRefusal> {
    let refusal = backend.stream.h2_response()?.refusal()?;
    let took = clock::now().saturating_duration_since(sent);
    (refusal != StreamRefusal::Overloaded || took <= settings.timeouts.connect).then_some(refusal)
}

/// The backend cannot have acted on the request; `before` had been written to it when the request began.
fn is_not_processed(backend: &BackendConnection, before: u64) -> bool {
    if backend.wire_written() == before {
        return true;
    }
    if backend.stream.h2_response().is_some() {
        return false;
    }
    let acked = backend.stream.bytes_acked();
    // The kernel counts the SYN as one byte.
    backend.ended && acked.is_some_and(|acked| acked <= before + 1)
}

/// Sends the request and reads until a final response head is there; 1xx are passed on.
async fn response_head(
    exchange: &mut Exchange<'_>,
    settings: &ForwardSettings<'_>,
    backend: &mut BackendConnection,
    upload: &mut Pump,
    io: &mut Io<'_>,
    sent: Instant,
) -> Result<(), ResponseError> {
    exchange.min_rate.pause();
    let mut wire = PendingResponse {
        exchange,
        settings,
        backend,
        upload,
        broken: None,
        activity: ActivityTracker::new(sent),
        noted: None,
    };
    let mut interim = 0;
    loop {
        wire.next_head(io).await?;
        if wire.exchange.record.first_byte.is_none() {
            let waited = clock::now().saturating_duration_since(sent);
            wire.exchange.record.first_byte = Some(waited);
        }
        if io.response.status == 101 {
            return wire.check_switch(io);
        }
        if !io.response.is_interim() {
            io.response.declared_length = wire.backend.stream.declared_length();
            return Ok(());
        }
        interim += 1;
        if is_flood(interim, sent) {
            let detail = "too many 1xx responses".to_owned();
            return Err(ResponseError::Limit(Reason::ProxyProtocolError, detail));
        }
        wire.pass_interim(io).await?;
    }
}

/// Both connections while a response head is awaited.
struct PendingResponse<'w, 'e> {
    exchange: &'w mut Exchange<'e>,
    settings: &'w ForwardSettings<'w>,
    backend: &'w mut BackendConnection,
    upload: &'w mut Pump,
    /// Sending failed: the backend may still have answered before it closed.
    broken: Option<io::Error>,
    activity: ActivityTracker,
    /// What had been moved, and whether the backend was waited for, when the client's pace was last noted.
    noted: Option<((u64, u64), bool)>,
}

impl PendingResponse<'_, '_> {
    /// Reads one head, sending the request meanwhile.
    async fn next_head(&mut self, io: &mut Io<'_>) -> Result<(), ResponseError> {
        // What came behind a 1xx may be a whole head already.
        let method = self.exchange.head.text(self.exchange.head.method);
        if !io.response_bytes.is_empty() && parse(io, method)? {
            return Ok(());
        }
        loop {
            let step = poll_fn(|cx| Poll::Ready(self.poll_send_or_head(cx, io))).await;
            match step {
                Poll::Ready(Ok(true)) => return Ok(()),
                Poll::Ready(Ok(false)) => break,
                Poll::Ready(Err(trouble)) => return Err(trouble),
                Poll::Pending => {}
            }
            if is_gone_when_woken(&self.exchange.client.stream).await {
                return Err(ResponseError::Client(Reason::ClientDisconnected));
            }
        }
        let Self {
            exchange,
            settings,
            backend,
            broken,
            activity,
            ..
        } = self;
        let ClientConnection { stream, timer, .. } = &mut *exchange.client;
        let method = exchange.head.text(exchange.head.method);
        let mut gone = pin!(stream.disconnected());
        poll_fn(|cx| {
            let read = poll_parse(backend, cx, io, method, broken.as_ref());
            if read.is_ready() {
                return read;
            }
            if gone.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(ResponseError::Client(Reason::ClientDisconnected)));
            }
            // The time begins when the backend has the request, not when our system has it.
            let unacked = || [backend.stream.unacked(), None];
            let response = settings.timeouts.response;
            let passed = timer.poll_idle(cx, activity, response, settings.end, unacked);
            passed.map(|passed| Err(timeout_error(passed)))
        })
        .await
    }

    /// Ready when a head is there (true), or when there is nothing left to be sent (false).
    fn poll_send_or_head(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut Io<'_>,
    ) -> Poll<Result<bool, ResponseError>> {
        if let Poll::Ready(sent) = self.poll_send(cx) {
            return Poll::Ready(sent.map(|()| false));
        }
        match self.poll_head(cx, io) {
            Poll::Pending => self.poll_deadline(cx),
            ready @ Poll::Ready(_) => ready.map_ok(|()| true),
        }
    }

    /// Ready when the request was sent, or cannot be sent any more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ResponseError>> {
        if self.broken.is_some() || self.upload.is_done() {
            return Poll::Ready(Ok(()));
        }
        let result = poll_upload(
            self.exchange,
            self.backend,
            self.upload,
            &mut self.activity.last,
            cx,
        );
        match result {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(PumpError::Write(error))) if backend::is_inexpressible(&error) => {
                Poll::Ready(Err(ResponseError::Client(Reason::RequestError)))
            }
            Poll::Ready(Err(PumpError::Write(error))) => {
                self.broken = Some(error);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                Poll::Ready(Err(ResponseError::Client(reasons::of_request_body(&error))))
            }
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut Io<'_>,
    ) -> Poll<Result<(), ResponseError>> {
        let method = self.exchange.head.text(self.exchange.head.method);
        poll_parse(self.backend, cx, io, method, self.broken.as_ref())
    }

    /// While the request is sent: the client must go on sending, and the backend reading. A gRPC call may be silent in its
    /// middle; for it counts what moves at all.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ResponseError>> {
        let for_backend = self.upload.waits_for_sink() || self.awaits_100_continue();
        let rate = !for_backend && !grpc::is_call(self.exchange.head);
        let now = (self.upload.moved(), rate);
        let min_rate = &mut self.exchange.min_rate;
        if self.noted.replace(now) != Some(now) {
            min_rate.update(rate, now.0.0, self.activity.last);
        }
        let timer = &mut self.exchange.client.timer;
        let end = self.settings.end;
        if rate {
            let own = min_rate.deadline(self.exchange.context.listener.config.timeouts.body_idle);
            let deadline = min_deadline(own, end);
            ready!(timer.poll(cx, deadline));
            return Poll::Ready(Err(ResponseError::Client(if deadline == end {
                Reason::TotalTimeout
            } else {
                Reason::RequestTimeout
            })));
        }
        let timeouts = &self.settings.timeouts;
        let idle = if for_backend {
            timeouts.response
        } else {
            timeouts.idle
        };
        let unacked = || [self.backend.stream.unacked(), None];
        let passed = ready!(timer.poll_idle(cx, &mut self.activity, idle, end, unacked));
        Poll::Ready(Err(if for_backend || passed == PassedDeadline::End {
            timeout_error(passed)
        } else {
            ResponseError::Client(Reason::RequestTimeout)
        }))
    }

    /// A client that asked first sends no body before the backend has said 100, RFC 9110 section 10.1.1.
    fn awaits_100_continue(&self) -> bool {
        let Exchange { head, record, .. } = &*self.exchange;
        let nothing_came = self.upload.body() == 0 && self.upload.moved().0 == 0;
        head.expects_continue && record.interim == 0 && nothing_came
    }

    /// A 101 must be what the client asked for, RFC 9110 section 15.2.2. Where the key of a WebSocket is ours, so is the
    /// look at the answer to it.
    fn check_switch(&self, io: &Io<'_>) -> Result<(), ResponseError> {
        let head = &self.exchange.head;
        let asked = head.upgrade.map(|asked| head.text(asked));
        let fields = &io.response.fields;
        let mut accept = fields.values("sec-websocket-accept", io.response_bytes);
        let expected = self.exchange.client.stream.expected_accept();
        let is_good = expected.is_none_or(|it| accept.next() == Some(it.as_bytes()));
        if is_good && asked.is_some_and(|asked| io.response.switches_to(asked, io.response_bytes)) {
            return Ok(());
        }
        Err(ResponseError::Backend(
            Reason::ProxyProtocolError,
            "a 101 that was not asked for".to_owned(),
        ))
    }

    /// HTTP/1.0 clients know no 1xx, RFC 9110 section 15.2.
    async fn pass_interim(&mut self, io: &mut Io<'_>) -> Result<(), ResponseError> {
        let Exchange {
            client,
            head,
            context,
            record,
            ..
        } = &mut *self.exchange;
        let is_wanted = head.version == HttpVersion::Http11;
        if is_wanted && !is_flood(record.interim + 1, record.began) {
            record.interim += 1;
            io.out.clear();
            forward::interim_head(io.out, io.response, io.response_bytes, ("", ""));
            let timeouts = &context.listener.config.timeouts;
            write_all(client, io.out, timeouts)
                .await
                .map_err(ResponseError::Client)?;
            context.counters().sent.add(io.out.len() as u64);
        }
        io.response_bytes.drain(..io.response.len);
        Ok(())
    }
}

/// Reads from the backend until a whole head is there.
fn poll_parse(
    backend: &mut BackendConnection,
    cx: &mut Context<'_>,
    io: &mut Io<'_>,
    method: &[u8],
    broken: Option<&io::Error>,
) -> Poll<Result<(), ResponseError>> {
    loop {
        if io.response_bytes.capacity() - io.response_bytes.len() < INITIAL_BUFFER_BYTES / 4 {
            io.response_bytes.reserve(INITIAL_BUFFER_BYTES);
        }
        let before = io.response_bytes.len();
        match poll_fill(&mut backend.stream, cx, io.response_bytes) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(terminated(backend, broken, None))),
            Poll::Ready(Err(error)) => {
                return Poll::Ready(Err(terminated(backend, broken, Some(&error))));
            }
            Poll::Ready(Ok(_)) if !is_worth_parsing(io.response_bytes, before) => {}
            Poll::Ready(Ok(_)) => match parse(io, method) {
                Ok(false) => {}
                Ok(true) => return Poll::Ready(Ok(())),
                Err(trouble) => return Poll::Ready(Err(trouble)),
            },
        }
    }
}

/// The connection is over. Notes whether the backend ended it: what its FIN acknowledges is exact, even if a reset came
/// behind (a broken pipe). With a bare reset the kernel does not look at what was received, and the backend may have
/// read the request.
fn terminated(
    backend: &mut BackendConnection,
    write: Option<&io::Error>,
    read: Option<&io::Error>,
) -> ResponseError {
    let mut errors = [write, read].into_iter().flatten().peekable();
    let detail = errors.peek().map_or_else(
        || "closed before a whole response head".to_owned(),
        |error| describe(error),
    );
    backend.ended = match backend.stream.tls() {
        // The end of TLS is not that of the connection below; without one the connection has ended (`UnexpectedEof`).
        Some(tls) => {
            use io::ErrorKind::{BrokenPipe, UnexpectedEof};
            errors.all(|error| matches!(error.kind(), BrokenPipe | UnexpectedEof))
                && tls.peer_closed_socket()
        }
        None => errors.all(|error| error.kind() == io::ErrorKind::BrokenPipe),
    };
    let h2_error = read.filter(|_| backend.stream.h2_response().is_some());
    let mut all = [write, read].into_iter().flatten();
    let reason = match h2_error {
        Some(error) => reasons::of_h2_stream(error),
        None => match all.find(|error| local_error::is_local(error)) {
            Some(error) => reasons::of_broken_connection(error),
            None => Reason::ConnectionTerminated,
        },
    };
    ResponseError::Backend(reason, detail)
}

/// The beginning is always looked at, so that garbage is known at once. After that a head is looked at when its end may
/// have come, not for every byte that drips in.
fn is_worth_parsing(bytes: &[u8], before: usize) -> bool {
    before < EAGER_PARSE_BYTES
        || bytes.len() >= response::MAX_HEAD_BYTES
        || head_end(bytes, before).is_some()
}

fn parse(io: &mut Io<'_>, method: &[u8]) -> Result<bool, ResponseError> {
    io.response
        .parse(io.response_bytes, method)
        .map_err(|invalid| ResponseError::Backend(invalid.reason, invalid.detail.to_owned()))
}

/// Sends on, and counts what was moved.
pub(super) fn poll_upload(
    exchange: &mut Exchange<'_>,
    backend: &mut BackendConnection,
    upload: &mut Pump,
    progress: &mut Instant,
    cx: &mut Context<'_>,
) -> Poll<Result<(), PumpError>> {
    let before = upload.moved();
    let result = upload.poll(cx, &mut exchange.client.stream, &mut backend.stream);
    let after = upload.moved();
    let counters = exchange.context.counters();
    counters.received.add(after.0 - before.0);
    backend.written += after.1 - before.1;
    // A request without a body goes out at the first poll, at the time it was begun.
    if after.0 != before.0 || after != before && result.is_pending() {
        *progress = clock::now();
    }
    result
}

/// A failure of the backend: counted, and held against it, where `reason` blames it.
pub(super) fn record_backend_failure(attempt: Attempt<'_>, reason: Reason) {
    if !reason.is_backend_fault() {
        return;
    }
    attempt.lease.state.metrics.mine().failures.add(reason);
    if let Some(transition) = attempt
        .pool
        .record_failure(attempt.lease, reason, clock::now())
    {
        transition.log();
    }
}

pub(super) fn min_deadline(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// The deadline of the whole exchange blames no backend; the other one is the backend's.
fn timeout_error(passed: PassedDeadline) -> ResponseError {
    match passed {
        PassedDeadline::End => ResponseError::Client(Reason::TotalTimeout),
        PassedDeadline::Idle => ResponseError::Backend(
            Reason::ConnectionReadTimeout,
            "no response head in time".to_owned(),
        ),
    }
}

/// True if the client has reset its connection; waits for nothing.
pub(super) async fn is_gone(client: &Stream) -> bool {
    let mut gone = pin!(client.disconnected());
    poll_fn(|cx| Poll::Ready(gone.as_mut().poll(cx).is_ready())).await
}

/// Waits until anything wakes the task; true if it is that the client has reset its connection. Nothing else would tell
/// while the client is neither read nor written.
pub(super) async fn is_gone_when_woken(client: &Stream) -> bool {
    let mut gone = pin!(client.disconnected());
    let mut waited = false;
    poll_fn(|cx| {
        if gone.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        if std::mem::replace(&mut waited, true) {
            Poll::Ready(false)
        } else {
            Poll::Pending
        }
    })
    .await
}
