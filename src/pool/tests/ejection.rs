//! The effect of failed traffic, checks and reloads on an ejection. Local errors have none.

use super::*;

#[test]
fn failures_in_a_row_eject_and_a_success_in_between_does_not() {
    let (pool, now) = pool(&config(&[1, 1]));
    all_up(&pool, now);
    assert_eq!(fail_times(&pool, 0, 4, now), None);
    pool.record_success(&lease(&pool, 0), now);
    assert_eq!(fail_times(&pool, 0, 4, now), None);
    let ejected = fail_times(&pool, 0, 1, now).unwrap();
    assert_eq!(
        (ejected.from, ejected.to),
        (HealthState::Up, HealthState::Ejected)
    );
    assert_eq!(
        ejected.cause,
        "connection_refused 5 times in a row, out for 10s"
    );
    assert_eq!(picks(&pool, 3), [1, 1, 1]);
    assert_eq!(pool.counts()[HealthState::Ejected.index()], 1);
    let counted = pool.backends[0].state.metrics.mine().ejections.get(REFUSED);
    assert_eq!(counted, 1);
}

#[test]
fn reasons_that_are_no_fault_of_the_backend_never_eject() {
    let (pool, now) = pool(&config(&[1, 1]));
    all_up(&pool, now);
    for _ in 0..100 {
        let gone = pool.record_failure(&lease(&pool, 0), Reason::ClientDisconnected, now);
        assert_eq!(gone, None);
    }
    assert_eq!(pool.backends[0].state.view().failures_in_a_row, 0);
}

#[test]
fn an_ejection_ends_doubles_and_is_forgotten_after_a_good_time() {
    let (pool, start) = pool(&config(&[1, 1]));
    all_up(&pool, start);
    let mut now = start;
    for length in [10, 20, 40, 80, 160, 300, 300] {
        let ejected = fail_times(&pool, 0, 5, now).unwrap();
        assert_eq!(ejected.to, HealthState::Ejected);
        let until = pool.backends[0].state.view().ejected_until;
        assert_eq!(until, Some(now + seconds(length)));
        let nearly = Duration::from_nanos(length * 1_000_000_000 - 1);
        assert_eq!(pool.expire(now + nearly), []);
        now += seconds(length);
        let back = pass_trial(&pool, 0, now);
        assert_eq!(
            (back.from, back.to),
            (HealthState::Ejected, HealthState::Up)
        );
        assert_eq!(pool.expire(now), []);
    }
    now += seconds(299);
    fail_times(&pool, 0, 5, now);
    now += seconds(300);
    pass_trial(&pool, 0, now);
    now += seconds(300);
    fail_times(&pool, 0, 5, now);
    let until = pool.backends[0].state.view().ejected_until;
    assert_eq!(until, Some(now + seconds(10)));
}

#[test]
fn failures_of_requests_still_under_way_do_not_count_for_the_next_ejection() {
    let (pool, now) = pool(&config(&[1, 1]));
    all_up(&pool, now);
    fail_times(&pool, 0, 5, now).unwrap();
    assert_eq!(fail_times(&pool, 0, 9, now), None);
    pass_trial(&pool, 0, now + seconds(10));
    assert_eq!(fail_times(&pool, 0, 4, now + seconds(10)), None);
    assert!(fail_times(&pool, 0, 1, now + seconds(10)).is_some());
}

#[test]
fn a_failed_check_beats_an_ejection_and_good_ones_end_both() {
    let (pool, now) = pool(&config(&[1, 1]));
    all_up(&pool, now);
    fail_times(&pool, 0, 5, now);
    fail(&pool, 0, now);
    fail(&pool, 0, now);
    let down = fail(&pool, 0, now).unwrap();
    assert_eq!(
        (down.from, down.to),
        (HealthState::Ejected, HealthState::Down)
    );
    pass(&pool, 0, now);
    let up = pass(&pool, 0, now).unwrap();
    assert_eq!((up.from, up.to), (HealthState::Down, HealthState::Up));
    assert_eq!(pool.backends[0].state.view().ejected_until, None);
    assert_eq!(pool.expire(now + seconds(10)), []);
}

#[test]
fn checks_that_pass_rise_times_since_the_ejection_began_end_it() {
    for rise in [1, 2, 5] {
        let mut config = config(&[1, 1]);
        config.health_check.as_mut().unwrap().rise = rise;
        let (pool, start) = pool(&config);
        all_up(&pool, start);
        // Checks that passed before the ejection do not count.
        (0..10).for_each(|_| drop(pass(&pool, 0, start)));
        let ejected = start + seconds(1);
        fail_times(&pool, 0, 5, ejected).unwrap();
        let now = ejected + seconds(1);
        // Nor does a check that was under way when it began, nor a streak that failed in between.
        let under_way = pool.record_check(&pool.backends[0], Ok(()), seconds(2), now);
        assert_eq!(under_way, None);
        for _ in 1..rise {
            assert_eq!(pass(&pool, 0, now), None);
        }
        assert_eq!(fail(&pool, 0, now), None);
        for _ in 1..rise {
            assert_eq!(pass(&pool, 0, now), None, "rise {rise}");
        }
        let back = pass(&pool, 0, now).unwrap();
        assert_eq!(
            (back.from, back.to),
            (HealthState::Ejected, HealthState::Up)
        );
        assert!(back.cause.ends_with("passed since the ejection"), "{back}");
        assert_eq!(pool.backends[0].state.view().ejected_until, None);
        // The next one is longer all the same.
        fail_times(&pool, 0, 5, now).unwrap();
        let until = pool.backends[0].state.view().ejected_until;
        assert_eq!(until, Some(now + seconds(20)));
    }
}

#[test]
fn a_backend_ejected_before_its_first_check_needs_as_many_good_ones() {
    let (pool, now) = pool(&config(&[1, 1]));
    fail_times(&pool, 0, 5, now).unwrap();
    assert_eq!(pass(&pool, 0, now), None);
    assert_eq!(pass(&pool, 0, now).unwrap().to, HealthState::Up);
}

#[test]
fn without_a_health_check_only_a_trial_ends_an_ejection() {
    let (old, now) = pool(&config(&[1, 1]));
    all_up(&old, now);
    fail_times(&old, 0, 5, now).unwrap();
    let new = reload(&old, &unchecked(&[1, 1], BalancingPolicy::RoundRobin), now);
    assert_eq!(pass(&new, 0, now), None);
    assert_eq!(pass(&new, 0, now), None);
    assert_eq!(states(&new)[0], HealthState::Ejected);
    pass_trial(&new, 0, now + seconds(10));
}

#[test]
fn a_reload_to_no_ejection_ends_ejections_at_once_and_old_requests_cause_none() {
    let mut none = config(&[1, 1]);
    none.ejection = None;
    let mut zero = config(&[1, 1]);
    zero.ejection.as_mut().unwrap().max_ejected = 0.0;
    for off in [none, zero] {
        let (old, now) = pool(&config(&[1, 1]));
        all_up(&old, now);
        fail_times(&old, 0, 5, now).unwrap();
        let new = reload(&old, &off, now);
        assert_eq!(states(&new), [HealthState::Up; 2]);
        assert_eq!(picks(&new, 2), [0, 1]);
        assert_eq!(fail_times(&old, 0, 50, now), None);
        assert_eq!(states(&new), [HealthState::Up; 2]);
    }
}

#[test]
fn a_check_that_could_not_be_made_changes_no_verdict_and_no_streak() {
    let (pool, now) = pool(&config(&[1, 1]));
    let miss = |count: usize| {
        (0..count).for_each(|_| {
            pool.record_check_not_made(&pool.backends[0], "no descriptor".to_owned());
        });
    };
    miss(5);
    assert_eq!(states(&pool)[0], HealthState::Checking);
    pass(&pool, 0, now);
    // Two of three failed before, and it takes one more after it.
    fail(&pool, 0, now);
    fail(&pool, 0, now);
    miss(100);
    assert_eq!(states(&pool)[0], HealthState::Up);
    let view = pool.backends[0].state.view();
    assert_eq!(view.check_not_made.as_deref(), Some("no descriptor"));
    assert_eq!(fail(&pool, 0, now).unwrap().to, HealthState::Down);
    assert_eq!(pool.backends[0].state.view().check_not_made, None);
    pass(&pool, 0, now);
    miss(100);
    assert_eq!(states(&pool)[0], HealthState::Down);
    assert_eq!(pass(&pool, 0, now).unwrap().to, HealthState::Up);
    let slot = pool.backends[0].state.metrics.mine();
    assert_eq!(slot.checks_local_error.get(), 205);
    assert_eq!(slot.checks_failed.get(), 3);
}

#[test]
fn a_local_error_ejects_no_backend() {
    let (pool, now) = pool(&config(&[1, 1]));
    all_up(&pool, now);
    for _ in 0..100 {
        assert_eq!(
            pool.record_failure(&lease(&pool, 0), Reason::Overload, now),
            None
        );
    }
}

#[test]
fn ten_backends_at_ten_percent_eject_one_and_at_nine_none() {
    for (count, percent, out) in [(10, 10, 1), (10, 9, 0), (10, 25, 2), (4, 20, 0), (3, 20, 1)] {
        let mut config = config(&vec![1; count]);
        config.ejection.as_mut().unwrap().max_ejected = f64::from(percent) / 100.0;
        let (pool, now) = pool(&config);
        all_up(&pool, now);
        let ejected = (0..count).filter_map(|index| fail_times(&pool, index, 5, now));
        assert_eq!(ejected.count(), out, "{count} at {percent}%");
    }
}

#[test]
fn an_ejection_over_while_down_leaves_the_backend_down() {
    let (pool, now) = pool(&config(&[1, 1]));
    all_up(&pool, now);
    fail_times(&pool, 0, 5, now);
    (0..3).for_each(|_| drop(fail(&pool, 0, now)));
    assert_eq!(pool.expire(now + seconds(10)), []);
    assert_eq!(states(&pool)[0], HealthState::Down);
    pass(&pool, 0, now);
    assert_eq!(pass(&pool, 0, now).unwrap().to, HealthState::Up);
}

#[test]
fn pools_of_one_two_and_three_keep_one_backend() {
    for (count, out) in [(1, 0), (2, 1), (3, 1), (4, 2)] {
        let (pool, now) = pool(&config(&vec![1; count]));
        all_up(&pool, now);
        let ejected = (0..count).filter_map(|index| fail_times(&pool, index, 5, now));
        assert_eq!(ejected.count(), out, "pool of {count}");
    }
}

#[test]
fn an_ejection_that_the_guard_forbids_is_attempted_again_later() {
    let (pool, now) = pool(&config(&[1, 1]));
    pass(&pool, 0, now);
    fail(&pool, 1, now);
    assert_eq!(fail_times(&pool, 0, 9, now), None);
    pass(&pool, 1, now);
    pass(&pool, 1, now);
    assert!(fail_times(&pool, 0, 1, now).is_some());
}

#[test]
fn a_backend_that_goes_down_ends_its_sessions_only_where_told() {
    use crate::config::model::OnDown;
    for on_down in [OnDown::Keep, OnDown::Close] {
        let mut config = config(&[1]);
        config.health_check.as_mut().unwrap().on_down = on_down;
        let (pool, now) = pool(&config);
        pass(&pool, 0, now);
        let ends = |lease: &BackendLease| {
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            std::pin::pin!(lease.until_down()).poll(&mut cx).is_ready()
        };
        let lease = pick(&pool, &[], &mut Random::seeded(1)).unwrap();
        fail(&pool, 0, now);
        fail(&pool, 0, now);
        assert!(!ends(&lease), "it is up");
        assert_eq!(fail(&pool, 0, now).unwrap().to, HealthState::Down);
        assert_eq!(ends(&lease), on_down == OnDown::Close);
        pass(&pool, 0, now);
        pass(&pool, 0, now);
        let later = pick(&pool, &[], &mut Random::seeded(1)).unwrap();
        assert!(!ends(&later));
    }
}
