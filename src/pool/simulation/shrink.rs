//! Finds a shortest failing part of a plan.

use super::plan::SimulationPlan;

/// Drops events as long as the plan still fails: first large parts, then single ones. No single
/// event of the result can be dropped.
pub(super) fn shortest_failure(
    plan: &SimulationPlan,
    fails: impl Fn(&SimulationPlan) -> bool,
) -> SimulationPlan {
    let mut short = plan.clone();
    let mut size = short.events.len().div_ceil(2);
    while size > 0 {
        let (mut at, mut dropped) = (0, false);
        while at < short.events.len() {
            let mut shorter = short.clone();
            let end = (at + size).min(shorter.events.len());
            shorter.events.drain(at..end);
            if fails(&shorter) {
                (short, dropped) = (shorter, true);
            } else {
                at += size;
            }
        }
        size = match (size, dropped) {
            (1, true) => 1,
            (size, _) => size / 2,
        };
    }
    short
}
