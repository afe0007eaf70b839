//! The queue of a pool: requests and sessions that wait because every backend is at its limit.
//!
//! It is fair (first come, first served) over all workers and generations. A request that ends on a
//! backend claims the free slot for the first that waits, and wakes its task: no other request can
//! take the slot in between, however late that task runs. One that leaves gives up its place, or
//! the slot that it was given, which goes to the next.
//!
//! Two kinds wait: for any backend, in one list, and for one backend alone (the client's own, by
//! its cookie), in a list of each such backend. A slot goes to the older of the two who could use
//! it. Lists are ordered by number of arrival: entering, leaving and being served cost the
//! logarithm of their length.
//!
//! Rule for this file: no lease is dropped and no task woken under the lock, because both may come
//! back here.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Acquire},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::{
    Pool,
    backend::Backend,
    eligible::EligibleSet,
    generation::PoolGeneration,
    lease::BackendLease,
    pick::{self, PickRequest},
    trial::TrialPhase,
    waiting::{ServeWaiting, WaitingCount},
};
use crate::{
    base::{address::BackendAddress, clock, rng::Random},
    reason::Reason,
};

/// The queue as the status page shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueStatus {
    /// Number of those who wait.
    pub length: usize,
    /// Time for which the first of them has waited; zero if there is none.
    pub longest_wait: Duration,
}

/// The queue of one pool. It lives on over reloads.
#[derive(Debug)]
pub(super) struct BackendQueue {
    count: Arc<WaitingCount>,
    lists: Mutex<WaitLists>,
    /// Counts the picks of the queue, for policies that take turns.
    cursor: AtomicUsize,
}

/// A list of waiters by number of arrival.
type WaitList = BTreeMap<u64, QueuedRequest>;
/// A list: that of one backend, by its address, or that of those who take any.
type ListName = Option<BackendAddress>;
/// Tasks to wake when the lock is released.
type QueueWakers = Vec<Waker>;

/// The requests that wait, and the generation that serves them.
#[derive(Debug)]
struct WaitLists {
    /// The generation in force.
    generation: Weak<PoolGeneration>,
    /// Number of the next arrival.
    next: u64,
    /// Lists that are not empty.
    lists: BTreeMap<ListName, WaitList>,
    random: Random,
}

/// A request in the queue: what [`PickRequest`] says, owned.
#[derive(Debug)]
struct QueuedRequest {
    handover: Arc<LeaseHandover>,
    since: Instant,
    /// The generation to which the positions belong.
    generation: Arc<PoolGeneration>,
    attempted: Box<[usize]>,
    busy: Box<[usize]>,
    key: Option<u64>,
    is_repeatable: bool,
}

/// The result of a wait, which another thread may hand over.
#[derive(Debug)]
struct LeaseHandover(Mutex<HandoverState>);

impl Default for LeaseHandover {
    fn default() -> Self {
        Self(Mutex::new(HandoverState::Waiting(None)))
    }
}

#[derive(Debug)]
enum HandoverState {
    /// Waiting; the task to wake, once it was polled.
    Waiting(Option<Waker>),
    /// Served or refused, and not taken yet.
    Done(Result<BackendLease, Reason>),
    /// Taken.
    Over,
}

impl LeaseHandover {
    fn lock(&self) -> MutexGuard<'_, HandoverState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the wait with `result`.
    fn complete(&self, result: Result<BackendLease, Reason>, woken: &mut QueueWakers) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut *state, HandoverState::Done(result));
        drop(state);
        debug_assert!(matches!(before, HandoverState::Waiting(_)), "served twice");
        if let HandoverState::Waiting(Some(waker)) = before {
            woken.push(waker);
        }
    }
}

/// A place in the queue of a pool: a future of the backend. Dropping it leaves the queue.
#[derive(Debug)]
pub struct QueuePlace {
    queue: Arc<BackendQueue>,
    handover: Arc<LeaseHandover>,
    number: u64,
    /// The list that it entered; it may have moved to the common one.
    list: ListName,
}

impl Future for QueuePlace {
    type Output = Result<BackendLease, Reason>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.handover.lock();
        match &mut *state {
            HandoverState::Waiting(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                return Poll::Pending;
            }
            HandoverState::Done(_) => {}
            HandoverState::Over => {
                debug_assert!(false, "polled after its end");
                return Poll::Pending;
            }
        }
        match std::mem::replace(&mut *state, HandoverState::Over) {
            HandoverState::Done(result) => Poll::Ready(result),
            HandoverState::Waiting(_) | HandoverState::Over => Poll::Pending,
        }
    }
}

impl QueuePlace {
    /// The refusal that it has got already.
    fn refusal(&self) -> Option<Reason> {
        match &*self.handover.lock() {
            HandoverState::Done(Err(reason)) => Some(*reason),
            _ => None,
        }
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        // One that was served is in no list.
        if matches!(*self.handover.lock(), HandoverState::Waiting(_)) {
            self.queue.leave(self.number, &self.list);
        }
        // A slot that came too late: dropping it serves the next.
        let state = std::mem::replace(&mut *self.handover.lock(), HandoverState::Over);
        drop(state);
    }
}

impl Pool {
    /// Waits for a backend, after [`Pool::pick`] found all of them full. The request has its place
    /// from here on, and is served when its turn comes; the caller bounds the time.
    ///
    /// # Errors
    /// [`Reason::ConnectionLimitReached`] if the queue is full, [`Reason::DestinationUnavailable`]
    /// if no backend is available.
    pub fn enqueue(&self, request: &PickRequest<'_>) -> Result<QueuePlace, Reason> {
        let queue = &self.state.queue;
        if self.config.queue == 0 && queue.count.get() == 0 {
            return Err(Reason::ConnectionLimitReached);
        }
        queue.enter(&self.generation, self.config.queue, request)
    }

    /// Number of requests and sessions that wait.
    pub fn queue_length(&self) -> usize {
        self.state.waiting.get()
    }

    /// Length and longest wait of the queue.
    pub fn queue_status(&self, now: Instant) -> QueueStatus {
        self.state.queue.status(now)
    }
}

impl BackendQueue {
    pub(super) fn new() -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            count: Arc::new(WaitingCount::new(this.clone())),
            lists: Mutex::new(WaitLists {
                generation: Weak::new(),
                next: 0,
                lists: BTreeMap::new(),
                random: Random::from_system(),
            }),
            cursor: AtomicUsize::new(0),
        })
    }

    /// The number of those who wait.
    pub(super) const fn count(&self) -> &Arc<WaitingCount> {
        &self.count
    }

    /// From now on `generation`, which is in force, serves those who wait. Its next refresh does.
    pub(super) fn serve_by(&self, generation: &Arc<PoolGeneration>) {
        self.lock().generation = Arc::downgrade(generation);
    }

    /// The same for a pool that returns to the configuration: no other generation is in force.
    pub(super) fn restore(&self, generation: &Arc<PoolGeneration>) {
        let mut lists = self.lock();
        let current = lists.generation.upgrade();
        if current.is_none_or(|current| current.orphaned.load(Acquire)) {
            lists.generation = Arc::downgrade(generation);
        }
    }

    /// Makes the picks of the queue the same in each run.
    #[cfg(test)]
    pub(super) fn seed(&self, seed: u64) {
        self.lock().random = Random::seeded(seed);
    }

    fn enter(
        self: &Arc<Self>,
        generation: &Arc<PoolGeneration>,
        limit: usize,
        request: &PickRequest<'_>,
    ) -> Result<QueuePlace, Reason> {
        let mut woken = QueueWakers::new();
        let mut lists = self.lock();
        let length = self.count.get();
        self.count.add();
        if lists.generation.strong_count() == 0 {
            lists.generation = Arc::downgrade(generation);
        }
        let number = lists.next;
        lists.next += 1;
        let list = own_list(generation, request);
        let is_first = !lists.lists.contains_key(&list);
        let handover = Arc::new(LeaseHandover::default());
        let queued = QueuedRequest::new(&handover, generation, request);
        lists.insert(list.clone(), number, queued);
        let place = QueuePlace {
            queue: Arc::clone(self),
            handover,
            number,
            list,
        };
        // Behind others there is nothing to be had, or they would have it.
        if is_first {
            self.serve_list(&mut lists, &place.list, &mut woken);
        } else if let Some(lease) = generation.pick_beyond(request, &self.cursor, &mut lists.random)
            && let Some(queued) = lists.remove(number, &place.list)
        {
            self.complete(&queued, Ok(lease), &mut woken);
        }
        let is_refused = length >= limit && lists.remove(number, &place.list).is_some();
        if is_refused {
            self.count.sub(1);
        }
        drop(lists);
        debug_assert!(woken.is_empty(), "only the caller was served");
        let reason = if is_refused {
            Some(Reason::ConnectionLimitReached)
        } else {
            place.refusal()
        };
        reason.map_or(Ok(place), Err)
    }

    /// Ends the wait of a request that was taken out of its list.
    fn complete(
        &self,
        queued: &QueuedRequest,
        result: Result<BackendLease, Reason>,
        woken: &mut QueueWakers,
    ) {
        self.count.sub(1);
        queued.handover.complete(result, woken);
    }

    /// Removes a request that waits no longer.
    fn leave(&self, number: u64, list: &ListName) {
        let mut woken = QueueWakers::new();
        let mut lists = self.lock();
        let removed = lists.remove(number, list);
        if removed.is_some() {
            self.count.sub(1);
        }
        // The next may use what this one could not.
        if let Some(generation) = lists.serving()
            && lists.first_is_choosy(&generation.eligible.load())
        {
            self.serve_list(&mut lists, &None, &mut woken);
        }
        drop(lists);
        woken.into_iter().for_each(Waker::wake);
        // Its generation may be the last of its kind: it goes without the lock.
        drop(removed);
    }

    /// Serves the first of a list as long as there is a backend for it.
    fn serve_list(&self, lists: &mut WaitLists, list: &ListName, woken: &mut QueueWakers) {
        let Some(generation) = lists.serving() else {
            return;
        };
        match list {
            None => while self.serve_common(lists, &generation, woken) {},
            Some(address) => {
                let at = |one: &&Arc<Backend>| one.state.address == *address;
                if let Some(own) = generation.backends().iter().find(at) {
                    while self.serve_own(lists, &generation, (list, own), woken) {}
                }
            }
        }
    }

    /// Serves or refuses the first of those who take any backend; false if it has to wait on.
    fn serve_common(
        &self,
        lists: &mut WaitLists,
        generation: &PoolGeneration,
        woken: &mut QueueWakers,
    ) -> bool {
        let WaitLists {
            lists: all, random, ..
        } = &mut *lists;
        let Some(queued) = all.get(&None).and_then(|list| list.values().next()) else {
            return false;
        };
        let attempted = queued.positions_in(generation, &queued.attempted);
        let busy = queued.positions_in(generation, &queued.busy);
        let request = PickRequest {
            attempted: &attempted,
            busy: &busy,
            key: queued.key,
            is_repeatable: queued.is_repeatable,
            ..PickRequest::first(clock::now())
        };
        match generation.pick(&request, &self.cursor, random) {
            Err(Reason::ConnectionLimitReached) => false,
            result => {
                self.complete_first(lists, &None, result, woken);
                true
            }
        }
    }

    /// Serves the first of those who wait for `own` alone; false if it has to wait on.
    fn serve_own(
        &self,
        lists: &mut WaitLists,
        generation: &PoolGeneration,
        (list, own): (&ListName, &Arc<Backend>),
        woken: &mut QueueWakers,
    ) -> bool {
        if !lists.lists.contains_key(list) || !own.state.claim(own.limit) {
            return false;
        }
        let lease = pick::claimed(own, &generation.eligible.load());
        self.complete_first(lists, list, Ok(lease), woken);
        true
    }

    /// Ends the wait of the first of a list.
    fn complete_first(
        &self,
        lists: &mut WaitLists,
        list: &ListName,
        result: Result<BackendLease, Reason>,
        woken: &mut QueueWakers,
    ) {
        let first = lists.pop_first(list);
        debug_assert!(first.is_some(), "it was there under this lock");
        if let Some(queued) = first {
            self.complete(&queued, result, woken);
        }
    }

    /// Length and longest wait.
    fn status(&self, now: Instant) -> QueueStatus {
        let lists = self.lock();
        let heads = lists.lists.values().filter_map(|list| list.values().next());
        let first = heads.map(|queued| queued.since).min();
        QueueStatus {
            length: self.count.get(),
            longest_wait: first
                .map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, WaitLists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServeWaiting for BackendQueue {
    fn serve_released(&self, index: usize, address: &BackendAddress) {
        let mut woken = QueueWakers::new();
        let mut lists = self.lock();
        if let Some(generation) = lists.serving() {
            let is_choosy = |lists: &WaitLists| lists.first_is_choosy(&generation.eligible.load());
            if !is_choosy(&lists) {
                self.serve_slot(&mut lists, &generation, (index, address), &mut woken);
            }
            if is_choosy(&lists) {
                self.serve_all(&mut lists, &generation, &mut woken);
            }
        }
        drop(lists);
        woken.into_iter().for_each(Waker::wake);
    }

    fn serve_refreshed(&self) {
        let mut woken = QueueWakers::new();
        let mut lists = self.lock();
        if let Some(generation) = lists.serving() {
            self.serve_all(&mut lists, &generation, &mut woken);
        }
        drop(lists);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl BackendQueue {
    /// Gives the slot that got free on one backend to the first who can use it.
    fn serve_slot(
        &self,
        lists: &mut WaitLists,
        generation: &PoolGeneration,
        (index, address): (usize, &BackendAddress),
        woken: &mut QueueWakers,
    ) {
        let is_it = |one: &&Arc<Backend>| one.state.address == *address;
        let all = generation.backends();
        let same_place = all.get(index).filter(is_it);
        let Some(backend) = same_place.or_else(|| all.iter().find(is_it)) else {
            return;
        };
        let eligible = generation.eligible.load();
        let common = lists.first_number(&None);
        // Most pools have no clients with a backend of their own.
        let has_own_lists = lists.lists.len() > usize::from(common.is_some());
        let own_list = has_own_lists.then(|| Some(address.clone()));
        let own = own_list.as_ref().and_then(|list| lists.first_number(list));
        let serves_own = |lists: &mut WaitLists, woken: &mut QueueWakers| {
            let list = own_list.as_ref().filter(|_| own.is_some());
            list.is_some_and(|list| {
                generation.serves_clients_of(backend, &eligible)
                    && self.serve_own(lists, generation, (list, backend), woken)
            })
        };
        let is_own_older = own.is_some_and(|own| common.is_none_or(|common| own < common));
        if is_own_older && serves_own(lists, woken) {
            return;
        }
        let is_candidate = eligible.candidate(backend.index).is_some();
        if is_candidate && self.serve_common_by(lists, generation, backend, woken) {
            return;
        }
        if !is_own_older {
            serves_own(lists, woken);
        }
    }

    /// Serves the first of those who take any backend, by `backend` if that is as good as any.
    fn serve_common_by(
        &self,
        lists: &mut WaitLists,
        generation: &PoolGeneration,
        backend: &Arc<Backend>,
        woken: &mut QueueWakers,
    ) -> bool {
        let first = lists.lists.get(&None).and_then(|list| list.values().next());
        match first {
            None => false,
            // All others are full: there is nothing to choose.
            Some(queued) if queued.attempted.is_empty() && queued.busy.is_empty() => {
                self.serve_own(lists, generation, (&None, backend), woken)
            }
            Some(_) => self.serve_common(lists, generation, woken),
        }
    }

    /// Gives each request that waits a backend, in the order of arrival, as long as there is one.
    fn serve_all(
        &self,
        lists: &mut WaitLists,
        generation: &PoolGeneration,
        woken: &mut QueueWakers,
    ) {
        let eligible = generation.eligible.load();
        let own: BTreeMap<&BackendAddress, &Arc<Backend>> = if lists.has_only_common() {
            BTreeMap::new()
        } else {
            let usable = generation.backends().iter();
            let usable = usable.filter(|one| generation.serves_clients_of(one, &eligible));
            usable.map(|one| (&one.state.address, one)).collect()
        };
        lists.join_common(|address| !own.contains_key(address));
        // The first of each list; a list leaves when its first has to wait on.
        let mut heads: BTreeSet<(u64, ListName)> = lists.heads();
        while let Some((_, list)) = heads.pop_first() {
            let is_served = match &list {
                None => self.serve_common(lists, generation, woken),
                Some(address) => own
                    .get(address)
                    .is_some_and(|own| self.serve_own(lists, generation, (&list, own), woken)),
            };
            if is_served && let Some(next) = lists.first_number(&list) {
                heads.insert((next, list));
            }
        }
    }
}

impl WaitLists {
    /// The generation that serves: the one in force, or while there is none that of the first who
    /// waits.
    fn serving(&self) -> Option<Arc<PoolGeneration>> {
        self.generation.upgrade().or_else(|| {
            let first = self.lists.values().next()?.values().next()?;
            Some(Arc::clone(&first.generation))
        })
    }

    fn insert(&mut self, list: ListName, number: u64, queued: QueuedRequest) {
        self.lists.entry(list).or_default().insert(number, queued);
    }

    /// Takes a request out of `list`, or of the common list if it has moved there.
    fn remove(&mut self, number: u64, list: &ListName) -> Option<QueuedRequest> {
        [list, &None].into_iter().find_map(|name| {
            let removed = self.lists.get_mut(name)?.remove(&number);
            self.forget_if_empty(name);
            removed
        })
    }

    fn pop_first(&mut self, name: &ListName) -> Option<QueuedRequest> {
        let (_, queued) = self.lists.get_mut(name)?.pop_first()?;
        self.forget_if_empty(name);
        Some(queued)
    }

    fn forget_if_empty(&mut self, name: &ListName) {
        if self.lists.get(name).is_some_and(BTreeMap::is_empty) {
            self.lists.remove(name);
        }
    }

    fn first_number(&self, name: &ListName) -> Option<u64> {
        self.lists.get(name)?.keys().next().copied()
    }

    /// True if the first of those who take any backend may be served by another one than those that
    /// serve all: by the next tier, or as a trial.
    fn first_is_choosy(&self, eligible: &EligibleSet) -> bool {
        let first = self.lists.get(&None).and_then(|list| list.values().next());
        first.is_some_and(|queued| {
            let mut trials = eligible.trials.iter();
            !queued.attempted.is_empty()
                || trials.any(|one| one.backend.state.trial.phase() == TrialPhase::Due)
        })
    }

    fn has_only_common(&self) -> bool {
        self.lists.keys().all(Option::is_none)
    }

    /// The first number of each list, with the list.
    fn heads(&self) -> BTreeSet<(u64, ListName)> {
        let firsts = self.lists.iter();
        firsts
            .filter_map(|(name, list)| Some((*list.keys().next()?, name.clone())))
            .collect()
    }

    /// Moves those who wait for a backend that `is_out` to the common list, by their age.
    fn join_common(&mut self, is_out: impl Fn(&BackendAddress) -> bool) {
        let names = self.lists.keys();
        let names = names.filter(|name| name.as_ref().is_some_and(&is_out));
        let names: Vec<_> = names.cloned().collect();
        for name in names {
            if let Some(mut list) = self.lists.remove(&name) {
                self.lists.entry(None).or_default().append(&mut list);
            }
        }
    }
}

impl QueuedRequest {
    fn new(
        handover: &Arc<LeaseHandover>,
        generation: &Arc<PoolGeneration>,
        request: &PickRequest<'_>,
    ) -> Self {
        Self {
            handover: Arc::clone(handover),
            since: request.now,
            generation: Arc::clone(generation),
            attempted: request.attempted.into(),
            busy: request.busy.into(),
            key: request.key,
            is_repeatable: request.is_repeatable,
        }
    }

    /// Positions in `serving` of its backends at `positions`, without those that left.
    fn positions_in(&self, serving: &PoolGeneration, positions: &[usize]) -> Vec<usize> {
        if std::ptr::eq(serving, &raw const *self.generation) {
            return positions.to_vec();
        }
        let known = positions
            .iter()
            .filter_map(|at| self.generation.backends().get(*at));
        known
            .filter_map(|known| {
                let mut all = serving.backends().iter();
                all.position(|other| Arc::ptr_eq(&other.state, &known.state))
            })
            .collect()
    }
}

/// The list for `request`: that of the client's own backend if it may be used.
fn own_list(generation: &PoolGeneration, request: &PickRequest<'_>) -> ListName {
    let eligible = generation.eligible.load();
    let own = generation.own_backend(request, &eligible)?;
    Some(own.state.address.clone())
}
