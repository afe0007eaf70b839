//! The table of consistent hashing (Maglev, Eisenbud and others 2016, section 3.4): a key leads to
//! an entry, and an entry to a member.
//!
//! A member's entries are spread by its address alone, so every process with the same members has
//! the same table, in any order of the list. When a member leaves, its keys are spread over the
//! others, and hardly any other key moves.

use crate::base::hasher::stable_hash;

/// Sizes of tables: primes, so that every step through a table visits all its entries.
const TABLE_SIZES: [usize; 4] = [10_007, 65_537, 262_147, MAX_TABLE_SIZE];
/// Also for larger pools, where a share then has fewer entries: 4 MiB.
const MAX_TABLE_SIZE: usize = 1_000_003;
/// Entries for each member, at least: when one leaves, less than 1 % of the others' keys move too.
const ENTRIES_PER_MEMBER: usize = 500;

/// A backend that gets a share of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableMember {
    /// Its address: it decides which entries it gets.
    pub(crate) address: String,
    /// Its share, in relation to the others; above 0.
    pub(crate) weight: u16,
    /// The value of its entries.
    pub(crate) index: u32,
}

/// Members by key.
#[derive(Debug)]
pub(crate) struct MaglevTable {
    entries: Box<[u32]>,
}

/// A member in its turn, and the entry it wants next.
struct MemberTurn {
    index: u32,
    weight: u32,
    /// Sum of the weight over the rounds so far, less one turn's worth for each turn taken.
    credit: u32,
    next: usize,
    step: usize,
}

impl MaglevTable {
    /// Fills the table for `members`; it is empty if there are none.
    pub(crate) fn new(members: &[TableMember]) -> Self {
        if members.is_empty() {
            return Self {
                entries: Box::default(),
            };
        }
        let wanted = members.len() * ENTRIES_PER_MEMBER;
        let fitting = TABLE_SIZES.into_iter().find(|size| *size >= wanted);
        let size = fitting.unwrap_or(MAX_TABLE_SIZE);
        let heaviest = members.iter().map(|member| member.weight).max();
        let heaviest = u32::from(heaviest.unwrap_or(1).max(1));
        let mut turns = turns(members, size);
        let mut entries = vec![u32::MAX; size].into_boxed_slice();
        let mut free = size;
        // In each round a member gets as many turns as its weight is of the heaviest one's: at
        // most one.
        'rounds: loop {
            for turn in &mut turns {
                turn.credit += turn.weight;
                if turn.credit < heaviest {
                    continue;
                }
                turn.credit -= heaviest;
                take_next_free(&mut entries, turn);
                free -= 1;
                if free == 0 {
                    break 'rounds;
                }
            }
        }
        Self { entries }
    }

    /// The index of the member that `key` leads to.
    #[inline]
    pub(crate) fn member(&self, key: u64) -> Option<usize> {
        let at = key % self.entries.len().max(1) as u64;
        self.entries.get(at as usize).map(|index| *index as usize)
    }
}

/// The members in the order of their hashes, which no list decides, each at its first entry.
fn turns(members: &[TableMember], size: usize) -> Vec<MemberTurn> {
    let mut sorted: Vec<&TableMember> = members.iter().collect();
    sorted.sort_by(|one, other| one.address.cmp(&other.address));
    sorted
        .into_iter()
        .map(|member| {
            let hash = |purpose| stable_hash(purpose, member.address.as_bytes());
            MemberTurn {
                index: member.index,
                weight: u32::from(member.weight.max(1)),
                credit: 0,
                next: (hash(1) % size as u64) as usize,
                step: (hash(2) % (size as u64 - 1)) as usize + 1,
            }
        })
        .collect()
}

/// Gives the member whose turn it is the next free entry of its own order.
fn take_next_free(entries: &mut [u32], turn: &mut MemberTurn) {
    let size = entries.len();
    for _ in 0..size {
        let at = turn.next;
        turn.next = (turn.next + turn.step) % size;
        if let Some(entry) = entries.get_mut(at)
            && *entry == u32::MAX
        {
            *entry = turn.index;
            return;
        }
    }
    debug_assert!(false, "no entry is free");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(weights: &[u16]) -> Vec<TableMember> {
        let member = |(number, weight): (usize, &u16)| TableMember {
            address: format!("10.0.{}.{}:80", number / 256, number % 256),
            weight: *weight,
            index: number as u32,
        };
        weights.iter().enumerate().map(member).collect()
    }

    fn shares(table: &MaglevTable, count: usize) -> Vec<usize> {
        let mut shares = vec![0; count];
        for index in &table.entries {
            shares[*index as usize] += 1;
        }
        shares
    }

    #[test]
    fn shares_follow_the_weights() {
        for weights in [
            &[1][..],
            &[1, 1, 1],
            &[1, 2, 3],
            &[256, 1],
            &[5; 99],
            &[7, 200, 3, 90],
        ] {
            let table = MaglevTable::new(&members(weights));
            let total: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
            for (share, weight) in shares(&table, weights.len()).iter().zip(weights) {
                let expected = table.entries.len() as f64 * f64::from(*weight) / total as f64;
                let off = (*share as f64 - expected).abs();
                assert!(off <= 2.0, "{weights:?}: {share} instead of {expected:.1}");
            }
        }
        assert_eq!(MaglevTable::new(&[]).member(7), None);
    }

    #[test]
    fn the_table_depends_on_the_members_and_not_on_their_order() {
        let mut members = members(&[3, 1, 1, 2, 9]);
        let table = MaglevTable::new(&members);
        members.reverse();
        assert_eq!(MaglevTable::new(&members).entries, table.entries);
    }

    #[test]
    fn a_member_that_leaves_moves_its_own_keys_and_hardly_any_other() {
        let keys = 100_000_u64;
        for count in [3, 10, 20, 50, 131, 300, 524] {
            let all = members(&vec![1; count]);
            let table = MaglevTable::new(&all);
            let without: Vec<_> = all.iter().filter(|one| one.index != 1).cloned().collect();
            let fewer = MaglevTable::new(&without);
            let moved = (0..keys)
                .map(|number| stable_hash(0, &number.to_le_bytes()))
                .filter(|key| table.member(*key) != fewer.member(*key))
                .count();
            let bound = keys as f64 * (1.0 / count as f64 + 0.01);
            assert!(moved as f64 <= bound, "{count}: {moved} of {keys} moved");
        }
    }

    #[test]
    fn keys_are_shared_evenly() {
        let keys = 100_000_u64;
        for count in [3, 10, 50] {
            let table = MaglevTable::new(&members(&vec![1; count]));
            let mut counts = vec![0.0; count];
            for number in 0..keys {
                let key = stable_hash(0, &number.to_le_bytes());
                counts[table.member(key).unwrap()] += 1.0;
            }
            let mean = keys as f64 / count as f64;
            // Of 100,000 keys 50 members get 2,000 each, give or take 45 by chance alone: the bound
            // is for the error of the whole, half the sum of the differences.
            let off: f64 = counts.iter().map(|one: &f64| (one - mean).abs()).sum();
            let error = off / 2.0 / keys as f64;
            assert!(error <= 0.02, "{count}: {error:.4}");
        }
    }
}
