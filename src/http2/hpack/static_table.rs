//! Static table, RFC 7541 appendix A.

/// Fields by index, which begins at 1.
pub(super) const STATIC_FIELDS: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// Index of a field with this name and value.
pub(super) fn find(name: &[u8], value: &[u8]) -> Option<usize> {
    let first = find_name(name)?;
    let from = STATIC_FIELDS.get(first - 1..)?;
    let same = |(own, _): &&(&str, &str)| own.as_bytes() == name;
    let place = from
        .iter()
        .take_while(same)
        .position(|(_, own)| own.as_bytes() == value);
    // Most entries have an empty value, which means that there is none.
    place.filter(|_| !value.is_empty()).map(|more| first + more)
}

/// First index of `name`.
pub(super) fn find_name(name: &[u8]) -> Option<usize> {
    let of_length = BY_LENGTH.get(name.len())?;
    let mut places = of_length.iter().take_while(|place| **place > 0);
    let found = places.find(|place| {
        let field = STATIC_FIELDS.get(usize::from(**place) - 1);
        field.is_some_and(|(own, _)| own.as_bytes() == name)
    });
    found.map(|place| usize::from(*place))
}

/// Longest name.
const MAX_NAME_BYTES: usize = 27;
/// Most names of one length.
const MAX_NAMES_PER_LENGTH: usize = 9;

/// First index of each name, by its length; 0 marks the end.
static BY_LENGTH: [[u8; MAX_NAMES_PER_LENGTH]; MAX_NAME_BYTES + 1] = by_length();

#[expect(
    clippy::indexing_slicing,
    reason = "run by the compiler, which would stop at a wrong index"
)]
const fn by_length() -> [[u8; MAX_NAMES_PER_LENGTH]; MAX_NAME_BYTES + 1] {
    let mut table = [[0; MAX_NAMES_PER_LENGTH]; MAX_NAME_BYTES + 1];
    let mut place = 0;
    while place < STATIC_FIELDS.len() {
        // Names with several values are adjacent and begin with a colon.
        let name = STATIC_FIELDS[place].0.as_bytes();
        let is_again = place > 0 && {
            let before = STATIC_FIELDS[place - 1].0.as_bytes();
            name[0] == b':' && before.len() == name.len() && before[2] == name[2]
        };
        if !is_again {
            let mut column = 0;
            while table[name.len()][column] > 0 {
                column += 1;
            }
            table[name.len()][column] = place as u8 + 1;
        }
        place += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_found_at_its_first_place() {
        for (place, (name, value)) in STATIC_FIELDS.iter().enumerate() {
            let first = STATIC_FIELDS
                .iter()
                .position(|(own, _)| own == name)
                .unwrap();
            assert_eq!(find_name(name.as_bytes()), Some(first + 1), "{name}");
            let found = find(name.as_bytes(), value.as_bytes());
            let expected = (!value.is_empty()).then_some(place + 1);
            assert_eq!(found, expected, "{name} {value}");
        }
        for name in ["", "x", "hosts", ":path2", "content-typf", &"x".repeat(99)] {
            assert_eq!(find_name(name.as_bytes()), None, "{name}");
        }
        assert_eq!(find(b":status", b"201"), None);
    }
}
