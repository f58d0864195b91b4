#!/usr/bin/env bash
# A night of dipo jobs: launch/nightly.sh jobs=launch/nightly.yaml out=/var/lib/dipo
# Ends with 75 where the night before still runs; otherwise as dipo-nightly does (0 passed, 1 not, 2 wrong input).
#
# By cron, each night at two (crontab -e), from the folder to which the paths in the jobs file are relative:
#   0 2 * * * cd /srv/models && /srv/dipo/launch/nightly.sh jobs=nightly.yaml out=nights >nights.log 2>&1
# By systemd: docs/nightly.md has a service and its timer.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${DIPO_PYTHON:-} ]]; then
    make --quiet --directory "$root" .venv/.setup-run
    DIPO_PYTHON=$root/.venv/bin/python
fi
# The lock is on this script, which every user of the checkout can read; it goes with the process, however that ends.
exec 9<"$root/launch/nightly.sh"
flock --nonblock 9 || { echo "nightly.sh: the night before still runs" >&2; exit 75; }
exec "$DIPO_PYTHON" -m dipo.nightly "$@"
