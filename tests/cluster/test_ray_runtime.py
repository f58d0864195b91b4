"""Ray as a run has it: where it listens, and how many workers have room."""

import subprocess
import sys

import pytest

from dipo.cluster.ray_runtime import shares
from dipo.config import ClusterConfig
from dipo.errors import UserError

LISTENERS = """
import psutil
from dipo.cluster.address import set_environment
from dipo.config import ClusterConfig
set_environment(None)
from dipo.cluster.ray_runtime import RayRuntime
from dipo.cluster.process_group import listen
engine = RayRuntime(ClusterConfig(workers=1))
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
before = listen()
sockets = [socket for process in processes for socket in process.net_connections("tcp")]
found = {socket.laddr.ip.removeprefix("::ffff:") for socket in sockets if socket.status == "LISTEN"}
engine.close()
print(len(engine.processes) >= 2, sorted(found))
"""


@pytest.mark.parametrize(
    ("wanted", "gpus", "expected"),
    [
        ({}, 4, (4, 1.0)),
        ({"workers": 2}, 4, (2, 1.0)),
        ({"workers": 2}, 1, (2, 0.5)),
        ({"workers": 3}, 2, (3, 0.5)),
        ({"gpus_per_worker": 0.5}, 2, (4, 0.5)),
        ({"gpus_per_worker": 0.3}, 2, (6, 0.3)),
        ({"gpus_per_worker": 2}, 5, (2, 2)),
        ({"workers": 1, "gpus_per_worker": 0.25}, 1, (1, 0.25)),
    ],
)
def test_workers_and_their_parts_of_gpus(wanted, gpus, expected):
    assert shares(ClusterConfig(**wanted), gpus=gpus, cuda=True) == expected


def test_without_gpus_there_are_two_workers():
    assert shares(ClusterConfig(), gpus=0, cuda=False) == (2, 0.0)


@pytest.mark.parametrize(("wanted", "gpus"), [({}, 0), ({"workers": 5, "gpus_per_worker": 0.5}, 2)])
def test_more_than_there_are_is_refused(wanted, gpus):
    with pytest.raises(UserError, match="the Ray cluster has"):
        shares(ClusterConfig(**wanted), gpus=gpus, cuda=True)


def test_a_private_ray_listens_on_the_loopback_interface_alone():
    run = subprocess.run([sys.executable, "-c", LISTENERS], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout == "True ['127.0.0.1']\n", run.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_an_address_where_nobody_listens_is_refused_at_once(tiny_job, tmp_path, capsys, address):
    from dipo.launch import main

    arguments = [word for word in tiny_job.arguments(f"run.dir={tmp_path / 'run'}") if word != "cluster=inline"]
    assert main([*arguments, f"cluster.address={address}"]) == 2
    assert "nothing answers there" in capsys.readouterr().err
