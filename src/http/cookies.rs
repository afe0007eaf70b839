//! Cookies of a request, RFC 6265 section 4.2.

use super::message::RequestHead;

/// Values of the cookies called `name` (as written, with regard to case), in the order of the
/// request. Quotes belong to the value.
pub fn values<'a>(head: &'a RequestHead, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    head.fields
        .values("cookie", &head.bytes)
        .flat_map(|field| field.split(|byte| *byte == b';'))
        .filter_map(move |pair| {
            let pair = pair.trim_ascii();
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(value)
        })
}

/// True if `field`, the value of a `Set-Cookie`, is for the cookie `name`.
pub fn sets(field: &[u8], name: &str) -> bool {
    let end = field.iter().position(|byte| matches!(byte, b'=' | b';'));
    let own = end.and_then(|end| field.get(..end)).unwrap_or(field);
    own.trim_ascii() == name.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::fields::Span;

    fn head(cookies: &[&str]) -> RequestHead {
        let mut head = RequestHead::default();
        for cookie in cookies {
            let mut add = |text: &str| {
                let start = head.bytes.len();
                head.bytes.extend_from_slice(text.as_bytes());
                Span::new(start, head.bytes.len())
            };
            let (name, value) = (add("Cookie"), add(cookie));
            head.fields.push(name, value, &head.bytes);
        }
        head
    }

    #[test]
    fn every_cookie_of_the_name_is_found_in_all_fields() {
        let head = head(&["a=1; lb=x; lba=2;lb=y", "b=lb=z; lb=\"q\";LB=w; lb; lb="]);
        let found: Vec<_> = values(&head, "lb").map(String::from_utf8_lossy).collect();
        assert_eq!(found, ["x", "y", "\"q\"", ""]);
    }

    #[test]
    fn a_set_cookie_is_known_by_the_name_before_its_first_equals_sign() {
        for (field, is_own) in [
            ("lb=1; Path=/", true),
            (" lb =1", true),
            ("lb", true),
            ("lb; lb=2", true),
            ("lb2=1", false),
            ("a=lb=1", false),
            ("LB=1", false),
            ("", false),
        ] {
            assert_eq!(sets(field.as_bytes(), "lb"), is_own, "{field}");
        }
    }
}
