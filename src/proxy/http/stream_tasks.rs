//! The exchanges of one HTTP/2 connection, run by the task of that connection.
//!
//! Each has a place with a waker of its own, which later streams use again, and memory for its
//! future, which the connections of a thread share: a stream needs neither a task nor an
//! allocation. A connection without streams gives all of it back to the thread. An exchange that
//! was woken is polled once per round, so that the frames of many are written, and read, together.

use std::{
    any::Any,
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Release},
        },
    },
    task::{Context, Poll, Wake, Waker},
};

use tokio::task::coop::unconstrained;

/// Exchanges that have something to do, and the task that polls them.
#[derive(Debug, Default)]
struct ReadyTasks {
    places: Vec<usize>,
    /// `None` while they are being polled: the round ends with a look at `places`.
    driver: Option<Waker>,
}

/// Waker of one place.
#[derive(Debug)]
struct PlaceWaker {
    place: usize,
    /// It is among the ready places already.
    is_ready: AtomicBool,
    ready: Arc<Mutex<ReadyTasks>>,
}

impl Wake for PlaceWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_ready.swap(true, AcqRel) {
            return;
        }
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.places.push(self.place);
        if let Some(driver) = ready.driver.take() {
            drop(ready);
            driver.wake();
        }
    }
}

/// Memory of an exchange.
type TaskMemory<F> = Pin<Box<Option<F>>>;

/// Most free memories that a thread keeps, of about 3.5 KiB each.
const MAX_FREE_MEMORIES: usize = 1024;
/// Most task lists that a thread keeps for connections that get a stream.
const MAX_FREE_LISTS: usize = 256;
/// Places of a task list that is kept.
const MAX_KEPT_PLACES: usize = 32;

thread_local! {
    /// Memory that the thread keeps: [`FreeTasks`], whose type has no name here.
    static FREE_TASKS: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// Memory that no connection of the thread uses at the time.
struct FreeTasks<F> {
    memories: Vec<TaskMemory<F>>,
    #[expect(
        clippy::vec_box,
        reason = "a connection takes the box, and is small without a list"
    )]
    lists: Vec<Box<StreamTasks<F>>>,
}

impl<F: 'static> FreeTasks<F> {
    /// Applies `change` to that of this thread; `None` when the thread is ending.
    fn with<T>(change: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let changed = FREE_TASKS.try_with(|free| {
            let mut free = free.borrow_mut();
            let free = free.get_or_insert_with(|| {
                Box::new(Self {
                    memories: Vec::new(),
                    lists: Vec::new(),
                })
            });
            free.downcast_mut().map(change)
        });
        changed.ok().flatten()
    }
}

/// Place of an exchange.
#[derive(Debug)]
struct TaskPlace<F> {
    /// `None` while the place is free.
    future: Option<TaskMemory<F>>,
    state: Arc<PlaceWaker>,
    waker: Waker,
}

/// The exchanges of a connection.
#[derive(Debug)]
pub(super) struct StreamTasks<F> {
    places: Vec<TaskPlace<F>>,
    free: Vec<usize>,
    ready: Arc<Mutex<ReadyTasks>>,
    /// Places of the current round.
    round: Vec<usize>,
}

impl<F: Future<Output = ()> + 'static> StreamTasks<F> {
    /// Takes an empty list that a connection of the thread has given back, or makes one.
    #[expect(clippy::unnecessary_box_returns, reason = "it is kept in its box")]
    pub(super) fn take() -> Box<Self> {
        let free = FreeTasks::with(|free: &mut FreeTasks<F>| free.lists.pop()).flatten();
        free.unwrap_or_else(|| Box::new(Self::new()))
    }

    /// Gives the list of a connection without streams back.
    pub(super) fn give_back(self: Box<Self>) {
        debug_assert!(self.is_empty(), "exchanges are under way");
        self.begin_poll();
        if self.places.len() <= MAX_KEPT_PLACES {
            FreeTasks::with(|free| {
                if free.lists.len() < MAX_FREE_LISTS {
                    free.lists.push(self);
                }
            });
        }
    }

    fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            ready: Arc::default(),
            round: Vec::new(),
        }
    }

    /// Adds an exchange; it is polled in the next round.
    pub(super) fn spawn(&mut self, future: F) {
        let place = self.free.pop().unwrap_or(self.places.len());
        if place == self.places.len() {
            let state = Arc::new(PlaceWaker {
                place,
                is_ready: AtomicBool::new(false),
                ready: Arc::clone(&self.ready),
            });
            self.places.push(TaskPlace {
                future: None,
                waker: Arc::clone(&state).into(),
                state,
            });
        }
        let free = FreeTasks::with(|free: &mut FreeTasks<F>| free.memories.pop()).flatten();
        let mut memory: TaskMemory<F> = free.unwrap_or_else(|| Box::pin(None));
        memory.as_mut().set(Some(future));
        if let Some(place) = self.places.get_mut(place) {
            place.future = Some(memory);
            place.waker.wake_by_ref();
        }
    }

    /// True if no exchange is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// Notes that the task is being polled: it need not be woken before the next
    /// [`StreamTasks::poll_round`] that finds nothing.
    pub(super) fn begin_poll(&self) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.driver = None;
    }

    /// Polls each exchange that was woken, once; false if there was none. Then the task of `cx` is
    /// woken with the next one.
    pub(super) fn poll_round(&mut self, cx: &Context<'_>) -> bool {
        {
            let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
            if ready.places.is_empty() {
                ready.driver = Some(cx.waker().clone());
                return false;
            }
            self.round.clear();
            self.round.append(&mut ready.places);
        }
        let round = std::mem::take(&mut self.round);
        for place in &round {
            self.poll_place(*place);
        }
        self.round = round;
        true
    }

    fn poll_place(&mut self, place: usize) {
        let Some(TaskPlace {
            future,
            state,
            waker,
        }) = self.places.get_mut(place)
        else {
            return;
        };
        state.is_ready.store(false, Release);
        let Some(memory) = future else { return };
        let Some(pending) = memory.as_mut().as_pin_mut() else {
            return;
        };
        // A round is bounded by what the connection may send and receive, and by one poll of each
        // exchange: it needs no budget of the runtime, which is for the whole connection.
        let mut pending = unconstrained(pending);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            Pin::new(&mut pending).poll(&mut Context::from_waker(waker))
        }));
        // A panic ends this exchange alone; it was logged by the hook.
        if !matches!(polled, Ok(Poll::Pending)) {
            memory.as_mut().set(None);
            if let Some(memory) = future.take() {
                FreeTasks::with(|free| {
                    if free.memories.len() < MAX_FREE_MEMORIES {
                        free.memories.push(memory);
                    }
                });
            }
            self.free.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, rc::Rc};

    use super::*;

    fn context() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[test]
    fn places_are_used_again_and_only_what_was_woken_is_polled() {
        let polls = Rc::new(Cell::new(0));
        let wakers: Rc<Cell<Option<Waker>>> = Rc::default();
        let exchange = |rounds: usize| {
            let (polls, wakers) = (Rc::clone(&polls), Rc::clone(&wakers));
            let mut left = rounds;
            poll_fn(move |cx| {
                polls.set(polls.get() + 1);
                if left == 0 {
                    return Poll::Ready(());
                }
                left -= 1;
                wakers.set(Some(cx.waker().clone()));
                Poll::Pending
            })
        };
        let mut tasks = StreamTasks::new();
        assert!(!tasks.poll_round(&context()) && tasks.is_empty());
        for _ in 0..3 {
            tasks.spawn(exchange(0));
            tasks.spawn(exchange(1));
            assert!(tasks.poll_round(&context()));
            assert!(!tasks.poll_round(&context()), "nothing was woken");
            assert!(!tasks.is_empty());
            let waker = wakers.take().unwrap();
            waker.wake_by_ref();
            waker.wake();
            assert!(tasks.poll_round(&context()));
            assert!(tasks.is_empty());
        }
        assert_eq!((tasks.places.len(), polls.get()), (2, 9));
    }

    #[test]
    fn a_panic_ends_its_own_exchange_alone() {
        let mut tasks = StreamTasks::new();
        for index in 0..2 {
            let mut polled = 0;
            tasks.spawn(poll_fn(move |cx| {
                assert!(index == 1, "the one that fails");
                polled += 1;
                cx.waker().wake_by_ref();
                if polled < 3 {
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            }));
        }
        let mut rounds = 0;
        while !tasks.is_empty() {
            assert!(tasks.poll_round(&context()));
            rounds += 1;
        }
        assert_eq!(rounds, 3);
    }
}
