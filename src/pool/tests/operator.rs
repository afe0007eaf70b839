//! States and weights that the operator sets.

use super::*;
use crate::{base::address::BackendAddress, config::model::OnDown};

fn one<T>(value: T) -> OperatorOverride<T> {
    OperatorOverride {
        value,
        by: "root".to_owned(),
        since_unix: seconds(1),
        end: None,
        note: Some("new kernel".to_owned()),
    }
}

fn state_of(state: OperatorState) -> BackendOverrides {
    BackendOverrides {
        state: Some(one(state)),
        weight: None,
    }
}

fn weight_of(weight: u16) -> BackendOverrides {
    BackendOverrides {
        state: None,
        weight: Some(one(weight)),
    }
}

fn set(
    pool: &Pool,
    index: usize,
    overrides: BackendOverrides,
    now: Instant,
) -> Option<StateTransition> {
    pool.set_overrides(&pool.backends[index], overrides, "made ready by root", now)
}

fn drain(pool: &Pool, index: usize, now: Instant) -> Option<StateTransition> {
    set(pool, index, state_of(OperatorState::Draining), now)
}

fn ready(pool: &Pool, index: usize, now: Instant) -> Option<StateTransition> {
    set(pool, index, BackendOverrides::default(), now)
}

#[test]
fn a_state_of_the_operator_precedes_checks_and_ejection_and_removal_precedes_it() {
    type Prepare = fn(&Pool, Instant);
    let cases: [(Prepare, HealthState); 4] = [
        (|_, _| (), HealthState::Checking),
        (all_up, HealthState::Up),
        (|pool, now| drop(fail(pool, 0, now)), HealthState::Down),
        (
            |pool, now| {
                all_up(pool, now);
                fail_times(pool, 0, 5, now);
            },
            HealthState::Ejected,
        ),
    ];
    for (prepare, behind) in cases {
        for (state, wanted) in [
            (OperatorState::Draining, HealthState::Draining),
            (OperatorState::Maintenance, HealthState::Maintenance),
        ] {
            let (pool, now) = pool(&config(&[1, 1]));
            prepare(&pool, now);
            assert_eq!(states(&pool)[0], behind);
            let change = set(&pool, 0, state_of(state), now).unwrap();
            assert_eq!((change.from, change.to), (behind, wanted));
            assert_eq!(change.cause, "set by root: new kernel");
            assert_eq!(
                set(&pool, 0, state_of(state), now),
                None,
                "it is so already"
            );
            let back = ready(&pool, 0, now).unwrap();
            assert_eq!((back.from, back.to), (wanted, behind));
            assert!(back.cause.starts_with("made ready by root"), "{back}");
            drop(set(&pool, 0, state_of(state), now));
            pool.retire(None);
            assert_eq!(states(&pool)[0], HealthState::Removed);
        }
    }
}

#[test]
fn one_that_is_taken_out_gets_no_new_work_at_once_in_any_generation() {
    for state in OperatorState::ALL {
        let (old, now) = pool(&config(&[1, 1, 1]));
        all_up(&old, now);
        let new = reload(&old, &config(&[1, 1, 1]), now);
        let held = pick(&new, &[1, 2], &mut Random::seeded(1)).unwrap();
        assert_eq!(held.index, 0);
        drop(set(&new, 0, state_of(state), now));
        for pool in [&old, &new] {
            assert!(!picks(pool, 6).contains(&0));
            let retried = pick(pool, &[1, 2], &mut Random::seeded(1)).unwrap();
            assert_ne!(retried.index, 0, "retries avoid it too");
        }
        assert_eq!(held.state.in_flight(), 1, "its work goes on");
        drop(ready(&new, 0, now));
        assert!(picks(&old, 3).contains(&0) && picks(&new, 3).contains(&0));
    }
}

#[test]
fn fail_open_and_a_pool_that_left_do_not_use_one_that_is_taken_out() {
    let mut open = config(&[1, 1]);
    open.when_all_down = WhenAllDown::FailOpen;
    let (pool, now) = pool(&open);
    fail(&pool, 0, now);
    fail(&pool, 1, now);
    drop(drain(&pool, 0, now));
    assert_eq!(picks(&pool, 2), [1, 1]);
    pool.retire(None);
    assert_eq!(picks(&pool, 2), [1, 1]);
}

#[test]
fn checks_and_ejection_go_on_behind_it_and_hold_when_it_ends() {
    let (pool, now) = pool(&config(&[1, 1, 1, 1]));
    all_up(&pool, now);
    drop(drain(&pool, 0, now));
    for _ in 0..3 {
        assert_eq!(fail(&pool, 0, now), None, "the state stays");
    }
    let back = ready(&pool, 0, now).unwrap();
    assert_eq!(back.to, HealthState::Down);
    let cause = "made ready by root; the last check failed: connection refused";
    assert_eq!(back.cause, cause);
    fail_times(&pool, 1, 5, now).unwrap();
    drop(drain(&pool, 1, now));
    assert_eq!(pool.expire(now + seconds(10)), [], "its time ends unseen");
    assert_eq!(ready(&pool, 1, now).unwrap().to, HealthState::Ejected);
    let trial = pool.backends[1].state.view().trial;
    assert_eq!(trial, TrialPhase::Due, "the next request is the trial");
    drop(drain(&pool, 2, now));
    assert_eq!(fail_times(&pool, 2, 50, now), None, "it is out already");
    drop(ready(&pool, 2, now));
    assert_eq!(
        fail_times(&pool, 2, 4, now),
        None,
        "old failures are forgotten"
    );
}

#[test]
fn sessions_of_a_draining_backend_end_when_its_checks_fail() {
    let mut closing = config(&[1, 1]);
    closing.health_check.as_mut().unwrap().on_down = OnDown::Close;
    let (pool, now) = pool(&closing);
    all_up(&pool, now);
    let raised = |index: usize| pool.backends[index].state.down.count();
    drop(drain(&pool, 0, now));
    (0..3).for_each(|_| drop(fail(&pool, 0, now)));
    assert_eq!(raised(0), 1);
    fail(&pool, 0, now);
    assert_eq!(raised(0), 1, "once");
}

#[test]
fn a_weight_of_the_operator_changes_the_split_and_0_takes_it_out() {
    let (pool, now) = pool(&config(&[1, 1]));
    all_up(&pool, now);
    let share = |pool: &Pool| picks(pool, 8).iter().filter(|at| **at == 0).count();
    assert_eq!(share(&pool), 4);
    assert_eq!(set(&pool, 0, weight_of(3), now), None);
    assert_eq!(share(&pool), 6);
    let new = reload(&pool, &config(&[1, 1]), now);
    assert_eq!(share(&new), 6, "a reload keeps it");
    drop(set(&new, 0, weight_of(0), now));
    assert_eq!((share(&pool), share(&new)), (0, 0));
    drop(ready(&new, 0, now));
    assert_eq!(share(&new), 4);
}

#[test]
fn the_guard_counts_those_that_the_operator_took_out() {
    for overrides in [state_of(OperatorState::Draining), weight_of(0)] {
        let (pool, now) = pool(&config(&[1; 4]));
        all_up(&pool, now);
        drop(set(&pool, 0, overrides.clone(), now));
        assert!(
            fail_times(&pool, 1, 5, now).is_some(),
            "two of four are out"
        );
        assert_eq!(fail_times(&pool, 2, 5, now), None);
        drop(ready(&pool, 0, now));
        assert_eq!(
            fail_times(&pool, 2, 5, now).map(|one| one.to),
            Some(HealthState::Ejected)
        );
    }
    let (pool, now) = pool(&config(&[1, 1]));
    all_up(&pool, now);
    drop(drain(&pool, 0, now));
    assert_eq!(fail_times(&pool, 1, 5, now), None, "the last one stays");
}

#[test]
fn a_generation_comes_into_force_with_the_overrides_of_new_and_returning_backends() {
    let (first, now) = pool(&config(&[1, 1]));
    all_up(&first, now);
    let key = |number: usize| {
        let address: &BackendAddress = &backend(number, 1).address;
        OverrideKey::new("app", address)
    };
    let mut table = OverrideTable::default();
    table.set(key(2), state_of(OperatorState::Maintenance));
    let second = Pool::new(&config(&[1, 1, 1]), Some(&first), now);
    second.apply_overrides(&table);
    first.retire(Some(&second));
    assert_eq!(
        states(&second)[2],
        HealthState::Maintenance,
        "never `checking`"
    );
    pass(&second, 2, now);
    assert_eq!(states(&second)[2], HealthState::Maintenance);
    // It leaves while it serves something, and its override ends meanwhile.
    drop(set(&second, 1, state_of(OperatorState::Draining), now));
    table.set(key(1), state_of(OperatorState::Draining));
    drop(ready(&second, 2, now));
    let held = pick(&second, &[0, 1], &mut Random::seeded(1)).unwrap();
    assert_eq!(held.index, 2);
    drop(drain(&second, 2, now));
    let third = reload(&second, &config(&[1]), now);
    table.set(key(2), BackendOverrides::default());
    let fourth = Pool::new(&config(&[1, 1, 1]), Some(&third), now);
    fourth.apply_overrides(&table);
    fourth.restore();
    third.retire(Some(&fourth));
    let expected = [HealthState::Up, HealthState::Draining, HealthState::Up];
    assert_eq!(states(&fourth), expected);
    assert_eq!(fourth.find_backend("b1").unwrap().index, 1);
    assert_eq!(fourth.find_backend("10.0.0.2:80").unwrap().index, 2);
    assert!(fourth.find_backend("b9").is_none());
}
