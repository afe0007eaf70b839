//! Field blocks of HTTP/2: both routes to a message give the same, or refuse it alike.

use balancer::{
    base::rng::Random,
    net::h2::oracle::{
        blocks::{Block, mutate},
        compare,
    },
};

/// Changes to the fields of each input, each compared: changes to its bytes seldom leave a block
/// that is almost right.
const CHANGES: usize = 4;

fn check(block: &Block) {
    if let Err(difference) = compare(block) {
        panic!("{difference}");
    }
}

/// Compares the block in `data`, and some that follow from it.
pub fn run(data: &[u8]) {
    let Some(mut block) = Block::decode(data) else {
        return;
    };
    check(&block);
    let seed = data.iter().fold(data.len() as u64, |seed, byte| {
        seed.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*byte)
    });
    let mut random = Random::seeded(seed);
    for _ in 0..CHANGES {
        mutate(&mut block, &mut random);
        check(&block);
    }
}
