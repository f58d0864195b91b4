"""The command line of the nightly runner: `python -m dipo.nightly jobs=nightly.yaml`, and the trend of a job."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Sequence

import dipo
from dipo.errors import UserError
from dipo.nightly.settings import Config, TrendConfig, read_words
from dipo.section import choose, from_plain

FLAGS = ("--help", "--version")
MANUAL = """\
NAME
    dipo-nightly - a list of dipo jobs, packed, checked by gates and compared
    with the night before

SYNOPSIS
    dipo-nightly jobs=FILE [OPTION=VALUE ...]
    dipo-nightly trend JOB|MODEL [history=...] [out=...] [last=N]
    python -m dipo.nightly is the same as dipo-nightly.

DESCRIPTION
    Runs the jobs of a YAML file, several at a time where they fit. A job that
    fails does not stop the others. Each job's result is checked against its
    gates and compared with the last night in which the same job ran to its
    end, down to the first layer that differs. The night is summed up in a
    table, in files, and in a database of all nights.

    trend shows the nights of a job, or of all jobs of a model.

OPTIONS
    jobs=FILE
        The jobs file.
    out=outputs/nightly
        Folder of the nights; each has a folder of its own in it.
    history=FILE or URL
        The database: a SQLite file, or a URL that SQLAlchemy knows; by
        default history.sqlite in the folder of the nights.
    parallel=N
        Jobs at a time; null, the default: as many as fit.
    cluster.address=ADDRESS
        Ray to join, for jobs with cluster=ray; null, the default: a private
        one, which all jobs of the night share.
    cluster.cpus=N
        CPUs of this machine to share out; null, the default: all.
    gate.max_top1_drop=POINTS
        Points of top-1 that a deployed model may lose against FP32.
    gate.min_cosine=X
        Least cosine of the deployed model's outputs with FP32's.
    gate.max_minutes=MINUTES
        Minutes that a job may take.
    gate.timeout_minutes=MINUTES
        Minutes after which a job is ended, and counts as broken; null, the
        default: twice gate.max_minutes.
    last=14
        Nights that trend shows.
    -h, --help
        Print this page.
    --version
        Print the version.

    What is given here wins over the jobs file and over the jobs in it.

JOBS FILE
    defaults: [cluster=inline, precision=w8a8]   # options of every job
    gate: {max_top1_drop: 1.0, max_minutes: 30}  # gates of every job
    parallel: null
    cluster: {address: null, cpus: null}
    jobs:
      - name: resnet-w4a4
        options: [model.path=resnet.onnx, data.path=x.npz, precision=w4a4]
        gate: {max_top1_drop: 3.0}               # these win over those above
    matrix:               # every model with every algorithm on every platform
      models: {resnet: [model.path=resnet.onnx, data.path=x.npz]}
      algos: [qdrop, brecq]                      # or name: [options] pairs
      platforms: [ort, trt]                      # resnet-qdrop-ort, ...

    Options are those of python -m dipo.launch; all are checked before the
    first job starts.

FILES
    OUT/NIGHT/summary.html, summary.json, junit.xml
    OUT/NIGHT/JOB/          The run's folder.
    OUT/NIGHT/JOB.log       What the job printed.

EXIT STATUS
    0      All jobs passed.
    1      A gate failed, or a job broke.
    2      The command line, the jobs file or the history is wrong.
    130    Interrupted.
    143    Ended by SIGTERM.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`, by default the process's own, and returns the exit status."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except Exception as error:  # noqa: BLE001 - whatever broke, the user reads a sentence and finds the rest in a log
        with tempfile.NamedTemporaryFile("w", prefix="dipo-nightly-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        reason = next(iter(str(error).splitlines()), "no more is known")
        _complain(f"{type(error).__name__}: {reason} (traceback in {file.name})")
        return 1


def _run(argv: Sequence[str]) -> int:
    if {"-h", "--help"} & {*argv}:
        sys.stdout.write(MANUAL)
        return 0
    if "--version" in argv:
        sys.stdout.write(f"dipo {dipo.__version__}\n")
        return 0
    unknown = next((word for word in argv if word.startswith("-")), None)
    if unknown is not None:
        raise UserError(f"unknown flag '{unknown}': {choose(unknown, FLAGS)}")
    if argv and argv[0] == "trend":
        return _trend(argv[1:])
    given = read_words(Config, argv)
    from rich.console import Console

    from dipo.nightly.night import run_night

    return run_night(given, Console(highlight=False))


def _trend(words: Sequence[str]) -> int:
    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        raise UserError("trend: give one job or model, as in: trend resnet-qdrop last=7")
    config = from_plain(TrendConfig, read_words(TrendConfig, [word for word in words if "=" in word]))
    from rich.console import Console

    from dipo.nightly.night import open_history
    from dipo.nightly.terminal import show_trend

    history = open_history(config.out, config.history, create=False)
    try:
        found = history.of(names[0], last=config.last)
        if not found:
            known = history.names()
            raise UserError(f"trend: unknown job or model '{names[0]}': {choose(names[0], known or ['none yet'])}")
    finally:
        history.close()
    show_trend(found, Console(highlight=False))
    return 0


def _complain(sentence: str) -> None:
    sys.stderr.write(f"dipo-nightly: {' '.join(sentence.split())}\n")


if __name__ == "__main__":
    sys.exit(main())
