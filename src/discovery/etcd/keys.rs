//! The keys of a pool, and the members that their values are: pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{
    model::{BackendConfig, EtcdConfig, PoolConfig},
    parse_member,
};

/// Largest value in bytes: one backend needs less than 200.
const MAX_VALUE_BYTES: usize = 64 << 10;
/// Keys of one prefix; further ones are an error.
const MAX_KEYS: usize = 100_000;

/// One key with its last value.
#[derive(Debug, Clone, PartialEq)]
struct KeyEntry {
    /// The last value that was right.
    good: Option<(String, BackendConfig)>,
    /// Cause why the last value is not.
    error: Option<String>,
}

/// A change of one key; `None` is its removal.
pub(super) type KeyChange = (Vec<u8>, Option<Vec<u8>>);

/// All keys with the prefix, at one revision.
#[derive(Debug, Default)]
pub(super) struct KeyTable {
    entries: BTreeMap<Vec<u8>, KeyEntry>,
    revision: Option<u64>,
    /// There were more keys than are kept.
    is_full: bool,
    /// The document that was written to the state directory last.
    kept: Vec<u8>,
}

impl KeyTable {
    /// The revision that the keys are of; `None` before they were read.
    pub(super) const fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// All keys must be read again.
    pub(super) const fn forget_revision(&mut self) {
        self.revision = None;
    }

    /// Takes all keys as they are now.
    pub(super) fn replace(
        &mut self,
        listed: Vec<(Vec<u8>, Vec<u8>)>,
        revision: u64,
        pool: &PoolConfig,
    ) {
        let mut before = std::mem::take(&mut self.entries);
        self.is_full = listed.len() > MAX_KEYS;
        for (key, value) in listed.into_iter().take(MAX_KEYS) {
            let entry = entry(before.remove(&key), &value, pool);
            self.entries.insert(key, entry);
        }
        self.revision = Some(revision);
    }

    /// Takes the changes up to `revision`. False if there was none.
    pub(super) fn apply(
        &mut self,
        changes: Vec<KeyChange>,
        revision: u64,
        pool: &PoolConfig,
    ) -> bool {
        // Progress is told with the revision of the whole store: nothing older comes.
        self.revision = self.revision.max(Some(revision));
        let any = !changes.is_empty();
        for (key, value) in changes {
            let before = self.entries.remove(&key);
            let Some(value) = value else { continue };
            if self.entries.len() >= MAX_KEYS {
                self.is_full = true;
                continue;
            }
            self.entries.insert(key, entry(before, &value, pool));
        }
        any
    }

    /// The members, in the order of the keys, and the first cause of one that is missing or old.
    pub(super) fn members(&self) -> (Vec<BackendConfig>, Option<String>) {
        let good = self
            .entries
            .values()
            .filter_map(|entry| entry.good.as_ref());
        let members = good.map(|(_, member)| member.clone()).collect();
        let mut errors = self.entries.iter().filter_map(|(key, entry)| {
            let error = entry.error.as_ref()?;
            Some(format!("key `{}`: {error}", shown(key)))
        });
        let full = || format!("more than {MAX_KEYS} keys: the others are left out");
        (members, errors.next().or_else(|| self.is_full.then(full)))
    }

    /// The document for the state directory; `None` if it is the same as the last time.
    pub(super) fn take_new(&mut self, cluster: &EtcdConfig) -> Option<Vec<u8>> {
        let good = self
            .entries
            .values()
            .filter_map(|entry| entry.good.as_ref());
        let kept = KeptMembers {
            endpoints: endpoints(cluster),
            prefix: cluster.prefix.clone(),
            values: good.map(|(value, _)| value.clone()).collect(),
        };
        let bytes = serde_json::to_vec(&kept).ok()?;
        if self.kept == bytes {
            return None;
        }
        self.kept.clone_from(&bytes);
        Some(bytes)
    }
}

/// Reads a value. One that is wrong keeps the last good one of its key.
fn entry(before: Option<KeyEntry>, value: &[u8], pool: &PoolConfig) -> KeyEntry {
    match member(value, pool) {
        Ok(member) => KeyEntry {
            good: Some((String::from_utf8_lossy(value).into_owned(), member)),
            error: None,
        },
        Err(error) => KeyEntry {
            good: before.and_then(|before| before.good),
            error: Some(error),
        },
    }
}

fn member(value: &[u8], pool: &PoolConfig) -> Result<BackendConfig, String> {
    if value.len() > MAX_VALUE_BYTES {
        return Err("the value is larger than 64KiB".to_owned());
    }
    parse_member(value, pool).map_err(|error| error.to_string())
}

/// A key as a text without control characters.
fn shown(key: &[u8]) -> String {
    let text = String::from_utf8_lossy(key);
    text.chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect()
}

fn endpoints(cluster: &EtcdConfig) -> Vec<String> {
    cluster.endpoints.iter().map(ToString::to_string).collect()
}

/// Members in the state directory, with the source that they are from.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptMembers {
    endpoints: Vec<String>,
    prefix: String,
    values: Vec<String>,
}

impl KeptMembers {
    /// Reads a document; what is from another source, or is none, is left out.
    pub(super) fn read(bytes: &[u8], cluster: &EtcdConfig) -> Self {
        let kept: Self = serde_json::from_slice(bytes).unwrap_or_default();
        if kept.prefix == cluster.prefix && kept.endpoints == endpoints(cluster) {
            kept
        } else {
            Self::default()
        }
    }

    /// The members, without those that the pool does not take.
    pub(super) fn members(&self, pool: &PoolConfig) -> Vec<BackendConfig> {
        let values = self.values.iter().take(MAX_KEYS);
        values
            .filter_map(|value| member(value.as_bytes(), pool).ok())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> PoolConfig {
        PoolConfig::named("app")
    }

    fn cluster(prefix: &str) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec!["127.0.0.1:2379".parse().unwrap()],
            prefix: prefix.to_owned(),
            login: None,
            tls: None,
        }
    }

    fn value(number: u8) -> Vec<u8> {
        format!("{{\"address\": \"10.0.0.{number}:80\"}}").into_bytes()
    }

    fn put(key: &str, value: impl Into<Vec<u8>>) -> KeyChange {
        (key.into(), Some(value.into()))
    }

    fn names(table: &KeyTable) -> Vec<String> {
        let members = table.members().0;
        members.iter().map(|one| one.name.to_string()).collect()
    }

    #[test]
    fn changes_are_applied_and_a_wrong_value_keeps_the_last_good_one() {
        let mut table = KeyTable::default();
        assert_eq!(table.revision(), None);
        let listed = vec![(b"/b".to_vec(), value(2)), (b"/a".to_vec(), value(1))];
        table.replace(listed, 7, &pool());
        assert_eq!(names(&table), ["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(table.members().1, None);
        assert!(table.apply(
            vec![put("/a", value(9)), (b"/b".to_vec(), None)],
            9,
            &pool()
        ));
        assert_eq!(names(&table), ["10.0.0.9:80"]);
        for (wrong, cause) in [
            ("{\"address\": 1", "line 1"),
            ("{\"weight\": 1}", "`address` is missing"),
            ("", "key `/a`"),
            (&"x".repeat(70_000), "larger than 64KiB"),
        ] {
            assert!(table.apply(vec![put("/a", wrong)], 10, &pool()));
            assert_eq!(names(&table), ["10.0.0.9:80"], "{wrong:.20}");
            let trouble = table.members().1.unwrap();
            assert!(trouble.contains(cause), "{trouble}");
        }
        // A plain address is an entry of `backends` too.
        assert!(table.apply(vec![put("/a", "\"10.0.0.3:80\"")], 11, &pool()));
        assert_eq!(
            (names(&table), table.members().1),
            (vec!["10.0.0.3:80".to_owned()], None)
        );
        assert!(!table.apply(Vec::new(), 99, &pool()));
        assert!(!table.apply(Vec::new(), 50, &pool()));
        assert_eq!(table.revision(), Some(99));
        // After a compaction all keys are read again: those that are gone leave.
        table.forget_revision();
        table.replace(vec![(b"/c".to_vec(), value(4))], 100, &pool());
        assert_eq!(names(&table), ["10.0.0.4:80"]);
    }

    #[test]
    fn kept_members_are_for_the_same_source_only() {
        let mut table = KeyTable::default();
        table.replace(vec![(b"/a".to_vec(), value(1))], 1, &pool());
        let bytes = table.take_new(&cluster("/app/")).unwrap();
        assert_eq!(table.take_new(&cluster("/app/")), None, "nothing new");
        let kept = |prefix: &str| KeptMembers::read(&bytes, &cluster(prefix)).members(&pool());
        assert_eq!(kept("/app/").len(), 1);
        assert_eq!(kept("/other/").len(), 0);
        let broken = KeptMembers::read(b"{\"prefix\": 1", &cluster("/app/"));
        assert_eq!(broken, KeptMembers::default());
    }
}
