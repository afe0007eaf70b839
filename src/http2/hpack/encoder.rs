//! Encoder of field blocks, RFC 7541 section 6.

use super::{
    FIELD_OVERHEAD,
    dynamic_table::DynamicTable,
    huffman,
    known_names::{self, IndexPolicy, KnownName},
    static_table::STATIC_FIELDS,
};

/// Largest dynamic table that we use, and the default of RFC 9113 section 6.5.2: memory per
/// connection.
const MAX_TABLE_BYTES: u16 = 4_096;
/// Sets of slots; a power of two.
const SETS: usize = 16;
/// Slots that are compared for a field.
const WAYS: usize = 4;
/// Distance of a sequence number that no entry of the table has.
const SEEN_DISTANCE: u16 = 1 << 15;

/// Encoder of the field blocks of one connection, in order.
///
/// # What is indexed
/// A field enters the dynamic table if its name is in the closed list of `known_names.rs` and the
/// same value was seen shortly before: values that change with each message push nothing out. The
/// first block of a connection only refers to the static table, so that a connection with one
/// message has no table. Fields are found by a fingerprint and one comparison.
///
/// # Compressed size as a side channel
/// A field that is in the table is sent in one byte. Who can add fields of their choice to a
/// connection and see the size of its records, can so learn that a guessed field was sent before
/// on that connection, perhaps by another client of a shared backend connection (CRIME, RFC 7541
/// section 7.1). A guess must match the whole value, and therefore the list has only names whose
/// values say nothing about one client that matters: what browser and server are, which formats
/// and languages they take, how they want to be treated. Credentials are literals that are never
/// indexed. Paths, addresses, validators, lengths and ids are literals, and so are all fields whose
/// name is not in the list, as an application may put a key into them.
#[derive(Debug)]
pub struct HpackEncoder {
    /// Allocated by the second block.
    table: Option<Box<EncoderTable>>,
    /// Size of the table that the peer knows of.
    announced: u16,
    /// Smallest size since the last block, to which the peer must shrink its table.
    lowest: u16,
    /// Size that the table may have.
    most: u16,
    /// A block was begun since the last release.
    is_used: bool,
}

impl Default for HpackEncoder {
    fn default() -> Self {
        Self {
            table: None,
            announced: MAX_TABLE_BYTES,
            lowest: MAX_TABLE_BYTES,
            most: MAX_TABLE_BYTES,
            is_used: false,
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
        let lookup = match (&mut self.table, known.policy) {
            (Some(table), IndexPolicy::Table) => table.look_up(known, value),
            _ => TableLookup::Absent,
        };
        let (first, prefix) = match lookup {
            TableLookup::Found(place) => {
                return number(out, STATIC_FIELDS.len() + 1 + place, 7, 0x80);
            }
            TableLookup::Added => (0x40, 6),
            TableLookup::Absent if known.policy == IndexPolicy::Never => (0x10, 4),
            TableLookup::Absent => (0, 4),
        };
        number(out, usize::from(known.index), prefix, first);
        if known.index == 0 {
            name_string(out, known.name.as_bytes());
        }
        string(out, value);
    }
}

/// Fields that the peer's table has, and the places to find them.
#[derive(Debug)]
struct EncoderTable {
    fields: DynamicTable,
    slots: [[Slot; WAYS]; SETS],
    /// Number of fields added, modulo 2^16.
    added: u16,
}

/// Field that was seen. It is in the table if the field added as number `added` is there and the
/// same.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// Part of the hash of name and value; 0 for a free slot.
    fingerprint: u16,
    added: u16,
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
            slots: [[Slot::default(); WAYS]; SETS],
            added: 0,
        }
    }

    /// Finds a field, or adds it if it was seen before.
    fn look_up(&mut self, known: &KnownName, value: &[u8]) -> TableLookup {
        let hash = hash(known, value);
        let fingerprint = (hash >> 48) as u16 | 1;
        let Some(set) = self.slots.get_mut((hash >> 32) as usize % SETS) else {
            return TableLookup::Absent;
        };
        // A slot without an entry of the table, chosen evenly among several.
        let (turn, mut free) = ((hash >> 40) as usize % WAYS, None);
        for (way, slot) in set.iter_mut().enumerate() {
            let distance = self.added.wrapping_sub(slot.added);
            if slot.fingerprint == fingerprint {
                let place = usize::from(distance);
                match self.fields.get(place) {
                    Some(found) if found == (known.name.as_bytes(), value) => {
                        return TableLookup::Found(place);
                    }
                    // Another field with the same fingerprint.
                    Some(_) => continue,
                    None => {}
                }
                // A few large values must not push out all others.
                let size = known.name.len() + value.len() + FIELD_OVERHEAD;
                if size > self.fields.max_size() / 4 {
                    return TableLookup::Absent;
                }
                self.fields.insert(known.name.as_bytes(), value);
                self.added = self.added.wrapping_add(1);
                slot.added = self.added;
                return TableLookup::Added;
            }
            let is_free = usize::from(distance) >= self.fields.len();
            if is_free && (free.is_none() || way <= turn) {
                free = Some(way);
            }
        }
        if let Some(slot) = free.and_then(|way| set.get_mut(way)) {
            *slot = Slot {
                fingerprint,
                added: self.added.wrapping_sub(SEEN_DISTANCE),
            };
        }
        TableLookup::Absent
    }
}

/// Hash of a field by the length of its value and some of its bytes: those with other bytes are
/// told apart by a comparison.
#[inline]
fn hash(known: &KnownName, value: &[u8]) -> u64 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let word = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let (first, middle, last) = if value.len() < 8 {
        let mut short = [0; 8];
        if let Some(start) = short.get_mut(..value.len()) {
            start.copy_from_slice(value);
        }
        (u64::from_le_bytes(short), 0, 0)
    } else {
        let middle = value.get(value.len() / 2..).unwrap_or_default();
        (
            word(value.first_chunk()),
            word(middle.first_chunk()),
            word(value.last_chunk()),
        )
    };
    let seed = u64::from(known.number) << 32 | value.len() as u64;
    [first, middle, last].into_iter().fold(seed, |hash, word| {
        (hash.rotate_left(31) ^ word).wrapping_mul(MULTIPLIER)
    })
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

/// Appends a string, Huffman-coded if that is shorter; section 5.2.
fn string(out: &mut Vec<u8>, text: &[u8]) {
    let coded = huffman::encoded_len(text);
    if coded < text.len() {
        number(out, coded, 7, 0x80);
        huffman::encode(text, out);
    } else {
        number(out, text.len(), 7, 0);
        out.extend_from_slice(text);
    }
}

#[cfg(test)]
#[path = "encoder_tests.rs"]
mod tests;
