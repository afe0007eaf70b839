//! Selection of the pool of a `split`: at random, by weight.
//!
//! Random and not in turn, because turns of several routes or balancers could fall into step.

use crate::{base::rng::Random, config::model::SplitShare};

/// Picks a pool, an index into `Config::pools`. `shares` has a weight above 0.
pub fn pick_pool(shares: &[SplitShare], random: &mut Random) -> usize {
    let total = shares.iter().map(|share| usize::from(share.weight)).sum();
    debug_assert!(total > 0, "`config` refuses such a split");
    let mut drawn = random.below(total);
    for share in shares {
        match drawn.checked_sub(usize::from(share.weight)) {
            Some(left) => drawn = left,
            None => return share.pool,
        }
    }
    shares.first().map_or(0, |share| share.pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(weights: &[u16], draws: usize) -> Vec<usize> {
        let shares: Vec<SplitShare> = weights
            .iter()
            .enumerate()
            .map(|(index, weight)| SplitShare {
                pool: 10 + index,
                weight: *weight,
                retries: None,
            })
            .collect();
        let mut random = Random::seeded(5);
        let mut counts = vec![0; weights.len()];
        for _ in 0..draws {
            counts[pick_pool(&shares, &mut random) - 10] += 1;
        }
        counts
    }

    #[test]
    fn every_pool_gets_its_share() {
        const DRAW_COUNT: usize = 100_000;
        for weights in [
            &[9, 1][..],
            &[1, 1, 1],
            &[256, 1],
            &[3, 0, 7],
            &[0, 0, 5, 0],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[256; 40],
        ] {
            let total: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
            for (weight, count) in weights.iter().zip(counts(weights, DRAW_COUNT)) {
                let share = f64::from(*weight) / total as f64;
                let expected = share * DRAW_COUNT as f64;
                // Five standard deviations; the seed is fixed, so the test is stable.
                let spread = 5.0 * (expected * (1.0 - share)).sqrt();
                let off = (count as f64 - expected).abs();
                assert!(off <= spread, "{weights:?}: {weight} got {count}");
            }
        }
    }

    #[test]
    fn a_weight_of_zero_gets_nothing_and_a_lone_pool_everything() {
        assert_eq!(counts(&[0, 1, 0], 1_000), [0, 1_000, 0]);
        assert_eq!(counts(&[1], 1_000), [1_000]);
        assert_eq!(counts(&[256], 1_000), [1_000]);
    }
}
