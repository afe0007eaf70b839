//! The queue in the simulation: who waits, who must be served first, and that no slot stays free
//! while one who could use it waits.

use std::{
    future::Future as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use super::{
    choice::{self, AllowedPicks, allowed_picks},
    counts::SeenEvent,
    world::{OpenExchange, SimulatedWorld, TRIAL_REVIEW, TRIAL_WAIT},
};
use crate::{
    base::address::BackendAddress,
    pool::{BackendLease, HealthState, PickRequest, Pool, QueuePlace},
    reason::Reason,
};

/// Wake-up of one who waits.
#[derive(Debug, Default)]
struct WaiterWoken(AtomicBool);

impl Wake for WaiterWoken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// A request in the queue.
pub(super) struct WaitingRequest {
    exchange: OpenExchange,
    /// Number of its arrival.
    number: u32,
    /// The backend that alone it waits for.
    list: Option<BackendAddress>,
    place: QueuePlace,
    woken: Arc<WaiterWoken>,
}

/// Result of entering the queue, by the model.
#[derive(Debug, PartialEq, Eq)]
enum ExpectedEntry {
    Served,
    Waits,
    Refused(Reason),
}

impl WaitingRequest {
    fn poll(&mut self) -> Option<Result<BackendLease, Reason>> {
        let waker = Waker::from(Arc::clone(&self.woken));
        match Pin::new(&mut self.place).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    /// True if it waits in the list from which `lease` of `pool` could have served it.
    fn could_use(&self, pool: &Pool, lease: &BackendLease) -> bool {
        match &self.list {
            Some(own) => !lease.is_trial() && *own == lease.state.address,
            None => lease.is_trial() || choice::is_candidate(pool, lease),
        }
    }
}

impl SimulatedWorld<'_> {
    fn expected_entry(
        &self,
        list: Option<&BackendAddress>,
        request: &PickRequest<'_>,
    ) -> ExpectedEntry {
        let (pool, length) = (&self.pool, self.waiting.len());
        let has_others = self.waiting.iter().any(|one| one.list.as_ref() == list);
        let is_full = length >= pool.config.queue;
        let or_waits = if is_full {
            ExpectedEntry::Refused(Reason::ConnectionLimitReached)
        } else {
            ExpectedEntry::Waits
        };
        if pool.config.queue == 0 && length == 0 {
            return or_waits;
        }
        if has_others {
            return if choice::beyond(pool, request.attempted).is_empty() {
                or_waits
            } else {
                ExpectedEntry::Served
            };
        }
        if let Some(own) = list.and_then(|own| choice::own_at(pool, own)) {
            return if choice::has_slot(own) {
                ExpectedEntry::Served
            } else {
                or_waits
            };
        }
        match allowed_picks(pool, request, |index| {
            self.is_trial_old(pool, index, TRIAL_WAIT)
        }) {
            AllowedPicks::Backends(all, reason) if all.is_empty() => {
                if reason == Reason::DestinationUnavailable {
                    ExpectedEntry::Refused(reason)
                } else {
                    or_waits
                }
            }
            _ => ExpectedEntry::Served,
        }
    }

    /// Enters the queue after a pick has found no free slot.
    pub(super) fn enqueue(&mut self, exchange: OpenExchange) -> Result<(), String> {
        let request = exchange.request(self.now);
        let list = choice::own_of(&self.pool, &request).map(|own| own.state.address.clone());
        let expected = self.expected_entry(list.as_ref(), &request);
        let entered = self.pool.enqueue(&request);
        let place = match entered {
            Err(reason) if expected == ExpectedEntry::Refused(reason) => {
                if self.pool.config.queue > 0 && reason == Reason::ConnectionLimitReached {
                    self.seen.note(SeenEvent::QueueFull);
                }
                return Ok(());
            }
            Err(reason) => return Err(format!("refused by {reason}, expected: {expected:?}")),
            Ok(place) => place,
        };
        let number = self.arrivals;
        self.arrivals += 1;
        let mut waiter = WaitingRequest {
            exchange,
            number,
            list,
            place,
            woken: Arc::default(),
        };
        match waiter.poll() {
            None if expected == ExpectedEntry::Waits => {
                self.seen.note(SeenEvent::Waited);
                if waiter.list.is_some() {
                    self.seen.note(SeenEvent::WaitedForOwn);
                }
                self.waiting.push(waiter);
                Ok(())
            }
            Some(result) if expected == ExpectedEntry::Served => {
                let pool = Arc::clone(&self.pool);
                self.end_wait(&pool, waiter, result)
            }
            got => Err(format!("entered with {got:?}, expected: {expected:?}")),
        }
    }

    /// A request leaves the queue.
    pub(super) fn leave(&mut self, number: u8) {
        if let Some(mut waiter) = self.take_waiting(number) {
            self.seen.note(SeenEvent::LeftQueue);
            if waiter.woken.0.load(Relaxed) {
                self.seen.note(SeenEvent::LeftWithSlot);
            }
            waiter.exchange.lease = None;
        }
    }

    fn take_waiting(&mut self, number: u8) -> Option<WaitingRequest> {
        let count = self.waiting.len();
        (count > 0).then(|| self.waiting.remove(usize::from(number) % count))
    }

    /// Takes what `pool`, the generation in force, has given to those who wait, and compares.
    pub(super) fn settle(&mut self, pool: &Arc<Pool>) -> Result<(), String> {
        for waiter in &mut self.waiting {
            let is_out = |own: &mut BackendAddress| choice::own_at(pool, own).is_none();
            if waiter.list.take_if(is_out).is_some() {
                self.seen.note(SeenEvent::LeftOwnList);
            }
        }
        let mut ended = Vec::new();
        for mut waiter in std::mem::take(&mut self.waiting) {
            match waiter.poll() {
                None => self.waiting.push(waiter),
                Some(_) if !waiter.woken.0.load(Relaxed) => {
                    return Err(format!(
                        "the wait {} ended without a wake-up",
                        waiter.number
                    ));
                }
                Some(result) => ended.push((waiter, result)),
            }
        }
        for (waiter, result) in ended {
            self.end_wait(pool, waiter, result)?;
        }
        self.check_first(pool)
    }

    /// Checks one result, and begins the attempt.
    fn end_wait(
        &mut self,
        pool: &Arc<Pool>,
        waiter: WaitingRequest,
        result: Result<BackendLease, Reason>,
    ) -> Result<(), String> {
        let WaitingRequest {
            mut exchange,
            number,
            list,
            ..
        } = waiter;
        exchange.move_to(pool);
        let lease = match result {
            Ok(lease) => lease,
            Err(Reason::DestinationUnavailable)
                if list.is_none() && choice::is_unavailable(pool) =>
            {
                self.seen.note(SeenEvent::RefusedInQueue);
                return Ok(());
            }
            Err(reason) => return Err(format!("the wait {number} was refused by {reason}")),
        };
        let name = &lease.config.name;
        let earlier = self.waiting.iter().filter(|other| other.number < number);
        if let Some(other) = earlier.into_iter().find(|one| one.could_use(pool, &lease)) {
            let other = other.number;
            return Err(format!(
                "the wait {number} got {name} before the wait {other}"
            ));
        }
        let is_right = match &list {
            Some(own) => *own == lease.state.address && choice::own_at(pool, own).is_some(),
            None if lease.is_trial() => lease.state.state() == HealthState::Ejected,
            None => choice::may_serve(pool, &lease, &exchange.attempted),
        };
        if !is_right {
            return Err(format!("the wait {number} for {list:?} got {name}"));
        }
        self.seen.note(SeenEvent::ServedFromQueue);
        if lease.is_trial() {
            self.seen.note(SeenEvent::TrialFromQueue);
        }
        self.begin_attempt(exchange, lease)
    }

    /// The first of each list has nothing that it could use.
    fn check_first(&self, pool: &Arc<Pool>) -> Result<(), String> {
        let mut lists = Vec::new();
        for waiter in &self.waiting {
            if lists.contains(&&waiter.list) {
                continue;
            }
            lists.push(&waiter.list);
            let number = waiter.number;
            if let Some(own) = &waiter.list {
                if choice::own_at(pool, own).is_some_and(|own| choice::has_slot(own)) {
                    return Err(format!("the wait {number} goes on beside its {own}"));
                }
                continue;
            }
            let exchange = &waiter.exchange;
            let positions = |list: &[usize]| pool.positions_of(&exchange.pool, list);
            let request = PickRequest {
                attempted: &positions(&exchange.attempted),
                busy: &positions(&exchange.busy),
                sticky: None,
                ..exchange.request(self.now)
            };
            let wait = TRIAL_WAIT + TRIAL_REVIEW;
            let allowed = allowed_picks(pool, &request, |at| self.is_trial_old(pool, at, wait));
            let nothing = AllowedPicks::Backends(Vec::new(), Reason::ConnectionLimitReached);
            if allowed != nothing {
                return Err(format!("the wait {number} goes on beside {allowed:?}"));
            }
        }
        Ok(())
    }
}
