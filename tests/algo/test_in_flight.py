import threading

import pytest
import torch

from dipo.algo import in_flight
from dipo.algo.in_flight import InFlight

VALUE = torch.zeros(256)


@pytest.mark.parametrize(("bound", "most"), [(1024, 1), (3 * 1024, 3), (1, 1)])
def test_no_more_bytes_wait_than_the_bound(monkeypatch, bound, most):
    monkeypatch.setattr(in_flight, "BYTES_IN_FLIGHT", bound)
    lock, go = threading.Lock(), threading.Event()
    handed, done, ahead = 0, 0, []

    def work():
        nonlocal done
        go.wait(0.01)
        with lock:
            done += 1

    with InFlight(4) as looks:
        for index in range(12):
            looks.run(index, VALUE, work)
            handed += 1
            with lock:
                ahead.append(handed - done)
    assert done == 12
    assert max(ahead) <= most


def test_work_of_one_key_is_done_in_order():
    seen = []
    with InFlight(4) as looks:
        for index in range(50):
            looks.run("same", VALUE, lambda index=index: seen.append(index))
    assert seen == list(range(50))


def test_an_error_is_raised_at_the_end_at_the_latest():
    def fails():
        raise ValueError("here")

    with pytest.raises(ValueError, match="here"), InFlight(1) as looks:
        looks.run("x", VALUE, fails)
