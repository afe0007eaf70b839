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
    net::fixture::dead_address,
    pool::{HealthState, ResolvedAddresses, fixture::pool_of},
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
            checker.apply([&pool]);
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
            checker.apply([&first]);
            checked(&state).await;
            let checks = || state.metrics.mine().checks_ok.get();
            assert_eq!(checks(), 1);
            // Many reloads later there is still only the first check.
            for _ in 0..20 {
                let again = Arc::new(Pool::new(&first.config, Some(&first), clock::now()));
                checker.apply([&again]);
                tokio::task::yield_now().await;
            }
            assert_eq!(checks(), 1);
            // Another check probes at once and keeps the verdict.
            let mut config = first.config.clone();
            config.health_check = Some(HealthCheckConfig { rise: 1, ..slow });
            let changed = Arc::new(Pool::new(&config, Some(&first), clock::now()));
            checker.apply([&changed]);
            assert_ne!(state.state(), HealthState::Checking);
            while checks() < 2 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            // And so does another protocol.
            config.protocol = BackendProtocol::H2c;
            let changed = Arc::new(Pool::new(&config, Some(&first), clock::now()));
            checker.apply([&changed]);
            assert_ne!(state.state(), HealthState::Checking);
            while checks() < 3 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            checker.apply([]);
            assert!(checker.tasks.is_empty());
        })
        .await;
}

#[tokio::test]
async fn a_name_is_checked_after_its_first_look_up() {
    LocalSet::new()
        .run_until(async {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = server.local_addr().unwrap();
            let name = BackendAddress::Name {
                host: "app.test".into(),
                port: address.port(),
            };
            let once = HealthCheckConfig {
                rise: 1,
                ..tcp_check()
            };
            let pool = pool_of(&[name], Some(once));
            let state = Arc::clone(&pool.backends[0].state);
            let mut checker = HealthChecker::new(Random::seeded(1));
            checker.apply([&pool]);
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            assert_eq!(state.view().last_check, None);
            let found = ResolvedAddresses::new(vec![address], None);
            state.resolved.store(Arc::new(found));
            state.looked_up.raise();
            checked(&state).await;
            assert_eq!(state.view().last_check.unwrap().result, Ok(()));
        })
        .await;
}

#[tokio::test]
async fn a_change_of_members_disturbs_no_check_of_those_that_stay() {
    LocalSet::new()
        .run_until(async {
            let slow = HealthCheckConfig {
                interval: Duration::from_hours(1),
                ..tcp_check()
            };
            let servers = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
            let address = |index: usize| {
                let server: &std::net::TcpListener = &servers[index];
                BackendAddress::Ip(server.local_addr().unwrap())
            };
            let pool = pool_of(&[address(0), address(1)], Some(slow.clone()));
            let mut other = pool_of(&[address(2)], Some(slow));
            Arc::get_mut(&mut other).unwrap().name = "other".into();
            let mut checker = HealthChecker::new(Random::seeded(1));
            checker.apply([&pool, &other]);
            let state = |pool: &Pool, index: usize| Arc::clone(&pool.backends[index].state);
            let stays = state(&pool, 1);
            for state in [&state(&pool, 0), &stays, &state(&other, 0)] {
                checked(state).await;
            }
            let members = [address(1), address(2)].map(crate::config::model::BackendConfig::at);
            let next = Pool::of_members(&pool.config, &members, Some(&pool), clock::now());
            let next = Arc::new(next);
            checker.apply_members(&pool, &next);
            pool.retire(Some(&next));
            let new = state(&next, 1);
            checked(&new).await;
            assert!(Arc::ptr_eq(&stays, &state(&next, 0)));
            assert_eq!(stays.metrics.mine().checks_ok.get(), 1);
            assert_eq!(
                checker.tasks.len(),
                3,
                "two members, and that of the other pool"
            );
            assert!(!checker.tasks.contains_key(&Arc::as_ptr(&state(&pool, 0))));
        })
        .await;
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
