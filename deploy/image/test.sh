#!/usr/bin/env bash
# Build the image from nothing and test it: make image-test. Arguments go to pytest.
# As root on Debian; installs buildah and debootstrap where they are missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

[ "$(id -u)" = 0 ] || { echo "image-test: needs root, for debootstrap and chroot" >&2; exit 1; }
missing=()
for program in buildah debootstrap; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ "${#missing[@]}" -gt 0 ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

directory=$(mktemp -d)
trap 'deploy/image/remove.sh "$directory"' EXIT

SECONDS=0
deploy/image/build.sh "$directory"
echo "The image was built in $SECONDS s."
.venv/bin/python -m pytest -s tests/image --image "$directory" "$@"
