#!/usr/bin/env bash
# Build the Dockerfile from nothing, without an engine and without a registry of images:
#
#   deploy/image/build.sh DIRECTORY     (as root, on Debian with buildah and debootstrap)
#
# The base is a Debian that debootstrap makes, from its own default mirror or from DEBIAN_MIRROR; buildah builds on it
# with chroot isolation. Everything lands in DIRECTORY (storage of the images localhost/base and localhost/picoclaw).
# How pip reaches its index is taken from this machine's pip, mounted for the build, and not kept.
set -euo pipefail

target=$(realpath -m "${1:?a directory to build in}")
source=$(realpath "$(dirname "$0")/../..")
mkdir -p "$target/tmp" "$target/pip"
export TMPDIR=$target/tmp
buildah() { command buildah --root "$target/storage" --runroot "$target/run" "$@"; }

container=$(buildah from scratch)
root=$(buildah mount "$container")
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root" \
  ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$target/debootstrap.log" 2>&1 ||
  { tail -n 20 "$target/debootstrap.log" >&2; exit 1; }
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*
buildah commit --quiet --rm "$container" localhost/base >/dev/null

# What stands in for the Lambda adapter, which is on a registry.
container=$(buildah from scratch)
printf '#!/bin/sh\nexit 0\n' >"$target/tmp/lambda-adapter"
buildah add --quiet --chmod 755 "$container" "$target/tmp/lambda-adapter" /lambda-adapter >/dev/null
buildah commit --quiet --rm "$container" localhost/adapter >/dev/null

cp /etc/ssl/certs/ca-certificates.crt "$target/pip/ca.crt"
{
  echo "[global]"
  echo "cert = /etc/xdg/pip/ca.crt"
  python3 -m pip config list |
    sed -nE "s/^[^.]*\.(index-url|extra-index-url|trusted-host|proxy|timeout|default-timeout)='(.*)'$/\1 = \2/p" |
    { grep -v file: || true; }
} >"$target/pip/pip.conf"

buildah build --quiet --isolation chroot --format docker --volume "$target/pip:/etc/xdg/pip:ro" \
  --build-arg BASE=localhost/base --build-arg LAMBDA_ADAPTER=localhost/adapter --skip-unused-stages=false \
  --build-arg BUILD_VERSION=9.8.7 --build-arg BUILD_COMMIT=abc1234 --build-arg BUILD_TIME=2027-01-02T03:04:05Z \
  --ignorefile "$source/.dockerignore" --tag localhost/picoclaw "$source" >"$target/build.log" 2>&1 ||
  { tail -n 40 "$target/build.log" >&2; exit 1; }
