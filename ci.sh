#!/usr/bin/env bash
# Everything that must hold before a change lands; a person runs the same. Stops at the first failure.
#   ./ci.sh              all steps
#   ./ci.sh lints tests  only these, in this order
set -euo pipefail
cd "$(dirname "$0")"

steps=(format lints msrv shell words dependencies tests docs benches instructions fuzz release config unit)
log=target/ci.log
bin=target/interop-venv/bin

missing() { printf 'SKIPPED: %s\n' "$*" | tee -a "$log"; }
# Finds a tool that .ci/run may have put into the build directory.
tool() { command -v "$1" || { [ -x "$bin/$1" ] && echo "$bin/$1"; } || { [ -x "target/tools/bin/$1" ] && echo "target/tools/bin/$1"; }; }

format() {
  cargo fmt --check
  cargo fmt --check --manifest-path fuzz/Cargo.toml
}

lints() {
  cargo clippy --all-targets -- -D warnings
  cargo clippy --all-targets --features etcd -- -D warnings
}

# The oldest toolchain that may build this is the one in Cargo.toml.
msrv() {
  local oldest present
  oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  present=$(rustc --version | sed 's/^rustc \([0-9]*\.[0-9]*\).*/\1/')
  if [ "$present" = "$oldest" ]; then
    echo "the other steps build with Rust $oldest"
  elif rustup toolchain list 2>/dev/null | grep -q "^$oldest"; then
    cargo "+$oldest" check --locked --all-targets --target-dir target/msrv
  else
    missing "Rust $oldest, the oldest that is supported, is not installed (rustup toolchain install $oldest)"
  fi
}

shell() {
  if command -v shellcheck >/dev/null; then
    shellcheck ci.sh release.sh .ci/run .ci/commit-msg
  else
    missing "shellcheck is not installed (Debian: shellcheck)"
  fi
  .ci/commit-msg --self-test
}

words() {
  local typos
  if typos=$(tool typos); then
    "$typos"
  else
    missing "typos is not installed (PyPI: typos)"
  fi
  subjects
}

# Every commit since there are rules for its message keeps to them.
subjects() {
  local first commit
  first=$(git log --diff-filter=A --format=%H -- .ci/commit-msg | tail -n 1)
  if [ -z "$first" ]; then
    missing "no git history: commit messages are not checked"
    return
  fi
  for commit in $(git log --format=%H "$first..HEAD"); do
    git log -1 --format=%B "$commit" | .ci/commit-msg /dev/stdin || { echo "in commit $commit"; return 1; }
  done
}

dependencies() {
  local deny
  if deny=$(tool cargo-deny); then
    "$deny" --all-features check --hide-inclusion-graph bans licenses sources
  else
    missing "cargo-deny is not installed (cargo install --locked cargo-deny)"
  fi
}

tests() {
  cargo test 2>&1 | tee -a "$log"
  # What only packages have.
  cargo test --features etcd --lib --test static --test blackbox -- etcd 2>&1 | tee -a "$log"
}

docs() {
  RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items
}

benches() {
  local file names=()
  for file in benches/*.rs; do
    # That one is run by the next step, under valgrind.
    [ "$file" = benches/instructions.rs ] || names+=(--bench "$(basename "$file" .rs)")
  done
  cargo bench "${names[@]}" -- --test
}

# No count of instructions on the hot path is more than 3 % above the one in benches/instructions.txt.
instructions() {
  local runner toolchain counts=target/instructions.txt
  if ! command -v valgrind >/dev/null; then
    missing "valgrind is not installed (Debian: valgrind)"
    return
  fi
  if ! runner=$(tool gungraun-runner); then
    missing "gungraun-runner is not installed (cargo install --locked gungraun-runner@0.20.0)"
    return
  fi
  toolchain="# $(rustc --version | cut -d ' ' -f 1,2), libc $(ldd --version | awk 'NR == 1 { print $NF }')"
  {
    echo "$toolchain"
    GUNGRAUN_RUNNER=$(realpath "$runner") cargo bench --bench instructions |
      awk '/^instructions::/ { split($1, path, "::"); split($2, bench, ":"); name = path[3] " " bench[1] }
           $1 == "Instructions:" { split($2, count, "|"); print name, count[1] }'
  } >$counts
  if [ "$toolchain" != "$(head -n 1 benches/instructions.txt)" ]; then
    missing "the counts in benches/instructions.txt are of another compiler or C library: $(head -n 1 benches/instructions.txt)"
    return
  fi
  awk 'NR == FNR { known[$1 " " $2] = $3; next }
       /^#/ { next }
       { name = $1 " " $2; seen[name] = 1; ratio = name in known && known[name] ? $3 / known[name] : 0
         printf "%-28s %9d instructions, %.3f times those of the file\n", name, $3, ratio
         if (ratio == 0 || ratio > 1.03) { bad = 1; print "  more than 3 % above the file, or not in it" } }
       END { for (name in known) if (name !~ /^#/ && !(name in seen)) { bad = 1; print name " was not counted" }
             if (bad) print "If that is intended: cp target/instructions.txt benches/instructions.txt"
             exit bad }' benches/instructions.txt $counts
}

# Each target 100,000 times.
fuzz() {
  cargo run --release --manifest-path fuzz/Cargo.toml -- all --runs 100000
}

# The next patch version, from what is committed.
release() {
  local version
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
  CARGO_TARGET_DIR=$PWD/target ./release.sh --dry-run "${version%.*}.$((${version##*.} + 1))"
}

config() {
  cargo run --quiet -- check balancer.yaml
}

unit() {
  local scratch said exposure
  if ! command -v systemd-analyze >/dev/null; then
    missing "systemd-analyze is not installed (Debian: systemd)"
    return
  fi
  cargo build
  scratch=$(mktemp -d)
  # The unit names the installed program; here the built one stands for it, because verify wants it to exist.
  sed "s#/usr/local/bin/balancer#$PWD/target/debug/balancer#" systemd/balancer.service >"$scratch/balancer.service"
  # verify warns without failing, so every word it says counts as a failure.
  said=$(systemd-analyze verify "$scratch/balancer.service" 2>&1) || { echo "$said"; return 1; }
  rm -r "$scratch"
  if [ -n "$said" ]; then echo "$said"; return 1; fi
  exposure=$(systemd-analyze security --offline=true --no-pager systemd/balancer.service |
    sed -n 's/.*Overall exposure level for balancer.service: \([0-9.]*\).*/\1/p')
  echo "exposure ${exposure:-unknown}, allowed 2.0"
  awk -v e="$exposure" 'BEGIN { exit !(e ~ /^[0-9.]+$/ && e <= 2.0) }'
}

exec </dev/null
export CARGO_TERM_COLOR=never
mkdir -p target
: >"$log"
if [ $# -gt 0 ]; then
  for step in "$@"; do
    if [[ " ${steps[*]} " != *" $step "* ]]; then
      echo "ci.sh: no step \`$step\`; there are: ${steps[*]}" >&2
      exit 2
    fi
  done
  steps=("$@")
fi
for step in "${steps[@]}"; do
  printf '\n== %s\n' "$step"
  began=$SECONDS
  "$step"
  printf '== %s: %d s\n' "$step" $((SECONDS - began))
done

printf '\n== what was skipped\n'
# Tests print the same line as the steps above, in the middle of others' where they run side by side.
grep -o 'SKIPPED: .*' "$log" | sort -u || echo "nothing"
printf '\n== all passed: %s\n' "${steps[*]}"
