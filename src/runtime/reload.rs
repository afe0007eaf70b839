//! Reload, top to bottom: parse → check → diff → prepare → commit → follow → tell. All or nothing: until the commit, an
//! error leaves the old generation untouched.

use std::sync::{Arc, PoisonError, atomic::Ordering::Relaxed};

use serde_json::json;

use super::{connection_limit, control::Control, systemd};
use crate::{
    admin::{Failed, ReloadOutcome},
    base::clock,
    config::{self, Loaded, diff, model::Config},
    health::Follower,
    snapshot::{ReloadStatus, Snapshot},
    telemetry::{access_log::AccessLog, log},
};

/// Loads the file again and puts it in service.
pub(super) fn run(control: &mut Control, follower: &mut Follower) -> ReloadOutcome {
    systemd::reloading();
    let outcome = load(control).and_then(|config| apply(control, follower, config));
    tell(control, &outcome);
    outcome
}

/// Parse and check.
fn load(control: &Control) -> Result<Config, Failed> {
    match config::load(&control.file) {
        Ok(Loaded {
            config, warnings, ..
        }) => {
            for warning in &warnings {
                tracing::warn!(target: "config", "{warning}");
            }
            Ok(config)
        }
        Err(problems) => Err(Failed {
            rendered: problems.render(),
            json: problems.to_json(),
        }),
    }
}

/// Diff, prepare, commit, follow.
fn apply(control: &mut Control, follower: &mut Follower, config: Config) -> ReloadOutcome {
    let daemon = &control.daemon;
    let old = daemon.snapshot.load_full();
    let changes = diff::diff(&old.config, &config);
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let config = Arc::new(config);
    let prepared = control
        .sockets
        .prepare(&config, daemon.workers.len())
        .map_err(|error| failed(&error.to_string()))?;
    let output = &config.access_log.output;
    let sink = control
        .sinks
        .open(output)
        .map_err(|error| failed(&format!("cannot open the access log: {error}")))?;
    let access_log = AccessLog::new(&config.access_log, sink);
    let next = Arc::new(Snapshot::build(
        Arc::clone(&config),
        Some(&old),
        access_log,
        clock::now(),
    ));

    daemon.snapshot.store(Arc::clone(&next));

    daemon
        .connection_limit
        .store(connection_limit(&config, control.files), Relaxed);
    control.sockets.commit(prepared, &control.pool);
    follower.apply(&next.pools);
    old.retire(&next);
    log::set_level(config.log.level);
    Ok(changes.iter().map(ToString::to_string).collect())
}

fn failed(message: &str) -> Failed {
    Failed {
        rendered: format!("error: {message}\n"),
        json: json!([{"severity": "error", "message": message}]),
    }
}

/// The log, the metrics and systemd.
fn tell(control: &Control, outcome: &ReloadOutcome) {
    let unix = clock::unix_now();
    let mut status = control
        .daemon
        .reload
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let ReloadStatus {
        succeeded,
        failed,
        success_unix,
        ..
    } = *status;
    *status = match outcome {
        Ok(changes) => ReloadStatus {
            ok: true,
            success_unix: unix,
            last_unix: unix,
            succeeded: succeeded + 1,
            failed,
            message: changes.join("\n"),
        },
        Err(problem) => ReloadStatus {
            ok: false,
            success_unix,
            last_unix: unix,
            succeeded,
            failed: failed + 1,
            message: problem.rendered.clone(),
        },
    };
    drop(status);
    let generation = control.daemon.snapshot.load().generation;
    match outcome {
        Ok(changes) => {
            for change in changes {
                tracing::info!(target: "reload", "{change}");
            }
            tracing::info!(target: "reload", generation, changes = changes.len(), "configuration reloaded");
            systemd::ready(&format!("serving generation {generation}"));
        }
        Err(problem) => {
            tracing::error!(target: "reload", generation, "configuration not reloaded, the old one goes on\n{}", problem.rendered);
            systemd::ready(&format!(
                "serving generation {generation}; the last reload failed"
            ));
        }
    }
}
