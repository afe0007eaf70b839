//! The record of an exchange, and the one place that turns it into counters and a line of the
//! access log. Decides nothing about the exchange.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::client_side::ClientSide;
use crate::{
    http::{fields::KnownField, message::RequestHead},
    pool::Pool,
    proxy::worker::Worker,
    reason::Reason,
    snapshot::{Listener, Snapshot},
    telemetry::{
        metrics::{PerThread, PoolSlot, class_index, method_index},
        record::{AccessRecord, RequestText},
    },
};

/// Facts that an exchange collects on its way.
#[derive(Debug, Default)]
pub(super) struct ExchangeRecord {
    /// Status sent to the client; 0 if none was.
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub route: Option<usize>,
    pub pool: Option<usize>,
    /// Position of the last backend in the pool, or in `newest_pool` if that is set.
    pub backend: Option<usize>,
    /// The pool of a newer generation that the exchange went over to.
    pub newest_pool: Option<Arc<Pool>>,
    pub attempts: u32,
    /// 1xx responses sent to the client.
    pub interim: u32,
    /// The last attempt used a connection that had carried other requests.
    pub reused: bool,
    /// Time to read the request head.
    pub request: Option<Duration>,
    /// Time in the queue of the pool; `None` if it never waited.
    pub queue: Option<Duration>,
    pub connect: Option<Duration>,
    pub first_byte: Option<Duration>,
    pub reason: Option<Reason>,
    /// The response was cut in its body, so `reason` is not what its status says.
    pub is_cut: bool,
}

/// The rest of what is recorded: the request and where it was served.
pub(super) struct RecordedRequest<'a> {
    pub began: Instant,
    pub snapshot: &'a Snapshot,
    pub worker: &'a Worker,
    pub listener: &'a Listener,
    pub side: &'a ClientSide,
    /// Address of the client; `None` on a unix socket.
    pub client: Option<std::net::IpAddr>,
    pub head: &'a RequestHead,
    pub request_id: &'a str,
}

impl ExchangeRecord {
    /// The record of a request whose head took `request` from its first byte on.
    pub(super) fn new(request: Duration) -> Self {
        Self {
            request: Some(request),
            ..Self::default()
        }
    }

    /// Counts and logs the exchange.
    pub(super) fn finish(self, of: &RecordedRequest<'_>) {
        let snapshot = of.snapshot;
        let took = of.worker.elapsed_since(of.began);
        let pool = self.pool.and_then(|pool| snapshot.pools.get(pool));
        debug_assert_eq!(
            pool.is_some(),
            self.pool.is_some(),
            "an index of the generation"
        );
        let metrics = pool
            .map_or(&*snapshot.unrouted, |pool| &pool.state.metrics)
            .mine();
        if self.status > 0 {
            metrics
                .requests
                .add(method_index(of.head.text(of.head.method)), self.status);
            if let Some(duration) = metrics.duration.get(class_index(self.status)) {
                duration.observe(took);
            }
        }
        metrics.request_body.add(self.bytes_in);
        metrics.response_body.add(self.bytes_out);
        if let Some(reason) = self.reason {
            let is_response = !self.is_cut && reason.status(snapshot.config.errors.status) > 0;
            metrics.error(reason, if is_response { self.status } else { 0 });
        }
        // The log shows a client that left before any status as 499, as nginx does.
        let status = if self.status == 0 { 499 } else { self.status };
        let mut random = of.worker.random.borrow_mut();
        if snapshot
            .access_log
            .wants(status, self.reason, took, &mut random)
        {
            drop(random);
            self.write_log_line(of, pool.map(|pool| &**pool), status, took);
        }
    }

    #[cold]
    fn write_log_line(
        &self,
        of: &RecordedRequest<'_>,
        pool: Option<&Pool>,
        status: u16,
        took: Duration,
    ) {
        let RecordedRequest { snapshot, head, .. } = *of;
        let backend = self
            .backend
            .and_then(|backend| self.newest_pool.as_deref().or(pool)?.backends.get(backend));
        let route = self
            .route
            .and_then(|route| snapshot.config.routes.get(route));
        let record = AccessRecord {
            began: of.began,
            listener: of.listener.config.name.clone(),
            client: of.client,
            tls: of.side.tls_version(),
            status,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            route: route.map(|route| route.name.clone()),
            pool: pool.map(|pool| pool.name.clone()),
            backend: backend.map(|backend| backend.config.name.clone()),
            attempts: self.attempts,
            reused: self.reused,
            request: self.request,
            queue: self.queue,
            connect: self.connect,
            first_byte: self.first_byte,
            reason: self.reason,
        };
        let text = RequestText {
            protocol: head.version.name(),
            method: head.text(head.method),
            host: head.text(head.host),
            path: head.text(head.path),
            request_id: of.request_id.as_bytes(),
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

/// Counts a request as active while it lives.
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
