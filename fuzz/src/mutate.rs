//! Makes a new input out of the seeds: flips bytes, cuts and doubles pieces, mixes seeds.

use balancer::base::rng::Random;

/// Pieces that are known to break parsers.
const BREAKING_PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b": ",
    b",",
    b"[",
    b"]",
    b"{",
    b"}",
    b"\"",
    b"'",
    b"#",
    b"-",
    b"&a",
    b"*a",
    b"<<: ",
    b"!!",
    b"|",
    b">",
    b"%",
    b"\xff",
    b"\xc3\x28",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"0",
    b"-1",
    b"18446744073709551616",
    b"99999999999999999999",
    b"1e999",
    b"0x",
    b"+1",
    b".inf",
    b"none",
    b"auto",
];

/// Applies one to eight changes to one of `seeds`; the result has at most `most` bytes.
pub fn mutate(seeds: &[Vec<u8>], random: &mut Random, most: usize) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(8) {
        change(&mut input, seeds, random);
    }
    input.truncate(most);
    input
}

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let longest = 2 << random.below(7);
    let length = 1 + random.below(longest);
    let end = (at + length).min(input.len());
    match random.below(8) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.below(256) as u8,
        2 => drop(input.drain(at..end)),
        3 => {
            let copy = input[at..end].to_vec();
            let to = random.below(input.len() + 1);
            input.splice(to..to, copy);
        }
        4 => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            let to = (from + length).min(other.len());
            input.splice(at..end, other[from..to].iter().copied());
        }
        5 => {
            let copy = input[at..end].to_vec();
            for _ in 0..random.below(64) {
                input.splice(at..at, copy.iter().copied());
            }
        }
        6 => input.truncate(at),
        _ => {
            let piece = BREAKING_PIECES[random.below(BREAKING_PIECES.len())];
            input.splice(at..at, piece.iter().copied());
        }
    }
}
