//! One attempt: the backend that was picked, and the settings it is tried with.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use super::{
    backend_side::BackendSide,
    exchange::{Exchange, ForwardSettings},
    relay::{BodyRelay, BodyRelayError},
    sticky::StickyCookie,
};
use crate::{
    base::clock,
    http::fields::{KnownField, list},
    pool::{BackendLease, BackendState, Pool},
    reason::Reason,
    telemetry::metrics::class_index,
};

/// An attempt on one backend.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub pool: &'a Arc<Pool>,
    pub lease: &'a BackendLease,
    pub settings: &'a ForwardSettings<'a>,
    /// No idle connection may be used.
    pub fresh: bool,
    /// The PROXY header that the connection must have begun with; `None` for one without.
    pub proxy_header: Option<&'a [u8]>,
    /// Position of the backend that the client's sticky cookie names.
    pub sticky: Option<usize>,
}

impl<'a> Attempt<'a> {
    /// The cookie of the sticky session for a response of this backend; `None` if the pool has no
    /// such sessions.
    pub(super) fn sticky_cookie(self, exchange: &Exchange<'_>) -> Option<StickyCookie<'a>> {
        let table = self.pool.sticky.as_ref()?;
        let is_known = self.sticky == Some(self.lease.index);
        let field = || table.field(self.lease.index, uses_tls(exchange));
        Some(StickyCookie {
            name: &table.cookie,
            field: if is_known { None } else { field() },
        })
    }

    /// Counts the final response of the backend, whose head is in the buffers of `exchange`.
    pub(super) fn record_response(self, exchange: &mut Exchange<'_>) {
        if self.pool.sticky.is_some() {
            let sessions = &self.pool.state.metrics.mine().sticky;
            sessions.count(self.sticky, self.lease.index);
        }
        let status = exchange.buffers.response.status;
        exchange.record.status = status;
        let metrics = self.lease.state.metrics.mine();
        if let Some(count) = metrics.requests.get(class_index(status)) {
            count.add(1);
        }
        if let Some(first_byte) = exchange.record.first_byte {
            metrics.response.observe(first_byte);
            let now = exchange.context.worker.now();
            self.pool.record_response_time(self.lease, first_byte, now);
        }
        if !self.pool.is_failure_status(status) {
            self.lease.record_response();
        }
    }

    /// Reports a complete response to the pool: a success, unless its status is one of
    /// `ejection.status`.
    pub(super) fn record_outcome(self, status: u16, now: Instant) {
        if self.pool.is_failure_status(status) {
            return self.record_backend_failure(Reason::ResponseStatus);
        }
        if let Some(transition) = self.pool.record_success(self.lease, now) {
            transition.log();
        }
    }

    /// Counts a failure, and reports it to the pool, if `reason` is the backend's fault.
    pub(super) fn record_backend_failure(self, reason: Reason) {
        if !reason.is_backend_fault() {
            return;
        }
        self.lease.state.metrics.mine().failures.add(reason);
        let now = clock::now();
        // It took at least that long: the next requests go elsewhere.
        let waited = match reason {
            Reason::ConnectionReadTimeout => self.settings.timeouts.response,
            Reason::ConnectionTimeout => Some(self.settings.timeouts.connect),
            _ => None,
        };
        if let Some(waited) = waited {
            self.pool.record_response_time(self.lease, waited, now);
        }
        if let Some(transition) = self.pool.record_failure(self.lease, reason, now) {
            transition.log();
        }
    }
}

/// True if the client uses TLS, to us or to the trusted proxy that it reached first.
fn uses_tls(exchange: &Exchange<'_>) -> bool {
    let forwarded = || exchange.head().find(KnownField::XForwardedProto);
    let is_https = |scheme: &[u8]| scheme.eq_ignore_ascii_case(b"https");
    exchange.client.side.negotiated_tls().is_some()
        || exchange.address.trusted
            && forwarded().is_some_and(|schemes| list(schemes).next().is_some_and(is_https))
}

/// Counts a backend connection in use while it lives.
pub(super) struct ConnectionInUse<'a>(&'a BackendState);

impl<'a> ConnectionInUse<'a> {
    /// Counts the connection to the backend of `state`. A shared one counts itself.
    pub(super) fn new(backend: &BackendSide, state: &'a BackendState) -> Option<Self> {
        if backend.is_shared() {
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

/// Sends more of the request, and counts the bytes; `progress` is the time of the last byte.
pub(super) fn poll_upload(
    exchange: &mut Exchange<'_>,
    backend: &mut BackendSide,
    upload: &mut BodyRelay,
    progress: &mut Instant,
    cx: &mut Context<'_>,
) -> Poll<Result<(), BodyRelayError>> {
    let before = upload.moved();
    let result = upload.poll(cx, exchange.client.side.source(), backend.sink());
    let after = upload.moved();
    let counters = exchange.context.counters();
    counters.received.add(after.0 - before.0);
    backend.note_written(after.1 - before.1);
    // The clock is not read for a request without a body: it goes out at the first poll, at the
    // time the caller has noted already.
    if after.0 != before.0 || after != before && result.is_pending() {
        *progress = exchange.context.worker.now();
    }
    result
}
