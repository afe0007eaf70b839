//! The client connections of one worker, so that idle ones can be told to close: at drain, and to make room.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Waker},
};

use crate::base::address::BindAddress;

/// What others may tell a connection.
#[derive(Debug)]
pub struct Control {
    bind: Rc<BindAddress>,
    /// Waiting for a request, with nothing of it received.
    idle: Cell<bool>,
    /// To be closed as soon as it is idle.
    close: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Control {
    /// Notes that the connection waits for its next request; true if it should close instead.
    pub fn wait(&self, cx: &Context<'_>) -> bool {
        self.idle.set(true);
        self.listen(cx)
    }

    /// Wakes the task of `cx` when the connection is told to close; true if it was. For a connection that carries requests
    /// and can end without being idle.
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

    /// Notes that a request has begun.
    pub fn busy(&self) {
        self.idle.set(false);
    }

    /// True if the connection should close after the exchange under way.
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

/// All connections of a worker.
#[derive(Debug, Default)]
pub struct Connections {
    entries: RefCell<Vec<Option<Rc<Control>>>>,
    free: RefCell<Vec<usize>>,
    /// Where the search for an idle one goes on, so that it is spread.
    hand: Cell<usize>,
    count: Cell<usize>,
    draining: Cell<bool>,
}

/// A place in the table; given back when dropped.
#[derive(Debug)]
pub struct Entry {
    /// None for a part of a connection.
    table: Option<(Rc<Connections>, usize)>,
    /// The connection's own part.
    pub control: Rc<Control>,
}

impl Connections {
    /// Adds a connection that was accepted on `bind`.
    pub fn enter(self: &Rc<Self>, bind: Rc<BindAddress>) -> Entry {
        let control = Rc::new(Control {
            bind,
            idle: Cell::new(false),
            close: Cell::new(self.draining.get()),
            waker: RefCell::new(None),
        });
        let mut entries = self.entries.borrow_mut();
        let place = self.free.borrow_mut().pop().unwrap_or(entries.len());
        if place == entries.len() {
            entries.push(None);
        }
        if let Some(entry) = entries.get_mut(place) {
            *entry = Some(Rc::clone(&control));
        }
        self.count.set(self.count.get() + 1);
        Entry {
            table: Some((Rc::clone(self), place)),
            control,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.get()
    }

    /// Tells one idle connection to close, to make room; false if none is idle.
    pub fn shed_one(&self) -> bool {
        let entries = self.entries.borrow();
        let start = self.hand.get();
        for step in 0..entries.len() {
            let place = (start + step) % entries.len();
            let Some(Some(control)) = entries.get(place) else {
                continue;
            };
            if control.idle.get() && !control.close.get() {
                self.hand.set(place + 1);
                control.tell_to_close();
                return true;
            }
        }
        false
    }

    /// Tells all connections of an address that is no longer listened on to close as soon as they are idle.
    pub fn drain_bind(&self, bind: &BindAddress) {
        for control in self.entries.borrow().iter().flatten() {
            if *control.bind == *bind {
                control.tell_to_close();
            }
        }
    }

    /// Tells all connections, also those to come, to close as soon as they are idle.
    pub fn drain(&self) {
        self.draining.set(true);
        for control in self.entries.borrow().iter().flatten() {
            control.tell_to_close();
        }
    }
}

impl Entry {
    /// For a part of this connection, such as an HTTP/2 stream: told what the connection is told, and not counted.
    #[must_use]
    pub fn part(&self) -> Self {
        Self {
            table: None,
            control: Rc::clone(&self.control),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
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

    fn bind() -> Rc<BindAddress> {
        Rc::new("127.0.0.1:80".parse().unwrap())
    }

    fn wait(entry: &Entry) -> bool {
        entry.control.wait(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn only_idle_connections_are_shed_and_each_once() {
        let table = Rc::new(Connections::default());
        let (first, second, third) = (
            table.enter(bind()),
            table.enter(bind()),
            table.enter(bind()),
        );
        assert!(!table.shed_one(), "none is idle");
        assert!(!wait(&first) && !wait(&third));
        assert!(table.shed_one() && table.shed_one() && !table.shed_one());
        assert!(first.control.should_close() && !second.control.should_close());
        drop(second);
        assert_eq!(table.count(), 2);
        let (_, place) = table.enter(bind()).table.take().unwrap();
        assert_eq!(place, 1, "places are used again");
    }

    #[test]
    fn a_part_hears_what_its_connection_is_told_and_is_not_counted() {
        let table = Rc::new(Connections::default());
        let whole = table.enter(bind());
        let part = whole.part();
        assert_eq!(table.count(), 1);
        table.drain();
        assert!(part.control.should_close());
        drop(part);
        assert_eq!(table.count(), 1);
    }

    #[test]
    fn a_drain_also_closes_those_to_come() {
        let table = Rc::new(Connections::default());
        let before = table.enter(bind());
        table.drain();
        assert!(before.control.should_close() && wait(&table.enter(bind())));
    }
}
