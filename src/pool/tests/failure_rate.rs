//! Ejection by the share of failures, and by statuses of responses.

use super::*;

/// Two backends that are ejected at `percent` of `min` requests, and hardly ever for a streak.
fn rated(percent: u32, min: u32) -> (Pool, Instant) {
    let mut config = unchecked(&[1, 1], BalancingPolicy::RoundRobin);
    let ejection = config.ejection.as_mut().unwrap();
    ejection.failures = 1000;
    ejection.failure_rate = Some(f64::from(percent) / 100.0);
    ejection.min_requests = min;
    pool(&config)
}

fn succeed_times(pool: &Pool, index: usize, times: u32, now: Instant) {
    for _ in 0..times {
        assert_eq!(pool.record_success(&lease(pool, index), now), None);
    }
}

#[test]
fn a_share_of_failures_ejects_also_when_they_never_come_in_a_row() {
    let (pool, now) = rated(50, 20);
    for second in 0..9 {
        let now = now + seconds(second);
        succeed_times(&pool, 0, 1, now);
        assert_eq!(fail_times(&pool, 0, 1, now), None, "second {second}");
    }
    // 9 of 19 are less than a half, and with the next one 20 requests are there.
    let now = now + seconds(9);
    succeed_times(&pool, 0, 1, now);
    let ejected = fail_times(&pool, 0, 1, now).unwrap();
    assert_eq!(
        ejected.cause,
        "10 of 20 requests failed in 10s, at last connection_refused, out for 10s"
    );
    // What was before the ejection counts no more after it.
    let later = now + seconds(10);
    pass_trial(&pool, 0, later);
    assert_eq!(fail_times(&pool, 0, 18, later), None);
}

#[test]
fn the_window_slides_and_few_requests_eject_nothing() {
    let (pool, now) = rated(50, 20);
    assert_eq!(fail_times(&pool, 0, 19, now), None, "too few");
    assert_eq!(fail_times(&pool, 0, 1, now + seconds(10)), None, "too old");
    let (pool, now) = rated(50, 20);
    succeed_times(&pool, 0, 30, now);
    assert_eq!(fail_times(&pool, 0, 20, now + seconds(9)), None, "20 of 50");
    let later = now + seconds(10);
    assert!(fail_times(&pool, 0, 1, later).is_some(), "21 of 21");
}

#[test]
fn a_pool_without_a_rate_counts_no_outcomes() {
    let (pool, now) = pool(&unchecked(&[1, 1], BalancingPolicy::RoundRobin));
    fail_times(&pool, 0, 4, now);
    succeed_times(&pool, 0, 30, now);
    assert_eq!(fail_times(&pool, 0, 4, now), None);
    let second = pool.state.second(now);
    assert_eq!(pool.backends[0].state.outcomes.counts(second).total, 0);
}

#[test]
fn a_rate_that_the_guard_forbids_asks_once_a_second() {
    let (pool, now) = rated(50, 20);
    for index in [0, 1] {
        assert_eq!(fail_times(&pool, index, 19, now), None);
    }
    assert!(fail_times(&pool, 0, 1, now).is_some());
    assert_eq!(fail_times(&pool, 1, 50, now), None, "it is the last one");
    pass_trial(&pool, 0, now + seconds(10));
    let again = now + seconds(10);
    assert_eq!(fail_times(&pool, 1, 19, again), None, "too few");
    assert!(fail_times(&pool, 1, 1, again).is_some());
}

#[test]
fn chosen_statuses_are_failures_and_others_are_not() {
    let mut config = unchecked(&[1, 1], BalancingPolicy::RoundRobin);
    config.ejection.as_mut().unwrap().status = vec![(500, 501), (503, 503)];
    let (with, now) = pool(&config);
    let (without, _) = pool(&unchecked(&[1, 1], BalancingPolicy::RoundRobin));
    for (status, is_failure) in [
        (200, false),
        (404, false),
        (499, false),
        (500, true),
        (501, true),
        (502, false),
        (503, true),
        (599, false),
    ] {
        assert_eq!(with.is_failure_status(status), is_failure, "{status}");
        assert!(!without.is_failure_status(status), "{status}");
    }
    let fail = || with.record_failure(&lease(&with, 0), Reason::ResponseStatus, now);
    assert_eq!((0..4).find_map(|_| fail()), None);
    assert_eq!(
        fail().unwrap().cause,
        "http_response_status 5 times in a row, out for 10s"
    );
}
