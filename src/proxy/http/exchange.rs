//! One HTTP exchange: where it takes place, how it is forwarded, its buffers and its record.
//!
//! The steps are in `run.rs`. Nothing here waits.

use std::{rc::Rc, time::Instant};

use super::{
    buffers::ExchangeBuffers,
    client_address::ClientAddress,
    connection::ClientConnection,
    deadline::Deadline,
    forward, grpc,
    min_rate::MinRate,
    outcome::ClientReuse,
    record::{ExchangeRecord, RecordedRequest},
};
use crate::{
    config::model::{PoolTimeoutsConfig, RetriesConfig, RouteConfig, TimeoutOverrides},
    http::{cookies, message::RequestHead},
    net::copy::RelaySide as _,
    pool::Pool,
    proxy::worker::Worker,
    reason::Reason,
    snapshot::{Listener, Snapshot},
    telemetry::metrics::ListenerSlot,
};

/// The worker, generation and listener that serve an exchange.
#[derive(Clone, Copy)]
pub(super) struct ExchangeContext<'a> {
    pub worker: &'a Rc<Worker>,
    pub snapshot: &'a Snapshot,
    pub listener: &'a Listener,
    pub listener_index: usize,
}

impl<'a> ExchangeContext<'a> {
    /// The listener's counters of this thread.
    pub(super) fn counters(&self) -> &'a ListenerSlot {
        self.listener.state.metrics.mine()
    }
}

/// Settings for forwarding: those of the pool, with the overrides of the route.
pub(super) struct ForwardSettings<'a> {
    pub timeouts: PoolTimeoutsConfig,
    pub retries: Option<&'a RetriesConfig>,
    pub route: Option<&'a RouteConfig>,
    /// End of `timeouts.total`, or of the client's `grpc-timeout` if that is earlier.
    pub deadline: Option<Deadline>,
    /// The target that the route has rewritten.
    pub target: Option<Vec<u8>>,
}

impl<'a> ForwardSettings<'a> {
    /// Settings of a request to `pool` that began at `began`. `retries` overrides the pool's own.
    pub(super) fn new(
        pool: &'a Pool,
        route: Option<&'a RouteConfig>,
        retries: Option<&'a Option<RetriesConfig>>,
        began: Instant,
    ) -> Self {
        let own = &pool.config.timeouts;
        let timeouts = match route.map(|route| &route.timeouts) {
            Some(over) if *over != TimeoutOverrides::default() => PoolTimeoutsConfig {
                connect: over.connect.unwrap_or(own.connect),
                response: over.response.unwrap_or(own.response),
                idle: over.idle.unwrap_or(own.idle),
                tcp_idle: over.idle.unwrap_or(own.tcp_idle),
                total: over.total.unwrap_or(own.total),
            },
            _ => own.clone(),
        };
        Self {
            retries: retries.unwrap_or(&pool.config.retries).as_ref(),
            route,
            deadline: Deadline::after(began, timeouts.total, Reason::TotalTimeout),
            timeouts,
            target: None,
        }
    }

    /// Ends the exchange earlier if the client of a gRPC call waits less long: what comes after
    /// that is of no use to it.
    pub(super) fn limit_to_client(&mut self, head: &RequestHead, began: Instant) {
        let given_up = Deadline::after(began, grpc::timeout(head), Reason::TotalTimeout);
        self.deadline = Deadline::earliest(given_up, self.deadline);
    }

    /// True if the method of `head` is in `retries.methods`.
    pub(super) fn is_idempotent(&self, head: &RequestHead) -> bool {
        let method = head.text(head.method);
        self.retries.is_some_and(|retries| {
            retries
                .methods
                .iter()
                .any(|known| known.as_bytes() == method)
        })
    }
}

/// One exchange. It is recorded when it is dropped, so once on every path.
pub(super) struct Exchange<'a> {
    pub context: ExchangeContext<'a>,
    pub client: &'a mut ClientConnection,
    pub buffers: &'a mut ExchangeBuffers,
    /// Arrival of the first byte of the request.
    pub began: Instant,
    pub record: ExchangeRecord,
    /// Address of the client: the peer's own, or the one that a trusted proxy names.
    pub address: ClientAddress,
    /// Minimum rate at which the client must send its body.
    pub min_rate: MinRate,
    /// Offset of the next request in the request's buffer, if the body was read whole with the
    /// head.
    pub next_request_at: Option<usize>,
    /// The request was read to its end, with its head or by the upload.
    pub request_read: bool,
    /// Client sent `Connection: close`, in a request that was read whole with its head.
    pub client_asked_to_close: bool,
    /// Pipelining limit reached: requests behind this one are dropped.
    pub pipeline_limit_reached: bool,
    /// Key that was made for the WebSocket of an HTTP/2 client, which has none, and an HTTP/1
    /// backend, which must prove that it has read it (RFC 6455 section 4.2.2).
    pub websocket_key: Option<String>,
    /// The exchange came to its end: it was not dropped on the way.
    is_complete: bool,
}

impl<'a> Exchange<'a> {
    /// Begins the exchange of the request in `buffers`. It has its client and its id from here
    /// on: a refused request is logged with both.
    pub(super) fn new(
        context: ExchangeContext<'a>,
        client: &'a mut ClientConnection,
        buffers: &'a mut ExchangeBuffers,
        began: Instant,
    ) -> Self {
        let ExchangeContext {
            snapshot, worker, ..
        } = context;
        let record = ExchangeRecord::new(worker.elapsed_since(began));
        let head = &buffers.request;
        let address = ClientAddress::of(head, client.peer, &snapshot.config.trusted_proxies);
        forward::request_id(
            &mut buffers.request_id,
            head,
            &snapshot.config.forwarded,
            address.trusted,
            &mut worker.random.borrow_mut(),
        );
        Self {
            context,
            client,
            buffers,
            began,
            record,
            address,
            min_rate: MinRate::default(),
            next_request_at: None,
            request_read: false,
            client_asked_to_close: false,
            pipeline_limit_reached: false,
            websocket_key: None,
            is_complete: false,
        }
    }

    /// Records the exchange; gives the offset of the next request in its buffer.
    pub(super) fn complete(mut self) -> Option<usize> {
        self.is_complete = true;
        self.next_request_at
    }

    /// The request head.
    pub(super) fn head(&self) -> &RequestHead {
        &self.buffers.request
    }

    /// Position in `pool` of the backend that the client's sticky cookie names.
    pub(super) fn sticky_backend(&self, pool: &Pool) -> Option<usize> {
        let table = pool.sticky.as_ref()?;
        table.find(cookies::values(self.head(), &table.cookie))
    }

    /// The facts for the rule by which the client's connection is kept, after a response whose
    /// length is known.
    pub(super) fn client_reuse(&self) -> ClientReuse {
        ClientReuse {
            requested: self.head().keep_alive,
            must_close: self.pipeline_limit_reached
                || self.client.entry.close_signal.should_close(),
            request_read: self.request_read,
            response_delimited: true,
        }
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if !self.is_complete {
            // The task was dropped in the middle, which only the end of a drain does.
            self.record.reason = Some(Reason::DrainTimeout);
            // After a FIN, a response that ends with its connection would look complete.
            self.client.side.set_reset_on_close();
        }
        std::mem::take(&mut self.record).finish(&RecordedRequest {
            began: self.began,
            snapshot: self.context.snapshot,
            worker: self.context.worker,
            listener: self.context.listener,
            side: &self.client.side,
            client: self.address.client,
            head: &self.buffers.request,
            request_id: &self.buffers.request_id,
        });
    }
}
