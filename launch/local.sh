#!/usr/bin/env bash
# dipo on this machine, from any folder: launch/local.sh model.path=net.onnx data.path=samples/ +algo=qdrop
set -euo pipefail
if [[ -n ${DIPO_PYTHON:-} ]]; then
    exec "$DIPO_PYTHON" -m dipo.launch "$@"
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
make --quiet --directory "$root" .venv/.setup-run
exec "$root/.venv/bin/dipo" "$@"
