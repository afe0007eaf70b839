//! Typed readers of scalars: words, booleans, numbers, durations, sizes, shares, networks, each
//! with a hint for what is wrong. Ranges and words come from the row of the key.

use std::{net::IpAddr, ops::RangeInclusive, time::Duration};

use ipnet::IpNet;

use super::{
    hint,
    model::ValueSet,
    problem::{quote, word_list},
    reader::{NodeRef, OrNone, TreeReader},
    schema::{KeyDefault, ValueKind},
    yaml::NodeKind,
};
use crate::base::units::{self, Rate, UnitError};

/// Largest number in a rate.
const MAX_RATE: u32 = 1_000_000;

impl TreeReader<'_> {
    /// Any text. Plain YAML 1.1 booleans are refused.
    pub(super) fn text<'a>(
        &mut self,
        at: NodeRef<'a>,
        wanted: &str,
        hint: &str,
    ) -> Option<&'a str> {
        if let NodeKind::Scalar { text, quoted } = &at.node.kind {
            if !quoted && hint::is_old_boolean(text) {
                self.error(
                    at,
                    format!(
                        "{} is a boolean in YAML 1.1 and text in YAML 1.2",
                        quote(text)
                    ),
                    old_boolean_hint(at, text),
                );
                return None;
            }
            Some(text)
        } else {
            self.wrong_kind(at, wanted, hint);
            None
        }
    }

    /// One of `known`.
    pub(super) fn word_among(
        &mut self,
        at: NodeRef<'_>,
        known: &[&'static str],
    ) -> Option<&'static str> {
        let NodeKind::Scalar { text, .. } = &at.node.kind else {
            let hint = format!("it may be {}", word_list(known));
            self.wrong_kind(at, "a word", &hint);
            return None;
        };
        let found = known.iter().copied().find(|word| word == text);
        if found.is_none() {
            let help = hint::for_value(at.row, text, known);
            let wanted = word_list(known);
            self.error(
                at,
                format!("expected {wanted}, found {}", quote(text)),
                help,
            );
        }
        found
    }

    /// One of the words that the table has for the key.
    pub(super) fn word(&mut self, at: NodeRef<'_>) -> Option<&'static str> {
        let ValueKind::OneOf(words) = at.row.value.kind else {
            debug_assert!(false, "`{}` is no set of words", at.row.path);
            return None;
        };
        let known: Vec<&str> = words.iter().copied().chain(at.row.value.or_word).collect();
        self.word_among(at, &known)
    }

    /// A value of a closed set.
    pub(super) fn one_of<T: ValueSet>(&mut self, at: NodeRef<'_>) -> Option<T> {
        let word = self.word(at)?;
        let index = T::NAMES.iter().position(|name| *name == word)?;
        T::ALL.get(index).copied()
    }

    /// A value of a closed set, or the word that stands for none of it.
    pub(super) fn one_of_or_none<T: ValueSet>(&mut self, at: NodeRef<'_>) -> Option<OrNone<T>> {
        if at.is_or_word() {
            return Some(None);
        }
        self.one_of(at).map(Some)
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, at: NodeRef<'_>) -> Option<bool> {
        let is_quoted = matches!(at.node.kind, NodeKind::Scalar { quoted: true, .. });
        if let (false, Some(text)) = (is_quoted, at.scalar()) {
            match text {
                "true" | "True" | "TRUE" => return Some(true),
                "false" | "False" | "FALSE" => return Some(false),
                _ => {}
            }
        }
        let hint = match (
            at.scalar().map(str::to_ascii_lowercase).as_deref(),
            is_quoted,
        ) {
            (Some("true"), true) => "write `true`, without quotes",
            (Some("false"), true) => "write `false`, without quotes",
            (Some("on" | "yes" | "y" | "1" | "enabled" | "true"), _) => "write `true`",
            (Some("off" | "no" | "n" | "0" | "none" | "disabled" | "false"), _) => "write `false`",
            _ => "it may be `true` or `false`",
        };
        self.wrong_plain(at, "`true` or `false`", hint);
        None
    }

    /// A whole number in the key's range.
    pub(super) fn integer(&mut self, at: NodeRef<'_>) -> Option<u64> {
        let (min, max) = integer_range(at);
        let range = match at.row.value.or_word {
            Some(word) => format!("a number of {min} to {max} or `{word}`"),
            None => format!("a number of {min} to {max}"),
        };
        let NodeKind::Scalar { text, quoted } = &at.node.kind else {
            self.wrong_kind(at, &range, "write a whole number");
            return None;
        };
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse::<u64>().ok().filter(|_| digits);
        let hint = match number {
            Some(number) if (min..=max).contains(&number) => {
                if !quoted {
                    return Some(number);
                }
                "remove the quotes".to_owned()
            }
            Some(0) => zero_hint(at, &min.to_string()),
            Some(number) => format!("the nearest is {}", number.clamp(min, max)),
            None => "write a whole number without a sign or a unit".to_owned(),
        };
        self.wrong_plain(at, &range, &hint);
        None
    }

    /// A whole number in the key's range, or the word that stands for none.
    pub(super) fn integer_or_none(&mut self, at: NodeRef<'_>) -> Option<OrNone<u64>> {
        if at.is_or_word() {
            return Some(None);
        }
        let is_number = at
            .scalar()
            .is_some_and(|text| text.bytes().all(|b| b.is_ascii_digit()));
        if is_number {
            return self.integer(at).map(Some);
        }
        let (min, max) = integer_range(at);
        let word = at.row.value.or_word.unwrap_or("none");
        let wanted = format!("a number of {min} to {max} or `{word}`");
        let hint = match at.scalar() {
            Some(text) if word == "none" && is_off(text) => zero_hint(at, ""),
            _ => format!("write `{word}` or a number of {min} to {max}"),
        };
        self.wrong_kind(at, &wanted, &hint);
        None
    }

    /// A duration in the key's range.
    pub(super) fn duration(&mut self, at: NodeRef<'_>) -> Option<Duration> {
        let ValueKind::Duration { min, max } = at.row.value.kind else {
            debug_assert!(false, "`{}` is no duration", at.row.path);
            return None;
        };
        let wanted = format!(
            "a duration of {} to {}",
            units::show_duration(min),
            units::show_duration(max)
        );
        let Some(text) = at.scalar() else {
            self.wrong_kind(at, &wanted, "write a number and `ms`, `s`, `m` or `h`");
            return None;
        };
        match units::duration(text) {
            Ok(value) if (min..=max).contains(&value) => return Some(value),
            Ok(Duration::ZERO) => {
                let hint = zero_hint(at, &units::show_duration(min));
                self.wrong_kind(at, &wanted, &hint);
            }
            Ok(value) => {
                let nearest = units::show_duration(value.clamp(min, max));
                self.wrong_kind(at, &wanted, &format!("the nearest is `{nearest}`"));
            }
            Err(_) if is_zero(text) && !min.is_zero() => {
                let hint = zero_hint(at, &units::show_duration(min));
                self.wrong_kind(at, &wanted, &hint);
            }
            Err(error) => {
                let hint = duration_hint(text, error, min..=max);
                self.wrong_kind(at, &wanted, &hint);
            }
        }
        None
    }

    /// A duration in the key's range, or `none`.
    pub(super) fn duration_or_none(&mut self, at: NodeRef<'_>) -> Option<OrNone<Duration>> {
        if at.is_or_word() {
            return Some(None);
        }
        if at
            .scalar()
            .is_some_and(|text| is_off(text) || is_zero(text))
        {
            let ValueKind::Duration { min, max } = at.row.value.kind else {
                debug_assert!(false, "`{}` is no duration", at.row.path);
                return None;
            };
            let wanted = format!(
                "a duration of {} to {} or `none`",
                units::show_duration(min),
                units::show_duration(max)
            );
            let hint = zero_hint(at, "");
            self.wrong_kind(at, &wanted, &hint);
            return None;
        }
        self.duration(at).map(Some)
    }

    /// A number of bytes in the key's range.
    pub(super) fn size(&mut self, at: NodeRef<'_>) -> Option<u64> {
        let ValueKind::Size { min, max } = at.row.value.kind else {
            debug_assert!(false, "`{}` is no size", at.row.path);
            return None;
        };
        let wanted = format!(
            "a size of {} to {}",
            units::show_size(min),
            units::show_size(max)
        );
        let Some(text) = at.scalar() else {
            self.wrong_kind(at, &wanted, "write a number and `KiB`, `MiB` or `GiB`");
            return None;
        };
        match units::size(text) {
            Ok(value) if (min..=max).contains(&value) => return Some(value),
            Ok(0) => {
                let hint = zero_hint(at, &units::show_size(min));
                self.wrong_kind(at, &wanted, &hint);
            }
            Ok(value) => {
                let nearest = units::show_size(value.clamp(min, max));
                self.wrong_kind(at, &wanted, &format!("the nearest is `{nearest}`"));
            }
            Err(_) if at.row.value.or_word == Some("none") && (is_off(text) || is_zero(text)) => {
                let hint = zero_hint(at, "");
                self.wrong_kind(at, &wanted, &hint);
            }
            Err(_) if is_zero(text) && min > 0 => {
                let hint = zero_hint(at, &units::show_size(min));
                self.wrong_kind(at, &wanted, &hint);
            }
            Err(_) => {
                let hint = size_hint(text, min..=max);
                self.wrong_kind(at, &wanted, &hint);
            }
        }
        None
    }

    /// A share as `50%`.
    pub(super) fn share(&mut self, at: NodeRef<'_>) -> Option<f64> {
        let wanted = "a share of 0% to 100%";
        let Some(text) = at.scalar() else {
            self.wrong_kind(at, wanted, "write a number and `%`");
            return None;
        };
        match units::share(text) {
            Ok(value) => return Some(value),
            Err(_) => self.wrong_kind(at, wanted, &share_hint(text)),
        }
        None
    }

    /// A rate as `100/s`.
    pub(super) fn rate(&mut self, at: NodeRef<'_>) -> Option<Rate> {
        let wanted = "a rate of 1/h to 1000000/s";
        let Some(text) = at.scalar() else {
            self.wrong_kind(at, wanted, "write a number and `/s`, `/m` or `/h`");
            return None;
        };
        match units::rate(text) {
            Ok(rate) if rate.count <= MAX_RATE => return Some(rate),
            Ok(_) => self.wrong_kind(at, wanted, "the largest number is 1000000"),
            Err(_) => self.wrong_kind(at, wanted, &rate_hint(text)),
        }
        None
    }

    /// Networks and addresses.
    pub(super) fn networks(&mut self, at: NodeRef<'_>) -> Vec<IpNet> {
        let hint = "write addresses or networks such as `10.0.0.0/8`";
        let wanted = "a list of networks";
        let mut networks = Vec::new();
        let entries = match &at.node.kind {
            NodeKind::List(_) => self.list(&at, wanted, hint),
            _ => self.one_or_more(&at, wanted, hint),
        };
        for entry in entries {
            let Some(text) = self.text(entry, "a network", hint) else {
                continue;
            };
            if let Ok(address) = text.parse::<IpAddr>() {
                self.warn_unspecified(entry, address);
            }
            match network(text) {
                Ok(network) => networks.push(network),
                Err(help) => {
                    self.wrong_value(entry, format!("{} is not a network", quote(text)), help);
                }
            }
        }
        networks
    }

    /// Warns of the address that stands for every one elsewhere.
    fn warn_unspecified(&mut self, at: NodeRef<'_>, address: IpAddr) {
        let all = match address.to_canonical() {
            address if !address.is_unspecified() => return,
            IpAddr::V4(_) => "`0.0.0.0/0` is every IPv4 address",
            IpAddr::V6(_) => "`\"::/0\"` is every IPv6 address",
        };
        let message = format!(
            "{} is one address, which no client has",
            quote(&address.to_string())
        );
        self.warn_at_key(at, message, all);
    }
}

/// The hint for a zero that the key does not take: the word that was meant by it, else the smallest
/// value.
fn zero_hint(at: NodeRef<'_>, smallest: &str) -> String {
    match (at.row.value.or_word, at.row.value.kind) {
        (Some("none"), ValueKind::Size { .. }) => {
            "write `none` for no limit; `0KiB` refuses every body".to_owned()
        }
        (Some("none"), ValueKind::Integer { .. }) => "write `none` for no limit".to_owned(),
        (Some("none"), _) => "write `none` to switch it off".to_owned(),
        (Some(word), _) => format!("write `{word}`, or `{smallest}` or more"),
        (None, _) => format!("the smallest value is `{smallest}`"),
    }
}

/// True for a number 0, with any unit or none.
fn is_zero(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    !digits.is_empty() && digits.bytes().all(|byte| byte == b'0')
}

/// True for the words by which people switch something off, or lift a limit.
fn is_off(text: &str) -> bool {
    let plain = text.to_ascii_lowercase();
    let words = [
        "off",
        "no",
        "false",
        "none",
        "never",
        "disabled",
        "unlimited",
        "infinite",
        "infinity",
        "-1",
    ];
    words.contains(&plain.as_str())
}

/// The hint for a plain word that YAML 1.1 reads as a boolean, where a text is expected.
fn old_boolean_hint(at: NodeRef<'_>, text: &str) -> String {
    if !at.row.value.is_header_name() {
        return format!("write \"{text}\" in quotes if you mean the text");
    }
    if at.row.value.or_word == Some("none") && is_off(text) {
        return "write `none` to switch it off".to_owned();
    }
    let example = match at.row.default {
        KeyDefault::Value(name) if name.starts_with("X-") => name,
        _ => "X-Name",
    };
    format!("write the name of a header, such as `{example}`")
}

fn integer_range(at: NodeRef<'_>) -> (u64, u64) {
    if let ValueKind::Integer { min, max } = at.row.value.kind {
        return (min, max);
    }
    debug_assert!(false, "`{}` is no number", at.row.path);
    (0, u64::MAX)
}

/// The network that `text` names. Clients are IPv4 or IPv6, never IPv4 within IPv6, so neither is a
/// network.
///
/// # Errors
/// A hint.
fn network(text: &str) -> Result<IpNet, String> {
    let found = text.parse::<IpNet>().ok();
    let found = found.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let network = found.ok_or_else(|| network_hint(text))?;
    let mapped = match network {
        IpNet::V4(_) => None,
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped(),
    };
    let Some(v4) = mapped else {
        return Ok(network.trunc());
    };
    let length = network.prefix_len().checked_sub(96);
    length
        .and_then(|length| IpNet::new(v4.into(), length).ok())
        .map(|network| network.trunc())
        .ok_or_else(|| {
            "write the IPv4 network, such as `10.0.0.0/8`: its prefix has at least 96 bits here"
                .to_owned()
        })
}

fn network_hint(text: &str) -> String {
    match text {
        "all" | "any" | "*" => "remove the key to allow all clients".to_owned(),
        "localhost" => "write `127.0.0.0/8` and `::1`".to_owned(),
        _ if text.contains('/') => {
            "write an address, `/` and the length of its prefix, such as `10.0.0.0/8`".to_owned()
        }
        _ => {
            "write an address or a network such as `10.0.0.0/8`; names are not resolved".to_owned()
        }
    }
}

fn duration_hint(text: &str, error: UnitError, range: RangeInclusive<Duration>) -> String {
    let (min, max) = (*range.start(), *range.end());
    let written = |value: Duration, how: &str| {
        let how = if range.contains(&value) {
            how
        } else {
            "the nearest is"
        };
        format!("{how} `{}`", units::show_duration(value.clamp(min, max)))
    };
    if let Some(total) = compound_duration(text) {
        return written(total, "write one number and one unit:");
    }
    if let Some(value) = decimal_duration(text) {
        return written(value, "write a whole number:");
    }
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let unit = text.get(digits.len()..).unwrap_or_default().trim();
    let better = match unit.to_ascii_lowercase().as_str() {
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "m" | "min" | "mins" | "minute" | "minutes" => "m",
        "h" | "hour" | "hours" | "hr" => "h",
        "ms" | "msec" | "millis" | "milliseconds" => "ms",
        _ => "",
    };
    match error {
        UnitError::NoUnit => {
            let fits =
                |text: &String| units::duration(text).is_ok_and(|value| range.contains(&value));
            let written = ["s", "ms"].map(|unit| format!("{digits}{unit}"));
            let fitting: Vec<String> = written.into_iter().filter(fits).collect();
            match fitting.as_slice() {
                [] => "write a number and `ms`, `s`, `m` or `h`".to_owned(),
                fitting => format!("a unit is missing: write `{}`", fitting.join("` or `")),
            }
        }
        _ if text.contains('.') => {
            "write a whole number with a smaller unit, such as `1500ms`".to_owned()
        }
        UnitError::BadUnit if !better.is_empty() => {
            let ours = format!("{digits}{better}");
            match units::duration(&ours) {
                Ok(value) if !range.contains(&value) => written(value, ""),
                _ => format!("write `{ours}`"),
            }
        }
        UnitError::BadUnit if matches!(unit, "d" | "day" | "days") => {
            let hours = digits.parse::<u64>().unwrap_or(1).min(1_000_000) * 24;
            written(Duration::from_hours(hours), "write")
        }
        _ => "write a number and `ms`, `s`, `m` or `h`".to_owned(),
    }
}

/// A duration with a decimal fraction, such as `1.5s`, if it is a whole number of milliseconds.
fn decimal_duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let (whole, fraction) = number.trim().split_once('.')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if fraction.is_empty() || fraction.len() > 6 || !digits(fraction) || !digits(whole) {
        return None;
    }
    let one = units::duration(&format!("1{unit}")).ok()?;
    let whole = if whole.is_empty() { "0" } else { whole };
    let scaled = one.checked_mul(format!("{whole}{fraction}").parse().ok()?)?;
    let value = scaled / 10_u32.pow(fraction.len() as u32);
    let is_whole = value.subsec_nanos().is_multiple_of(1_000_000);
    (is_whole && !value.is_zero()).then_some(value)
}

/// The sum of a duration in several parts: `1m30s`, `1h 5m`.
fn compound_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut parts = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let after = rest.get(digits..)?;
        let end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let part = rest.get(..digits + end)?;
        total = total.checked_add(units::duration(part.trim()).ok()?)?;
        parts += 1;
        rest = rest.get(digits + end..)?;
    }
    (parts > 1).then_some(total)
}

/// A fraction such as `0.2` is a share too; ours are whole numbers.
fn share_hint(text: &str) -> String {
    let is_number = |text: &str| text.parse::<u64>().is_ok();
    if is_number(text) || text.strip_suffix('%').is_some_and(is_number) {
        let percent = text.trim_end_matches('%');
        return match units::share(&format!("{percent}%")) {
            Ok(_) => format!("write `{percent}%`"),
            Err(_) => "the nearest is `100%`".to_owned(),
        };
    }
    let percent = text.parse::<f64>().map_or(-1.0, |share| share * 100.0);
    if (0.0..=100.0).contains(&percent) && (percent - percent.round()).abs() < 1e-9 {
        return format!("write `{percent:.0}%`");
    }
    "write a whole number and `%`, such as `50%`".to_owned()
}

/// `100r/s`, `100/sec` and `100 per minute` are what other products write.
fn rate_hint(text: &str) -> String {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let unit = text.get(digits.len()..).unwrap_or_default().trim();
    let unit = unit.strip_prefix("per ").map_or(unit, str::trim);
    let unit = unit.trim_start_matches(['r', 'q', '/', 'p']);
    let better = match unit {
        "s" | "sec" | "second" | "1s" => "/s",
        "m" | "min" | "minute" | "1m" => "/m",
        "h" | "hour" | "1h" => "/h",
        _ => "",
    };
    match digits.parse() {
        Ok(1_u64..) if !better.is_empty() => format!("write `{digits}{better}`"),
        Ok(1_u64..) if digits == text => format!("a unit is missing: write `{digits}/s`"),
        Ok(0) => "write `rate_limit: none` for no limit; the lowest rate is `1/h`".to_owned(),
        _ => "write a number and `/s`, `/m` or `/h`".to_owned(),
    }
}

fn size_hint(text: &str, range: RangeInclusive<u64>) -> String {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let unit = text.get(digits.len()..).unwrap_or_default().trim();
    if digits.is_empty() {
        return "write a number and `KiB`, `MiB` or `GiB`".to_owned();
    }
    let better = match unit.to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => "KiB",
        "m" | "mb" | "mib" => "MiB",
        "g" | "gb" | "gib" => "GiB",
        "" if digits
            .parse()
            .is_ok_and(|n: u64| n > 0 && n.is_multiple_of(1024) && range.contains(&n)) =>
        {
            let bytes = digits.parse().unwrap_or_default();
            return format!("a unit is missing: write `{}`", units::show_size(bytes));
        }
        "" => {
            let fits = |text: &String| units::size(text).is_ok_and(|value| range.contains(&value));
            let mut written = vec![format!("{digits}KiB"), format!("{digits}MiB")];
            written.retain(fits);
            // Zero is the same with any unit.
            written.truncate(if digits == "0" { 1 } else { 2 });
            return match written.as_slice() {
                [] => "write a number and `KiB`, `MiB` or `GiB`".to_owned(),
                written => format!("a unit is missing: write `{}`", written.join("` or `")),
            };
        }
        _ => return "write a number and `KiB`, `MiB` or `GiB`".to_owned(),
    };
    let written = format!("{digits}{better}");
    match units::size(&written) {
        Ok(value) if !range.contains(&value) => {
            let nearest = value.clamp(*range.start(), *range.end());
            format!("the nearest is `{}`", units::show_size(nearest))
        }
        _ => format!("write `{written}`"),
    }
}
