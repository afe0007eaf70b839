//! A simulation of the engine: clients and backends that split, stall, close and reset wherever a
//! seed says, around the real [`serve`](crate::proxy::http::serve) on real sockets, on one
//! thread, in virtual time.
//!
//! `scenario.rs` is the plan of a run, `generate.rs` makes plans, `peers.rs` carries them out,
//! `driver.rs` runs everything, `wire.rs` parses what the peers receive, and `oracle.rs` knows
//! what must hold. `SIMULATION_SEED=N` runs one seed again, and `SIMULATION_RUNS=N` that many.

mod driver;
mod generate;
mod oracle;
mod peers;
mod scenario;
mod wire;

use tokio::runtime::Runtime;

use self::{
    driver::{Simulation, SimulationLog, runtime},
    generate::{RequestSpec, ResponseSpec, ScenarioKind, fixed_scenario, random_scenario},
    oracle::RunOutcome,
    scenario::{BodyShape, FaultKind, Scenario, ScriptedEvent},
};
use crate::base::rng::Random;

/// Runs `case` and judges it, and what was logged if it was.
fn run(
    runtime: &Runtime,
    log: Option<&SimulationLog>,
    scenario: &Scenario,
) -> Result<RunOutcome, String> {
    runtime.block_on(async {
        let mut simulation = Simulation::new(scenario, log);
        let mut ran = simulation.run().await;
        let lines = log.map(SimulationLog::lines);
        if ran.is_ok() {
            // Idle connections that a backend has ended are closed.
            simulation.worker.tick();
            ran = simulation.finish().await;
        }
        let checked = ran
            .and_then(|()| oracle::connections(&simulation, scenario))
            .and_then(|()| oracle::records(&simulation, lines.as_deref()))
            .and_then(|()| oracle::leftovers(&simulation));
        simulation.worker.idle.borrow_mut().clear();
        let finished = simulation.finish().await;
        checked
            .and(finished)
            .and_then(|()| oracle::nothing_is_open(&simulation))
            .map(|()| oracle::outcome(&simulation))
            .map_err(|error| {
                format!(
                    "{error}\nlog: {}",
                    oracle::show_log(&lines.unwrap_or_default())
                )
            })
    })
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs seeds of a kind: the one or the count that the environment names, or `usual`.
fn seeds(name: &str, kind: ScenarioKind, usual: u64) {
    let (runtime, log) = (runtime(), SimulationLog::new(name));
    let seeds = match number_from("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_from("SIMULATION_RUNS").unwrap_or(usual),
    };
    for seed in seeds {
        let scenario = random_scenario(seed, kind);
        if let Err(error) = run(&runtime, Some(&log), &scenario) {
            panic!(
                "SIMULATION_SEED={seed} ({kind:?}): {error}\n{}",
                scenario.describe()
            );
        }
    }
}

#[test]
fn clients_and_backends_that_keep_the_rules_get_every_byte_however_it_is_split() {
    seeds("orderly", ScenarioKind::Orderly, 80);
}

#[test]
fn stalls_closes_and_resets_mix_nothing_up_and_leave_nothing_that_looks_complete() {
    seeds("wild", ScenarioKind::Wild, 200);
}

/// Scenarios with small exchanges of every kind; the exchanges of a connection follow one another.
fn typical() -> Vec<(&'static str, Scenario)> {
    let mut all = typical_bodies();
    all.extend(typical_connections());
    all
}

/// The ways in which bodies are delimited.
fn typical_bodies() -> Vec<(&'static str, Scenario)> {
    use BodyShape::{Chunked, Length, None, UntilClose};
    let get = RequestSpec::new("GET", None);
    let ok = ResponseSpec::new(200, Length(5));
    let posts = [
        (
            RequestSpec::new("POST", Length(9)),
            ResponseSpec::new(200, Chunked(12)),
        ),
        (
            RequestSpec::new("PUT", Chunked(11)),
            ResponseSpec::new(200, Chunked(6)),
        ),
    ];
    let until_close = [(get, ResponseSpec::new(200, UntilClose(8)))];
    let bodiless = [
        (get, ResponseSpec::new(204, None)),
        (get, ResponseSpec::new(304, None)),
    ];
    let head = [
        (
            RequestSpec::new("HEAD", None),
            ResponseSpec::new(200, Chunked(4)),
        ),
        (get, ok),
    ];
    vec![
        ("lengths", plain(&[(get, ok), (get, ok)])),
        ("bodies", plain(&posts)),
        ("until close", plain(&until_close)),
        ("no body", plain(&bodiless)),
        ("head", plain(&head)),
    ]
}

/// The ways in which a connection goes on: `close`, 1xx, HTTP/1.0 and a switch of protocols.
fn typical_connections() -> Vec<(&'static str, Scenario)> {
    use BodyShape::{Chunked, Length, None};
    let get = RequestSpec::new("GET", None);
    let ok = ResponseSpec::new(200, Length(5));
    let hints = ResponseSpec {
        interims: 1,
        ..ResponseSpec::new(200, Chunked(9))
    };
    let waits = RequestSpec {
        expects: true,
        ..RequestSpec::new("POST", Length(7))
    };
    let continues = ResponseSpec {
        interims: 1,
        continues: true,
        ..ok
    };
    let old = RequestSpec { old: true, ..get };
    let old_chunked = (old, ResponseSpec::new(200, Chunked(5)));
    let long = ResponseSpec {
        padding: 450,
        ..ResponseSpec::new(200, Length(3))
    };
    let closes = RequestSpec {
        closes: true,
        ..get
    };
    let upgrade = RequestSpec {
        upgrade: true,
        ..get
    };
    vec![
        ("behind a close", plain(&[(closes, ok), (get, ok)])),
        ("hints", plain(&[(get, hints), (closes, ok)])),
        ("expect", plain(&[(waits, continues), (get, ok)])),
        ("old", plain(&[(old, ok), old_chunked])),
        ("long head", plain(&[(get, long)])),
        ("upgrade", plain(&[(get, ok), (upgrade, ok)])),
    ]
}

fn plain(exchanges: &[(RequestSpec, ResponseSpec)]) -> Scenario {
    fixed_scenario(false, exchanges)
}

#[test]
fn every_single_split_of_typical_exchanges_changes_nothing() {
    let (runtime, log) = (runtime(), SimulationLog::new("splits"));
    for (name, scenario) in typical() {
        let check = |log, scenario: &Scenario| {
            run(&runtime, log, scenario)
                .unwrap_or_else(|error| panic!("{name}: {error}\n{}", scenario.describe()))
        };
        let wanted = check(Some(&log), &scenario);
        let mut bytewise = scenario.clone();
        for out in bytewise.outputs() {
            for at in 1..out.bytes.len() {
                out.act(at, ScriptedEvent::Split);
            }
        }
        assert_eq!(
            check(Some(&log), &bytewise),
            wanted,
            "{name}: a byte at a time"
        );
        let lengths: Vec<usize> = scenario
            .clone()
            .outputs()
            .iter()
            .map(|out| out.bytes.len())
            .collect();
        for (output, length) in lengths.into_iter().enumerate() {
            for at in 1..length {
                let mut split = scenario.clone();
                split.outputs()[output].act(at, ScriptedEvent::Split);
                assert_eq!(
                    check(None, &split),
                    wanted,
                    "{name}: output {output} split at {at}"
                );
            }
        }
    }
}

#[test]
fn a_close_a_reset_or_a_stall_at_any_byte_never_looks_like_a_complete_message() {
    let (runtime, mut random) = (runtime(), Random::seeded(5));
    // Each place is broken in one way; a full run breaks all places.
    let every = if number_from("SIMULATION_RUNS").is_some() {
        1
    } else {
        3
    };
    for (name, mut scenario) in typical() {
        if name == "upgrade" {
            continue;
        }
        let lengths: Vec<usize> = scenario
            .outputs()
            .iter()
            .map(|out| out.bytes.len())
            .collect();
        for (output, length) in lengths.into_iter().enumerate() {
            for at in (random.below(every)..=length).step_by(every) {
                let what = [FaultKind::Fin, FaultKind::Reset, FaultKind::Hang][random.below(3)];
                let mut broken = scenario.clone();
                broken.tcp = random.below(2) == 0;
                let tcp = broken.tcp;
                let client = &mut broken.clients[0];
                match output.checked_sub(1) {
                    None => client.break_at(at, what),
                    Some(exchange) => client.exchanges[exchange].plans[0].break_at(at, what, tcp),
                }
                if let Err(error) = run(&runtime, None, &broken) {
                    let scenario = broken.describe();
                    panic!("{name}: output {output}, {what:?} at {at}: {error}\n{scenario}");
                }
            }
        }
    }
}
