//! Field blocks: their encoding as bytes, well-formed ones, and changes to them.

use std::fmt;

use balancer::{
    base::rng::Random,
    http::rules::{HeadLimits, RESPONSE_LIMITS},
    http2::hpack::{FIELD_OVERHEAD, FieldList, HpackDecoder, SizeLimits},
};

/// Kind of message that a block is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// Head of a request.
    Request,
    /// Head of a response.
    Response,
    /// Trailers of either.
    Trailers,
}

/// Field block, and all that its meaning depends on.
#[derive(Debug, Clone)]
pub struct Block {
    /// Message that it is read as.
    pub kind: BlockKind,
    /// The stream ends with it.
    pub ends: bool,
    /// The response is one to HEAD.
    pub is_head: bool,
    /// The response is one to a WebSocket request.
    pub is_websocket: bool,
    /// Limits of requests and trailers.
    pub limits: HeadLimits,
    /// Names and values.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Limits of requests and trailers: small ones are reached by many blocks.
const LIMITS: [HeadLimits; 4] = [
    HeadLimits {
        fields: 6,
        bytes: 320,
    },
    HeadLimits {
        fields: 40,
        bytes: 8 << 10,
    },
    HeadLimits {
        fields: 100,
        bytes: 32 << 10,
    },
    HeadLimits {
        fields: 240,
        bytes: 64 << 10,
    },
];

/// Size after which no more fields are read: repetitions could make any number.
const MAX_BLOCK_BYTES: usize = 256 << 10;

/// Marks a repetition in the place of a name's length; the other bits are its count.
const REPEATED: u8 = 0x80;

impl Block {
    /// Reads a block from bytes: one of flags, then each field as the length of its name (one
    /// byte), that of its value (two, little-endian), and both. Lengths beyond the end end there.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (flags, mut rest) = bytes.split_first()?;
        let mut fields: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut total = 0;
        while let [length, behind @ ..] = rest
            && total <= MAX_BLOCK_BYTES
        {
            let count = if length & REPEATED != 0 {
                let Some(last) = fields.last().cloned() else {
                    rest = behind;
                    continue;
                };
                let count = usize::from(length & !REPEATED);
                fields.resize(fields.len() + count, last);
                rest = behind;
                count
            } else {
                let [low, high, behind @ ..] = behind else {
                    break;
                };
                let (name, behind) = split(behind, usize::from(*length));
                let (value, behind) = split(behind, usize::from(u16::from_le_bytes([*low, *high])));
                fields.push((name.to_vec(), value.to_vec()));
                rest = behind;
                1
            };
            let last = fields.last().map(|(name, value)| name.len() + value.len());
            total += count * (last.unwrap_or_default() + FIELD_OVERHEAD);
        }
        Some(Self {
            kind: match flags & 3 {
                0 | 3 => BlockKind::Request,
                1 => BlockKind::Response,
                _ => BlockKind::Trailers,
            },
            ends: flags & 4 != 0,
            is_head: flags & 8 != 0,
            is_websocket: flags & 16 != 0,
            limits: LIMITS[usize::from(flags >> 5 & 3)],
            fields,
        })
    }

    /// Fields as the engine has them after decoding: names keep their case.
    pub fn list(&self) -> FieldList {
        let mut block = Vec::new();
        for (name, value) in &self.fields {
            block.push(0);
            literal(&mut block, name);
            literal(&mut block, value);
        }
        let mut list = FieldList::default();
        let limits = match self.kind {
            BlockKind::Request | BlockKind::Trailers => self.limits,
            BlockKind::Response => RESPONSE_LIMITS,
        };
        let limits = SizeLimits {
            kept: 2 * limits.bytes,
            decoded: usize::MAX,
        };
        HpackDecoder::default()
            .decode(&block, limits, &mut list)
            .expect("literals are a block");
        list
    }

    /// Bytes that the crumbs of a cookie do not count, as they are joined.
    fn joined_size(&self) -> usize {
        let crumbs = self.fields.iter().filter(|(name, _)| name == b"cookie");
        36 * crumbs.count().saturating_sub(1)
    }

    /// Size of the lines of HTTP/1, with the empty line.
    fn text_size(&self) -> usize {
        let fields = self.fields.iter();
        let lines = fields.map(|(name, value)| match &**name {
            b":status" => b"HTTP/1.1 200 OK\r\n".len(),
            name => name.len() + b": \r\n".len() + value.len(),
        });
        lines.sum::<usize>() + b"\r\n".len()
    }

    /// Size by the rule of RFC 9113 section 6.5.2.
    fn size(&self) -> usize {
        let sizes = self.fields.iter();
        sizes
            .map(|(name, value)| name.len() + value.len() + FIELD_OVERHEAD)
            .sum()
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:?}, ends {}, HEAD {}, WebSocket {}, {:?}",
            self.kind, self.ends, self.is_head, self.is_websocket, self.limits
        )?;
        for equal in self.fields.chunk_by(|one, other| one == other) {
            let (name, value) = &equal[0];
            let value: String = value.escape_ascii().to_string().chars().take(100).collect();
            writeln!(f, "  {} x {}: {value}", equal.len(), name.escape_ascii())?;
        }
        Ok(())
    }
}

fn split(bytes: &[u8], at: usize) -> (&[u8], &[u8]) {
    bytes.split_at(at.min(bytes.len()))
}

/// Appends a string literal, RFC 7541 section 5.2.
fn literal(out: &mut Vec<u8>, text: &[u8]) {
    let mut length = text.len();
    if length < 127 {
        out.push(length as u8);
    } else {
        out.push(127);
        length -= 127;
        while length >= 128 {
            out.push((length % 128 + 128) as u8);
            length /= 128;
        }
        out.push(length as u8);
    }
    out.extend(text);
}

fn pick<'a, T: ?Sized>(random: &mut Random, choices: &[&'a T]) -> &'a T {
    choices[random.below(choices.len())]
}

/// One of the first `most` texts of `list`, which are separated by bars. The first ones are good.
fn one_of<'a>(random: &mut Random, list: &'a str, most: usize) -> &'a str {
    let count = list.split('|').count().min(most);
    list.split('|').nth(random.below(count)).unwrap_or_default()
}

/// True once in `times`.
fn once_in(random: &mut Random, times: usize) -> bool {
    random.below(times) == 0
}

const PSEUDO_NAMES: &str = ":method|:scheme|:authority|:path|:protocol|:status|:x|:|:Method|:path ";

const FIELD_NAMES: &str = "a|b|cookie|content-length|te|host|expect|connection|keep-alive|\
    proxy-connection|transfer-encoding|upgrade|http2-settings|trailer|\
    x-forwarded-for|x-forwarded|x-forwarded-prefix|forwarded|x-real-ip|\
    true-client-ip|via|sec-websocket-key|sec-websocket-accept|\
    sec-websocket-version|content-type|authorization|user-agent|accept|date|\
    traceparent|x_forwarded_for|x_a|content_length|transfer_encoding|host_|\
    x_forwarded_any_long_name|te_|grpc-status|grpc-message|set-cookie|set_cookie|\
    cf-connecting-ip|location|server|link|proxy-authenticate|max-forwards|x-ip";

const BAD_NAMES: &str = "|A|Host|Cookie|Content-Length|TE|Connection|a b|a:|a\r\nb|a\0|\u{e4}|a\t| a|\
    a |(a)|a\x7f|!#$%&'*+-.^_`~09az|\"|x/y";

const VALUES: &str = "|b| b|b |\tb\t| |\t|b c|b\tc|b,c|close|a|chunked|b\r\nc: d|b\r|b\n|\0|b\x7f|\
    \x1b|\u{e4}|b: c|100-continue|trailers|0|5|%0d%0a|upgrade|websocket|https://a/";

/// Values that may be right for `name`, and some that are almost so.
fn values_for(name: &str) -> &'static str {
    match name {
        ":method" => {
            "GET|POST|HEAD|OPTIONS|PUT|CONNECT|PURGE|M-SEARCH|get||G T|GET\r\n|G\0T|(GET)|\
            GET |PRI|connect|\u{e4}"
        }
        ":scheme" => "http|https|HTTP|HTTPS|ftp||ht tp|9http|a+-.9|http:|http\r\n",
        ":authority" | "host" => {
            "a|A|a:80|a:443|a:8080|a:|a:0|a:65535|a:65536|a:99999|a:+80|a.b-c_~!$&'()*+;=|\
            b|u@a|u:p@a|a b|| a|a\t|a%2fb|a/b|a,b|a#b|a?b|a\\b|[::1]|[::1]:80|[::1]:443|\
            [::1|::1|[]|[g]|[::1]x|\u{e4}|a\r\nx: y|:80|[::ffff:1.2.3.4]:443|aa:80|a:080|\
            a:00080"
        }
        ":path" => {
            "/|/b|/b?c=d|/?|/%20%00|/;x|*|**|*?a||b|/a b|/a#b|/#|http://a/|http://b/x|\
            https://a|//b/c|/\u{e4}|/a\r\nx: y|/\0|/\t|/<>\"`{}\\^[]~'|?a| /|/ |/\x7f|\
            /a?b?c"
        }
        ":protocol" => "websocket|WebSocket|connect-udp||websocket |h2c|web\0socket",
        ":status" => {
            "200|204|304|404|100|101|102|103|199|206|299|205|426|500|599|600|999|099|000|\
            20|2000| 200|2x0||201|301|418"
        }
        "content-length" => {
            "0|5|7|00|05|+5|-5| 5 |5 5|5,5|5, 5||0x5|5\t|999999999999999999|\
            1000000000000000000|18446744073709551616|5\r\n|a|\u{661}"
        }
        "te" => {
            "trailers| trailers |Trailers|trailers, gzip|gzip||trailers;q=1|\
            trailers,trailers"
        }
        "expect" => "100-continue|100-Continue| 100-continue|100-continue, a|other|",
        "cookie" => "a=b|c=d|| | e=f |a=b; c=d|a|;|\0|\u{e4}",
        _ => VALUES,
    }
}

fn any_name(random: &mut Random) -> &'static str {
    match random.below(16) {
        0 => one_of(random, PSEUDO_NAMES, usize::MAX),
        1 => one_of(random, BAD_NAMES, usize::MAX),
        _ => one_of(random, FIELD_NAMES, usize::MAX),
    }
}

/// Value for `name`: mostly one that is common there.
fn any_value(random: &mut Random, name: &[u8]) -> Vec<u8> {
    let name = str::from_utf8(name).unwrap_or_default();
    let from = if once_in(random, 8) {
        VALUES
    } else {
        values_for(name)
    };
    let most = if once_in(random, 2) { 6 } else { usize::MAX };
    one_of(random, from, most).as_bytes().to_vec()
}

/// Well-formed block, or almost.
pub fn generate(random: &mut Random) -> Block {
    let kind = match random.below(8) {
        0 => BlockKind::Trailers,
        1..3 => BlockKind::Response,
        _ => BlockKind::Request,
    };
    let mut block = Block {
        kind,
        ends: once_in(random, 2),
        is_head: once_in(random, 4),
        is_websocket: once_in(random, 4),
        limits: LIMITS[random.below(LIMITS.len())],
        fields: Vec::new(),
    };
    let mut add = |name: &str, value: &str| block.fields.push((name.into(), value.into()));
    match kind {
        BlockKind::Request if once_in(random, 4) => {
            add(":method", "CONNECT");
            add(":scheme", "https");
            add(":authority", "a");
            add(":path", "/chat");
            add(":protocol", "websocket");
            add("sec-websocket-version", "13");
        }
        BlockKind::Request => {
            add(":method", one_of(random, values_for(":method"), 4));
            add(":scheme", pick(random, &["http", "https"]));
            let authority = one_of(random, values_for(":authority"), 6);
            if !once_in(random, 4) {
                add(":authority", authority);
            }
            add(":path", one_of(random, values_for(":path"), 6));
            if once_in(random, 2) {
                add("host", authority);
            }
        }
        BlockKind::Response => add(":status", one_of(random, values_for(":status"), 12)),
        BlockKind::Trailers => {}
    }
    for _ in 0..random.below(6) {
        insert(&mut block, random, false);
    }
    block
}

/// Adds a field; `anywhere`: also before the pseudo-header fields, and with any name.
fn insert(block: &mut Block, random: &mut Random, anywhere: bool) {
    let name = if anywhere {
        any_name(random)
    } else {
        one_of(random, FIELD_NAMES, 5)
    };
    let value = if anywhere || name == "te" {
        any_value(random, name.as_bytes())
    } else {
        one_of(random, values_for(name), 1).as_bytes().to_vec()
    };
    let value = if name == "te" && !anywhere {
        b"trailers".to_vec()
    } else {
        value
    };
    let behind = block
        .fields
        .iter()
        .take_while(|(name, _)| name.first() == Some(&b':'))
        .count();
    let first = if anywhere && once_in(random, 8) {
        0
    } else {
        behind
    };
    let at = first + random.below(block.fields.len() - first + 1);
    block.fields.insert(at, (name.into(), value));
}

/// Changes one thing.
pub fn mutate(block: &mut Block, random: &mut Random) {
    let count = block.fields.len();
    let at = random.below(count);
    match random.below(20) {
        0 => block.ends = !block.ends,
        1 => block.is_head = !block.is_head,
        2 => block.is_websocket = !block.is_websocket,
        3 => block.limits = LIMITS[random.below(LIMITS.len())],
        4..7 => insert(block, random, true),
        7 => fill(block, random),
        8 => stretch(block, random),
        9 => crumble(block, random),
        _ if count == 0 => {}
        10..14 => block.fields[at].1 = any_value(random, &block.fields[at].0),
        14 => {
            let copy = block.fields[at].clone();
            let to = random.below(count + 1);
            block.fields.insert(to, copy);
        }
        15 => drop(block.fields.remove(at)),
        16 => block.fields.swap(at, random.below(count)),
        17 => block.fields[at].0 = any_name(random).into(),
        18 => {
            let (name, value) = &mut block.fields[at];
            let text = if once_in(random, 2) { name } else { value };
            let special = b" \t\0\r\nA\x7f\x80\xff_:,#";
            let byte = special.get(random.below(special.len() + 1)).copied();
            let byte = byte.unwrap_or(random.bits() as u8);
            let place = random.below(text.len() + 1);
            if once_in(random, 2) || place == text.len() {
                text.insert(place, byte);
            } else {
                text[place] = byte;
            }
        }
        _ => {
            let name = &mut block.fields[at].0;
            let place = random.below(name.len());
            if let Some(byte) = name.get_mut(place) {
                byte.make_ascii_uppercase();
            }
        }
    }
}

/// Adds fields until their number is near the limit.
fn fill(block: &mut Block, random: &mut Random) {
    let limit = match block.kind {
        BlockKind::Response => RESPONSE_LIMITS.fields,
        BlockKind::Request | BlockKind::Trailers => block.limits.fields,
    };
    let wanted = limit + random.below(9);
    let name = pick(random, &["a", "cookie", "x-b"]);
    let value: &[u8] = pick(random, &[&b""[..], b"b", b"longer value"]);
    while block.fields.len() < wanted {
        block.fields.push((name.into(), value.to_vec()));
    }
}

/// Makes one value so long that a size is near its limit, often to the byte.
fn stretch(block: &mut Block, random: &mut Random) {
    let limits = match block.kind {
        BlockKind::Response => RESPONSE_LIMITS,
        BlockKind::Request | BlockKind::Trailers => block.limits,
    };
    let limit = match random.below(8) {
        0..5 => limits.bytes,
        5..7 => limits.bytes / 2,
        _ => 2 * limits.bytes,
    };
    let target = block.fields.iter().position(|(name, _)| name == b":path");
    let at = match target {
        Some(target) if once_in(random, 2) => target,
        _ => random.below(block.fields.len()),
    };
    let others = match random.below(4) {
        0 => 0,
        1 => block.size(),
        2 => block.size() - block.joined_size(),
        _ => block.text_size(),
    };
    let Some((_, value)) = block.fields.get_mut(at) else {
        return;
    };
    let others = others.saturating_sub(value.len());
    let around = if once_in(random, 2) { 4 } else { 60 };
    let wanted = (limit + 2).saturating_sub(others + random.below(around));
    let length = wanted.min(65_000);
    if value.len() < length {
        value.resize(length, b'x');
    }
}

/// Makes many crumbs of a cookie.
fn crumble(block: &mut Block, random: &mut Random) {
    let crumb: &[u8] = pick(
        random,
        &[
            &b""[..],
            b"a=b",
            b" c=d ",
            b"\t",
            b"x=\0",
            b"0123456789012345678901234567890123456789",
        ],
    );
    let count = 1 + random.below(2 * block.limits.fields.min(120));
    for _ in 0..count {
        let at = if once_in(random, 8) {
            random.below(block.fields.len() + 1)
        } else {
            block.fields.len()
        };
        block
            .fields
            .insert(at, (b"cookie".to_vec(), crumb.to_vec()));
    }
}
