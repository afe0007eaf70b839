//! Random sequences of checks, failures and time against a simple model.

use super::*;

const MAX_EJECTION: Duration = Duration::from_mins(1);

/// Model of one backend's ejections.
#[derive(Clone, Copy)]
struct ExpectedEjection {
    duration: Duration,
    good_since: Instant,
}

#[test]
fn no_sequence_of_events_ejects_all_or_ends_an_ejection_early_but_by_checks() {
    for seed in 0..50 * 101 {
        let (count, percent) = (1 + seed % 50, seed / 50);
        let mut life = RandomLife::new(count, percent, seed as u64);
        for _ in 0..40 {
            for transition in life.event() {
                life.follow(&transition);
            }
            life.assert_picks_agree();
        }
    }
}

/// A pool under random events, with the model of its ejections.
struct RandomLife {
    pool: Pool,
    now: Instant,
    random: Random,
    expected: Vec<ExpectedEjection>,
    percent: usize,
    context: String,
}

impl RandomLife {
    fn new(count: usize, percent: usize, seed: u64) -> Self {
        let mut config = config(&vec![1; count]);
        let ejection = config.ejection.as_mut().unwrap();
        ejection.failures = 2;
        ejection.max_eject_for = MAX_EJECTION;
        ejection.max_ejected = percent as f64 / 100.0;
        let (pool, now) = pool(&config);
        let fresh = ExpectedEjection {
            duration: Duration::ZERO,
            good_since: now,
        };
        Self {
            pool,
            now,
            random: Random::seeded(seed),
            expected: vec![fresh; count],
            percent,
            context: format!("count {count}, max_ejected {percent}%, seed {seed}"),
        }
    }

    /// One random event and the transitions it causes.
    fn event(&mut self) -> Vec<StateTransition> {
        let (pool, now) = (&self.pool, self.now);
        let index = self.random.below(pool.backends.len().min(6));
        match self.random.below(8) {
            0..4 => fail_times(pool, index, 2, now).into_iter().collect(),
            4 => pass(pool, index, now).into_iter().collect(),
            5 => fail(pool, index, now).into_iter().collect(),
            6 => {
                pool.record_success(&pool.backends[index]);
                Vec::new()
            }
            _ => {
                self.now += seconds(self.random.below(40) as u64);
                self.expire()
            }
        }
    }

    fn expire(&self) -> Vec<StateTransition> {
        let ended = self.pool.expire(self.now);
        for transition in &ended {
            let index = self.index_of(transition);
            assert_eq!(self.ejected_until(index), None, "{}", self.context);
        }
        ended
    }

    /// Compares a transition with the model and updates the model.
    fn follow(&mut self, transition: &StateTransition) {
        assert_legal(transition, &self.context);
        let index = self.index_of(transition);
        if transition.from.may_take_traffic() && transition.to == HealthState::Ejected {
            self.assert_guarded();
            let last = self.expected[index];
            let is_forgiven = self.now - last.good_since >= MAX_EJECTION;
            let duration = if is_forgiven || last.duration.is_zero() {
                seconds(10)
            } else {
                (last.duration * 2).min(MAX_EJECTION)
            };
            let until = self.ejected_until(index).unwrap();
            assert_eq!(until - self.now, duration, "{}", self.context);
            self.expected[index].duration = duration;
        }
        if transition.to.may_take_traffic() {
            self.expected[index].good_since = self.now;
        }
    }

    fn index_of(&self, transition: &StateTransition) -> usize {
        let mut backends = self.pool.backends.iter();
        let index = backends.position(|one| one.config.name == transition.backend);
        index.unwrap()
    }

    fn ejected_until(&self, index: usize) -> Option<Instant> {
        self.pool.backends[index].state.view().ejected_until
    }

    /// No more backends are out than the guard allows.
    fn assert_guarded(&self) {
        let count = self.pool.backends.len();
        let mut states = states(&self.pool);
        states.retain(|state| state.may_take_traffic());
        let available = states.len();
        assert!(available >= 1, "{}", self.context);
        let least = usize::from(self.percent > 0 && (2..=3).contains(&count));
        let allowed = (count * self.percent / 100).max(least);
        let out = count - available;
        assert!(out <= allowed, "{out} out, {}", self.context);
    }

    /// A pick finds a backend of the best state there is.
    fn assert_picks_agree(&mut self) {
        let counts = self.pool.counts();
        let total = counts.iter().sum::<usize>();
        assert_eq!(total, self.pool.backends.len(), "{}", self.context);
        let up = counts[HealthState::Up.index()];
        let wanted = match (up, counts[HealthState::Checking.index()]) {
            (0, 0) => None,
            (0, _) => Some(HealthState::Checking),
            _ => Some(HealthState::Up),
        };
        let picked = pick(&self.pool, &[], &mut self.random);
        let picked = picked.ok().map(|lease| lease.state.state());
        assert_eq!(picked, wanted, "{}", self.context);
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
