"""`dipo nightly`: a list of jobs, checked by gates and compared with the night before; and the trend of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dipo.cli.command import Command
from dipo.cli.page import command, option_block, option_blocks, page, paragraphs, table, wrap
from dipo.cli.words import Line, nested, read_values, texts
from dipo.errors import UserError
from dipo.nightly.settings import Config, TrendConfig
from dipo.section import Option, Section, all_options, choose, options, parts

TREND = "trend"
DESCRIPTION = """
Runs the jobs of a YAML file, several at a time where they fit. A job that fails does not stop the others. Each job's \
result is checked against its gates and compared with the last night in which the same job ran to its end, down to the \
first layer that differs. The night is summed up in a table, in files, and in a database of all nights.

trend shows the nights of a job, or of all jobs of a model.
"""
JOBS = """\
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
"""
FILES = {
    "OUT/NIGHT/summary.html": "The night, for people.",
    "OUT/NIGHT/summary.json": "The same for programs.",
    "OUT/NIGHT/junit.xml": "The same for what shows tests.",
    "OUT/NIGHT/JOB/": "The run's folder.",
    "OUT/NIGHT/JOB.log": "What the job printed.",
}
STATUS = {
    "0": "All jobs passed.",
    "1": "A gate failed, or a job broke.",
    "2": "The command line, the jobs file or the history is wrong.",
    "130": "Interrupted.",
    "143": "Ended by SIGTERM.",
}


def run(line: Line) -> int:
    """Run a night and return 1 where a job did not pass, else 0; or show a trend."""
    if line.words and line.words[0] == TREND:
        return _trend(line.words[1:])
    given = nested(read_values(line.words, _known(Config)))
    from rich.console import Console

    from dipo.nightly.night import run_night

    return run_night(given, Console(highlight=False))


def _trend(words: Sequence[str]) -> int:
    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        raise UserError("trend: give one job or model, as in: trend resnet-qdrop last=7")
    config = TrendConfig(**read_values([word for word in words if "=" in word], _known(TrendConfig)))
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


def _known(section: type[Section]) -> Mapping[str, Option]:
    return {option.key: option for option in all_options(section)}


def _page(line: Line, width: int) -> str:
    del line
    sections: list[type[Section]] = [Config, *parts(Config).values()]
    blocks = [block for section in sections for block in option_blocks(section, width)]
    last = next(option for option in options(TrendConfig) if option.name == "last")
    return page(
        {
            "NAME": [
                wrap("dipo nightly - a list of jobs, packed, checked by gates, compared with the night before", width)
            ],
            "SYNOPSIS": [
                command("dipo nightly jobs=FILE [OPTION=VALUE ...]", width),
                command("dipo nightly trend JOB|MODEL [history=...] [out=...] [last=N]", width),
            ],
            "DESCRIPTION": paragraphs(DESCRIPTION, width),
            "FLAGS": [table(texts(NIGHTLY.flags), width)],
            "OPTIONS": [
                *blocks,
                option_block(last, "Nights that trend shows.", width),
                wrap("What is given here wins over the jobs file and over the jobs in it.", width),
            ],
            "JOBS FILE": [
                JOBS.rstrip().splitlines(),
                wrap("Options are those of dipo quantize; all are checked before the first job starts.", width),
            ],
            "FILES": [table(FILES, width)],
            "EXIT STATUS": [table(STATUS, width)],
        }
    )


NIGHTLY = Command(
    "nightly",
    "Run a list of jobs, and compare them with the night before.",
    _page,
    run,
    lambda: {**_known(Config), **_known(TrendConfig)},
    names=lambda: (TREND,),
    program="dipo-nightly",
)
main = NIGHTLY.main
