//! The attempts of one exchange: picks backends in turn until one responds or no further attempt is allowed.
//!
//! One attempt is `attempt.rs`; whether another may follow is decided in `retry.rs`. Each attempt goes to the pool as the
//! newest generation has it.

use std::sync::Arc;

use super::{
    AfterExchange,
    attempt::{self, Attempt, AttemptOutcome},
    exchange::{Exchange, ForwardSettings, Io},
    pump::Pump,
    retry::{self, AttemptError, RetryContext, RetryDecision},
};
use crate::{
    base::clock,
    net::{h2::backend::StreamRefusal, proxy_protocol},
    pool::{BackendLease, Pool},
    reason::Reason,
};

impl Exchange<'_> {
    /// Attempts backends in turn until one responds. `chosen` is the pool as the route has it.
    pub(super) async fn try_backends(
        &mut self,
        chosen: &Arc<Pool>,
        settings: &ForwardSettings<'_>,
        upload: &mut Pump,
        io: &mut Io<'_>,
    ) -> AfterExchange {
        let worker = self.context.worker;
        let mut newest: Option<Arc<Pool>> = None;
        let mut proxy_header = self.proxy_header_for(chosen);
        let (mut tried, mut passed) = (Vec::new(), Vec::new());
        let mut left = settings.retries.map_or(0, |retries| retries.attempts);
        let mut fresh = false;
        loop {
            let pool = newest.as_ref().unwrap_or(chosen);
            let picked = pool.pick_avoiding(&passed, &tried, &mut worker.random.borrow_mut());
            let lease = match picked {
                Ok(lease) => lease,
                Err(reason) => return self.fail_forwarding(reason, upload, io).await,
            };
            self.record.backend = Some(lease.index);
            self.record.attempts += 1;
            let attempt = Attempt {
                pool,
                lease: &lease,
                settings,
                fresh,
                proxy_header: proxy_header.as_deref(),
            };
            let failure = match attempt::run(self, attempt, upload, io).await {
                Ok(AttemptOutcome::Answered(next)) => return next,
                Ok(AttemptOutcome::Client(reason)) => {
                    return self.fail_forwarding(reason, upload, io).await;
                }
                Err(failure) => failure,
            };
            tracing::debug!(target: "http", pool = %pool.name, backend = %lease.config.name, reason = %failure.reason, detail = %failure.detail, "attempt failed");
            if is_backend_failure(&lease, &failure) {
                attempt::record_backend_failure(attempt, failure.reason);
            }
            let context = RetryContext {
                left,
                idempotent: settings.is_idempotent(self.head),
                replayable: upload.can_replay(),
                free: !fresh,
            };
            match settings.retries.map_or(RetryDecision::Fail, |retries| {
                retry::may_retry(&failure, context, retries)
            }) {
                RetryDecision::Fail => {
                    return self.fail_forwarding(failure.reason, upload, io).await;
                }
                RetryDecision::Fresh => fresh = true,
                RetryDecision::Retry => {
                    let share = settings.retries.map_or(0.0, |retries| retries.budget);
                    if !pool.state.budget.try_spend(share, clock::now()) {
                        pool.state.metrics.mine().budget_exhausted.add(1);
                        return self.fail_forwarding(failure.reason, upload, io).await;
                    }
                    left -= 1;
                }
            }
            if is_well(&failure) {
                passed.push(lease.index);
            } else {
                tried.push(lease.index);
            }
            if attempt::is_gone(&self.client.stream).await {
                let reason = Reason::ClientDisconnected;
                return self.fail_forwarding(reason, upload, io).await;
            }
            pool.state.metrics.mine().retries.add(failure.reason);
            if let Some(next) = self.newer(pool) {
                tried = next.positions_of(pool, &tried);
                passed = next.positions_of(pool, &passed);
                proxy_header = self.proxy_header_for(&next);
                self.reencode_request(pool, &next, settings, io.request_out);
                let (chunked, length) = self.upload_framing(&next);
                upload.set_framing(chunked, length);
                self.record.newest = Some(Arc::clone(&next));
                newest = Some(next);
            }
            upload.replay(io.request_out);
        }
    }

    /// The PROXY header for connections to a backend of `pool`.
    fn proxy_header_for(&self, pool: &Pool) -> Option<Box<[u8]>> {
        let version = pool.config.send_proxy?;
        Some(proxy_protocol::encode(version, self.client.ends()))
    }

    /// The pool of this name in the generation in force, if that is not `pool` itself. A pool that has left the configuration
    /// is used to the end of the exchange.
    pub(super) fn newer(&self, pool: &Arc<Pool>) -> Option<Arc<Pool>> {
        let newest = self.context.worker.generation();
        if newest.generation == self.context.snapshot.generation {
            return None;
        }
        let found = newest.pools.iter().find(|one| one.name == pool.name)?;
        (!Arc::ptr_eq(found, pool)).then(|| Arc::clone(found))
    }
}

/// A failed attempt counts against its backend, unless what failed was a connection that had grown old, or was full.
fn is_backend_failure(lease: &BackendLease, failure: &AttemptError) -> bool {
    match failure.refusal {
        Some(StreamRefusal::Outright) => lease.state.refuses_again(),
        _ => !is_well(failure) && !failure.own_limit,
    }
}

/// What failed was a connection, not the backend: another connection may do as well as another backend.
fn is_well(failure: &AttemptError) -> bool {
    match failure.refusal {
        Some(refusal) => refusal != StreamRefusal::Outright,
        None => failure.stale,
    }
}
