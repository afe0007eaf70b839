//! The trial request after an ejection: one at a time, and what its outcome means.

use super::*;

/// Backends of which the first is ejected, and its time is over at the returned instant.
fn due(config: &model::PoolConfig) -> (Pool, Instant) {
    let (pool, start) = pool(config);
    all_up(&pool, start);
    fail_times(&pool, 0, 5, start).unwrap();
    let now = start + seconds(10);
    let due = pool.expire(now);
    assert_eq!(due.len(), 1);
    assert!(due[0].is_trial);
    assert_eq!(
        due[0].cause,
        "the ejection is over, the next request is a trial"
    );
    (pool, now)
}

fn two() -> model::PoolConfig {
    unchecked(&[1, 1], BalancingPolicy::RoundRobin)
}

fn pick_at(pool: &Pool, now: Instant, is_repeatable: bool) -> BackendLease {
    let request = PickRequest {
        is_repeatable,
        ..PickRequest::first(now)
    };
    pool.pick(&request, &mut Random::seeded(1)).unwrap()
}

fn next(pool: &Pool, now: Instant) -> BackendLease {
    pick_at(pool, now, true)
}

#[test]
fn one_request_is_the_trial_and_all_others_go_elsewhere_until_its_verdict() {
    let (pool, now) = due(&two());
    let trial = next(&pool, now);
    assert_eq!(trial.index, 0);
    assert_eq!(pool.backends[0].state.view().trial, TrialPhase::Running);
    let others: Vec<_> = (0..20).map(|_| next(&pool, now)).collect();
    assert!(others.iter().all(|one| one.index == 1));
    // A success that began before the ejection is no verdict.
    assert_eq!(pool.record_success(&lease(&pool, 0), now), None);
    assert_eq!(states(&pool)[0], HealthState::Ejected);
    let back = pool.record_success(&trial, now).unwrap();
    assert_eq!(
        (back.from, back.to, &*back.cause),
        (
            HealthState::Ejected,
            HealthState::Up,
            "the trial request succeeded"
        )
    );
    assert_eq!(pool.record_success(&trial, now), None);
    drop(trial);
    let mut seen: Vec<_> = (0..4).map(|_| next(&pool, now).index).collect();
    seen.sort_unstable();
    assert_eq!(seen, [0, 0, 1, 1]);
    assert_eq!(pool.state.metrics.mine().trials_passed.get(), 1);
}

#[test]
fn a_failed_trial_ejects_for_double_the_time_and_its_retry_goes_elsewhere() {
    let (pool, start) = due(&two());
    let mut now = start;
    for (number, length) in (1..).zip([20, 40, 80, 160, 300, 300]) {
        let trial = next(&pool, now);
        let again = pool.record_failure(&trial, REFUSED, now).unwrap();
        assert_eq!(
            (again.from, again.to),
            (HealthState::Ejected, HealthState::Ejected)
        );
        let cause = format!(
            "the trial request failed: connection_refused, out for {:?}",
            seconds(length)
        );
        assert_eq!(again.cause, cause);
        let retried = pick(&pool, &[trial.index], &mut Random::seeded(1)).unwrap();
        assert_eq!(retried.index, 1);
        assert_eq!(pool.record_failure(&trial, REFUSED, now), None, "once");
        drop(trial);
        assert_eq!(next(&pool, now).index, 1);
        let slot = &pool.state.metrics.mine().trials_failed;
        assert_eq!(slot.get(), number);
        assert_eq!(pool.expire(now + seconds(length - 1)), []);
        now += seconds(length);
        assert_eq!(pool.expire(now).len(), 1);
    }
    let counted = pool.backends[0].state.metrics.mine().ejections.get(REFUSED);
    assert_eq!(counted, 7);
}

#[test]
fn a_trial_that_the_client_gives_up_is_no_verdict_and_the_next_request_is_the_next_one() {
    let (pool, now) = due(&two());
    for _ in 0..3 {
        let trial = next(&pool, now);
        assert_eq!(trial.index, 0);
        let gone = pool.record_failure(&trial, Reason::ClientDisconnected, now);
        assert_eq!(gone, None);
        assert_eq!(next(&pool, now).index, 1);
    }
    assert_eq!(pool.backends[0].state.view().trial, TrialPhase::Due);
    assert!(pool.record_success(&next(&pool, now), now).is_some());
}

#[test]
fn a_retry_is_no_trial_and_a_request_that_cannot_be_repeated_only_after_a_second() {
    let (pool, now) = due(&two());
    for _ in 0..4 {
        let retry = pick(&pool, &[1], &mut Random::seeded(1));
        assert_eq!(retry.unwrap().index, 1);
        assert_eq!(pick_at(&pool, now, false).index, 1);
    }
    assert!(pool.state.has_trials());
    let later = now + seconds(1);
    let trial = pick_at(&pool, later, false);
    assert_eq!(trial.index, 0);
    pool.record_success(&trial, later).unwrap();
    assert!(!pool.state.has_trials());
}

#[test]
fn good_checks_end_an_ejection_while_its_trial_is_due_or_on_its_way() {
    for is_running in [false, true] {
        let (pool, now) = due(&config(&[1, 1]));
        let trial = is_running.then(|| next(&pool, now));
        assert_eq!(pass(&pool, 0, now), None);
        let back = pass(&pool, 0, now).unwrap();
        assert_eq!(back.to, HealthState::Up);
        assert_eq!(pool.backends[0].state.view().trial, TrialPhase::None);
        if let Some(trial) = trial {
            // Its late failure is one failure like any other.
            assert_eq!(pool.record_failure(&trial, REFUSED, now), None);
        }
        assert_eq!(states(&pool), [HealthState::Up; 2]);
        let mut seen = picks(&pool, 2);
        seen.sort_unstable();
        assert_eq!(seen, [0, 1]);
    }
}

#[test]
fn a_check_that_fails_ends_the_trial_and_a_good_one_takes_its_place() {
    let (pool, now) = due(&config(&[1, 1]));
    let trial = next(&pool, now);
    (0..3).for_each(|_| drop(fail(&pool, 0, now)));
    assert_eq!(states(&pool)[0], HealthState::Down);
    assert_eq!(pool.record_success(&trial, now), None, "down is down");
    drop(trial);
    assert_eq!(next(&pool, now).index, 1);
    pass(&pool, 0, now);
    assert_eq!(pass(&pool, 0, now).unwrap().to, HealthState::Up);
}

#[test]
fn a_response_that_goes_on_for_long_passes_the_trial_a_second_after_its_head() {
    let (pool, now) = due(&two());
    let trial = next(&pool, now);
    assert_eq!(pool.expire(now + seconds(1)), []);
    trial.record_response();
    assert_eq!(pool.expire(now + seconds(2)), []);
    let late = pool.expire(now + Duration::from_millis(2900));
    assert_eq!(late, []);
    let back = pool.expire(now + Duration::from_millis(3200));
    assert_eq!((back.len(), back[0].to), (1, HealthState::Up));
    // Its end, an hour later, is nothing special.
    assert_eq!(pool.record_success(&trial, now + seconds(3600)), None);
}

#[test]
fn a_trial_that_is_held_up_by_its_client_lets_another_one_go_first() {
    let (pool, now) = due(&two());
    let slow = next(&pool, now);
    pool.expire(now + seconds(1));
    assert_eq!(pool.expire(now + seconds(63)), []);
    assert_eq!(next(&pool, now + seconds(63)).index, 1);
    assert_eq!(pool.expire(now + seconds(64)), []);
    let trial = next(&pool, now + seconds(64));
    assert_eq!(trial.index, 0);
    drop(slow);
    assert_eq!(next(&pool, now + seconds(64)).index, 1);
    assert!(pool.record_success(&trial, now + seconds(64)).is_some());
}

#[test]
fn a_full_backend_has_no_trial() {
    let mut config = two();
    config.backends[0].max_connections = Some(1);
    let (pool, now) = due(&config);
    let long = lease(&pool, 0);
    assert_eq!(next(&pool, now).index, 1);
    drop(long);
    assert_eq!(next(&pool, now).index, 0);
}

#[test]
fn a_backup_has_its_trial_only_when_its_tier_serves() {
    let mut config = two();
    config.backends[0].backup = 1;
    let (pool, now) = due(&config);
    assert_eq!(next(&pool, now).index, 1);
    let mut config = unchecked(&[1, 1, 1], BalancingPolicy::RoundRobin);
    config.backends[1].backup = 1;
    config.backends[2].backup = 1;
    let (pool, now) = due(&config);
    assert_eq!(next(&pool, now).index, 0, "while only backups serve");
}

#[test]
fn where_checks_take_the_last_one_down_ejected_ones_serve_and_are_not_ejected_again() {
    let (pool, now) = pool(&config(&[1, 1, 1]));
    all_up(&pool, now);
    fail_times(&pool, 0, 5, now).unwrap();
    for index in [1, 2] {
        (0..3).for_each(|_| drop(fail(&pool, index, now)));
    }
    // Its time is not over, and nothing else is left.
    let all: Vec<_> = (0..5).map(|_| next(&pool, now)).collect();
    assert!(all.iter().all(|one| one.index == 0));
    for failed in &all {
        assert_eq!(pool.record_failure(failed, REFUSED, now), None);
    }
    assert_eq!(states(&pool)[0], HealthState::Ejected);
    let back = pool.record_success(&all[4], now).unwrap();
    assert_eq!(back.to, HealthState::Up);
    assert_eq!(fail_times(&pool, 0, 50, now), None, "the last one");
}

#[test]
fn with_fail_open_a_success_ends_an_ejection_and_a_trial_is_one_request() {
    let mut open = config(&[1, 1]);
    open.when_all_down = WhenAllDown::FailOpen;
    let (pool, now) = due(&open);
    let trial = next(&pool, now);
    assert_eq!((trial.index, next(&pool, now).index), (0, 1));
    drop(trial);
    (0..3).for_each(|_| drop(fail(&pool, 1, now)));
    let mut all: Vec<_> = (0..4).map(|_| next(&pool, now)).collect();
    all.sort_by_key(|one| one.index);
    let indexes: Vec<_> = all.iter().map(|one| one.index).collect();
    assert_eq!(indexes, [0, 0, 1, 1], "every backend gets traffic");
    assert_eq!(
        pool.record_success(&all[3], now),
        None,
        "down is for checks"
    );
    let back = pool.record_success(&all[0], now).unwrap();
    assert_eq!(back.to, HealthState::Up);
}

#[test]
fn an_old_generation_ejects_nothing_out_of_the_sight_of_the_new_one() {
    let (old, now) = pool(&config(&[1, 1, 1, 1]));
    all_up(&old, now);
    let mut grown = config(&[1; 4]);
    grown.backends.push(backend(9, 1));
    let new = reload(&old, &grown, now);
    pass(&new, 4, now);
    fail_times(&new, 4, 5, now).unwrap();
    // The end of the first ejection is not forgotten by the later one.
    fail_times(&old, 0, 5, now + seconds(5)).unwrap();
    assert_eq!(new.expire(now + seconds(10)).len(), 1);
}
