//! The file that keeps the operator's overrides over a restart: `overrides.json` in the state
//! directory.
//!
//! A write never blocks the control thread, and a change is in force before it is written. A file
//! that cannot be read is a warning: an old drain is no reason not to serve. Read next:
//! `overrides.rs`.

use std::{
    cell::RefCell,
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::oneshot,
    task::{spawn_blocking, spawn_local},
    time::timeout,
};

use crate::{
    base::{clock, state_file::StateFile},
    pool::{
        BackendOverrides, OperatorOverride, OperatorState, OverrideEnd, OverrideKey, OverrideTable,
    },
};

/// Name of the file.
const FILE_NAME: &str = "overrides.json";
/// Version of its format.
const FORMAT_VERSION: u32 = 1;
/// Maximum size: 10,000 backends with notes have less.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Time to read it at start.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Highest weight.
const MAX_WEIGHT: u16 = 256;

/// The whole file.
#[derive(Debug, Serialize, Deserialize)]
struct OverrideDocument {
    version: u32,
    overrides: Vec<StoredBackend>,
}

/// The version alone: the rest of another version has another form.
#[derive(Debug, Deserialize)]
struct DocumentVersion {
    version: u32,
}

/// The overrides of one backend.
#[derive(Debug, Serialize, Deserialize)]
struct StoredBackend {
    pool: String,
    address: String,
    state: Option<StoredOverride<String>>,
    weight: Option<StoredOverride<u16>>,
}

/// One override. Times are milliseconds since the Unix epoch.
#[derive(Debug, Serialize, Deserialize)]
struct StoredOverride<T> {
    value: T,
    by: String,
    since_unix_ms: u64,
    until_unix_ms: Option<u64>,
    note: Option<String>,
}

impl<T> StoredOverride<T> {
    fn new<V>(from: &OperatorOverride<V>, value: T) -> Self {
        Self {
            value,
            by: from.by.clone(),
            since_unix_ms: from.since_unix.as_millis() as u64,
            until_unix_ms: from.end.map(|end| end.unix.as_millis() as u64),
            note: from.note.clone(),
        }
    }

    /// The override with `value`; `None` if its time is over.
    fn restored<V>(
        &self,
        value: V,
        now: Instant,
        unix_now: Duration,
    ) -> Option<OperatorOverride<V>> {
        let since_unix = Duration::from_millis(self.since_unix_ms);
        let end = match self.until_unix_ms.map(Duration::from_millis) {
            None => None,
            Some(unix) if unix <= unix_now => return None,
            Some(unix) => {
                let left = unix.saturating_sub(unix_now);
                // The clock may be set only after the start: never longer than it was meant.
                let left = left.min(unix.saturating_sub(since_unix));
                Some(OverrideEnd {
                    at: now.checked_add(left)?,
                    unix,
                })
            }
        };
        Some(OperatorOverride {
            value,
            by: one_line(&self.by),
            since_unix,
            end,
            note: self.note.as_deref().map(one_line),
        })
    }
}

/// Text for the log and screens: an edited file must not forge lines.
fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// The content of the file for `table`.
fn encode(table: &OverrideTable) -> Vec<u8> {
    let stored = table.iter().map(|(key, overrides)| {
        let BackendOverrides { state, weight } = overrides;
        StoredBackend {
            pool: key.pool.clone(),
            address: key.address.clone(),
            state: state
                .as_ref()
                .map(|one| StoredOverride::new(one, one.value.name().to_owned())),
            weight: weight
                .as_ref()
                .map(|one| StoredOverride::new(one, one.value)),
        }
    });
    let document = OverrideDocument {
        version: FORMAT_VERSION,
        overrides: stored.collect(),
    };
    let encoded = serde_json::to_vec_pretty(&document);
    debug_assert!(encoded.is_ok(), "plain structs: {encoded:?}");
    encoded.unwrap_or_default()
}

/// Reads the content of a file. Overrides that have ended meanwhile are left out.
fn decode(content: &[u8], now: Instant, unix_now: Duration) -> Result<OverrideTable, String> {
    let DocumentVersion { version } =
        serde_json::from_slice(content).map_err(|error| error.to_string())?;
    if version != FORMAT_VERSION {
        return Err(format!("version {version} of the file is not known"));
    }
    let document: OverrideDocument =
        serde_json::from_slice(content).map_err(|error| error.to_string())?;
    let mut table = OverrideTable::default();
    for stored in document.overrides {
        let state = stored.state.as_ref().map(|one| {
            let mut known = OperatorState::ALL.into_iter();
            let value = known.find(|state| state.name() == one.value);
            let value =
                value.ok_or_else(|| format!("there is no state `{}`", one_line(&one.value)))?;
            Ok::<_, String>(one.restored(value, now, unix_now))
        });
        let weight = stored.weight.as_ref().map(|one| {
            if one.value > MAX_WEIGHT {
                return Err(format!("{} is not a weight", one.value));
            }
            Ok(one.restored(one.value, now, unix_now))
        });
        let key = OverrideKey {
            pool: stored.pool,
            address: stored.address,
        };
        let overrides = BackendOverrides {
            state: state.transpose()?.flatten(),
            weight: weight.transpose()?.flatten(),
        };
        table.set(key, overrides);
    }
    Ok(table)
}

/// Result of a write: an error is its text.
type SaveResult = Result<(), String>;

/// The next write. Changes that come while one runs share the one after it.
#[derive(Debug, Default)]
struct SaveQueue {
    content: Option<Vec<u8>>,
    waiting: Vec<oneshot::Sender<SaveResult>>,
    is_writing: bool,
}

/// The file, and the writes to it: one at a time, in the order of the changes.
#[derive(Debug)]
pub(super) struct OverrideFile {
    /// `None`: there is no state directory.
    file: Option<StateFile>,
    queue: Rc<RefCell<SaveQueue>>,
}

impl OverrideFile {
    /// The file in the state directory.
    pub(super) fn new(directory: Option<&Path>) -> Self {
        Self {
            file: directory.map(|directory| StateFile::new(directory, FILE_NAME)),
            queue: Rc::default(),
        }
    }

    /// Reads the overrides at start; a file that cannot be read is a warning and none.
    pub(super) async fn load(&self) -> OverrideTable {
        let Some(file) = self.file.clone() else {
            return OverrideTable::default();
        };
        let path = file.path();
        // A file system that hangs must not hold up the start for ever.
        let reading = timeout(
            READ_TIMEOUT,
            spawn_blocking(move || file.read(MAX_FILE_BYTES)),
        );
        let decoded = match reading.await {
            Ok(Ok(Ok(None))) => Ok(OverrideTable::default()),
            Ok(Ok(Ok(Some(content)))) => decode(&content, clock::now(), clock::unix_now()),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(panic)) => Err(panic.to_string()),
            Err(_) => Err(format!("no result after {} s", READ_TIMEOUT.as_secs())),
        };
        decoded.unwrap_or_else(|error| {
            tracing::warn!(
                target: "operator", path = %path.display(), %error,
                "cannot read the overrides of operators: starting without them; the next change replaces the file"
            );
            OverrideTable::default()
        })
    }

    /// Writes the overrides on a helper thread; the receiver gets the result. Needs a local
    /// runtime.
    pub(super) fn save(&self, table: &OverrideTable) -> oneshot::Receiver<SaveResult> {
        let (sender, result) = oneshot::channel();
        let Some(file) = self.file.clone() else {
            let error = "there is no state directory".to_owned();
            // The receiver is here.
            let _ = sender.send(Err(error));
            return result;
        };
        let mut queue = self.queue.borrow_mut();
        queue.content = Some(encode(table));
        queue.waiting.push(sender);
        if !std::mem::replace(&mut queue.is_writing, true) {
            drop(spawn_local(write_queued(file, Rc::clone(&self.queue))));
        }
        result
    }
}

/// Writes until nothing is queued.
async fn write_queued(file: StateFile, queue: Rc<RefCell<SaveQueue>>) {
    loop {
        let (content, waiting) = {
            let mut queue = queue.borrow_mut();
            let Some(content) = queue.content.take() else {
                queue.is_writing = false;
                return;
            };
            (content, std::mem::take(&mut queue.waiting))
        };
        let target = file.clone();
        let result = match spawn_blocking(move || target.write(&content)).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        };
        let result = result.map_err(|error| format!("`{}`: {error}", file.path().display()));
        if let Err(error) = &result {
            tracing::warn!(target: "operator", %error, "cannot write the overrides of operators: they will not survive a restart");
        }
        for client in waiting {
            // Fails if the client has left.
            let _ = client.send(result.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIX_NOW: Duration = Duration::from_secs(1_000);

    fn one<T>(value: T, end: Option<u64>, now: Instant) -> OperatorOverride<T> {
        OperatorOverride {
            value,
            by: "lea".to_owned(),
            since_unix: Duration::from_secs(7),
            end: end.map(|seconds| OverrideEnd {
                at: now + Duration::from_secs(seconds),
                unix: UNIX_NOW + Duration::from_secs(seconds),
            }),
            note: Some("a \"note\"".to_owned()),
        }
    }

    fn key(address: &str) -> OverrideKey {
        OverrideKey {
            pool: "app".to_owned(),
            address: address.to_owned(),
        }
    }

    #[test]
    fn what_is_written_is_read_and_what_has_ended_is_not() {
        let now = clock::now();
        let mut table = OverrideTable::default();
        let both = BackendOverrides {
            state: Some(one(OperatorState::Maintenance, None, now)),
            weight: Some(one(256, Some(60), now)),
        };
        table.set(key("a:1"), both.clone());
        let short = BackendOverrides {
            state: Some(one(OperatorState::Draining, Some(1), now)),
            weight: None,
        };
        table.set(key("unix:/a"), short);
        let content = encode(&table);
        assert_eq!(decode(&content, now, UNIX_NOW), Ok(table.clone()));
        // A restart takes a second: the monotonic clock of the next process is another.
        let second = Duration::from_secs(1);
        let later = decode(&content, now + second, UNIX_NOW + second).unwrap();
        assert_eq!(later.get(&key("a:1")), both);
        assert!(later.get(&key("unix:/a")).is_empty());
        // A clock that is not set yet must not make it last for years.
        let early = decode(&content, now, Duration::ZERO).unwrap();
        let end = early.get(&key("a:1")).weight.unwrap().end.unwrap().at;
        assert_eq!(end, now + Duration::from_secs(1_060 - 7));
    }

    #[test]
    fn a_broken_file_is_an_error() {
        for (content, part) in [
            ("", "EOF"),
            ("{}", "version"),
            (r#"{"version":2,"x":1}"#, "version 2"),
            (r#"{"version":1}"#, "overrides"),
            (
                r#"{"version":1,"overrides":[{"pool":"a","address":"b","state":{"value":"off","by":"","since_unix_ms":0}}]}"#,
                "no state `off`",
            ),
            (
                r#"{"version":1,"overrides":[{"pool":"a","address":"b","weight":{"value":257,"by":"","since_unix_ms":0}}]}"#,
                "257",
            ),
        ] {
            let error = decode(content.as_bytes(), clock::now(), UNIX_NOW).unwrap_err();
            assert!(error.contains(part), "{content}: {error}");
        }
    }

    #[test]
    fn an_edited_file_forges_no_log_lines() {
        let now = clock::now();
        let content = r#"{"version":1,"overrides":[{"pool":"a","address":"b","state":{"value":"draining","by":"x\ny","since_unix_ms":0,"note":"n\r\n"}}]}"#;
        let table = decode(content.as_bytes(), now, UNIX_NOW).unwrap();
        let (_, overrides) = table.iter().next().unwrap();
        assert_eq!(overrides.state.as_ref().unwrap().by, "xy");
    }
}
