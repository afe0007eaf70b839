//! Rows and ages on the screens of `balancer status` and `balancer check --probe`.

use std::fmt::Write as _;

/// Appends rows. Each column is as wide as its widest cell.
pub(super) fn table(text: &mut String, indent: &str, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        // Without trailing blanks, so that the output can be compared and copied.
        let mut line = indent.to_owned();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// Formats a duration in its two largest units: `1d 1h`, `2m 5s`.
pub(super) fn age(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    // Smaller units would only be noise.
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole}s"),
        (0, 0, _) => format!("{minutes}m {}s", whole % 60),
        (0, ..) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units() {
        assert_eq!([age(0.4), age(59.9), age(61.0)], ["0s", "59s", "1m 1s"]);
        assert_eq!([age(3_600.0), age(90_000.0)], ["1h 0m", "1d 1h"]);
    }
}
