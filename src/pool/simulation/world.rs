//! Carries out a plan, and compares the pool with the model after each event.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    choice::{self, AllowedPicks, allowed_picks},
    clock::SimulatedClock,
    counts::{EventCounts, SeenEvent},
    model::{BackendModel, available, guard_allows},
    plan::{PoolEvent, SimulationPlan},
    waiters::WaitingRequest,
};
use crate::{
    base::{address::BackendAddress, rng::Random},
    config::model::{self, BalancingPolicy},
    pool::{
        Backend, BackendLease, HealthState, OverrideTable, PickRequest, Pool, StateTransition,
        TrialPhase, fixture::lease,
    },
    reason::Reason,
};

/// Most exchanges at once.
const MAX_EXCHANGES: usize = 40;
/// Most attempts of an exchange.
const MAX_ATTEMPTS: usize = 4;
/// Time from which any request may be the trial.
pub(super) const TRIAL_WAIT: Duration = Duration::from_secs(1);
/// Time from one look at trials to the next.
pub(super) const TRIAL_REVIEW: Duration = Duration::from_millis(250);
/// Time after which a trial without a response no longer holds up others: the default timeouts.
const TRIAL_TIME: Duration = Duration::from_secs(63);
const REFUSED: Reason = Reason::ConnectionRefused;

/// An exchange that is under way.
pub(super) struct OpenExchange {
    pub(super) pool: Arc<Pool>,
    /// `None` between two attempts.
    pub(super) lease: Option<BackendLease>,
    is_repeatable: bool,
    /// The client's own backend.
    own: Option<BackendAddress>,
    /// Hash that it is balanced by.
    key: u64,
    pub(super) attempted: Vec<usize>,
    pub(super) busy: Vec<usize>,
    attempts: usize,
    /// The ejection that its outcome decides about.
    trial: Option<u32>,
    /// It holds the only trial there may be.
    has_slot: bool,
    picked: Instant,
    responded: Option<Instant>,
}

impl OpenExchange {
    /// Its next pick from its pool.
    pub(super) fn request(&self, now: Instant) -> PickRequest<'_> {
        let own = self.own.as_ref();
        let at = |own: &BackendAddress| {
            let mut all = self.pool.backends.iter();
            all.position(|one| one.state.address == *own)
        };
        PickRequest {
            attempted: &self.attempted,
            busy: &self.busy,
            key: Some(self.key),
            sticky: own.and_then(at),
            is_repeatable: self.is_repeatable,
            now,
        }
    }

    /// Goes over to another generation.
    pub(super) fn move_to(&mut self, pool: &Arc<Pool>) {
        self.attempted = pool.positions_of(&self.pool, &self.attempted);
        self.busy = pool.positions_of(&self.pool, &self.busy);
        self.pool = Arc::clone(pool);
    }
}

/// A pool with its model.
pub(super) struct SimulatedWorld<'a> {
    pub(super) plan: &'a SimulationPlan,
    clock: &'a SimulatedClock,
    pub(super) pool: Arc<Pool>,
    start: Instant,
    pub(super) now: Instant,
    random: Random,
    pub(super) exchanges: Vec<OpenExchange>,
    /// Those who wait, in the order of their arrival.
    pub(super) waiting: Vec<WaitingRequest>,
    pub(super) arrivals: u32,
    pub(super) models: HashMap<BackendAddress, BackendModel>,
    pub(super) overrides: OverrideTable,
    /// The members, once they are not those of the file.
    pub(super) discovered: Option<Vec<model::BackendConfig>>,
    /// Backend that a key led to, by key and members.
    hashed: HashMap<String, BackendAddress>,
    requests: u32,
    spent: u32,
    pub(super) seen: EventCounts,
}

impl<'a> SimulatedWorld<'a> {
    pub(super) fn new(plan: &'a SimulationPlan, clock: &'a SimulatedClock) -> Self {
        let (now, config) = (clock.now(), plan.config(0));
        let has_checks = config.health_check.is_some();
        let models = config.backends.iter();
        let models = models.map(|one| (one.address.clone(), BackendModel::new(has_checks)));
        let pool = Arc::new(Pool::new(&config, None, now));
        pool.state.queue.seed(plan.seed);
        Self {
            plan,
            clock,
            pool,
            start: now,
            now,
            random: Random::seeded(plan.seed),
            exchanges: Vec::new(),
            waiting: Vec::new(),
            arrivals: 0,
            models: models.collect(),
            overrides: OverrideTable::default(),
            discovered: None,
            hashed: HashMap::new(),
            requests: 0,
            spent: 0,
            seen: EventCounts::default(),
        }
    }

    pub(super) fn run(&mut self) -> Result<(), String> {
        for event in &self.plan.events {
            let done = self.apply(*event);
            let done = done.and_then(|()| self.settle(&Arc::clone(&self.pool)));
            let done = done.and_then(|()| self.compare());
            done.map_err(|error| format!("after {event:?}: {error}"))?;
        }
        while !self.exchanges.is_empty() {
            self.exchanges.clear();
            self.settle(&Arc::clone(&self.pool))?;
        }
        self.compare()?;
        if !self.waiting.is_empty() {
            return Err(format!("{} wait for nothing", self.waiting.len()));
        }
        for backend in &self.pool.backends {
            let trial = backend.state.view().trial;
            if trial.is_claimed() {
                return Err(format!("{}: no request has its trial", backend.config.name));
            }
        }
        Ok(())
    }

    fn apply(&mut self, event: PoolEvent) -> Result<(), String> {
        match event {
            PoolEvent::Check {
                backend,
                passes,
                ms,
            } => self.check(
                usize::from(backend),
                passes,
                Duration::from_millis(ms.into()),
            ),
            PoolEvent::CheckNotMade { backend } => {
                if let Some(backend) = self.backend(usize::from(backend)) {
                    self.pool
                        .record_check_not_made(&backend, "no descriptor".to_owned());
                }
                Ok(())
            }
            PoolEvent::Begin {
                is_repeatable,
                key,
                own,
            } => self.begin(is_repeatable, key, own),
            PoolEvent::Respond { exchange } => {
                let now = self.now;
                if let Some(exchange) = self.exchange(exchange) {
                    exchange.responded.get_or_insert(now);
                    exchange.lease.as_ref().unwrap().record_response();
                }
                Ok(())
            }
            PoolEvent::Succeed { exchange } => match self.take(exchange) {
                Some(exchange) => self.succeed(&exchange),
                None => Ok(()),
            },
            PoolEvent::Fail { exchange, retry } => match self.take(exchange) {
                Some(exchange) => self.fail_attempt(exchange, retry),
                None => Ok(()),
            },
            PoolEvent::Stale { exchange } => match self.take(exchange) {
                Some(exchange) => self.stale(exchange),
                None => Ok(()),
            },
            PoolEvent::GiveUp { exchange } => {
                drop(self.take(exchange));
                Ok(())
            }
            PoolEvent::Leave { waiter } => {
                self.leave(waiter);
                Ok(())
            }
            PoolEvent::LeaveLate { exchange, waiter } => {
                drop(self.take(exchange));
                self.leave(waiter);
                Ok(())
            }
            PoolEvent::Storm { backend, times } => self.storm(usize::from(backend), times),
            PoolEvent::Advance { ms } => {
                self.clock.advance(Duration::from_millis(ms.into()));
                self.now = self.clock.now();
                self.expire()
            }
            PoolEvent::Reload { variant } => self.reload(&self.plan.config(variant)),
            PoolEvent::Members { variant } => self.change_members(&self.plan.members(variant)),
            PoolEvent::Override {
                backend,
                state,
                weight,
            } => self.set_override(backend, state, weight),
        }
    }

    fn backend(&self, number: usize) -> Option<Arc<Backend>> {
        let index = number.checked_rem(self.pool.backends.len())?;
        Some(Arc::clone(&self.pool.backends[index]))
    }

    fn exchange(&mut self, number: u8) -> Option<&mut OpenExchange> {
        let count = self.exchanges.len();
        self.exchanges.get_mut(usize::from(number) % count.max(1))
    }

    fn take(&mut self, number: u8) -> Option<OpenExchange> {
        let count = self.exchanges.len();
        (count > 0).then(|| self.exchanges.swap_remove(usize::from(number) % count))
    }

    fn second(&self) -> u64 {
        (self.now - self.start).as_secs()
    }

    pub(super) fn model(&mut self, backend: &Backend) -> &mut BackendModel {
        self.models.get_mut(&backend.state.address).unwrap()
    }

    fn state(&self, model: &BackendModel) -> HealthState {
        let settings = &self.plan.settings;
        model.state(settings.rise, settings.fall)
    }

    /// Changes the model of a backend. What failed before it became available is forgotten.
    pub(super) fn change(&mut self, backend: &Backend, change: impl FnOnce(&mut BackendModel)) {
        let (rise, fall) = (self.plan.settings.rise, self.plan.settings.fall);
        let model = self.model(backend);
        let before = model.state(rise, fall);
        change(model);
        let after = model.state(rise, fall);
        if before != after && after.may_take_traffic() {
            model.forget_failures();
        }
        if after == HealthState::Up && ![HealthState::Checking, HealthState::Up].contains(&before) {
            model.recovered = true;
        }
    }

    fn check(&mut self, number: usize, passes: bool, took: Duration) -> Result<(), String> {
        let Some(backend) = self.backend(number) else {
            return Ok(());
        };
        let result = if passes {
            Ok(())
        } else {
            Err("refused".to_owned())
        };
        let transition = self.pool.record_check(&backend, result, took, self.now);
        if self.pool.config.health_check.is_none() {
            return expect_none(transition.as_ref());
        }
        let (rise, began) = (self.plan.settings.rise, self.now.checked_sub(took));
        let was_ejected = self.model(&backend).ejection.is_some();
        self.change(&backend, |model| {
            model.checked(passes, began.unwrap(), rise);
        });
        if was_ejected && self.model(&backend).ejection.is_none() {
            self.seen.note(SeenEvent::EjectionEndedByChecks);
        }
        Ok(())
    }

    fn storm(&mut self, number: usize, times: u8) -> Result<(), String> {
        let Some(backend) = self.backend(number) else {
            return Ok(());
        };
        let pool = Arc::clone(&self.pool);
        (0..times).try_for_each(|_| {
            let lease = lease(&pool, backend.index);
            self.fail(&pool, &lease, None)?;
            drop(lease);
            self.settle(&pool)
        })
    }

    fn begin(&mut self, is_repeatable: bool, key: u8, own: Option<u8>) -> Result<(), String> {
        if self.exchanges.len() + self.waiting.len() >= MAX_EXCHANGES {
            return Ok(());
        }
        self.pool.state.budget.request();
        self.requests += 1;
        let own = own.and_then(|own| self.backend(own.into()));
        let exchange = OpenExchange {
            pool: Arc::clone(&self.pool),
            lease: None,
            is_repeatable,
            own: own.map(|own| own.state.address.clone()),
            key: u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            attempted: Vec::new(),
            busy: Vec::new(),
            attempts: 0,
            trial: None,
            has_slot: false,
            picked: self.now,
            responded: None,
        };
        self.pick(exchange)
    }

    /// Goes over to the pool in force, as an exchange does, and picks again.
    fn next_attempt(&mut self, mut exchange: OpenExchange) -> Result<(), String> {
        self.settle(&Arc::clone(&self.pool))?;
        exchange.move_to(&self.pool);
        exchange.is_repeatable = true;
        self.seen.note(SeenEvent::Retry);
        self.pick(exchange)
    }

    /// True if the trial of a backend has been due for `wait`.
    pub(super) fn is_trial_old(&self, pool: &Pool, index: usize, wait: Duration) -> bool {
        let ejection = self.models[&pool.backends[index].state.address].ejection;
        ejection.is_some_and(|ejection| self.now >= ejection.until + wait)
    }

    fn pick(&mut self, exchange: OpenExchange) -> Result<(), String> {
        let request = exchange.request(self.now);
        let is_old = |index| self.is_trial_old(&self.pool, index, TRIAL_WAIT);
        let allowed = if self.waiting.is_empty() {
            allowed_picks(&self.pool, &request, is_old)
        } else {
            // Those who wait are not overtaken.
            AllowedPicks::Backends(Vec::new(), Reason::ConnectionLimitReached)
        };
        let picked = self.pool.pick(&request, &mut self.random);
        allowed.check(&picked)?;
        let lease = match picked {
            Ok(lease) => lease,
            Err(Reason::ConnectionLimitReached) => return self.enqueue(exchange),
            Err(_) => return Ok(()),
        };
        let own = choice::own_of(&self.pool, &request);
        if own.is_some_and(|own| Arc::ptr_eq(own, lease.backend())) {
            self.seen.note(SeenEvent::TookOwn);
            if lease.state.state() == HealthState::Draining {
                self.seen.note(SeenEvent::TookDrainingOwn);
            }
        } else if exchange.attempts == 0 && !lease.is_trial() {
            self.check_hash(exchange.key, &lease)?;
        }
        self.begin_attempt(exchange, lease)
    }

    /// Begins an attempt on the backend that was given.
    pub(super) fn begin_attempt(
        &mut self,
        mut exchange: OpenExchange,
        lease: BackendLease,
    ) -> Result<(), String> {
        exchange.has_slot = lease.is_trial();
        let is_ejected = lease.state.state() == HealthState::Ejected;
        let ejection = self.model(&lease).ejection.filter(|_| is_ejected);
        if exchange.has_slot {
            self.seen.note(SeenEvent::Trial);
            self.check_slot(&lease, ejection.is_some_and(|ejection| ejection.is_over))?;
        } else if is_ejected {
            self.seen.note(SeenEvent::LastResort);
        }
        exchange.trial = ejection.map(|ejection| ejection.number);
        (exchange.picked, exchange.responded) = (self.now, None);
        exchange.attempts += 1;
        exchange.lease = Some(lease);
        self.exchanges.push(exchange);
        Ok(())
    }

    /// Checks that a key leads to the same backend by hash whenever the pool has these members and
    /// the same ones serve. Limits and ramps may lead elsewhere.
    fn check_hash(&mut self, key: u64, lease: &BackendLease) -> Result<(), String> {
        let config = &self.pool.config;
        let is_bounded = config.connections_per_backend.is_some() || config.slow_start.is_some();
        if config.policy != BalancingPolicy::Hash || is_bounded {
            return Ok(());
        }
        let members: Vec<_> = self
            .pool
            .backends
            .iter()
            .map(|one| {
                (
                    one.weight(),
                    one.config.backup,
                    one.state.state(),
                    &one.config.name,
                )
            })
            .collect();
        let checks = config.health_check.is_some();
        let case = format!("{key} {checks} {members:?}");
        let address = &lease.state.address;
        let known = self.hashed.entry(case).or_insert_with(|| address.clone());
        if known == address {
            return Ok(());
        }
        Err(format!("the key of {known} leads to {address}"))
    }

    /// A trial has begun: the time of the ejection is over, and no other holds the slot.
    fn check_slot(&self, lease: &BackendLease, is_over: bool) -> Result<(), String> {
        let holds = |other: &&OpenExchange| {
            let state = other.lease.as_ref().map(|lease| &lease.state);
            other.has_slot
                && state.is_some_and(|state| Arc::ptr_eq(state, &lease.state))
                && other.trial
                    == self.models[&lease.state.address]
                        .ejection
                        .map(|one| one.number)
                && self.now - other.picked < TRIAL_TIME
        };
        if !is_over {
            return Err(format!("{}: a trial before its time", lease.config.name));
        }
        match self.exchanges.iter().find(holds) {
            Some(_) => Err(format!("{}: two trials at once", lease.config.name)),
            None => Ok(()),
        }
    }

    /// True if the outcome of an exchange decides about the running ejection.
    fn decides(&self, backend: &Backend, trial: Option<u32>) -> bool {
        let model = &self.models[&backend.state.address];
        let is_same = model.ejection.is_some_and(|one| Some(one.number) == trial);
        is_same && self.state(model) == HealthState::Ejected
    }

    fn succeed(&mut self, exchange: &OpenExchange) -> Result<(), String> {
        let lease = exchange.lease.as_ref().unwrap();
        let decides = self.decides(lease, exchange.trial);
        let transition = exchange.pool.record_success(lease, self.now);
        let counts = exchange.pool.config.ejection.as_ref();
        let counts = counts.is_some_and(|ejection| ejection.failure_rate.is_some());
        let second = self.second();
        let model = self.model(lease);
        model.streak = 0;
        if counts {
            model.add_outcome(second, false);
        }
        if !decides {
            return expect_none(transition.as_ref());
        }
        self.seen.note(SeenEvent::TrialPassed);
        self.change(lease, |model| model.ejection = None);
        Ok(())
    }

    fn stale(&mut self, mut exchange: OpenExchange) -> Result<(), String> {
        let lease = exchange.lease.take().unwrap();
        exchange.busy.push(lease.index);
        drop(lease);
        self.next_attempt(exchange)
    }

    fn fail_attempt(&mut self, mut exchange: OpenExchange, retry: bool) -> Result<(), String> {
        let lease = exchange.lease.take().unwrap();
        self.fail(&Arc::clone(&exchange.pool), &lease, exchange.trial)?;
        exchange.attempted.push(lease.index);
        drop(lease);
        if !retry || exchange.attempts >= MAX_ATTEMPTS {
            return Ok(());
        }
        let share = self.plan.settings.retry_share;
        if !self.pool.state.budget.try_spend(share, self.now) {
            return Ok(());
        }
        self.spent += 1;
        let seconds = (self.now - self.start).as_secs_f64();
        let most = 100.0 + 10.0 * seconds + share * f64::from(self.requests);
        if f64::from(self.spent) > most + 1e-6 {
            return Err(format!("{} retries, at most {most}", self.spent));
        }
        self.next_attempt(exchange)
    }

    /// One failure on the pool `of`, which may be older than the one in force.
    fn fail(&mut self, of: &Pool, lease: &BackendLease, trial: Option<u32>) -> Result<(), String> {
        let view = lease.state.view();
        let is_guarded = guard_allows(&self.pool, lease, self.plan.settings.max_ejected);
        let has_others = self.pool.config.ejection.is_some() && available(&self.pool) > 0;
        let transition = of.record_failure(lease, REFUSED, self.now);
        let Some(ejection) = &of.config.ejection else {
            return expect_none(transition.as_ref());
        };
        let (now, second) = (self.now, self.second());
        let model = self.model(lease);
        if model.ejection.is_some_and(|one| Some(one.number) == trial) {
            if !self.decides(lease, trial) || !has_others || !self.is_member(lease) {
                return expect_none(transition.as_ref());
            }
            self.seen.note(SeenEvent::TrialFailed);
            self.change(lease, |model| model.eject(ejection, None, now));
            return Ok(());
        }
        if !model.failed(ejection, second) || !view.state.may_take_traffic() {
            return expect_none(transition.as_ref());
        }
        if !is_guarded {
            self.seen.note(SeenEvent::RefusedByGuard);
            return expect_none(transition.as_ref());
        }
        self.seen.note(SeenEvent::Ejection);
        self.change(lease, |model| model.eject(ejection, Some(view.since), now));
        Ok(())
    }

    fn is_member(&self, backend: &Backend) -> bool {
        let mut members = self.pool.backends.iter();
        members.any(|one| Arc::ptr_eq(&one.state, &backend.state))
    }

    /// Does what is due, as the control thread does.
    fn expire(&mut self) -> Result<(), String> {
        let transitions = self.pool.expire(self.now);
        for transition in &transitions {
            self.end_long_trial(transition)?;
        }
        let (now, pool) = (self.now, Arc::clone(&self.pool));
        for backend in &pool.backends {
            if let Some(ejection) = &mut self.model(backend).ejection
                && ejection.until <= now
            {
                ejection.is_over = true;
            }
        }
        Ok(())
    }

    /// A trial whose response has been coming for a while ends the ejection.
    fn end_long_trial(&mut self, transition: &StateTransition) -> Result<(), String> {
        if transition.is_trial {
            return Ok(());
        }
        let mut backends = self.pool.backends.iter();
        let backend = backends.find(|one| one.config.name == transition.backend);
        let backend = Arc::clone(backend.unwrap());
        let has_responded = |one: &OpenExchange| {
            let responded = one.responded.map(|at| self.now - at);
            one.has_slot
                && one
                    .lease
                    .as_ref()
                    .is_some_and(|lease| Arc::ptr_eq(&lease.state, &backend.state))
                && self.decides(&backend, one.trial)
                && responded.is_some_and(|age| age >= TRIAL_WAIT)
        };
        if !self.exchanges.iter().any(has_responded) {
            return Err(format!("ended too early: {transition}"));
        }
        self.change(&backend, |model| model.ejection = None);
        Ok(())
    }

    /// Compares the pool with the model.
    fn compare(&self) -> Result<(), String> {
        for backend in &self.pool.backends {
            let (name, model) = (&backend.config.name, &self.models[&backend.state.address]);
            let (view, state) = (backend.state.view(), self.state(model));
            if (view.state, backend.state.state()) != (state, state) {
                return Err(format!("{name} is {}, not {state}", view.state));
            }
            let out = model.ejection.filter(|one| !one.is_over);
            if view.ejected_until != out.map(|one| one.until) {
                return Err(format!("{name}: out until {:?}", view.ejected_until));
            }
            if backend.weight() != model.weight.unwrap_or(backend.config.weight) {
                return Err(format!("{name} has the weight {}", backend.weight()));
            }
            let ramp = backend.state.ramp_began();
            let ramps = ramp.is_some_and(|began| began >= view.since);
            if model.recovered && state == HealthState::Up && !ramps {
                return Err(format!("{name}: it has recovered and does not ramp"));
            }
            let is_on_trial = state == HealthState::Ejected && out.is_none();
            if (view.trial != TrialPhase::None) != is_on_trial {
                return Err(format!("{name}: its trial is {:?}", view.trial));
            }
        }
        if self.pool.queue_length() != self.waiting.len() {
            let (counted, waiting) = (self.pool.queue_length(), self.waiting.len());
            return Err(format!("{counted} are said to wait, not {waiting}"));
        }
        self.compare_in_flight()
    }

    /// Compares the counts in flight with the leases of exchanges.
    fn compare_in_flight(&self) -> Result<(), String> {
        let leases = || self.exchanges.iter().filter_map(|one| one.lease.as_ref());
        let states = self.pool.backends.iter().map(|one| &one.state);
        for state in states.chain(leases().map(|lease| &lease.state)) {
            let held = leases()
                .filter(|one| Arc::ptr_eq(&one.state, state))
                .count();
            if state.in_flight() != held {
                let counted = state.in_flight();
                return Err(format!(
                    "{}: {counted} in flight, not {held}",
                    state.address
                ));
            }
        }
        Ok(())
    }
}

/// Nothing may have changed.
fn expect_none(transition: Option<&StateTransition>) -> Result<(), String> {
    match transition {
        None => Ok(()),
        Some(transition) => Err(format!("not expected: {transition}")),
    }
}
