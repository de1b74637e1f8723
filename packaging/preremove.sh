#!/bin/sh
# Before files go for good: dpkg says "remove", rpm says 0. An upgrade leaves services alone.
set -eu

case "${1:-}" in remove | 0) ;; *) exit 0 ;; esac
if [ -d /run/systemd/system ]; then
    systemctl disable --now neuron.service cortex.service || true
fi
