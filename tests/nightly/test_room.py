import pytest

from dipo.config import ClusterConfig
from dipo.errors import UserError
from dipo.nightly.jobs import read_jobs
from dipo.nightly.room import Need, Room, need_of, needs_of

INLINE = {"kind": "inline"}


@pytest.mark.parametrize(
    ("cluster", "gpus", "shared", "need"),
    [
        ({"threads": 3, **INLINE}, 0, False, Need(3, 0)),
        ({"workers": 4, "threads": 2}, 0, True, Need(8, 0)),
        ({}, 0, True, Need(2, 0)),
        (INLINE, 4, False, Need(1, 1)),
        (INLINE, 4, True, Need(1, 4)),
        ({"device": "cpu", **INLINE}, 4, False, Need(1, 0)),
        ({}, 4, True, Need(4, 4)),
        ({"workers": 2}, 4, True, Need(2, 2)),
        ({"workers": 8}, 4, True, Need(8, 4)),
        ({"workers": 3, "gpus_per_worker": 0.5}, 4, True, Need(3, 2)),
        ({"gpus_per_worker": 2.0}, 4, True, Need(2, 4)),
        ({"device": "cuda"}, 0, True, Need(1, 1)),
    ],
)
def test_what_a_job_holds(cluster, gpus, shared, need):
    assert need_of(ClusterConfig(**cluster), gpus=gpus, cuda=gpus > 0, shared=shared) == need


def test_room_gives_what_is_there_and_nothing_else():
    room = Room(4, ["0", "1"])
    assert room.take(Need(3, 1)) == ["0"]
    assert room.take(Need(2, 0)) is None
    assert room.take(Need(1, 1)) == ["1"]
    assert room.take(Need(0, 1)) is None
    room.give(Need(3, 1), ["0"])
    assert room.take(Need(3, 1)) == ["0"]
    assert room.total == Need(4, 2)


def test_a_job_that_will_never_fit_is_refused_by_name(jobs_file):
    path = jobs_file(
        jobs=[
            {"name": "small", "options": ["+model=mobilenet", "cluster=inline", "cluster.threads=2"]},
            {"name": "large", "options": ["+model=mobilenet", "cluster.workers=3", "cluster.threads=2"]},
        ]
    )
    jobs = read_jobs(path, {}).jobs
    with pytest.raises(UserError, match=r"job 'large' needs 6 CPUs .*there are 4 CPUs"):
        needs_of(jobs, Room(4, []), cuda=False)
    assert needs_of(jobs, Room(6, []), cuda=False) == [Need(2, 0), Need(6, 0)]
