//! Encoder of field blocks, RFC 7541 section 6.

use std::time::{Duration, Instant};

use super::{
    FIELD_OVERHEAD,
    dynamic_table::DynamicTable,
    known_names::{self, Edges, IndexPolicy, KnownName, OTHERS, SPREAD},
    static_table::STATIC_FIELDS,
};

/// Largest dynamic table that we use, and the default of RFC 9113 section 6.5.2: memory per
/// connection.
const MAX_TABLE_BYTES: u16 = 4_096;
/// Time from one message to the next of a connection that is worth a table.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);
/// Sets of slots; a power of two.
const SETS: usize = 16;
/// Slots that are compared for a field.
const WAYS: usize = 4;
/// First index of the dynamic table, RFC 7541 section 2.3.3.
const FIRST_DYNAMIC: usize = STATIC_FIELDS.len() + 1;
/// Number of a field that was seen and not added; those that were added begin at 1.
const NOT_ADDED: u16 = 0;

/// Encoder of the field blocks of one connection, in order.
///
/// # What is indexed
/// A field enters the dynamic table if its name is in the closed list of `known_names.rs` and the
/// same value was seen shortly before: values that change with each message push nothing out. Of
/// other listed names, such as ids, only the name is used. The first block of a connection refers
/// to the static table only, and so do those that follow a pause, see [`Self::pause`]. A field is
/// found by a fingerprint and one comparison. Strings are sent as they are: the Huffman code would
/// save a fifth of the remaining bytes, and take two times our time and four times the peer's.
///
/// # Compressed size as a side channel
/// A field that is in the table is sent in one byte. An attacker who sends fields of their choice
/// on a connection and sees the size of its records could learn that a guessed field was sent
/// before, perhaps by another client of a shared backend connection (CRIME, RFC 7541 section 7.1).
/// A guess must match the whole value, so the list has only names whose values say little about
/// one client: what the browser and the server are, which formats and languages they take, which
/// site is asked for. Credentials are literals that are never indexed. Paths, addresses, ids,
/// validators and lengths are literals, and so are all fields whose name is not in the list, as an
/// application may put a key into them.
#[derive(Debug)]
pub struct HpackEncoder {
    /// Allocated by the second block, see [`Self::pause`].
    table: Option<Box<EncoderTable>>,
    /// Size of the table that the peer knows of.
    announced: u16,
    /// Smallest size since the last block, to which the peer must shrink its table.
    lowest: u16,
    /// Size that the table may have.
    most: u16,
    /// A block was begun since the last release or pause: the next one needs a table.
    is_used: bool,
    paused_at: Option<Instant>,
}

impl Default for HpackEncoder {
    fn default() -> Self {
        Self {
            table: None,
            announced: MAX_TABLE_BYTES,
            lowest: MAX_TABLE_BYTES,
            most: MAX_TABLE_BYTES,
            is_used: false,
            paused_at: None,
        }
    }
}

impl HpackEncoder {
    /// Applies SETTINGS_HEADER_TABLE_SIZE of the peer; the next block tells it the new size.
    pub fn set_max_size(&mut self, size: u32) {
        self.most = size.min(u32::from(MAX_TABLE_BYTES)) as u16;
        self.lowest = self.lowest.min(self.most);
        if let Some(table) = &mut self.table {
            table.fields.resize(usize::from(self.lowest));
            table.fields.resize(usize::from(self.most));
        }
    }

    /// Called when no message is open. Unless the last call was just before, the next message may
    /// be the only one for long, and is encoded without a table if there is none yet: thousands of
    /// connections that send a message now and then hold none.
    pub fn pause(&mut self, now: Instant) {
        let last = self.paused_at.replace(now);
        if last.is_none_or(|last| now.saturating_duration_since(last) > BUSY_INTERVAL) {
            self.is_used = false;
        }
    }

    /// True if it holds memory.
    pub fn has_table(&self) -> bool {
        self.table.is_some()
    }

    /// Frees the table of an idle connection. The next block empties that of the peer, too.
    pub fn release(&mut self) {
        self.is_used = false;
        if let Some(table) = self.table.take()
            && !table.fields.is_empty()
        {
            self.lowest = 0;
        }
    }

    /// Begins a block: appends the size updates that are due, RFC 7541 section 4.2.
    pub fn begin_block(&mut self, out: &mut Vec<u8>) {
        for size in [self.lowest.min(self.announced), self.most] {
            if size != self.announced {
                number(out, usize::from(size), 5, 0x20);
                self.announced = size;
            }
        }
        self.lowest = self.most;
        if std::mem::replace(&mut self.is_used, true) && self.table.is_none() && self.most > 0 {
            self.table = Some(Box::new(EncoderTable::new(self.most)));
        }
    }

    /// Appends `:status`.
    pub fn status(&mut self, out: &mut Vec<u8>, status: u16) {
        let digit = |value: u16| b'0' + (value % 10) as u8;
        let digits = [digit(status / 100), digit(status / 10), digit(status)];
        self.field(out, b":status", &digits);
    }

    /// Appends a field, with its name in lower case (RFC 9113 section 8.2.1).
    pub fn field(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
        let Some(known) = known_names::find(name) else {
            out.push(0);
            name_string(out, name);
            return string(out, value);
        };
        if let Some(index) = known_names::index_of_value(known, value) {
            return number(out, index, 7, 0x80);
        }
        let mut name_index = usize::from(known.index);
        let mut lookup = TableLookup::Absent;
        if let Some(table) = &mut self.table
            && matches!(known.policy, IndexPolicy::Table | IndexPolicy::Name)
        {
            let place = table.place_of_name(known);
            name_index = place.map_or(name_index, |place| FIRST_DYNAMIC + place);
            lookup = if known.policy == IndexPolicy::Table {
                table.look_up(known, value)
            } else if place.is_none() {
                table.add(known, value)
            } else {
                TableLookup::Absent
            };
        }
        let (first, prefix) = match lookup {
            TableLookup::Found(place) => return number(out, FIRST_DYNAMIC + place, 7, 0x80),
            TableLookup::Added => (0x40, 6),
            TableLookup::Absent if known.policy == IndexPolicy::Never => (0x10, 4),
            TableLookup::Absent => (0, 4),
        };
        number(out, name_index, prefix, first);
        if name_index == 0 {
            string(out, known.name.as_bytes());
        }
        string(out, value);
    }
}

/// Fields that the peer's table has, and the slots to find them.
#[derive(Debug)]
struct EncoderTable {
    fields: DynamicTable,
    slots: [SlotSet; SETS],
    /// Number of the field that was added last.
    added: u16,
    /// By known name that is not in the static table: number of a field with it.
    names: [u16; OTHERS],
}

/// Fields that were seen.
#[derive(Debug, Clone, Copy, Default)]
struct SlotSet {
    /// Number of the name, and a part of the hash; 0 for a free slot.
    fingerprints: [u32; WAYS],
    /// Number of the field; it may have been evicted.
    added: [u16; WAYS],
}

/// Place of a field in the table.
enum TableLookup {
    /// Counted from the newest.
    Found(usize),
    /// It was not in the table, and is now.
    Added,
    /// It is not in the table.
    Absent,
}

impl EncoderTable {
    fn new(most: u16) -> Self {
        Self {
            fields: DynamicTable::new(usize::from(most)),
            slots: [SlotSet::default(); SETS],
            added: 0,
            names: [NOT_ADDED; OTHERS],
        }
    }

    /// Place of the field with number `added`, if it is still there.
    #[inline]
    fn place(&self, added: u16) -> Option<usize> {
        debug_assert!(added <= self.added, "numbers are forgotten before they end");
        let place = usize::from(self.added - added);
        (place < self.fields.len()).then_some(place)
    }

    /// Place of a field with this name, if the static table has none.
    #[inline]
    fn place_of_name(&self, known: &KnownName) -> Option<usize> {
        let added = self.names.get(usize::from(known.number) - 1)?;
        self.place(*added)
    }

    /// Adds a field, unless it is so large that it would push out most others.
    #[cold]
    fn add(&mut self, known: &KnownName, value: &[u8]) -> TableLookup {
        let size = known.name.len() + value.len() + FIELD_OVERHEAD;
        if size > self.fields.max_size() / 4 {
            return TableLookup::Absent;
        }
        if self.added == u16::MAX {
            // Begins with the lowest numbers again.
            self.slots = [SlotSet::default(); SETS];
            self.names = [NOT_ADDED; OTHERS];
            self.added = self.fields.len() as u16;
        }
        self.fields.insert(known.name.as_bytes(), value);
        self.added += 1;
        if let Some(added) = self.names.get_mut(usize::from(known.number) - 1) {
            *added = self.added;
        }
        TableLookup::Added
    }

    /// Finds a field, or adds it if it was seen before.
    fn look_up(&mut self, known: &KnownName, value: &[u8]) -> TableLookup {
        let slot = SlotKey::of(known, value);
        let Some(set) = self.slots.get(slot.set) else {
            return TableLookup::Absent;
        };
        let mut seen = None;
        for (way, (own, added)) in set.fingerprints.iter().zip(set.added).enumerate() {
            if *own != slot.fingerprint {
                continue;
            }
            // The name is that of the number in the fingerprint.
            let Some(place) = self.place(added) else {
                seen = Some(way);
                continue;
            };
            if self.fields.get(place).is_some_and(|(_, own)| own == value) {
                return TableLookup::Found(place);
            }
        }
        let Some(way) = seen else {
            self.note(slot);
            return TableLookup::Absent;
        };
        let lookup = self.add(known, value);
        if let TableLookup::Added = lookup {
            self.fill(slot, way, self.added);
        }
        lookup
    }

    /// Remembers a field that was seen, instead of one of those that the table does not have.
    #[cold]
    fn note(&mut self, slot: SlotKey) {
        let Some(set) = self.slots.get(slot.set) else {
            return;
        };
        let mut free = None;
        for (way, added) in set.added.iter().enumerate() {
            if self.place(*added).is_none() && (free.is_none() || way <= slot.turn) {
                free = Some(way);
            }
        }
        if let Some(way) = free {
            self.fill(slot, way, NOT_ADDED);
        }
    }

    fn fill(&mut self, slot: SlotKey, way: usize, number: u16) {
        if let Some(set) = self.slots.get_mut(slot.set)
            && let Some(fingerprint) = set.fingerprints.get_mut(way)
            && let Some(added) = set.added.get_mut(way)
        {
            (*fingerprint, *added) = (slot.fingerprint, number);
        }
    }
}

/// Slots of a field.
#[derive(Clone, Copy)]
struct SlotKey {
    set: usize,
    /// Slot of the set that is taken if several are free: any.
    turn: usize,
    fingerprint: u32,
}

impl SlotKey {
    /// Computes it from the name, and from the length and some bytes of the value: fields that
    /// differ elsewhere are told apart by a comparison.
    #[inline]
    fn of(known: &KnownName, value: &[u8]) -> Self {
        let middle = value.get(value.len() / 2..).unwrap_or_default();
        let middle = middle.first_chunk().map_or(0, |it| u64::from_le_bytes(*it));
        let name = u32::from(known.number);
        let seed = middle.wrapping_mul(SPREAD) ^ (value.len() as u64) << 8 ^ u64::from(name);
        let hash = Edges::of(value).hash(seed);
        Self {
            set: (hash >> 32) as usize % SETS,
            turn: (hash >> 38) as usize % WAYS,
            fingerprint: name << 24 | (hash >> 40) as u32,
        }
    }
}

/// Appends an integer after `first`, whose low `prefix` bits are free; section 5.1.
fn number(out: &mut Vec<u8>, value: usize, prefix: u32, first: u8) {
    let most = (1_usize << prefix) - 1;
    if value < most {
        out.push(first | value as u8);
        return;
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends a name in lower case as a string, section 5.2.
fn name_string(out: &mut Vec<u8>, name: &[u8]) {
    number(out, name.len(), 7, 0);
    let start = out.len();
    out.extend_from_slice(name);
    let copied = out.get_mut(start..).unwrap_or_default();
    copied.make_ascii_lowercase();
}

/// Appends a string as it is, section 5.2.
fn string(out: &mut Vec<u8>, text: &[u8]) {
    number(out, text.len(), 7, 0);
    out.extend_from_slice(text);
}

#[cfg(test)]
#[path = "encoder_tests.rs"]
mod tests;
