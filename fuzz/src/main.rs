//! Throws mutated inputs at the parsers of balancer and stops at the first panic or slow input.
//!
//! Usage: `balancer-fuzz TARGET [--seconds N] [--runs N] [--seed S] [--corpus DIR]`. The seeds of a target are the files
//! of `fuzz/seeds/TARGET/`. The same seed and corpus give the same inputs. A new target is one file in
//! `targets/` and one row of [`TARGETS`].

mod mutate;
mod targets;

use std::{
    panic,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use balancer::base::rng::Random;

/// Longest time one input may take, in an optimised build on a busy machine.
const MOST_TIME: Duration = Duration::from_secs(2);
/// Largest input in bytes.
const MOST_BYTES: usize = 64 << 10;

/// The name of a target, and what it does with an input.
type Target = (&'static str, fn(&[u8]));

const TARGETS: &[Target] = &[
    ("chunked_body", targets::chunked_body::run),
    ("config", targets::config::run),
];

struct Options {
    target: Target,
    time: Duration,
    runs: u64,
    seed: u64,
    corpus: PathBuf,
}

fn options() -> Result<Options, String> {
    let mut arguments = std::env::args().skip(1);
    let names = || TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let name = arguments
        .next()
        .ok_or_else(|| format!("name a target: {}", names().join(", ")))?;
    let target = TARGETS
        .iter()
        .copied()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| format!("no target `{name}`; there are: {}", names().join(", ")))?;
    let mut options = Options {
        target,
        time: Duration::MAX,
        runs: u64::MAX,
        seed: 1,
        corpus: Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("seeds")
            .join(&name),
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
            "--corpus" => options.corpus = PathBuf::from(&value),
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

fn fuzz(options: &Options) -> Result<u64, String> {
    let (name, run) = options.target;
    let inputs = corpus(&options.corpus)?;
    let start = Instant::now();
    let mut done = 0;
    while done < options.runs && start.elapsed() < options.time {
        // Each run has its own generator, so that it can be repeated without those before it.
        let mut random = Random::seeded(options.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ done);
        let input = match inputs.get(done as usize) {
            Some(seed) => seed.clone(),
            None => mutate::mutate(&inputs, &mut random, MOST_BYTES),
        };
        let begin = Instant::now();
        let outcome = panic::catch_unwind(|| run(&input));
        let took = begin.elapsed();
        let cause = match outcome {
            Err(_) => "panicked".to_owned(),
            Ok(()) if took > MOST_TIME => format!("took {took:?}"),
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

fn main() -> ExitCode {
    let result = options().and_then(|options| {
        eprintln!("{}: seed {}", options.target.0, options.seed);
        let start = Instant::now();
        fuzz(&options).map(|runs| {
            eprintln!(
                "{runs} runs in {:.1} s, no failure",
                start.elapsed().as_secs_f64()
            )
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
