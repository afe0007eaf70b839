//! Hints for wrong words: our word for another product's (from the table of keys, `schema`), or the
//! nearest of ours.
//!
//! Hints only: nothing here makes another product's word work.

use super::{
    problem::word_list,
    schema::{self, KeyRow, ValueKind, ValueShape},
};
use crate::base::units;

/// The hint for an unknown key of a section; `known` are the keys it may have.
pub(super) fn for_key(section: &str, key: &str, value: Option<&str>, known: &[&str]) -> String {
    if schema::is_later_key(section, key) {
        return format!("this version does not have `{key}` yet; remove it");
    }
    let plain = key.to_ascii_lowercase().replace('-', "_");
    if let Some(same) = known.iter().find(|known| **known == plain) {
        return format!("did you mean `{same}`?");
    }
    if let Some((row, hint)) = schema::hint_for_word(section, &plain) {
        let Some(row) = row else {
            return hint.to_owned();
        };
        let hint = schema::with_known_words(row, hint);
        let hint = match value {
            Some(value) => with_value(&hint, row, &plain, value),
            None => hint,
        };
        return if row.split().0 == section {
            inside(section, &hint)
        } else {
            hint
        };
    }
    if let Some(near) = nearest(key, known.iter().copied()) {
        return format!("did you mean `{near}`?");
    }
    elsewhere(section, &plain).unwrap_or_else(|| format!("it may be {}", word_list(known)))
}

/// The hint for a reader who is in `section` already: its keys without the name of the section.
fn inside(section: &str, hint: &str) -> String {
    let mut out = String::new();
    let mut rest = hint;
    let start = format!("`{}: {{", section.rsplit('.').next().unwrap_or_default());
    while let Some((before, after)) = rest.split_once(&start) {
        let Some((keys, after)) = after.split_once("}`") else {
            break;
        };
        out.push_str(before);
        out.extend(["`", keys, "`"]);
        rest = [" in the listener", " in the pool", " in a route"]
            .iter()
            .find_map(|place| after.strip_prefix(place))
            .unwrap_or(after);
    }
    out + rest
}

/// True if the unknown `word` was written for `row`: it is near to its key, or another product's
/// word for it.
pub(super) fn is_meant(row: &KeyRow, word: &str) -> bool {
    let plain = word.to_ascii_lowercase().replace('-', "_");
    let (section, name) = row.split();
    match schema::hint_for_word(section, &plain) {
        Some((Some(meant), _)) => meant.path == row.path,
        Some((None, _)) => false,
        None => plain == name || nearest(word, [name].into_iter()).is_some(),
    }
}

/// The author's `value` of the foreign key `word` as one that `row` takes. None where that is not
/// certain.
fn as_ours(row: &KeyRow, word: &str, value: &str) -> Option<String> {
    let ours = match (row.value.shape, row.value.kind) {
        (ValueShape::Single, ValueKind::Duration { .. }) => with_unit(word, value),
        (ValueShape::Single, ValueKind::Size { .. }) => with_size_unit(value),
        _ => value.to_owned(),
    };
    let fits = match row.value.kind {
        ValueKind::Integer { min, max } => {
            is_number(&ours)
                && ours
                    .parse()
                    .is_ok_and(|number| (min..=max).contains(&number))
        }
        ValueKind::Duration { min, max } => {
            units::duration(&ours).is_ok_and(|time| (min..=max).contains(&time))
        }
        ValueKind::Size { min, max } => {
            units::size(&ours).is_ok_and(|size| size > 0 && (min..=max).contains(&size))
        }
        ValueKind::Share => units::share(&ours).is_ok(),
        ValueKind::Rate => units::rate(&ours).is_ok(),
        ValueKind::OneOf(words) => words.contains(&value),
        ValueKind::Text(_) => {
            is_plain(value)
                && row.value.pattern.is_none_or(|pattern| {
                    pattern == "^/" && value.starts_with('/') || row.value.is_header_name()
                })
        }
        ValueKind::Boolean | ValueKind::Keys => false,
    };
    let takes_one = matches!(
        row.value.shape,
        ValueShape::Single | ValueShape::OneOrList { .. }
    );
    (fits && takes_one).then_some(ours)
}

fn is_number(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit())
}

/// A bare number as a duration: HAProxy counts in milliseconds, nginx and most others in seconds.
fn with_unit(word: &str, value: &str) -> String {
    let is_haproxy = word.starts_with("timeout ") || word == "inter";
    match (is_number(value), is_haproxy) {
        (false, _) => value.to_owned(),
        (true, true) => format!("{value}ms"),
        (true, false) => format!("{value}s"),
    }
}

/// A size of nginx, such as `10m`, in our unit.
fn with_size_unit(value: &str) -> String {
    let unit = value.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = value.strip_suffix(unit).unwrap_or(value);
    match unit {
        "k" | "K" => format!("{digits}KiB"),
        "m" | "M" => format!("{digits}MiB"),
        "g" | "G" => format!("{digits}GiB"),
        _ => value.to_owned(),
    }
}

/// True for a text that needs no quotes anywhere.
fn is_plain(value: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"_./-".contains(&byte);
    !value.is_empty() && value.bytes().all(is_fine) && !is_old_boolean(value)
}

/// The hint with the author's `value` for the example that it has for `row` or for one of its keys.
fn with_value(hint: &str, row: &KeyRow, word: &str, value: &str) -> String {
    let is_text = |row: &&&KeyRow| matches!(row.value.kind, ValueKind::Text(_));
    let numbers = schema::section(row.path).iter().filter(|row| !is_text(row));
    std::iter::once(row)
        .chain(numbers.copied())
        .find_map(|row| with_example(hint, row.name(), &as_ours(row, word, value)?))
        .unwrap_or_else(|| hint.to_owned())
}

/// The hint with `value` for its example of `key`, if it has one.
fn with_example(hint: &str, key: &str, value: &str) -> Option<String> {
    let start = format!("{key}: ");
    let example = hint.match_indices(&start).find_map(|(at, _)| {
        let before = hint.get(..at)?;
        let rest = hint.get(at + start.len()..)?;
        let (example, after) = rest.split_at(rest.find(['}', ',', '`', ' '])?);
        // `HOST:PORT` and references to groups are no examples of a whole value.
        let is_whole = before.ends_with(['`', '{', ' ']) && !example.contains([':', '"', '[', '$']);
        (is_whole && !example.is_empty()).then_some((before, after))
    });
    example.map(|(before, after)| format!("{before}{start}{value}{after}"))
}

/// The section that a key belongs in which is unknown in `section`.
fn elsewhere(section: &str, key: &str) -> Option<String> {
    let mut sections = schema::sections_with(key, section);
    let first = sections.next()?;
    Some(match (first, sections.next()) {
        ("", _) => format!("`{key}` belongs at the top level of the file"),
        (_, None) => format!("`{key}` belongs in `{first}`"),
        (_, Some(second)) => format!("`{key}` belongs in `{first}` or `{second}`"),
    })
}

/// The hint that the table has for a wrong value of `row`, or the one for variables.
pub(super) fn for_wrong_value(row: &KeyRow, value: &str) -> Option<String> {
    let plain = value.to_ascii_lowercase();
    let is_meant = |word: &str| match (word, word.strip_suffix('*')) {
        ("DURATION", _) => units::duration(value).is_ok_and(|time| !time.is_zero()),
        ("NUMBER", _) => is_number(value),
        (_, Some(start)) => plain.starts_with(start),
        _ => plain == word,
    };
    let hint = row
        .value_hints
        .iter()
        .find(|(words, text)| words.iter().any(|word| is_meant(word)) && fits(row, text, value))
        .map(|(_, text)| schema::with_known_words(row, text).replace("{value}", value));
    hint.or_else(|| {
        has_variable(value)
            .then(|| "variables are not supported: write the value itself".to_owned())
    })
}

/// True unless the hint `text` puts `value` into a key of the section `row` that does not take it.
fn fits(row: &KeyRow, text: &str, value: &str) -> bool {
    schema::section(row.path).iter().all(|key| {
        let Some((_, after)) = text.split_once(&format!("{{{}: {{value}}", key.name())) else {
            return true;
        };
        let unit = if after.starts_with('s') { "s" } else { "" };
        let written = format!("{value}{unit}");
        match key.value.kind {
            ValueKind::Integer { .. } | ValueKind::Duration { .. } => {
                as_ours(key, "", &written).is_some()
            }
            _ => true,
        }
    })
}

/// True for `${PORT}` and `$PORT`.
fn has_variable(text: &str) -> bool {
    text.split('$')
        .skip(1)
        .any(|after| after.starts_with(|c: char| c == '{' || c == '_' || c.is_ascii_uppercase()))
}

/// The hint for a value of `row` that is none of `known`.
pub(super) fn for_value(row: &KeyRow, value: &str, known: &[&str]) -> String {
    if let Some(hint) = for_wrong_value(row, value) {
        return hint;
    }
    if row.later_values.contains(&value) {
        return format!(
            "this version does not have `{value}` yet; it may be {}",
            word_list(known)
        );
    }
    let plain = value.to_ascii_lowercase();
    let ours = row
        .other_values
        .iter()
        .find(|(word, ours)| *word == plain && known.contains(ours))
        .map(|(_, ours)| *ours);
    let near = ours.or_else(|| nearest(value, known.iter().copied()));
    // Of words that are equally near, such as `v1` and `v2`, the one that is meant is not known.
    let is_tie = |near: &str| {
        let edits = |word: &str| distance(&plain, &word.to_lowercase());
        let others = known.iter().filter(|word| **word != near);
        ours.is_none() && others.into_iter().any(|word| edits(word) == edits(near))
    };
    match near.filter(|near| !is_tie(near)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("it may be {}", word_list(known)),
    }
}

/// The word nearest to `word`, if it is near: one edit in three characters, at most three.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let lower = word.to_lowercase();
    let most = (lower.chars().count() / 3).clamp(1, 3);
    candidates
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(edits, candidate)| *edits <= most && *edits < candidate.chars().count())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that make `b` out of `a`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut older: Vec<usize> = Vec::new();
    let mut old: Vec<usize> = (0..=b.len()).collect();
    let mut before: Option<char> = None;
    for (row, from) in a.chars().enumerate() {
        let mut new = vec![row + 1];
        for (column, to) in b.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX);
            let mut best = (at(&old, column) + usize::from(from != *to))
                .min(at(&old, column + 1) + 1)
                .min(at(&new, column) + 1);
            let swapped =
                column > 0 && before == Some(*to) && b.get(column - 1).copied() == Some(from);
            if swapped {
                best = best.min(at(&older, column - 1).saturating_add(1));
            }
            new.push(best);
        }
        before = Some(from);
        older = std::mem::replace(&mut old, new);
    }
    old.last().copied().unwrap_or(0)
}

/// True for the words that YAML 1.1 reads as booleans and YAML 1.2 as text.
pub(super) fn is_old_boolean(word: &str) -> bool {
    ["on", "off", "yes", "no", "y", "n"]
        .iter()
        .any(|old| old.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        assert_eq!(distance("pool", "pool"), 0);
        assert_eq!(distance("ap", "app"), 1);
        assert_eq!(distance("wieght", "weight"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn only_near_words_are_proposed() {
        let words = || ["app", "api", "static"].into_iter();
        assert_eq!(nearest("ap", words()), Some("app"));
        assert_eq!(nearest("statik", words()), Some("static"));
        assert_eq!(nearest("postgres", words()), None);
        assert_eq!(nearest("x", ["y"].into_iter()), None);
    }
}
