//! Reload, top to bottom: parse → check → diff → prepare → commit → follow → tell. All or nothing: until the commit, an
//! error leaves the old generation untouched.

use std::sync::{Arc, PoisonError, atomic::Ordering::Relaxed};

use serde_json::json;

use super::{connection_limit, control::Control, load};
use crate::{
    admin::{Failed, ReloadOutcome},
    base::clock,
    config::{Loaded, Problems, diff, model::Config},
    health::Follower,
    snapshot::{ReloadStatus, Snapshot},
    telemetry::{access_log::AccessLog, log},
};

/// Loads the file again and puts it in service; `None` when a signal asks for the end before it is read.
pub(super) async fn run(control: &mut Control, follower: &mut Follower) -> Option<ReloadOutcome> {
    control.manager.reloading();
    let loaded = load::load(&control.file, &mut control.signals, &control.sinks).await?;
    let outcome = accept(loaded).and_then(|config| apply(control, follower, config));
    tell(control, &outcome);
    Some(outcome)
}

/// Reports warnings, and refuses a file with errors.
fn accept(loaded: Result<Loaded, Problems>) -> Result<Config, Failed> {
    match loaded {
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

    next.restore();
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
            control
                .manager
                .ready(&format!("serving generation {generation}"));
        }
        Err(problem) => {
            tracing::error!(target: "reload", generation, "reload failed; keeping the running configuration\n{}", problem.rendered);
            control.manager.ready(&format!(
                "serving generation {generation}; the last reload failed"
            ));
        }
    }
}
