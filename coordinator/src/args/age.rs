//! Times as people type them.

use std::time::Duration;

/// Reads a time such as `30d`, `12h`, `90m` or `45s`.
///
/// # Errors
/// When it is not a whole number and one of these units, or beyond what can be counted.
pub fn age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 30d, 12h, 90m or 45s");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        'd' => 86_400,
        'h' => 3_600,
        'm' => 60,
        's' => 1,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    count.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_a_whole_number_and_a_unit() {
        assert_eq!(age("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(age("90m"), Ok(Duration::from_secs(5_400)));
        for wrong in
            ["", "d", "3", "1.5h", "-1d", "1w", "99999999999999999999d", "18446744073709551615d", "3ü"]
        {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
