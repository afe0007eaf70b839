//! Cost of a pick, for 3, 100 and 10,000 backends and every policy, and of preparing the picker.

use balancer::{
    base::{clock, rng::Random},
    config::model::{BackendConfig, BalancingPolicy, PoolConfig},
    pool::{PickRequest, Pool},
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

fn config(count: usize, policy: BalancingPolicy, weighted: bool) -> PoolConfig {
    let backends = (0..count).map(|number| {
        let ip = [10, 0, (number / 256) as u8, (number % 256) as u8];
        BackendConfig {
            name: format!("b{number}").into(),
            weight: if weighted { 1 + (number % 7) as u16 } else { 1 },
            ..BackendConfig::at(balancer::base::address::BackendAddress::Ip((ip, 80).into()))
        }
    });
    PoolConfig {
        policy,
        backends: backends.collect(),
        health_check: None,
        ejection: None,
        ..PoolConfig::named("app")
    }
}

fn pick(criterion: &mut Criterion) {
    for policy in BalancingPolicy::ALL.iter().copied() {
        let mut group = criterion.benchmark_group(policy.name());
        for count in [3, 100, 10_000] {
            let pool = Pool::new(&config(count, policy, true), None, clock::now());
            let mut random = Random::seeded(1);
            let request = PickRequest::first(clock::now());
            group.bench_function(BenchmarkId::new("pick", count), |bencher| {
                bencher.iter(|| pool.pick(&request, &mut random).map(|lease| lease.index));
            });
            group.bench_function(BenchmarkId::new("refresh", count), |bencher| {
                bencher.iter(|| pool.refresh());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, pick);
criterion_main!(benches);
