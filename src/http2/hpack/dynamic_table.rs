//! Dynamic table, RFC 7541 section 2.3.2.

use std::collections::VecDeque;

use super::FIELD_OVERHEAD;

/// Bytes of evicted entries that are kept until the others are moved: moving at every eviction
/// would cost a copy of the table per field.
const COMPACT_THRESHOLD_BYTES: usize = 1 << 10;

/// Fields that the sender of field blocks has added, newest last.
#[derive(Debug)]
pub(super) struct DynamicTable {
    /// Names and values, one entry after the other; evicted ones come first.
    bytes: Vec<u8>,
    entries: VecDeque<TableEntry>,
    /// Size by the rule of RFC 7541 section 4.1.
    size: usize,
    most: usize,
}

#[derive(Debug)]
struct TableEntry {
    start: u16,
    name: u16,
    value: u16,
}

impl TableEntry {
    const fn size(&self) -> usize {
        self.name as usize + self.value as usize + FIELD_OVERHEAD
    }
}

impl DynamicTable {
    /// Creates an empty table; `most` is below 16 KiB.
    pub(super) const fn new(most: usize) -> Self {
        Self {
            bytes: Vec::new(),
            entries: VecDeque::new(),
            size: 0,
            most,
        }
    }

    /// Name and value of an entry, counted from the newest, which is 0.
    pub(super) fn get(&self, place: usize) -> Option<(&[u8], &[u8])> {
        let place = self.entries.len().checked_sub(place + 1)?;
        let entry = self.entries.get(place)?;
        let name_end = usize::from(entry.start) + usize::from(entry.name);
        let name = self.bytes.get(usize::from(entry.start)..name_end)?;
        let value = self
            .bytes
            .get(name_end..name_end + usize::from(entry.value))?;
        Some((name, value))
    }

    /// Adds a field and evicts the oldest ones; one that is larger than the table empties it
    /// (section 4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + FIELD_OVERHEAD;
        self.shrink(self.most.saturating_sub(size));
        if size > self.most {
            return;
        }
        self.entries.push_back(TableEntry {
            start: self.bytes.len() as u16,
            name: name.len() as u16,
            value: value.len() as u16,
        });
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.size += size;
    }

    /// Number of fields.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Size by the rule of RFC 7541 section 4.1.
    #[cfg(test)]
    pub(super) const fn size(&self) -> usize {
        self.size
    }

    /// Size that it may have.
    pub(super) const fn max_size(&self) -> usize {
        self.most
    }

    /// Changes the size that it may have.
    pub(super) fn resize(&mut self, most: usize) {
        self.most = most;
        self.shrink(most);
    }

    /// Evicts the oldest entries until at most `size` is used.
    fn shrink(&mut self, size: usize) {
        while self.size > size
            && let Some(oldest) = self.entries.pop_front()
        {
            self.size -= oldest.size();
        }
        let gone = self.entries.front();
        let gone = gone.map_or(self.bytes.len(), |it| usize::from(it.start));
        if self.entries.is_empty() || gone > COMPACT_THRESHOLD_BYTES {
            self.bytes.drain(..gone);
            let moved = self.entries.iter_mut();
            moved.for_each(|it| it.start -= gone as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Random;

    #[test]
    fn the_table_holds_the_newest_that_fit() {
        let mut random = Random::seeded(4);
        let (mut table, mut model) = (DynamicTable::new(4_096), Vec::<(Vec<u8>, Vec<u8>)>::new());
        let mut most = 4_096;
        for round in 0..20_000_u32 {
            if random.below(100) == 0 {
                most = random.below(4_097);
                table.resize(most);
            } else {
                let name = round.to_string().into_bytes();
                let longest = if random.below(50) == 0 { 5_000 } else { 60 };
                let value = vec![b'v'; random.below(longest)];
                table.insert(&name, &value);
                model.insert(0, (name, value));
            }
            let mut size = 0;
            let fits = model.iter().take_while(|(name, value)| {
                size += name.len() + value.len() + 32;
                size <= most
            });
            let fits = fits.count();
            model.truncate(fits);
            for (place, (name, value)) in model.iter().enumerate() {
                assert_eq!(table.get(place), Some((&name[..], &value[..])), "{round}");
            }
            assert_eq!(table.get(model.len()), None, "{round}");
            assert!(
                table.bytes.len() <= 4_096 + COMPACT_THRESHOLD_BYTES + 60,
                "{round}"
            );
        }
    }
}
