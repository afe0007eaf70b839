//! Hints for wrong words: our word for another product's (from the table of keys, `schema`), or the
//! nearest of ours.
//!
//! Hints only: nothing here makes another product's word work.

use super::{
    problem::word_list,
    schema::{self, KeyRow},
};

/// The hint for an unknown key of a section; `known` are the keys it may have.
pub(super) fn for_key(section: &str, key: &str, known: &[&str]) -> String {
    if schema::is_later_key(section, key) {
        return format!("this version does not have `{key}` yet; remove it");
    }
    let plain = key.to_ascii_lowercase().replace('-', "_");
    if let Some(same) = known.iter().find(|known| **known == plain) {
        return format!("did you mean `{same}`?");
    }
    if let Some(hint) = schema::hint_for_word(section, &plain) {
        return hint;
    }
    if let Some(near) = nearest(key, known.iter().copied()) {
        return format!("did you mean `{near}`?");
    }
    elsewhere(section, &plain).unwrap_or_else(|| format!("it may be {}", word_list(known)))
}

/// The section that a key belongs in which is unknown in `section`.
fn elsewhere(section: &str, key: &str) -> Option<String> {
    let mut sections = schema::sections_with(key, section);
    let first = sections.next()?;
    Some(match (first, sections.next()) {
        ("", _) => format!("`{key}` stands at the top of the file"),
        (_, None) => format!("`{key}` belongs in `{first}`"),
        (_, Some(second)) => format!("`{key}` belongs in `{first}` or `{second}`"),
    })
}

/// The hint that the table has for a wrong value of `row`, or the one for variables.
pub(super) fn for_wrong_value(row: &KeyRow, value: &str) -> Option<String> {
    let plain = value.to_ascii_lowercase();
    let is_meant = |word: &str| match word.strip_suffix('*') {
        Some(start) => plain.starts_with(start),
        None => plain == word,
    };
    let hint = row
        .value_hints
        .iter()
        .find(|(words, _)| words.iter().any(|word| is_meant(word)))
        .map(|(_, text)| schema::with_known_words(row, text).replace("{value}", value));
    hint.or_else(|| {
        has_variable(value)
            .then(|| "this version replaces no variables: write the value itself".to_owned())
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
    match ours.or_else(|| nearest(value, known.iter().copied())) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("it may be {}", word_list(known)),
    }
}

/// The word nearest to `word`, if it is near: one edit in three characters, at most three.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
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
