//! What an exchange finds out on its way, and the one place that turns it into counters and a line of the access log.
//!
//! Whatever happens to an exchange, dropping included, it is recorded once. Decides nothing about the exchange.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::exchange::{Exchange, ExchangeContext};
use crate::{
    base::clock,
    http1::fields::KnownField,
    pool::Pool,
    reason::Reason,
    telemetry::{
        metrics::{PerThread, PoolSlot, class_index, method_index},
        record::{AccessRecord, RequestText},
    },
};

/// What is found out on the way.
#[derive(Debug)]
pub(super) struct ExchangeRecord {
    pub began: Instant,
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub route: Option<usize>,
    pub pool: Option<usize>,
    /// Its position in the pool, or in `newest` if that is set.
    pub backend: Option<usize>,
    /// The pool as a reload has made it between two attempts.
    pub newest: Option<Arc<Pool>>,
    pub attempts: u32,
    /// 1xx responses that the client got.
    pub interim: u32,
    pub reused: bool,
    pub request: Option<Duration>,
    pub connect: Option<Duration>,
    pub first_byte: Option<Duration>,
    pub reason: Option<Reason>,
    /// The response was cut in its body: the reason is not what its status says.
    pub cut: bool,
    /// Recorded already.
    recorded: bool,
}

impl ExchangeRecord {
    /// The head of the request, whose first byte came at `began`, has just been read.
    pub(super) fn new(began: Instant) -> Self {
        Self {
            began,
            status: 0,
            bytes_in: 0,
            bytes_out: 0,
            route: None,
            pool: None,
            backend: None,
            newest: None,
            attempts: 0,
            interim: 0,
            reused: false,
            request: Some(clock::now().saturating_duration_since(began)),
            connect: None,
            first_byte: None,
            reason: None,
            cut: false,
            recorded: false,
        }
    }
}

impl Exchange<'_> {
    /// Counts and logs the exchange; the second time it does nothing.
    pub(super) fn record(&mut self) {
        if std::mem::replace(&mut self.record.recorded, true) {
            return;
        }
        let ExchangeContext {
            snapshot, worker, ..
        } = self.context;
        let record = &self.record;
        let took = clock::now().saturating_duration_since(record.began);
        let pool = record.pool.and_then(|pool| snapshot.pools.get(pool));
        let metrics = pool
            .map_or(&*snapshot.unrouted, |pool| &pool.state.metrics)
            .mine();
        if record.status > 0 {
            metrics.requests.add(
                method_index(self.head.text(self.head.method)),
                record.status,
            );
            if let Some(duration) = metrics.duration.get(class_index(record.status)) {
                duration.observe(took);
            }
        }
        metrics.request_body.add(record.bytes_in);
        metrics.response_body.add(record.bytes_out);
        if let Some(reason) = record.reason {
            let is_answer = !record.cut && reason.status(snapshot.config.errors.status) > 0;
            metrics.error(reason, if is_answer { record.status } else { 0 });
        }
        let status = if record.status == 0 {
            499
        } else {
            record.status
        };
        if snapshot
            .access_log
            .wants(status, record.reason, took, &mut worker.random.borrow_mut())
        {
            self.write_log_line(pool.map(|pool| &**pool), status, took);
        }
    }

    #[cold]
    fn write_log_line(&self, pool: Option<&Pool>, status: u16, took: Duration) {
        let ExchangeContext {
            snapshot, listener, ..
        } = self.context;
        let (record, head) = (&self.record, &*self.head);
        let backend = record
            .backend
            .and_then(|backend| record.newest.as_deref().or(pool)?.backends.get(backend));
        let record = AccessRecord {
            began: record.began,
            listener: listener.config.name.clone(),
            client: self.from.client,
            tls: self.client.stream.tls_version(),
            status,
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            route: record
                .route
                .and_then(|route| snapshot.config.routes.get(route))
                .map(|route| route.name.clone()),
            pool: pool.map(|pool| pool.name.clone()),
            backend: backend.map(|backend| backend.config.name.clone()),
            attempts: record.attempts,
            reused: record.reused,
            request: record.request,
            connect: record.connect,
            first_byte: record.first_byte,
            reason: record.reason,
        };
        let text = RequestText {
            protocol: if self.client.stream.h2_request().is_some() {
                "HTTP/2"
            } else {
                head.version.name()
            },
            method: head.text(head.method),
            host: head.text(head.host),
            path: head.text(head.path),
            request_id: self.request_id.as_bytes(),
            traceparent: head.find(KnownField::Traceparent).unwrap_or_default(),
            user_agent: head.find(KnownField::UserAgent).unwrap_or_default(),
            referer: head.find(KnownField::Referer).unwrap_or_default(),
        };
        let names = snapshot.access_log.header_names();
        let headers: Vec<(&str, &[u8])> = names
            .iter()
            .filter_map(|name| Some((name.as_str(), head.fields.values(name, &head.bytes).next()?)))
            .collect();
        snapshot.access_log.write(&record, &text, &headers, took);
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if !self.record.recorded {
            // The task was dropped in the middle: only the end of a drain does that.
            self.record.reason = Some(Reason::DrainTimeout);
            // A response that ends with its connection would look whole.
            self.client.stream.set_reset_on_close();
            self.record();
        }
    }
}

/// Counts a request as under way while it lives.
pub(super) struct ActiveRequest<'a>(&'a PoolSlot);

impl<'a> ActiveRequest<'a> {
    pub(super) fn new(metrics: &'a PerThread<PoolSlot>) -> Self {
        let slot = metrics.mine();
        slot.requests_active.add(1);
        Self(slot)
    }
}

impl Drop for ActiveRequest<'_> {
    fn drop(&mut self) {
        self.0.requests_active.sub(1);
    }
}
