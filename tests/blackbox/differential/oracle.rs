//! Judgement of what a proxy made of a case: one for every proxy ([`of_request`], [`of_response`]),
//! and what only balancer promises ([`broken_promise`], [`broken_answer`]).
//!
//! *Dangerous* means, for a request: what the backend got, two readers could take for different
//! messages or for somebody else's ([`BackendEvent::Unclear`]); bytes of one message were run as a
//! request; something was run behind a message whose end is unclear; a message that the client
//! never finished was finished for it; bytes went past the proxy unread; an upgrade to h2c was
//! passed on. For a response: the client got bytes that no strict reader can read; a response that
//! was cut, or never began, was shown as whole; bytes that belong to no exchange reached the
//! client; the next exchange did not get its own response; a switch of protocols that the client
//! did not request was passed on; a connection was used again after a response whose end is
//! unclear.

use super::{
    corpus::{self, CorpusCase},
    fixture::{BackendEvent, ConnectionEnd, PlacedEvent, Transcript},
    wire::{self, ParseOutcome, ParsedMessage},
};

/// Outcome of the odd message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    /// Refused with a status of the proxy's own.
    Refused,
    /// The connection was closed, or the response cut.
    Cut,
    /// Passed on in another form.
    Canonical,
    /// Passed on with the same line, fields and body.
    Equal,
    /// No end came in the time allowed.
    Hung,
}

/// Behaviour of a proxy in one case.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// Outcome of the message.
    pub kind: OutcomeKind,
    /// Reasons why the behaviour is dangerous; empty if it is not.
    pub dangers: Vec<String>,
}

const NEXT_TARGET: &str = "/after";

fn wholes(events: &[PlacedEvent]) -> Vec<&ParsedMessage> {
    events
        .iter()
        .filter_map(|(_, event)| match event {
            BackendEvent::Whole(message) => Some(message),
            _ => None,
        })
        .collect()
}

/// A response that comes from the proxy itself.
fn is_own(answer: &ParsedMessage) -> bool {
    answer.status() >= 400
        && answer.values("x-seen").is_empty()
        && answer.values("x-origin").is_empty()
}

/// Judges what a proxy did with a request.
pub fn of_request(case: &CorpusCase, seen: &Transcript, events: &[PlacedEvent]) -> Judgement {
    let wholes = wholes(events);
    let forwarded: Vec<&&ParsedMessage> = wholes
        .iter()
        .filter(|message| message.word(1) != NEXT_TARGET)
        .collect();
    let mut dangers = Vec::new();
    for (_, event) in events {
        if let BackendEvent::Unclear(problem, bytes) = event {
            let start: String = bytes.chars().take(60).collect();
            dangers.push(format!(
                "the backend got {problem}: {}",
                start.escape_debug()
            ));
        }
    }
    for message in &wholes {
        if message.line.contains("smuggled") {
            dangers.push("bytes of a message were run as a request".to_owned());
        }
        let vouched = message.values("x-forwarded-for");
        if !vouched.iter().any(|value| value.ends_with("127.0.0.1")) {
            let name = message.line.chars().take(40).collect::<String>();
            dangers.push(format!(
                "`{name}` reached the backend without our X-Forwarded-For"
            ));
        }
        let upgrade = message.values("upgrade").join(",").to_ascii_lowercase();
        if upgrade.contains("h2c") {
            dangers.push("an upgrade to h2c was passed on".to_owned());
        }
    }
    let ran_after = wholes.iter().any(|message| message.word(1) == NEXT_TARGET);
    if case.is("unclear") && ran_after && !forwarded.is_empty() {
        dangers.push("a request behind a message whose end is unclear was run".to_owned());
    }
    if case.is("cut") && !forwarded.is_empty() {
        dangers.push("a message that was cut was finished".to_owned());
    }
    if let Some(problem) = seen.unclear.filter(|_| !case.is("h2")) {
        dangers.push(format!("the client got {problem}"));
    }
    let kind = match (forwarded.first(), seen.answers.first()) {
        _ if seen.end == ConnectionEnd::Never => OutcomeKind::Hung,
        (Some(first), _) if is_equal(&case.bytes, first) => OutcomeKind::Equal,
        (Some(_), _) => OutcomeKind::Canonical,
        (None, Some(answer)) if is_own(answer) => OutcomeKind::Refused,
        (None, _) => OutcomeKind::Cut,
    };
    Judgement { kind, dangers }
}

/// Fields between two hops only: they may go without making a message another.
const HOP_BY_HOP_FIELDS: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "upgrade",
    "http2-settings",
];

/// The strict reader finds one message in `sent`, and `got` has the same line, fields and body.
fn is_equal(sent: &[u8], got: &ParsedMessage) -> bool {
    let ParseOutcome::Whole(sent, _) = wire::request(sent) else {
        return false;
    };
    let same_line = sent.word(0) == got.word(0) && sent.word(1) == got.word(1);
    same_line
        && sent.odd.is_empty()
        && has_fields(&sent, got)
        && sent.body == got.body
        && sent.trailers == got.trailers
}

fn has_fields(sent: &ParsedMessage, got: &ParsedMessage) -> bool {
    sent.fields.iter().all(|(name, value)| {
        HOP_BY_HOP_FIELDS
            .iter()
            .any(|hop| hop.eq_ignore_ascii_case(name))
            || got.fields.iter().any(|(known, other)| {
                known.eq_ignore_ascii_case(name) && other.eq_ignore_ascii_case(value)
            })
    })
}

/// Judges what a proxy did with a response.
pub fn of_response(
    case: &CorpusCase,
    number: usize,
    first: &Transcript,
    second: Option<&Transcript>,
    events: &[PlacedEvent],
) -> Judgement {
    let mut dangers = Vec::new();
    for transcript in std::iter::once(first).chain(second) {
        if let Some(problem) = transcript.unclear {
            dangers.push(format!("the client got {problem}"));
        }
    }
    let shows_evil = |transcript: &Transcript| wire::find(&transcript.bytes, b"EVIL").is_some();
    if shows_evil(first) || second.is_some_and(shows_evil) {
        dangers.push("bytes that belong to no exchange reached the client".to_owned());
    }
    let whole = first.answers.first().filter(|answer| !is_own(answer));
    if case.is("part") && whole.is_some() {
        dangers.push("what was cut, or no response, was shown as a whole one".to_owned());
    }
    let asked = case.is("upgrade") && !case.is("unasked");
    if whole.is_some_and(|answer| answer.status() == 101) && !asked {
        dangers
            .push("a switch of protocols that the client did not request was passed on".to_owned());
    }
    if case.is("unclear") && is_reused(events, number) {
        dangers
            .push("the connection was used again after a response whose end is unclear".to_owned());
    }
    if let Some(answer) = second.and_then(|second| second.answers.first())
        && !is_own(answer)
        && answer.value("x-target") != Some(&format!("/ok/{number}"))
    {
        dangers.push("the next exchange got an answer that is not its own".to_owned());
    }
    let kind = match first.answers.first() {
        Some(answer) if is_own(answer) => OutcomeKind::Refused,
        Some(answer) if is_shown_equal(case, answer) => OutcomeKind::Equal,
        Some(_) => OutcomeKind::Canonical,
        None if first.unclear.is_some() => OutcomeKind::Canonical,
        None if first.end == ConnectionEnd::Never => OutcomeKind::Hung,
        None => OutcomeKind::Cut,
    };
    Judgement { kind, dangers }
}

fn is_shown_equal(case: &CorpusCase, got: &ParsedMessage) -> bool {
    let method = if case.is("HEAD") { "HEAD" } else { "GET" };
    let said = case.said();
    let mut bytes = &said[..];
    loop {
        match wire::response(bytes, method) {
            ParseOutcome::Whole(sent, used) if matches!(sent.status(), 100 | 102..=199) => {
                bytes = &bytes[used..];
            }
            ParseOutcome::Whole(sent, _) => {
                return sent.odd.is_empty()
                    && sent.status() == got.status()
                    && has_fields(&sent, got)
                    && sent.body == got.body
                    && sent.trailers == got.trailers;
            }
            _ => return false,
        }
    }
}

/// True if the next exchange came on the connection of the odd response.
fn is_reused(events: &[PlacedEvent], number: usize) -> bool {
    let on = |wanted: &str| {
        events.iter().find_map(|(connection, event)| match event {
            BackendEvent::Whole(message) if message.word(1) == wanted => Some(*connection),
            _ => None,
        })
    };
    let odd = on(&format!("/r/{number}")).or_else(|| on(&format!("/slow/{number}")));
    odd.is_some() && odd == on(&format!("/ok/{number}"))
}

/// Broken promise of balancer for a request, beyond the absence of danger; `None` if all hold.
pub fn broken_promise(
    case: &CorpusCase,
    seen: &Transcript,
    events: &[PlacedEvent],
) -> Option<String> {
    let wholes = wholes(events);
    if let Some(odd) = wholes.iter().find_map(|message| message.odd.first()) {
        return Some(format!("the backend got {odd}"));
    }
    if seen.end != ConnectionEnd::Fin && !(seen.end == ConnectionEnd::Reset && case.is("reset")) {
        return Some(format!("the connection ended by {:?}", seen.end));
    }
    let last = case.answers.last().map_or("", String::as_str);
    let forwards = case
        .answers
        .iter()
        .filter(|answer| matches!(answer.as_str(), "equal" | "canonical"));
    let mut wanted: Vec<String> = case.parts("next ").map(str::to_owned).collect();
    let forwarded = forwards.count();
    let goes_on = matches!(last, "equal" | "canonical") && !case.is("ends") && !case.is("cut");
    if forwarded > 0 {
        wanted.insert(0, first_target(case));
    }
    if goes_on {
        wanted.push(NEXT_TARGET.to_owned());
    }
    let got: Vec<&str> = wholes.iter().map(|message| message.word(1)).collect();
    if got != wanted {
        return Some(format!("the backend got {got:?}, not {wanted:?}"));
    }
    let wants_part = case.is("begun");
    let has_part = events
        .iter()
        .any(|(_, event)| matches!(event, BackendEvent::Part));
    if has_part && !wants_part {
        return Some("the backend got the beginning of a message".to_owned());
    }
    broken_answers(case, seen, goes_on).or_else(|| {
        let first = wholes.first().filter(|_| forwarded > 0)?;
        if case.promises("equal") && !is_equal(&case.bytes, first) {
            return Some(format!("not equal: {first:?}"));
        }
        broken_part(case, first)
    })
}

/// The target that the backend must have got first.
fn first_target(case: &CorpusCase) -> String {
    let line = case.parts("line ").next().map(str::to_owned);
    let line = line.unwrap_or_else(|| wire::latin(&case.bytes));
    line.split(' ').nth(1).unwrap_or_default().to_owned()
}

fn broken_answers(case: &CorpusCase, seen: &Transcript, goes_on: bool) -> Option<String> {
    let mut wanted: Vec<u16> = case
        .answers
        .iter()
        .filter(|answer| *answer != "closed")
        .map(|answer| answer.parse().unwrap_or(200))
        .collect();
    if goes_on {
        wanted.push(200);
    }
    let got: Vec<u16> = seen.answers.iter().map(ParsedMessage::status).collect();
    if got != wanted || seen.part.is_some() {
        return Some(format!("the client got {got:?}, not {wanted:?}"));
    }
    for answer in &seen.answers {
        let refused = answer.status() >= 400;
        if refused != is_own(answer) {
            return Some(format!("from the wrong side: {answer:?}"));
        }
        if refused && !answer.values("connection").contains(&"close") {
            return Some("refused, and not told that the connection closes".to_owned());
        }
    }
    None
}

fn broken_part(case: &CorpusCase, got: &ParsedMessage) -> Option<String> {
    for part in &case.parts {
        let holds = match part.split_once(' ').unwrap_or((part, "")) {
            ("line", line) => got.line == format!("{line} HTTP/1.1"),
            ("has", field) => field
                .split_once(": ")
                .is_some_and(|(name, value)| got.value(name) == Some(value)),
            ("no", name) => got.values(name).is_empty(),
            ("body", text) => got.body == corpus::bytes(text),
            ("bodiless", _) => got.body.is_empty(),
            ("trailer", field) => field.split_once(": ").is_some_and(|(name, value)| {
                got.trailers.contains(&(name.to_owned(), value.to_owned()))
            }),
            ("trailers", count) => got.trailers.len().to_string() == count,
            ("status", status) => got.word(1) == status,
            ("phrase", phrase) => got.line.splitn(3, ' ').nth(2) == Some(phrase),
            ("next" | "interim", _) => true,
            other => panic!("{}: an unknown part {other:?}", case.id()),
        };
        if !holds {
            return Some(format!("`{part}` does not hold: {got:?}"));
        }
    }
    None
}

/// Broken promise of balancer for a response, beyond the absence of danger; `None` if all hold.
pub fn broken_answer(
    case: &CorpusCase,
    number: usize,
    first: &Transcript,
    second: Option<&Transcript>,
    events: &[PlacedEvent],
) -> Option<String> {
    let asked = wholes(events).len();
    let reused = is_reused(events, number);
    let unusable = case.refusal().is_some() || case.promises("cut") || case.is("fresh");
    if unusable && reused {
        return Some("the backend connection was used again".to_owned());
    }
    let answer = first.answers.first();
    if let Some(status) = case.refusal() {
        let token = case
            .parts("reason ")
            .next()
            .unwrap_or("http_protocol_error");
        let field = format!("balancer; error={token}");
        let holds = answer.is_some_and(|answer| {
            is_own(answer)
                && answer.status() == status
                && answer.value("proxy-status") == Some(&field)
        });
        if !holds {
            return Some(format!("not {status} with {token}: {first:?}"));
        }
    } else if case.promises("cut") {
        if answer.is_some() || first.unclear.is_some() || first.end == ConnectionEnd::Never {
            return Some(format!("not cut: {first:?}"));
        }
        return None;
    } else {
        let Some(answer) = answer.filter(|answer| !is_own(answer)) else {
            return Some(format!("not passed on: {first:?}"));
        };
        if case.promises("equal") && !is_shown_equal(case, answer) {
            return Some(format!("not equal: {answer:?}"));
        }
        if let Some(odd) = answer.odd.first() {
            return Some(format!("the client got {odd}"));
        }
        if let Some(problem) = broken_part(case, answer) {
            return Some(problem);
        }
    }
    let wanted = case.parts("interim ").next().unwrap_or_default();
    let interim: Vec<String> = first.interim.iter().map(u16::to_string).collect();
    if interim.join(" ") != wanted {
        return Some(format!("1xx: {interim:?}, not {wanted}"));
    }
    let own = second.and_then(|second| second.answers.first());
    match (own, second) {
        (Some(answer), _) if answer.value("x-target") == Some(&format!("/ok/{number}")) => {}
        // The connection was closed behind the first response, or has become something else.
        (None, None) if first.end != ConnectionEnd::Never || case.is("ends") => return None,
        (None, Some(second)) if second.bytes.is_empty() && case.is("ends") => return None,
        _ => return Some(format!("the next exchange got {second:?}")),
    }
    if !unusable && !case.is("any") && !reused {
        return Some("the backend connection was not used again".to_owned());
    }
    if asked != 2 {
        return Some(format!("the backend was asked {asked} times"));
    }
    None
}
