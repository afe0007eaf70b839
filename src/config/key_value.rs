//! The types that a key's value can have in the model, and how each is read.

use std::time::Duration;

use super::{
    model::{ProxyVersion, ValueSet},
    reader::{NodeRef, Section, TreeReader, assign},
    schema::ValueKind,
};

/// A value in the model that one key gives. `None` where the file is wrong, which has been reported
/// then.
pub(super) trait KeyValue: Sized {
    /// Reads it, with the range or the words that the table has for the key.
    fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Self>;
}

impl Section<'_> {
    /// Reads the value of `key` into `slot`, if it is given and right.
    pub(super) fn read<T: KeyValue>(&self, reader: &mut TreeReader<'_>, key: &str, slot: &mut T) {
        if let Some(at) = self.get(key) {
            assign(slot, T::read(reader, at));
        }
    }
}

impl<T: ValueSet> KeyValue for T {
    fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Self> {
        reader.one_of(at)
    }
}

impl KeyValue for Option<ProxyVersion> {
    fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Self> {
        reader.one_of_or_none(at)
    }
}

impl KeyValue for bool {
    fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Self> {
        reader.boolean(at)
    }
}

/// A share, 0.0..=1.0.
impl KeyValue for f64 {
    fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Self> {
        reader.share(at)
    }
}

impl KeyValue for Duration {
    fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Self> {
        reader.duration(at)
    }
}

impl KeyValue for Option<Duration> {
    fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Self> {
        reader.duration_or_none(at)
    }
}

/// A number, or a size in bytes: the key's type decides.
impl KeyValue for u64 {
    fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Self> {
        match at.row.value.kind {
            ValueKind::Size { .. } => reader.size(at),
            _ => reader.integer(at),
        }
    }
}

impl KeyValue for Option<u64> {
    fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Self> {
        match at.row.value.kind {
            ValueKind::Size { .. } if at.is_or_word() => Some(None),
            ValueKind::Size { .. } => reader.size(at).map(Some),
            _ => reader.integer_or_none(at),
        }
    }
}

/// Reads a smaller integer: the key's range must fit into it.
macro_rules! narrow_integer {
    ($($integer:ty),+) => {$(
        impl KeyValue for $integer {
            fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Self> {
                let value = u64::read(reader, at)?;
                let narrow = Self::try_from(value).ok();
                debug_assert!(narrow.is_some(), "the range of `{}` is too wide", at.row.path);
                narrow
            }
        }

        impl KeyValue for Option<$integer> {
            fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Self> {
                let Some(value) = Option::<u64>::read(reader, at)? else {
                    return Some(None);
                };
                let narrow = <$integer>::try_from(value).ok();
                debug_assert!(narrow.is_some(), "the range of `{}` is too wide", at.row.path);
                narrow.map(Some)
            }
        }
    )+};
}

narrow_integer!(u16, u32, usize);
