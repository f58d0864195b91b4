#!/usr/bin/env bash
# dipo as a job of a Ray cluster that already runs: launch/ray_job.sh +model=mobilenet +algo=brecq
#   RAY_API_SERVER_ADDRESS  the cluster's job server, http://127.0.0.1:8265 unless it is set
#   DIPO_PYTHON             the python that has dipo, here and on the cluster; the checkout's unless it is set
#   DIPO_WORKING_DIR        a folder that is sent to the cluster and in which the job runs; without it the job runs in
#                           the folder of this call, which the cluster's nodes have to share
#   DIPO_REMOTE_PYTHON      with DIPO_WORKING_DIR, the python on the cluster; `python` unless it is set
# Shows the job's output and returns the job's exit status. Ctrl-C or SIGTERM stops the job.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${DIPO_PYTHON:-$root/.venv/bin/python}
ray=("$python" -m ray.scripts.scripts)
export RAY_API_SERVER_ADDRESS=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}

refuse() {
    echo "ray_job.sh: $1" >&2
    exit 2
}

[[ -x $python ]] || refuse "no $python, set DIPO_PYTHON to the python that has dipo"

# Dipo ends its run within ten seconds of SIGTERM; Ray would wait for three.
environment='{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "20", "GOMP_SPINCOUNT": "1000", "PYTHONUNBUFFERED": "1"}}'
if [[ -n ${DIPO_WORKING_DIR:-} ]]; then
    [[ " $*" == *" run.dir="* || " $*" == *" run.resume="* ]] ||
        refuse "DIPO_WORKING_DIR is a copy that ends with the job, give run.dir=, a folder that the cluster keeps"
    where=(--working-dir "$DIPO_WORKING_DIR")
    command=("${DIPO_REMOTE_PYTHON:-python}" -m dipo.launch)
else
    where=()
    command=(env --chdir="$PWD" "$python" -m dipo.launch)
fi

why=$("$python" -c 'from ray.job_submission import JobSubmissionClient as Client; Client()' 2>&1) || {
    why=${why##*$'\n'}
    refuse "no Ray job server takes our call at $RAY_API_SERVER_ADDRESS (${why%%. *})"
}

job=dipo-$(date +%Y%m%d-%H%M%S)-$$
"${ray[@]}" job submit --submission-id "$job" --runtime-env-json "$environment" "${where[@]}" \
    -- "${command[@]}" cluster.address=auto "$@" &
submit=$!
trap '"${ray[@]}" job stop "$job" >&2' INT TERM
while kill -0 "$submit" 2>/dev/null; do wait "$submit" || true; done

# Ray's own status is 0 for a job that was stopped, and 1 for any that failed.
exit "$("$python" -c 'import sys
from ray.job_submission import JobStatus, JobSubmissionClient
job = JobSubmissionClient().get_job_info(sys.argv[1])
known = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 143}
print(known.get(job.status, job.driver_exit_code or 1))' "$job")"
