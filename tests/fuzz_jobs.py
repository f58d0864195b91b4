"""Jobs for the fuzz tests: files and command lines that hypothesis makes, run by a process that they may end."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fuzz_files import damaged_bytes, damaged_models, damaged_numbers, damaged_samples, odd_options, to_npz
from fuzz_graphs import fixed_graphs, graphs
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

TYPES = {1: "f4", 10: "f2", 11: "f8", 7: "i8", 6: "i4", 9: "?"}
SAMPLES = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """One job: what lies in its folder, and what is typed."""

    kind: str
    model: bytes
    samples: bytes
    options: list[str]
    whole: bool
    """It is run, not only prepared."""

    def write(self, folder: Path) -> list[str]:
        """Write the files, and return the command line."""
        (folder / "net.onnx").write_bytes(self.model)
        (folder / "samples.npz").write_bytes(self.samples)
        words = [f"model.path={folder}/net.onnx", f"data.path={folder}/samples.npz", f"run.dir={folder}/run"]
        words += ["cluster=inline", "cluster.compile=false", "cluster.threads=1"]
        return [*words, f"dry_run={not self.whole}", *self.options]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    what: str
    """`in`, `refused`, or what may not be: `raised`, `broke`, `died`, `hung`, `left`."""
    sentence: str
    detail: str = ""
    """Traceback, if there is one."""
    seconds: float = 0.0

    @property
    def is_fault(self) -> bool:
        return self.what not in ("in", "refused")

    @property
    def sentence_kind(self) -> str:
        """The sentence without what differs from one file to the next."""
        text = re.sub(r"^dipo: ", "", self.sentence)
        text = re.sub(r"(model|data)\.path=\S+?: ", r"\1.path: ", text)
        text = re.sub(r"\([^()]*(\([^()]*\))?[^()]*\)", "(...)", re.sub(r"/\S+", "PATH", text))
        text = re.sub(r"'[^']*'|\"[^\"]*\"", "_", text)
        return re.sub(r"-?\d[\d.e+x]*", "N", text)[:110]


class Server:
    """The process that runs command lines; where one ends it, the next starts another."""

    def __init__(self, limit: float, errors: Path) -> None:
        """Start nothing yet.

        Args:
            errors: File for its standard error.
            limit: Seconds after which a job hangs.
        """
        self.limit, self._errors, self.folder = limit, errors, errors.parent
        self._process: subprocess.Popen[str] | None = None

    def run(self, words: list[str], folder: Path, *, anew: bool = True) -> Outcome:
        """Run a command line whose files are in a folder.

        Args:
            words: Its words.
            folder: The folder.
            anew: See `fuzz_server`.
        """
        before = set(folder.rglob("*"))
        began = time.monotonic()
        answer = self._ask({"words": words, "anew": anew})
        seconds = time.monotonic() - began
        if isinstance(answer, Outcome):
            return dataclasses.replace(answer, seconds=seconds)
        left = set(folder.rglob("*")) - before
        sentence, detail = answer["stderr"].strip(), "\n".join(answer["logs"])
        if answer["status"] is None:
            what, sentence = "raised", answer["raised"]
        elif "Traceback" in sentence or answer["logs"]:
            what = "raised"
        elif answer["status"] == 0:
            what = "left" if any(path.name.endswith(".part") for path in left) else "in"
        elif answer["status"] != 2 or not sentence.startswith("dipo: ") or "\n" in sentence:
            what = "broke"
        else:
            what = "left" if left else "refused"
        return Outcome(what, sentence, detail or ", ".join(map(str, sorted(left))) * (what == "left"), seconds)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any] | Outcome:
        process = self._process
        if process is None:
            process = self._process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], self.limit)[0]:
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.2)
            text = self._told()
            self.close()
            return Outcome("hung", f"more than {self.limit} s", text)
        line = process.stdout.readline()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        status = process.wait()
        text = self._told()
        self._process = None
        return Outcome("died", signal.Signals(-status).name if status < 0 else f"status {status}", text)

    def _told(self) -> str:
        return self._errors.read_text(errors="replace")[-6000:]

    def _start(self) -> subprocess.Popen[str]:
        here = Path(__file__).parent
        paths = [str(here.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self._errors.write_text("")
        process = subprocess.Popen(
            [sys.executable, here / "fuzz_server.py", self._errors],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=self.folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "{}\n", self._told()
        return process

    def close(self) -> None:
        """End the process, and what it has started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def samples_for(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return samples by name of the input."""
    rng = np.random.default_rng(0)
    held = {tensor.name for tensor in model.graph.initializer}
    arrays = {}
    for value in model.graph.input:
        if value.name not in held:
            tensor = value.type.tensor_type
            shape = [dim.dim_value or 4 for dim in tensor.shape.dim]
            # An input whose first size is its own, unlike the others', has no batch.
            shape = [SAMPLES, *shape[1:]] if shape and not (arrays and tensor.shape.dim[0].dim_value) else shape
            arrays[value.name] = rng.normal(size=shape).astype(TYPES.get(tensor.elem_type, "f4"))
    return arrays


def with_weights_beside(draw: Any, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy one of whose weights is said to be in another file, which is not there, or not as it says."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = [tensor for tensor in copy.graph.initializer if tensor.raw_data]
    if tensors:
        tensor = draw(st.sampled_from(tensors))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        told = {
            "location": draw(
                st.sampled_from(["absent.bin", "../../etc/passwd", "", ".", "net.onnx", "/dev/zero", "a" * 400])
            ),
            "offset": draw(st.sampled_from(["0", "-1", "999999999999", "x", "4096"])),
            "length": draw(st.sampled_from(["4", "-1", "999999999999999", "", "0"])),
        }
        for key in draw(st.sampled_from([["location"], ["location", "offset"], ["location", "offset", "length"], []])):
            tensor.external_data.add(key=key, value=told[key])
    return copy


FIXED = fixed_graphs()
KINDS = ["graph"] * 5 + ["fields"] * 4 + ["numbers"] * 4 + ["bytes"] * 3 + ["samples"] * 3 + ["beside", "options"]


@st.composite
def cases(draw: Any) -> Case:
    """Return jobs of all kinds."""
    kind = draw(st.sampled_from(KINDS))
    whole = draw(st.integers(0, 9)) == 0
    made = kind == "graph" or (kind in ("fields", "numbers") and draw(st.integers(0, 3)) == 0)
    model = draw(graphs()) if made else draw(st.sampled_from(FIXED))
    arrays = samples_for(model)
    options = draw(odd_options()) if kind == "options" else []
    if whole and kind != "options":
        options = [draw(st.sampled_from(["algo=none", "algo=bias_correction"]))]
    if kind == "fields":
        model = draw(damaged_models(model))
    if kind == "numbers":
        model = draw(damaged_numbers(model))
    if kind == "beside":
        model = with_weights_beside(draw, model)
    try:
        content = model.SerializeToString()
    except ValueError:  # a name that is no text
        content = b""
    content = draw(damaged_bytes(content)) if kind == "bytes" and content else content
    samples = draw(damaged_samples(arrays)) if kind == "samples" and arrays else to_npz(arrays)
    return Case(kind, content, samples, options, whole)


@dataclasses.dataclass
class Counts:
    """Outcomes of many jobs."""

    jobs: int = 0
    outcomes: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    """By kind of the job and outcome."""
    sentences: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: list[tuple[Case, Outcome]] = dataclasses.field(default_factory=list)
    slowest: float = 0.0

    def add(self, case: Case, outcome: Outcome) -> None:
        """Count a job."""
        self.jobs += 1
        self.outcomes[case.kind, outcome.what] += 1
        self.slowest = max(self.slowest, outcome.seconds)
        if outcome.what == "refused":
            self.sentences[outcome.sentence_kind] += 1
        if outcome.is_fault:
            self.faults.append((case, outcome))

    def add_all(self, other: Counts) -> None:
        """Add the counts of other jobs."""
        self.jobs += other.jobs
        self.outcomes += other.outcomes
        self.sentences += other.sentences
        self.faults += other.faults
        self.slowest = max(self.slowest, other.slowest)

    def lines(self) -> Iterator[str]:
        """Yield a table of outcomes by kind of job, and the sentences with their numbers."""
        whats = ["in", "refused", *sorted({what for _, what in self.outcomes} - {"in", "refused"})]
        yield "".join([f"{'':10}", *(f"{what:>9}" for what in whats)])
        for kind in sorted(set(KINDS)):
            yield "".join([f"{kind:10}", *(f"{self.outcomes[kind, what]:9}" for what in whats)])
        total = [sum(n for (_, found), n in self.outcomes.items() if found == what) for what in whats]
        yield "".join([f"{'all':10}", *(f"{number:9}" for number in total)])
        yield f"slowest {self.slowest:.1f} s"
        yield ""
        for sentence, number in self.sentences.most_common():
            yield f"{number:6}  {sentence}"


def make_cases(number: int, *, first_seed: int) -> list[Case]:
    """Return so many jobs, the same ones for a seed."""
    made: list[Case] = []

    @seed(first_seed)
    @settings(
        max_examples=number, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases())
    def take(case: Case) -> None:
        made.append(case)

    take()
    return made


def fuzz(
    number: int, *, first_seed: int, folder: Path, servers: int = 1, limit: float = 60.0, faults: Path | None = None
) -> Counts:
    """Run so many jobs.

    Args:
        number: Of jobs.
        first_seed: What they are made from.
        folder: Where their files lie; they are removed after each.
        servers: Processes that run them.
        limit: Seconds after which a job hangs.
        faults: Folder in which the files of jobs that ended badly are kept; None: nowhere.
    """
    counts, places = Counts(), [folder / f"server{index}" for index in range(servers)]
    numbered = list(enumerate(make_cases(number, first_seed=first_seed)))

    def run_share(index: int) -> list[tuple[Case, Outcome]]:
        place = places[index]
        place.mkdir(parents=True)
        server = Server(limit, place / "stderr")
        try:
            done = []
            for job, case in numbered[index::servers]:
                kept = None if faults is None else faults / f"{first_seed}-{job}"
                done.append((case, _run(case, server, place / "job", kept)))
            return done
        finally:
            server.close()

    with ThreadPoolExecutor(servers) as pool:
        for case, outcome in itertools.chain(*pool.map(run_share, range(servers))):
            counts.add(case, outcome)
    return counts


def _run(case: Case, server: Server, place: Path, kept: Path | None) -> Outcome:
    place.mkdir()
    words = case.write(place)
    outcome = server.run(words, place, anew=case.kind == "options")
    if outcome.is_fault and kept is not None:
        shutil.copytree(place, kept, dirs_exist_ok=True)
        text = f"{outcome.what}: {outcome.sentence}\n{' '.join(words)}\n{outcome.detail}\n"
        (kept / "outcome.txt").write_text(text.replace(str(place), str(kept)))
    shutil.rmtree(place)
    return outcome
