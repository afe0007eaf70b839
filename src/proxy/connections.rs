//! The client connections of one worker, so that idle ones can be told to close: at the drain, and
//! when connections or descriptors are short.
//!
//! Must not know protocols: a connection says itself when it is idle, and closes itself.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Waker},
};

use crate::base::socket_key::SocketKey;

/// Connections scanned for an idle one of a particular listener, per call: the accept path must not
/// walk a table of 100,000.
const MAX_SCANNED: usize = 1_024;

/// The part of a connection's state that others change: the request to close.
#[derive(Debug)]
pub struct CloseSignal {
    socket: Rc<SocketKey>,
    /// Waiting for a request of which no byte was received.
    idle: Cell<bool>,
    /// To be closed as soon as the connection is idle.
    close: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl CloseSignal {
    /// Wakes the task of `cx` when the connection is told to close; true if it was told already.
    /// For connections that carry requests at the time, as those of HTTP/2: they begin a GOAWAY.
    pub fn listen(&self, cx: &Context<'_>) -> bool {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
        self.close.get()
    }

    /// True if the connection has to close after the exchange under way.
    pub fn should_close(&self) -> bool {
        self.close.get()
    }

    fn tell_to_close(&self) {
        self.close.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// All client connections of a worker.
#[derive(Debug, Default)]
pub struct ClientConnections {
    entries: RefCell<Vec<Option<Rc<CloseSignal>>>>,
    free: RefCell<Vec<usize>>,
    /// Index at which the next search for an idle one begins, as in the clock algorithm: each
    /// connection is asked in turn.
    clock_hand: Cell<usize>,
    count: Cell<usize>,
    /// Number of idle connections.
    idle: Cell<usize>,
    draining: Cell<bool>,
}

/// A connection's entry in the table; removed when dropped.
#[derive(Debug)]
pub struct ConnectionHandle {
    /// `None` for a child, which is not counted.
    table: Option<(Rc<ClientConnections>, usize)>,
    /// Shared by the connection and its children.
    pub close_signal: Rc<CloseSignal>,
}

impl ClientConnections {
    /// Adds a connection that was accepted on `socket`.
    pub fn enter(self: &Rc<Self>, socket: Rc<SocketKey>) -> ConnectionHandle {
        let close_signal = Rc::new(CloseSignal {
            socket,
            idle: Cell::new(false),
            close: Cell::new(self.draining.get()),
            waker: RefCell::new(None),
        });
        let mut entries = self.entries.borrow_mut();
        let place = self.free.borrow_mut().pop().unwrap_or(entries.len());
        if place == entries.len() {
            entries.push(None);
        }
        debug_assert!(place < entries.len(), "free places are within the table");
        if let Some(entry) = entries.get_mut(place) {
            *entry = Some(Rc::clone(&close_signal));
        }
        self.count.set(self.count.get() + 1);
        ConnectionHandle {
            table: Some((Rc::clone(self), place)),
            close_signal,
        }
    }

    /// Number of connections.
    pub fn count(&self) -> usize {
        self.count.get()
    }

    /// Tells one idle connection to close; false if none is idle.
    pub fn shed_one(&self) -> bool {
        self.shed_one_of(|_| true, usize::MAX)
    }

    /// As [`ClientConnections::shed_one`], of those accepted on one of `sockets`. Scans a part of a
    /// large table only; the next call goes on from there.
    pub fn shed_one_on(&self, sockets: &[SocketKey]) -> bool {
        self.shed_one_of(
            |close_signal| sockets.contains(&close_signal.socket),
            MAX_SCANNED,
        )
    }

    fn shed_one_of(&self, may: impl Fn(&CloseSignal) -> bool, most: usize) -> bool {
        // Under a flood without idle connections a refusal must stay cheap.
        if self.idle.get() == 0 {
            return false;
        }
        let entries = self.entries.borrow();
        let start = self.clock_hand.get();
        let looks = entries.len().min(most);
        for step in 0..looks {
            let place = (start + step) % entries.len();
            let Some(Some(close_signal)) = entries.get(place) else {
                continue;
            };
            if close_signal.idle.get() && !close_signal.close.get() && may(close_signal) {
                self.clock_hand.set(place + 1);
                close_signal.tell_to_close();
                return true;
            }
        }
        self.clock_hand.set((start + looks) % entries.len());
        false
    }

    /// Tells all connections accepted on `socket` to close as soon as they are idle.
    pub fn drain_socket(&self, socket: &SocketKey) {
        for close_signal in self.entries.borrow().iter().flatten() {
            if *close_signal.socket == *socket {
                close_signal.tell_to_close();
            }
        }
    }

    /// Tells all connections, also future ones, to close as soon as they are idle.
    pub fn drain(&self) {
        self.draining.set(true);
        for close_signal in self.entries.borrow().iter().flatten() {
            close_signal.tell_to_close();
        }
    }
}

impl ConnectionHandle {
    /// A handle for a part of this connection, such as an HTTP/2 stream: it sees the same signal
    /// and is not counted.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            table: None,
            close_signal: Rc::clone(&self.close_signal),
        }
    }

    /// Marks the connection as idle; true if it has to close instead.
    pub fn wait(&self, cx: &Context<'_>) -> bool {
        if let Some((table, _)) = &self.table
            && !self.close_signal.idle.replace(true)
        {
            table.idle.set(table.idle.get() + 1);
        }
        self.close_signal.listen(cx)
    }

    /// Marks the connection as busy: a request has begun.
    pub fn busy(&self) {
        if let Some((table, _)) = &self.table
            && self.close_signal.idle.replace(false)
        {
            table.idle.set(table.idle.get() - 1);
        }
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        self.busy();
        let Some((table, place)) = &self.table else {
            return;
        };
        if let Some(entry) = table.entries.borrow_mut().get_mut(*place) {
            *entry = None;
        }
        table.free.borrow_mut().push(*place);
        table.count.set(table.count.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> Rc<SocketKey> {
        Rc::new(SocketKey::tcp("127.0.0.1:80".parse().unwrap()))
    }

    fn wait(entry: &ConnectionHandle) -> bool {
        entry.wait(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn only_idle_connections_are_shed_and_each_once() {
        let table = Rc::new(ClientConnections::default());
        let (first, second, third) = (
            table.enter(socket()),
            table.enter(socket()),
            table.enter(socket()),
        );
        assert!(!table.shed_one(), "none is idle");
        assert!(!wait(&first) && !wait(&third));
        assert!(table.shed_one() && table.shed_one() && !table.shed_one());
        assert!(first.close_signal.should_close() && !second.close_signal.should_close());
        drop(second);
        assert_eq!(table.count(), 2);
        let (_, place) = table.enter(socket()).table.take().unwrap();
        assert_eq!(place, 1, "free places are reused");
    }

    #[test]
    fn a_child_sees_the_signal_of_its_connection_and_is_not_counted() {
        let table = Rc::new(ClientConnections::default());
        let whole = table.enter(socket());
        let part = whole.child();
        assert_eq!(table.count(), 1);
        table.drain();
        assert!(part.close_signal.should_close());
        drop(part);
        assert_eq!(table.count(), 1);
    }

    #[test]
    fn one_listener_sheds_its_own_connections_and_scans_a_part_of_the_table_at_a_time() {
        let table = Rc::new(ClientConnections::default());
        let (own, other) = (SocketKey::tcp("127.0.0.1:81".parse().unwrap()), socket());
        let others: Vec<_> = (0..MAX_SCANNED)
            .map(|_| table.enter(Rc::clone(&other)))
            .collect();
        let mine = table.enter(Rc::new(SocketKey::tcp("127.0.0.1:81".parse().unwrap())));
        assert!(!others.iter().any(wait) && !wait(&mine));
        let own = [own];
        assert!(!table.shed_one_on(&own), "not among the first");
        assert!(table.shed_one_on(&own) && mine.close_signal.should_close());
        assert!(!others.iter().any(|one| one.close_signal.should_close()));
        mine.busy();
        drop(others);
        assert_eq!(table.idle.get(), 0);
        assert!(!table.shed_one());
    }

    #[test]
    fn a_drain_also_closes_later_connections() {
        let table = Rc::new(ClientConnections::default());
        let before = table.enter(socket());
        table.drain();
        assert!(before.close_signal.should_close() && wait(&table.enter(socket())));
    }
}
