//! Edits of a route to the fields of a head: `request_headers` and `response_headers`.
//!
//! Pure. The key's rules about names are checked with the configuration.

use crate::{
    config::model::HeaderEdits,
    http::{
        fields::{HeadField, KnownField, is_same_or_twin},
        head_writer::HeadWriter,
    },
};

/// True if `set` or `remove` name a field that balancer would add: then it does not.
pub(super) fn is_decided(edits: Option<&HeaderEdits>, name: &str) -> bool {
    edits.is_some_and(|edits| named(edits).any(|edited| edited.matches(name.as_bytes())))
}

/// True if `remove` or `set` take the received `field`, called `name`, or a twin of it with
/// underscores.
#[inline]
pub(super) fn takes(edits: Option<&HeaderEdits>, field: &HeadField, name: &[u8]) -> bool {
    edits.is_some_and(|edits| named(edits).any(|edited| edited.takes(field, name)))
}

/// The Host that `set` gives.
pub(super) fn host(edits: &HeaderEdits) -> Option<&str> {
    let mut set = edits.set.iter();
    let found = set.find(|(name, _)| name.eq_ignore_ascii_case("host"));
    found.map(|(_, value)| value.as_str())
}

/// Writes the fields of `set` and `add`; `is_http1` selects those that only HTTP/1 has.
pub(super) fn write(
    out: &mut impl HeadWriter,
    edits: &HeaderEdits,
    is_http1: impl Fn(&[u8]) -> bool,
) {
    for (name, value) in edits.set.iter().chain(&edits.add) {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        if is_http1(name) {
            out.http1_field(name, value);
        } else {
            out.field(name, value);
        }
    }
}

/// A name in `set` or `remove`.
#[derive(Clone, Copy)]
enum EditedName<'a> {
    Name(&'a [u8]),
    /// All names with this prefix.
    Prefix(&'a [u8]),
}

impl EditedName<'_> {
    /// True for this name, and for a twin with underscores that a server could take for it.
    fn matches(self, name: &[u8]) -> bool {
        match self {
            Self::Name(edited) => is_same_or_twin(name, edited),
            Self::Prefix(prefix) => name
                .get(..prefix.len())
                .is_some_and(|start| is_same_or_twin(start, prefix)),
        }
    }

    fn takes(self, field: &HeadField, name: &[u8]) -> bool {
        // Without these fields the message would be another one, or invalid.
        let is_essential = || {
            field.known.is_hop_by_hop()
                || matches!(
                    field.known,
                    KnownField::Host | KnownField::ContentLength | KnownField::Expect
                )
        };
        self.matches(name) && (matches!(self, Self::Name(_)) || !is_essential())
    }
}

/// Names in `remove` and `set`.
fn named(edits: &HeaderEdits) -> impl Iterator<Item = EditedName<'_>> {
    let set = edits
        .set
        .iter()
        .map(|(name, _)| EditedName::Name(name.as_bytes()));
    let removed = edits
        .remove
        .iter()
        .map(|name| match name.strip_suffix('*') {
            Some(prefix) => EditedName::Prefix(prefix.as_bytes()),
            None => EditedName::Name(name.as_bytes()),
        });
    removed.chain(set)
}
