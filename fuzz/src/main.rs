//! Runs the parsers and connections of balancer on mutated inputs; stops at the first panic or slow
//! input.
//!
//! Usage: `balancer-fuzz TARGET|all [--seconds N] [--runs N] [--seed S] [--corpus DIR]`. The seeds
//! of a target are the files in `fuzz/seeds/TARGET/`. The same seed and corpus give the same
//! inputs. To add a target, add a file in `targets/` and a line in [`FUZZ_TARGETS`].

mod mutate;
mod targets;

use std::{
    panic,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use balancer::base::rng::Random;

/// Longest time for one input, in an optimised build on a busy machine.
const MAX_RUN_TIME: Duration = Duration::from_secs(2);
/// Largest input in bytes.
const MAX_INPUT_BYTES: usize = 64 << 10;

/// Name of a target, and the function that runs an input.
type FuzzTarget = (&'static str, fn(&[u8]));

const FUZZ_TARGETS: &[FuzzTarget] = &[
    ("chunked_body", targets::chunked_body::run),
    ("client_hello", targets::client_hello::run),
    ("config", targets::config::run),
    ("grpc_health", targets::grpc_health::run),
    ("h2_backend", targets::h2_backend::run),
    ("h2_client", targets::h2_client::run),
    ("h2_message", targets::h2_message::run),
    ("hpack", targets::hpack::run),
    ("proxy_header", targets::proxy_header::run),
    ("request_head", targets::request_head::run),
    ("response_head", targets::response_head::run),
];

struct FuzzOptions {
    targets: Vec<FuzzTarget>,
    time: Duration,
    runs: u64,
    seed: u64,
    /// Directory of inputs, instead of the seeds of each target.
    corpus: Option<PathBuf>,
}

fn options() -> Result<FuzzOptions, String> {
    let mut arguments = std::env::args().skip(1);
    let names = || {
        FUZZ_TARGETS
            .iter()
            .map(|(name, _)| *name)
            .collect::<Vec<_>>()
    };
    let name = arguments
        .next()
        .ok_or_else(|| format!("name a target: {}", names().join(", ")))?;
    let targets: Vec<FuzzTarget> = FUZZ_TARGETS
        .iter()
        .copied()
        .filter(|(known, _)| name == "all" || *known == name)
        .collect();
    if targets.is_empty() {
        return Err(format!(
            "no target `{name}`; there are: {}, all",
            names().join(", ")
        ));
    }
    let mut options = FuzzOptions {
        targets,
        time: Duration::MAX,
        runs: u64::MAX,
        seed: 1,
        corpus: None,
    };
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{flag} needs a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{flag}: `{value}` is not a number"))
        };
        match flag.as_str() {
            "--seconds" => options.time = Duration::from_secs(number()?),
            "--runs" => options.runs = number()?,
            "--seed" => options.seed = number()?,
            "--corpus" => options.corpus = Some(PathBuf::from(&value)),
            _ => return Err(format!("unknown flag {flag}")),
        }
    }
    if options.time == Duration::MAX && options.runs == u64::MAX {
        options.runs = 100_000;
    }
    Ok(options)
}

fn corpus(directory: &Path) -> Result<Vec<Vec<u8>>, String> {
    let wrong = |error| format!("{}: {error}", directory.display());
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .map_err(wrong)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(wrong))
        .collect::<Result<_, _>>()?;
    files.sort();
    let inputs: Vec<Vec<u8>> = files
        .iter()
        .filter(|path| path.is_file())
        .map(|path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display())))
        .collect::<Result<_, _>>()?;
    if inputs.is_empty() {
        return Err(format!("{} has no seeds", directory.display()));
    }
    Ok(inputs)
}

fn fuzz((name, run): FuzzTarget, options: &FuzzOptions) -> Result<u64, String> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(name);
    let inputs = corpus(options.corpus.as_deref().unwrap_or(&seeds))?;
    let start = Instant::now();
    let mut done = 0;
    while done < options.runs && start.elapsed() < options.time {
        // Each run has its own generator, so it can be repeated without the earlier ones.
        let mut random = Random::seeded(options.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ done);
        let input = match inputs.get(done as usize) {
            Some(seed) => seed.clone(),
            None => mutate::mutate(&inputs, &mut random, MAX_INPUT_BYTES),
        };
        let begin = Instant::now();
        let outcome = panic::catch_unwind(|| run(&input));
        let took = begin.elapsed();
        let cause = match outcome {
            Err(_) => "panicked".to_owned(),
            Ok(()) if took > MAX_RUN_TIME => format!("took {took:?}"),
            Ok(()) => {
                done += 1;
                continue;
            }
        };
        let file = format!("fuzz-{name}-{}-{done}.bin", options.seed);
        std::fs::write(&file, &input).map_err(|error| format!("{file}: {error}"))?;
        return Err(format!(
            "{name}: run {done} of seed {} {cause}; the input is in {file}",
            options.seed
        ));
    }
    Ok(done)
}

fn fuzz_all() -> Result<(), String> {
    let options = options()?;
    for target in &options.targets {
        let start = Instant::now();
        let runs = fuzz(*target, &options)?;
        let seconds = start.elapsed().as_secs_f64();
        eprintln!(
            "{}, seed {}: {runs} runs in {seconds:.1} s, {:.0} a second, no failure",
            target.0,
            options.seed,
            runs as f64 / seconds
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    match fuzz_all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
