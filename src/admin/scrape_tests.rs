//! The metrics page: checked by promtool, compared with known counts, and over reloads.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use super::*;
use crate::{
    admin::testing,
    base::{clock, rng::Random},
    config::model::Config,
    discovery::MemberSourceKind,
    pool::{BackendOverrides, OperatorOverride},
};

#[path = "../../tests/blackbox/harness/tools.rs"]
mod tools;

fn page(daemon: &Arc<Daemon>) -> String {
    MetricsExporter::new(Arc::clone(daemon)).page().unwrap()
}

/// Samples of a page: name with labels, and value.
fn samples(page: &str) -> BTreeMap<&str, f64> {
    page.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series, value.parse().unwrap())
        })
        .collect()
}

/// Adds known counts to every object.
fn count_everything(daemon: &Daemon) {
    let snapshot = daemon.snapshot.load_full();
    for listener in snapshot.listeners.iter() {
        let slot = listener.state.metrics.mine();
        slot.connections.add(3);
        slot.active.add(2);
        slot.received.add(100);
        slot.sent.add(2_000_000_000_000);
        slot.rejected.add(Reason::Overload);
    }
    for slots in snapshot
        .pools
        .iter()
        .map(|pool| &pool.state.metrics)
        .chain([&*snapshot.unrouted])
    {
        let slot = slots.mine();
        slot.requests.add(0, 200);
        slot.requests.add(8, 502);
        slot.requests_active.add(1);
        slot.duration[1].observe(Duration::from_micros(750));
        slot.request_body.add(10);
        slot.response_body.add(20);
        slot.error(Reason::ConnectionRefused, 502);
        slot.retries.add(Reason::ConnectionRefused);
        slot.budget_exhausted.add(1);
        slot.queue_wait.observe(Duration::from_millis(40));
        slot.sticky.fallback.add(2);
        slot.trials_passed.add(2);
        slot.trials_failed.add(3);
        slot.sessions_ok.add(4);
        slot.sessions_failed.add(Reason::IdleTimeout);
        slot.sessions_active.add(1);
        slot.session_duration.observe(Duration::from_secs(90));
    }
    for backend in snapshot.pools.iter().flat_map(|pool| &pool.backends) {
        let slot = backend.state.metrics.mine();
        slot.requests[1].add(5);
        slot.response.observe(Duration::from_millis(3));
        slot.connections_ok.add(2);
        slot.connections_failed.add(1);
        slot.connections_active.add(1);
        slot.connections_idle.add(1);
        slot.failures.add(Reason::ConnectionTimeout);
        slot.ejections.add(Reason::ConnectionTimeout);
        slot.checks_ok.add(7);
        slot.checks_failed.add(1);
        slot.check_duration_micros.set(1_500);
    }
    override_weight(snapshot.pools.iter().last().unwrap(), Some(1));
    daemon.workers[1].busy_micros.store(2_500_000, Relaxed);
    let source = (MemberSourceKind::Dns, "app.test".into());
    let source = daemon.sources.add(source, "app.test".to_owned());
    let answer = vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()];
    source.succeed(Some(answer), Some(Duration::from_mins(1)));
    source.fail("timed out".to_owned());
}

/// Sets the weight of the first backend as an operator does, or ends that.
fn override_weight(pool: &Pool, value: Option<u16>) {
    let weight = value.map(|value| OperatorOverride {
        value,
        by: "root".to_owned(),
        since_unix: Duration::from_secs(1),
        end: None,
        note: None,
    });
    let overrides = BackendOverrides {
        state: None,
        weight,
    };
    drop(pool.set_overrides(&pool.backends[0], overrides, "", clock::now()));
}

#[test]
fn promtool_finds_no_problem() {
    if !tools::is_installed("promtool", "prometheus") {
        return;
    }
    let daemon = testing::daemon(testing::usual());
    count_everything(&daemon);
    let page = page(&daemon);
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(page.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let complaints = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success() && complaints.is_empty(),
        "{}\n{page}",
        String::from_utf8_lossy(&complaints)
    );
}

#[test]
fn every_family_of_the_list_is_on_a_full_page_and_nothing_else() {
    let mut config = testing::usual();
    config.listeners[0].tls = Some(testing::tls());
    config.pools[0].slow_start = Some(Duration::from_mins(1));
    config.pools[0].sticky = Some(testing::sticky());
    let daemon = testing::daemon(config);
    count_everything(&daemon);
    let page = page(&daemon);
    let shown: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let listed: BTreeSet<&str> = f::ALL_METRICS.iter().map(|family| family.name).collect();
    assert_eq!(shown, listed);
    for family in f::ALL_METRICS {
        let line = page
            .lines()
            .find(|line| !line.starts_with('#') && line.starts_with(family.name))
            .unwrap();
        for label in family.labels {
            assert!(
                line.contains(&format!("{label}=\"")),
                "{line} lacks {label}"
            );
        }
    }
}

/// Series and values that [`count_everything`] produces.
const EXPECTED_SAMPLES: &[(&str, f64)] = &[
    ("balancer_ready", 1.0),
    ("balancer_config_generation", 1.0),
    ("balancer_connections_limit", 1_000.0),
    (r#"balancer_worker_busy_seconds_total{worker="1"}"#, 2.5),
    (
        r#"balancer_discovery_lookups_total{source="dns",name="app.test",result="error"}"#,
        1.0,
    ),
    (
        r#"balancer_discovery_members{source="dns",name="app.test"}"#,
        2.0,
    ),
    (
        r#"balancer_discovery_failing{source="dns",name="app.test"}"#,
        1.0,
    ),
    (
        r#"balancer_listener_sent_bytes_total{listener="web"}"#,
        2e12,
    ),
    (
        r#"balancer_listener_connections_rejected_total{listener="web",reason="overload"}"#,
        1.0,
    ),
    (
        r#"balancer_http_requests_total{pool="app",method="GET",code="200"}"#,
        1.0,
    ),
    (
        r#"balancer_http_requests_total{pool="-",method="other",code="502"}"#,
        1.0,
    ),
    (
        r#"balancer_http_request_duration_seconds_bucket{pool="app",code_class="2xx",le="0.0005"}"#,
        0.0,
    ),
    (
        r#"balancer_http_request_duration_seconds_bucket{pool="app",code_class="2xx",le="0.001"}"#,
        1.0,
    ),
    (
        r#"balancer_http_request_duration_seconds_bucket{pool="app",code_class="2xx",le="60"}"#,
        1.0,
    ),
    (
        r#"balancer_http_request_duration_seconds_sum{pool="app",code_class="2xx"}"#,
        0.000_75,
    ),
    (
        r#"balancer_errors_total{pool="app",reason="connection_refused",code="502"}"#,
        1.0,
    ),
    (r#"balancer_queue_length{pool="app"}"#, 0.0),
    (
        r#"balancer_queue_wait_seconds_bucket{pool="app",le="0.05"}"#,
        1.0,
    ),
    (r#"balancer_queue_wait_seconds_sum{pool="app"}"#, 0.04),
    (
        r#"balancer_ejection_trials_total{pool="app",result="passed"}"#,
        2.0,
    ),
    (
        r#"balancer_ejection_trials_total{pool="app",result="failed"}"#,
        3.0,
    ),
    (
        r#"balancer_tcp_sessions_total{pool="sql",result="ok"}"#,
        4.0,
    ),
    (
        r#"balancer_tcp_sessions_total{pool="sql",result="idle_timeout"}"#,
        1.0,
    ),
    (
        r#"balancer_tcp_session_duration_seconds_bucket{pool="sql",le="60"}"#,
        0.0,
    ),
    (
        r#"balancer_tcp_session_duration_seconds_bucket{pool="sql",le="+Inf"}"#,
        1.0,
    ),
    (
        r#"balancer_pool_backends{pool="app",state="checking"}"#,
        3.0,
    ),
    (
        r#"balancer_backend_up{pool="app",backend="10.0.0.0:80"}"#,
        0.0,
    ),
    (
        r#"balancer_backend_requests_total{pool="app",backend="10.0.0.0:80",code_class="2xx"}"#,
        5.0,
    ),
    (
        r#"balancer_backend_connections_total{pool="app",backend="10.0.0.1:80",result="failed"}"#,
        1.0,
    ),
    (
        r#"balancer_backend_health_checks_total{pool="app",backend="10.0.0.2:80",result="ok"}"#,
        7.0,
    ),
    (
        r#"balancer_backend_health_check_duration_seconds{pool="app",backend="10.0.0.2:80"}"#,
        0.001_5,
    ),
];

#[test]
fn what_was_counted_is_shown() {
    let daemon = testing::daemon(testing::usual());
    count_everything(&daemon);
    daemon.ready.store(true, Relaxed);
    let page = page(&daemon);
    let samples = samples(&page);
    for (series, value) in EXPECTED_SAMPLES {
        assert_eq!(samples.get(series), Some(value), "{series}");
    }
}

#[test]
fn pools_with_sticky_show_what_became_of_sessions_and_others_do_not() {
    let mut config = testing::usual();
    config.pools[0].sticky = Some(testing::sticky());
    let daemon = testing::daemon(config);
    count_everything(&daemon);
    let page = page(&daemon);
    let samples = samples(&page);
    let count = |result: &str| {
        let series = format!(r#"balancer_sticky_total{{pool="app",result="{result}"}}"#);
        samples.get(series.as_str()).copied()
    };
    assert_eq!(count("fallback"), Some(2.0));
    assert_eq!((count("hit"), count("miss")), (Some(0.0), Some(0.0)));
    assert!(!page.contains(r#"sticky_total{pool="sql""#));
}

#[test]
fn the_buckets_are_those_of_the_contract() {
    let daemon = testing::daemon(testing::usual());
    count_everything(&daemon);
    let page = page(&daemon);
    let bounds: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with(r#"balancer_backend_response_seconds_bucket{pool="sql""#))
        .map(|line| line.split('"').nth(5).unwrap())
        .collect();
    let promised = "0.0005 0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10 30 60 +Inf";
    assert_eq!(bounds.join(" "), promised);
}

#[test]
fn exactly_one_state_of_a_backend_is_1_and_up_follows_it() {
    let daemon = testing::daemon(testing::usual());
    let snapshot = daemon.snapshot.load_full();
    let pool = &snapshot.pools[0];
    pool.record_check(&pool.backends[0], Ok(()), Duration::ZERO, clock::now());
    let refused = Err("refused".to_owned());
    pool.record_check(&pool.backends[1], refused, Duration::ZERO, clock::now());
    let page = page(&daemon);
    let samples = samples(&page);
    for (backend, expected) in [
        ("10.0.0.0:80", "up"),
        ("10.0.0.1:80", "down"),
        ("10.0.0.2:80", "checking"),
    ] {
        for state in HealthState::ALL {
            let series = format!(
                r#"balancer_backend_state{{pool="app",backend="{backend}",state="{state}"}}"#
            );
            let value = f64::from(u8::from(state.name() == expected));
            assert_eq!(samples.get(&*series), Some(&value), "{series}");
        }
        let up = format!(r#"balancer_backend_up{{pool="app",backend="{backend}"}}"#);
        let value = f64::from(u8::from(expected == "up"));
        assert_eq!(samples.get(&*up), Some(&value));
    }
    assert_eq!(
        samples.get(r#"balancer_pool_backends{pool="app",state="down"}"#),
        Some(&1.0)
    );
}

#[test]
fn what_an_operator_has_set_has_a_series_while_it_is_in_force() {
    let daemon = testing::daemon(testing::usual());
    let pool = Arc::clone(&daemon.snapshot.load().pools[0]);
    let series = r#"balancer_backend_override{pool="app",backend="10.0.0.0:80",override="weight"}"#;
    let weights = r#"balancer_backend_weight{pool="app",backend="10.0.0.0:80"}"#;
    for (set, expected) in [
        (Some(7), (Some(&1.0), Some(&7.0))),
        (None, (None, Some(&1.0))),
    ] {
        override_weight(&pool, set);
        let page = page(&daemon);
        let shown = samples(&page);
        assert_eq!((shown.get(series), shown.get(weights)), expected);
    }
}

#[test]
fn per_backend_says_which_series_of_backends_there_are() {
    let shown = |per_backend| {
        let mut config = testing::usual();
        config.metrics.per_backend = per_backend;
        let daemon = testing::daemon(config);
        count_everything(&daemon);
        let page = page(&daemon);
        let names = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE balancer_backend_"));
        names
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(shown(PerBackend::Full).len(), 14);
    assert_eq!(
        shown(PerBackend::State),
        [
            "last_state_change_timestamp_seconds",
            "override",
            "state",
            "up",
            "weight"
        ]
    );
    assert_eq!(shown(PerBackend::None), [""; 0]);
}

fn without_first_backend() -> Config {
    let mut config = testing::usual();
    config.pools[0].backends.remove(0);
    config.listeners.remove(1);
    config
}

#[test]
fn a_reload_drops_the_series_of_removed_objects_and_lowers_no_other_counter() {
    let daemon = testing::daemon(testing::usual());
    count_everything(&daemon);
    let before_page = page(&daemon);
    let old = daemon.snapshot.load_full();
    daemon
        .snapshot
        .store(testing::snapshot(without_first_backend(), Some(&old)).into());
    old.retire(&daemon.snapshot.load());
    let after_page = page(&daemon);
    let (before, after) = (samples(&before_page), samples(&after_page));
    assert!(
        !after_page.contains("10.0.0.0:80")
            || !after_page.contains(r#"pool="app",backend="10.0.0.0:80""#)
    );
    assert!(!after_page.contains(r#"listener="db""#));
    let is_counter = |series: &str| {
        let name = series.split('{').next().unwrap();
        ["_total", "_count", "_sum", "_bucket"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    for (series, value) in before.iter().filter(|(series, _)| is_counter(series)) {
        let gone = series.contains(r#"pool="app",backend="10.0.0.0:80""#)
            || series.contains(r#"listener="db""#);
        match after.get(series) {
            Some(now) => assert!(!gone && now >= value, "{series}: {value} became {now}"),
            None => assert!(gone, "{series} went away"),
        }
    }
}

#[test]
fn a_gauge_is_never_negative_while_its_threads_are_read() {
    let daemon = testing::daemon(testing::usual());
    let snapshot = daemon.snapshot.load_full();
    snapshot.listeners[0].state.metrics.mine().active.sub(1);
    let page = page(&daemon);
    assert_eq!(
        samples(&page).get(r#"balancer_listener_connections_active{listener="web"}"#),
        Some(&0.0)
    );
}

#[test]
fn hostile_names_stay_inside_their_labels() {
    let mut config = testing::usual();
    config.pools[0].backends[0].name = "a\"} 1\nforged_total 7\\".into();
    let daemon = testing::daemon(config);
    let page = page(&daemon);
    assert!(!page.lines().any(|line| line.starts_with("forged_total")));
    assert!(page.contains(r#"{pool="app",backend="a\"} 1\nforged_total 7\\"} 0"#));
}

#[test]
fn a_page_of_ten_thousand_busy_backends_is_made_in_bounded_time() {
    let config = Config {
        pools: vec![testing::pool("big", 10_000)],
        ..testing::config()
    };
    let daemon = testing::daemon(config);
    count_everything(&daemon);
    let mut random = Random::seeded(1);
    for backend in &daemon.snapshot.load().pools[0].backends {
        let slot = backend.state.metrics.mine();
        for class in &slot.requests {
            class.add(random.bits() >> 40);
        }
        slot.response
            .observe(Duration::from_micros(random.bits() >> 44));
    }
    let began = clock::now();
    let page = page(&daemon);
    let took = clock::now() - began;
    println!(
        "{} lines, {} bytes in {took:?}",
        page.lines().count(),
        page.len()
    );
    // Half a second in an optimised build; unoptimised and beside other tests this only catches a
    // wrong order of growth.
    assert!(took < Duration::from_secs(30), "{took:?}");
}
