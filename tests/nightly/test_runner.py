"""Real subprocesses; they wait on files and signals, not on the clock."""

import os
import signal
import sys
import time

import psutil
import pytest

from dipo.nightly.resources import ResourceRequest, Resources
from dipo.nightly.runner import Stop, Task, run_tasks

ONE = ResourceRequest(1, 0)


@pytest.fixture
def task(tmp_path):
    def make(name: str, code: str, **more) -> Task:
        command = (sys.executable, "-c", code)
        return Task(**{"name": name, "command": command, "log": tmp_path / f"{name}.log", "need": ONE, **more})

    return make


def meet(folder, mine: str, other: str) -> str:
    """Code that ends well only while another one runs it, too."""
    return (
        f"import pathlib, time; here = pathlib.Path({str(folder)!r}); (here / {mine!r}).touch()\n"
        f"while not (here / {other!r}).exists(): time.sleep(0.02)"
    )


def stubborn(path) -> str:
    """Code with a child in its group; neither ends when it is asked."""
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    return (
        "import pathlib, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"path = pathlib.Path({str(path)!r}); new = path.with_suffix('.new')\n"
        "new.write_text(str(child.pid)); new.replace(path); time.sleep(600)"
    )


def wait_for(path, seconds: float = 30) -> str:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)
    return path.read_text()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_as_many_run_at_a_time_as_fit(task, tmp_path):
    tasks = [task("a", meet(tmp_path, "a", "b")), task("b", meet(tmp_path, "b", "a"))]
    assert {each.task.name: each.returncode for each in run_tasks(tasks, room=Resources(2, []), stop=Stop())} == {
        "a": 0,
        "b": 0,
    }


@pytest.mark.parametrize(("cpus", "parallel"), [(1, None), (4, 1)])
def test_no_more_run_at_a_time_than_fit_or_are_allowed(task, cpus, parallel):
    tasks = [task(name, "pass") for name in "abc"]
    running, most = set(), 0

    def started(task):
        nonlocal most
        running.add(task.name)
        most = max(most, len(running))

    order = []
    for ended in run_tasks(tasks, room=Resources(cpus, []), stop=Stop(), parallel=parallel, on_start=started):
        running.remove(ended.task.name)
        order.append(ended.task.name)
    assert most == 1
    assert order == ["a", "b", "c"]


def test_a_small_task_does_not_wait_behind_one_that_does_not_fit_yet(task, tmp_path):
    started = []
    tasks = [
        task("first", meet(tmp_path, "first", "small")),
        task("wide", "pass", need=ResourceRequest(2, 0)),
        task("small", meet(tmp_path, "small", "first")),
    ]
    ends = list(run_tasks(tasks, room=Resources(2, []), stop=Stop(), on_start=lambda task: started.append(task.name)))
    assert started == ["first", "small", "wide"]
    assert [each.returncode for each in ends] == [0, 0, 0]


def test_a_failure_is_told_and_the_others_go_on(task, tmp_path):
    tasks = [task("bad", "print('so it is'); raise SystemExit(7)"), task("good", "pass")]
    codes = {each.task.name: each.returncode for each in run_tasks(tasks, room=Resources(1, []), stop=Stop())}
    assert codes == {"bad": 7, "good": 0}
    assert (tmp_path / "bad.log").read_text() == "so it is\n"


def test_what_cannot_be_started_is_told_and_gives_its_room_back(task):
    tasks = [task("none", "", command=("/no/such/program",)), task("good", "pass")]
    ends = {each.task.name: each for each in run_tasks(tasks, room=Resources(1, []), stop=Stop())}
    assert ends["none"].returncode is None
    assert "No such file" in (ends["none"].reason or "")
    assert ends["good"].returncode == 0


def test_each_pinned_task_sees_its_own_gpu(task, tmp_path):
    code = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"
    tasks = [task(name, code, need=ResourceRequest(0, 1), pinned=True) for name in "ab"]
    assert [each.returncode for each in run_tasks(tasks, room=Resources(1, ["4", "6"]), stop=Stop())] == [0, 0]
    assert {(tmp_path / f"{name}.log").read_text().strip() for name in "ab"} == {"4", "6"}


def test_a_timeout_ends_the_whole_group_and_the_next_one_starts(task, tmp_path):
    slow = task("slow", stubborn(tmp_path / "pid"), timeout=0.01)
    ends = list(
        run_tasks(
            [slow, task("next", "pass")],
            room=Resources(1, []),
            stop=Stop(),
            grace=0.1,
            on_start=lambda task: wait_for(tmp_path / "pid"),
        )
    )
    assert [(each.task.name, each.returncode, each.stopped) for each in ends] == [
        ("slow", -signal.SIGKILL, False), ("next", 0, False)
    ]  # fmt: skip
    assert "timeout" in (ends[0].reason or "")
    assert gone(int((tmp_path / "pid").read_text()))


def test_ctrl_c_ends_all_groups_and_the_rest_is_not_started(task, tmp_path):
    tasks = [task("slow", stubborn(tmp_path / "pid")), task("waits", "pass")]
    with Stop() as stop:
        children = []

        def interrupt():
            children.append(int(wait_for(tmp_path / "pid")))
            os.kill(os.getpid(), signal.SIGINT)

        ends = list(run_tasks(tasks, room=Resources(1, []), stop=stop, grace=0.3, on_start=lambda task: interrupt()))
    assert [(each.task.name, each.stopped, each.returncode) for each in ends] == [
        ("slow", True, -signal.SIGKILL), ("waits", True, None)
    ]  # fmt: skip
    assert {each.reason for each in ends} == {"stopped by Ctrl-C"}
    assert gone(children[0])


def test_a_second_signal_does_not_wait_for_the_grace(task, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:

        def interrupt_twice(task):
            wait_for(tmp_path / "pid")
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)

        (ended,) = run_tasks(
            [task("slow", stubborn(tmp_path / "pid"))],
            room=Resources(1, []),
            stop=stop,
            grace=600,
            on_start=interrupt_twice,
        )
    assert (ended.returncode, ended.reason) == (-signal.SIGKILL, "stopped by SIGTERM")
    assert signal.getsignal(signal.SIGINT) is before


def test_leaving_early_ends_what_runs(task, tmp_path):
    def fail(task):
        wait_for(tmp_path / "pid")
        raise RuntimeError("the caller broke")

    ends = run_tasks(
        [task("slow", stubborn(tmp_path / "pid"))], room=Resources(1, []), stop=Stop(), grace=0.1, on_start=fail
    )
    with pytest.raises(RuntimeError, match="the caller broke"):
        list(ends)
    assert gone(int((tmp_path / "pid").read_text()))
