//! Which set-up is measured when (pure).

/// A set-up is measured at least so often, however slow it is.
const AT_LEAST: u32 = 3;

/// After that, it has its turn only while it has not taken so many times what others have.
const TIMES: f64 = 2.0;

/// The places of the set-ups in this round: nobody always comes first, or always after the same other.
pub(super) fn order(set_ups: usize, round: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..set_ups).collect();
    if set_ups > 0 {
        order.rotate_left(round as usize % set_ups);
    }
    if round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

/// Says whether a set-up has its turn, given the seconds that each has taken so far, and how often it was measured.
///
/// Spreading by address takes ten to twenty times as long as the rest. What it comes to is no matter of percents, so
/// the time is better spent on more rounds of those that are.
pub(super) fn has_turn(spent: &[f64], measured: u32, at: usize) -> bool {
    let mut sorted = spent.to_vec();
    sorted.sort_by(f64::total_cmp);
    let usual = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    measured < AT_LEAST || spent.get(at).is_none_or(|mine| *mine <= usual * TIMES)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_round_has_every_set_up_once_and_another_order() {
        let orders: BTreeSet<Vec<usize>> = (1..=4).map(|round| order(4, round)).collect();
        assert_eq!(orders.len(), 4);
        for order in orders {
            assert_eq!(order.iter().copied().collect::<BTreeSet<_>>().len(), 4);
        }
        assert_eq!(order(0, 1), Vec::<usize>::new());
    }

    #[test]
    fn who_takes_ten_times_as_long_is_measured_three_times_and_then_seldom() {
        let (seconds, mut spent, mut measured) = ([3.0, 3.1, 30.0, 3.2], [0.0; 4], [0; 4]);
        for round in 1..=40 {
            for at in order(4, round) {
                if has_turn(&spent, measured[at], at) {
                    spent[at] += seconds[at];
                    measured[at] += 1;
                }
            }
            if round == 3 {
                assert_eq!(measured, [3; 4]);
            }
        }
        assert_eq!([measured[0], measured[1], measured[3]], [40; 3], "the others are never left out");
        assert!((4..=9).contains(&measured[2]), "{measured:?}");
    }
}
