//! The client's own backend: its id, the states in which it is picked, and the fallback.

use super::*;
use crate::config::model::{SameSite, SecureCookie, StickyConfig, StickySecret};

const SECRET: &[u8] = b"a secret of this test";

fn sticky_config(weights: &[u16]) -> model::PoolConfig {
    model::PoolConfig {
        sticky: Some(StickyConfig {
            secret: StickySecret::of_file(SECRET),
            ..StickyConfig::named("lb")
        }),
        ..config(weights)
    }
}

/// The backend that a client of `own` gets after failed attempts and failed connections.
fn pick_own(pool: &Pool, own: usize, attempted: &[usize], busy: &[usize]) -> Result<usize, Reason> {
    let request = PickRequest {
        attempted,
        busy,
        sticky: Some(own),
        ..PickRequest::first(clock::now())
    };
    let picked = pool.pick(&request, &mut Random::seeded(1));
    picked.map(|lease| lease.index)
}

fn ids(pool: &Pool) -> Vec<String> {
    let table = pool.sticky.as_ref().unwrap();
    let all = pool.backends.iter();
    all.map(|one| table.id(one.index).unwrap().to_owned())
        .collect()
}

#[test]
fn an_id_depends_on_secret_pool_and_address_and_on_nothing_else() {
    let config = sticky_config(&[1, 1]);
    let (one, _) = pool(&config);
    let own = ids(&one);
    assert_ne!(own[0], own[1]);
    assert!(own.iter().all(|id| id.len() == 24), "{own:?}");
    // Ids are a promise: another value would move all clients at an upgrade.
    assert_eq!(own[0], "606a291a33f0ebb14521efc4");

    let mut other = config.clone();
    other.backends.reverse();
    other.backends[0].name = "renamed".into();
    other.backends[0].weight = 7;
    let (other, _) = pool(&other);
    assert_eq!(ids(&other), [own[1].clone(), own[0].clone()]);

    let mut renamed = config.clone();
    renamed.name = "app2".into();
    let (renamed, _) = pool(&renamed);
    let mut secret = config;
    secret.sticky.as_mut().unwrap().secret = StickySecret::of_file(b"another secret of it");
    let (secret, _) = pool(&secret);
    for other in [renamed, secret] {
        assert!(ids(&other).iter().all(|id| !own.contains(id)));
    }
}

#[test]
fn the_first_value_that_names_a_backend_is_taken_and_all_others_are_ignored() {
    let (pool, _) = pool(&sticky_config(&[1, 1]));
    let own = ids(&pool);
    let table = pool.sticky.as_ref().unwrap();
    let find = |values: &[&str]| table.find(values.iter().map(|value| value.as_bytes()));
    assert_eq!(find(&[&own[1]]), Some(1));
    assert_eq!(find(&["", "x", &own[1], &own[0]]), Some(1));
    let upper = own[0].to_uppercase();
    let longer = format!("{}0", own[0]);
    let forged = "0".repeat(24);
    for value in [
        "",
        "0",
        "10.0.0.1:80",
        "b1",
        &own[0][1..],
        &longer,
        &upper,
        &forged,
    ] {
        assert_eq!(find(&[value]), None, "{value}");
    }
}

#[test]
fn the_cookie_has_the_attributes_of_the_configuration() {
    let field = |change: &dyn Fn(&mut StickyConfig), client_uses_tls| {
        let mut config = sticky_config(&[1]);
        change(config.sticky.as_mut().unwrap());
        let (pool, _) = pool(&config);
        let table = pool.sticky.as_ref().unwrap();
        let field = table.field(0, client_uses_tls).unwrap();
        field.replace(&ids(&pool)[0], "ID")
    };
    let plain = "lb=ID; Path=/; HttpOnly; SameSite=Lax";
    assert_eq!(field(&|_| {}, false), plain);
    assert_eq!(field(&|_| {}, true), format!("{plain}; Secure"));
    let never = |sticky: &mut StickyConfig| sticky.secure = SecureCookie::Never;
    assert_eq!(field(&never, true), plain);
    let always = |sticky: &mut StickyConfig| sticky.secure = SecureCookie::Always;
    assert_eq!(field(&always, false), format!("{plain}; Secure"));
    let all = |sticky: &mut StickyConfig| {
        sticky.cookie = "__Secure-a".to_owned();
        sticky.ttl = Some(seconds(3_600));
        sticky.secure = SecureCookie::Always;
        sticky.same_site = SameSite::None;
        sticky.http_only = false;
        sticky.path = "/shop".to_owned();
    };
    assert_eq!(
        field(&all, false),
        "__Secure-a=ID; Path=/shop; Max-Age=3600; SameSite=None; Secure"
    );
}

#[test]
fn the_own_backend_goes_before_the_policy_until_it_is_out() {
    for policy in BalancingPolicy::ALL.iter().copied() {
        let mut config = sticky_config(&[9, 1, 1]);
        config.policy = policy;
        let (pool, now) = pool(&config);
        assert_eq!(pick_own(&pool, 2, &[], &[]), Ok(2), "not checked yet");
        pass(&pool, 0, now);
        assert_eq!(pick_own(&pool, 2, &[], &[]), Ok(2), "another one is up");
        all_up(&pool, now);
        assert!((0..20).all(|_| pick_own(&pool, 2, &[], &[]) == Ok(2)));
        (0..3).for_each(|_| drop(fail(&pool, 2, now)));
        assert_ne!(pick_own(&pool, 2, &[], &[]).unwrap(), 2, "down");
        (0..2).for_each(|_| drop(pass(&pool, 2, now)));
        assert_eq!(pick_own(&pool, 2, &[], &[]), Ok(2), "back");
        assert!(fail_times(&pool, 2, 5, now).is_some());
        assert_ne!(pick_own(&pool, 2, &[], &[]).unwrap(), 2, "ejected");
        assert!(pick_own(&pool, 9, &[], &[]).is_ok(), "no such position");
    }
}

#[test]
fn states_keep_their_clients_or_let_them_go() {
    let rules = |checks| EligibilityRules {
        policy: BalancingPolicy::RoundRobin,
        hash_balance: None,
        slow_start: None,
        checks,
        when_all_down: WhenAllDown::Reject,
        is_orphaned: false,
        queues: false,
    };
    for (state, keeps) in [
        (HealthState::Checking, true),
        (HealthState::Up, true),
        (HealthState::Draining, true),
        (HealthState::Down, false),
        (HealthState::Ejected, false),
        (HealthState::Maintenance, false),
        (HealthState::Removed, false),
    ] {
        assert_eq!(rules(true).keeps_clients(state), keeps, "{state}");
    }
    assert!(
        rules(false).keeps_clients(HealthState::Down),
        "an old verdict"
    );
}

#[test]
fn weight_zero_a_backup_and_fail_open_keep_their_clients() {
    let mut config = sticky_config(&[0, 1, 1]);
    config.backends[2].backup = 1;
    config.when_all_down = WhenAllDown::FailOpen;
    let (pool, now) = pool(&config);
    all_up(&pool, now);
    assert_eq!(pick_own(&pool, 0, &[], &[]), Ok(0), "weight 0");
    assert_eq!(pick_own(&pool, 2, &[], &[]), Ok(2), "a backup");
    for index in 0..3 {
        (0..3).for_each(|_| drop(fail(&pool, index, now)));
    }
    assert!(
        (0..9).all(|_| pick_own(&pool, 2, &[], &[]) == Ok(2)),
        "all are down"
    );
}

#[test]
fn the_only_backends_that_are_left_may_have_no_new_clients() {
    let (pool, now) = pool(&sticky_config(&[0, 0]));
    all_up(&pool, now);
    let refused = pick(&pool, &[], &mut Random::seeded(1)).unwrap_err();
    assert_eq!(refused, Reason::DestinationUnavailable);
    assert_eq!(pick_own(&pool, 1, &[], &[]), Ok(1));
}

#[test]
fn after_a_failed_attempt_another_backend_is_picked_and_after_a_stale_connection_the_same() {
    let (pool, now) = pool(&sticky_config(&[1, 1]));
    all_up(&pool, now);
    assert_eq!(pick_own(&pool, 1, &[1], &[]), Ok(0));
    assert_eq!(pick_own(&pool, 1, &[], &[1]), Ok(1));
    assert_eq!(pick_own(&pool, 1, &[], &[1, 1]), Ok(0));
}

#[test]
fn a_full_backend_is_waited_for_or_passed_over_without_a_queue() {
    let mut config = sticky_config(&[1, 1]);
    config.backends[1].max_connections = Some(1);
    let (queueing, now) = pool(&config);
    all_up(&queueing, now);
    let claimed = queueing.backends[1].state.claim(1);
    assert!(claimed);
    let full = Err(Reason::ConnectionLimitReached);
    assert_eq!(pick_own(&queueing, 1, &[], &[]), full);
    config.queue = 0;
    let (pool, now) = pool(&config);
    all_up(&pool, now);
    let request = PickRequest {
        sticky: Some(1),
        ..PickRequest::first(now)
    };
    let held = pool.pick(&request, &mut Random::seeded(1)).unwrap();
    assert_eq!(held.index, 1);
    assert_eq!(pick_own(&pool, 1, &[], &[]), Ok(0));
    drop(held);
    assert_eq!(pick_own(&pool, 1, &[], &[]), Ok(1));
    assert!(pool.backends.iter().all(|one| one.state.in_flight() == 0));
}
