#!/bin/sh
# After files are in place: users, folders, and who may read what. Nothing is fetched, started or enabled by a first
# install; an upgrade renews /opt/cortex and restarts what runs.
set -eu

systemd-sysusers cortex.conf
systemd-tmpfiles --create cortex.conf
# One that was deleted, as on a host that is no gateway, stays so: packages do not bring configuration back.
for file in neuron/neuron.yaml cortex/cortex.yaml cortex/models.yaml; do
    [ ! -e "/etc/$file" ] || chgrp "${file%%/*}" "/etc/$file"
done

if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
if [ -f /opt/cortex/cortex-setup ]; then
    if cortex-setup --again; then
        [ ! -d /run/systemd/system ] || systemctl try-restart neuron.service cortex.service
    else
        echo "cortex-serve: /opt/cortex is as it was. When its packages can be had, run: cortex-setup --again" >&2
    fi
else
    echo "Next: cortex-setup gateway, or cortex-setup neuron on a host with GPUs."
fi
