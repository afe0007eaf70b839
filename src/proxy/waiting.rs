//! The wait of a request or session in the queue of its pool: for a backend, for the end of its
//! time, or for its client to leave.

use std::{
    future::Future,
    pin::pin,
    time::{Duration, Instant},
};

use tokio::time::sleep_until;

use crate::{
    base::clock,
    pool::{BackendLease, PickRequest, Pool},
    reason::Reason,
    telemetry::metrics::PoolSlot,
};

/// Waits until a backend of `pool` has a free slot, after a pick found none.
///
/// `gone` is the client; it gives up its place at once. `end` is a deadline of the exchange, with
/// its reason. The time in the queue is added to `waited`. The backend may be one of a newer
/// generation: [`BackendLease::moved_to`].
///
/// # Errors
/// [`Reason::ConnectionLimitReached`] if the queue is full or `queue_timeout` has passed,
/// [`Reason::ClientDisconnected`], the reason of `end`, or that of a pool without backends.
pub(super) async fn wait_for_backend(
    pool: &Pool,
    request: &PickRequest<'_>,
    gone: impl Future<Output = ()>,
    end: Option<(Instant, Reason)>,
    waited: &mut Option<Duration>,
) -> Result<BackendLease, Reason> {
    let place = pool.enqueue(request)?;
    let metrics = pool.state.metrics.mine();
    let began = clock::now();
    let _clock = WaitClock {
        began,
        waited,
        metrics,
    };
    let queue_end = (
        began + pool.config.queue_timeout,
        Reason::ConnectionLimitReached,
    );
    let (at, reason) = end.filter(|end| end.0 <= queue_end.0).unwrap_or(queue_end);
    let (mut place, mut gone) = (pin!(place), pin!(gone));
    tokio::select! {
        biased;
        served = &mut place => served,
        () = &mut gone => Err(Reason::ClientDisconnected),
        () = sleep_until(at.into()) => {
            metrics.queue_timed_out.add(u64::from(reason == queue_end.1));
            Err(reason)
        }
    }
}

/// Records the time of a wait at its end, also when the end of a drain drops it.
struct WaitClock<'a> {
    began: Instant,
    waited: &'a mut Option<Duration>,
    metrics: &'a PoolSlot,
}

impl Drop for WaitClock<'_> {
    fn drop(&mut self) {
        let took = clock::now().saturating_duration_since(self.began);
        *self.waited = Some(self.waited.unwrap_or_default() + took);
        self.metrics.queue_wait.observe(took);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::Arc,
    };

    use super::*;
    use crate::{
        base::rng::Random,
        net::fixture::paused,
        pool::fixture::{pick, unchecked},
    };

    const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

    /// One backend with one slot.
    fn pool() -> Arc<Pool> {
        let config = crate::config::model::PoolConfig {
            connections_per_backend: Some(1),
            ..unchecked(&[1], crate::config::model::BalancingPolicy::RoundRobin)
        };
        Arc::new(Pool::new(&config, None, clock::now()))
    }

    #[test]
    fn the_earliest_end_gives_the_reason_and_is_counted() {
        paused(async {
            let seconds = Duration::from_secs;
            let total = Reason::TotalTimeout;
            for (end, took, reason) in [
                (None, QUEUE_TIMEOUT, Reason::ConnectionLimitReached),
                (
                    Some(seconds(60)),
                    QUEUE_TIMEOUT,
                    Reason::ConnectionLimitReached,
                ),
                (Some(seconds(2)), seconds(2), total),
                (Some(seconds(5)), seconds(5), total),
            ] {
                let pool = pool();
                let held = pick(&pool, &[], &mut Random::seeded(1)).unwrap();
                let began = clock::now();
                let end = end.map(|after| (began + after, total));
                let mut waited = Some(seconds(1));
                let request = PickRequest::first(began);
                let result = wait_for_backend(&pool, &request, pending(), end, &mut waited).await;
                assert_eq!(result.unwrap_err(), reason);
                let passed = clock::now() - began;
                assert!(passed >= took && passed < took + seconds(1), "{passed:?}");
                assert_eq!(waited, Some(seconds(1) + passed), "that of both waits");
                let slot = pool.state.metrics.mine();
                let timed_out = u64::from(reason == Reason::ConnectionLimitReached);
                assert_eq!(slot.queue_timed_out.get(), timed_out);
                assert_eq!(slot.queue_wait.sum_micros.get(), passed.as_micros() as u64);
                assert_eq!(pool.queue_length(), 0);
                drop(held);
            }
        });
    }

    #[test]
    fn a_client_that_is_gone_leaves_and_a_free_slot_ends_the_wait() {
        paused(async {
            let pool = pool();
            let held = pick(&pool, &[], &mut Random::seeded(1)).unwrap();
            let request = PickRequest::first(clock::now());
            let mut waited = None;
            let gone = wait_for_backend(&pool, &request, ready(()), None, &mut waited).await;
            assert_eq!(gone.unwrap_err(), Reason::ClientDisconnected);
            assert_eq!(pool.queue_length(), 0);
            let release = async {
                tokio::time::sleep(Duration::from_secs(3)).await;
                drop(held);
            };
            let wait = wait_for_backend(&pool, &request, pending(), None, &mut waited);
            let (served, ()) = tokio::join!(wait, release);
            assert_eq!(served.unwrap().index, 0);
            assert!(waited.unwrap() >= Duration::from_secs(3));
            assert_eq!(pool.state.metrics.mine().queue_timed_out.get(), 0);
            assert_eq!(pool.backends[0].state.in_flight(), 0);
        });
    }
}
