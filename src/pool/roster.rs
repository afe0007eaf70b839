//! Who may be picked: the eligible backends of one generation, with the prepared policy over them.
//!
//! Only backends with a weight above 0 are considered. The first of these groups that has a member is the roster:
//! primaries that are up, backups that are up, primaries not checked yet, backups not checked yet; and with
//! `when_all_down: fail_open` everyone who is not draining, in maintenance or removed. So a checked backup is preferred
//! to a primary nobody has seen good yet.

use std::{fmt, sync::Arc};

use super::{
    backend::Backend,
    health::State,
    policy::{self, Candidate, Picker},
};
use crate::config::model::{Policy, WhenAllDown};

/// What decides about eligibility besides the states.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) policy: Policy,
    /// The pool has a health check. Without one no verdict counts: one left over from before is ignored.
    pub(crate) checks: bool,
    pub(crate) when_all_down: WhenAllDown,
}

/// The eligible backends and the picker over them; replaced as a whole.
pub(crate) struct Roster {
    pub(crate) candidates: Box<[Candidate]>,
    pub(crate) picker: Box<dyn Picker>,
}

impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.candidates.iter().map(|one| &one.config.name);
        f.debug_list().entries(names).finish()
    }
}

impl Roster {
    pub(crate) fn new(backends: &[Arc<Backend>], rules: Rules) -> Self {
        let ranks: Vec<u8> = backends
            .iter()
            .map(|backend| rank(backend, rules))
            .collect();
        let best = ranks.iter().copied().min().unwrap_or(NEVER);
        let candidates: Box<[Candidate]> = backends
            .iter()
            .zip(&ranks)
            .filter(|(_, rank)| **rank != NEVER && (**rank == best))
            .map(|(backend, _)| Arc::clone(backend))
            .collect();
        let picker = policy::prepare(rules.policy, &candidates);
        Self { candidates, picker }
    }
}

const FAIL_OPEN: u8 = 4;
const NEVER: u8 = 5;

/// The group of a backend: the lowest group that has a member is picked from.
fn rank(backend: &Backend, rules: Rules) -> u8 {
    if backend.config.weight == 0 {
        return NEVER;
    }
    let backup = u8::from(backend.config.backup);
    match backend.state.state() {
        State::Up => backup,
        State::Checking | State::Down if !rules.checks => backup,
        State::Checking => 2 + backup,
        State::Down | State::Ejected if rules.when_all_down == WhenAllDown::FailOpen => FAIL_OPEN,
        State::Down | State::Ejected | State::Draining | State::Maintenance | State::Removed => {
            NEVER
        }
    }
}
