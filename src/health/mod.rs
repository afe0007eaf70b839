//! Active health checks on the control thread: one task per checked backend, and one that ends
//! ejections.
//!
//! The pool decides about verdicts; this module has the probes, their schedule and the log line of
//! each transition. Nothing here blocks: probes are asynchronous, and `discovery/` resolves names.

mod check;
pub mod grpc_message;
pub mod probe;

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::{AbortHandle, spawn_local},
    time::{MissedTickBehavior, interval, sleep_until},
};

use self::check::{CheckError, ProbeOutcome};
use crate::{
    base::{clock, rng::Random},
    config::model::{HealthCheckConfig, PoolTlsConfig},
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
    /// The pools in force, by name.
    pools: RefCell<HashMap<Arc<str>, Arc<Pool>>>,
}

/// The tasks of one backend; they end when this is dropped.
#[derive(Debug)]
struct BackendTask {
    target: Rc<RefCell<CheckTarget>>,
    check: Option<AbortHandle>,
}

/// The backend to check, in the generation in force.
#[derive(Debug, Clone)]
struct CheckTarget {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
}

impl CheckTarget {
    fn check(&self) -> Option<&HealthCheckConfig> {
        self.pool.config.health_check.as_ref()
    }

    /// True if `other` is asked the same in the same way: old results say little about another
    /// check.
    fn has_same_check(&self, other: &Self) -> bool {
        let way = |target: &Self| {
            let check = target.check()?;
            let port = check::own_port(check, &target.backend);
            Some((target.pool.config.protocol, port))
        };
        way(self) == way(other)
            && self.check() == other.check()
            && self.check_tls() == other.check_tls()
    }

    fn check_tls(&self) -> Option<&PoolTlsConfig> {
        let check = self.check()?;
        check::own_tls(check, &self.pool.config, &self.backend)
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
        let context = Rc::new(CheckerContext {
            random: RefCell::new(random),
            checks: Semaphore::new(MAX_CHECKS),
            quick_checks: Semaphore::new(MAX_QUICK_CHECKS),
            pools: RefCell::default(),
        });
        Self {
            tasks: HashMap::new(),
            expiry: spawn_local(expire(Rc::clone(&context))).abort_handle(),
            context,
        }
    }

    /// Moves the checks to a new generation.
    ///
    /// Checks of backends that left end; new ones and changed ones probe at once, and a changed one
    /// keeps the verdict. All others go on undisturbed: a reload must not shift their schedule.
    pub fn apply<'a>(&mut self, pools: impl IntoIterator<Item = &'a Arc<Pool>>) {
        let mut next = HashMap::with_capacity(self.tasks.len());
        let mut in_force = HashMap::new();
        for pool in pools {
            in_force.insert(Arc::clone(&pool.name), Arc::clone(pool));
            self.follow(pool, &mut next);
        }
        self.context.pools.replace(in_force);
        self.tasks = next;
    }

    /// Moves the checks of one pool, whose members have changed since `old`.
    pub fn apply_members(&mut self, old: &Pool, new: &Arc<Pool>) {
        let mut next = HashMap::with_capacity(new.backends.len());
        self.follow(new, &mut next);
        // Those that are left are of members that left.
        for backend in &old.backends {
            self.tasks.remove(&Arc::as_ptr(&backend.state));
        }
        self.tasks.extend(next);
        let mut pools = self.context.pools.borrow_mut();
        pools.insert(Arc::clone(&new.name), Arc::clone(new));
    }

    /// Moves the tasks of the backends of `pool` to `next`; starts those that are missing.
    fn follow(&mut self, pool: &Arc<Pool>, next: &mut HashMap<*const BackendState, BackendTask>) {
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
}

impl BackendTask {
    fn start(target: CheckTarget, context: &Rc<CheckerContext>) -> Self {
        let mut task = Self {
            target: Rc::new(RefCell::new(target)),
            check: None,
        };
        task.start_check(context);
        task
    }

    fn start_check(&mut self, context: &Rc<CheckerContext>) {
        let is_checked = self.target.borrow().check().is_some();
        self.check = is_checked.then(|| {
            let (target, context) = (Rc::clone(&self.target), Rc::clone(context));
            let first_look_up = BackendState::until_looked_up(&target.borrow().backend.state);
            let checks = async move {
                // Without an address the first check would fail, and the first one decides alone.
                if let Some(looked_up) = first_look_up {
                    looked_up.await;
                }
                check_forever(target, context).await;
            };
            spawn_local(checks).abort_handle()
        });
    }

    fn retarget(mut self, target: CheckTarget, context: &Rc<CheckerContext>) -> Self {
        let is_same = self.target.borrow().has_same_check(&target);
        self.target.replace(target);
        if !is_same {
            if let Some(old) = self.check.take() {
                old.abort();
            }
            self.start_check(context);
        }
        self
    }
}

/// Checks one backend until the task is aborted, or its pool is not checked any more.
async fn check_forever(target: Rc<RefCell<CheckTarget>>, context: Rc<CheckerContext>) {
    loop {
        let permit = context.checks.acquire().await;
        let began = clock::now();
        // Of the generation in force when the check begins.
        let CheckTarget { pool, backend } = target.borrow().clone();
        let Some(check) = &pool.config.health_check else {
            return;
        };
        // Boxed: between two checks, which is nearly always, a task must be small.
        let outcome = Box::pin(check::run(check, &pool.config, &backend)).await;
        drop(permit);
        let is_refused = matches!(outcome.result, Err(CheckError::Refused));
        report(&target, outcome);
        // Counted from the start of the check, so that slow checks keep the interval.
        let (pause, quick) = pause(check, &backend.state, is_refused, &context);
        let next = began + jittered(pause, &mut context.random.borrow_mut());
        drop((pool, backend));
        sleep_until(next.into()).await;
        drop(quick);
    }
}

/// Time from the check that has just been reported to the next one, with the permit that it may
/// need until then.
fn pause<'a>(
    check: &HealthCheckConfig,
    state: &BackendState,
    is_refused: bool,
    context: &'a CheckerContext,
) -> (Duration, Option<SemaphorePermit<'a>>) {
    let starting = check.interval_starting.filter(|_| !state.has_passed());
    let down = check.interval_down.filter(|_| state.failed_checks());
    if let Some(configured) = starting.or(down) {
        return (configured, None);
    }
    // A backend that restarts is back as soon as it listens. A refused connection costs it
    // nothing, so it is asked more often until then.
    let quick = (is_refused && state.state() == HealthState::Down)
        .then(|| context.quick_checks.try_acquire().ok())
        .flatten();
    let interval = match quick {
        Some(_) => (check.interval / 4).max(MIN_QUICK_INTERVAL),
        None => check.interval,
    };
    (interval, quick)
}

/// Hands a result to the pool and logs the transition it causes.
fn report(target: &RefCell<CheckTarget>, outcome: ProbeOutcome) {
    let CheckTarget { pool, backend } = target.borrow().clone();
    let ProbeOutcome { result, timing } = outcome;
    if let Err(CheckError::Local(error)) = &result {
        return pool.record_check_not_made(&backend, error.to_string());
    }
    let result = result.map_err(|error| error.to_string());
    if let Some(transition) = pool.record_check(&backend, result, timing, clock::now()) {
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
        for pool in context.pools.borrow().values() {
            for transition in pool.expire(now) {
                transition.log();
            }
        }
    }
}

#[cfg(test)]
mod tests;
