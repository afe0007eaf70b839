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
    /// Values change, but the name repeats: it enters the table with its first value, and no value
    /// is ever looked up.
    Name,
}

/// Field name that is known at compile time.
#[derive(Debug, Clone, Copy)]
pub(super) struct KnownName {
    /// Name in lower case.
    pub name: &'static str,
    /// First and last bytes, by which it is found.
    edges: Edges,
    /// Number among the known names.
    pub number: u8,
    /// First index in the static table; 0 if it is not there.
    pub index: u8,
    pub policy: IndexPolicy,
}

/// Names in the static table whose values enter the dynamic table.
const INDEXED_STATIC: [&str; 20] = [
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
    "date",
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

/// Names that enter the dynamic table without regard to their values.
const INDEXED_NAMES: [&str; 14] = [
    "cf-ray",
    "forwarded",
    "grpc-message",
    "grpc-timeout",
    "traceparent",
    "tracestate",
    "x-amzn-trace-id",
    "x-correlation-id",
    "x-forwarded-for",
    "x-real-ip",
    "x-request-id",
    "x-response-time",
    "x-runtime",
    "x-served-by",
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
/// Number of known names that are not in the static table; they have the lowest numbers.
pub(super) const OTHERS: usize = INDEXED_OTHERS.len() + INDEXED_NAMES.len();
/// Most known names: numbers fit a byte, and 0 stands for none.
const MAX_NAMES: usize = STATIC_FIELDS.len() + OTHERS;

struct KnownNameTable {
    /// Names by number, which begins at 1.
    names: [KnownName; MAX_NAMES + 1],
    /// Numbers by hash, with linear probing; 0 marks a free slot.
    slots: [u8; SLOTS],
}

static NAMES: KnownNameTable = build();

/// First and last bytes of a string, eight at most. Strings of the same length up to 16 that have
/// the same are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edges {
    first: u64,
    last: u64,
}

/// Odd multiplier that spreads bits upwards: 2^64 divided by the golden ratio.
pub(super) const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Edges {
    #[inline]
    pub(super) const fn of(text: &[u8]) -> Self {
        if let (Some(first), Some(last)) = (text.first_chunk::<8>(), text.last_chunk::<8>()) {
            return Self {
                first: u64::from_le_bytes(*first),
                last: u64::from_le_bytes(*last),
            };
        }
        if let (Some(first), Some(last)) = (text.first_chunk::<4>(), text.last_chunk::<4>()) {
            return Self {
                first: u32::from_le_bytes(*first) as u64,
                last: u32::from_le_bytes(*last) as u64,
            };
        }
        let (first, last) = match text {
            [one, middle, last] => (u16::from_le_bytes([*one, *middle]), *last),
            [one, last] => (*one as u16, *last),
            [one] => (*one as u16, 0),
            _ => (0, 0),
        };
        Self {
            first: first as u64,
            last: last as u64,
        }
    }

    /// Mixes them with `seed`; the upper bits are the best.
    #[inline]
    pub(super) const fn hash(self, seed: u64) -> u64 {
        let mixed = (self.first ^ seed).wrapping_mul(SPREAD) ^ self.last.rotate_left(23);
        (mixed ^ mixed >> 32).wrapping_mul(SPREAD)
    }

    const fn lower_case(self) -> Self {
        Self {
            first: lower_case(self.first),
            last: lower_case(self.last),
        }
    }
}

/// Makes eight ASCII characters lower case.
#[inline]
const fn lower_case(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // The highest bit of each byte tells whether the other seven are beyond a letter.
    let low = word & (0x7f * EACH);
    let is_from_a = low + (0x80 - b'A' as u64) * EACH;
    let is_beyond_z = low + (0x7f - b'Z' as u64) * EACH;
    let is_upper = (is_from_a ^ is_beyond_z) & !word & (0x80 * EACH);
    word | is_upper >> 2
}

/// Longest name that its edges cover.
const COVERED_BYTES: usize = 16;

/// Finds a known name, without regard to case.
#[inline]
pub(super) fn find(name: &[u8]) -> Option<&'static KnownName> {
    let edges = Edges::of(name).lower_case();
    let mut slot = slot(edges, name.len());
    loop {
        let number = NAMES.slots.get(slot % SLOTS).copied().unwrap_or_default();
        let known = NAMES.names.get(usize::from(number))?;
        if known.edges == edges
            && known.name.len() == name.len()
            && (name.len() <= COVERED_BYTES || known.name.as_bytes().eq_ignore_ascii_case(name))
        {
            return (number > 0).then_some(known);
        }
        if number == 0 {
            return None;
        }
        slot += 1;
    }
}

/// First slot of a name in lower case.
#[inline]
const fn slot(edges: Edges, length: usize) -> usize {
    (edges.hash(length as u64) >> 56) as usize
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
const fn build() -> KnownNameTable {
    let mut table = KnownNameTable {
        names: [KnownName {
            name: "",
            edges: Edges { first: 0, last: 0 },
            number: 0,
            index: 0,
            policy: IndexPolicy::Literal,
        }; MAX_NAMES + 1],
        slots: [0; SLOTS],
    };
    let mut count = 0;
    while count < OTHERS {
        let (name, policy) = if count < INDEXED_OTHERS.len() {
            (INDEXED_OTHERS[count], IndexPolicy::Table)
        } else {
            (
                INDEXED_NAMES[count - INDEXED_OTHERS.len()],
                IndexPolicy::Name,
            )
        };
        count += 1;
        insert(&mut table, count, name, 0, policy);
    }
    let mut place = 0;
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
    table
}

#[expect(
    clippy::indexing_slicing,
    reason = "run by the compiler, which would stop at a wrong index"
)]
const fn insert(
    table: &mut KnownNameTable,
    number: usize,
    name: &'static str,
    index: u8,
    policy: IndexPolicy,
) {
    table.names[number] = KnownName {
        name,
        edges: Edges::of(name.as_bytes()),
        number: number as u8,
        index,
        policy,
    };
    let mut slot = slot(Edges::of(name.as_bytes()), name.len());
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
        let listed = INDEXED_OTHERS.map(|name| (name, IndexPolicy::Table));
        let named = INDEXED_NAMES.map(|name| (name, IndexPolicy::Name));
        for (name, policy) in listed.into_iter().chain(named) {
            for spelled in [name.to_owned(), name.to_ascii_uppercase()] {
                let known = find(spelled.as_bytes()).unwrap();
                assert!((1..=OTHERS).contains(&usize::from(known.number)));
                assert_eq!((known.name, known.index, known.policy), (name, 0, policy));
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
