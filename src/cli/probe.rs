//! `balancer check --probe`: asks the backends of a file once, and shows what each says.

use std::{io, time::Duration};

use serde_json::{Value, json};
use tokio::runtime::Builder;

use super::{backend_screen::milliseconds, table::table};
use crate::{
    config::model::Config,
    health::probe::{BackendProbe, PoolProbe, probe_pools},
    net::limits::raise_open_file_limit,
    pool::CheckTiming,
};

/// Time for all backends together.
const PROBE_TIMEOUT: Duration = Duration::from_mins(1);

/// Asks every backend of `config`.
pub(super) fn ask(config: &Config) -> io::Result<Vec<PoolProbe>> {
    raise_open_file_limit();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let pools = runtime.block_on(probe_pools(&config.pools, &config.resolvers, PROBE_TIMEOUT));
    // A look-up of a name that hangs must not hold up the end.
    runtime.shutdown_background();
    Ok(pools)
}

/// The backends in lines.
pub(super) fn screen(pools: &[PoolProbe]) -> String {
    let mut rows = Vec::new();
    for pool in pools {
        match pool.backends.as_deref() {
            None => rows.push(note(pool, "not asked: `health_check: none`")),
            Some([]) => rows.push(note(pool, "has no backends")),
            Some(backends) => rows.extend(backends.iter().map(|one| row(pool, one))),
        }
    }
    let mut text = String::new();
    table(&mut text, "  ", &rows);
    text
}

/// Cells of a pool without a backend to show.
fn note(pool: &PoolProbe, text: &str) -> Vec<String> {
    vec![pool.name.to_string(), text.to_owned()]
}

/// Cells of a backend: pool, name, result, times, cause.
fn row(pool: &PoolProbe, backend: &BackendProbe) -> Vec<String> {
    let name = if *backend.name == *backend.address {
        backend.address.clone()
    } else {
        format!("{} ({})", backend.name, backend.address)
    };
    let (result, cause) = match &backend.result {
        Ok(()) => ("passed", String::new()),
        Err(cause) => ("FAILED", cause.clone()),
    };
    let CheckTiming { took, phases } = backend.timing;
    let times = [
        ("resolved", phases.resolved),
        ("connected", phases.connected),
        ("tls", phases.secured),
        ("first byte", phases.first_byte),
    ];
    let times: Vec<_> = times
        .iter()
        .filter_map(|(name, time)| Some(format!("{name} {}", shown(Some((*time)?)))))
        .collect();
    vec![
        pool.name.to_string(),
        name,
        result.to_owned(),
        shown(Some(took)),
        times.join(", "),
        cause,
    ]
}

fn shown(time: Option<Duration>) -> String {
    milliseconds(time.unwrap_or_default().as_secs_f64())
}

/// A line for each pool that would serve nothing.
pub(super) fn errors(pools: &[PoolProbe]) -> Vec<String> {
    let bad = pools.iter().filter(|pool| !pool.is_good());
    bad.map(|pool| format!("error: pool `{}` has no backend that passes", pool.name))
        .collect()
}

/// The same for programs.
pub(super) fn document(pools: &[PoolProbe]) -> Value {
    let seconds = |time: Duration| time.as_micros() as f64 / 1e6;
    let backend = |one: &BackendProbe| {
        let CheckTiming { took, phases } = one.timing;
        json!({
            "name": &*one.name,
            "address": one.address,
            "ok": one.result.is_ok(),
            "error": one.result.as_ref().err(),
            "took_seconds": seconds(took),
            "resolved_seconds": phases.resolved.map(seconds),
            "connected_seconds": phases.connected.map(seconds),
            "secured_seconds": phases.secured.map(seconds),
            "first_byte_seconds": phases.first_byte.map(seconds),
        })
    };
    let pool = |pool: &PoolProbe| {
        let backends = pool.backends.iter().flatten();
        json!({
            "name": &*pool.name,
            "ok": pool.is_good(),
            "asked": pool.backends.is_some(),
            "backends": backends.map(backend).collect::<Vec<_>>(),
        })
    };
    json!({
        "ok": pools.iter().all(PoolProbe::is_good),
        "pools": pools.iter().map(pool).collect::<Vec<_>>(),
    })
}
