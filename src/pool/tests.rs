//! The promises of a pool: which backends get traffic, and the effect of checks.

mod ejection;
mod failure_rate;
mod guard;
mod operator;
mod queue;
mod reload;
mod slow_start;
mod sticky;
mod threads;
mod trials;

use std::time::{Duration, Instant};

use super::{
    fixture::{backend, config, lease, pick, unchecked},
    *,
};
use crate::{
    base::rng::Random,
    config::model::{BalancingPolicy, WhenAllDown},
};

const REFUSED: Reason = Reason::ConnectionRefused;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn pool(config: &model::PoolConfig) -> (Pool, Instant) {
    let now = clock::now();
    (Pool::new(config, None, now), now)
}

fn pass(pool: &Pool, index: usize, now: Instant) -> Option<StateTransition> {
    pool.record_check(&pool.backends[index], Ok(()), seconds(0), now)
}

fn fail(pool: &Pool, index: usize, now: Instant) -> Option<StateTransition> {
    let error = Err("connection refused".to_owned());
    pool.record_check(&pool.backends[index], error, seconds(0), now)
}

fn fail_times(pool: &Pool, index: usize, times: u32, now: Instant) -> Option<StateTransition> {
    let failures =
        (0..times).filter_map(|_| pool.record_failure(&lease(pool, index), REFUSED, now));
    let transitions: Vec<_> = failures.collect();
    assert!(transitions.len() <= 1, "{transitions:?}");
    transitions.into_iter().next()
}

/// Lets the ejection of the backend at `index` run out, and its trial succeed.
fn pass_trial(pool: &Pool, index: usize, now: Instant) -> StateTransition {
    assert!(pool.expire(now).iter().all(|due| due.is_trial));
    let trial = pick(pool, &[], &mut Random::seeded(1)).unwrap();
    assert_eq!(trial.index, index);
    pool.record_success(&trial, now).unwrap()
}

fn states(pool: &Pool) -> Vec<HealthState> {
    pool.backends.iter().map(|one| one.state.state()).collect()
}

/// The indexes that `count` picks give, each released at once.
fn picks(pool: &Pool, count: usize) -> Vec<usize> {
    let mut random = Random::seeded(1);
    (0..count)
        .map(|_| pick(pool, &[], &mut random).unwrap().index)
        .collect()
}

fn all_up(pool: &Pool, now: Instant) {
    for index in 0..pool.backends.len() {
        pass(pool, index, now);
    }
}

#[test]
fn the_first_check_decides_alone() {
    let (pool, now) = pool(&config(&[1, 1]));
    assert_eq!(
        states(&pool),
        [HealthState::Checking, HealthState::Checking]
    );
    assert_eq!(pass(&pool, 0, now).unwrap().to, HealthState::Up);
    let line = fail(&pool, 1, now).unwrap().to_string();
    assert_eq!(
        line,
        "backend `b1` of pool `app` is down (was checking): the check failed: connection refused"
    );
}

#[test]
fn a_backend_that_fails_three_checks_in_a_row_goes_down_and_comes_back_after_two_good_ones() {
    let (pool, now) = pool(&config(&[1, 1]));
    all_up(&pool, now);
    assert_eq!(fail(&pool, 0, now), None);
    assert_eq!(fail(&pool, 0, now), None);
    assert_eq!(pass(&pool, 0, now), None, "a good check ends the streak");
    assert_eq!(fail(&pool, 0, now), None);
    assert_eq!(fail(&pool, 0, now), None);
    let down = fail(&pool, 0, now).unwrap();
    assert_eq!((down.from, down.to), (HealthState::Up, HealthState::Down));
    assert_eq!(down.cause, "3 checks in a row failed: connection refused");
    assert_eq!(picks(&pool, 3), [1, 1, 1]);
    assert_eq!(pass(&pool, 0, now), None);
    let up = pass(&pool, 0, now + seconds(4)).unwrap();
    assert_eq!((up.from, up.to), (HealthState::Down, HealthState::Up));
    let view = pool.backends[0].state.view();
    assert_eq!(view.since, now + seconds(4));
    assert_eq!((view.good_in_a_row, view.bad_in_a_row), (2, 0));
    assert_eq!(view.cause, "2 checks in a row passed");
    assert_eq!(view.last_check.unwrap().result, Ok(()));
}

#[test]
fn unchecked_backends_get_traffic_only_while_no_checked_one_is_up() {
    let (pool, now) = pool(&config(&[1, 1, 1]));
    assert_eq!(picks(&pool, 3), [0, 1, 2]);
    pass(&pool, 1, now);
    assert_eq!(picks(&pool, 3), [1, 1, 1]);
}

#[test]
fn without_a_health_check_all_are_up_at_once() {
    let (pool, _) = pool(&unchecked(&[1, 1], BalancingPolicy::RoundRobin));
    assert_eq!(states(&pool), [HealthState::Up, HealthState::Up]);
}

#[test]
fn backups_get_work_only_when_no_other_backend_may() {
    let mut config = config(&[1, 1, 1]);
    config.backends[2].backup = 1;
    let (pool, now) = pool(&config);
    all_up(&pool, now);
    assert_eq!(picks(&pool, 4), [0, 1, 0, 1]);
    for index in [0, 1] {
        (0..3).for_each(|_| drop(fail(&pool, index, now)));
    }
    assert_eq!(picks(&pool, 2), [2, 2]);
    pass(&pool, 0, now);
    pass(&pool, 0, now);
    assert_eq!(picks(&pool, 2), [0, 0]);
}

#[test]
fn a_retry_goes_to_the_next_tier_when_all_of_a_tier_were_attempted_and_not_when_one_is_full() {
    let mut config = config(&[1, 1, 1, 1, 0]);
    for (backend, tier) in config.backends.iter_mut().zip([0, 0, 1, 2, 1]) {
        backend.backup = tier;
    }
    config.backends[1].max_connections = Some(1);
    let (pool, now) = pool(&config);
    all_up(&pool, now);
    let mut random = Random::seeded(1);
    let mut pick =
        |attempted: &[usize]| pick(&pool, attempted, &mut random).map(|lease| lease.index);
    assert_eq!(pick(&[0, 1]), Ok(2));
    assert_eq!(pick(&[0, 1, 2]), Ok(3));
    assert!(pick(&[0, 1, 2, 3]).unwrap() < 2, "all were attempted");
    let _full = fixture::pick(&pool, &[0], &mut Random::seeded(1)).unwrap();
    assert_eq!(pick(&[0]), Ok(0), "a full tier does not spill over");
    for _ in 0..3 {
        fail(&pool, 2, now);
    }
    assert_eq!(pick(&[0, 1]), Ok(3), "the next tier is down");
}

#[test]
fn the_lowest_tier_with_a_backend_that_is_up_gets_all_work() {
    let mut config = config(&[1, 1, 1, 1, 1]);
    for (backend, tier) in config.backends.iter_mut().zip([0, 1, 1, 2, 9]) {
        backend.backup = tier;
    }
    let (pool, now) = pool(&config);
    assert_eq!(picks(&pool, 2), [0, 0], "not checked yet");
    pass(&pool, 4, now);
    assert_eq!(
        picks(&pool, 2),
        [4, 4],
        "the only one that is known to be up"
    );
    all_up(&pool, now);
    let down = |index| (0..3).for_each(|_| drop(fail(&pool, index, now)));
    let taking = || {
        let mut seen = picks(&pool, 4);
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(taking(), [0]);
    down(0);
    assert_eq!(taking(), [1, 2], "several in one tier share");
    down(2);
    assert_eq!(taking(), [1]);
    down(1);
    assert_eq!(taking(), [3]);
    down(3);
    assert_eq!(taking(), [4]);
    (0..2).for_each(|_| drop(pass(&pool, 2, now)));
    assert_eq!(taking(), [2]);
    (0..2).for_each(|_| drop(pass(&pool, 0, now)));
    assert_eq!(taking(), [0]);
}

#[test]
fn weight_zero_gets_nothing_and_an_empty_pool_is_unavailable() {
    let (pool, now) = pool(&config(&[0, 1]));
    assert_eq!(picks(&pool, 2), [1, 1]);
    fail(&pool, 1, now);
    let refused = pick(&pool, &[], &mut Random::seeded(1)).unwrap_err();
    assert_eq!(refused, Reason::DestinationUnavailable);
}

#[test]
fn fail_open_uses_all_when_all_are_down() {
    let mut config = config(&[1, 1, 0]);
    config.when_all_down = WhenAllDown::FailOpen;
    let (pool, now) = pool(&config);
    for index in 0..3 {
        fail(&pool, index, now);
    }
    let mut seen = picks(&pool, 4);
    seen.sort_unstable();
    assert_eq!(seen, [0, 0, 1, 1]);
    pass(&pool, 1, now);
    pass(&pool, 1, now);
    assert_eq!(picks(&pool, 2), [1, 1]);
}

#[test]
fn an_attempted_backend_is_not_picked_again_while_another_has_capacity() {
    for policy in BalancingPolicy::ALL.iter().copied() {
        let mut config = unchecked(&[200, 1, 1], policy);
        config.backends[2].max_connections = Some(0);
        let (pool, _) = pool(&config);
        let mut random = Random::seeded(3);
        for _ in 0..50 {
            assert_eq!(pick(&pool, &[0], &mut random).unwrap().index, 1);
            assert_ne!(pick(&pool, &[0, 1], &mut random).unwrap().index, 2);
        }
    }
}

#[test]
fn a_full_pool_is_at_its_limit_and_dropped_leases_free_it() {
    for policy in BalancingPolicy::ALL.iter().copied() {
        let mut config = unchecked(&[3, 1], policy);
        config.connections_per_backend = Some(2);
        config.backends[1].max_connections = Some(1);
        let (pool, _) = pool(&config);
        assert_eq!(
            pool.backends.iter().map(|b| b.limit).collect::<Vec<_>>(),
            [2, 1]
        );
        let mut random = Random::seeded(1);
        let mut leases: Vec<_> = (0..3)
            .map(|_| pick(&pool, &[], &mut random).unwrap())
            .collect();
        let full = pick(&pool, &[], &mut random).unwrap_err();
        assert_eq!(full, Reason::ConnectionLimitReached);
        let free = leases.pop().unwrap().index;
        assert_eq!(pick(&pool, &[], &mut random).unwrap().index, free);
        drop(leases);
        assert!(pool.backends.iter().all(|b| b.state.in_flight() == 0));
    }
}

/// Reloads `old` to `config` in the order of the daemon.
fn reload(old: &Pool, config: &model::PoolConfig, now: Instant) -> Pool {
    let new = Pool::new(config, Some(old), now);
    old.retire(Some(&new));
    new
}

#[test]
fn a_backend_whose_connection_was_full_is_passed_over_within_its_tier() {
    let mut config = config(&[1, 1, 1]);
    config.backends[2].backup = 1;
    let (pool, now) = pool(&config);
    all_up(&pool, now);
    let mut random = Random::seeded(1);
    let mut pick = |busy: &[usize], attempted: &[usize]| {
        let request = PickRequest {
            attempted,
            busy,
            ..PickRequest::first(clock::now())
        };
        pool.pick(&request, &mut random).map(|lease| lease.index)
    };
    assert_eq!(pick(&[0], &[]), Ok(1));
    assert_eq!(pick(&[0], &[1]), Ok(0), "again, before the next tier");
    assert!(pick(&[0, 1], &[]).unwrap() < 2);
    assert_eq!(pick(&[], &[0, 1]), Ok(2));
}

#[test]
fn refusals_count_from_the_second_in_a_row() {
    let (pool, now) = pool(&config(&[1, 1]));
    all_up(&pool, now);
    let state = &pool.backends[0].state;
    assert!(!state.refuses_again());
    assert_eq!(state.view().failures_in_a_row, 0);
    assert!(state.refuses_again());
    pool.record_success(&lease(&pool, 0), now);
    assert!(!state.refuses_again(), "a success ends the streak");
    assert_eq!(fail_times(&pool, 0, 4, now), None);
    assert!(fail_times(&pool, 0, 1, now).is_some());
}

#[test]
fn backends_of_a_large_pool_that_come_up_together_are_let_in_together() {
    let (pool, now) = pool(&config(&[1; 1_000]));
    let soon = now + Duration::from_millis(19);
    all_up(&pool, soon);
    assert_eq!(pool.counts()[HealthState::Up.index()], 1_000);
    assert_eq!(
        picks(&pool, 3),
        [0, 0, 0],
        "the first one is let in at once"
    );
    assert_eq!(pool.expire(soon), []);
    assert_eq!(picks(&pool, 1), [0]);
    assert_eq!(pool.expire(soon + Duration::from_millis(20)), []);
    let mut seen = picks(&pool, 1_000);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 1_000);
    (0..3).for_each(|_| drop(fail(&pool, 7, soon + Duration::from_millis(21))));
    assert!(
        !picks(&pool, 2_000).contains(&7),
        "a backend that goes down is out at once"
    );
}
