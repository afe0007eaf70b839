//! The guard: no share of a pool that is out at once is larger than allowed, for any cause.

use super::*;

/// Backends that may be out of `total`, at `permille` of a pool.
fn allowed(total: usize, permille: usize) -> usize {
    match (total, permille) {
        (0 | 1, _) | (_, 0) => 0,
        (2 | 3, _) => (total * permille / 1000).max(1),
        _ => total * permille / 1000,
    }
}

#[test]
fn the_share_of_every_pool_is_exact() {
    for total in 0..=50 {
        for permille in 0..=1000 {
            let ejection = model::EjectionConfig {
                max_ejected: permille as f64 / 1000.0,
                ..model::EjectionConfig::default()
            };
            let got = ejection.allowed_out(total);
            assert_eq!(got, allowed(total, permille), "{total} at {permille}/1000");
            assert!(got <= total);
        }
    }
}

/// A pool in which some backends have no weight, some are backups, and some are down.
struct MixedPool {
    pool: Pool,
    now: Instant,
    context: String,
}

impl MixedPool {
    fn new(count: usize, percent: usize) -> Self {
        let mut random = Random::seeded((count * 1000 + percent) as u64);
        let mut config = config(&vec![1; count]);
        config.ejection.as_mut().unwrap().max_ejected = percent as f64 / 100.0;
        let weightless = random.below(3) == 0;
        for backend in &mut config.backends {
            backend.weight = u16::from(!weightless || random.below(4) > 0);
            backend.backup = random.below(3) as u8;
        }
        let (pool, now) = pool(&config);
        let down = random.below(count + 1);
        for index in 0..count {
            let fails = random.below(count) < down && random.below(2) == 0;
            let _ = if fails {
                fail(&pool, index, now)
            } else {
                pass(&pool, index, now)
            };
        }
        Self {
            pool,
            now,
            context: format!("{count} backends at {percent}%"),
        }
    }

    /// Backends with a weight, and how many of them are available.
    fn counts(&self) -> (usize, usize) {
        let weighted = self.pool.backends.iter().filter(|one| one.weight() > 0);
        let states: Vec<_> = weighted.map(|one| one.state.state()).collect();
        let available = states.iter().filter(|state| state.may_take_traffic());
        (states.len(), available.count())
    }
}

#[test]
fn of_every_pool_exactly_the_allowed_share_is_ejected_and_the_last_one_never() {
    for count in 1..=50 {
        for percent in 0..=100 {
            let mixed = MixedPool::new(count, percent);
            let (total, available) = mixed.counts();
            let free = allowed(total, percent * 10).saturating_sub(total - available);
            let expected = free.min(available.saturating_sub(1));
            let (pool, now) = (&mixed.pool, mixed.now);
            let ejected = (0..count).filter(|index| fail_times(pool, *index, 5, now).is_some());
            let ejected: Vec<_> = ejected.collect();
            assert_eq!(ejected.len(), expected, "{}", mixed.context);
            for index in ejected {
                assert!(pool.backends[index].weight() > 0, "{}", mixed.context);
            }
            let (_, left) = mixed.counts();
            assert_eq!(left, available - expected, "{}", mixed.context);
            assert!(left > 0 || available == 0, "{}", mixed.context);
        }
    }
}

#[test]
fn a_verdict_is_not_held_back_and_never_leaves_a_pool_without_a_backend_that_passes_its_checks() {
    for count in 2..=50 {
        for percent in (0..=100).step_by(5) {
            let mixed = MixedPool::new(count, percent);
            let (pool, now) = (&mixed.pool, mixed.now);
            for index in 0..count {
                fail_times(pool, index, 5, now);
            }
            for index in 0..count {
                if pool.backends[index].state.state().may_take_traffic() {
                    (0..3).for_each(|_| drop(fail(pool, index, now)));
                    assert_eq!(states(pool)[index], HealthState::Down, "{}", mixed.context);
                }
            }
            let is_left =
                |one: &&Arc<Backend>| one.weight() > 0 && one.state.state() == HealthState::Ejected;
            let left = pool.backends.iter().filter(is_left);
            let lowest = left.map(|one| one.config.backup).min();
            let picked = pick(pool, &[], &mut Random::seeded(1)).ok();
            let picked = picked.map(|lease| lease.config.backup);
            assert_eq!(picked, lowest, "{}", mixed.context);
        }
    }
}

#[test]
fn a_failed_trial_keeps_its_place_outside_also_when_the_share_is_used_up() {
    let mut config = config(&[1; 4]);
    config.ejection.as_mut().unwrap().max_ejected = 0.25;
    let (pool, now) = pool(&config);
    all_up(&pool, now);
    fail_times(&pool, 0, 5, now).unwrap();
    for index in [1, 2] {
        (0..3).for_each(|_| drop(fail(&pool, index, now)));
    }
    let now = now + seconds(10);
    pool.expire(now);
    let trial = pick(&pool, &[], &mut Random::seeded(1)).unwrap();
    assert_eq!(trial.index, 0);
    assert!(pool.record_failure(&trial, REFUSED, now).is_some());
}
