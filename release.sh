#!/usr/bin/env bash
# Makes a release: version, changelog, build, archive with checksums, commit and tag. RELEASING.md tells when.
#   ./release.sh [--dry-run] X.Y.Z
# A dry run does the same in a copy of the last commit that is thrown away, with an unoptimised build, and keeps nothing.
set -euo pipefail
cd "$(dirname "$0")"

fail() {
  echo "release.sh: $*" >&2
  exit 1
}

dry_run=no
if [ "${1:-}" = --dry-run ]; then
  dry_run=yes
  shift
fi
[ $# -eq 1 ] || fail "usage: ./release.sh [--dry-run] X.Y.Z"
version=$1
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || fail "\`$version\` is not X.Y.Z"
# The build of a dry run may use what is built already.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"

if [ $dry_run = yes ]; then
  copy=$(mktemp -d)
  trap 'rm -rf "$copy"' EXIT
  git clone --quiet . "$copy/balancer"
  cd "$copy/balancer"
fi

present=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
[ -z "$(git status --porcelain)" ] || fail "the tree is not clean: commit first"
if [ "$version" = "$present" ] || [ "$(printf "%s\n" "$present" "$version" | sort -V | tail -1)" != "$version" ]; then
  fail "$version is not higher than $present"
fi
! git rev-parse --quiet --verify "refs/tags/v$version" >/dev/null || fail "the tag v$version exists"
notes=$(sed -n '/^## \[Unreleased\]/,/^## \[[0-9]/p' CHANGELOG.md | grep -v '^## ' | sed '/^$/d') || true
[ -n "$notes" ] || [ $dry_run = yes ] || fail "the Unreleased section of CHANGELOG.md is empty"

today=$(date -u +%Y-%m-%d)
sed -i "s/^version = \"$present\"/version = \"$version\"/" Cargo.toml
sed -i "s/^## \[Unreleased\]\$/## [Unreleased]\n\n## [$version] - $today/" CHANGELOG.md
sed -i "s#^\[Unreleased\]: \(.*\)/compare/.*#[Unreleased]: \1/compare/v$version...HEAD\n[$version]: \1/compare/v$present...v$version#" CHANGELOG.md
grep -q "^\[$version\]: " CHANGELOG.md || fail "CHANGELOG.md has no link for Unreleased"
cargo update --quiet --offline --package balancer
git diff --stat

if [ $dry_run = yes ]; then
  profile=debug
  cargo build --quiet --locked
else
  profile=release
  cargo build --quiet --locked --release --features etcd
fi
program="$CARGO_TARGET_DIR/$profile/balancer"
built=$("$program" version)
[[ $built == *"$version"* ]] || fail "the program that was built says \`$built\`"

name="balancer-$version-$(uname -m)-linux"
out="$CARGO_TARGET_DIR/release-$version"
[ $dry_run = no ] || out="$copy/out"
rm -rf "$out"
mkdir -p "$out/$name"
cp "$program" "$out/$name/"
cp -r balancer.yaml balancer.schema.json systemd docs README.md CHANGELOG.md SECURITY.md LICENSE-APACHE LICENSE-MIT "$out/$name/"
# The same bytes for the same commit: names sorted, no owner, one time.
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="$today 00:00Z" -C "$out" -cf - "$name" | gzip -n >"$out/$name.tar.gz"
rm -r "${out:?}/$name"
(cd "$out" && sha256sum "$name.tar.gz" >SHA256SUMS && sha256sum --check --quiet SHA256SUMS)
ls -l "$out"

if [ $dry_run = yes ]; then
  echo "release.sh: dry run, nothing was changed"
  exit 0
fi
git commit --quiet --all --message "release: $version"
git tag --annotate "v$version" --message "balancer $version"
echo "release.sh: $version is committed and tagged; push with: git push origin main v$version"
