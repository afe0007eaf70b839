//! Counts of the interesting places that plans came to, so that a test sees that they reach them.

/// A place of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeenEvent {
    Ejection,
    Trial,
    TrialPassed,
    TrialFailed,
    EjectionEndedByChecks,
    LastResort,
    RefusedByGuard,
    BackendReturned,
    Retry,
    Waited,
    ServedFromQueue,
    TrialFromQueue,
    QueueFull,
    RefusedInQueue,
    LeftQueue,
    LeftWithSlot,
    WaitedForOwn,
    TookOwn,
    TookDrainingOwn,
    LeftOwnList,
    StateSet,
    WeightSet,
    OverrideAtReturn,
    MembersChanged,
    NoMembers,
}

impl SeenEvent {
    /// Every one of them.
    pub(super) const ALL: [Self; 25] = [
        Self::Ejection,
        Self::Trial,
        Self::TrialPassed,
        Self::TrialFailed,
        Self::EjectionEndedByChecks,
        Self::LastResort,
        Self::RefusedByGuard,
        Self::BackendReturned,
        Self::Retry,
        Self::Waited,
        Self::ServedFromQueue,
        Self::TrialFromQueue,
        Self::QueueFull,
        Self::RefusedInQueue,
        Self::LeftQueue,
        Self::LeftWithSlot,
        Self::WaitedForOwn,
        Self::TookOwn,
        Self::TookDrainingOwn,
        Self::LeftOwnList,
        Self::StateSet,
        Self::WeightSet,
        Self::OverrideAtReturn,
        Self::MembersChanged,
        Self::NoMembers,
    ];
}

/// The number of times that each was reached.
#[derive(Debug, Default, Clone)]
pub(super) struct EventCounts([u32; SeenEvent::ALL.len()]);

impl EventCounts {
    pub(super) fn note(&mut self, event: SeenEvent) {
        self.0[event as usize] += 1;
    }

    pub(super) fn of(&self, event: SeenEvent) -> u32 {
        self.0[event as usize]
    }

    pub(super) fn add(&mut self, other: &Self) {
        let both = self.0.iter_mut().zip(other.0);
        both.for_each(|(count, more)| *count += more);
    }
}
