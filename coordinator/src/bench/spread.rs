//! A median, how far the values lie apart, and where the median itself is likely to be (pure).

use serde::Serialize;

/// A value outside the interval of a median comes about by chance once in so many measurements on either side.
const OUTSIDE: f64 = 0.025;

/// A median with its spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The lower end of the interval in which the median of any number of rounds would lie, with a certainty of 95 %;
    /// the least of fewer than six values, which do not give that certainty.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// The upper end of that interval; the greatest of fewer than six values.
    pub high: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value; `None` of none.
    ///
    /// The interval is that of the sign test: of n values, each is below the true median with a chance of one half
    /// whatever their distribution, so the k-th least and the k-th greatest enclose it but for twice the chance that
    /// fewer than k of n coins show heads.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            *values.get(half)?
        } else {
            f64::midpoint(*values.get(half.checked_sub(1)?)?, *values.get(half)?)
        };
        let outer = left_out(values.len());
        let (low, high) = (*values.get(outer)?, *values.get(values.len() - 1 - outer)?);
        Some(Self { min: *values.first()?, low, median, high, max: *values.last()? })
    }
}

/// How many of the least, and as many of the greatest, of so many values lie outside the interval of the median.
fn left_out(values: usize) -> usize {
    let (n, mut chance) = (values as f64, 0.5_f64.powi(i32::try_from(values).unwrap_or(i32::MAX)));
    let (mut below, mut out) = (chance, 0);
    while below <= OUTSIDE && 2 * (out + 1) < values {
        out += 1;
        chance *= (n - out as f64 + 1.0) / out as f64;
        below += chance;
    }
    // The last step was one too far, where the chance ended it.
    out.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_rounds_lies_between_the_two_in_the_middle() {
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.5, 4.0));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn the_interval_of_the_median_is_that_of_the_tables_and_narrows_with_the_rounds() {
        // Ranks of the 95 % interval as tables of the sign test give them, from 1.
        for (rounds, lower) in
            [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (30, 10), (50, 18)]
        {
            let spread = Spread::of((1..=rounds).map(f64::from)).unwrap();
            assert_eq!(
                (spread.low, spread.high),
                (f64::from(lower), f64::from(rounds + 1 - lower)),
                "{rounds}"
            );
        }
    }
}
