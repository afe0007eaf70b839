//! The pools of a generation, in parts that generations share.
//!
//! A change of members replaces one pool. With all pools in one list, each such change would copy
//! and drop a reference for every pool there is.

use std::{ops::Index, sync::Arc};

use crate::pool::Pool;

/// Pools of one part.
const PART_POOLS: usize = 64;

/// The pools, in the order of the file; indexes agree with [`Config::pools`].
///
/// [`Config::pools`]: crate::config::model::Config::pools
#[derive(Debug, Clone, Default)]
pub struct PoolTable {
    /// Each of [`PART_POOLS`] pools, the last one of fewer.
    parts: Vec<Arc<[Arc<Pool>]>>,
    len: usize,
}

impl PoolTable {
    /// Number of pools.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True without pools.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pool at `index`.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&Arc<Pool>> {
        self.parts.get(index / PART_POOLS)?.get(index % PART_POOLS)
    }

    /// All pools, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// The same pools with `pool` at `index`. An index beyond them changes nothing.
    #[must_use]
    pub(super) fn with(&self, index: usize, pool: Arc<Pool>) -> Self {
        let mut next = self.clone();
        if let Some(part) = next.parts.get_mut(index / PART_POOLS) {
            let mut pools = part.to_vec();
            if let Some(slot) = pools.get_mut(index % PART_POOLS) {
                *slot = pool;
                *part = pools.into();
            }
        }
        next
    }
}

impl FromIterator<Arc<Pool>> for PoolTable {
    fn from_iter<I: IntoIterator<Item = Arc<Pool>>>(pools: I) -> Self {
        let pools: Vec<_> = pools.into_iter().collect();
        Self {
            len: pools.len(),
            parts: pools.chunks(PART_POOLS).map(Arc::from).collect(),
        }
    }
}

impl<'a> IntoIterator for &'a PoolTable {
    type Item = &'a Arc<Pool>;
    type IntoIter = Box<dyn Iterator<Item = &'a Arc<Pool>> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl Index<usize> for PoolTable {
    type Output = Arc<Pool>;

    #[expect(
        clippy::expect_used,
        reason = "an index beyond the table is a bug, as for a slice"
    )]
    fn index(&self, index: usize) -> &Arc<Pool> {
        self.get(index).expect("an index of this table")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::clock, pool::fixture::config};

    #[test]
    fn a_table_with_another_pool_shares_all_other_parts() {
        let pool = |name: usize| {
            let config = crate::config::model::PoolConfig {
                name: format!("p{name}").into(),
                ..config(&[1])
            };
            Arc::new(Pool::new(&config, None, clock::now()))
        };
        let table: PoolTable = (0..200).map(pool).collect();
        assert_eq!((table.len(), table.iter().count()), (200, 200));
        let other = pool(999);
        let next = table.with(70, Arc::clone(&other));
        assert!(Arc::ptr_eq(&next[70], &other));
        assert_eq!(&*table[70].name, "p70");
        for index in (0..200).filter(|index| *index != 70) {
            assert!(Arc::ptr_eq(&table[index], &next[index]), "{index}");
        }
        let shared = |part: usize| Arc::ptr_eq(&table.parts[part], &next.parts[part]);
        assert_eq!([0, 1, 2, 3].map(shared), [true, false, true, true]);
        assert!(next.get(200).is_none() && next.with(200, other).len() == 200);
        assert!(PoolTable::default().is_empty());
    }
}
