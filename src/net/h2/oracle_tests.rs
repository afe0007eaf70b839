//! Both routes of a field block give the same message, or the same refusal.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    blocks::{generate, mutate},
    *,
};
use crate::{
    base::rng::Random,
    http2::golden_tests::{self, GoldenBlock},
};

/// Blocks by number.
fn block(round: u64) -> Block {
    let mut random = Random::seeded(0x9113 ^ round << 16);
    let mut block = generate(&mut random);
    let most = 1 + random.below(6);
    for _ in 0..random.below(most) {
        mutate(&mut block, &mut random);
    }
    block
}

#[test]
fn both_routes_read_a_field_block_as_the_same_message_or_refuse_it_alike() {
    let mut verdicts: BTreeMap<(&str, bool, String), usize> = BTreeMap::new();
    for round in 0..20_000 {
        let agreement = compare(&block(round));
        let agreement = agreement.unwrap_or_else(|error| panic!("block {round}: {error}"));
        let is_different = agreement.difference.is_some();
        let verdict = (
            agreement.detail,
            is_different,
            format!("{:?}", block(round).kind),
        );
        *verdicts.entry(verdict).or_default() += 1;
    }
    let count = |detail, is_different, kind: &str| {
        let verdict = (detail, is_different, kind.to_owned());
        verdicts.get(&verdict).copied().unwrap_or_default()
    };
    for kind in ["Request", "Response", "Trailers"] {
        let accepted = count("", false, kind);
        assert!(accepted > 1_000, "{accepted} accepted: {kind}");
    }
    for kind in ["Request", "Response"] {
        assert!(
            count("", true, kind) > 0,
            "no difference that is allowed: {kind}"
        );
    }
    assert!(verdicts.len() > 60, "few verdicts: {verdicts:#?}");
}

#[test]
fn a_block_is_the_same_after_encoding_and_decoding() {
    for round in 0..2_000 {
        let block = block(round);
        let decoded = Block::decode(&block.encode()).unwrap();
        assert_eq!(decoded.to_string(), block.to_string(), "block {round}");
        assert_eq!(decoded.fields, block.fields, "block {round}");
    }
}

/// Writes seeds for fuzzing: the shortest block of each verdict, and of each shape of a message.
#[test]
#[ignore = "writes files, into the directory that SEEDS names"]
fn write_seeds() {
    let directory = std::env::var("SEEDS").unwrap();
    let mut seeds: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for round in 0..1_000_000 {
        let block = block(round);
        let Agreement {
            detail,
            shape,
            difference,
        } = compare(&block).unwrap();
        let shape: String = shape.split(|c: char| c.is_ascii_digit()).collect();
        let verdict = format!("{:?} {detail} {shape} {difference:?}", block.kind);
        let bytes = block.encode();
        let seed = seeds.entry(verdict).or_insert_with(|| bytes.clone());
        if bytes.len() < seed.len() {
            *seed = bytes;
        }
    }
    for (number, bytes) in seeds.values().enumerate() {
        std::fs::write(format!("{directory}/{number:03}.bin"), bytes).unwrap();
    }
}

/// Takes fields out of `block` until each that is left is needed for the verdict.
fn minimise(mut block: Block) -> Block {
    let verdict = |block: &Block| {
        let agreement = compare(block).unwrap();
        (agreement.detail, agreement.difference)
    };
    let wanted = verdict(&block);
    let mut at = block.fields.len();
    while at > 0 {
        at -= 1;
        let mut smaller = block.clone();
        smaller.fields.remove(at);
        if verdict(&smaller) == wanted {
            block = smaller;
        }
    }
    block
}

fn golden(block: &Block) -> GoldenBlock {
    GoldenBlock {
        kind: format!("{:?}", block.kind).to_lowercase(),
        ends: block.ends,
        is_head: block.is_head && block.kind == BlockKind::Response,
        is_websocket: block.is_websocket && block.kind == BlockKind::Response,
        limits: (block.limits.fields, block.limits.bytes),
        fields: block.fields.clone(),
    }
}

/// Last block that is accepted when `change` makes one longer, and the first that is not.
fn boundary(change: impl Fn(usize) -> Block) -> Option<[GoldenBlock; 2]> {
    let is_good = |length| compare(&change(length)).unwrap().detail.is_empty();
    let (mut good, mut bad) = (0, 1 << 16);
    if !is_good(good) || is_good(bad) {
        return None;
    }
    while bad - good > 1 {
        let middle = usize::midpoint(good, bad);
        *if is_good(middle) { &mut good } else { &mut bad } = middle;
    }
    Some([golden(&change(good)), golden(&change(bad))])
}

/// Boundaries of `block`: a long value, a long path, many fields, many crumbs of a cookie.
fn boundaries(block: &Block) -> Vec<GoldenBlock> {
    let with = |more: Vec<(Vec<u8>, Vec<u8>)>| {
        let mut block = block.clone();
        block.fields.extend(more);
        block
    };
    let longer_path = |length| {
        let mut block = block.clone();
        let path = block.fields.iter_mut().find(|(name, _)| name == b":path");
        if let Some((_, path)) = path {
            path.extend(vec![b'x'; length]);
        }
        block
    };
    let value = boundary(|length| with(vec![(b"x-long".to_vec(), vec![b'x'; length])]));
    let path = boundary(longer_path);
    let count = boundary(|count| with(vec![(b"x-many".to_vec(), b"b".to_vec()); count.min(2_000)]));
    let crumb = (b"cookie".to_vec(), b"a=b".to_vec());
    let crumbs = boundary(|count| with(vec![crumb.clone(); count.min(20_000)]));
    [value, path, count, crumbs]
        .into_iter()
        .flatten()
        .flatten()
        .collect()
}

/// Writes the golden file: short blocks, some of each detail, those in which something new was
/// accepted, and the largest that are within the limits.
#[test]
#[ignore = "writes tests/golden/h2_messages.txt"]
fn write_golden_file() {
    /// Blocks of each detail.
    const PER_DETAIL: usize = 4;
    let (mut refused, mut accepted, mut edges) = (BTreeMap::new(), Vec::new(), Vec::new());
    let (mut seen, mut counts) = (BTreeSet::new(), BTreeMap::new());
    for round in 0..400_000 {
        let block = block(round);
        let agreement = compare(&block).unwrap();
        let kind = format!("{:?}", block.kind);
        if agreement.detail.is_empty() && agreement.difference.is_none() {
            // A field that was not yet accepted, or a new shape.
            let shape: String = agreement
                .shape
                .split(|c: char| c.is_ascii_digit())
                .collect();
            let mut parts: Vec<(Vec<u8>, Vec<u8>)> = block.fields.clone();
            parts.push((b"shape".to_vec(), shape.into_bytes()));
            let new = parts
                .into_iter()
                .filter(|part| seen.insert((kind.clone(), part.clone())))
                .count();
            let most = match block.kind {
                BlockKind::Request => 60,
                BlockKind::Response => 40,
                BlockKind::Trailers => 20,
            };
            let count = counts.entry(kind.clone()).or_insert(0);
            if new > 0 && *count < most && block.fields.len() < 12 {
                accepted.push(golden(&block));
                *count += 1;
                if *count % 10 == 0 {
                    edges.extend(boundaries(&block));
                }
            }
            continue;
        }
        let blocks: &mut Vec<GoldenBlock> = refused
            .entry((kind, agreement.detail, agreement.difference.is_some()))
            .or_default();
        if blocks.len() < PER_DETAIL {
            let block = golden(&minimise(block));
            if !blocks.iter().any(|other| other.fields == block.fields) {
                blocks.push(block);
            }
        }
    }
    let refused = refused.into_values().flatten();
    let blocks: Vec<GoldenBlock> = refused.chain(accepted).chain(edges).collect();
    std::fs::write(golden_tests::GOLDEN_FILE, golden_tests::write(&blocks)).unwrap();
}
