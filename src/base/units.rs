//! Scalars of the configuration with a unit: durations, sizes, rates and shares. See
//! docs/configuration.md.

use std::time::Duration;

/// Cause of a text that is not a value with a unit. The reader of the configuration adds the place
/// and the hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The number is missing, signed, broken or too large.
    #[error("the number is missing or too large")]
    Number,
    /// The unit is missing.
    #[error("a unit is missing")]
    NoUnit,
    /// The unit is not one of those allowed.
    #[error("the unit is unknown")]
    BadUnit,
}

/// Splits a text into its number and its unit, which is not empty.
fn number_and_unit(text: &str) -> Result<(u64, &str), UnitError> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let number = digits.parse().map_err(|_| UnitError::Number)?;
    if unit.is_empty() {
        Err(UnitError::NoUnit)
    } else {
        Ok((number, unit))
    }
}

/// Parses `250ms`, `10s`, `5m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = number_and_unit(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(UnitError::BadUnit),
    };
    number
        .checked_mul(millis)
        .map(Duration::from_millis)
        .ok_or(UnitError::Number)
}

/// Parses `64KiB`, `16MiB`, `1GiB`, `500KB`, `10MB`, `1GB` to bytes.
pub fn size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = number_and_unit(text)?;
    let bytes = match unit {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(UnitError::BadUnit),
    };
    number.checked_mul(bytes).ok_or(UnitError::Number)
}

/// Parses `50%` to a share of 0.0..=1.0.
pub fn share(text: &str) -> Result<f64, UnitError> {
    match number_and_unit(text)? {
        (number @ 0..=100, "%") => Ok(number as f64 / 100.0),
        (_, "%") => Err(UnitError::Number),
        _ => Err(UnitError::BadUnit),
    }
}

/// A number of events per unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub count: u32,
    /// A second, a minute or an hour.
    pub per: Duration,
}

impl Rate {
    /// Number of events per second, rounded up.
    pub fn per_second(self) -> u32 {
        u64::from(self.count).div_ceil(self.per.as_secs().max(1)) as u32
    }
}

/// Parses `100/s`, `1000/m`, `5/h`.
pub fn rate(text: &str) -> Result<Rate, UnitError> {
    let (number, unit) = number_and_unit(text)?;
    let seconds = match unit {
        "/s" => 1,
        "/m" => 60,
        "/h" => 3_600,
        _ => return Err(UnitError::BadUnit),
    };
    match u32::try_from(number) {
        Ok(count @ 1..) => Ok(Rate {
            count,
            per: Duration::from_secs(seconds),
        }),
        _ => Err(UnitError::Number),
    }
}

/// Returns the shortest text that [`duration`] parses to `value`, for messages.
pub fn show_duration(value: Duration) -> String {
    let millis = value.as_millis();
    match millis {
        0 => "0s".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1_000) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

/// The shortest text that [`size`] reads back as `bytes`, for messages; without a unit where there
/// is none.
pub fn show_size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    units
        .iter()
        .find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift))
        .map_or_else(
            || format!("{bytes} bytes"),
            |(shift, unit)| format!("{}{unit}", bytes >> shift),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1h"), Ok(Duration::from_hours(1)));
        assert_eq!(duration("10"), Err(UnitError::NoUnit));
        assert_eq!(duration("10sec"), Err(UnitError::BadUnit));
        assert_eq!(duration("-1s"), Err(UnitError::Number));
        assert_eq!(duration("1.5s"), Err(UnitError::BadUnit));
        assert_eq!(duration("99999999999999999999s"), Err(UnitError::Number));
        assert_eq!(duration("9999999999999999999h"), Err(UnitError::Number));
    }

    #[test]
    fn sizes_and_shares() {
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("1GB"), Ok(1_000_000_000));
        assert_eq!(size("64k"), Err(UnitError::BadUnit));
        assert_eq!(share("50%"), Ok(0.5));
        assert_eq!(share("101%"), Err(UnitError::Number));
        assert_eq!(share("50"), Err(UnitError::NoUnit));
    }

    #[test]
    fn rates_are_by_second_minute_or_hour() {
        let per_second = |text: &str| rate(text).map(Rate::per_second);
        assert_eq!(per_second("100/s"), Ok(100));
        assert_eq!(per_second("1000/m"), Ok(17));
        assert_eq!(per_second("5/h"), Ok(1));
        assert_eq!(rate("100"), Err(UnitError::NoUnit));
        assert_eq!(rate("100r/s"), Err(UnitError::BadUnit));
        assert_eq!(rate("0/s"), Err(UnitError::Number));
        assert_eq!(rate("5000000000/s"), Err(UnitError::Number));
    }

    #[test]
    fn shown_durations_read_back() {
        for text in ["0s", "1ms", "1500ms", "90s", "10m", "2h"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
    }
}
