import pytest

from dipo.config import ClusterConfig
from dipo.errors import UserError
from dipo.nightly.jobs import read_jobs
from dipo.nightly.resources import ResourceRequest, Resources, need_of, needs_of

INLINE = {"kind": "inline"}


@pytest.mark.parametrize(
    ("cluster", "gpus", "shared", "need"),
    [
        ({"threads": 3, **INLINE}, 0, False, ResourceRequest(3, 0)),
        ({"workers": 4, "threads": 2}, 0, True, ResourceRequest(8, 0)),
        ({}, 0, True, ResourceRequest(2, 0)),
        (INLINE, 4, False, ResourceRequest(1, 1)),
        (INLINE, 4, True, ResourceRequest(1, 4)),
        ({"device": "cpu", **INLINE}, 4, False, ResourceRequest(1, 0)),
        ({}, 4, True, ResourceRequest(4, 4)),
        ({"workers": 2}, 4, True, ResourceRequest(2, 2)),
        ({"workers": 8}, 4, True, ResourceRequest(8, 4)),
        ({"workers": 3, "gpus_per_worker": 0.5}, 4, True, ResourceRequest(3, 2)),
        ({"gpus_per_worker": 2.0}, 4, True, ResourceRequest(2, 4)),
        ({"device": "cuda"}, 0, True, ResourceRequest(1, 1)),
    ],
)
def test_what_a_job_holds(cluster, gpus, shared, need):
    assert need_of(ClusterConfig(**cluster), gpus=gpus, cuda=gpus > 0, shared=shared) == need


def test_room_gives_what_is_there_and_nothing_else():
    room = Resources(4, ["0", "1"])
    assert room.take(ResourceRequest(3, 1)) == ["0"]
    assert room.take(ResourceRequest(2, 0)) is None
    assert room.take(ResourceRequest(1, 1)) == ["1"]
    assert room.take(ResourceRequest(0, 1)) is None
    room.give(ResourceRequest(3, 1), ["0"])
    assert room.take(ResourceRequest(3, 1)) == ["0"]
    assert room.total == ResourceRequest(4, 2)


def test_a_job_that_will_never_fit_is_refused_by_name(jobs_file):
    path = jobs_file(
        jobs=[
            {"name": "small", "options": ["+model=mobilenet", "cluster=inline", "cluster.threads=2"]},
            {"name": "large", "options": ["+model=mobilenet", "cluster.workers=3", "cluster.threads=2"]},
        ]
    )
    jobs = read_jobs(path, {}).jobs
    with pytest.raises(UserError, match=r"job 'large' needs 6 CPUs .*there are 4 CPUs"):
        needs_of(jobs, Resources(4, []), cuda=False)
    assert needs_of(jobs, Resources(6, []), cuda=False) == [ResourceRequest(2, 0), ResourceRequest(6, 0)]
