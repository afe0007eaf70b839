//! The reference, the shipped file and the code agree.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use balancer::config::{
    self, NoFiles, load,
    model::{CheckKind, Config, HealthCheckConfig, KeepaliveConfig, PoolTimeoutsConfig},
    parse, schema,
};

use crate::fixture_files::AnyFiles;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

fn taken(text: &str) -> Config {
    match parse(Path::new("balancer.yaml"), text, &NoFiles) {
        Ok(loaded) => loaded.config,
        Err(problems) => panic!("{problems}"),
    }
}

/// The first cell of each row of the reference's tables: `` | `key` | … ``.
fn documented() -> BTreeSet<String> {
    read("docs/configuration.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(key, _)| key.to_owned())
        .collect()
}

#[test]
fn every_key_is_documented_and_every_documented_key_exists() {
    let known: BTreeSet<String> = schema::rows().map(|row| row.path.to_owned()).collect();
    let documented = documented();
    let missing: Vec<_> = known.difference(&documented).collect();
    let unknown: Vec<_> = documented.difference(&known).collect();
    assert!(
        missing.is_empty(),
        "not in docs/configuration.md: {missing:?}"
    );
    assert!(unknown.is_empty(), "not in the code: {unknown:?}");
}

#[test]
fn every_yaml_block_of_the_docs_is_a_configuration() {
    let mut pages = vec![root().join("README.md")];
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        pages.push(entry.unwrap().path());
    }
    let mut blocks = 0;
    for page in pages.iter().filter(|page| page.exists()) {
        let text = fs::read_to_string(page).unwrap();
        for block in text.split("```yaml\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            if let Err(problems) = parse(page, block, &AnyFiles) {
                panic!("{}:\n{block}\n{problems}", page.display());
            }
            blocks += 1;
        }
    }
    assert!(blocks >= 4, "only {blocks} blocks");
}

#[test]
fn the_shipped_file_loads_without_a_warning() {
    let loaded = match load(&root().join("balancer.yaml")) {
        Ok(loaded) => loaded,
        Err(problems) => panic!("{problems}"),
    };
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    let binds: Vec<String> = config
        .listeners
        .iter()
        .flat_map(|listener| &listener.binds)
        .map(ToString::to_string)
        .collect();
    assert_eq!(binds, ["127.0.0.1:8080", "127.0.0.1:8081"]);
    for pool in &config.pools {
        let addresses: Vec<String> = pool
            .backends
            .iter()
            .map(|b| b.address.to_string())
            .collect();
        assert_eq!(
            addresses,
            ["127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003"]
        );
    }
    assert_eq!(config.metrics.bind, Some(([127, 0, 0, 1], 9900).into()));
}

#[test]
fn the_smallest_file_gives_the_defaults() {
    let config = taken(
        "listeners:\n  web: {bind: \":8080\", pool: app}\npools:\n  app:\n    backends: [127.0.0.1:9001, 127.0.0.1:9002]\n",
    );
    let rest = Config {
        listeners: Vec::new(),
        pools: Vec::new(),
        ..config.clone()
    };
    assert_eq!(rest, Config::default());
    let seconds = std::time::Duration::from_secs;
    assert_eq!(rest.drain.delay, seconds(0));
    assert_eq!(rest.drain.timeout, seconds(30));
    assert_eq!(rest.access_log.when.min_status, 500);
    assert_eq!(rest.forwarded.request_id, "X-Request-Id");
    let listener = &config.listeners[0];
    assert_eq!(listener.binds[0].to_string(), "[::]:8080");
    assert_eq!(listener.timeouts.header, Some(seconds(10)));
    assert_eq!(listener.timeouts.body_idle, Some(seconds(30)));
    assert_eq!(listener.timeouts.keepalive, Some(seconds(75)));
    assert_eq!(listener.http.max_header_size, 32_768);
    assert_eq!(listener.socket.backlog, 4096);
    let pool = &config.pools[0];
    assert_eq!(pool.backends[1].weight, 1);
    assert_eq!(pool.timeouts, PoolTimeoutsConfig::default());
    assert_eq!(pool.timeouts.tcp_idle, Some(seconds(3600)));
    assert_eq!(pool.keepalive, KeepaliveConfig::default());
    assert_eq!(pool.health_check, Some(HealthCheckConfig::default()));
    let ejection = pool.ejection.clone().unwrap();
    assert_eq!(
        (ejection.failures, ejection.max_eject_for),
        (5, seconds(300))
    );
    let retries = pool.retries.clone().unwrap();
    assert_eq!((retries.attempts, retries.conditions.timeout), (2, false));
    assert!(!retries.methods.contains(&"POST".to_owned()));
}

#[test]
fn a_production_file_loads() {
    let config = taken(
        r#"
admin: {bind: "unix:/run/balancer/admin.sock"}
metrics: {bind: 127.0.0.1:9900}
access_log: {output: stdout, format: json, when: {min_status: 400, slower_than: 1s, sample: 10%}}
trusted_proxies: [10.0.0.0/8]
listeners:
  http: {bind: ":80", redirect: https}
  https:
    bind: ":443"
    limits: {connections: 50000, connections_per_client: 200, request_body: 16MiB}
    pool: web
  postgres: {bind: ":5432", protocol: tcp, allow: [10.0.0.0/8], pool: postgres}
routes:
  - host: api.example.com
    path: /v1
    pool: api
    request_headers: {set: {X-Tenant: main}, remove: [X-Debug]}
  - host: [example.com, www.example.com]
    path: /admin
    allow: [10.0.0.0/8]
    pool: web
pools:
  web:
    policy: least_connections
    backends:
      - 10.0.1.11:8080
      - {address: 10.0.1.12:8080, weight: 2}
      - {address: 10.0.9.1:8080, backup: true}
    health_check: {path: /healthz, interval: 5s, timeout: 2s, fall: 3, rise: 2}
  api:
    backends: [api-1.internal:8080, api-2.internal:8080]
    timeouts: {connect: 1s, response: 10s, idle: 60s}
    retries: {attempts: 2, budget: 20%}
    ejection: {failures: 5, eject_for: 10s, max_ejected: 50%}
    limits: {connections_per_backend: 200}
  postgres:
    policy: least_connections
    backends: [10.0.2.21:5432, 10.0.2.22:5432]
    timeouts: {connect: 2s, idle: 1h}
"#,
    );
    assert_eq!(config.listeners[1].limits.request_body, Some(16 << 20));
    assert_eq!(config.listeners[1].pool, Some(0));
    assert_eq!(config.pools[0].backends[1].weight, 2);
    assert_eq!(config.pools[0].backends[2].backup, 1);
    let check = config.pools[0].health_check.clone().unwrap();
    assert!(matches!(check.kind, CheckKind::Http(check) if check.path == "/healthz"));
    assert!((config.access_log.when.sample - 0.1).abs() < 1e-9);
}

#[test]
fn a_file_that_is_not_there_is_a_problem_with_a_hint() {
    let problems = load(Path::new("no/such/balancer.yaml")).unwrap_err();
    assert_eq!(
        problems.render(),
        "error: cannot read the file: it does not exist\n--> no/such/balancer.yaml\n = help: name the file with `-c FILE`, or create it\n"
    );
}

#[test]
fn a_token_file_must_hold_a_token() {
    let directory = std::env::temp_dir().join(format!("balancer-config-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("balancer.yaml");
    let text = "admin: {bind: 127.0.0.1:9901, token_file: token}\nlisteners: {web: {bind: \":80\", redirect: https}}\n";
    fs::write(&file, text).unwrap();
    fs::write(directory.join("token"), " \n").unwrap();
    let problems = load(&file).unwrap_err();
    assert_eq!(problems.0[0].message, "the token file is empty");
    fs::write(directory.join("token"), "secret\n").unwrap();
    let loaded = load(&file).map_err(|problems| problems.render()).unwrap();
    assert_eq!(
        loaded.config.admin.token_file,
        Some(directory.join("token"))
    );
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn ten_thousand_backends_load() {
    let backends: Vec<String> = (0..10_000)
        .map(|index| format!("10.0.{}.{}:80", index / 250, index % 250))
        .collect();
    let text = format!(
        "listeners: {{web: {{bind: \":80\", pool: app}}}}\npools: {{app: {{backends: [{}]}}}}\n",
        backends.join(", ")
    );
    let config = config::parse(Path::new("big.yaml"), &text, &NoFiles)
        .unwrap()
        .config;
    assert_eq!(config.pools[0].backends.len(), 10_000);
}
