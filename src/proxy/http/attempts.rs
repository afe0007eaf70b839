//! The attempts of one exchange: picks backends in turn until one responds or no further attempt
//! is allowed.
//!
//! Until the first byte of a final response head is on its way to the client an attempt can fail
//! and be followed by another; after that it can only be completed or cut. `retry.rs` decides
//! whether another may follow. Each attempt goes to the pool of the newest generation.

use std::{future::poll_fn, sync::Arc, time::Instant};

use super::{
    acquire::{AcquireError, acquire_connection},
    attempt::{Attempt, ConnectionInUse},
    await_response::{ResponseError, await_response},
    backend_side::BackendSide,
    exchange::{Exchange, ForwardSettings},
    hash_key::hash_key,
    outcome::{AfterExchange, AttemptError, AttemptOutcome, AttemptPhase},
    relay::BodyRelay,
    respond::respond,
    retry::{self, RetryContext, RetryDecision},
    tunnel::tunnel,
};
use crate::{
    h2::backend::StreamRefusal,
    http::message::HttpVersion,
    net::proxy_protocol,
    pool::{BackendLease, PickRequest, Pool},
    proxy::waiting::wait_for_backend,
    reason::Reason,
};

/// The attempts so far, and those that are left.
struct AttemptHistory {
    /// Positions of backends that failed: they are picked last.
    failed: Vec<usize>,
    /// Positions of backends with a connection that failed by itself: they may be picked again.
    passed: Vec<usize>,
    /// Retries left by `retries.attempts`.
    left: u32,
    /// Position of the backend that the client's sticky cookie names.
    sticky: Option<usize>,
    /// The attempt on a new connection, which costs neither a retry nor budget, was made.
    fresh: bool,
}

/// The pool of the next attempt.
struct AttemptPool<'a> {
    /// The pool of the route.
    chosen: &'a Arc<Pool>,
    /// Its newer generation, which the exchange went over to.
    newest: Option<Arc<Pool>>,
    /// PROXY header for connections to its backends.
    proxy_header: Option<Box<[u8]>>,
}

impl AttemptPool<'_> {
    fn get(&self) -> &Arc<Pool> {
        self.newest.as_ref().unwrap_or(self.chosen)
    }
}

impl Exchange<'_> {
    /// Attempts backends in turn until one responds. `chosen` is the pool of the route.
    pub(super) async fn try_backends(
        &mut self,
        chosen: &Arc<Pool>,
        settings: &ForwardSettings<'_>,
        upload: &mut BodyRelay,
    ) -> AfterExchange {
        let mut history = AttemptHistory {
            failed: Vec::new(),
            passed: Vec::new(),
            left: settings.retries.map_or(0, |retries| retries.attempts),
            sticky: self.sticky_backend(chosen),
            fresh: false,
        };
        let mut current = AttemptPool {
            chosen,
            newest: None,
            proxy_header: self.proxy_header_for(chosen),
        };
        loop {
            let picked = match self.pick(current.get(), settings, &history) {
                Err(Reason::ConnectionLimitReached) => {
                    Box::pin(self.wait_for_backend(settings, &mut current, &mut history)).await
                }
                picked => picked,
            };
            let lease = match picked {
                Ok(lease) => lease,
                Err(reason) => return self.fail_forwarding(reason, upload).await,
            };
            self.record.backend = Some(lease.index);
            self.record.attempts += 1;
            let pool = current.get();
            let attempt = Attempt {
                pool,
                lease: &lease,
                settings,
                // A kept connection that is stale would tell nothing about an ejected backend.
                fresh: history.fresh || lease.is_trial(),
                proxy_header: current.proxy_header.as_deref(),
                sticky: history.sticky,
            };
            let failure = match self.run_attempt(attempt, upload).await {
                Ok(AttemptOutcome::Responded(next)) => return next,
                Ok(AttemptOutcome::Failed(reason)) => {
                    return self.fail_forwarding(reason, upload).await;
                }
                Err(failure) => failure,
            };
            record_failure(attempt, &failure);
            if !self.takes_further_attempt(attempt, &failure, &mut history, upload) {
                return self.fail_forwarding(failure.reason, upload).await;
            }
            if self.client.is_disconnected().await {
                let reason = Reason::ClientDisconnected;
                return self.fail_forwarding(reason, upload).await;
            }
            pool.state.metrics.mine().retries.add(failure.reason);
            self.move_to_newest(&mut current, &mut history);
        }
    }

    /// Picks the backend of the next attempt.
    fn pick(
        &self,
        pool: &Pool,
        settings: &ForwardSettings<'_>,
        history: &AttemptHistory,
    ) -> Result<BackendLease, Reason> {
        let mut random = self.context.worker.random.borrow_mut();
        pool.pick(&self.pick_request(pool, settings, history), &mut random)
    }

    fn pick_request<'h>(
        &self,
        pool: &Pool,
        settings: &ForwardSettings<'_>,
        history: &'h AttemptHistory,
    ) -> PickRequest<'h> {
        PickRequest {
            attempted: &history.failed,
            busy: &history.passed,
            key: hash_key(&pool.config, &self.buffers.request, &self.address),
            sticky: history.sticky,
            // Only a trial asks for it, and it costs a search among the methods.
            is_repeatable: pool.state.has_trials() && settings.is_idempotent(self.head()),
            ..PickRequest::first(self.context.worker.now())
        }
    }

    /// Waits in the queue of the pool until there is a backend. The exchange holds no connection to
    /// a backend meanwhile.
    async fn wait_for_backend(
        &mut self,
        settings: &ForwardSettings<'_>,
        current: &mut AttemptPool<'_>,
        history: &mut AttemptHistory,
    ) -> Result<BackendLease, Reason> {
        let end = settings.deadline.map(|end| (end.at, end.reason));
        loop {
            let pool = current.get();
            let request = self.pick_request(pool, settings, history);
            let client = &self.client.side;
            let gone = poll_fn(|cx| client.poll_gone(cx));
            let waited = &mut self.record.queue;
            let lease = wait_for_backend(pool, &request, gone, end, waited).await?;
            // A reload during the wait may have replaced the backends.
            self.move_to_newest(current, history);
            if let Some(lease) = lease.moved_to(current.get()) {
                return Ok(lease);
            }
        }
    }

    /// Goes over to the newest generation of the pool.
    fn move_to_newest(&mut self, current: &mut AttemptPool<'_>, history: &mut AttemptHistory) {
        let pool = current.get();
        let Some(next) = self.newer(pool) else { return };
        history.failed = next.positions_of(pool, &history.failed);
        history.passed = next.positions_of(pool, &history.passed);
        history.sticky = self.sticky_backend(&next);
        current.proxy_header = self.proxy_header_for(&next);
        self.record.newest_pool = Some(Arc::clone(&next));
        current.newest = Some(next);
    }

    /// Decides about another attempt after `failure`, and takes its cost from the retries left
    /// and from the budget of the pool.
    fn takes_further_attempt(
        &self,
        attempt: Attempt<'_>,
        failure: &AttemptError,
        history: &mut AttemptHistory,
        upload: &BodyRelay,
    ) -> bool {
        let Some(retries) = attempt.settings.retries else {
            return false;
        };
        let context = RetryContext {
            left: history.left,
            idempotent: attempt.settings.is_idempotent(self.head()),
            replayable: upload.can_replay(),
            free: !history.fresh,
        };
        match retry::may_retry(failure, context, retries) {
            RetryDecision::Fail => return false,
            RetryDecision::Fresh => history.fresh = true,
            RetryDecision::Retry => {
                let state = &attempt.pool.state;
                if !state
                    .budget
                    .try_spend(retries.budget, self.context.worker.now())
                {
                    state.metrics.mine().budget_exhausted.add(1);
                    return false;
                }
                history.left -= 1;
            }
        }
        if failure.is_of_connection() {
            history.passed.push(attempt.lease.index);
        } else {
            history.failed.push(attempt.lease.index);
        }
        true
    }

    /// Makes one attempt: connect or reuse → send the request → read the response head → respond.
    async fn run_attempt(
        &mut self,
        attempt: Attempt<'_>,
        upload: &mut BodyRelay,
    ) -> Result<AttemptOutcome, AttemptError> {
        self.record.first_byte = None;
        let mut backend = match acquire_connection(self, attempt).await {
            Ok(backend) => backend,
            Err(AcquireError::Backend(failure)) => return Err(failure),
            Err(AcquireError::Client(reason)) => return Ok(AttemptOutcome::Failed(reason)),
        };
        let in_use = ConnectionInUse::new(&backend, &attempt.lease.state);
        if let BackendSide::H1(connection) = &mut backend {
            connection.exchanges += 1;
        }
        let written_before = backend.wire_written();
        self.buffers.response.bytes.clear();
        let sent = self.context.worker.now();
        match await_response(self, attempt, &mut backend, upload, sent).await {
            Ok(()) => {}
            Err(ResponseError::Client(reason)) => {
                backend.probe_if_stalled();
                return Ok(AttemptOutcome::Failed(reason));
            }
            Err(ResponseError::Limit(reason, detail)) => {
                return Err(AttemptError {
                    own_limit: true,
                    ..AttemptError::new(AttemptPhase::Response, reason, detail)
                });
            }
            Err(ResponseError::Backend(reason, detail)) => {
                let failure = AttemptError::new(AttemptPhase::Response, reason, detail);
                return Err(self.classify(failure, attempt, &backend, written_before, sent));
            }
        }
        let status = self.buffers.response.status;
        // To an HTTP/2 client any 2xx would be the switch that it requested (RFC 8441 section 5),
        // which this backend did not make.
        let head = self.head();
        let is_extended_connect = head.version == HttpVersion::Http2 && head.is_websocket();
        if is_extended_connect && (200..300).contains(&status) {
            return Ok(AttemptOutcome::Failed(Reason::UpgradeFailed));
        }
        if status == 101 {
            drop(in_use);
            let next = Box::pin(tunnel(self, attempt, backend, upload)).await;
            return Ok(AttemptOutcome::Responded(next));
        }
        respond(self, attempt, backend, upload).await
    }

    /// Completes the failure of a backend that gave no response head: whether its connection was
    /// stale, and whether it can have acted on the request.
    fn classify(
        &self,
        failure: AttemptError,
        attempt: Attempt<'_>,
        backend: &BackendSide,
        written_before: u64,
        sent: Instant,
    ) -> AttemptError {
        // A connection that stalls one stream would stall others.
        if failure.reason == Reason::ConnectionReadTimeout {
            backend.retire();
        }
        let is_silent_end = failure.reason == Reason::ConnectionTerminated
            && self.buffers.response.bytes.is_empty();
        let took = self.context.worker.elapsed_since(sent);
        let refusal = backend
            .refusal(took, attempt.settings.timeouts.connect)
            .filter(|_| is_silent_end);
        let is_reused = self.record.reused && backend.is_connection_over();
        AttemptError {
            stale: is_silent_end && is_reused && refusal.is_none(),
            refusal,
            not_processed: refusal.is_some() || backend.is_not_processed(written_before),
            own_limit: backend.hit_own_limit(),
            ..failure
        }
    }

    /// The PROXY header for connections to backends of `pool`.
    fn proxy_header_for(&self, pool: &Pool) -> Option<Box<[u8]>> {
        let version = pool.config.send_proxy?;
        Some(proxy_protocol::encode(version, self.client.ends()))
    }

    /// The pool of this name in the generation in force, if that is not `pool` itself. A pool that
    /// was removed from the configuration is used to the end of the exchange.
    pub(super) fn newer(&self, pool: &Arc<Pool>) -> Option<Arc<Pool>> {
        let newest = self.context.worker.generation();
        if newest.revision == self.context.snapshot.revision {
            return None;
        }
        let found = newest.pools.iter().find(|one| one.name == pool.name)?;
        (!Arc::ptr_eq(found, pool)).then(|| Arc::clone(found))
    }
}

/// Logs a failed attempt, and counts it against the backend if it is the backend's fault.
fn record_failure(attempt: Attempt<'_>, failure: &AttemptError) {
    let (pool, lease) = (attempt.pool, attempt.lease);
    tracing::debug!(target: "http", pool = %pool.name, backend = %lease.config.name,
        reason = %failure.reason, detail = %failure.detail, "attempt failed");
    if is_backend_failure(lease, failure) {
        attempt.record_backend_failure(failure.reason);
    }
}

/// True if a failure counts against the backend: not that of a connection that was stale or had
/// no more streams, nor a limit of ours. A backend that refuses each stream does fail.
fn is_backend_failure(lease: &BackendLease, failure: &AttemptError) -> bool {
    match failure.refusal {
        Some(StreamRefusal::Outright) => lease.state.refuses_again(),
        _ => !failure.is_of_connection() && !failure.own_limit,
    }
}
