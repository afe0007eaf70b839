//! Checks against scripted servers on 127.0.0.1. Time is real and the intervals are short; every
//! wait is for an event.

use std::{
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::LocalSet,
};

use super::*;
use crate::{
    base::address::BackendAddress,
    config::model::{BackendProtocol, CheckKind, ExpectedText, HttpCheckConfig},
    net::fixture::{dead_address, paused},
    pool::{HealthState, fixture::pool_of},
};

fn tcp_check() -> HealthCheckConfig {
    HealthCheckConfig {
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
        ..HealthCheckConfig::default()
    }
}

fn http_check(body: Option<&str>) -> HealthCheckConfig {
    let kind = CheckKind::Http(Box::new(HttpCheckConfig {
        path: "/healthz".into(),
        body: body.map(|text| ExpectedText::Bytes(text.as_bytes().to_vec())),
        ..HttpCheckConfig::default()
    }));
    HealthCheckConfig {
        kind,
        ..tcp_check()
    }
}

/// Starts a server that responds to every request with the status in `status` and the head of the
/// request as body.
async fn serve(status: Rc<AtomicU16>) -> BackendAddress {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = BackendAddress::Ip(listener.local_addr().unwrap());
    spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let count = stream.read(&mut head).await.unwrap_or(0);
            let response = format!(
                "HTTP/1.1 {} X\r\nContent-Length: {count}\r\n\r\n{}",
                status.load(Relaxed),
                String::from_utf8_lossy(&head[..count])
            );
            let _ = stream.write_all(response.as_bytes()).await;
        }
    });
    address
}

/// Waits until the backend is in the state, and returns the cause.
async fn until(backend: &BackendState, wanted: HealthState) -> String {
    let reached = async {
        while backend.state() != wanted {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let limit = Duration::from_secs(20);
    let timely = tokio::time::timeout(limit, reached).await;
    assert!(timely.is_ok(), "{:?}", backend.view());
    backend.view().cause
}

/// Waits for the first result of a check.
async fn checked(backend: &BackendState) {
    while backend.view().last_check.is_none() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_backend_goes_up_down_and_up_again_with_the_cause_of_each() {
    LocalSet::new()
        .run_until(async {
            let status = Rc::new(AtomicU16::new(200));
            let pool = pool_of(&[serve(Rc::clone(&status)).await], Some(http_check(None)));
            let state = Arc::clone(&pool.backends[0].state);
            let mut checker = HealthChecker::new(Random::seeded(1));
            checker.apply(&[pool]);
            until(&state, HealthState::Up).await;
            status.store(503, Relaxed);
            let cause = until(&state, HealthState::Down).await;
            assert!(cause.contains("status 503, expected 200-399"), "{cause}");
            status.store(204, Relaxed);
            until(&state, HealthState::Up).await;
        })
        .await;
}

#[tokio::test]
async fn the_request_and_the_body_are_as_configured() {
    LocalSet::new()
        .run_until(async {
            let status = Rc::new(AtomicU16::new(200));
            let address = serve(status).await;
            let expected = [
                ("GET /healthz HTTP/1.1\r\n".to_owned(), Ok(())),
                (format!("host: {address}\r\n"), Ok(())),
                ("user-agent: balancer-check\r\n".to_owned(), Ok(())),
                (
                    "nowhere".to_owned(),
                    Err("body does not contain `nowhere`".to_owned()),
                ),
            ];
            for (text, result) in expected {
                let config = http_check(Some(&text));
                let pool = pool_of(std::slice::from_ref(&address), Some(config.clone()));
                let outcome = Box::pin(check::run(&config, &pool.config, &pool.backends[0])).await;
                let actual = outcome.result.map_err(|error| error.to_string());
                assert_eq!(actual, result);
            }
        })
        .await;
}

#[tokio::test]
async fn the_cause_of_a_failure_is_named() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_address = BackendAddress::Ip(silent.local_addr().unwrap());
    let quick = HealthCheckConfig {
        timeout: Duration::from_millis(50),
        ..http_check(None)
    };
    let slow = pool_of(&[silent_address, dead_address().await], Some(quick.clone()));
    let probe = async |index: usize, config: &HealthCheckConfig| {
        let outcome = check::run(config, &slow.config, &slow.backends[index]).await;
        outcome.result.map_err(|error| error.to_string())
    };
    assert_eq!(probe(0, &quick).await, Err("no answer within 50ms".into()));
    assert_eq!(probe(0, &tcp_check()).await, Ok(()));
    assert_eq!(probe(1, &quick).await, Err("connection refused".into()));
    let dead_port = match &slow.backends[1].state.address {
        BackendAddress::Ip(address) => address.port(),
        other => panic!("{other}"),
    };
    let elsewhere = HealthCheckConfig {
        port: Some(dead_port),
        ..tcp_check()
    };
    assert_eq!(probe(0, &elsewhere).await, Err("connection refused".into()));
}

#[tokio::test]
async fn a_reload_without_a_change_disturbs_no_check_and_a_removed_backend_is_left_alone() {
    LocalSet::new()
        .run_until(async {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = BackendAddress::Ip(server.local_addr().unwrap());
            let slow = HealthCheckConfig {
                interval: Duration::from_hours(1),
                ..tcp_check()
            };
            let first = pool_of(&[address], Some(slow.clone()));
            let state = Arc::clone(&first.backends[0].state);
            let mut checker = HealthChecker::new(Random::seeded(1));
            checker.apply(std::slice::from_ref(&first));
            checked(&state).await;
            let checks = || state.metrics.mine().checks_ok.get();
            assert_eq!(checks(), 1);
            // Many reloads later there is still only the first check.
            for _ in 0..20 {
                let again = Arc::new(Pool::new(&first.config, Some(&first), clock::now()));
                checker.apply(&[again]);
                tokio::task::yield_now().await;
            }
            assert_eq!(checks(), 1);
            // Another check probes at once and keeps the verdict.
            let mut config = first.config.clone();
            config.health_check = Some(HealthCheckConfig { rise: 1, ..slow });
            let changed = Arc::new(Pool::new(&config, Some(&first), clock::now()));
            checker.apply(&[changed]);
            assert_ne!(state.state(), HealthState::Checking);
            while checks() < 2 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            // And so does another protocol.
            config.protocol = BackendProtocol::H2c;
            let changed = Arc::new(Pool::new(&config, Some(&first), clock::now()));
            checker.apply(&[changed]);
            assert_ne!(state.state(), HealthState::Checking);
            while checks() < 3 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            checker.apply(&[]);
            assert!(checker.tasks.is_empty());
        })
        .await;
}

#[tokio::test]
async fn names_are_resolved_before_their_first_check() {
    LocalSet::new()
        .run_until(async {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = server.local_addr().unwrap().port();
            let name = BackendAddress::Name {
                host: "localhost".into(),
                port,
            };
            let pool = pool_of(
                &[name],
                Some(HealthCheckConfig {
                    rise: 1,
                    ..tcp_check()
                }),
            );
            let state = Arc::clone(&pool.backends[0].state);
            let mut checker = HealthChecker::new(Random::seeded(1));
            checker.apply(&[pool]);
            checked(&state).await;
            assert_eq!(state.view().last_check.unwrap().result, Ok(()));
            assert!(
                state
                    .resolved
                    .load()
                    .addresses()
                    .iter()
                    .all(|one| one.ip().is_loopback())
            );
        })
        .await;
}

/// Runs a pool of one backend given by name, with the results of `script` by the number of the
/// lookup. Returns its state and the seconds between the first `count` lookups. Reloads after the
/// lookup number `reload`, and resolves again after the next one.
async fn looked_up(
    count: usize,
    reload: Option<usize>,
    script: impl Fn(usize) -> std::io::Result<Vec<std::net::SocketAddr>> + Send + Sync + 'static,
) -> (Arc<BackendState>, Vec<u64>) {
    let name = BackendAddress::Name {
        host: "app.test".into(),
        port: 80,
    };
    let lookups = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let next = Arc::clone(&lookups);
    let resolver = NameResolver::new(move |host, port| {
        assert_eq!((host, port), ("app.test", 80));
        script(next.fetch_add(1, Relaxed))
    });
    LocalSet::new()
        .run_until(async {
            let pool = pool_of(&[name], None);
            let state = Arc::clone(&pool.backends[0].state);
            let mut checker = HealthChecker::with_resolver(Random::seeded(1), resolver);
            checker.apply(std::slice::from_ref(&pool));
            let resolved = {
                let task = checker.tasks.values().next().unwrap();
                Rc::clone(&task.resolving.as_ref().unwrap().resolved)
            };
            let (mut last, mut pauses) = (clock::now(), Vec::new());
            for number in 1..=count {
                resolved.notified().await;
                let now = clock::now();
                pauses.push((now - last).as_secs_f64().round() as u64);
                last = now;
                if reload == Some(number) {
                    checker.apply(&[Arc::new(Pool::new(&pool.config, Some(&pool), now))]);
                } else if reload == Some(number - 1) {
                    checker.resolve_again();
                }
            }
            (state, pauses)
        })
        .await
}

fn at(last: u8) -> std::net::SocketAddr {
    std::net::SocketAddr::from(([10, 0, 0, last], 80))
}

#[test]
fn a_name_that_fails_is_resolved_again_soon_and_keeps_its_last_good_addresses() {
    paused(async {
        let (state, pauses) = looked_up(10, None, |number| match number {
            1..=7 => Err(std::io::Error::other("SERVFAIL")),
            8 => Ok(Vec::new()),
            _ => Ok(vec![at(2), at(1)]),
        })
        .await;
        // Jittered by 10 %: 1, 2, 4, 8, 16, 30, 30 seconds after the failures.
        assert_eq!(pauses[0], 0);
        for (pause, about) in pauses[1..].iter().zip([30, 1, 2, 4, 8, 16, 30, 30, 30]) {
            let slack = about / 10 + 1;
            assert!(pause.abs_diff(about) <= slack, "{pauses:?}");
        }
        assert_eq!(state.resolved.load().addresses(), [at(1), at(2)]);
    });
}

#[test]
fn a_reload_resolves_names_again_also_of_an_unchanged_file() {
    paused(async {
        let (state, pauses) = looked_up(3, Some(1), |number| Ok(vec![at(number as u8)])).await;
        assert_eq!(pauses, [0, 0, 0]);
        assert_eq!(state.resolved.load().addresses(), [at(2)]);
    });
}

#[test]
fn sixteen_addresses_of_a_name_are_kept() {
    paused(async {
        let (state, _) = looked_up(1, None, |_| Ok((0..100).rev().map(at).collect())).await;
        let expected: Vec<_> = (0..16).map(at).collect();
        assert_eq!(state.resolved.load().addresses(), expected);
    });
}

#[test]
fn intervals_vary_by_a_tenth() {
    let mut random = Random::seeded(3);
    let interval = Duration::from_secs(10);
    let drawn: Vec<_> = (0..1_000)
        .map(|_| jittered(interval, &mut random).as_secs_f64())
        .collect();
    let (least, most) = drawn.iter().fold((f64::MAX, 0.0_f64), |(low, high), one| {
        (low.min(*one), high.max(*one))
    });
    assert!(
        (9.0..9.1).contains(&least) && (10.9..=11.0).contains(&most),
        "{least} {most}"
    );
}
