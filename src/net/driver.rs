//! Readiness of sockets: one epoll instance for each thread, which the thread's runtime watches.
//!
//! A socket is registered when a task first waits for it, edge-triggered. What the events said is
//! kept in a slot of the thread until an operation has used it up. Nothing is shared with another
//! thread, so there is no lock, and the kernel forgets a socket when it is closed.
//!
//! The sockets of tokio cannot be used for that: each takes a lock for each wait and a system call
//! at its end.
//!
//! Small sends wait for the end of the turn, when all tasks that were woken have run, and are then
//! made one after the other. The kernel's code for sending stays in the cache, and the peers' next
//! messages come together: that saves a tenth of the CPU time of a small request, and more with
//! many connections. A sender may take a queued send for one that the kernel has taken: what the
//! kernel did not take is sent as soon as there is space, and an error is that of the next
//! operation. A socket that is closed before all is sent stays until that is done. Must not know
//! what is read or written.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    future::poll_fn,
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, Event, EventData, EventFlags},
    io::Errno,
    net::{SendFlags, Shutdown, send, shutdown, sockopt::set_socket_linger},
};
use slab::Slab;
use tokio::{io::unix::AsyncFd, task::coop};

use super::sys;
use crate::base::clock;

/// Most events taken from the kernel at a time.
const MAX_EVENTS: usize = 512;

/// Longest send that waits for the end of the turn: a longer one costs more to copy.
const MAX_QUEUED_SEND_BYTES: usize = 4 * 1024;
/// Bytes sent since the last read beyond which a socket's sends are made at once: a peer that only
/// reads, and may do so slowly, gets nothing that the kernel has not taken.
const MAX_BYTES_SINCE_READ: usize = 16 * 1024;
/// Bytes that all sockets of a thread may queue before they are sent.
const MAX_QUEUED_BYTES: usize = 256 * 1024;
/// Sockets of a thread that may be closing, with bytes that the kernel has not taken: at one more,
/// the oldest one is reset.
const MAX_CLOSING: usize = 64;
/// Time for the rest of a socket that is closing; looked at when the next one begins to.
const CLOSING_TIMEOUT: Duration = Duration::from_mins(1);

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
    /// The end of the peer's direction, read or not, or the failure of the connection.
    End,
}

impl SocketWait {
    /// Events whose effect an operation uses up. All others stay: an end, a failure.
    const fn passing(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN,
            Self::Write => EventFlags::OUT,
            Self::Failure { .. } | Self::End => EventFlags::empty(),
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
            Self::End => EventFlags::ERR
                .union(EventFlags::RDHUP)
                .union(EventFlags::HUP),
        }
    }
}

/// Names a socket by its slot and its number: what is kept of an earlier one must not be taken
/// for that of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SocketId {
    slot: u32,
    number: u32,
}

impl SocketId {
    /// The id as the kernel keeps it for events.
    fn event_data(self) -> EventData {
        EventData::new_u64(u64::from(self.number) << 32 | u64::from(self.slot))
    }

    fn of_event(data: EventData) -> Self {
        Self {
            slot: data.u64() as u32,
            number: (data.u64() >> 32) as u32,
        }
    }

    /// The slot, if the socket still has it.
    fn find(self, slots: &mut Slab<SocketSlot>) -> Option<&mut SocketSlot> {
        let slot = slots.get_mut(self.slot as usize);
        slot.filter(|slot| slot.number == self.number)
    }
}

/// State of one socket.
#[derive(Debug)]
struct SocketSlot {
    /// [`SocketId::number`].
    number: u32,
    /// Events of the socket, less those whose effect was used up.
    seen: EventFlags,
    /// Events that the kernel reports; none before the first wait.
    watched: EventFlags,
    /// The tasks that wait, one for each kind of [`SocketWait`].
    reader: Option<Waker>,
    writer: Option<Waker>,
    watcher: Option<Waker>,
    descriptor: Rc<OwnedFd>,
    /// True if there are sends of the socket in the queue.
    is_queued: bool,
    /// Bytes sent or queued since the last read; `None` before the first send.
    since_read: Option<usize>,
    /// Queued bytes that the kernel did not take.
    unsent: Vec<u8>,
    /// The error of a queued send.
    send_error: Option<Errno>,
    /// The socket has no owner any more, and is closed when all is sent.
    is_closing: bool,
    /// The socket is to be reset when it is closed.
    is_reset_on_close: bool,
}

impl SocketSlot {
    const fn new(number: u32, descriptor: Rc<OwnedFd>) -> Self {
        Self {
            number,
            descriptor,
            is_queued: false,
            since_read: None,
            unsent: Vec::new(),
            send_error: None,
            is_closing: false,
            is_reset_on_close: false,
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
            SocketWait::Failure { .. } | SocketWait::End => &mut self.watcher,
        }
    }

    /// Notes events, and gives the tasks that they wake.
    fn note(&mut self, mut events: EventFlags) -> WokenTasks {
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
            // All events of either wait.
            woken(SocketWait::End),
        ]
    }

    /// Has the kernel report what `wait` waits for, if it does not do so yet.
    fn watch(&mut self, epoll: &OwnedFd, id: SocketId, wait: SocketWait) -> rustix::io::Result<()> {
        let events = if wait == SocketWait::Write {
            ALL_EVENTS
        } else {
            READ_EVENTS
        };
        if self.watched.contains(events) {
            return Ok(());
        }
        let data = id.event_data();
        if self.watched.is_empty() {
            epoll::add(epoll, &self.descriptor, data, events)?;
        } else {
            epoll::modify(epoll, &self.descriptor, data, events)?;
        }
        self.watched = events;
        Ok(())
    }

    /// Makes a queued send; gives the tasks that a failure wakes.
    fn send(&mut self, epoll: &OwnedFd, id: SocketId, bytes: &[u8]) -> WokenTasks {
        self.is_queued = false;
        if self.send_error.is_some() {
            return WokenTasks::default();
        }
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return WokenTasks::default();
        }
        let rest = match self.send_now(bytes) {
            Ok(count) => bytes.get(count..).unwrap_or_default(),
            Err(error) => return self.fail(error),
        };
        if rest.is_empty() {
            return WokenTasks::default();
        }
        self.unsent.extend_from_slice(rest);
        self.seen.remove(EventFlags::OUT);
        match self.watch(epoll, id, SocketWait::Write) {
            Ok(()) => WokenTasks::default(),
            Err(error) => self.fail(error),
        }
    }

    fn send_now(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        match send(&self.descriptor, bytes, SendFlags::NOSIGNAL) {
            Err(Errno::WOULDBLOCK) => Ok(0),
            sent => sent,
        }
    }

    /// Sends what the kernel has not taken; false if it still does not take all.
    fn send_rest(&mut self) -> rustix::io::Result<bool> {
        if self.unsent.is_empty() {
            return Ok(true);
        }
        let count = self.send_now(&self.unsent)?;
        if count >= self.unsent.len() {
            self.unsent = Vec::new();
            return Ok(true);
        }
        self.unsent.drain(..count);
        self.seen.remove(EventFlags::OUT);
        Ok(false)
    }

    /// As [`SocketSlot::note`], for what the kernel reports: space is for the rest of the queued
    /// sends first.
    fn note_event(&mut self, events: EventFlags) -> WokenTasks {
        if !events.intersects(SocketWait::Write.events()) {
            return self.note(events);
        }
        match self.send_rest() {
            Ok(true) => self.note(events),
            Ok(false) => self.note(events - EventFlags::OUT),
            Err(error) => {
                self.seen |= events;
                self.fail(error)
            }
        }
    }

    /// Notes that a send has failed: what was queued is lost. All tasks are woken.
    fn fail(&mut self, error: Errno) -> WokenTasks {
        self.unsent = Vec::new();
        self.send_error.get_or_insert(error);
        self.note(EventFlags::ERR)
    }

    /// Makes the coming end a reset.
    fn reset(&self) {
        // Fails only on a socket that is closed already.
        let _ = set_socket_linger(&self.descriptor, Some(Duration::ZERO));
    }
}

/// The tasks that events wake.
type WokenTasks = [Option<Waker>; 3];

/// Sends that wait for the end of the turn.
#[derive(Debug, Default)]
struct SendQueue {
    /// The bytes of all of them.
    bytes: Vec<u8>,
    sends: Vec<QueuedSend>,
}

#[derive(Debug)]
struct QueuedSend {
    socket: SocketId,
    /// End of its bytes; they begin at the end of the one before.
    end: usize,
}

/// The sockets of one thread.
struct SocketDriver {
    epoll: OwnedFd,
    slots: RefCell<Slab<SocketSlot>>,
    queue: RefCell<SendQueue>,
    /// The task that ends turns, while it waits.
    turn_task: RefCell<Option<Waker>>,
    /// Sockets that are closing, or were, and since when; the oldest first.
    closing: RefCell<VecDeque<(SocketId, Instant)>>,
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
            queue: RefCell::default(),
            turn_task: RefCell::default(),
            closing: RefCell::default(),
            events: RefCell::new(Vec::with_capacity(MAX_EVENTS)),
            last_number: Cell::new(0),
        });
        CURRENT.set(Some(Rc::clone(&driver)));
        // Ends with the runtime, whose sockets are gone by then or of no use.
        drop(tokio::spawn(run(watched, ForgetOnDrop)));
        Ok(driver)
    }

    /// Queues a send of `parts`.
    fn enqueue(&self, socket: SocketId, parts: &[IoSlice<'_>]) {
        let queue = &mut *self.queue.borrow_mut();
        if queue.sends.is_empty()
            && let Some(task) = self.turn_task.take()
        {
            task.wake();
        }
        for part in parts {
            queue.bytes.extend_from_slice(part);
        }
        let end = queue.bytes.len();
        match queue.sends.last_mut() {
            // Head and body of a message, for example: one send.
            Some(last) if last.socket == socket => last.end = end,
            _ => queue.sends.push(QueuedSend { socket, end }),
        }
    }

    /// Makes the queued sends.
    fn end_turn(&self) {
        if self.queue.borrow().sends.is_empty() {
            return;
        }
        let mut queue = self.queue.take();
        let (mut start, mut woken) = (0, Vec::new());
        let mut slots = self.slots.borrow_mut();
        for QueuedSend { socket, end } in queue.sends.drain(..) {
            let bytes = queue.bytes.get(start..end).unwrap_or_default();
            start = end;
            let slot = socket.find(&mut slots);
            debug_assert!(slot.is_some(), "a socket makes its sends before it ends");
            let tasks = slot.map(|slot| slot.send(&self.epoll, socket, bytes));
            woken.extend(tasks.into_iter().flatten().flatten());
        }
        queue.bytes.clear();
        // Nothing is borrowed when tasks are woken: see `take_events`.
        drop(slots);
        self.queue.replace(queue);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Takes over a socket without an owner, to send the rest and then to close it.
    fn close_when_sent(&self, socket: SocketId) {
        let mut closing = self.closing.borrow_mut();
        let slots = &mut *self.slots.borrow_mut();
        closing.retain(|(socket, _)| socket.find(slots).is_some());
        let now = clock::now();
        closing.push_back((socket, now));
        while let Some((oldest, since)) = closing.front()
            && (closing.len() > MAX_CLOSING || now >= *since + CLOSING_TIMEOUT)
        {
            if let Some(slot) = oldest.find(slots) {
                slot.reset();
                slots.remove(oldest.slot as usize);
            }
            closing.pop_front();
        }
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
            let (flags, socket) = (event.flags, SocketId::of_event(event.data));
            let woken = {
                let mut slots = self.slots.borrow_mut();
                let Some(slot) = socket.find(&mut slots) else {
                    continue;
                };
                let tasks = slot.note_event(flags);
                if slot.is_closing && slot.unsent.is_empty() {
                    let closed = slots.remove(socket.slot as usize);
                    if closed.send_error.is_some() {
                        // A cut must not look like an end.
                        closed.reset();
                    } else {
                        // As with an owner: the last bytes go out before a reset for unread ones
                        // can drop them. Fails only if the connection has.
                        let _ = shutdown(&closed.descriptor, Shutdown::Write);
                    }
                }
                tasks
            };
            // A waker may drop what owns a socket, and so need the slots: they are not borrowed.
            woken.into_iter().flatten().for_each(Waker::wake);
        }
        events.len()
    }
}

impl Drop for SocketDriver {
    fn drop(&mut self) {
        // A cut must not look like an end.
        for (_, slot) in self.slots.get_mut() {
            if slot.is_closing {
                slot.reset();
            }
        }
    }
}

/// Ends the turn: makes the sends that wait for that, takes events for the sockets of the thread
/// without waiting, and wakes the tasks that wait for them; returns the number of events. The
/// runtime does that by itself: this is for tests that poll without one, or must not let it wait.
pub fn end_turn() -> usize {
    CURRENT.with_borrow(|driver| {
        driver.as_deref().map_or(0, |driver| {
            driver.end_turn();
            driver.take_events()
        })
    })
}

/// Drives the sockets of the thread until its runtime ends.
async fn run(epoll: AsyncFd<OwnedFd>, end: ForgetOnDrop) {
    let _end = end;
    poll_fn(|cx| {
        CURRENT.with_borrow(|driver| {
            let Some(driver) = driver.as_deref() else {
                return Poll::Ready(());
            };
            // Set before any task that is woken can queue a send.
            driver.turn_task.replace(Some(cx.waker().clone()));
            driver.end_turn();
            while let Ok(mut events) = ready!(epoll.poll_read_ready(cx)) {
                if driver.take_events() < MAX_EVENTS {
                    events.clear_ready();
                } else {
                    // The tasks that were woken have their turn before more are.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            Poll::Ready(())
        })
    })
    .await;
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
    descriptor: Rc<OwnedFd>,
    driver: Rc<SocketDriver>,
    id: SocketId,
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
        let descriptor = Rc::new(descriptor);
        let slot = SocketSlot::new(number, Rc::clone(&descriptor));
        let slot = driver.slots.borrow_mut().insert(slot) as u32;
        Ok(Self {
            descriptor,
            driver,
            id: SocketId { slot, number },
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
        let slot = self.id.find(&mut slots);
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
            slot.watch(&self.driver.epoll, self.id, wait)?;
            Ok(false)
        });
        if matches!(is_ready, Some(Ok(false))) {
            return Poll::Pending;
        }
        budget.made_progress();
        Poll::Ready(is_ready.unwrap_or(Ok(true)).map(drop))
    }

    /// Runs `operation` if the socket is ready as far as is known. `WouldBlock` of the operation
    /// makes it unready until the next event. The bytes that were queued are sent before others.
    pub(super) fn try_io<T>(
        &self,
        wait: SocketWait,
        operation: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        if wait == SocketWait::Write && !self.send_queued()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let is_ready = self.with_slot(|slot| slot.seen.intersects(wait.events()));
        if is_ready == Some(false) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let result = operation(self.descriptor.as_fd());
        match &result {
            Ok(_) if wait == SocketWait::Read => {
                self.with_slot(|slot| slot.since_read = slot.since_read.map(|_| 0));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.set_unready(wait);
                self.check_end()?;
            }
            _ => {}
        }
        result
    }

    /// Queues a send of `parts`, which are `length` bytes, for the end of the turn; false if it has
    /// to be made at once.
    ///
    /// # Errors
    /// `WouldBlock` if there is no space; the error of an earlier one.
    pub(super) fn try_queue(&self, parts: &[IoSlice<'_>], length: usize) -> io::Result<bool> {
        // Before the slot is looked at: a send of this socket may be among them.
        if self.driver.queue.borrow().bytes.len() + length > MAX_QUEUED_BYTES {
            self.driver.end_turn();
        }
        let is_queued = self.with_slot(|slot| {
            if let Some(error) = slot.send_error {
                return Err(io::Error::from(error));
            }
            if !slot.seen.intersects(SocketWait::Write.events()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            // A first send is made at once: it is often the last one.
            let since_read = slot.since_read.map_or(usize::MAX, |count| count + length);
            if length > MAX_QUEUED_SEND_BYTES || since_read > MAX_BYTES_SINCE_READ {
                return Ok(false);
            }
            slot.since_read = Some(since_read);
            slot.is_queued = true;
            Ok(true)
        });
        let is_queued = is_queued.unwrap_or(Ok(false))?;
        if is_queued {
            self.driver.enqueue(self.id, parts);
        }
        Ok(is_queued)
    }

    /// Sends what was queued; false if the kernel does not take all of it.
    ///
    /// # Errors
    /// That of a queued send.
    pub(super) fn send_queued(&self) -> io::Result<bool> {
        if self.with_slot(|slot| slot.is_queued) == Some(true) {
            self.driver.end_turn();
        }
        // The kernel is asked although no event has told of space: it also knows of a failure.
        let failed = self.with_slot(|slot| slot.send_rest().err().map(|error| slot.fail(error)));
        let woken = failed.flatten().into_iter().flatten().flatten();
        woken.for_each(Waker::wake);
        self.check_sends()?;
        Ok(self.unsent() == 0)
    }

    /// Bytes that were queued and that the kernel has not taken at the end of the turn.
    pub(super) fn unsent(&self) -> usize {
        self.with_slot(|slot| slot.unsent.len()).unwrap_or(0)
    }

    /// Gives the error of a queued send: the kernel tells it only once.
    pub(super) fn check_sends(&self) -> io::Result<()> {
        match self.with_slot(|slot| slot.send_error).flatten() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// As [`DrivenSocket::check_sends`], at the end of what the peer has sent. `EPIPE` is no error
    /// there: the peer had ended its direction, or the connection, and nothing is missing.
    pub(super) fn check_end(&self) -> io::Result<()> {
        match self.check_sends() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            checked => checked,
        }
    }

    /// Makes the coming drop a reset of the connection. No effect on unix sockets, which have none.
    pub(super) fn set_reset_on_close(&self) {
        self.with_slot(|slot| {
            slot.is_reset_on_close = true;
            slot.reset();
        });
    }

    /// Notes that `length` bytes were sent at once.
    pub(super) fn note_sent(&self, length: usize) {
        self.with_slot(|slot| {
            let before = slot.since_read.unwrap_or(0);
            slot.since_read = Some(before.saturating_add(length));
        });
    }

    /// Notes that an operation has used up all that was there, or all space.
    pub(super) fn set_unready(&self, wait: SocketWait) {
        // The error of a send, which no event may follow, must be found by the next read.
        self.with_slot(|slot| {
            if slot.send_error.is_none_or(|error| error == Errno::PIPE) {
                slot.seen.remove(wait.passing());
            }
        });
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
        // Fails if the connection has: then nothing is to be sent.
        let _ = self.send_queued();
        if self.is_shared {
            // Fails if no task has waited for it.
            let _ = epoll::delete(&self.driver.epoll, &self.descriptor);
        }
        let mut slots = self.driver.slots.borrow_mut();
        let slot = self.id.find(&mut slots);
        debug_assert!(slot.is_some(), "a socket has a slot until it is dropped");
        let Some(slot) = slot else { return };
        if slot.send_error.is_some() {
            // A cut must not look like an end.
            slot.reset();
        }
        // Its wakers are dropped where nothing is borrowed.
        let wakers = [&mut slot.reader, &mut slot.writer, &mut slot.watcher].map(Option::take);
        if slot.unsent.is_empty() || slot.is_reset_on_close {
            slots.remove(self.id.slot as usize);
            drop(slots);
        } else {
            slot.is_closing = true;
            drop(slots);
            self.driver.close_when_sent(self.id);
        }
        drop(wakers);
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
