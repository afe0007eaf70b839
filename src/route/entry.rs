//! The conditions of a route besides host and path.

use std::{cmp::Reverse, sync::Arc};

use crate::config::model::HeaderMatch;

/// Searches the request for a header: true if it has a field of that name (given in lower case)
/// whose value passes the test. A request may repeat a field, so every value is tested until one
/// passes.
pub type HasHeader<'a> = dyn Fn(&str, &dyn Fn(&[u8]) -> bool) -> bool + 'a;

/// A route with the conditions that are compared after host and path.
#[derive(Debug, Clone)]
pub(super) struct RouteEntry {
    pub(super) route: usize,
    pub(super) methods: Arc<[String]>,
    pub(super) headers: Arc<[HeaderMatch]>,
}

/// The part of a request that is the same for all readings of its path.
pub(super) struct RequestConditions<'a> {
    pub(super) method: &'a [u8],
    pub(super) header: &'a HasHeader<'a>,
}

impl RouteEntry {
    /// Sort key: a method first, then more headers, then the order of the file.
    pub(super) fn rank(&self) -> (bool, Reverse<usize>, usize) {
        (
            self.methods.is_empty(),
            Reverse(self.headers.len()),
            self.route,
        )
    }

    /// True if method and headers match.
    pub(super) fn matches(&self, conditions: &RequestConditions<'_>) -> bool {
        let mut methods = self.methods.iter();
        let has_method = methods.any(|method| method.as_bytes() == conditions.method);
        (self.methods.is_empty() || has_method)
            && self
                .headers
                .iter()
                .all(|wanted| (conditions.header)(&wanted.name, &|value| wanted.holds(value)))
    }
}
