#!/bin/sh
# After files have gone for good: what cortex-setup made goes too. Configuration, keys, what clients kept and
# weights stay; a purge takes keys and configuration as well.
set -eu

case "${1:-}" in
    remove | 0) rm -rf /opt/cortex ;;
    purge) rm -rf /opt/cortex /etc/neuron /etc/cortex ;;
esac
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
