//! Sends the request of an attempt, and reads until there is a final response head.
//!
//! Passes 1xx responses on. What follows the final head is in `respond.rs` and `tunnel.rs`.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
    time::Instant,
};

use super::{
    attempt::{Attempt, poll_upload},
    backend_side::BackendSide,
    buffers::ExchangeBuffers,
    client_side::ClientSide,
    connection::ClientConnection,
    deadline::Deadline,
    exchange::Exchange,
    forward, grpc,
    interim::is_flood,
    relay::{BodyRelay, BodyRelayError, poll_fill_head},
};
use crate::{
    config::model::ListenerTimeoutsConfig,
    http::{
        message::{HttpVersion, ResponseHead},
        rules::MAX_HEAD_BYTES,
        websocket,
    },
    http1::{encode::TextHead, head_end, response},
    http2::block_head::BlockHead,
    net::{activity::ActivityTracker, copy::RelaySide as _, local_error},
    proxy::{idle::BackendConnection, reasons},
    reason::Reason,
};

/// Bytes of a response head that are parsed as they come.
const EAGER_PARSE_BYTES: usize = 512;

/// The reason why there is no response head.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResponseError {
    /// The backend is to blame.
    #[error("{1}")]
    Backend(Reason, String),
    /// A limit of ours on what a backend may send: the backend is not to blame.
    #[error("{1}")]
    Limit(Reason, String),
    /// No backend is to blame, and there is no further attempt.
    #[error("{0}")]
    Client(Reason),
}

impl ResponseError {
    /// The error of an exchange that ran into a deadline: that of the response is the backend's
    /// fault, all others are not.
    fn timeout(reason: Reason) -> Self {
        match reason {
            Reason::ConnectionReadTimeout => {
                Self::Backend(reason, "no response head in time".to_owned())
            }
            _ => Self::Client(reason),
        }
    }
}

/// Sends the request, which begins at `sent`, and reads until a final response head is there.
pub(super) async fn await_response(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    backend: &mut BackendSide,
    upload: &mut BodyRelay,
    sent: Instant,
) -> Result<(), ResponseError> {
    exchange.min_rate.pause();
    exchange.send_head(attempt, backend, upload)?;
    let mut pending = PendingResponse {
        exchange,
        attempt,
        backend,
        upload,
        broken: None,
        activity: ActivityTracker::new(sent),
        noted: None,
    };
    let mut interim = 0;
    loop {
        pending.next_head().await?;
        let Exchange {
            record,
            buffers,
            context,
            ..
        } = &mut *pending.exchange;
        if record.first_byte.is_none() {
            record.first_byte = Some(context.worker.elapsed_since(sent));
        }
        if buffers.response.status == 101 {
            return pending.check_switch();
        }
        if !buffers.response.is_interim() {
            return Ok(());
        }
        interim += 1;
        if is_flood(interim, sent) {
            let detail = "too many 1xx responses".to_owned();
            return Err(ResponseError::Limit(Reason::ProxyProtocolError, detail));
        }
        pending.pass_interim().await?;
    }
}

/// Both connections until there is a response head.
struct PendingResponse<'w, 'e> {
    exchange: &'w mut Exchange<'e>,
    attempt: Attempt<'w>,
    backend: &'w mut BackendSide,
    upload: &'w mut BodyRelay,
    /// Sending failed. The backend may still have responded before it closed.
    broken: Option<io::Error>,
    activity: ActivityTracker,
    /// Bytes moved, and whether the client's rate was measured, at its last update.
    noted: Option<((u64, u64), bool)>,
}

impl PendingResponse<'_, '_> {
    /// Reads one head, sending the request meanwhile.
    async fn next_head(&mut self) -> Result<(), ResponseError> {
        // The bytes behind a 1xx may be a whole head already.
        let has_bytes = !self.exchange.buffers.response.bytes.is_empty();
        if has_bytes && matches!(self.backend, BackendSide::H1(_)) && parse(self.exchange.buffers)?
        {
            return Ok(());
        }
        // Send the request. A response may come before its end.
        loop {
            let step = poll_fn(|cx| Poll::Ready(self.poll_send_or_head(cx))).await;
            match step {
                Poll::Ready(Ok(true)) => return Ok(()),
                Poll::Ready(Ok(false)) => break,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {}
            }
            if self.exchange.client.is_disconnected_when_woken().await {
                return Err(ResponseError::Client(Reason::ClientDisconnected));
            }
        }
        self.read_head().await
    }

    /// Reads one head after the request was sent.
    async fn read_head(&mut self) -> Result<(), ResponseError> {
        let Self {
            exchange,
            attempt,
            backend,
            broken,
            activity,
            ..
        } = self;
        let Exchange {
            client, buffers, ..
        } = &mut **exchange;
        let ClientConnection { side, timer, .. } = &mut **client;
        poll_fn(|cx| {
            let read = poll_head(backend, cx, buffers, broken.as_ref());
            if read.is_ready() {
                return read;
            }
            if side.poll_disconnected(cx).is_ready() {
                return Poll::Ready(Err(ResponseError::Client(Reason::ClientDisconnected)));
            }
            // The timeout begins when the backend has acknowledged the request, not when our
            // kernel has taken it.
            let unacked = || [backend.unacked(), None];
            let settings = attempt.settings;
            let (idle, total) = (settings.timeouts.response, settings.deadline);
            let end = total.map(|total| total.at);
            let passed = ready!(timer.poll_idle(cx, activity, idle, end, unacked));
            let reason = Deadline::reason_of(passed, total);
            Poll::Ready(Err(ResponseError::timeout(
                reason.unwrap_or(Reason::ConnectionReadTimeout),
            )))
        })
        .await
    }

    /// Ready when a head is there (true), or when the request was sent to its end (false).
    fn poll_send_or_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ResponseError>> {
        if let Poll::Ready(sent) = self.poll_send(cx) {
            return Poll::Ready(sent.map(|()| false));
        }
        match poll_head(
            self.backend,
            cx,
            self.exchange.buffers,
            self.broken.as_ref(),
        ) {
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
            Poll::Ready(Err(BodyRelayError::Write(error))) => {
                self.broken = Some(error);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                let reason = reasons::of_request_body(&error);
                Poll::Ready(Err(ResponseError::Client(reason)))
            }
        }
    }

    /// Ready when a timeout has passed while the request is sent: the client must go on sending,
    /// and the backend reading. The minimum rate does not hold for gRPC, whose calls may be
    /// silent in the middle: they time out like a response.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ResponseError>> {
        let for_backend = self.upload.waits_for_sink() || self.awaits_100_continue();
        let has_min_rate = !for_backend && !grpc::is_call(self.exchange.head());
        let now = (self.upload.moved(), has_min_rate);
        let min_rate = &mut self.exchange.min_rate;
        if self.noted.replace(now) != Some(now) {
            min_rate.update(has_min_rate, now.0.0, self.activity.last);
        }
        let timer = &mut self.exchange.client.timer;
        let total = self.attempt.settings.deadline;
        let reason = if has_min_rate {
            let timeouts = &self.exchange.context.listener.config.timeouts;
            let own = min_rate.deadline(timeouts.body_idle).map(|at| Deadline {
                at,
                reason: Reason::RequestTimeout,
            });
            let deadline = Deadline::earliest(own, total);
            ready!(Deadline::poll(deadline, timer, cx))
        } else {
            let timeouts = &self.attempt.settings.timeouts;
            let (idle, reason) = if for_backend {
                (timeouts.response, Reason::ConnectionReadTimeout)
            } else {
                (timeouts.idle, Reason::RequestTimeout)
            };
            let unacked = || [self.backend.unacked(), None];
            let end = total.map(|total| total.at);
            let passed = ready!(timer.poll_idle(cx, &mut self.activity, idle, end, unacked));
            Deadline::reason_of(passed, total).unwrap_or(reason)
        };
        Poll::Ready(Err(ResponseError::timeout(reason)))
    }

    /// True if the client waits for 100 (Continue) before it sends the body: then the backend is
    /// waited for, not the client (RFC 9110 section 10.1.1).
    fn awaits_100_continue(&self) -> bool {
        let is_untouched = self.upload.body() == 0 && self.upload.moved().0 == 0;
        self.exchange.head().expects_continue && self.exchange.record.interim == 0 && is_untouched
    }

    /// Checks that a 101 is the switch that the client requested (RFC 9110 section 15.2.2). Where
    /// the WebSocket key is ours, so is the check of the backend's proof that it has read it.
    fn check_switch(&self) -> Result<(), ResponseError> {
        let ExchangeBuffers {
            request, response, ..
        } = &*self.exchange.buffers;
        let requested = request.upgrade.map(|protocol| request.text(protocol));
        let mut accept = response
            .fields
            .values("sec-websocket-accept", &response.bytes);
        let key = self.exchange.websocket_key.as_deref();
        let is_accepted = key
            .is_none_or(|key| accept.next() == Some(websocket::accept(key.as_bytes()).as_bytes()));
        if is_accepted && requested.is_some_and(|it| response.switches_to(it)) {
            return Ok(());
        }
        Err(ResponseError::Backend(
            Reason::ProxyProtocolError,
            "a 101 that was not asked for".to_owned(),
        ))
    }

    /// Passes a 1xx response on, except to HTTP/1.0 clients, which know none (RFC 9110 section
    /// 15.2).
    async fn pass_interim(&mut self) -> Result<(), ResponseError> {
        let Exchange {
            client,
            buffers,
            context,
            record,
            began,
            ..
        } = &mut *self.exchange;
        let ExchangeBuffers {
            request,
            response,
            client_out,
            ..
        } = &mut **buffers;
        let is_wanted = request.version != HttpVersion::Http10;
        if is_wanted && !is_flood(record.interim + 1, *began) {
            record.interim += 1;
            let timeouts = &context.listener.config.timeouts;
            let sent = send_interim(client, response, client_out, timeouts).await;
            context
                .counters()
                .sent
                .add(sent.map_err(ResponseError::Client)?);
        }
        match self.backend {
            BackendSide::H1(_) => drop(response.bytes.drain(..response.len)),
            BackendSide::H2(_) => response.bytes.clear(),
        }
        Ok(())
    }
}

/// Sends a 1xx to the client; gives its size.
async fn send_interim(
    client: &mut ClientConnection,
    response: &ResponseHead,
    out: &mut Vec<u8>,
    timeouts: &ListenerTimeoutsConfig,
) -> Result<u64, Reason> {
    client.head_ready(timeouts, None).await?;
    if let ClientSide::H2(side) = &client.side {
        let write = |block: &mut BlockHead<'_>| forward::interim_head(block, response);
        let sent = side.stream.send_head(false, write);
        return sent.map_or(Err(Reason::ClientDisconnected), |sent| Ok(sent as u64));
    }
    out.clear();
    forward::interim_head(&mut TextHead::new(out), response);
    client.write_all(out, false, timeouts).await?;
    Ok(out.len() as u64)
}

/// Reads from the backend until a whole head is there.
fn poll_head(
    backend: &mut BackendSide,
    cx: &mut Context<'_>,
    buffers: &mut ExchangeBuffers,
    broken: Option<&io::Error>,
) -> Poll<Result<(), ResponseError>> {
    let connection = match backend {
        BackendSide::H1(connection) => connection,
        BackendSide::H2(outgoing) => {
            let polled = outgoing.poll_head(&mut buffers.response, cx);
            return polled.map_err(|ended| {
                ResponseError::Backend(reasons::of_h2_end(ended), ended.to_string())
            });
        }
    };
    loop {
        let bytes = &mut buffers.response.bytes;
        let before = bytes.len();
        match poll_fill_head(&mut connection.stream, cx, bytes) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(terminated(connection, broken, None))),
            Poll::Ready(Err(error)) => {
                return Poll::Ready(Err(terminated(connection, broken, Some(&error))));
            }
            Poll::Ready(Ok(_)) if !is_worth_parsing(bytes, before) => {}
            Poll::Ready(Ok(_)) => match parse(buffers) {
                Ok(false) => {}
                Ok(true) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error)),
            },
        }
    }
}

/// The error of a connection that ended. Notes whether the backend ended it with a FIN: then the
/// kernel's count of acknowledged bytes is exact, even if a reset came behind it (a broken pipe).
/// After a bare reset it is not: the kernel drops what was received, and the backend may have read
/// the request.
fn terminated(
    backend: &mut BackendConnection,
    write: Option<&io::Error>,
    read: Option<&io::Error>,
) -> ResponseError {
    let mut errors = [write, read].into_iter().flatten().peekable();
    let detail = errors.peek().map_or_else(
        || "closed before a whole response head".to_owned(),
        ToString::to_string,
    );
    backend.ended = match backend.stream.tls() {
        // A close alert does not end the TCP connection below; a missing one shows that it has
        // ended (`UnexpectedEof`).
        Some(tls) => {
            use io::ErrorKind::{BrokenPipe, UnexpectedEof};
            errors.all(|error| matches!(error.kind(), BrokenPipe | UnexpectedEof))
                && tls.peer_closed_socket()
        }
        None => errors.all(|error| error.kind() == io::ErrorKind::BrokenPipe),
    };
    let mut all = [write, read].into_iter().flatten();
    let reason = match all.find(|error| local_error::is_local(error)) {
        Some(error) => reasons::of_broken_connection(error),
        None => Reason::ConnectionTerminated,
    };
    ResponseError::Backend(reason, detail)
}

/// True if a head should be parsed. The first bytes always are, so that garbage is refused at
/// once; later bytes only at a possible end of the head, as parsing each byte that drips in would
/// cost quadratic time.
fn is_worth_parsing(bytes: &[u8], before: usize) -> bool {
    before < EAGER_PARSE_BYTES || bytes.len() >= MAX_HEAD_BYTES || head_end(bytes, before).is_some()
}

fn parse(buffers: &mut ExchangeBuffers) -> Result<bool, ResponseError> {
    let ExchangeBuffers {
        request, response, ..
    } = buffers;
    response::parse(response, request.text(request.method)).map_err(|invalid| {
        let reason = reasons::of_response_head(invalid.fault);
        ResponseError::Backend(reason, invalid.detail.to_owned())
    })
}
