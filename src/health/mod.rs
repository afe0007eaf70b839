//! Active checks on the control thread: one task per checked backend, one per backend given by name, and one that ends
//! ejections. Verdicts are made by the pool; here are only the probes, their times, and the log line of each transition.
//!
//! Nothing here blocks: probes are asynchronous and names are resolved on helper threads. See `check` for what is asked.

mod check;
pub mod grpc_message;
mod resolve;

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::Semaphore,
    task::{AbortHandle, spawn_local},
    time::{MissedTickBehavior, interval, sleep_until},
};

use self::{
    check::CheckError,
    resolve::{NameResolver, ResolveTask},
};
use crate::{
    base::{clock, rng::Random},
    config::model::{BackendProtocol, HealthCheckConfig},
    pool::{Backend, BackendState, HealthState, Pool},
};

/// Checks at a time: each holds a descriptor, and 10,000 backends are not connected to in one instant. Those that wait
/// for a place take it in turn.
pub const MAX_CHECKS: usize = 256;

/// Backends at a time that are checked more often than every interval, because they refuse connections.
const MAX_QUICK: usize = 64;

/// Shortest time from one check to the next of a backend that refuses connections.
const QUICK_LEAST: Duration = Duration::from_millis(100);

/// How late the end of an ejection, or a newcomer of a large pool, may be noticed.
const EXPIRY_TICK: Duration = Duration::from_millis(50);

/// Keeps the checks in step with the configuration. Lives on the control thread; dropping it ends all checks.
#[derive(Debug)]
pub struct HealthChecker {
    /// By the address of the backend's state, which a reload hands on and which a running check keeps alive.
    running: HashMap<*const BackendState, BackendTask>,
    shared: Rc<CheckerContext>,
    expiry: AbortHandle,
}

#[derive(Debug)]
struct CheckerContext {
    random: RefCell<Random>,
    checks: Semaphore,
    quick: Semaphore,
    resolver: NameResolver,
    pools: RefCell<Vec<Arc<Pool>>>,
}

/// The tasks of one backend; they end when this is dropped.
#[derive(Debug)]
struct BackendTask {
    target: Rc<RefCell<CheckTarget>>,
    definition: Option<CheckSettings>,
    check: Option<AbortHandle>,
    /// For a backend given by name.
    resolving: Option<ResolveTask>,
    /// The first check has to wait for the first answer.
    unresolved: bool,
}

/// What is asked, and in which protocol: where either changes, old answers say little about the next.
type CheckSettings = (HealthCheckConfig, BackendProtocol);

/// What is checked, as of the generation in force.
#[derive(Debug, Clone)]
struct CheckTarget {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
}

impl CheckTarget {
    fn definition(&self) -> Option<CheckSettings> {
        let config = &self.pool.config;
        let check = config.health_check.clone()?;
        Some((check, config.protocol))
    }
}

impl Drop for BackendTask {
    fn drop(&mut self) {
        if let Some(check) = &self.check {
            check.abort();
        }
    }
}

impl Drop for HealthChecker {
    fn drop(&mut self) {
        self.expiry.abort();
    }
}

impl HealthChecker {
    /// Checks nothing yet. Must be called on the control thread, inside its runtime.
    pub fn new(random: Random) -> Self {
        Self::with_resolver(random, NameResolver::default())
    }

    fn with_resolver(random: Random, resolver: NameResolver) -> Self {
        let shared = Rc::new(CheckerContext {
            random: RefCell::new(random),
            checks: Semaphore::new(MAX_CHECKS),
            quick: Semaphore::new(MAX_QUICK),
            resolver,
            pools: RefCell::default(),
        });
        Self {
            running: HashMap::new(),
            expiry: spawn_local(expire(Rc::clone(&shared))).abort_handle(),
            shared,
        }
    }

    /// Asks for the addresses of all names again: a reload of an unchanged file may be about them.
    pub fn resolve_again(&self) {
        let names = self
            .running
            .values()
            .filter_map(|one| one.resolving.as_ref());
        names.for_each(ResolveTask::refresh);
    }

    /// Follows a new generation: checks of backends that left end, new ones begin at once, a changed definition probes at
    /// once and keeps the verdict, and all others go on undisturbed. Names are asked for again.
    pub fn apply(&mut self, pools: &[Arc<Pool>]) {
        self.shared.pools.replace(pools.to_vec());
        let mut next = HashMap::with_capacity(self.running.len());
        for pool in pools {
            for backend in &pool.backends {
                let key = Arc::as_ptr(&backend.state);
                let target = CheckTarget {
                    pool: Arc::clone(pool),
                    backend: Arc::clone(backend),
                };
                let running = match self.running.remove(&key) {
                    Some(running) => running.retarget(target, &self.shared),
                    None => BackendTask::start(target, &self.shared),
                };
                next.insert(key, running);
            }
        }
        self.running = next;
    }
}

impl BackendTask {
    fn start(target: CheckTarget, shared: &Rc<CheckerContext>) -> Self {
        let resolving = shared.resolver.start(&target.backend.state);
        let mut running = Self {
            unresolved: resolving.is_some(),
            resolving,
            definition: target.definition(),
            target: Rc::new(RefCell::new(target)),
            check: None,
        };
        running.start_check(shared);
        running
    }

    fn start_check(&mut self, shared: &Rc<CheckerContext>) {
        self.check = self.definition.clone().map(|(definition, _)| {
            let (target, shared) = (Rc::clone(&self.target), Rc::clone(shared));
            let answered = self.resolving.as_ref().filter(|_| self.unresolved);
            let answered = answered.map(|resolving| Rc::clone(&resolving.answered));
            self.unresolved = false;
            let checks = async move {
                // Without it the first check of a name would be a failure for want of an address.
                if let Some(answered) = answered {
                    answered.notified().await;
                }
                check_forever(target, definition, shared).await;
            };
            spawn_local(checks).abort_handle()
        });
    }

    fn retarget(mut self, target: CheckTarget, shared: &Rc<CheckerContext>) -> Self {
        let definition = target.definition();
        self.target.replace(target);
        if let Some(resolving) = &self.resolving {
            resolving.refresh();
        }
        if self.definition != definition {
            self.definition = definition;
            if let Some(old) = self.check.take() {
                old.abort();
            }
            self.start_check(shared);
        }
        self
    }
}

/// The checks of one backend under one definition.
async fn check_forever(
    target: Rc<RefCell<CheckTarget>>,
    definition: HealthCheckConfig,
    shared: Rc<CheckerContext>,
) {
    let state = Arc::clone(&target.borrow().backend.state);
    loop {
        let turn = shared.checks.acquire().await;
        let began = clock::now();
        // Boxed: between two checks, which is nearly always, a task is small.
        let pool = Arc::clone(&target.borrow().pool);
        let result = Box::pin(check::run(&state, &definition, &pool.config)).await;
        drop((pool, turn));
        let is_refused = matches!(result, Err(CheckError::Refused));
        report(&target, result, began);
        // To be refused costs the backend nothing, and it may be back at any moment.
        let quick = (is_refused && state.state() == HealthState::Down)
            .then(|| shared.quick.try_acquire().ok())
            .flatten();
        let pause = match quick {
            Some(_) => (definition.interval / 4).max(QUICK_LEAST),
            None => definition.interval,
        };
        let next = began + jittered(pause, &mut shared.random.borrow_mut());
        sleep_until(next.into()).await;
    }
}

fn report(target: &RefCell<CheckTarget>, result: Result<(), CheckError>, began: Instant) {
    let CheckTarget { pool, backend } = target.borrow().clone();
    let now = clock::now();
    let took = now.saturating_duration_since(began);
    let result = match result {
        Err(CheckError::Local(error)) => return pool.record_check_not_made(&backend, error),
        Err(error) => Err(error.to_string()),
        Ok(()) => Ok(()),
    };
    if let Some(transition) = pool.record_check(&backend, result, took, now) {
        transition.log();
    }
}

/// `interval`, shorter or longer by up to 10 %, so that checks do not fall into step.
fn jittered(interval: Duration, random: &mut Random) -> Duration {
    interval.mul_f64(0.9 + 0.2 * random.unit())
}

/// Ends ejections when their time is over.
async fn expire(shared: Rc<CheckerContext>) {
    let mut tick = interval(EXPIRY_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let now = clock::now();
        for pool in shared.pools.borrow().iter() {
            for transition in pool.expire(now) {
                transition.log();
            }
        }
    }
}

#[cfg(test)]
mod tests;
