//! A strict reader of HTTP/1 messages that shares no line with the program under test.
//!
//! It tells three things apart: a whole message, the beginning of one, and bytes that two readers
//! could take for different messages ([`ParseOutcome::Unclear`]). What is against the standard but
//! means one thing to everybody is noted in [`ParsedMessage::odd`].

/// Classification of the bytes at the front of a buffer.
#[derive(Debug, Clone)]
pub enum ParseOutcome {
    /// A whole message, and how many bytes it has.
    Whole(ParsedMessage, usize),
    /// A response whose body lasts until the connection ends: its head, and where the body begins.
    UntilEnd(ParsedMessage, usize),
    /// The beginning of a message.
    Part,
    /// Two readers could disagree about its end or its destination.
    Unclear(&'static str),
}

/// One message.
#[derive(Debug, Clone, Default)]
pub struct ParsedMessage {
    /// Request line or status line.
    pub line: String,
    /// Names as sent, values without the blanks around them.
    pub fields: Vec<(String, String)>,
    /// Without chunk framing.
    pub body: Vec<u8>,
    /// Trailer fields.
    pub trailers: Vec<(String, String)>,
    /// Against the standard, but of one meaning.
    pub odd: Vec<&'static str>,
}

impl ParsedMessage {
    /// The word of the first line: 0 is the method or the version, 1 the target or the status.
    pub fn word(&self, place: usize) -> &str {
        self.line.split(' ').nth(place).unwrap_or_default()
    }

    /// The status of a response, 0 if it has none.
    pub fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or_default()
    }

    /// Values of all fields called `name`.
    pub fn values(&self, name: &str) -> Vec<&str> {
        values(&self.fields, name)
    }

    /// The value of the only field called `name`.
    pub fn value(&self, name: &str) -> Option<&str> {
        match self.values(name)[..] {
            [value] => Some(value),
            _ => None,
        }
    }
}

fn values<'a>(fields: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    let named = fields
        .iter()
        .filter(|(known, _)| known.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.as_str()).collect()
}

/// Bytes as text, one character a byte, so that nothing is lost.
pub fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn is_token(text: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !text.is_empty() && text.chars().all(part)
}

#[derive(Clone, Copy)]
enum BodyLength {
    Exactly(usize),
    Chunked,
    Unknown,
}

/// Reads a request.
pub fn request(bytes: &[u8]) -> ParseOutcome {
    read(bytes, &mut |message| {
        request_line(message)?;
        Ok(match length(message)? {
            BodyLength::Unknown => BodyLength::Exactly(0),
            known => known,
        })
    })
}

/// Reads the response to a request of `method`.
pub fn response(bytes: &[u8], method: &str) -> ParseOutcome {
    read(bytes, &mut |message| {
        status_line(message)?;
        let length = length(message)?;
        let bodiless = method == "HEAD" || matches!(message.status(), 100..=199 | 204 | 304);
        Ok(if bodiless {
            BodyLength::Exactly(0)
        } else {
            length
        })
    })
}

fn read(
    bytes: &[u8],
    judge: &mut dyn FnMut(&mut ParsedMessage) -> Result<BodyLength, &'static str>,
) -> ParseOutcome {
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        // What is wrong already will not get better, and a reader that takes bare line feeds has a
        // whole head here.
        return match bare(bytes) {
            Some(problem) if find(bytes, b"\n\n").is_some() || bytes.len() > 5 => {
                ParseOutcome::Unclear(problem)
            }
            _ => ParseOutcome::Part,
        };
    };
    match head(&bytes[..end]).and_then(|mut message| {
        let length = judge(&mut message)?;
        Ok((message, length))
    }) {
        Err(problem) => ParseOutcome::Unclear(problem),
        Ok((message, length)) => body(message, length, bytes, end + 4),
    }
}

fn head(bytes: &[u8]) -> Result<ParsedMessage, &'static str> {
    if let Some(problem) = bare(bytes) {
        return Err(problem);
    }
    let text = latin(bytes);
    let mut lines = text.split("\r\n");
    let mut message = ParsedMessage {
        line: lines.next().unwrap_or_default().to_owned(),
        ..ParsedMessage::default()
    };
    for line in lines {
        let (field, odd) = field(line)?;
        message.odd.extend(odd);
        message.fields.push(field);
    }
    Ok(message)
}

/// A line feed or carriage return alone, or a NUL.
fn bare(bytes: &[u8]) -> Option<&'static str> {
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => return Some("a bare line feed"),
            b'\r' if bytes.get(at + 1).is_some_and(|next| *next != b'\n') => {
                return Some("a bare carriage return");
            }
            0 => return Some("a NUL"),
            _ => {}
        }
    }
    None
}

type NamedField = (String, String);

fn field(line: &str) -> Result<(NamedField, Option<&'static str>), &'static str> {
    let Some((name, value)) = line.split_once(':') else {
        return Err("a line without a colon");
    };
    let is_blank = |c: char| c.is_ascii_whitespace() || c.is_ascii_control();
    if name.is_empty() || name.contains(is_blank) {
        return Err("an empty name, a blank in one, or a folded line");
    }
    let odd_name = !is_token(name);
    let value = value.trim_matches([' ', '\t']);
    let is_control = |c: char| (c.is_control() && c != '\t' && (c as u32) < 0x80) || c == '\u{7f}';
    let odd = value.chars().any(is_control);
    Ok((
        (name.to_owned(), value.to_owned()),
        if odd_name {
            Some("a name that is no token")
        } else {
            odd.then_some("a control byte in a value")
        },
    ))
}

fn request_line(message: &mut ParsedMessage) -> Result<(), &'static str> {
    let words: Vec<&str> = message.line.split(' ').collect();
    let [method, target, version] = words[..] else {
        return Err("a request line that is not three words");
    };
    if !is_token(method) {
        return Err("a method that is no token");
    }
    if version != "HTTP/1.1" && version != "HTTP/1.0" {
        return Err("a version that is not ours");
    }
    let hosts = message.values("host");
    if hosts.len() > 1 {
        return Err("several Host");
    }
    if hosts.is_empty() && version == "HTTP/1.1" {
        return Err("no Host");
    }
    let host = hosts.first().copied().unwrap_or_default();
    if host.contains(|c: char| c.is_whitespace() || "/@?#\\".contains(c)) {
        return Err("a Host that is not one authority");
    }
    if let Some((_, rest)) = target
        .split_once("://")
        .filter(|_| !target.starts_with('/'))
    {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let name = authority.rsplit('@').next().unwrap_or_default();
        let plain = |name: &str| name.trim_end_matches(":80").to_ascii_lowercase();
        if !hosts.is_empty() && plain(name) != plain(host) {
            return Err("a target and a Host that name two authorities");
        }
    }
    let mut odd = Vec::new();
    if !target.chars().all(|c| ('\x21'..='\x7e').contains(&c)) || target.contains('#') {
        odd.push("a target with a fragment or a byte that may not be there");
    }
    message.odd.extend(odd);
    Ok(())
}

fn status_line(message: &mut ParsedMessage) -> Result<(), &'static str> {
    let Some(rest) = message
        .line
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| message.line.strip_prefix("HTTP/1.0 "))
    else {
        return Err("not a status line of HTTP/1");
    };
    let bytes = rest.as_bytes();
    let plain = bytes.len() >= 3 && bytes[..3].iter().all(u8::is_ascii_digit);
    if !plain || bytes.get(3).is_some_and(|next| *next != b' ') {
        return Err("a status that is not three digits");
    }
    if bytes.len() == 3 {
        message.odd.push("no blank after the status");
    }
    Ok(())
}

/// `gzip, chunked`: its end is clear.
fn is_coded_and_chunked(coding: &str) -> bool {
    let coding = coding.to_ascii_lowercase();
    let words: Vec<&str> = coding.split(',').map(str::trim).collect();
    matches!(words[..], ["gzip" | "deflate" | "compress", "chunked"])
}

fn length(message: &mut ParsedMessage) -> Result<BodyLength, &'static str> {
    let all = |name: &str| -> Vec<String> {
        let values = message.values(name).into_iter();
        values.map(str::to_owned).collect()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(BodyLength::Unknown),
        ([length], []) => {
            let plain = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            match length.parse() {
                Ok(length) if plain => Ok(BodyLength::Exactly(length)),
                _ => Err("a length that is not a number"),
            }
        }
        ([], [_]) if message.line.contains("HTTP/1.0") => Err("chunked in HTTP/1.0"),
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(BodyLength::Chunked),
        ([], [coding]) if is_coded_and_chunked(coding) => {
            message.odd.push("a transfer coding before chunked");
            Ok(BodyLength::Chunked)
        }
        ([], [_]) => Err("a transfer coding that is not chunked"),
        (_, []) => Err("several lengths"),
        ([], _) => Err("several transfer codings"),
        _ => Err("a length and a transfer coding"),
    }
}

fn body(mut message: ParsedMessage, length: BodyLength, bytes: &[u8], at: usize) -> ParseOutcome {
    match length {
        BodyLength::Unknown => ParseOutcome::UntilEnd(message, at),
        BodyLength::Exactly(length) => {
            let end = at.saturating_add(length);
            match bytes.get(at..end) {
                Some(body) => {
                    message.body = body.to_vec();
                    ParseOutcome::Whole(message, end)
                }
                None => ParseOutcome::Part,
            }
        }
        BodyLength::Chunked => match chunks(&mut message, bytes, at) {
            Ok(Some(end)) => ParseOutcome::Whole(message, end),
            Ok(None) => ParseOutcome::Part,
            Err(problem) => ParseOutcome::Unclear(problem),
        },
    }
}

fn chunks(
    message: &mut ParsedMessage,
    bytes: &[u8],
    mut at: usize,
) -> Result<Option<usize>, &'static str> {
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else {
            return match bare(&bytes[at..]) {
                Some(problem) => Err(problem),
                None => Ok(None),
            };
        };
        let line = &bytes[at..at + end];
        if let Some(problem) = bare(line) {
            return Err(problem);
        }
        let text = latin(line);
        let digits = text.split(';').next().unwrap_or_default();
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let Some(size) = usize::from_str_radix(digits, 16).ok().filter(|_| plain) else {
            return Err("a chunk size that is not a number");
        };
        if text != format!("{size:x}") && text != format!("{size:X}") {
            message.odd.push("a chunk size line with more than a size");
        }
        at += end + 2;
        if size == 0 {
            return trailers(message, bytes, at);
        }
        let Some(data) = at.checked_add(size).and_then(|end| bytes.get(at..end)) else {
            return Ok(None);
        };
        message.body.extend_from_slice(data);
        at += size;
        match bytes.get(at..at + 2) {
            None => return Ok(None),
            Some(b"\r\n") => at += 2,
            Some(_) => return Err("a chunk that does not end where its size says"),
        }
    }
}

fn trailers(
    message: &mut ParsedMessage,
    bytes: &[u8],
    mut at: usize,
) -> Result<Option<usize>, &'static str> {
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else {
            return match bare(&bytes[at..]) {
                Some(problem) => Err(problem),
                None => Ok(None),
            };
        };
        let line = &bytes[at..at + end];
        at += end + 2;
        if line.is_empty() {
            return Ok(Some(at));
        }
        if let Some(problem) = bare(line) {
            return Err(problem);
        }
        let (trailer, odd) = field(&latin(line))?;
        let frames = ["content-length", "transfer-encoding", "host"];
        if frames
            .iter()
            .any(|name| trailer.0.eq_ignore_ascii_case(name))
        {
            return Err("a trailer that frames or routes");
        }
        message.odd.extend(odd);
        message.trailers.push(trailer);
    }
}

/// Offset of `part` in `bytes`.
pub fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|here| here == part)
}
