import socket
import subprocess
import sys

import pytest

from dipo.cluster.shared_ray import start_head
from dipo.errors import UserError


def test_an_address_where_nobody_listens_is_told_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999999"):
        with (
            pytest.raises(UserError, match=f"cluster.address={address}: nothing answers there"),
            start_head(address=address),
        ):
            raise AssertionError("joined")


LISTENERS = """
import psutil
from dipo.cluster.shared_ray import start_head
with start_head(cpus=3) as head:
    children = psutil.Process().children(recursive=True)
    hosts = {c.laddr.ip.removeprefix("::ffff:") for p in children for c in p.net_connections() if c.status == "LISTEN"}
    print(head.address.partition(":")[0], head.cpus, head.gpus, *hosts)
assert not [p.name() for p in children if p.is_running() and p.status() != "zombie" and p.name() == "raylet"]
"""


@pytest.mark.slow
def test_a_private_head_listens_on_the_loopback_interface_alone():
    done = subprocess.run([sys.executable, "-c", LISTENERS], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["127.0.0.1", "3", "0", "127.0.0.1"]
