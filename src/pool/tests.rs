//! The promises of a pool: who gets traffic, what checks and failures lead to, what a reload keeps.

mod ejection;

use std::{
    sync::{Barrier, Mutex},
    thread,
    time::{Duration, Instant},
};

use super::{
    fixture::{backend, config, unchecked},
    *,
};
use crate::config::model::{BalancingPolicy, WhenAllDown};

const REFUSED: Reason = Reason::ConnectionRefused;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn pool(config: &model::PoolConfig) -> (Pool, Instant) {
    let now = clock::now();
    (Pool::new(config, None, now), now)
}

fn pass(pool: &Pool, index: usize, now: Instant) -> Option<StateTransition> {
    pool.checked(&pool.backends[index], Ok(()), seconds(0), now)
}

fn fail(pool: &Pool, index: usize, now: Instant) -> Option<StateTransition> {
    let error = Err("connection refused".to_owned());
    pool.checked(&pool.backends[index], error, seconds(0), now)
}

fn fail_times(pool: &Pool, index: usize, times: u32, now: Instant) -> Option<StateTransition> {
    let failures = (0..times).filter_map(|_| pool.failed(&pool.backends[index], REFUSED, now));
    let transitions: Vec<_> = failures.collect();
    assert!(transitions.len() <= 1, "{transitions:?}");
    transitions.into_iter().next()
}

fn states(pool: &Pool) -> Vec<HealthState> {
    pool.backends.iter().map(|one| one.state.state()).collect()
}

/// The indexes that `count` picks give, each released at once.
fn picks(pool: &Pool, count: usize) -> Vec<usize> {
    let mut random = Random::seeded(1);
    (0..count)
        .map(|_| pool.pick(&[], &mut random).unwrap().index)
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
fn without_a_health_check_everyone_is_up_at_once() {
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
fn a_retry_goes_to_the_next_tier_when_all_of_a_tier_were_tried_and_not_when_one_is_full() {
    let mut config = config(&[1, 1, 1, 1, 0]);
    for (backend, tier) in config.backends.iter_mut().zip([0, 0, 1, 2, 1]) {
        backend.backup = tier;
    }
    config.backends[1].max_connections = Some(1);
    let (pool, now) = pool(&config);
    all_up(&pool, now);
    let mut random = Random::seeded(1);
    let mut pick = |tried: &[usize]| pool.pick(tried, &mut random).map(|lease| lease.index);
    assert_eq!(pick(&[0, 1]), Ok(2));
    assert_eq!(pick(&[0, 1, 2]), Ok(3));
    assert!(pick(&[0, 1, 2, 3]).unwrap() < 2, "all were tried");
    let _full = pool.pick(&[0], &mut Random::seeded(1)).unwrap();
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
fn weight_zero_gets_nothing_and_nobody_means_unavailable() {
    let (pool, now) = pool(&config(&[0, 1]));
    assert_eq!(picks(&pool, 2), [1, 1]);
    fail(&pool, 1, now);
    let refused = pool.pick(&[], &mut Random::seeded(1)).unwrap_err();
    assert_eq!(refused, Reason::DestinationUnavailable);
}

#[test]
fn fail_open_uses_everyone_when_all_are_down() {
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
fn a_tried_backend_is_not_picked_again_while_another_has_room() {
    for policy in [
        BalancingPolicy::RoundRobin,
        BalancingPolicy::LeastConnections,
        BalancingPolicy::RandomTwo,
    ] {
        let mut config = unchecked(&[200, 1, 1], policy);
        config.backends[2].max_connections = Some(0);
        let (pool, _) = pool(&config);
        let mut random = Random::seeded(3);
        for _ in 0..50 {
            assert_eq!(pool.pick(&[0], &mut random).unwrap().index, 1);
            assert_ne!(pool.pick(&[0, 1], &mut random).unwrap().index, 2);
        }
    }
}

#[test]
fn a_full_pool_says_so_and_leases_give_back() {
    for policy in [
        BalancingPolicy::RoundRobin,
        BalancingPolicy::LeastConnections,
        BalancingPolicy::RandomTwo,
    ] {
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
            .map(|_| pool.pick(&[], &mut random).unwrap())
            .collect();
        let full = pool.pick(&[], &mut random).unwrap_err();
        assert_eq!(full, Reason::ConnectionLimitReached);
        let free = leases.pop().unwrap().index;
        assert_eq!(pool.pick(&[], &mut random).unwrap().index, free);
        drop(leases);
        assert!(pool.backends.iter().all(|b| b.state.in_flight() == 0));
    }
}

#[test]
fn the_limit_holds_exactly_under_threads() {
    for policy in [
        BalancingPolicy::RoundRobin,
        BalancingPolicy::LeastConnections,
        BalancingPolicy::RandomTwo,
    ] {
        let mut config = unchecked(&[1, 2, 3], policy);
        config.connections_per_backend = Some(7);
        let (pool, _) = pool(&config);
        let (start, got) = (Barrier::new(8), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for seed in 0..8 {
                let (pool, start, got) = (&pool, &start, &got);
                scope.spawn(move || {
                    let mut random = Random::seeded(seed);
                    start.wait();
                    for _ in 0..10 {
                        if let Ok(lease) = pool.pick(&[], &mut random) {
                            got.lock().unwrap().push(lease);
                        }
                    }
                });
            }
        });
        assert_eq!(got.lock().unwrap().len(), 21, "{policy:?}");
        assert!(pool.backends.iter().all(|b| b.state.in_flight() == 7));
    }
}

#[test]
fn as_many_simultaneous_picks_as_backends_give_one_each() {
    const COUNT: usize = 16;
    for _ in 0..50 {
        let (pool, _) = pool(&unchecked(&[1; COUNT], BalancingPolicy::LeastConnections));
        let (start, got) = (Barrier::new(COUNT), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..COUNT {
                scope.spawn(|| {
                    let mut random = Random::seeded(1);
                    start.wait();
                    let lease = pool.pick(&[], &mut random).unwrap();
                    got.lock().unwrap().push(lease);
                });
            }
        });
        let loads: Vec<_> = pool.backends.iter().map(|b| b.state.in_flight()).collect();
        assert_eq!(loads, [1; COUNT]);
    }
}

#[test]
fn two_threads_that_want_the_same_backend_never_both_get_it() {
    const ROUNDS: usize = 20_000;
    let (pool, _) = pool(&unchecked(&[1, 1, 1], BalancingPolicy::LeastConnections));
    let heavy: Vec<_> = [2, 1, 1].into_iter().zip(&pool.backends).collect();
    for (load, backend) in heavy {
        (0..load).for_each(|_| assert!(backend.state.claim(usize::MAX)));
    }
    let (ready, picked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wrong = AtomicUsize::new(0);
    let await_all = |count: &AtomicUsize, wanted: usize| {
        count.fetch_add(1, AcqRel);
        while count.load(Acquire) < wanted {
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut random = Random::seeded(1);
                for round in 1..=ROUNDS {
                    await_all(&ready, 2 * round);
                    let lease = pool.pick(&[], &mut random).unwrap();
                    await_all(&picked, 4 * round - 2);
                    let loads = pool.backends.iter().map(|one| one.state.in_flight());
                    // A panic here would leave the other thread waiting: count and look afterwards.
                    wrong.fetch_add(usize::from(!loads.eq([2, 2, 2])), AcqRel);
                    await_all(&picked, 4 * round);
                    drop(lease);
                }
            });
        }
    });
    assert_eq!(wrong.into_inner(), 0);
}

#[test]
fn many_threads_seeing_failures_report_one_transition() {
    for _ in 0..20 {
        let (pool, now) = pool(&unchecked(&[1; 8], BalancingPolicy::RoundRobin));
        let (start, seen) = (Barrier::new(8), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..50 {
                        let one = pool.failed(&pool.backends[3], REFUSED, now);
                        seen.lock().unwrap().extend(one);
                    }
                });
            }
        });
        assert_eq!(seen.lock().unwrap().len(), 1);
        assert_eq!(states(&pool)[3], HealthState::Ejected);
    }
}

/// Reloads `old` to `config` as the daemon does.
fn reload(old: &Pool, config: &model::PoolConfig, now: Instant) -> Pool {
    let new = Pool::new(config, Some(old), now);
    old.retire(Some(&new));
    new
}

#[test]
fn a_reload_keeps_what_is_known_by_address() {
    let (old, now) = pool(&config(&[1, 1, 1, 1, 1]));
    all_up(&old, now);
    fail_times(&old, 0, 5, now);
    (0..3).for_each(|_| drop(fail(&old, 1, now)));
    fail(&old, 2, now);
    fail_times(&old, 3, 4, now);
    let lease = old.pick(&[0, 1, 2, 3], &mut Random::seeded(1)).unwrap();

    let mut changed = config(&[1; 5]);
    changed.backends.reverse();
    changed.policy = BalancingPolicy::LeastConnections;
    for backend in &mut changed.backends {
        backend.weight = 7;
    }
    changed.health_check.as_mut().unwrap().fall = 2;
    let new = reload(&old, &changed, now);
    assert_eq!(
        states(&new),
        [
            HealthState::Up,
            HealthState::Up,
            HealthState::Up,
            HealthState::Down,
            HealthState::Ejected
        ]
    );
    assert_eq!(new.backends[0].state.in_flight(), 1);
    assert_eq!(new.backends[1].state.view().failures_in_a_row, 4);
    assert_eq!(new.backends[2].state.view().bad_in_a_row, 1);
    assert_eq!(
        new.backends[4].state.metrics.mine().ejections.get(REFUSED),
        1
    );
    assert!(
        fail(&new, 2, now).is_some(),
        "the streak goes on under the new threshold"
    );
    assert_eq!(new.expire(now + seconds(10)).len(), 1);
    drop(lease);
    assert_eq!(new.backends[0].state.in_flight(), 0);
}

#[test]
fn a_backend_that_left_is_removed_and_starts_fresh_when_it_returns() {
    let (first, now) = pool(&config(&[1, 1]));
    all_up(&first, now);
    let second = reload(&first, &config(&[1]), now);
    assert!(first.backends[1].state.is_removed());
    assert_eq!(
        picks(&first, 2),
        [0, 0],
        "requests of the old generation avoid it too"
    );
    let third = reload(&second, &config(&[1, 1]), now);
    assert_eq!(states(&third), [HealthState::Up, HealthState::Checking]);
    third.retire(None);
    assert!(third.backends.iter().all(|one| one.state.is_removed()));
    assert_eq!(fail_times(&third, 0, 10, now), None);
}

#[test]
fn a_backend_that_returns_while_it_serves_something_is_the_same() {
    let mut limited = config(&[1, 1]);
    limited.backends[1].max_connections = Some(1);
    let (first, now) = pool(&limited);
    all_up(&first, now);
    assert!(first.backends[1].state.claim(1));
    let held = BackendLease::claimed(Arc::clone(&first.backends[1]));
    let second = reload(&first, &config(&[1]), now);
    // Neither generation that knew it lives on, only what it serves.
    drop(first);
    assert!(held.state.is_removed());
    let third = Pool::new(&limited, Some(&second), now);
    assert!(held.state.is_removed(), "not before it is in force");
    assert_eq!(picks(&third, 2), [0, 0]);
    third.restore();
    second.retire(Some(&third));
    assert!(Arc::ptr_eq(&held.state, &third.backends[1].state));
    assert_eq!(states(&third), [HealthState::Up; 2], "its verdict holds");
    assert_eq!(picks(&third, 2), [0, 0], "it has what it may have");
    drop(held);
    let mut both = picks(&third, 2);
    both.sort_unstable();
    assert_eq!(both, [0, 1]);
    // The verdict is old: one check decides, where three would be needed.
    fail(&third, 1, now);
    assert_eq!(states(&third), [HealthState::Up, HealthState::Down]);
}

#[test]
fn an_ejection_goes_on_over_a_time_out_of_the_configuration() {
    let (first, now) = pool(&config(&[1, 1]));
    all_up(&first, now);
    let held = first.pick(&[0], &mut Random::seeded(1)).unwrap();
    fail_times(&first, 1, 5, now).unwrap();
    let second = reload(&first, &config(&[1]), now);
    let third = Pool::new(&config(&[1, 1]), Some(&second), now);
    third.restore();
    second.retire(Some(&third));
    assert_eq!(states(&third), [HealthState::Up, HealthState::Ejected]);
    assert_eq!(third.expire(now + seconds(11)).len(), 1);
    assert_eq!(states(&third), [HealthState::Up, HealthState::Up]);
    drop(held);
}

#[test]
fn exchanges_of_a_pool_that_left_may_still_use_its_backends() {
    let (first, now) = pool(&config(&[1, 1]));
    all_up(&first, now);
    let second = reload(&first, &config(&[1, 1]), now);
    second.retire(None);
    assert_eq!(states(&first), [HealthState::Removed; 2]);
    for old in [&first, &second] {
        let mut both = picks(old, 2);
        both.sort_unstable();
        assert_eq!(both, [0, 1]);
    }
    // Back under its name, while something of it is under way.
    let held = first.pick(&[], &mut Random::seeded(1)).unwrap();
    let third = Pool::returned(&config(&[1, 1]), Arc::clone(&first.state), now);
    third.restore();
    let known = &third.backends[held.index].state;
    assert!(Arc::ptr_eq(&held.state, known));
    assert_eq!(known.state(), HealthState::Up);
    assert!(
        third.transport_epoch > second.transport_epoch,
        "old connections are not used"
    );
}

#[test]
fn a_backend_whose_connection_was_full_is_passed_over_within_its_tier() {
    let mut config = config(&[1, 1, 1]);
    config.backends[2].backup = 1;
    let (pool, now) = pool(&config);
    all_up(&pool, now);
    let mut random = Random::seeded(1);
    let mut pick = |passed: &[usize], tried: &[usize]| {
        let picked = pool.pick_beside(passed, tried, &mut random);
        picked.map(|lease| lease.index)
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
    pool.succeeded(&pool.backends[0]);
    assert!(!state.refuses_again(), "a success ends the row");
    assert_eq!(fail_times(&pool, 0, 4, now), None);
    assert!(fail_times(&pool, 0, 1, now).is_some());
}

#[test]
fn a_generation_that_never_came_into_force_changes_nothing() {
    let (old, now) = pool(&config(&[1, 1]));
    fail(&old, 0, now);
    let mut other = config(&[1]);
    other.health_check = None;
    drop(Pool::new(&other, Some(&old), now));
    assert_eq!(states(&old), [HealthState::Down, HealthState::Checking]);
    assert_eq!(picks(&old, 2), [1, 1]);
}

#[test]
fn bad_verdicts_fall_with_the_health_check() {
    let (old, now) = pool(&config(&[1, 1, 1]));
    pass(&old, 0, now);
    fail(&old, 1, now);
    let mut plain = config(&[1, 1, 1]);
    plain.health_check = None;
    let new = Pool::new(&plain, Some(&old), now);
    assert_eq!(
        picks(&new, 3),
        [0, 1, 2],
        "already before the old one is retired"
    );
    old.retire(Some(&new));
    assert_eq!(states(&new), [HealthState::Up; 3]);
}

#[test]
fn failures_seen_by_an_old_generation_reach_the_new_one() {
    let (old, now) = pool(&config(&[1, 1]));
    all_up(&old, now);
    let mut grown = config(&[1, 1]);
    grown.backends.push(backend(9, 1));
    let new = reload(&old, &grown, now);
    pass(&new, 2, now);
    assert!(fail_times(&old, 0, 5, now).is_some());
    let mut seen = picks(&new, 4);
    seen.sort_unstable();
    assert_eq!(seen, [1, 1, 2, 2]);
    assert_eq!(picks(&old, 2), [1, 1]);
    assert_eq!(new.expire(now + seconds(10)).len(), 1);
}

#[test]
fn the_guard_asks_the_generation_in_force() {
    let (old, now) = pool(&config(&[1, 1, 1]));
    all_up(&old, now);
    let mut others = config(&[1]);
    others.backends.push(backend(8, 1));
    let new = reload(&old, &others, now);
    pass(&new, 1, now);
    assert!(fail_times(&old, 0, 5, now).is_some(), "backend 8 is left");
    let last = reload(&new, &config(&[1]), now + seconds(10));
    last.expire(now + seconds(10));
    assert_eq!(
        fail_times(&old, 0, 5, now + seconds(10)),
        None,
        "now it is the last one"
    );
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
        "who goes down is out at once"
    );
}

/// What the random sequence expects of one backend's sentences.
#[derive(Clone, Copy)]
struct ExpectedEjection {
    length: Duration,
    good_since: Instant,
}

#[test]
fn no_sequence_of_events_ejects_all_or_ends_an_ejection_early_but_by_checks() {
    for seed in 0..50 * 101 {
        let (count, percent) = (1 + seed % 50, seed / 50);
        random_life(count, percent, seed as u64);
    }
}

fn random_life(count: usize, percent: usize, seed: u64) {
    let context = format!("count {count}, max_ejected {percent}%, seed {seed}");
    let mut random = Random::seeded(seed);
    let mut config = config(&vec![1; count]);
    let ejection = config.ejection.as_mut().unwrap();
    ejection.failures = 2;
    ejection.max_eject_for = seconds(60);
    ejection.max_ejected = percent as f64 / 100.0;
    let (pool, mut now) = pool(&config);
    let mut expected = vec![
        ExpectedEjection {
            length: Duration::ZERO,
            good_since: now,
        };
        count
    ];
    for _ in 0..40 {
        let index = random.below(count.min(6));
        let transitions: Vec<_> = match random.below(8) {
            0..4 => fail_times(&pool, index, 2, now).into_iter().collect(),
            4 => pass(&pool, index, now).into_iter().collect(),
            5 => fail(&pool, index, now).into_iter().collect(),
            6 => {
                pool.succeeded(&pool.backends[index]);
                Vec::new()
            }
            _ => {
                now += seconds(random.below(40) as u64);
                let ended = pool.expire(now);
                for transition in &ended {
                    let mut all = pool.backends.iter();
                    let backend = all.find(|one| one.config.name == transition.backend);
                    assert_eq!(
                        backend.unwrap().state.view().ejected_until,
                        None,
                        "{context}"
                    );
                }
                ended
            }
        };
        for transition in &transitions {
            let index = pool
                .backends
                .iter()
                .position(|one| one.config.name == transition.backend);
            let index = index.unwrap();
            assert_legal(transition, &context);
            if transition.from.may_take_traffic() && transition.to == HealthState::Ejected {
                assert_guarded(&pool, count, percent, &context);
                let until = pool.backends[index].state.view().ejected_until.unwrap();
                let good_for = now - expected[index].good_since;
                let length = if good_for >= seconds(60) || expected[index].length.is_zero() {
                    seconds(10)
                } else {
                    (expected[index].length * 2).min(seconds(60))
                };
                assert_eq!(until - now, length, "{context}");
                expected[index].length = length;
            }
            if transition.to.may_take_traffic() {
                expected[index].good_since = now;
            }
            if transition.from == HealthState::Checking && transition.to == HealthState::Up {
                expected[index].good_since = now;
            }
        }
        assert_picks_agree(&pool, &mut random, &context);
    }
}

fn assert_legal(transition: &StateTransition, context: &str) {
    use HealthState::{Checking, Down, Ejected, Up};
    let legal = [
        (Checking, Up),
        (Checking, Down),
        (Checking, Ejected),
        (Up, Down),
        (Up, Ejected),
        (Down, Up),
        (Down, Ejected),
        (Ejected, Up),
        (Ejected, Down),
        (Ejected, Checking),
    ];
    let step = (transition.from, transition.to);
    assert!(legal.contains(&step), "{step:?}, {context}");
}

fn assert_guarded(pool: &Pool, count: usize, percent: usize, context: &str) {
    let available = pool
        .backends
        .iter()
        .filter(|one| one.state.state().may_take_traffic())
        .count();
    assert!(available >= 1, "{context}");
    let least = usize::from(percent > 0 && (2..=3).contains(&count));
    let allowed = (count * percent / 100).max(least);
    assert!(
        count - available <= allowed,
        "{} out, {context}",
        count - available
    );
}

fn assert_picks_agree(pool: &Pool, random: &mut Random, context: &str) {
    let counts = pool.counts();
    assert_eq!(
        counts.iter().sum::<usize>(),
        pool.backends.len(),
        "{context}"
    );
    let wanted = match (
        counts[HealthState::Up.index()],
        counts[HealthState::Checking.index()],
    ) {
        (0, 0) => None,
        (0, _) => Some(HealthState::Checking),
        _ => Some(HealthState::Up),
    };
    let picked = pool.pick(&[], random).ok().map(|lease| lease.state.state());
    assert_eq!(picked, wanted, "{context}");
}
