//! Counters of the hot path: one slot per thread, one writer each, summed at scrape.
//!
//! A slot is a plain struct of [`Count`]s on cache lines of its own. The writer is found by a thread-local index:
//! 0 is the control thread, 1.. are the workers. Slots are made when first used, so that 10,000 idle backends are cheap.

use std::{
    cell::Cell,
    sync::{
        OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

thread_local! {
    static SLOT: Cell<usize> = const { Cell::new(0) };
}

static SLOTS: AtomicUsize = AtomicUsize::new(1);

/// Says how many threads write counters: the control thread and the workers. Called once, before the first snapshot.
pub fn set_threads(workers: usize) {
    SLOTS.store(workers + 1, Relaxed);
}

/// Gives the calling thread its slot: 0 for the control thread, 1.. for the workers.
pub fn set_slot(slot: usize) {
    SLOT.set(slot);
}

/// One number with one writer: adding is a plain load and store, reading is allowed to everyone.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`; only the slot's own thread may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes `n` away, for gauges whose sum over all slots stays at 0 or more.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// The number now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[repr(align(128))]
#[derive(Debug, Default)]
struct Padded<T>(T);

/// A `T` for each thread.
#[derive(Debug)]
pub struct PerThread<T> {
    slots: Box<[OnceLock<Box<Padded<T>>>]>,
}

impl<T: Default> Default for PerThread<T> {
    fn default() -> Self {
        Self {
            slots: (0..SLOTS.load(Relaxed)).map(|_| OnceLock::new()).collect(),
        }
    }
}

impl<T: Default> PerThread<T> {
    /// The calling thread's own slot.
    #[inline]
    pub fn mine(&self) -> &T {
        let slot = self.slots.get(SLOT.get()).or_else(|| self.slots.first());
        #[expect(
            clippy::expect_used,
            reason = "`Default` makes at least one slot and there is no other constructor"
        )]
        let slot = slot.expect("there is a slot because SLOTS is at least 1");
        &slot.get_or_init(Box::default).0
    }

    /// Every slot that was ever used.
    pub fn each(&self) -> impl Iterator<Item = &T> {
        self.slots
            .iter()
            .filter_map(|slot| slot.get().map(|padded| &padded.0))
    }

    /// The sum over all threads of the count that `field` selects.
    pub fn sum(&self, field: impl Fn(&T) -> &Count) -> u64 {
        self.each()
            .fold(0, |sum, slot| sum.wrapping_add(field(slot).get()))
    }
}
