"""What ends a process, found out in a process of its own."""

import os
import signal
import sys
import threading
import time
import warnings

import pytest
import torch

from dipo.graph.trial import HangError, command_ends, fork_ends


def test_what_ends_well_ends_nothing(capfd):
    assert fork_ends(lambda: sys.stdout.write("heard by nobody"), seconds=20) is None
    assert command_ends("import sys; assert sys.argv[1:] == ['a', 'b']", "a", "b", seconds=20) is None
    assert capfd.readouterr() == ("", "")


def test_an_exception_ends_no_process():
    def fail():
        raise MemoryError

    assert fork_ends(fail, seconds=20) is None
    assert command_ends("raise MemoryError", seconds=20) is None


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
def test_a_signal_is_told(number):
    assert fork_ends(lambda: os.kill(os.getpid(), number), seconds=20) == number
    assert command_ends(f"import os; os.kill(os.getpid(), {int(number)})", seconds=20) == number


def test_what_does_not_end_is_stopped():
    began = time.monotonic()
    with pytest.raises(HangError):
        fork_ends(lambda: time.sleep(60), seconds=0.2)
    with pytest.raises(HangError):
        command_ends("while True: pass", seconds=0.2)
    assert time.monotonic() - began < 20
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_torch_works_in_the_child_of_a_process_whose_threads_have_worked():
    """OpenMP's threads are not there after a fork; the first parallel loop would wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wide = torch.ones(512, 512)
        wide @ wide
        torch.relu(wide)
        assert fork_ends(lambda: torch.relu(wide @ wide).sum().item(), seconds=20) is None
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_nothing_is_said_of_a_fork_beside_other_threads():
    going = threading.Event()
    thread = threading.Thread(target=going.wait)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert fork_ends(lambda: None, seconds=20) is None
    finally:
        going.set()
        thread.join()


def test_where_no_process_can_be_made_there_is_no_trial(monkeypatch, caplog):
    def full():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    with caplog.at_level("WARNING", logger="dipo"):
        assert fork_ends(os.abort, seconds=20) is None
    assert "without a trial" in caplog.text
