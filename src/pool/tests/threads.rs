//! Picks and failures on many threads at once.

use std::{
    sync::{
        Barrier, Mutex,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Acquire},
        },
    },
    thread,
};

use super::*;

#[test]
fn the_limit_holds_exactly_under_threads() {
    for policy in BalancingPolicy::ALL.iter().copied() {
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
                        if let Ok(lease) = pick(pool, &[], &mut random) {
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
    const BACKEND_COUNT: usize = 16;
    for _ in 0..50 {
        let (pool, _) = pool(&unchecked(
            &[1; BACKEND_COUNT],
            BalancingPolicy::LeastConnections,
        ));
        let (start, got) = (Barrier::new(BACKEND_COUNT), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..BACKEND_COUNT {
                scope.spawn(|| {
                    let mut random = Random::seeded(1);
                    start.wait();
                    let lease = pick(&pool, &[], &mut random).unwrap();
                    got.lock().unwrap().push(lease);
                });
            }
        });
        let loads: Vec<_> = pool.backends.iter().map(|b| b.state.in_flight()).collect();
        assert_eq!(loads, [1; BACKEND_COUNT]);
    }
}

#[test]
fn two_threads_that_want_the_same_backend_never_both_get_it() {
    const MAX_ROUNDS: usize = 20_000;
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
                for round in 1..=MAX_ROUNDS {
                    await_all(&ready, 2 * round);
                    let lease = pick(&pool, &[], &mut random).unwrap();
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
                        let one = pool.record_failure(&lease(&pool, 3), REFUSED, now);
                        seen.lock().unwrap().extend(one);
                    }
                });
            }
        });
        assert_eq!(seen.lock().unwrap().len(), 1);
        assert_eq!(states(&pool)[3], HealthState::Ejected);
    }
}
