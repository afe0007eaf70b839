//! Readiness of sockets: one epoll instance for each thread, which the thread's runtime watches.
//!
//! A socket is registered when a task first waits for it, edge-triggered. What the events said is
//! kept in a slot of the thread until an operation has used it up. Nothing is shared
//! with another thread, so there is no lock, a socket needs no memory of its own, and the kernel
//! forgets it when it is closed.
//!
//! The sockets of tokio cannot be used for that: each takes an allocation, a lock for each wait and
//! a system call at its end. Must not know what is read or written.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, Event, EventData, EventFlags},
};
use slab::Slab;
use tokio::{
    io::unix::AsyncFd,
    task::{coop, yield_now},
};

use super::sys;

/// Most events taken from the kernel at a time.
const MAX_EVENTS: usize = 512;

/// Events of every registered socket.
const READ_EVENTS: EventFlags = EventFlags::IN
    .union(EventFlags::PRI)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);
/// Events of a socket that has had to wait for space: most never do.
const ALL_EVENTS: EventFlags = READ_EVENTS.union(EventFlags::OUT);

/// Condition that an operation on a socket waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketWait {
    /// Data, the end of the peer's direction, or an error; on a listening socket a connection.
    Read,
    /// Space for data, or an error.
    Write,
    /// The failure of the connection; on a unix socket also that the peer has closed.
    Failure { is_unix: bool },
}

impl SocketWait {
    /// Events whose effect an operation uses up. All others stay: an end, a failure.
    const fn passing(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN,
            Self::Write => EventFlags::OUT,
            Self::Failure { .. } => EventFlags::empty(),
        }
    }

    /// Events that end the wait.
    const fn events(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN
                .union(EventFlags::RDHUP)
                .union(EventFlags::HUP),
            Self::Write => EventFlags::OUT.union(EventFlags::HUP),
            Self::Failure { is_unix: false } => EventFlags::ERR,
            Self::Failure { is_unix: true } => EventFlags::ERR.union(EventFlags::HUP),
        }
    }
}

/// State of one socket.
#[derive(Debug)]
struct SocketSlot {
    /// Number of the socket: an event of an earlier one in this slot must not be taken for its own.
    number: u32,
    /// Events of the socket, less those whose effect was used up.
    seen: EventFlags,
    /// Events that the kernel reports; none before the first wait.
    watched: EventFlags,
    /// The tasks that wait, one for each kind of [`SocketWait`].
    reader: Option<Waker>,
    writer: Option<Waker>,
    watcher: Option<Waker>,
}

impl SocketSlot {
    const fn new(number: u32) -> Self {
        Self {
            number,
            seen: EventFlags::empty(),
            watched: EventFlags::empty(),
            reader: None,
            writer: None,
            watcher: None,
        }
    }

    fn waker(&mut self, wait: SocketWait) -> &mut Option<Waker> {
        match wait {
            SocketWait::Read => &mut self.reader,
            SocketWait::Write => &mut self.writer,
            SocketWait::Failure { .. } => &mut self.watcher,
        }
    }

    /// Notes events, and gives the tasks that they wake.
    fn note(&mut self, mut events: EventFlags) -> [Option<Waker>; 3] {
        if events.contains(EventFlags::ERR) {
            // Either operation finds the error.
            events |= EventFlags::IN | EventFlags::OUT;
        }
        if events.contains(EventFlags::PRI) {
            events |= EventFlags::IN;
        }
        self.seen |= events;
        let mut woken = |wait: SocketWait| {
            let is_woken = events.intersects(wait.events());
            self.waker(wait).take_if(|_| is_woken)
        };
        [
            woken(SocketWait::Read),
            woken(SocketWait::Write),
            woken(SocketWait::Failure { is_unix: true }),
        ]
    }
}

/// The sockets of one thread.
struct SocketDriver {
    epoll: OwnedFd,
    slots: RefCell<Slab<SocketSlot>>,
    events: RefCell<Vec<Event>>,
    last_number: Cell<u32>,
}

thread_local! {
    /// The driver of the thread's runtime, from its first socket on. A thread has one runtime at a
    /// time.
    static CURRENT: RefCell<Option<Rc<SocketDriver>>> = const { RefCell::new(None) };
}

impl fmt::Debug for SocketDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketDriver").finish_non_exhaustive()
    }
}

impl SocketDriver {
    /// Returns the driver of the calling thread's runtime.
    fn current() -> io::Result<Rc<Self>> {
        if let Some(driver) = CURRENT.with_borrow(Clone::clone) {
            return Ok(driver);
        }
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let watched = sys::watch_readable(epoll.try_clone()?)?;
        let driver = Rc::new(Self {
            epoll,
            slots: RefCell::default(),
            events: RefCell::new(Vec::with_capacity(MAX_EVENTS)),
            last_number: Cell::new(0),
        });
        CURRENT.set(Some(Rc::clone(&driver)));
        // Ends with the runtime, whose sockets are gone by then or of no use.
        drop(tokio::spawn(run(watched, ForgetOnDrop)));
        Ok(driver)
    }

    /// Takes events from the kernel and wakes the tasks that wait for them; returns their number.
    fn take_events(&self) -> usize {
        let mut events = self.events.borrow_mut();
        events.clear();
        let no_wait = rustix::time::Timespec::default();
        // Fails only if it is interrupted: then the runtime still sees the descriptor as readable.
        if epoll::wait(&self.epoll, spare_capacity(&mut *events), Some(&no_wait)).is_err() {
            return MAX_EVENTS;
        }
        for event in events.iter() {
            let (flags, data) = (event.flags, event.data.u64());
            let woken = {
                let mut slots = self.slots.borrow_mut();
                let slot = slots.get_mut(data as u32 as usize);
                let own = slot.filter(|slot| slot.number == (data >> 32) as u32);
                own.map(|slot| slot.note(flags))
            };
            // A waker may drop what owns a socket, and so need the slots: they are not borrowed.
            woken.into_iter().flatten().flatten().for_each(Waker::wake);
        }
        events.len()
    }
}

/// Takes events for the sockets of the thread, without waiting, and wakes the tasks that wait for
/// them; returns their number. The runtime does that by itself: this is for tests that poll without
/// one, or must not let it wait.
pub fn take_events() -> usize {
    CURRENT.with_borrow(|driver| driver.as_deref().map_or(0, SocketDriver::take_events))
}

/// Drives the sockets of the thread until its runtime ends.
async fn run(epoll: AsyncFd<OwnedFd>, end: ForgetOnDrop) {
    let _end = end;
    loop {
        let Ok(mut events) = epoll.readable().await else {
            return;
        };
        if take_events() < MAX_EVENTS {
            events.clear_ready();
        } else {
            // The tasks that were woken have their turn before more are.
            yield_now().await;
        }
    }
}

/// Ends the driver of the thread: a later runtime makes its own.
struct ForgetOnDrop;

impl Drop for ForgetOnDrop {
    fn drop(&mut self) {
        // `try_with`: the thread may be at its end.
        let _ = CURRENT.try_with(RefCell::take);
    }
}

/// A socket without waiting, and what is known of its readiness. Belongs to its thread.
#[derive(Debug)]
pub struct DrivenSocket {
    descriptor: OwnedFd,
    driver: Rc<SocketDriver>,
    slot: u32,
    /// The kernel must be told of the end: closing this descriptor does not close the socket.
    is_shared: bool,
}

impl DrivenSocket {
    /// A socket that is being connected, whose only descriptor this is.
    pub(super) fn connecting(descriptor: OwnedFd) -> io::Result<Self> {
        Self::in_slot(descriptor, false)
    }

    /// A connected socket, whose only descriptor this is: it takes bytes without an event.
    pub(super) fn connected(descriptor: OwnedFd) -> io::Result<Self> {
        let socket = Self::connecting(descriptor)?;
        socket.assume_ready(SocketWait::Write);
        Ok(socket)
    }

    /// A socket that has other descriptors, too.
    pub(super) fn shared(descriptor: OwnedFd) -> io::Result<Self> {
        Self::in_slot(descriptor, true)
    }

    fn in_slot(descriptor: OwnedFd, is_shared: bool) -> io::Result<Self> {
        let driver = SocketDriver::current()?;
        let number = driver.last_number.get().wrapping_add(1);
        driver.last_number.set(number);
        let slot = driver.slots.borrow_mut().insert(SocketSlot::new(number)) as u32;
        Ok(Self {
            descriptor,
            driver,
            slot,
            is_shared,
        })
    }

    /// Takes the socket for ready until an operation finds that it is not: saves the wait for the
    /// first event.
    pub(super) fn assume_ready(&self, wait: SocketWait) {
        self.with_slot(|slot| slot.seen |= wait.passing());
    }

    fn with_slot<T>(&self, use_it: impl FnOnce(&mut SocketSlot) -> T) -> Option<T> {
        let mut slots = self.driver.slots.borrow_mut();
        let slot = slots.get_mut(self.slot as usize);
        debug_assert!(slot.is_some(), "a socket has a slot until it is dropped");
        slot.map(use_it)
    }

    /// Ready when `wait` is over. Of the tasks that wait for the same, the last one is woken.
    ///
    /// # Errors
    /// The kernel has no memory for one more socket to watch.
    pub(super) fn poll_ready(
        &self,
        cx: &mut Context<'_>,
        wait: SocketWait,
    ) -> Poll<io::Result<()>> {
        let budget = ready!(coop::poll_proceed(cx));
        let is_ready = self.with_slot(|slot| {
            if slot.seen.intersects(wait.events()) {
                return Ok(true);
            }
            let waiting = slot.waker(wait);
            if !waiting
                .as_ref()
                .is_some_and(|one| one.will_wake(cx.waker()))
            {
                *waiting = Some(cx.waker().clone());
            }
            self.watch(slot, wait).map(|()| false)
        });
        if matches!(is_ready, Some(Ok(false))) {
            return Poll::Pending;
        }
        budget.made_progress();
        Poll::Ready(is_ready.unwrap_or(Ok(true)).map(drop))
    }

    /// Has the kernel report what `wait` waits for, if it does not do so yet.
    fn watch(&self, slot: &mut SocketSlot, wait: SocketWait) -> io::Result<()> {
        let events = if wait == SocketWait::Write {
            ALL_EVENTS
        } else {
            READ_EVENTS
        };
        if slot.watched.contains(events) {
            return Ok(());
        }
        let data = EventData::new_u64(u64::from(slot.number) << 32 | u64::from(self.slot));
        let epoll = &self.driver.epoll;
        if slot.watched.is_empty() {
            epoll::add(epoll, &self.descriptor, data, events)?;
        } else {
            epoll::modify(epoll, &self.descriptor, data, events)?;
        }
        slot.watched = events;
        Ok(())
    }

    /// Runs `operation` if the socket is ready as far as is known. `WouldBlock` of the operation
    /// makes it unready until the next event.
    pub(super) fn try_io<T>(
        &self,
        wait: SocketWait,
        operation: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let is_ready = self.with_slot(|slot| slot.seen.intersects(wait.events()));
        if is_ready == Some(false) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let result = operation(self.descriptor.as_fd());
        if matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.set_unready(wait);
        }
        result
    }

    /// Notes that an operation has used up all that was there, or all space.
    pub(super) fn set_unready(&self, wait: SocketWait) {
        self.with_slot(|slot| slot.seen.remove(wait.passing()));
    }

    /// True if a read that did not fill its buffer has taken all that there was: reads also stop at
    /// urgent data (tcp(7)).
    pub(super) fn is_drained_by_short_read(&self) -> bool {
        self.with_slot(|slot| !slot.seen.contains(EventFlags::PRI)) == Some(true)
    }

    /// True if everything was read, and the peer has ended its direction.
    pub(super) fn is_at_end(&self) -> bool {
        let has_ended = |seen: EventFlags| {
            seen.intersects(EventFlags::RDHUP | EventFlags::HUP)
                && !seen.intersects(EventFlags::IN | EventFlags::ERR)
        };
        self.with_slot(|slot| has_ended(slot.seen)) == Some(true)
    }
}

impl AsFd for DrivenSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for DrivenSocket {
    fn drop(&mut self) {
        if self.is_shared {
            // Fails if no task has waited for it.
            let _ = epoll::delete(&self.driver.epoll, &self.descriptor);
        }
        let slot = self
            .driver
            .slots
            .borrow_mut()
            .try_remove(self.slot as usize);
        debug_assert!(slot.is_some(), "a socket has a slot until it is dropped");
        // Its wakers are dropped here, where nothing is borrowed.
        drop(slot);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::Write as _,
        os::unix::net::UnixStream,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        task::Wake,
    };

    use rustix::net::{RecvFlags, recv};

    use super::*;

    /// A peer and a socket of ours.
    fn pair() -> (UnixStream, DrivenSocket) {
        let (peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (peer, DrivenSocket::connecting(ours.into()).unwrap())
    }

    #[derive(Default)]
    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[tokio::test]
    async fn each_wait_has_its_own_task() {
        let (mut peer, socket) = pair();
        let waits = [
            SocketWait::Read,
            SocketWait::Write,
            SocketWait::Failure { is_unix: true },
        ];
        let counts = [(); 3].map(|()| Arc::new(WakeCount::default()));
        for (wait, count) in waits.into_iter().zip(&counts) {
            let waker = Arc::clone(count).into();
            let polled = socket.poll_ready(&mut Context::from_waker(&waker), wait);
            assert!(polled.is_pending());
        }
        let woken = || [0, 1, 2].map(|wait| counts[wait].0.load(Relaxed));
        // There is space from the beginning.
        take_events();
        assert_eq!(woken(), [0, 1, 0]);
        peer.write_all(b"x").unwrap();
        take_events();
        assert_eq!(woken(), [1, 1, 0]);
        drop(peer);
        take_events();
        assert_eq!(woken(), [1, 1, 1]);
    }

    #[tokio::test]
    async fn an_event_of_a_closed_socket_is_not_taken_for_one_of_the_next_in_its_slot() {
        let (mut peer, first) = pair();
        let waker = Waker::noop();
        let polled = first.poll_ready(&mut Context::from_waker(waker), SocketWait::Read);
        assert!(polled.is_pending());
        // A second descriptor keeps the socket open, and so its registration.
        let kept = first.as_fd().try_clone_to_owned().unwrap();
        let slot = first.slot;
        peer.write_all(b"x").unwrap();
        drop(first);
        let (_other_peer, next) = pair();
        assert_eq!(next.slot, slot);
        take_events();
        let read = next.try_io(SocketWait::Read, |_| Ok(()));
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(kept);
    }

    #[test]
    fn a_later_runtime_of_the_thread_has_a_driver_of_its_own() {
        for _ in 0..3 {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let (mut peer, socket) = pair();
                let written = tokio::task::spawn_blocking(move || peer.write_all(b"x"));
                let ready = poll_fn(|cx| socket.poll_ready(cx, SocketWait::Read)).await;
                ready.unwrap();
                let mut byte = [0];
                let read = socket.try_io(SocketWait::Read, |socket| {
                    Ok(recv(socket, &mut byte[..], RecvFlags::empty())?)
                });
                assert_eq!((read.unwrap().1, byte), (1, *b"x"));
                written.await.unwrap().unwrap();
            });
        }
    }
}
