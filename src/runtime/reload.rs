//! Reload, top to bottom: parse → check → diff → prepare → commit → follow → tell. All or nothing: until the commit, an
//! error leaves the old generation untouched.

use std::sync::{Arc, PoisonError};

use serde_json::json;

use super::{control::Control, load};
use crate::{
    admin::{Failed, ReloadOutcome, Reloaded},
    base::clock,
    config::{Loaded, Problems, Severity, diff, model::Config},
    health::Follower,
    snapshot::{ReloadStatus, Snapshot},
    telemetry::{access_log::AccessLog, log},
};

/// Loads the file again and puts it in service; `None` when a signal asks for the end before it is read.
pub(super) async fn run(control: &mut Control, follower: &mut Follower) -> Option<ReloadOutcome> {
    control.manager.reloading();
    let loaded = load::load(&control.file, &mut control.signals, &control.sinks).await?;
    let outcome = take_up(control, follower, loaded);
    tell(control, &outcome);
    Some(outcome)
}

/// Reports warnings, and refuses a file with errors.
fn take_up(
    control: &mut Control,
    follower: &mut Follower,
    loaded: Result<Loaded, Problems>,
) -> ReloadOutcome {
    let Loaded {
        config, warnings, ..
    } = loaded.map_err(|problems| Failed {
        rendered: problems.render(),
        json: problems.to_json(),
    })?;
    for warning in &warnings {
        tracing::warn!(target: "config", "{warning}");
    }
    let changes = apply(control, follower, config)?;
    let mut warnings = Problems(warnings);
    let (daemon, files) = (&control.daemon, control.files);
    if let Some(warning) = files.limit_connections(&daemon.snapshot.load().config, daemon) {
        tracing::warn!(target: "reload", "{warning}");
        let mut found =
            Problems::of_file(&control.file, warning, "or set a lower `max_connections`");
        found
            .0
            .iter_mut()
            .for_each(|found| found.severity = Severity::Warning);
        warnings.0.append(&mut found.0);
    }
    Ok(Reloaded {
        changes,
        rendered: warnings.render(),
        warnings: warnings.to_json(),
    })
}

/// Diff, prepare, commit, follow.
fn apply(
    control: &mut Control,
    follower: &mut Follower,
    config: Config,
) -> Result<Vec<String>, Failed> {
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
        Ok(Reloaded { changes, .. }) => ReloadStatus {
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
        Ok(Reloaded { changes, .. }) => {
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
