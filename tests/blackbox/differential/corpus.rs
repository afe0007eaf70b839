//! Reads the corpus: cases as data, in `requests.txt` and `responses.txt`, and the families built
//! by loops.
//!
//! ```text
//! [class]
//! name => what we promise | part ; part # tag tag
//!     bytes, over as many lines as one likes
//! ```
//! Line breaks and indentation of the file are not part of the bytes. `¶` is CR LF; `\n`, `\r`,
//! `\t`, `\0`, `\xHH`, `\s` (a blank), `\\` are what they are elsewhere; `{5*text}` is `text` five
//! times, `{pause}` and `{idle}` see `fixture.rs`. `@get F` stands for a GET of `/x` on host `a`
//! with the fields `F`, `@post F` for the beginning of such a POST, `@ok F` for the beginning of a
//! 200.

use std::collections::HashSet;

/// One odd message and what we promise for it.
#[derive(Debug, Clone, Default)]
pub struct CorpusCase {
    /// Unique within its class, and stable.
    pub name: String,
    /// Named in docs/http.md.
    pub class: String,
    /// Bytes to send.
    pub bytes: Vec<u8>,
    /// Results that the other side sees, in order: `equal`, `canonical`, `closed`, `cut`, or a
    /// status.
    pub answers: Vec<String>,
    /// Further conditions.
    pub parts: Vec<String>,
    /// Tags that change how it is run and judged.
    pub tags: Vec<String>,
}

impl CorpusCase {
    /// True if the case has the tag `name`.
    pub fn is(&self, name: &str) -> bool {
        self.tags.iter().any(|tag| tag == name)
    }

    /// Class and name.
    pub fn id(&self) -> String {
        format!("{}/{}", self.class, self.name)
    }

    /// True if the first thing promised is `word`.
    pub fn promises(&self, word: &str) -> bool {
        self.answers.first().is_some_and(|first| first == word)
    }

    /// The status we refuse the first message with.
    pub fn refusal(&self) -> Option<u16> {
        self.answers.first()?.parse().ok()
    }

    /// The bytes without the steps of a script.
    pub fn said(&self) -> Vec<u8> {
        let mut said = self.bytes.clone();
        for step in ["{pause}", "{idle}", "{drip}", "{nothing}"] {
            while let Some(at) = said
                .windows(step.len())
                .position(|here| here == step.as_bytes())
            {
                said.drain(at..at + step.len());
            }
        }
        said
    }

    /// The text behind `word` in the parts that begin with it.
    pub fn parts<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        self.parts
            .iter()
            .filter_map(move |part| part.strip_prefix(word))
    }
}

/// A case of a family: built by a loop.
pub fn made(class: &str, name: String, verdict: &str, bytes: Vec<u8>) -> CorpusCase {
    let mut case = CorpusCase {
        name,
        class: class.to_owned(),
        bytes,
        ..CorpusCase::default()
    };
    promise(&mut case, verdict);
    case
}

/// Reads the cases of a file.
pub fn read(text: &str) -> Vec<CorpusCase> {
    let mut cases: Vec<CorpusCase> = Vec::new();
    let mut sources: Vec<String> = Vec::new();
    let mut class = "";
    for (number, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('%') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            class = name.trim_end_matches(']');
        } else if let Some(bytes) = line.strip_prefix("    ") {
            let last = sources.last_mut();
            last.expect("bytes belong to a case").push_str(bytes);
        } else if let Some((name, verdict)) = line.split_once(" => ") {
            cases.push(made(class, name.trim().to_owned(), verdict, Vec::new()));
            sources.push(String::new());
        } else {
            panic!("line {}: {line}", number + 1);
        }
    }
    for (case, source) in cases.iter_mut().zip(sources) {
        case.bytes = bytes(&source);
    }
    cases
}

/// Every case has a name of its own.
#[track_caller]
pub fn check_names(cases: &[CorpusCase]) {
    let mut names = HashSet::new();
    for case in cases {
        assert!(
            names.insert(case.id()),
            "two cases are called {}",
            case.id()
        );
        assert!(
            !case.answers.is_empty() && !case.bytes.is_empty(),
            "{}",
            case.id()
        );
    }
}

fn promise(case: &mut CorpusCase, verdict: &str) {
    let (verdict, tags) = verdict.split_once(" # ").unwrap_or((verdict, ""));
    let (answers, parts) = verdict.split_once(" | ").unwrap_or((verdict, ""));
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    case.answers = words(answers);
    case.tags = words(tags);
    let parts = parts.split(" ; ").map(str::trim);
    case.parts = parts
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect();
}

/// Bytes from their readable form.
pub fn bytes(source: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let source = match source.split_once(' ') {
        Some(("@get", fields)) => &format!("GET /x HTTP/1.1¶Host: a¶{fields}¶¶"),
        Some(("@post", rest)) => &format!("POST /x HTTP/1.1¶Host: a¶{rest}"),
        Some(("@ok", rest)) => &format!("HTTP/1.1 200 OK¶{rest}"),
        _ => source,
    };
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '¶' => out.extend_from_slice(b"\r\n"),
            '\\' => {
                let escape = rest.chars().next().expect("something is escaped");
                rest = &rest[1..];
                out.push(match escape {
                    'n' => b'\n',
                    'r' => b'\r',
                    't' => b'\t',
                    's' => b' ',
                    '0' => 0,
                    '\\' => b'\\',
                    'x' => {
                        let (digits, after) = rest.split_at(2);
                        rest = after;
                        u8::from_str_radix(digits, 16).expect("two hexadecimal digits")
                    }
                    other => panic!("an unknown escape: {other}"),
                });
            }
            '{' => {
                let (inner, after) = rest.split_at(closing(rest));
                rest = &after[1..];
                match inner.split_once('*') {
                    Some((count, text)) => {
                        let count = count.parse().expect("a number");
                        out.extend(bytes(text).repeat(count));
                    }
                    // A step of a script, or just braces.
                    None => out.extend(format!("{{{inner}}}").into_bytes()),
                }
            }
            plain => {
                let mut room = [0; 4];
                out.extend_from_slice(plain.encode_utf8(&mut room).as_bytes());
            }
        }
    }
    out
}

/// Offset of the brace that closes the one before `text`.
fn closing(text: &str) -> usize {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    panic!("a brace is not closed: {text}");
}
