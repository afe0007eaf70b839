//! Decoder of field blocks, RFC 7541 section 6.

use super::{FIELD_OVERHEAD, MalformedError, dynamic_table::DynamicTable, huffman, static_table};

/// Largest dynamic table of a peer, which is the default of RFC 9113 section 6.5.2: memory per
/// connection.
const MAX_TABLE_BYTES: usize = 4_096;
/// Largest integer that can be a length or an index here; bounds the arithmetic.
const MAX_INTEGER: usize = 1 << 24;

/// Decoded fields of a block, in order and unchecked.
#[derive(Debug, Default)]
pub struct FieldList {
    /// Names and values, one field after the other.
    bytes: Vec<u8>,
    lengths: Vec<FieldLengths>,
    /// The block had more fields than were kept.
    is_cut: bool,
}

#[derive(Debug)]
struct FieldLengths {
    name: usize,
    value: usize,
}

impl FieldList {
    /// Iterates over names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.bytes[..];
        self.lengths.iter().map(move |field| {
            debug_assert!(
                field.name + field.value <= rest.len(),
                "lengths are those of the bytes"
            );
            let (name, behind) = rest.split_at_checked(field.name).unwrap_or_default();
            let (value, behind) = behind.split_at_checked(field.value).unwrap_or_default();
            rest = behind;
            (name, value)
        })
    }

    /// Number of fields.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Size of all fields by the rule of RFC 9113 section 6.5.2.
    pub fn size(&self) -> usize {
        self.bytes.len() + FIELD_OVERHEAD * self.lengths.len()
    }

    /// False if the block had more fields than were kept.
    pub fn is_whole(&self) -> bool {
        !self.is_cut
    }

    /// Makes it empty, keeping the allocations.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.lengths.clear();
        self.is_cut = false;
    }

    /// Removes the last field; returns its size.
    fn drop_last(&mut self) -> usize {
        debug_assert!(!self.is_empty(), "a field was just added");
        let last = self
            .lengths
            .pop()
            .unwrap_or(FieldLengths { name: 0, value: 0 });
        let length = last.name + last.value;
        self.bytes.truncate(self.bytes.len() - length);
        length + FIELD_OVERHEAD
    }

    /// Adds the field whose bytes were appended from `start` on; its name has `name` bytes.
    fn close(&mut self, start: usize, name: usize) {
        let value = self.bytes.len() - start - name;
        self.lengths.push(FieldLengths { name, value });
    }
}

/// Cause for which a block cannot be decoded. It is fatal: from here on our table differs from that
/// of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    /// Not a valid field block.
    #[error("a malformed field block")]
    Malformed,
    /// The fields exceed [`SizeLimits::decoded`].
    #[error("a field block that is too large")]
    TooLarge,
}

/// Size limits for the fields of a block, counted as by [`FieldList::size`].
#[derive(Debug, Clone, Copy)]
pub struct SizeLimits {
    /// Further fields are decoded, as the table must follow, but not kept.
    pub kept: usize,
    /// A larger block is an error: bounds the work for one block, in which one byte can stand for 4
    /// KiB.
    pub decoded: usize,
}

impl From<MalformedError> for HpackError {
    fn from(_: MalformedError) -> Self {
        Self::Malformed
    }
}

/// Decoder of the field blocks of one connection, in order.
#[derive(Debug)]
pub struct HpackDecoder {
    table: DynamicTable,
}

impl Default for HpackDecoder {
    fn default() -> Self {
        Self {
            table: DynamicTable::new(MAX_TABLE_BYTES),
        }
    }
}

impl HpackDecoder {
    /// Decodes a complete block into `fields`, which keeps at most `limits.kept`.
    ///
    /// # Errors
    /// The block is malformed or too large; the decoder cannot be used any more.
    pub fn decode(
        &mut self,
        block: &[u8],
        limits: SizeLimits,
        fields: &mut FieldList,
    ) -> Result<(), HpackError> {
        fields.clear();
        let mut dropped = 0;
        let mut input = BlockReader(block);
        // Representations differ in their first bits, section 6.
        while let Some(first) = input.0.first().copied() {
            match first {
                0x80.. => {
                    let place = input.number(7)?;
                    self.copy(place, fields)?;
                }
                0x40.. => {
                    let (start, name) = self.literal(&mut input, 6, fields)?;
                    debug_assert!(start + name <= fields.bytes.len());
                    let bytes = fields.bytes.get(start..).unwrap_or_default();
                    let (name, value) = bytes.split_at_checked(name).unwrap_or_default();
                    self.table.insert(name, value);
                }
                0x20.. => {
                    let size = input.number(5)?;
                    // Section 4.2: only before the first field, and within our limit.
                    if !fields.is_empty() || fields.is_cut || size > MAX_TABLE_BYTES {
                        return Err(HpackError::Malformed);
                    }
                    self.table.resize(size);
                    continue;
                }
                _ => drop(self.literal(&mut input, 4, fields)?),
            }
            if fields.is_cut || fields.size() > limits.kept {
                fields.is_cut = true;
                dropped += fields.drop_last();
                if fields.size() + dropped > limits.decoded {
                    return Err(HpackError::TooLarge);
                }
            }
        }
        Ok(())
    }

    /// Size of the table.
    #[cfg(test)]
    pub(super) const fn table_size(&self) -> usize {
        self.table.size()
    }

    /// Appends the field of an index, section 2.3.3.
    fn copy(&self, place: usize, fields: &mut FieldList) -> Result<(), MalformedError> {
        let (name, value) = self.get(place)?;
        let start = fields.bytes.len();
        fields.bytes.extend_from_slice(name);
        fields.bytes.extend_from_slice(value);
        fields.close(start, name.len());
        Ok(())
    }

    fn get(&self, place: usize) -> Result<(&[u8], &[u8]), MalformedError> {
        let first = place.checked_sub(1).ok_or(MalformedError)?;
        if let Some((name, value)) = static_table::STATIC_FIELDS.get(first) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.table.get(first - static_table::STATIC_FIELDS.len());
        entry.ok_or(MalformedError)
    }

    /// Appends a field with a literal value; returns its start and the length of its name.
    fn literal(
        &self,
        input: &mut BlockReader<'_>,
        prefix: u32,
        fields: &mut FieldList,
    ) -> Result<(usize, usize), MalformedError> {
        let start = fields.bytes.len();
        match input.number(prefix)? {
            0 => input.string(&mut fields.bytes)?,
            place => fields.bytes.extend_from_slice(self.get(place)?.0),
        }
        let name = fields.bytes.len() - start;
        input.string(&mut fields.bytes)?;
        fields.close(start, name);
        Ok((start, name))
    }
}

/// Remaining bytes of a block.
struct BlockReader<'b>(&'b [u8]);

impl BlockReader<'_> {
    fn byte(&mut self) -> Result<u8, MalformedError> {
        let (first, rest) = self.0.split_first().ok_or(MalformedError)?;
        self.0 = rest;
        Ok(*first)
    }

    /// Reads an integer whose first `prefix` bits are in the next byte, section 5.1.
    fn number(&mut self, prefix: u32) -> Result<usize, MalformedError> {
        let most = (1_usize << prefix) - 1;
        let mut number = usize::from(self.byte()?) & most;
        if number < most {
            return Ok(number);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return (number <= MAX_INTEGER)
                    .then_some(number)
                    .ok_or(MalformedError);
            }
        }
        Err(MalformedError)
    }

    /// Appends a string to `out`, section 5.2.
    fn string(&mut self, out: &mut Vec<u8>) -> Result<(), MalformedError> {
        let is_code = self.0.first().is_some_and(|first| first & 0x80 > 0);
        let length = self.number(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(MalformedError)?;
        self.0 = rest;
        if is_code {
            return huffman::decode(text, out);
        }
        out.extend_from_slice(text);
        Ok(())
    }
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
