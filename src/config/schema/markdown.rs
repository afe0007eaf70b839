//! The tables of docs/configuration.md.

use super::{
    FilePart, KeyDefault, KeyEffect, KeyRow, ValueSpec,
    spec::{ValueKind, ValueShape},
};
use crate::{
    base::units::{show_duration, show_size},
    config::problem::word_list,
};

/// The table of a part of the file, with its heading row, as it stands in the docs.
pub fn table(part: FilePart) -> String {
    let mut out = String::from("| key | value | default | meaning |\n|---|---|---|---|\n");
    for row in part.rows() {
        out.push_str(&line(row));
    }
    out
}

fn line(row: &KeyRow) -> String {
    let default = match row.default {
        KeyDefault::Nothing => "",
        KeyDefault::Required => "required",
        KeyDefault::Value(text) | KeyDefault::Words(text) => text,
    };
    let restart = match row.effect {
        KeyEffect::Reload => "",
        KeyEffect::Restart if row.doc.is_empty() => "A change needs a restart",
        KeyEffect::Restart => ". A change needs a restart",
    };
    let cells = [
        format!("`{}`", row.path),
        value(&row.value),
        default.to_owned(),
        format!("{}{restart}", row.doc),
    ];
    let mut line = String::from("|");
    for cell in cells {
        line.push(' ');
        line.push_str(&cell);
        if !cell.is_empty() {
            line.push(' ');
        }
        line.push('|');
    }
    line.push('\n');
    line
}

/// Type and range of a value, in a few words of Markdown.
fn value(spec: &ValueSpec) -> String {
    if let Some(shown) = spec.shown {
        return shown.to_owned();
    }
    let single = match spec.kind {
        ValueKind::Keys => match spec.or_word {
            Some("https") => return "`https` or keys".to_owned(),
            Some(word) => return format!("keys or `{word}`"),
            None => "keys".to_owned(),
        },
        ValueKind::OneOf(words) => {
            let words: Vec<&str> = words.iter().copied().chain(spec.or_word).collect();
            return word_list(&words);
        }
        ValueKind::Boolean => "true or false".to_owned(),
        ValueKind::Integer { min, max } => format!("{min} to {max}"),
        ValueKind::Duration { min, max } => {
            format!("duration, {} to {}", show_duration(min), show_duration(max))
        }
        ValueKind::Size { min, max } => format!("size, {} to {}", show_size(min), show_size(max)),
        ValueKind::Share => "share".to_owned(),
        ValueKind::Rate => "rate, 1/h to 1000000/s".to_owned(),
        ValueKind::Text(description) => description.to_owned(),
    };
    let several = match spec.shape {
        ValueShape::OneOrList { .. } => " or list",
        ValueShape::Single | ValueShape::List { .. } | ValueShape::Map { .. } => "",
    };
    match spec.or_word {
        Some(word) => format!("{single}{several}, or `{word}`"),
        None => format!("{single}{several}"),
    }
}
