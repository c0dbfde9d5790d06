#!/usr/bin/env bash
# Remove what build.sh made in DIRECTORY, with what of it is mounted: deploy/image/remove.sh DIRECTORY
set -euo pipefail
directory=${1:?a directory}
findmnt --raw --noheadings --output TARGET | { grep "^$directory/" || true; } | sort --reverse |
  xargs --no-run-if-empty umount --lazy
rm -rf "$directory"
