//! Those who wait for a backend: in order of arrival, with no wake-up lost.

use std::{
    future::Future as _,
    pin::Pin,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use tokio::runtime::Builder;

use super::*;

/// Backends without checks, each with this limit.
fn limited(backends: usize, limit: usize) -> model::PoolConfig {
    let mut config = unchecked(&vec![1; backends], BalancingPolicy::RoundRobin);
    config.connections_per_backend = Some(limit);
    config
}

fn enter(pool: &Pool) -> QueuePlace {
    pool.enqueue(&PickRequest::first(clock::now())).unwrap()
}

fn enter_for(pool: &Pool, own: usize) -> QueuePlace {
    let request = PickRequest {
        sticky: Some(own),
        ..PickRequest::first(clock::now())
    };
    pool.enqueue(&request).unwrap()
}

fn take(pool: &Pool) -> BackendLease {
    pick(pool, &[], &mut Random::seeded(1)).unwrap()
}

/// The result of a place, if it has one.
fn poll(place: &mut QueuePlace) -> Option<Result<BackendLease, Reason>> {
    match Pin::new(place).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

fn index(place: &mut QueuePlace) -> Option<usize> {
    poll(place).map(|result| result.unwrap().index)
}

fn is_waiting(place: &mut QueuePlace) -> bool {
    poll(place).is_none()
}

#[derive(Default)]
struct PlaceWoken(AtomicBool);

impl Wake for PlaceWoken {
    fn wake(self: Arc<Self>) {
        assert!(!self.0.swap(true, Relaxed), "woken twice");
    }
}

#[test]
fn slots_go_to_those_who_wait_in_the_order_of_their_arrival() {
    for policy in BalancingPolicy::ALL.iter().copied() {
        let mut config = limited(2, 1);
        config.policy = policy;
        let (pool, _) = pool(&config);
        let mut held = vec![take(&pool), take(&pool)];
        let mut places: Vec<_> = (0..20).map(|_| enter(&pool)).collect();
        assert_eq!(pool.queue_length(), 20);
        for next in 0..20 {
            let seen = Arc::new(PlaceWoken::default());
            let waker = Waker::from(Arc::clone(&seen));
            let polled = Pin::new(&mut places[next]).poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            let free = held.remove(next % 2).index;
            assert!(seen.0.load(Relaxed), "{policy:?}: the first is woken");
            assert!(places[next + 1..].iter_mut().all(is_waiting));
            let lease = poll(&mut places[next]).unwrap().unwrap();
            assert_eq!(lease.index, free);
            held.insert(next % 2, lease);
        }
        assert_eq!(pool.queue_length(), 0);
        drop(held);
        assert!(pool.backends.iter().all(|one| one.state.in_flight() == 0));
    }
}

#[test]
fn a_newcomer_does_not_overtake() {
    let (pool, _) = pool(&limited(1, 1));
    let backend = &pool.backends[0];
    assert!(backend.state.claim(1));
    let mut first = enter(&pool);
    // Between the two steps of a release the slot is free.
    assert!(backend.state.release(), "there is one to be served");
    let mut random = Random::seeded(1);
    let refused = pick(&pool, &[], &mut random).unwrap_err();
    assert_eq!(refused, Reason::ConnectionLimitReached);
    let mut second = enter(&pool);
    assert!(is_waiting(&mut first) && is_waiting(&mut second));
    let waiting = &backend.state.waiting;
    waiting.serve_released(backend.index, &backend.state.address);
    assert_eq!(index(&mut first), Some(0));
    assert_eq!(index(&mut second), Some(0));
    assert!(pick(&pool, &[], &mut random).is_ok());
}

#[test]
fn who_leaves_gives_up_the_place_and_the_slot_that_came_too_late() {
    let (pool, _) = pool(&limited(1, 1));
    let held = take(&pool);
    let [first, second, third, mut last] = [(); 4].map(|()| enter(&pool));
    drop(second);
    assert_eq!(pool.queue_length(), 3);
    drop(held);
    assert_eq!(
        pool.queue_length(),
        2,
        "the first is served, and not woken yet"
    );
    drop(third);
    drop(first);
    assert_eq!(index(&mut last), Some(0), "it gets the slot of the first");
    assert_eq!(pool.queue_length(), 0);
    assert_eq!(pool.backends[0].state.in_flight(), 0);
}

#[test]
fn the_queue_has_its_length_and_none_waits_with_0() {
    let mut config = limited(1, 1);
    config.queue = 2;
    let (pool, now) = pool(&config);
    let held = take(&pool);
    let request = PickRequest::first(now);
    let _places = [enter(&pool), enter(&pool)];
    let refused = pool.enqueue(&request).unwrap_err();
    assert_eq!(refused, Reason::ConnectionLimitReached);
    assert_eq!(pool.queue_length(), 2);
    let later = pool.queue_status(now + seconds(9));
    assert_eq!(later.length, 2);
    assert!(later.longest_wait > seconds(8), "{later:?}");
    drop(held);

    config.queue = 0;
    let (pool, _) = super::pool(&config);
    let held = take(&pool);
    let refused = pool.enqueue(&request).unwrap_err();
    assert_eq!(refused, Reason::ConnectionLimitReached);
    assert_eq!(
        pool.queue_status(now),
        QueueStatus {
            length: 0,
            longest_wait: seconds(0)
        }
    );
    drop(held);
}

#[test]
fn a_backend_that_comes_up_serves_those_who_wait() {
    let mut config = config(&[1, 1]);
    config.connections_per_backend = Some(2);
    let (pool, now) = pool(&config);
    pass(&pool, 0, now);
    let held = [take(&pool), take(&pool)];
    let mut places: Vec<_> = (0..3).map(|_| enter(&pool)).collect();
    pass(&pool, 1, now);
    let leases: Vec<_> = places[..2]
        .iter_mut()
        .map(|one| poll(one).unwrap().unwrap())
        .collect();
    assert!(leases.iter().all(|lease| lease.index == 1));
    assert!(is_waiting(&mut places[2]));
    drop(held);
    assert_eq!(index(&mut places[2]), Some(0));
}

#[test]
fn all_are_refused_at_once_when_no_backend_is_left() {
    let mut config = config(&[1, 1]);
    config.connections_per_backend = Some(1);
    let (pool, now) = pool(&config);
    all_up(&pool, now);
    let _held = [take(&pool), take(&pool)];
    let mut places: Vec<_> = (0..3).map(|_| enter(&pool)).collect();
    (0..3).for_each(|_| drop(fail(&pool, 0, now)));
    assert!(
        places.iter_mut().all(is_waiting),
        "the other one may still serve"
    );
    (0..3).for_each(|_| drop(fail(&pool, 1, now)));
    for place in &mut places {
        let refused = poll(place).unwrap().unwrap_err();
        assert_eq!(refused, Reason::DestinationUnavailable);
    }
    let refused = pool.enqueue(&PickRequest::first(now)).unwrap_err();
    assert_eq!(refused, Reason::DestinationUnavailable);
    assert_eq!(pool.queue_length(), 0);
}

#[test]
fn a_reload_that_raises_the_limit_serves_by_the_new_generation() {
    let (old, now) = pool(&limited(2, 1));
    let held = [take(&old), take(&old)];
    let retry = PickRequest {
        attempted: &[0],
        ..PickRequest::first(now)
    };
    let mut first = old.enqueue(&retry).unwrap();
    let mut others: Vec<_> = (0..3).map(|_| enter(&old)).collect();
    let mut config = limited(2, 2);
    config.backends.reverse();
    let new = reload(&old, &config, now);
    let lease = poll(&mut first).unwrap().unwrap();
    assert!(
        Arc::ptr_eq(lease.backend(), &new.backends[0]),
        "not the one it has attempted"
    );
    let second = poll(&mut others[0]).unwrap().unwrap();
    assert_eq!(second.index, 1);
    assert!(is_waiting(&mut others[1]));
    // A task that still works with the old generation.
    let lease = lease.moved_to(&old).unwrap();
    assert!(Arc::ptr_eq(lease.backend(), &old.backends[1]));
    drop(held);
    assert!(others[1..].iter_mut().all(|one| index(one).is_some()));
    drop((lease, second));
    assert!(new.backends.iter().all(|one| one.state.in_flight() == 0));
}

#[test]
fn a_lease_of_a_backend_that_left_moves_nowhere_and_frees_its_slot() {
    let (old, now) = pool(&limited(2, 1));
    let held = [take(&old), take(&old)];
    let new = reload(&old, &limited(1, 1), now);
    let [stays, leaves] = held;
    assert!(stays.moved_to(&new).is_some());
    assert!(leaves.moved_to(&new).is_none());
    assert!(old.backends.iter().all(|one| one.state.in_flight() == 0));
}

#[test]
fn those_who_wait_for_a_pool_that_was_removed_are_served_and_so_when_it_returns() {
    let (first, now) = pool(&limited(1, 1));
    let held = take(&first);
    let mut places = [enter(&first), enter(&first)];
    first.retire(None);
    assert!(is_waiting(&mut places[0]));
    drop(held);
    let lease = poll(&mut places[0]).unwrap().unwrap();
    let config = limited(1, 2);
    let back = Pool::returned(&config, &config.backends, Arc::clone(&first.state), now);
    back.restore();
    let second = poll(&mut places[1]).unwrap().unwrap();
    assert!(Arc::ptr_eq(second.backend(), &back.backends[0]));
    drop((lease, second));
    assert_eq!(back.backends[0].state.in_flight(), 0);
}

#[test]
fn a_retry_that_the_next_tier_can_serve_does_not_wait_for_the_first() {
    let mut config = limited(2, 1);
    config.backends[1].backup = 1;
    let (pool, now) = pool(&config);
    let _held = take(&pool);
    let mut waiting = enter(&pool);
    let retry = PickRequest {
        attempted: &[0],
        ..PickRequest::first(now)
    };
    let mut retried = pool.enqueue(&retry).unwrap();
    assert_eq!(index(&mut retried), Some(1));
    assert!(is_waiting(&mut waiting), "a full tier does not spill over");
}

#[test]
fn a_client_waits_for_its_own_backend_and_the_older_of_two_heads_is_first() {
    let (pool, _) = pool(&limited(2, 1));
    let [zero, one] = [take(&pool), take(&pool)];
    assert_eq!((zero.index, one.index), (0, 1));
    let mut own_early = enter_for(&pool, 1);
    let mut any_early = enter(&pool);
    let mut own_late = enter_for(&pool, 1);
    let mut any_late = enter(&pool);
    drop(zero);
    let zero = poll(&mut any_early).unwrap().unwrap();
    assert_eq!(zero.index, 0);
    assert!(is_waiting(&mut own_early), "it takes no other");
    drop(one);
    let one = poll(&mut own_early).unwrap().unwrap();
    drop(one);
    let one = poll(&mut own_late).unwrap().unwrap();
    assert_eq!(one.index, 1);
    assert!(is_waiting(&mut any_late), "the other one is older");
    drop(one);
    assert_eq!(index(&mut any_late), Some(1));
    drop(zero);
    assert_eq!(pool.queue_length(), 0);
}

#[test]
fn clients_of_a_backend_that_goes_out_take_any_by_their_age() {
    let mut config = config(&[1, 1]);
    config.connections_per_backend = Some(1);
    let (pool, now) = pool(&config);
    all_up(&pool, now);
    let [zero, _one] = [take(&pool), take(&pool)];
    let mut own = enter_for(&pool, 1);
    let mut any = enter(&pool);
    drop(enter_for(&pool, 1));
    (0..3).for_each(|_| drop(fail(&pool, 1, now)));
    drop(zero);
    let zero = poll(&mut own).unwrap().unwrap();
    assert_eq!(zero.index, 0);
    assert!(is_waiting(&mut any));
    drop(zero);
    assert_eq!(index(&mut any), Some(0));
    assert_eq!(pool.queue_length(), 0);
}

#[test]
fn a_client_whose_backup_goes_down_takes_a_backend_of_the_tier_that_serves() {
    let mut config = config(&[1, 1]);
    config.connections_per_backend = Some(1);
    config.backends[1].backup = 1;
    let (pool, now) = pool(&config);
    all_up(&pool, now);
    assert!(pool.backends[1].state.claim(1));
    let mut own = enter_for(&pool, 1);
    assert!(is_waiting(&mut own));
    (0..3).for_each(|_| drop(fail(&pool, 1, now)));
    assert_eq!(index(&mut own), Some(0));
}

#[test]
fn without_a_queue_a_client_whose_backend_is_full_gets_another() {
    for (queue, expected) in [(0, Ok(1)), (1, Err(Reason::ConnectionLimitReached))] {
        let mut config = limited(2, 1);
        config.queue = queue;
        let (pool, now) = pool(&config);
        let own = PickRequest {
            sticky: Some(0),
            ..PickRequest::first(now)
        };
        let mut random = Random::seeded(1);
        let _held = pool.pick(&own, &mut random).unwrap();
        let picked = pool.pick(&own, &mut random);
        assert_eq!(picked.map(|lease| lease.index), expected, "queue: {queue}");
    }
}

/// Wakes a thread that waits for a place.
struct ThreadWaker(Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a place on this thread. A lost wake-up is a panic.
fn wait(mut place: QueuePlace) -> BackendLease {
    let waker = Waker::from(Arc::new(ThreadWaker(thread::current())));
    let end = clock::now() + seconds(30);
    loop {
        match Pin::new(&mut place).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => return result.unwrap(),
            Poll::Pending => {
                assert!(clock::now() < end, "a wake-up was lost");
                thread::park_timeout(seconds(30));
            }
        }
    }
}

#[test]
fn over_threads_no_slot_and_no_wake_up_is_lost() {
    const THREAD_COUNT: u64 = 8;
    const ROUNDS: usize = 2_000;
    for policy in BalancingPolicy::ALL.iter().copied() {
        let mut config = limited(2, 1);
        config.policy = policy;
        let (pool, _) = pool(&config);
        let (start, served, left) = (
            Barrier::new(THREAD_COUNT as usize),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
        );
        let busy = [const { AtomicUsize::new(0) }; 2];
        let work = |seed| {
            let mut random = Random::seeded(seed);
            start.wait();
            for _ in 0..ROUNDS {
                let sticky = (random.below(4) == 0).then(|| random.below(2));
                let request = PickRequest {
                    sticky,
                    ..PickRequest::first(clock::now())
                };
                let lease = match pool.pick(&request, &mut random) {
                    Ok(lease) => lease,
                    Err(reason) => {
                        assert_eq!(reason, Reason::ConnectionLimitReached);
                        let place = pool.enqueue(&request).unwrap();
                        if random.below(8) == 0 {
                            left.fetch_add(1, Relaxed);
                            continue;
                        }
                        wait(place)
                    }
                };
                assert!(sticky.is_none_or(|own| own == lease.index));
                assert_eq!(busy[lease.index].fetch_add(1, Relaxed), 0, "over the limit");
                if random.below(4) == 0 {
                    thread::yield_now();
                }
                busy[lease.index].fetch_sub(1, Relaxed);
                served.fetch_add(1, Relaxed);
            }
        };
        thread::scope(|scope| {
            for seed in 0..THREAD_COUNT {
                let work = &work;
                scope.spawn(move || work(seed));
            }
        });
        let all = THREAD_COUNT as usize * ROUNDS;
        assert_eq!(served.into_inner() + left.into_inner(), all, "{policy:?}");
        assert_eq!(pool.queue_length(), 0);
        assert!(pool.backends.iter().all(|one| one.state.in_flight() == 0));
    }
}

#[test]
fn over_threads_changes_of_state_lose_no_wake_up() {
    const ROUNDS: usize = 500;
    let mut config = config(&[1, 1]);
    config.connections_per_backend = Some(1);
    let (pool, now) = pool(&config);
    all_up(&pool, now);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let requests: Vec<_> = (0..4)
            .map(|seed| {
                let pool = &pool;
                scope.spawn(move || {
                    let mut random = Random::seeded(seed);
                    for _ in 0..ROUNDS {
                        let request = PickRequest::first(clock::now());
                        drop(
                            pool.pick(&request, &mut random)
                                .unwrap_or_else(|_| wait(pool.enqueue(&request).unwrap())),
                        );
                    }
                })
            })
            .collect();
        // One backend goes out and comes back; the other one stays.
        scope.spawn(|| {
            while !over.load(Relaxed) {
                (0..3).for_each(|_| drop(fail(&pool, 1, now)));
                (0..2).for_each(|_| drop(pass(&pool, 1, now)));
            }
        });
        let results: Vec<_> = requests
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        over.store(true, Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    assert_eq!(pool.queue_length(), 0);
}

/// A pool of two full backends, of which the first waits for its trial, at the returned instant.
/// The guards are the slots of the second.
fn full_beside_a_trial() -> (Pool, Vec<BackendLease>, Instant) {
    let (pool, start) = pool(&limited(2, 2));
    fail_times(&pool, 0, 5, start).unwrap();
    let held = vec![take(&pool), take(&pool)];
    assert!(held.iter().all(|one| one.index == 1));
    let now = start + seconds(10);
    assert!(pool.expire(now)[0].is_trial);
    (pool, held, now)
}

#[test]
fn a_trial_without_a_verdict_goes_to_the_first_who_waits() {
    let (pool, _held, now) = full_beside_a_trial();
    let trial = take(&pool);
    assert!(trial.is_trial());
    let mut places = [enter(&pool), enter(&pool)];
    assert!(places.iter_mut().all(is_waiting));
    drop(trial);
    let trial = poll(&mut places[0]).unwrap().unwrap();
    assert!(trial.is_trial());
    assert!(is_waiting(&mut places[1]));
    // Its client holds it up for longer than a response may take.
    assert_eq!(pool.expire(now + seconds(1)), []);
    assert_eq!(pool.expire(now + seconds(70)), []);
    assert!(poll(&mut places[1]).unwrap().unwrap().is_trial());
    assert_eq!(pool.queue_length(), 0);
}

#[test]
fn a_trial_is_not_lost_behind_a_request_that_cannot_be_it() {
    let (pool, mut held, now) = full_beside_a_trial();
    let once = PickRequest {
        is_repeatable: false,
        ..PickRequest::first(now)
    };
    let [first, second, third] = [(); 3].map(|()| pool.enqueue(&once).unwrap());
    let mut last = enter(&pool);
    drop((first, second));
    assert!(is_waiting(&mut last), "it is not its turn");
    held.pop();
    let mut third = third;
    assert!(!poll(&mut third).unwrap().unwrap().is_trial());
    assert!(poll(&mut last).unwrap().unwrap().is_trial());
}

#[test]
fn after_a_second_any_who_waits_is_the_trial() {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    let advance = |time| runtime.block_on(tokio::time::advance(time));
    let _entered = runtime.enter();
    let (pool, _held, now) = full_beside_a_trial();
    advance(seconds(10));
    let once = PickRequest {
        is_repeatable: false,
        ..PickRequest::first(now)
    };
    let mut place = pool.enqueue(&once).unwrap();
    assert!(is_waiting(&mut place));
    advance(seconds(2));
    assert_eq!(pool.expire(now + seconds(2)), []);
    assert!(poll(&mut place).unwrap().unwrap().is_trial());
}

#[test]
fn a_retry_gets_a_slot_of_the_next_tier_as_soon_as_it_is_its_turn() {
    let mut config = limited(2, 1);
    config.backends[1].backup = 1;
    let (pool, now) = pool(&config);
    let _held = take(&pool);
    let backup = lease(&pool, 1);
    let retry = PickRequest {
        attempted: &[0],
        ..PickRequest::first(now)
    };
    let first = enter(&pool);
    let [mut second, mut third] = [(); 2].map(|()| pool.enqueue(&retry).unwrap());
    drop(backup);
    assert!(is_waiting(&mut second) && is_waiting(&mut third));
    drop(first);
    let backup = poll(&mut second).unwrap().unwrap();
    assert_eq!(backup.index, 1);
    drop(backup);
    assert_eq!(index(&mut third), Some(1));
}

#[test]
fn who_waited_for_an_ejected_backend_decides_about_it() {
    let mut config = limited(2, 1);
    config.when_all_down = WhenAllDown::FailOpen;
    let (pool, now) = pool(&config);
    fail_times(&pool, 0, 5, now).unwrap();
    // The operator takes out the other one.
    let set = OperatorOverride {
        value: OperatorState::Maintenance,
        by: "root".to_owned(),
        since_unix: seconds(0),
        end: None,
        note: None,
    };
    let overrides = BackendOverrides {
        state: Some(set),
        ..BackendOverrides::default()
    };
    pool.set_overrides(&pool.backends[1], overrides, "", now);
    let held = take(&pool);
    let mut place = enter(&pool);
    drop(held);
    let lease = poll(&mut place).unwrap().unwrap();
    assert_eq!((lease.index, lease.is_trial()), (0, false));
    let back = pool.record_success(&lease, now).unwrap();
    assert_eq!(
        (back.from, back.to),
        (HealthState::Ejected, HealthState::Up)
    );
}
