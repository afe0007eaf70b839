//! The trial of an ejected backend: one request, at most one at a time in the whole process,
//! decides if the backend is back.
//!
//! The slot of a backend is one word, so that a pick claims it without a lock. It is set by the
//! changes of the backend's health; picks, responses and dropped leases move it in between:
//!
//! | phase | set by | next |
//! |---|---|---|
//! | none | no ejection, or one that is not over | due, when the ejection's time is over |
//! | due | health, or a trial without a verdict | running, when a pick claims it |
//! | running | a pick | responding, with the head of a good response |
//! | responding | a response | the verdict ends the ejection or starts the next one |
//!
//! A ticket names the ejection that it was claimed in. A verdict that comes when that ejection has
//! ended or another has begun means nothing.

use std::{
    num::NonZeroU64,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, SeqCst},
    },
};

/// Progress of the trial of an ejected backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialPhase {
    /// Not ejected, or the ejection is not over.
    None,
    /// The next request is the trial.
    Due,
    /// A request is on its way.
    Running,
    /// It has got the head of a good response, and the rest is on its way.
    Responding,
}

impl TrialPhase {
    const fn of(value: u64) -> Self {
        match value & PHASE_MASK {
            1 => Self::Due,
            2 => Self::Running,
            3 => Self::Responding,
            _ => Self::None,
        }
    }

    const fn bits(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Due => 1,
            Self::Running => 2,
            Self::Responding => 3,
        }
    }

    /// True while a request has the trial.
    pub const fn is_claimed(self) -> bool {
        matches!(self, Self::Running | Self::Responding)
    }
}

/// Bits of the phase.
const PHASE_MASK: u64 = 0xff;
/// Mark of a ticket that many requests may have at once.
const SHARED_TICKET: u64 = 0x80;
/// One more trial of the same ejection.
const ONE_TRIAL: u64 = 0x100;
/// Bits of the number of the trial.
const TRIAL_MASK: u64 = 0xffff_ff00;
/// Position of the number of the ejection.
const EJECTION_SHIFT: u32 = 32;

/// State of the trial of one backend.
#[derive(Debug, Default)]
pub(super) struct TrialSlot(AtomicU64);

/// Right of a request to decide about an ejected backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TrialTicket(NonZeroU64);

impl TrialTicket {
    /// True for the only ticket of its kind: it holds the slot.
    pub(super) fn is_exclusive(self) -> bool {
        self.0.get() & SHARED_TICKET == 0
    }
}

impl TrialSlot {
    /// The phase now.
    pub(super) fn phase(&self) -> TrialPhase {
        TrialPhase::of(self.0.load(Acquire))
    }

    /// The whole word, to see later if it is still the same trial.
    pub(super) fn value(&self) -> u64 {
        self.0.load(Acquire)
    }

    /// Follows the health of the backend: number of its last ejection, and if a trial is due.
    ///
    /// Callers hold the lock of the health, so there is one at a time.
    pub(super) fn follow(&self, ejection: u32, is_due: bool) {
        let follow = |value: u64| {
            let is_same = value >> EJECTION_SHIFT == u64::from(ejection);
            let phase = TrialPhase::of(value);
            match (is_same, is_due) {
                (true, true) if phase != TrialPhase::None => None,
                // A request that is on its way keeps the trial: the backend may be back before it.
                (true, false) if phase != TrialPhase::Due => None,
                _ => {
                    let phase = if is_due {
                        TrialPhase::Due
                    } else {
                        TrialPhase::None
                    };
                    let trial = value.wrapping_add(ONE_TRIAL) & TRIAL_MASK;
                    Some(u64::from(ejection) << EJECTION_SHIFT | trial | phase.bits())
                }
            }
        };
        // `Err` is a slot that needs no change.
        let _ = self.0.try_update(AcqRel, Acquire, follow);
    }

    /// Claims a trial that is due.
    pub(super) fn claim(&self) -> Option<TrialTicket> {
        let value = self.0.load(Relaxed);
        if TrialPhase::of(value) != TrialPhase::Due {
            return None;
        }
        let trial = value.wrapping_add(ONE_TRIAL) & TRIAL_MASK;
        let running = value & !(TRIAL_MASK | PHASE_MASK) | trial | TrialPhase::Running.bits();
        let claimed = self.0.compare_exchange(value, running, AcqRel, Relaxed);
        claimed.ok().and(NonZeroU64::new(running)).map(TrialTicket)
    }

    /// A ticket beside others, of which any verdict counts.
    pub(super) fn join(&self) -> Option<TrialTicket> {
        let value = self.0.load(Acquire) & !PHASE_MASK | SHARED_TICKET;
        NonZeroU64::new(value).map(TrialTicket)
    }

    /// Records the head of a good response to the trial.
    pub(super) fn respond(&self, ticket: TrialTicket) {
        let responding = ticket.0.get() & !PHASE_MASK | TrialPhase::Responding.bits();
        let running = ticket.0.get();
        // `Err` is a trial that is no longer the one of the slot, or a shared ticket.
        let _ = self
            .0
            .compare_exchange(running, responding, AcqRel, Relaxed);
    }

    /// Ends the trial without a verdict: the next request is the next trial.
    pub(super) fn give_back(&self, ticket: TrialTicket) {
        if !ticket.is_exclusive() {
            return;
        }
        let ticket = ticket.0.get();
        let give_back = |value: u64| {
            let is_mine =
                value & !PHASE_MASK == ticket & !PHASE_MASK && TrialPhase::of(value).is_claimed();
            is_mine.then_some(value & !PHASE_MASK | TrialPhase::Due.bits())
        };
        // In one order with the release that follows; see `BackendState::release`. `Err` is a trial
        // that is over.
        let _ = self.0.try_update(SeqCst, Acquire, give_back);
    }

    /// Frees the slot of a trial that takes too long, if it still has `value`.
    pub(super) fn free(&self, value: u64) {
        let due = value & !PHASE_MASK | TrialPhase::Due.bits();
        let _ = self.0.compare_exchange(value, due, AcqRel, Relaxed);
    }

    /// True while the ejection that `ticket` was claimed in is the running one.
    pub(super) fn is_of_ejection(&self, ticket: TrialTicket) -> bool {
        self.0.load(Acquire) >> EJECTION_SHIFT == ticket.0.get() >> EJECTION_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// The slot of a backend whose first ejection is over.
    fn due() -> TrialSlot {
        let slot = TrialSlot::default();
        slot.follow(1, false);
        assert_eq!((slot.phase(), slot.claim()), (TrialPhase::None, None));
        slot.follow(1, true);
        slot
    }

    #[test]
    fn one_request_at_a_time_has_the_trial_and_the_next_one_may_have_it_after_it() {
        let slot = due();
        let first = slot.claim().unwrap();
        assert_eq!((slot.phase(), slot.claim()), (TrialPhase::Running, None));
        slot.follow(1, true);
        assert_eq!(
            slot.claim(),
            None,
            "a change of something else frees it not"
        );
        slot.give_back(first);
        let second = slot.claim().unwrap();
        slot.give_back(first);
        slot.respond(first);
        assert_eq!(slot.phase(), TrialPhase::Running, "it is another's trial");
        slot.respond(second);
        assert_eq!(slot.phase(), TrialPhase::Responding);
        slot.give_back(second);
        assert_eq!(slot.phase(), TrialPhase::Due);
        let late = slot.claim().unwrap();
        slot.free(slot.value());
        let next = slot.claim().unwrap();
        slot.give_back(late);
        assert_eq!(slot.phase(), TrialPhase::Running);
        slot.give_back(next);
        assert_eq!(slot.phase(), TrialPhase::Due);
    }

    #[test]
    fn a_ticket_is_of_one_ejection() {
        let slot = due();
        let ticket = slot.claim().unwrap();
        let shared = slot.join().unwrap();
        assert!(slot.is_of_ejection(ticket) && slot.is_of_ejection(shared));
        slot.give_back(shared);
        slot.respond(shared);
        assert_eq!(
            slot.phase(),
            TrialPhase::Running,
            "a shared one frees nothing"
        );
        slot.follow(2, false);
        assert!(!slot.is_of_ejection(ticket) && !slot.is_of_ejection(shared));
        slot.give_back(ticket);
        assert_eq!(slot.phase(), TrialPhase::None);
        // Its checks take it down, so that it waits for them and not for a request.
        slot.follow(2, true);
        slot.follow(2, false);
        assert_eq!(slot.claim(), None);
        // It leaves and comes back while a request has the trial.
        slot.follow(2, true);
        let ticket = slot.claim().unwrap();
        slot.follow(2, false);
        slot.follow(2, true);
        assert_eq!(slot.claim(), None);
        slot.give_back(ticket);
        assert!(slot.claim().is_some());
    }

    #[test]
    fn of_many_threads_one_gets_it() {
        for _ in 0..50 {
            let slot = due();
            let claims: usize = thread::scope(|scope| {
                let claim = || usize::from(slot.claim().is_some());
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(claim)).collect();
                threads.into_iter().map(|one| one.join().unwrap()).sum()
            });
            assert_eq!(claims, 1);
        }
    }
}
