//! The promises of slow start: who ramps, from when, and how the share grows.

use super::*;
use crate::config::model::ResolveMode;

fn config_of(count: usize, policy: BalancingPolicy) -> model::PoolConfig {
    model::PoolConfig {
        policy,
        slow_start: Some(seconds(30)),
        ..config(&vec![1; count])
    }
}

/// Share of the picks that goes to the backend at `index`, in percent.
fn share(pool: &Pool, index: usize) -> usize {
    let all = picks(pool, 1_100);
    all.iter().filter(|picked| **picked == index).count() * 100 / all.len()
}

/// Takes the backend at `index` down and up again.
fn bounce(pool: &Pool, index: usize, now: Instant) {
    for _ in 0..3 {
        fail(pool, index, now);
    }
    assert_eq!(pool.backends[index].state.state(), HealthState::Down);
    pass(pool, index, now);
    assert!(pass(pool, index, now).is_some());
}

#[test]
fn a_backend_that_recovers_ramps_from_a_tenth() {
    for policy in [
        BalancingPolicy::RoundRobin,
        BalancingPolicy::RandomTwo,
        BalancingPolicy::LeastConnections,
    ] {
        let (pool, now) = pool(&config_of(2, policy));
        all_up(&pool, now);
        let even = share(&pool, 1);
        assert!(
            (45..=55).contains(&even),
            "{policy:?}: nothing ramps at the start: {even}"
        );
        bounce(&pool, 1, now);
        let first = share(&pool, 1);
        assert!((4..=14).contains(&first), "{policy:?}: {first}");
        assert!(pool.expire(now + seconds(15)).is_empty());
        let middle = share(&pool, 1);
        assert!((31..=39).contains(&middle), "{policy:?}: {middle}");
        pool.expire(now + seconds(31));
        let last = share(&pool, 1);
        assert!((45..=55).contains(&last), "{policy:?}: {last}");
    }
}

#[test]
fn an_added_backend_ramps_and_a_reload_ramps_none_that_was_there() {
    let (old, now) = pool(&config_of(2, BalancingPolicy::RoundRobin));
    all_up(&old, now);
    let new = Pool::new(&config_of(3, BalancingPolicy::RoundRobin), Some(&old), now);
    old.retire(Some(&new));
    assert_eq!(share(&new, 2), 0, "not checked yet");
    pass(&new, 2, now);
    assert!((4..=6).contains(&share(&new, 2)), "10 of 210");
    let first = share(&new, 0);
    assert!((46..=49).contains(&first), "{first}");
}

#[test]
fn without_checks_an_added_backend_ramps_from_its_start() {
    let unchecked = |count| model::PoolConfig {
        health_check: None,
        ..config_of(count, BalancingPolicy::RoundRobin)
    };
    let (old, now) = pool(&unchecked(1));
    let new = Pool::new(&unchecked(2), Some(&old), now);
    assert!((8..=10).contains(&share(&new, 1)), "10 of 110");
}

#[test]
fn members_of_the_first_answer_do_not_ramp_and_those_of_later_ones_do() {
    let named = |host: &str| model::BackendConfig {
        resolve: ResolveMode::Each,
        ..model::BackendConfig::at(format!("{host}:80").parse().unwrap())
    };
    let config = model::PoolConfig {
        health_check: None,
        backends: vec![named("one.test"), named("two.test")],
        ..config_of(1, BalancingPolicy::RoundRobin)
    };
    let [one, two] = [named("one.test"), named("two.test")];
    let steps = [
        (vec![backend(1, 1), backend(2, 1), two], [].as_slice()),
        (vec![backend(1, 1), backend(2, 1), backend(3, 1)], &[]),
        (vec![backend(1, 1), backend(4, 1), backend(3, 1)], &["b4"]),
        // A name that a reload adds.
        (
            vec![backend(1, 1), backend(4, 1), one],
            &["b4", "one.test:80"],
        ),
        (
            vec![backend(1, 1), backend(4, 1), backend(5, 1)],
            &["b4", "b5"],
        ),
    ];
    let (mut pool, now) = pool(&config);
    for (members, expected) in steps {
        let next = Pool::of_members(&config, &members, Some(&pool), now);
        pool.retire(Some(&next));
        pool = next;
        let ramping = pool.backends.iter();
        let ramping = ramping.filter(|one| pool.ramp_percent(one, now).is_some());
        let names: Vec<_> = ramping.map(|one| &*one.config.name).collect();
        assert_eq!(names, expected);
    }
    let empty = Pool::of_members(&config, &[], None, now);
    let first = Pool::of_members(&config, &[backend(1, 1)], Some(&empty), now);
    assert_eq!(first.ramp_percent(&first.backends[0], now), None);
}

#[test]
fn by_hash_a_ramping_backend_passes_keys_on_and_no_other_key_moves() {
    let (pool, now) = pool(&config_of(4, BalancingPolicy::Hash));
    all_up(&pool, now);
    let mut random = Random::seeded(1);
    let mut map = || -> Vec<usize> {
        let mut pick = |key: u64| {
            let request = PickRequest {
                key: Some(key.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                ..PickRequest::first(now)
            };
            pool.pick(&request, &mut random).unwrap().index
        };
        (0..2_000).map(&mut pick).collect()
    };
    let before = map();
    bounce(&pool, 1, now);
    let after = map();
    let kept = before
        .iter()
        .zip(&after)
        .filter(|(one, other)| **one == 1 && **other == 1)
        .count();
    let own = before.iter().filter(|index| **index == 1).count();
    assert!((own / 20..own / 6).contains(&kept), "{kept} of {own}");
    assert!(
        before
            .iter()
            .zip(&after)
            .all(|(one, other)| *one == 1 || one == other)
    );
}
