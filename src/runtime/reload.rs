//! Reload, top to bottom: parse → check → diff → prepare → commit → follow → report. All or
//! nothing: until the commit, an error leaves the generation in force untouched.

use std::{
    io::ErrorKind,
    sync::{Arc, PoisonError},
};

use serde_json::json;

use super::{
    admin_sockets::bind_admin,
    control::{ControlThread, StartSettings},
    load,
    sockets::SocketError,
};
use crate::{
    admin::{ReloadError, ReloadOutcome, ReloadReport},
    base::{clock, paths::default_admin_socket, socket_key::SocketKey},
    config::{BindPlaces, LoadedConfig, Problems, Severity, diff, model::Config},
    discovery::MemberDiscovery,
    health::HealthChecker,
    net::listen,
    snapshot::{ReloadStatus, Snapshot},
    telemetry::{access_log::AccessLog, log},
};

/// Loads the file again and puts it in force; `None` if a signal asks for the end before it is
/// read.
pub(super) async fn run(
    control: &mut ControlThread,
    checker: &mut HealthChecker,
    discovery: &mut MemberDiscovery,
) -> Option<ReloadOutcome> {
    control.manager.reloading();
    let loaded = load::load(
        &control.file,
        &control.sticky_keys,
        &mut control.signals,
        &control.sinks,
    );
    let loaded = loaded.await?;
    let outcome = check_and_apply(control, checker, discovery, loaded);
    report(control, &outcome);
    Some(outcome)
}

/// Refuses a file with errors, logs its warnings, and applies it.
fn check_and_apply(
    control: &mut ControlThread,
    checker: &mut HealthChecker,
    discovery: &mut MemberDiscovery,
    loaded: Result<LoadedConfig, Problems>,
) -> ReloadOutcome {
    let LoadedConfig {
        config,
        warnings,
        binds,
    } = loaded.map_err(|problems| refused(&problems))?;
    for warning in &warnings {
        tracing::warn!(target: "config", "{warning}");
    }
    let changes = apply(control, checker, discovery, config, &binds)?;
    // After the commit: the budget of descriptors depends on the listeners and checks in force.
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
    Ok(ReloadReport {
        changes,
        rendered: warnings.render(),
        warnings: warnings.to_json(),
    })
}

/// The outcome of a reload that was refused for `problems`, as text and as JSON.
fn refused(problems: &Problems) -> ReloadError {
    ReloadError {
        rendered: problems.render(),
        json: problems.to_json(),
    }
}

/// Diff, prepare, commit, follow. Returns a line per change.
fn apply(
    control: &mut ControlThread,
    checker: &mut HealthChecker,
    discovery: &mut MemberDiscovery,
    config: Config,
    binds: &BindPlaces,
) -> Result<Vec<String>, ReloadError> {
    let daemon = &control.daemon;
    let old = daemon.snapshot.load_full();
    let changes = diff::diff(&old.config, &config);
    if changes.is_empty() {
        // A reload of an unchanged file is a wish for fresh addresses: somebody has edited DNS.
        discovery.refresh();
        return Ok(Vec::new());
    }
    // Prepare: everything that can fail.
    let config = Arc::new(config);
    let prepared = control
        .sockets
        .prepare(&config, daemon.workers.len())
        .map_err(|error| cannot_listen(&control.started, binds, &error))?;
    try_next_start(control, &config, binds)?;
    let output = &config.access_log.output;
    let sink = control
        .sinks
        .open(output)
        .map_err(|error| failed(&format!("cannot open the access log: {error}")))?;
    let access_log = AccessLog::new(&config.access_log, sink);
    let next = Arc::new(Snapshot::build_with(
        Arc::clone(&config),
        Some(&old),
        access_log,
        &|pool| discovery.members(pool),
        clock::now(),
    ));

    // Commit: nothing from here on can fail. Backends that came back are put in service before a
    // worker can see them; those that left are retired only after the swap.
    next.restore(&daemon.overrides());
    daemon.snapshot.store(Arc::clone(&next));

    // Follow. Sockets come after the commit: a worker must find the listener of a connection that
    // it accepts on a new one.
    control.sockets.commit(prepared, &control.workers);
    checker.apply(&next.pools);
    discovery.apply(&config);
    next.pools.iter().for_each(|pool| discovery.publish(pool));
    old.retire(&next);
    log::set_level(config.log.level);
    Ok(changes.iter().map(ToString::to_string).collect())
}

/// The problem of a socket that cannot be opened. Where the daemon itself is in the way, it says
/// so: `admin` and `metrics` keep their addresses until the next start.
fn cannot_listen(started: &StartSettings, binds: &BindPlaces, error: &SocketError) -> ReloadError {
    let SocketError { key, error } = error;
    let kind = error.source.kind();
    let is_ours = |held: &SocketKey| kind == ErrorKind::AddrInUse && held.overlaps(key);
    let cause = if started.metrics_socket().is_some_and(|held| is_ours(&held)) {
        format!("cannot listen on {key}: `metrics` has it until the next start")
    } else if is_ours(&started.admin_socket()) {
        format!("cannot listen on {key}: `admin` has it until the next start")
    } else {
        error.to_string()
    };
    refused(&binds.problem(key, &cause, kind))
}

/// Tries `admin.bind` and `metrics.bind`, which take effect at the next start: a change that would
/// make that start fail is refused now. Addresses that this process holds itself are not tried.
fn try_next_start(
    control: &ControlThread,
    config: &Config,
    binds: &BindPlaces,
) -> Result<(), ReloadError> {
    let started = &control.started;
    let next = StartSettings::new(config);
    let is_ours = |key: &SocketKey| {
        control.sockets.hold(key)
            || started.admin_socket().overlaps(key)
            || started
                .metrics_socket()
                .is_some_and(|held| held.overlaps(key))
    };
    if let Some(key) = next.metrics_socket()
        && !is_ours(&key)
    {
        let probed = listen::probe(&key.address).map_err(SocketError::tcp);
        probed.map_err(|error| cannot_listen(started, binds, &error))?;
    }
    let key = next.admin_socket();
    if !is_ours(&key) {
        let bound = bind_admin(&next.admin, &default_admin_socket()).map(drop);
        bound.map_err(|error| refused(&binds.problem(&key, &error.to_string(), error.kind())))?;
    }
    Ok(())
}

/// The outcome of a reload that failed for a cause outside of the file.
fn failed(message: &str) -> ReloadError {
    ReloadError {
        rendered: format!("error: {message}\n"),
        json: json!([{"severity": "error", "message": message}]),
    }
}

/// Reports the outcome to the status page, the log and systemd.
fn report(control: &ControlThread, outcome: &ReloadOutcome) {
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
        Ok(ReloadReport { changes, .. }) => ReloadStatus {
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
    // systemd waits for READY after RELOADING, also if the reload failed.
    match outcome {
        Ok(ReloadReport { changes, .. }) => {
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
