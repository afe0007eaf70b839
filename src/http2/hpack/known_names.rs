//! Field names that the encoder finds without a search, and what it does with their values.

use super::static_table::STATIC_FIELDS;

/// Use of the dynamic table for the values of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IndexPolicy {
    /// A secret: a literal that no later hop may index either, RFC 7541 section 7.1.3.
    Never,
    /// A literal: values change with each message, or may be private.
    Literal,
    /// Repeated by most messages, and the same for many clients.
    Table,
}

/// Field name that is known at compile time.
#[derive(Debug, Clone, Copy)]
pub(super) struct KnownName {
    /// Name in lower case.
    pub name: &'static str,
    /// Number among the known names.
    pub number: u8,
    /// First index in the static table; 0 if it is not there.
    pub index: u8,
    pub policy: IndexPolicy,
}

/// Names in the static table whose values enter the dynamic table.
const INDEXED_STATIC: [&str; 19] = [
    ":authority",
    ":method",
    ":status",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "access-control-allow-origin",
    "allow",
    "cache-control",
    "content-encoding",
    "content-language",
    "content-type",
    "server",
    "strict-transport-security",
    "user-agent",
    "vary",
    "via",
];

/// Other names whose values enter the dynamic table.
const INDEXED_OTHERS: [&str; 44] = [
    ":protocol",
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-expose-headers",
    "access-control-max-age",
    "alt-svc",
    "content-security-policy",
    "cross-origin-embedder-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "dnt",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-status",
    "nel",
    "origin",
    "permissions-policy",
    "pragma",
    "priority",
    "referrer-policy",
    "report-to",
    "sec-ch-ua",
    "sec-ch-ua-mobile",
    "sec-ch-ua-platform",
    "sec-fetch-dest",
    "sec-fetch-mode",
    "sec-fetch-site",
    "sec-fetch-user",
    "sec-gpc",
    "te",
    "timing-allow-origin",
    "trailer",
    "upgrade-insecure-requests",
    "x-cache",
    "x-content-type-options",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-frame-options",
    "x-powered-by",
    "x-requested-with",
    "x-robots-tag",
    "x-xss-protection",
];

/// Names whose values are secrets.
const SECRET: [&str; 4] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "set-cookie",
];

/// Number of slots, at least twice that of names so that a miss ends early; a power of two.
const SLOTS: usize = 256;
/// Most known names: indices fit a byte, and 0 stands for none.
const MAX_NAMES: usize = STATIC_FIELDS.len() + INDEXED_OTHERS.len();

struct NameTable {
    /// Names by number, which begins at 1.
    names: [KnownName; MAX_NAMES + 1],
    /// Numbers by hash, with linear probing; 0 marks a free slot.
    slots: [u8; SLOTS],
}

static NAMES: NameTable = build();

/// Finds a known name, without regard to case.
#[inline]
pub(super) fn find(name: &[u8]) -> Option<&'static KnownName> {
    let mut slot = hash(name);
    loop {
        let number = NAMES.slots.get(slot % SLOTS).copied().unwrap_or_default();
        if number == 0 {
            return None;
        }
        let known = NAMES.names.get(usize::from(number))?;
        if known.name.as_bytes() == name || known.name.as_bytes().eq_ignore_ascii_case(name) {
            return Some(known);
        }
        slot += 1;
    }
}

/// Makes letters lower case; other characters of the known names stay apart.
const LOWER: u64 = 0x2020_2020_2020_2020;

/// Hash of a name in any case: its length, and its first and last bytes.
#[inline]
const fn hash(name: &[u8]) -> usize {
    let (first, last) = match (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        (Some(first), Some(last)) => (u64::from_le_bytes(*first), u64::from_le_bytes(*last)),
        _ => match (name.first_chunk::<4>(), name.last_chunk::<4>()) {
            (Some(first), Some(last)) => (
                u32::from_le_bytes(*first) as u64,
                u32::from_le_bytes(*last) as u64,
            ),
            _ => match name {
                [one, .., last] => (*one as u64, *last as u64),
                [one] => (*one as u64, 0),
                [] => (0, 0),
            },
        },
    };
    let mixed = (first | LOWER)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
        ^ (last | LOWER).wrapping_add(name.len() as u64);
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

#[expect(
    clippy::indexing_slicing,
    reason = "run by the compiler, which would stop at a wrong index"
)]
const fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    let mut place = 0;
    while place < one.len() {
        if one[place] != other[place] {
            return false;
        }
        place += 1;
    }
    true
}

#[expect(
    clippy::indexing_slicing,
    reason = "run by the compiler, which would stop at a wrong index"
)]
const fn is_among(name: &str, names: &[&str]) -> bool {
    let mut place = 0;
    while place < names.len() {
        if is_same(name, names[place]) {
            return true;
        }
        place += 1;
    }
    false
}

#[expect(
    clippy::indexing_slicing,
    reason = "run by the compiler, which would stop at a wrong index"
)]
const fn build() -> NameTable {
    let mut table = NameTable {
        names: [KnownName {
            name: "",
            number: 0,
            index: 0,
            policy: IndexPolicy::Literal,
        }; MAX_NAMES + 1],
        slots: [0; SLOTS],
    };
    let (mut count, mut place) = (0, 0);
    while place < STATIC_FIELDS.len() {
        let name = STATIC_FIELDS[place].0;
        place += 1;
        // Names with several values are adjacent: the first index stands for all.
        if place > 1 && is_same(name, STATIC_FIELDS[place - 2].0) {
            continue;
        }
        let policy = if is_among(name, &SECRET) {
            IndexPolicy::Never
        } else if is_among(name, &INDEXED_STATIC) {
            IndexPolicy::Table
        } else {
            IndexPolicy::Literal
        };
        count += 1;
        insert(&mut table, count, name, place as u8, policy);
    }
    place = 0;
    while place < INDEXED_OTHERS.len() {
        count += 1;
        insert(
            &mut table,
            count,
            INDEXED_OTHERS[place],
            0,
            IndexPolicy::Table,
        );
        place += 1;
    }
    table
}

#[expect(
    clippy::indexing_slicing,
    reason = "run by the compiler, which would stop at a wrong index"
)]
const fn insert(
    table: &mut NameTable,
    number: usize,
    name: &'static str,
    index: u8,
    policy: IndexPolicy,
) {
    table.names[number] = KnownName {
        name,
        number: number as u8,
        index,
        policy,
    };
    let mut slot = hash(name.as_bytes());
    while table.slots[slot % SLOTS] > 0 {
        slot += 1;
    }
    table.slots[slot % SLOTS] = number as u8;
}

/// Index of the field with this value, if its name has several in the static table.
#[inline]
pub(super) fn index_of_value(known: &KnownName, value: &[u8]) -> Option<usize> {
    let index = match (known.index, value) {
        (2, b"GET") => 2,
        (2, b"POST") => 3,
        (4, b"/") => 4,
        (4, b"/index.html") => 5,
        (6, b"http") => 6,
        (6, b"https") => 7,
        (8, b"200") => 8,
        (8, b"204") => 9,
        (8, b"206") => 10,
        (8, b"304") => 11,
        (8, b"400") => 12,
        (8, b"404") => 13,
        (8, b"500") => 14,
        (16, b"gzip, deflate") => 16,
        _ => return None,
    };
    Some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_static_field_is_found_at_its_first_index() {
        for (place, (name, value)) in STATIC_FIELDS.iter().enumerate() {
            let first = STATIC_FIELDS
                .iter()
                .position(|(own, _)| own == name)
                .unwrap();
            for name in [(*name).to_owned(), name.to_ascii_uppercase()] {
                let known = find(name.as_bytes()).unwrap();
                assert_eq!(usize::from(known.index), first + 1, "{name}");
                let expected = (!value.is_empty()).then_some(place + 1);
                assert_eq!(
                    index_of_value(known, value.as_bytes()),
                    expected,
                    "{name} {value}"
                );
                assert_eq!(index_of_value(known, b"?"), None);
            }
        }
        for name in ["", "x", "hosts", ":path2", "content-typf", &"x".repeat(99)] {
            assert!(find(name.as_bytes()).is_none(), "{name}");
        }
    }

    #[test]
    fn every_other_name_is_found_in_any_case() {
        for name in INDEXED_OTHERS {
            for spelled in [name.to_owned(), name.to_ascii_uppercase()] {
                let known = find(spelled.as_bytes()).unwrap();
                assert_eq!(
                    (known.name, known.index, known.policy),
                    (name, 0, IndexPolicy::Table)
                );
            }
        }
    }

    #[test]
    fn each_static_name_has_the_policy_of_its_list() {
        for name in INDEXED_STATIC {
            assert_eq!(find(name.as_bytes()).unwrap().policy, IndexPolicy::Table);
        }
        for name in SECRET {
            assert_eq!(find(name.as_bytes()).unwrap().policy, IndexPolicy::Never);
        }
        let expected = INDEXED_STATIC.len() + INDEXED_OTHERS.len();
        let indexed = NAMES
            .names
            .iter()
            .filter(|known| known.policy == IndexPolicy::Table);
        assert_eq!(indexed.count(), expected, "each is a name of its list");
    }
}
