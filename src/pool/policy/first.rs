//! First: the first backend in the order of the file that has capacity. The others stay idle until
//! it is full, so that idle machines can be switched off.

use super::context::{PickContext, PolicyPicker};

pub(super) struct FirstInOrder;

impl PolicyPicker for FirstInOrder {
    fn pick(&self, context: &mut PickContext<'_>) -> Option<usize> {
        context.claim_from(0)
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        base::{clock, rng::Random},
        config::model::BalancingPolicy,
        pool::{
            Pool,
            fixture::{pick, unchecked},
        },
        reason::Reason,
    };

    #[test]
    fn the_next_one_is_used_only_while_those_before_it_are_full() {
        let mut config = unchecked(&[1, 9, 1], BalancingPolicy::First);
        config.connections_per_backend = Some(2);
        let pool = Pool::new(&config, None, clock::now());
        let mut random = Random::seeded(1);
        let mut pick = |attempted: &[usize]| pick(&pool, attempted, &mut random);
        let mut leases: Vec<_> = (0..5).map(|_| pick(&[]).unwrap()).collect();
        let order: Vec<usize> = leases.iter().map(|lease| lease.index).collect();
        assert_eq!(order, [0, 0, 1, 1, 2]);
        drop(leases.remove(0));
        assert_eq!(pick(&[0]).unwrap().index, 2, "0 was attempted, 1 is full");
        leases.push(pick(&[]).unwrap());
        assert_eq!(leases.last().unwrap().index, 0);
        leases.push(pick(&[]).unwrap());
        assert_eq!(pick(&[]).unwrap_err(), Reason::ConnectionLimitReached);
    }
}
