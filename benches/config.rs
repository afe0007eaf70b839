//! Time to load a configuration of 10,000 backends. It must stay well below 100 ms.

use std::{hint::black_box, path::Path};

use balancer::config::{NoFiles, parse};
use criterion::{Criterion, criterion_group, criterion_main};

fn backends(entry: impl Fn(usize) -> String) -> String {
    let mut text = String::from(
        "listeners: {web: {bind: \":80\", pool: app}}\npools:\n  app:\n    backends:\n",
    );
    for index in 0..10_000 {
        text.push_str("      - ");
        text.push_str(&entry(index));
        text.push('\n');
    }
    text
}

fn load(criterion: &mut Criterion) {
    let plain = backends(|index| format!("10.0.{}.{}:80", index / 250, index % 250));
    let maps = backends(|index| {
        format!(
            "{{address: 10.0.{}.{}:80, weight: 2, max_connections: 100}}",
            index / 250,
            index % 250
        )
    });
    for (name, text) in [("plain", plain), ("maps", maps)] {
        criterion.bench_function(&format!("config/10000_backends/{name}"), |bencher| {
            bencher.iter(|| {
                let loaded = parse(Path::new("big.yaml"), black_box(&text), &NoFiles);
                assert!(loaded.is_ok());
                loaded
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = load
}
criterion_main!(benches);
