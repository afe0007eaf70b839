#!/usr/bin/env bash
# Everything that must hold before a change lands; a person runs the same. Stops at the first failure.
set -euo pipefail
cd "$(dirname "$0")"

step() { printf '\n== %s\n' "$*"; }
log=target/ci-tests.log
missing() { printf 'SKIPPED: %s\n' "$*" | tee -a "$log"; }

exec </dev/null
export CARGO_TERM_COLOR=never

step "format"
cargo fmt --check

step "lints"
cargo clippy --all-targets -- -D warnings

step "tests"
mkdir -p target
cargo test 2>&1 | tee "$log"

step "docs build"
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

if [ -d benches ]; then
  step "benches compile and run once"
  cargo bench -- --test
fi

if [ -d fuzz ]; then
  step "fuzz targets, 100,000 runs each"
  cargo run --release --manifest-path fuzz/Cargo.toml -- all --runs 100000
fi

step "the shipped configuration"
cargo build
cargo run --quiet -- check balancer.yaml

step "systemd unit"
if command -v systemd-analyze >/dev/null; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  # The unit names the installed program; here the built one stands for it, because verify wants it to exist.
  sed "s#/usr/local/bin/balancer#$PWD/target/debug/balancer#" systemd/balancer.service >"$scratch/balancer.service"
  # verify warns without failing, so every word it says counts as a failure.
  said=$(systemd-analyze verify "$scratch/balancer.service" 2>&1) || { echo "$said"; exit 1; }
  if [ -n "$said" ]; then echo "$said"; exit 1; fi
  exposure=$(systemd-analyze security --offline=true --no-pager systemd/balancer.service |
    sed -n 's/.*Overall exposure level for balancer.service: \([0-9.]*\).*/\1/p')
  echo "exposure ${exposure:-unknown}, allowed 2.0"
  awk -v e="$exposure" 'BEGIN { exit !(e ~ /^[0-9.]+$/ && e <= 2.0) }'
else
  missing "systemd-analyze is not installed (Debian: systemd)"
fi

step "what was skipped"
# Tests print the same line as the steps above, in the middle of others' where they run side by side.
grep -o 'SKIPPED: .*' "$log" | sort -u || echo "nothing"

step "all passed"
