//! Selection of the pool for a TLS connection by the server name in its ClientHello: the exact
//! name, then the nearest `*.` above it, with the same meaning as hosts of routes.

use std::collections::{BTreeMap, HashMap};

use super::host::parents;
use crate::config::model::HostMatch;

/// `sni` of a listener, prepared for lookup.
#[derive(Debug)]
pub struct ServerNames {
    exact: HashMap<Box<[u8]>, usize>,
    suffix: HashMap<Box<[u8]>, usize>,
}

impl ServerNames {
    /// Prepares `sni`; `None` if it is not configured.
    pub fn new(names: &BTreeMap<HostMatch, usize>) -> Option<Self> {
        let mut prepared = Self {
            exact: HashMap::new(),
            suffix: HashMap::new(),
        };
        for (name, pool) in names {
            let (map, name) = match name {
                HostMatch::Exact(name) => (&mut prepared.exact, name),
                HostMatch::Suffix(name) => (&mut prepared.suffix, name),
            };
            map.insert(name.as_bytes().into(), *pool);
        }
        (!names.is_empty()).then_some(prepared)
    }

    /// Returns the pool for `name`, an index into `Config::pools`. `name` is in lower case and
    /// without a final dot.
    pub fn find(&self, name: &str) -> Option<usize> {
        let name = name.as_bytes();
        let nearest = || parents(name).find_map(|parent| self.suffix.get(parent));
        self.exact.get(name).or_else(nearest).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_name_goes_before_the_nearest_wildcard_and_nothing_else_matches() {
        let exact = |name: &str| HostMatch::Exact(name.to_owned());
        let suffix = |name: &str| HostMatch::Suffix(name.to_owned());
        let names = ServerNames::new(&BTreeMap::from([
            (exact("a.example.com"), 0),
            (suffix("example.com"), 1),
            (suffix("b.example.com"), 2),
            (exact("b.example.com"), 3),
        ]))
        .unwrap();
        for (name, pool) in [
            ("a.example.com", Some(0)),
            ("c.example.com", Some(1)),
            ("x.a.example.com", Some(1)),
            ("x.b.example.com", Some(2)),
            ("y.x.b.example.com", Some(2)),
            ("b.example.com", Some(3)),
            ("example.com", None),
            ("anexample.com", None),
            ("example.com.org", None),
            ("com", None),
            ("", None),
        ] {
            assert_eq!(names.find(name), pool, "{name}");
        }
        assert!(ServerNames::new(&BTreeMap::new()).is_none());
    }
}
