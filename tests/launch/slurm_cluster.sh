#!/usr/bin/env bash
# A SLURM of two nodes on this machine, for the tests: munged, slurmctld and two slurmd, as the user who calls, on the
# loopback interface, all their files in one folder.
#   slurm_cluster.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf
#   slurm_cluster.sh stop FOLDER
# Where SLURM is missing, root gets it installed with CI=true or DIPO_TEST_INSTALL=1 (Debian, Ubuntu).
set -euo pipefail
folder=${2:?give start or stop, and a folder}
nodes=(n1 n2)

fail() {
    echo "slurm_cluster.sh: $1" >&2
    exit 1
}

install_slurm() {
    command -v apt-get >/dev/null || fail "no SLURM, and no apt-get to install it with"
    ((EUID == 0)) || fail "no SLURM, and only root can install it"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge
} >&2

configure() {
    local host ports
    host=$(hostname -s)
    read -ra ports < <(python3 -c '
import socket
probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*[probe.getsockname()[1] for probe in probes])')
    cat >"$folder/slurm.conf" <<CONF
ClusterName=dipo
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.sock
CredType=cred/munge
MpiDefault=none
# A job's ports and temporary folder go by its number: another such SLURM at the same time, or one that was killed before
# it could clean up, must not have had it.
FirstJobId=$((RANDOM * 2000 + $$ % 2000 + 1))
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# More CPUs than there may be: two jobs have to fit beside each other on any machine.
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
NodeName=${nodes[0]} NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=4
NodeName=${nodes[1]} NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=4
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
}

start() {
    if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
        [[ ${CI:-} == true || ${DIPO_TEST_INSTALL:-} == 1 ]] || fail "no SLURM here (apt-get install slurm-wlm munge)"
        install_slurm
    fi
    mkdir -p "$folder/state" "$folder/spool"
    configure
    export SLURM_CONF=$folder/slurm.conf
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
    munged --force --num-threads=2 --key-file="$folder/munge.key" --socket="$folder/munge.sock" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" >&2
    slurmctld
    for node in "${nodes[@]}"; do slurmd -N "$node"; done
    for _ in {1..100}; do
        if [[ $(sinfo --noheader --Node --states=idle 2>/dev/null | wc -l) == "${#nodes[@]}" ]]; then return; fi
        sleep 0.2
    done
    tail -n 3 "$folder"/*.log >&2
    fail "the nodes did not come up"
}

stop() {
    local pid file
    SLURM_CONF=$folder/slurm.conf scancel --user="$(id -un)" 2>/dev/null || true
    for file in "$folder"/slurmd-*.pid "$folder/slurmctld.pid" "$folder/munged.pid"; do
        [[ -s $file ]] || continue
        pid=$(<"$file")
        kill "$pid" 2>/dev/null || continue
        for _ in {1..50}; do
            if ! kill -0 "$pid" 2>/dev/null; then break; fi
            sleep 0.2
        done
    done
}

case $1 in
    start) start ;;
    stop) stop ;;
    *) fail "'$1': give start or stop" ;;
esac
