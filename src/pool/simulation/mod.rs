//! A simulation of the state machines of a pool: seeded sequences of checks, requests, failures,
//! retries, waits, time, overrides, reloads and other members, on the real [`Pool`] and on a model
//! that is written for clarity.
//!
//! `plan.rs` makes the sequences, `world.rs` carries them out and compares (`waiters.rs`: the
//! queue, `changes.rs`: what changes the pool), `model.rs` knows what the state of each backend
//! must be, `choice.rs` which backends a pick may give, and `shrink.rs` finds the shortest part of
//! a sequence that still fails. `SIMULATION_SEED=N` runs one seed again,
//! and `SIMULATION_RUNS=N` that many.

mod changes;
mod choice;
mod clock;
mod counts;
mod model;
mod plan;
mod shrink;
mod waiters;
mod world;

use std::{panic, thread};

use self::{
    clock::SimulatedClock,
    counts::{EventCounts, SeenEvent},
    plan::{PoolEvent, SimulationPlan},
    shrink::shortest_failure,
    world::SimulatedWorld,
};

/// Seeds of a usual run.
const SEED_COUNT: u64 = 10_000;

/// Runs a plan to its end. A panic of the pool is an error like any other.
fn run(plan: &SimulationPlan) -> Result<(), String> {
    let ran = panic::catch_unwind(|| {
        let clock = SimulatedClock::new();
        clock.run(|| SimulatedWorld::new(plan, &clock).run())
    });
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}

/// Message about a seed that fails, with the shortest part of its events that fails.
fn explain(plan: &SimulationPlan) -> String {
    let all = plan.events.len();
    let short = shortest_failure(plan, |plan| run(plan).is_err());
    let error = run(&short).expect_err("the shortest failure fails");
    let lines: Vec<_> = short
        .events
        .iter()
        .map(|event| format!("  {event:?}"))
        .collect();
    format!(
        "SIMULATION_SEED={}: {error}\n{:?}\n{} of {all} events:\n{}",
        plan.seed,
        plan.settings,
        lines.len(),
        lines.join("\n")
    )
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn no_sequence_of_events_breaks_a_promise_of_the_pool() {
    let seeds = match number_from("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_from("SIMULATION_RUNS").unwrap_or(SEED_COUNT),
    };
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let first_failure = |thread: usize| {
        let mut mine = seeds.clone().skip(thread).step_by(threads);
        mine.find_map(|seed| {
            let plan = SimulationPlan::random(seed);
            run(&plan).err().map(|_| plan)
        })
    };
    let failures: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || first_failure(thread)))
            .collect();
        running
            .into_iter()
            .filter_map(|thread| thread.join().unwrap())
            .collect()
    });
    if let Some(plan) = failures.first() {
        panic!("{}", explain(plan));
    }
}

#[test]
fn the_plans_reach_what_they_are_meant_to_test() {
    let mut seen = EventCounts::default();
    let clock = SimulatedClock::new();
    for seed in 0..1_500 {
        let plan = SimulationPlan::random(seed);
        let mut world = SimulatedWorld::new(&plan, &clock);
        clock.run(|| world.run()).unwrap();
        seen.add(&world.seen);
    }
    let rare: Vec<_> = SeenEvent::ALL
        .into_iter()
        .map(|event| (event, seen.of(event)))
        .filter(|(_, count)| *count < 20)
        .collect();
    assert!(rare.is_empty(), "{rare:?}");
}

#[test]
fn a_failure_is_reduced_to_the_events_that_cause_it() {
    let mut plan = SimulationPlan::random(7);
    let long = PoolEvent::Advance { ms: 77_777 };
    let reload = PoolEvent::Reload { variant: 250 };
    plan.events.insert(plan.events.len() / 3, long);
    plan.events.insert(2 * plan.events.len() / 3, reload);
    let has = |plan: &SimulationPlan, wanted: PoolEvent| plan.events.contains(&wanted);
    let short = shortest_failure(&plan, |plan| has(plan, long) && has(plan, reload));
    assert_eq!(short.events, [long, reload]);
}
