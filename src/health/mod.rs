//! Active health checks on the control thread: one task per checked backend, one per backend given
//! by name, and one that ends ejections.
//!
//! The pool decides about verdicts; this module has the probes, their schedule and the log line of
//! each transition. Nothing here blocks: probes are asynchronous, and helper threads resolve names.

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

/// Checks that run at the same time. Each holds a descriptor, and 10,000 backends must not all be
/// connected to in one instant. Checks that wait run in the order in which they became due.
pub const MAX_CHECKS: usize = 256;

/// Backends checked at [`MIN_QUICK_INTERVAL`] at the same time, because they refuse connections.
const MAX_QUICK_CHECKS: usize = 64;

/// Minimum time from one check to the next of a backend that refuses connections.
const MIN_QUICK_INTERVAL: Duration = Duration::from_millis(100);

/// Interval at which ended ejections and coalesced transitions of large pools are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(50);

/// Keeps the checks in step with the configuration. Lives on the control thread; dropping it ends
/// all checks.
#[derive(Debug)]
pub struct HealthChecker {
    /// By the address of the backend's state, which reloads hand on and a running check keeps
    /// alive.
    tasks: HashMap<*const BackendState, BackendTask>,
    context: Rc<CheckerContext>,
    expiry: AbortHandle,
}

/// Resources that all tasks share.
#[derive(Debug)]
struct CheckerContext {
    random: RefCell<Random>,
    checks: Semaphore,
    quick_checks: Semaphore,
    resolver: NameResolver,
    pools: RefCell<Vec<Arc<Pool>>>,
}

/// The tasks of one backend; they end when this is dropped.
#[derive(Debug)]
struct BackendTask {
    target: Rc<RefCell<CheckTarget>>,
    check_config: Option<CheckSettings>,
    check: Option<AbortHandle>,
    /// For a backend given by name.
    resolving: Option<ResolveTask>,
    /// The first check must wait for the first resolution.
    unresolved: bool,
}

/// The check and the protocol it uses. A change of either starts a new check at once, because old
/// results say little about the next.
type CheckSettings = (HealthCheckConfig, BackendProtocol);

/// The backend to check, in the generation in force.
#[derive(Debug, Clone)]
struct CheckTarget {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
}

impl CheckTarget {
    fn check_config(&self) -> Option<CheckSettings> {
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
    /// A checker without backends. Must be called on the control thread, inside its runtime.
    pub fn new(random: Random) -> Self {
        Self::with_resolver(random, NameResolver::default())
    }

    fn with_resolver(random: Random, resolver: NameResolver) -> Self {
        let context = Rc::new(CheckerContext {
            random: RefCell::new(random),
            checks: Semaphore::new(MAX_CHECKS),
            quick_checks: Semaphore::new(MAX_QUICK_CHECKS),
            resolver,
            pools: RefCell::default(),
        });
        Self {
            tasks: HashMap::new(),
            expiry: spawn_local(expire(Rc::clone(&context))).abort_handle(),
            context,
        }
    }

    /// Resolves all names again: a reload of an unchanged file may be about them.
    pub fn resolve_again(&self) {
        let names = self.tasks.values().filter_map(|one| one.resolving.as_ref());
        names.for_each(ResolveTask::refresh);
    }

    /// Moves the checks to a new generation.
    ///
    /// Checks of backends that left end; new ones and changed ones probe at once, and a changed one
    /// keeps the verdict. All others go on undisturbed: a reload must not shift their schedule.
    /// Names are resolved again.
    pub fn apply(&mut self, pools: &[Arc<Pool>]) {
        self.context.pools.replace(pools.to_vec());
        let mut next = HashMap::with_capacity(self.tasks.len());
        for pool in pools {
            for backend in &pool.backends {
                let key = Arc::as_ptr(&backend.state);
                let target = CheckTarget {
                    pool: Arc::clone(pool),
                    backend: Arc::clone(backend),
                };
                let task = match self.tasks.remove(&key) {
                    Some(task) => task.retarget(target, &self.context),
                    None => BackendTask::start(target, &self.context),
                };
                next.insert(key, task);
            }
        }
        self.tasks = next;
    }
}

impl BackendTask {
    fn start(target: CheckTarget, context: &Rc<CheckerContext>) -> Self {
        let resolving = context.resolver.start(&target.backend.state);
        let mut task = Self {
            unresolved: resolving.is_some(),
            resolving,
            check_config: target.check_config(),
            target: Rc::new(RefCell::new(target)),
            check: None,
        };
        task.start_check(context);
        task
    }

    fn start_check(&mut self, context: &Rc<CheckerContext>) {
        self.check = self.check_config.clone().map(|(config, _)| {
            let (target, context) = (Rc::clone(&self.target), Rc::clone(context));
            let resolving = self.resolving.as_ref().filter(|_| self.unresolved);
            let first_resolution = resolving.map(|resolving| Rc::clone(&resolving.resolved));
            self.unresolved = false;
            let checks = async move {
                // Without an address the first check would fail, and the first one decides alone.
                if let Some(resolved) = first_resolution {
                    resolved.notified().await;
                }
                check_forever(target, config, context).await;
            };
            spawn_local(checks).abort_handle()
        });
    }

    fn retarget(mut self, target: CheckTarget, context: &Rc<CheckerContext>) -> Self {
        let check_config = target.check_config();
        self.target.replace(target);
        if let Some(resolving) = &self.resolving {
            resolving.refresh();
        }
        if self.check_config != check_config {
            self.check_config = check_config;
            if let Some(old) = self.check.take() {
                old.abort();
            }
            self.start_check(context);
        }
        self
    }
}

/// Checks one backend until the task is aborted.
async fn check_forever(
    target: Rc<RefCell<CheckTarget>>,
    config: HealthCheckConfig,
    context: Rc<CheckerContext>,
) {
    let state = Arc::clone(&target.borrow().backend.state);
    loop {
        let permit = context.checks.acquire().await;
        let began = clock::now();
        // Boxed: between two checks, which is nearly always, a task must be small.
        let pool = Arc::clone(&target.borrow().pool);
        let result = Box::pin(check::run(&state, &config, &pool.config)).await;
        drop((pool, permit));
        let is_refused = matches!(result, Err(CheckError::Refused));
        report(&target, result, began);
        // A backend that restarts is back as soon as it listens. A refused connection costs it
        // nothing, so it is asked more often until then.
        let quick = (is_refused && state.state() == HealthState::Down)
            .then(|| context.quick_checks.try_acquire().ok())
            .flatten();
        let pause = match quick {
            Some(_) => (config.interval / 4).max(MIN_QUICK_INTERVAL),
            None => config.interval,
        };
        // Counted from the start of the check, so that slow checks keep the interval.
        let next = began + jittered(pause, &mut context.random.borrow_mut());
        sleep_until(next.into()).await;
    }
}

/// Hands a result to the pool and logs the transition it causes.
fn report(target: &RefCell<CheckTarget>, result: Result<(), CheckError>, began: Instant) {
    let CheckTarget { pool, backend } = target.borrow().clone();
    let now = clock::now();
    let took = now.saturating_duration_since(began);
    if let Err(CheckError::Local(error)) = &result {
        return pool.record_check_not_made(&backend, error.to_string());
    }
    let result = result.map_err(|error| error.to_string());
    if let Some(transition) = pool.record_check(&backend, result, took, now) {
        transition.log();
    }
}

/// `interval` with 10 % jitter. Backends that start together would otherwise be checked together
/// for ever, by every balancer that checks them.
fn jittered(interval: Duration, random: &mut Random) -> Duration {
    interval.mul_f64(0.9 + 0.2 * random.unit())
}

/// Ends ejections when their time is over.
async fn expire(context: Rc<CheckerContext>) {
    let mut tick = interval(EXPIRY_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let now = clock::now();
        for pool in context.pools.borrow().iter() {
            for transition in pool.expire(now) {
                transition.log();
            }
        }
    }
}

#[cfg(test)]
mod tests;
