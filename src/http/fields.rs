//! Fields of a head as spans into one buffer, and the field names that the proxy knows.
//!
//! A field is removed by striking it out; new fields are appended while encoding. Until then
//! nothing is copied.

/// Range of bytes in the buffer of a head. Heads are at most 256 KiB, so 32 bits are enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Returns the span of `part`, which must be a slice of `whole`.
    pub fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        debug_assert!(
            start + part.len() <= whole.len(),
            "the part lies within the whole"
        );
        Self {
            start: start as u32,
            end: (start + part.len()) as u32,
        }
    }

    /// Returns the span from `start` to `end`.
    pub fn new(start: usize, end: usize) -> Self {
        Self {
            start: start as u32,
            end: end as u32,
        }
    }

    /// Returns its bytes; empty if the span lies outside.
    #[inline]
    pub fn get(self, bytes: &[u8]) -> &[u8] {
        debug_assert!(
            self.end as usize <= bytes.len(),
            "the bytes are those of the span's head"
        );
        bytes
            .get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }

    /// True if it covers nothing.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

macro_rules! known {
    ($( $variant:ident, $name:literal; )*) => {
        /// Field names that the proxy knows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum KnownField {
            /// Any other name.
            Other,
            /// Any other name that begins with `x-forwarded-`, or is `x-forwarded`.
            XForwarded,
            $( #[doc = $name] $variant, )*
        }

        impl KnownField {
            /// Finds `name` without regard to case. The length is compared first: most names differ
            /// in it.
            #[inline]
            pub fn of(name: &[u8]) -> Self {
                $( if name.len() == $name.len() && name.eq_ignore_ascii_case($name.as_bytes()) { return Self::$variant; } )*
                if is_x_forwarded(name) { Self::XForwarded } else { Self::Other }
            }
        }
    };
}

known! {
    Host, "host";
    Connection, "connection";
    ContentLength, "content-length";
    TransferEncoding, "transfer-encoding";
    Te, "te";
    Trailer, "trailer";
    Upgrade, "upgrade";
    KeepAlive, "keep-alive";
    ProxyConnection, "proxy-connection";
    Http2Settings, "http2-settings";
    Expect, "expect";
    Accept, "accept";
    ContentType, "content-type";
    UserAgent, "user-agent";
    Referer, "referer";
    Traceparent, "traceparent";
    Authorization, "authorization";
    Cookie, "cookie";
    Date, "date";
    Via, "via";
    Forwarded, "forwarded";
    XForwardedFor, "x-forwarded-for";
    XForwardedProto, "x-forwarded-proto";
    XForwardedHost, "x-forwarded-host";
    XForwardedPort, "x-forwarded-port";
    XRealIp, "x-real-ip";
    TrueClientIp, "true-client-ip";
}

/// True for `X-Forwarded` and every name that begins with `X-Forwarded-`.
#[inline]
fn is_x_forwarded(name: &[u8]) -> bool {
    const X_FORWARDED: &[u8] = b"x-forwarded";
    matches!(name.get(X_FORWARDED.len()), None | Some(b'-'))
        && name
            .get(..X_FORWARDED.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(X_FORWARDED))
}

impl KnownField {
    /// True for fields of one hop only, RFC 9110 section 7.6.1; framing is always encoded again.
    pub const fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::Te
                | Self::TransferEncoding
                | Self::Upgrade
                | Self::Http2Settings
        )
    }

    /// True for fields that `Connection` cannot remove: without them a request has another meaning,
    /// such as another tenant (a known attack on proxies in front of authentication).
    pub const fn is_protected(self) -> bool {
        matches!(
            self,
            Self::Host
                | Self::ContentLength
                | Self::TransferEncoding
                | Self::Authorization
                | Self::Cookie
                | Self::ContentType
                | Self::Expect
                | Self::Via
        ) || self.is_forwarding()
    }

    /// True for fields in which a proxy describes the origin of a request.
    pub const fn is_forwarding(self) -> bool {
        matches!(
            self,
            Self::Forwarded
                | Self::XForwarded
                | Self::XForwardedFor
                | Self::XForwardedProto
                | Self::XForwardedHost
                | Self::XForwardedPort
                | Self::XRealIp
                | Self::TrueClientIp
        )
    }
}

/// One field.
#[derive(Debug, Clone, Copy)]
pub struct HeadField {
    /// Name as sent.
    pub name: Span,
    /// Value without the blanks around it.
    pub value: Span,
    /// Known name.
    pub known: KnownField,
    /// True if the field is left out when the head is encoded.
    pub struck: bool,
}

/// Fields of one head, in order.
#[derive(Debug, Default)]
pub struct HeadFields(Vec<HeadField>);

impl HeadFields {
    /// Appends a field of `whole`.
    #[inline]
    pub fn push(&mut self, name: Span, value: Span, whole: &[u8]) {
        self.push_known(KnownField::of(name.get(whole)), name, value);
    }

    /// Appends a field whose name is `known`.
    #[inline]
    pub fn push_known(&mut self, known: KnownField, name: Span, value: Span) {
        self.0.push(HeadField {
            name,
            value,
            known,
            struck: false,
        });
    }

    /// Removes all fields, keeping the allocation.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Number of fields for which there is memory.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Fields that are not struck out.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &HeadField> {
        self.0.iter().filter(|field| !field.struck)
    }

    /// All fields as sent, including those that are struck out.
    pub fn sent(&self) -> impl Iterator<Item = &HeadField> {
        self.0.iter()
    }

    /// Value of the first field called `known`.
    pub fn find<'a>(&self, known: KnownField, bytes: &'a [u8]) -> Option<&'a [u8]> {
        self.iter()
            .find(|field| field.known == known)
            .map(|field| field.value.get(bytes))
    }

    /// Values of the fields called `name`, without regard to case.
    pub fn values<'a>(&self, name: &str, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.iter()
            .filter(move |field| field.name.get(bytes).eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| field.value.get(bytes))
    }

    /// Like [`Self::values`], including the fields of this hop (`Connection`, `Upgrade`, `TE`, ...)
    /// and of the framing, which are struck out.
    pub fn sent_values<'a>(&self, name: &str, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.0.iter().filter(|field| {
            !field.struck
                || field.known.is_hop_by_hop()
                || matches!(field.known, KnownField::ContentLength | KnownField::Expect)
        });
        fields
            .filter(move |field| field.name.get(bytes).eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| field.value.get(bytes))
    }

    /// Strikes out every field that `which` selects.
    pub fn strike(&mut self, mut which: impl FnMut(&HeadField) -> bool) {
        for field in &mut self.0 {
            if !field.struck && which(field) {
                field.struck = true;
            }
        }
    }

    /// Strikes out the hop-by-hop fields, and those that `Connection` names unless they are end to
    /// end.
    pub fn strike_hop_by_hop(&mut self, bytes: &[u8]) {
        let mut named = false;
        for field in &mut self.0 {
            named |= field.known == KnownField::Connection
                && list(field.value.get(bytes)).any(|token| !is_plain_option(token));
            field.struck |= field.known.is_hop_by_hop();
        }
        if named {
            self.strike_named_by_connection(bytes);
        }
    }

    fn strike_named_by_connection(&mut self, bytes: &[u8]) {
        let options: Vec<Span> = self
            .0
            .iter()
            .filter(|field| field.known == KnownField::Connection)
            .flat_map(|field| list(field.value.get(bytes)).map(|token| Span::of(token, bytes)))
            .collect();
        self.strike(|field| {
            let name = field.name.get(bytes);
            !is_end_to_end(field.known, name)
                && options
                    .iter()
                    .any(|option| option.get(bytes).eq_ignore_ascii_case(name))
        });
    }

    /// True if `Connection` has the option `token`.
    pub fn has_connection_option(&self, token: &[u8], bytes: &[u8]) -> bool {
        self.0
            .iter()
            .filter(|field| field.known == KnownField::Connection)
            .any(|field| {
                list(field.value.get(bytes)).any(|option| option.eq_ignore_ascii_case(token))
            })
    }
}

/// True if a server may read both names as one: without regard to case, and with `_` in place of
/// `-`, as CGI does.
#[inline]
pub fn is_same_or_twin(name: &[u8], other: &[u8]) -> bool {
    let dashed = |byte: &u8| match byte {
        b'_' => b'-',
        byte => byte.to_ascii_lowercase(),
    };
    name.len() == other.len() && name.iter().map(dashed).eq(other.iter().map(dashed))
}

/// True for fields that `Connection` cannot remove, as they are known to be end to end. RFC 9110
/// section 7.6.1 forbids a sender to name them; one that does wants the next server to decide
/// without them.
fn is_end_to_end(known: KnownField, name: &[u8]) -> bool {
    const END_TO_END_PREFIXES: [&[u8]; 5] =
        [b"accept-", b"access-control-", b"content-", b"if-", b"sec-"];
    const END_TO_END_NAMES: [&[u8]; 34] = [
        b"accept",
        b"age",
        b"allow",
        b"alt-svc",
        b"authentication-info",
        b"cache-control",
        b"cdn-cache-control",
        b"clear-site-data",
        b"cross-origin-opener-policy",
        b"cross-origin-resource-policy",
        b"date",
        b"etag",
        b"expires",
        b"from",
        b"last-modified",
        b"link",
        b"location",
        b"max-forwards",
        b"origin",
        b"pragma",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"range",
        b"referer",
        b"retry-after",
        b"server",
        b"set-cookie",
        b"strict-transport-security",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"vary",
        b"www-authenticate",
        b"x-request-id",
    ];
    known.is_protected()
        || END_TO_END_NAMES
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known))
        || END_TO_END_PREFIXES.iter().any(|prefix| {
            name.get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        })
}

/// True for connection options that name no field.
fn is_plain_option(token: &[u8]) -> bool {
    [&b"close"[..], b"keep-alive", b"upgrade"]
        .iter()
        .any(|plain| token.eq_ignore_ascii_case(plain))
}

/// Parses a plain decimal length of 1 to 18 digits, RFC 9110 section 8.6. More digits would come
/// near 2^64; signs, blanks and hexadecimal are read differently by other parsers.
pub fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, digit| {
        digit
            .is_ascii_digit()
            .then(|| sum * 10 + u64::from(digit - b'0'))
    })
}

/// Tokens of a comma-separated list, trimmed, without empty ones, RFC 9110 section 5.6.1.
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twins_differ_in_case_and_underscores_only() {
        for (name, other, same) in [
            ("X-Tenant", "x_tenant", true),
            ("X_Tenant", "x-tenant", true),
            ("X-Tenant", "X-Tenants", false),
            ("X-Tenant", "X.Tenant", false),
        ] {
            let found = is_same_or_twin(name.as_bytes(), other.as_bytes());
            assert_eq!(found, same, "{name} {other}");
        }
    }

    #[test]
    fn known_names_are_found_without_regard_to_case() {
        assert_eq!(KnownField::of(b"Host"), KnownField::Host);
        assert_eq!(
            KnownField::of(b"TRANSFER-ENCODING"),
            KnownField::TransferEncoding
        );
        assert_eq!(KnownField::of(b"hosts"), KnownField::Other);
        assert_eq!(KnownField::of(b""), KnownField::Other);
        for name in ["X-Forwarded", "x-forwarded-", "X-FORWARDED-Prefix"] {
            assert_eq!(
                KnownField::of(name.as_bytes()),
                KnownField::XForwarded,
                "{name}"
            );
        }
        for name in ["X-Forwarder", "X-ForwardedFor", "X-Forward"] {
            assert_eq!(KnownField::of(name.as_bytes()), KnownField::Other, "{name}");
        }
    }

    #[test]
    fn lengths_are_plain_digits() {
        assert_eq!(content_length(b"0"), Some(0));
        assert_eq!(
            content_length(b"999999999999999999"),
            Some(999_999_999_999_999_999)
        );
        for bad in [
            "",
            "+1",
            "-1",
            " 1",
            "1 ",
            "0x1",
            "1,1",
            "1000000000000000000",
            "18446744073709551616",
        ] {
            assert_eq!(content_length(bad.as_bytes()), None, "{bad}");
        }
    }
}
