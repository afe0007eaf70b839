//! Field blocks as lists of fields, RFC 7541 section 6.

use super::{FIELD_OVERHEAD, MalformedError, dynamic_table::DynamicTable, huffman, static_table};

/// Largest table that a peer may use, which is also what it may begin with: RFC 9113 section 6.5.2.
const MAX_TABLE_BYTES: usize = 4_096;
/// Numbers beyond this are no lengths or places of anything.
const MAX_INTEGER: usize = 1 << 24;

/// Decoded fields of a block, in order: bytes as they came, nothing of them checked.
#[derive(Debug, Default)]
pub struct FieldList {
    /// Name and value of one field after the other.
    bytes: Vec<u8>,
    lengths: Vec<FieldLengths>,
    /// The block had more fields than were to be kept.
    is_cut: bool,
}

#[derive(Debug)]
struct FieldLengths {
    name: usize,
    value: usize,
}

impl FieldList {
    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.bytes[..];
        self.lengths.iter().map(move |field| {
            let (name, behind) = rest.split_at_checked(field.name).unwrap_or_default();
            let (value, behind) = behind.split_at_checked(field.value).unwrap_or_default();
            rest = behind;
            (name, value)
        })
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Size of all fields as RFC 9113 section 6.5.2 counts it.
    pub fn size(&self) -> usize {
        self.bytes.len() + FIELD_OVERHEAD * self.lengths.len()
    }

    /// False: these are the first fields of a block that has more than were to be kept.
    pub fn is_whole(&self) -> bool {
        !self.is_cut
    }

    /// Makes it empty, keeping the allocations.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.lengths.clear();
        self.is_cut = false;
    }

    /// Removes the last field; gives its size.
    fn drop_last(&mut self) -> usize {
        let last = self
            .lengths
            .pop()
            .unwrap_or(FieldLengths { name: 0, value: 0 });
        let length = last.name + last.value;
        self.bytes.truncate(self.bytes.len() - length);
        length + FIELD_OVERHEAD
    }

    /// The field whose bytes were appended from `start` on, the first `name` of them those of its name.
    fn close(&mut self, start: usize, name: usize) {
        let value = self.bytes.len() - start - name;
        self.lengths.push(FieldLengths { name, value });
    }
}

/// Why a block was not decoded. The connection cannot go on: its table is not what the peer thinks it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HpackError {
    /// It is no field block.
    Malformed,
    /// Its fields are larger than [`SizeLimits::decoded`].
    TooLarge,
}

/// Sizes of the fields of a block, counted as by [`FieldList::size`].
#[derive(Debug, Clone, Copy)]
pub struct SizeLimits {
    /// Fields beyond this are decoded, as the table asks for, and not kept.
    pub kept: usize,
    /// A block with more ends the connection: bounds the work for one block.
    pub decoded: usize,
}

impl From<MalformedError> for HpackError {
    fn from(_: MalformedError) -> Self {
        Self::Malformed
    }
}

/// Decodes the field blocks of one connection, one after the other.
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
    /// Decodes `block`, which is whole, into `fields`, whose size stays within `limits.kept`.
    ///
    /// # Errors
    /// The block is malformed, or too large; the decoder is of no use any more.
    pub fn decode(
        &mut self,
        block: &[u8],
        limits: SizeLimits,
        fields: &mut FieldList,
    ) -> Result<(), HpackError> {
        fields.clear();
        let mut dropped = 0;
        let mut input = BlockReader(block);
        while let Some(first) = input.0.first().copied() {
            match first {
                0x80.. => {
                    let place = input.number(7)?;
                    self.copy(place, fields)?;
                }
                0x40.. => {
                    let (start, name) = self.literal(&mut input, 6, fields)?;
                    let bytes = fields.bytes.get(start..).unwrap_or_default();
                    let (name, value) = bytes.split_at_checked(name).unwrap_or_default();
                    self.table.insert(name, value);
                }
                0x20.. => {
                    let size = input.number(5)?;
                    // Section 4.2: before the first field, and within what we have allowed.
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

    /// Appends a field whose value, at least, is spelled out; gives where it begins and the length of its name.
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

/// What is left of a block.
struct BlockReader<'b>(&'b [u8]);

impl BlockReader<'_> {
    fn byte(&mut self) -> Result<u8, MalformedError> {
        let (first, rest) = self.0.split_first().ok_or(MalformedError)?;
        self.0 = rest;
        Ok(*first)
    }

    /// A number whose first `prefix` bits are in the next byte, section 5.1.
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
