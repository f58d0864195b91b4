"""Whatever is in the files: a job goes through, or ends with one sentence, and leaves no half-written file."""

import sys
from pathlib import Path

import pytest
from fuzz_files import to_npz
from fuzz_jobs import Case, Counts, Server, fuzz, samples_for
from networks import tiny_cnn

ROOT = Path(__file__).parents[1]


def told(counts: Counts) -> str:
    faults = [f"{case.kind} {outcome.what}: {outcome.sentence}\n{outcome.detail}" for case, outcome in counts.faults]
    return "\n".join([*counts.lines(), *faults])


def test_300_odd_jobs_end_well(tmp_path):
    counts = fuzz(300, first_seed=0, folder=tmp_path, servers=2)
    assert counts.jobs == 300
    assert not counts.faults, told(counts)
    outcomes = {what for _, what in counts.outcomes}
    assert outcomes == {"in", "refused"}, told(counts)


@pytest.mark.slow
def test_10000_odd_jobs_end_well(tmp_path, capfd):
    """What `benchmarks/fuzz.py` does, whose counts are in `benchmarks/fuzz.txt`."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from fuzz import fuzz_all
    finally:
        sys.path.pop(0)
    counts = fuzz_all(10_000, first_seed=1, folder=tmp_path, processes=2)
    with capfd.disabled():
        sys.stdout.write("\n" + "\n".join(counts.lines()))
    assert counts.jobs == 10_000
    assert not counts.faults, told(counts)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(60, tmp_path_factory.mktemp("server") / "stderr")
    yield made
    made.close()


def whole_case() -> Case:
    model = tiny_cnn()
    return Case("graph", model.SerializeToString(), to_npz(samples_for(model)), [], whole=True)


def test_a_good_job_goes_in(server, tmp_path):
    found = server.run(whole_case().write(tmp_path), tmp_path)
    assert (found.what, found.sentence) == ("in", "")


ENDS = {
    "refused": "raise UserError('no')",
    "left": "Path('{place}/.x.part').write_text(''); raise UserError('no')",
    "raised": "raise SystemExit(3)",
    "broke": "print('a word more', file=sys.stderr); raise UserError('no')",
    "died": "os.abort()",
    "hung": "time.sleep(60)",
}


@pytest.mark.parametrize("what", ENDS)
def test_each_bad_end_is_told(server, tmp_path, monkeypatch, what):
    """A function of the user's, which gives the samples, ends as no file should be able to."""
    module = [
        "import os, sys, time",
        "from pathlib import Path",
        "from dipo.errors import UserError",
        "def get():",
        f"    {ENDS[what].format(place=tmp_path)}",
    ]
    (server.folder / f"{what}_ending.py").write_text("\n".join(module))
    words = [word for word in whole_case().write(tmp_path) if not word.startswith("data.path")]
    if what == "hung":
        monkeypatch.setattr(server, "limit", 1.0)
    assert server.run([*words, f"data.source={what}_ending:get"], tmp_path).what == what
