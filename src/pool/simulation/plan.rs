//! Plans: the settings of a pool and what happens to it, all from one seed.

use std::time::Duration;

use crate::{
    base::rng::Random,
    config::model::{self, BalancingPolicy, WhenAllDown},
    pool::{OperatorState, fixture::backend},
};

/// A thing that happens. Numbers of backends and exchanges are taken modulo what there is, so that
/// every part of a sequence is a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PoolEvent {
    /// A check of this duration.
    Check { backend: u8, passes: bool, ms: u16 },
    /// A check that a local error prevented.
    CheckNotMade { backend: u8 },
    /// A request begins.
    Begin {
        is_repeatable: bool,
        key: u8,
        /// The client's own backend.
        own: Option<u8>,
    },
    /// The head of a good response comes.
    Respond { exchange: u8 },
    /// The response is complete.
    Succeed { exchange: u8 },
    /// The attempt fails; `retry`: another one follows, if the budget allows.
    Fail { exchange: u8, retry: bool },
    /// The connection of the attempt was stale: another one follows.
    Stale { exchange: u8 },
    /// The client leaves.
    GiveUp { exchange: u8 },
    /// A request that waits leaves: its client does, or its time is over.
    Leave { waiter: u8 },
    /// An exchange ends, and one that waits leaves before it sees that.
    LeaveLate { exchange: u8, waiter: u8 },
    /// Requests that fail on one backend, one after the other.
    Storm { backend: u8, times: u8 },
    /// Time passes, and what is due is done.
    Advance { ms: u32 },
    /// The configuration changes to one of the plan's variants.
    Reload { variant: u8 },
    /// The members change: names and other sources have another answer.
    Members { variant: u8 },
    /// The operator sets a state and a weight, or takes them back. The backend may be away.
    Override {
        backend: u8,
        state: Option<OperatorState>,
        weight: Option<u16>,
    },
}

/// Settings that hold for a whole plan.
#[derive(Debug, Clone)]
pub(super) struct PlanSettings {
    /// Number of different backends in all variants.
    pub(super) backend_count: usize,
    policy: BalancingPolicy,
    pub(super) rise: u32,
    pub(super) fall: u32,
    failures: u32,
    failure_rate: Option<f64>,
    min_requests: u32,
    /// In percent.
    pub(super) max_ejected: usize,
    when_all_down: WhenAllDown,
    limit: Option<usize>,
    slow_start: Option<Duration>,
    queue: usize,
    has_checks: bool,
    pub(super) retry_share: f64,
}

/// One run.
#[derive(Debug, Clone)]
pub(super) struct SimulationPlan {
    pub(super) seed: u64,
    pub(super) settings: PlanSettings,
    pub(super) events: Vec<PoolEvent>,
}

impl SimulationPlan {
    pub(super) fn random(seed: u64) -> Self {
        let mut random = Random::seeded(seed);
        let settings = PlanSettings::random(&mut random);
        let count = 20 + random.below(80);
        let events = (0..count).map(|_| random_event(&mut random)).collect();
        Self {
            seed,
            settings,
            events,
        }
    }

    /// The configuration number `variant`; 0 is that of the start. Half of the others differ in
    /// weights alone.
    pub(super) fn config(&self, variant: u8) -> model::PoolConfig {
        let settings = &self.settings;
        let mut random = Random::seeded(self.seed ^ u64::from(variant) << 56);
        let mut config = model::PoolConfig {
            policy: settings.policy,
            when_all_down: settings.when_all_down,
            connections_per_backend: settings.limit,
            queue: settings.queue,
            slow_start: settings.slow_start,
            ..model::PoolConfig::named("app")
        };
        let is_whole = variant == 0 || random.below(2) == 0;
        if !is_whole {
            let limits = [settings.limit, settings.limit, Some(1), Some(2), None];
            config.connections_per_backend = limits[random.below(limits.len())];
            config.queue = [settings.queue, settings.queue, 0, 2][random.below(4)];
        }
        config.backends = settings.backends(is_whole, &mut random);
        if config.backends.is_empty() {
            config.backends.push(backend(0, 1));
        }
        match &mut config.health_check {
            Some(check) if settings.has_checks != (!is_whole && random.below(10) == 0) => {
                (check.rise, check.fall) = (settings.rise, settings.fall);
            }
            check => *check = None,
        }
        let ejects = is_whole || random.below(10) > 0;
        config.ejection = ejects.then(|| model::EjectionConfig {
            failures: settings.failures,
            max_eject_for: Duration::from_mins(1),
            max_ejected: settings.max_ejected as f64 / 100.0,
            failure_rate: settings.failure_rate,
            min_requests: settings.min_requests,
            ..model::EjectionConfig::default()
        });
        config
    }

    /// The members number `variant`, possibly none.
    pub(super) fn members(&self, variant: u8) -> Vec<model::BackendConfig> {
        let mut random = Random::seeded(!self.seed ^ u64::from(variant) << 56);
        match random.below(6) {
            0 => Vec::new(),
            part => self.settings.backends(part < 3, &mut random),
        }
    }
}

impl PlanSettings {
    /// Backends with weights and tiers: all of them, or about two thirds.
    fn backends(&self, is_whole: bool, random: &mut Random) -> Vec<model::BackendConfig> {
        let mut backends = Vec::new();
        for number in 0..self.backend_count {
            if !is_whole && random.below(3) == 0 {
                continue;
            }
            let weight = [0, 1, 1, 1, 1, 2, 2, 5, 9][random.below(9)];
            let tier = [0, 0, 0, 0, 1, 1, 2][random.below(7)];
            backends.push(model::BackendConfig {
                backup: tier,
                ..backend(number, weight)
            });
        }
        backends
    }

    fn random(random: &mut Random) -> Self {
        let policies = BalancingPolicy::ALL;
        let backend_count = match random.below(10) {
            0 => 1,
            1 => 2,
            2 => 3,
            3 => 10 + random.below(41),
            _ => 2 + random.below(8),
        };
        Self {
            backend_count,
            policy: policies[random.below(policies.len())],
            rise: 1 + random.below(3) as u32,
            fall: 1 + random.below(3) as u32,
            failures: 1 + random.below(4) as u32,
            failure_rate: (random.below(2) == 0).then(|| (1 + random.below(10)) as f64 / 10.0),
            min_requests: 1 + random.below(8) as u32,
            max_ejected: [0, 10, 25, 50, 50, 50, 75, 100][random.below(8)],
            when_all_down: [WhenAllDown::Reject, WhenAllDown::FailOpen][random.below(4) / 3],
            limit: [None, Some(1), Some(1), Some(3)][random.below(4)],
            queue: [0, 1, 3, 1_000][random.below(4)],
            slow_start: (random.below(3) == 0).then_some(Duration::from_secs(15)),
            has_checks: random.below(3) > 0,
            retry_share: [0.0, 0.2, 1.0][random.below(3)],
        }
    }
}

fn random_event(random: &mut Random) -> PoolEvent {
    let exchange = random.below(256) as u8;
    let backend = random.below(256) as u8;
    match random.below(52) {
        0..5 => PoolEvent::Check {
            backend,
            passes: random.below(5) > 1,
            ms: [0, 0, 5, 3000][random.below(4)],
        },
        5 => PoolEvent::CheckNotMade { backend },
        6..18 => PoolEvent::Begin {
            is_repeatable: random.below(3) > 0,
            key: random.below(4) as u8,
            own: (random.below(3) == 0).then_some(backend),
        },
        18..20 => PoolEvent::Respond { exchange },
        20..24 => PoolEvent::Succeed { exchange },
        24..29 => PoolEvent::Fail {
            exchange,
            retry: random.below(2) == 0,
        },
        29 => PoolEvent::Stale { exchange },
        30..32 => PoolEvent::GiveUp { exchange },
        32..35 => PoolEvent::Storm {
            backend,
            times: 1 + random.below(6) as u8,
        },
        35..39 => PoolEvent::Advance {
            ms: [10, 999, 1_000, 5_000, 10_000, 20_000, 70_000][random.below(7)],
        },
        39..41 => PoolEvent::Reload {
            variant: random.below(5) as u8,
        },
        41..43 => PoolEvent::Members {
            variant: random.below(5) as u8,
        },
        43..45 => PoolEvent::Leave { waiter: backend },
        45..47 => PoolEvent::LeaveLate {
            exchange,
            waiter: backend,
        },
        _ => PoolEvent::Override {
            backend,
            state: [
                None,
                None,
                Some(OperatorState::Draining),
                Some(OperatorState::Maintenance),
            ][random.below(4)],
            weight: [None, None, None, Some(0), Some(3)][random.below(5)],
        },
    }
}
