//! State that reloads keep, remove and bring back.

use super::*;

#[test]
fn a_reload_keeps_what_is_known_by_address() {
    let (old, now) = pool(&config(&[1, 1, 1, 1, 1]));
    all_up(&old, now);
    fail_times(&old, 0, 5, now);
    (0..3).for_each(|_| drop(fail(&old, 1, now)));
    fail(&old, 2, now);
    fail_times(&old, 3, 4, now);
    let lease = pick(&old, &[0, 1, 2, 3], &mut Random::seeded(1)).unwrap();

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
    let held = pick(&first, &[0], &mut Random::seeded(1)).unwrap();
    fail_times(&first, 1, 5, now).unwrap();
    let second = reload(&first, &config(&[1]), now);
    let third = Pool::new(&config(&[1, 1]), Some(&second), now);
    third.restore();
    second.retire(Some(&third));
    assert_eq!(states(&third), [HealthState::Up, HealthState::Ejected]);
    pass_trial(&third, 1, now + seconds(11));
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
    let held = pick(&first, &[], &mut Random::seeded(1)).unwrap();
    let third = {
        let back = config(&[1, 1]);
        Pool::returned(&back, &back.backends, Arc::clone(&first.state), now)
    };
    third.restore();
    let known = &third.backends[held.index].state;
    assert!(Arc::ptr_eq(&held.state, known));
    assert_eq!(known.state(), HealthState::Up);
    assert!(
        third.backends[held.index].transport_epoch > second.backends[held.index].transport_epoch,
        "old connections are not used"
    );
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
    pass_trial(&last, 0, now + seconds(10));
    assert_eq!(
        fail_times(&old, 0, 5, now + seconds(10)),
        None,
        "now it is the last one"
    );
}

#[test]
fn kept_connections_are_used_again_exactly_while_the_transport_is_the_same() {
    use crate::config::model::{BackendProtocol, TlsOverride};

    let (first, now) = pool(&config(&[1, 1]));
    let epochs = |pool: &Pool| [0, 1].map(|at: usize| pool.backends[at].transport_epoch);
    let [one, two] = epochs(&first);
    assert_ne!(one, two);
    let same = reload(&first, &config(&[2, 1]), now);
    assert_eq!(epochs(&same), [one, two]);
    // TLS of one backend.
    let mut changed = config(&[2, 1]);
    changed.backends[1].tls = TlsOverride::Plain;
    let own = reload(&same, &changed, now);
    let [kept, fresh] = epochs(&own);
    assert_eq!(kept, one);
    assert_ne!(fresh, two);
    // A backend that was away: an exchange of before may give its connection back later.
    let mut without = changed.clone();
    without.backends.truncate(1);
    let away = reload(&own, &without, now);
    let back = reload(&away, &changed, now);
    assert_eq!(back.backends[0].transport_epoch, one);
    assert!(back.backends[1].transport_epoch > fresh);
    // The protocol of the pool.
    changed.protocol = BackendProtocol::H2c;
    let other = reload(&back, &changed, now);
    assert!(
        epochs(&other)
            .iter()
            .all(|epoch| !epochs(&back).contains(epoch))
    );
}
