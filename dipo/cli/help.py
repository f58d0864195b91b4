"""Pages of help: one that fits a screen, and the manual, made of the presets and of the options with their docs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dipo.cli.page import MARGIN, command, examples, option_blocks, page, paragraphs, table, wrap
from dipo.cli.words import Flag, texts
from dipo.config import Config
from dipo.config.presets import default_choices, find_presets, summary
from dipo.section import Section, parts

FIRST_EXAMPLES = (
    "dipo +model=mobilenet +algo=brecq",
    "dipo model.path=net.onnx data.path=samples/ +algo=qdrop platform=trt",
    "dipo export run=outputs/2026-11-23/09-30-00-net-qdrop platform=[snpe,ti]",
)
MORE = {
    "dipo help algo": "One group and its options; so for the others.",
    "dipo help options": "All choices, all options, files of a run, exit status.",
    "dipo help export": "One command; dipo export --help is the same.",
    "docs/": "In the repository: algorithms, platforms, cluster.",
}
DESCRIPTION = """
dipo takes a float ONNX model and calibration samples, and gives back a quantized ONNX model, a range file for the \
deploy target, and a report that says how much was lost and where. It does so in one process, on the CPUs or GPUs of a \
machine, or on a Ray cluster, and the answer does not depend on how many workers helped.

A job starts from presets, one of each group: GROUP=CHOICE picks one. OPTION=VALUE sets one thing, and always wins \
over the presets. A leading + or ++ is allowed everywhere. Lists are written [a,b], mappings {a:1,b:2}, and \
nothing is null; a list of one needs no brackets, and a path no quotes beyond those of the shell.
"""
FILES = {
    "config.yaml": "The configuration, complete.",
    "fingerprint.json": "What the results depend on: a run is resumed with the same, or not at all.",
    "dipo.log": "What happened, with the time of each stage and unit.",
    "events.jsonl": "The same for programs, an event a line.",
    "workers/*.log": "What Ray's workers logged.",
    "statistics.safetensors": "What calibration saw.",
    "units/*.safetensors": "Finished units: integer weights, scales, biases. A run that was ended goes on behind them.",
    "network.safetensors": "The quantized network, from which dipo export makes other targets' files.",
    "quantized.onnx": "The quantized model; beside it, but for ort and openvino, the platform's range files and "
    "deploy.onnx, the float network that they belong to.",
    "TARGET/": "The files for another target of export.also.",
    "written.list": "The paths of all the targets' files: those that are not written again are removed.",
    "report.json": "Accuracy, errors end to end and by layer, seconds, memory.",
}
STATUS = {
    "0": "Done.",
    "1": "The run broke; the reason is said, and more is in the log.",
    "2": "The command line, the model or the data is wrong: one sentence says what.",
    "130": "Interrupted (Ctrl-C); what is finished is kept.",
    "143": "Terminated (SIGTERM); what is finished is kept.",
}
EXAMPLES = {
    "dipo +model=mobilenet +algo=brecq": "Quantize the model that comes with dipo, rounding learned block by block.",
    "dipo model.path=net.onnx data.path=samples/ +algo=qdrop precision=w4a4": "Your own model and samples, 4 bits.",
    "dipo model.path=net.onnx data.path=samples/ platform=trt cluster.workers=8": "For TensorRT, with eight workers.",
    "dipo model.path=net.onnx data.path=samples/ +algo=qdrop export.also=[snpe,ti]": "Two more targets' files; "
    "dipo export writes them later.",
    "dipo run.resume=outputs/2026-11-23/09-30-00-net-qdrop cluster.workers=2": "Go on with a run that was ended.",
    "dipo +model=mobilenet experiment=smoke cluster=inline": "Does everything run? Seconds, in this process.",
}

FRONT = """
Distributed post-training quantization: takes a float ONNX model and calibration samples; gives back a quantized ONNX \
model, a range file for the deploy target, and a report of how much was lost and where.
"""
OFTEN = {
    "model.path=net.onnx": "The model.",
    "data.path=samples/": "Samples: an .npz or .npy file, images, or .bin files.",
    "data.num=512": "How many of them to calibrate with.",
    "algo.iters=2000": "Optimizer steps for each unit.",
    "precision.skip=[/fc]": "Nodes that stay float, by patterns of their names.",
    "export.also=[snpe,ti]": "Files for these targets, too.",
    "cluster.workers=8": "Workers; null: one for each GPU, 2 without.",
    "run.dir=out": "The folder of the run.",
    "run.resume=out": "Go on with a run that was ended.",
    "dry_run=true": "Check everything and say what would be done.",
}
"""The options that a first job wants."""
TOPICS = ("options",)
"""What `dipo help` explains besides commands, groups and sections."""


def front_page(*, width: int, commands: Mapping[str, str], own: Sequence[Path] = ()) -> str:
    """Return what fits a screen: what dipo does, its commands, groups, most used options, and where to read on.

    Args:
        width: Columns of the page.
        commands: What each does.
        own: The user's folders of presets, whose choices are listed, too.
    """
    groups = {f"{group}=": " ".join(presets) for group, presets in find_presets(own).items()}
    return page(
        {
            "USAGE": [
                wrap("dipo [COMMAND] [FLAG ...] [GROUP=CHOICE ...] [OPTION=VALUE ...]", width),
                wrap(FRONT.strip(), width),
            ],
            "COMMANDS": [table(commands, width)],
            "GROUPS of presets, from which a job starts": [table(groups, width)],
            "OPTIONS, ten of the most used, which win over presets": [table(OFTEN, width)],
            "EXAMPLES": [[line for words in FIRST_EXAMPLES for line in command(words, width)]],
            "MORE": [table(MORE, width)],
        }
    )


def manual(*, width: int, flags: Sequence[Flag], own: Sequence[Path] = ()) -> str:
    """Return the whole manual of quantizing.

    Args:
        width: Columns of the page.
        flags: Those of the command.
        own: The user's folders of presets, whose choices are listed, too.
    """
    sections = (_section(section, width) for section in _sections())
    return page(
        {
            "NAME": [wrap("dipo - distributed post-training quantization of ONNX models", width)],
            "SYNOPSIS": [
                wrap("dipo [quantize] [FLAG ...] [GROUP=CHOICE ...] [OPTION=VALUE ...]", width),
                wrap("python -m dipo and python -m dipo.launch are the same as dipo.", width),
            ],
            "DESCRIPTION": paragraphs(DESCRIPTION, width),
            "FLAGS": [table(texts(flags), width)],
            "GROUPS": list(_groups(own, width)),
            "OPTIONS": [block for blocks in sections for block in blocks],
            "FILES": [wrap("The folder of a run, run.dir, holds:", width), table(FILES, width)],
            "EXIT STATUS": [table(STATUS, width)],
            "EXAMPLES": examples(EXAMPLES, width),
        }
    )


def topic_page(topic: str, *, width: int, own: Sequence[Path] = ()) -> str:
    """Return the choices of a group, and the options of a section, of that name.

    Args:
        topic: Its name.
        width: Columns of the page.
        own: The user's folders of presets, whose choices are listed, too.
    """
    chapters: dict[str, list[list[str]]] = {}
    if topic in find_presets(own):
        chapters["GROUP"] = list(_groups(own, width, only=topic))
    if topic in parts(Config):
        chapters["OPTIONS"] = list(option_blocks(parts(Config)[topic], width))
    return page(chapters)


def topics(own: Sequence[Path] = ()) -> list[str]:
    """Return what there is a page of, besides the commands."""
    return list(dict.fromkeys([*TOPICS, *find_presets(own), *parts(Config)]))


def _sections() -> list[type[Section]]:
    return [Config, *parts(Config).values()]


def _section(section: type[Section], width: int) -> list[list[str]]:
    return [wrap(f"{section.__doc__}".upper().rstrip("."), width), *option_blocks(section, width)]


def _groups(own: Sequence[Path], width: int, *, only: str | None = None) -> Iterator[list[str]]:
    """Yield a block for each group: its choices and what they are."""
    defaults = default_choices()
    for group, presets in find_presets(own).items():
        rows = {
            choice: summary(file) + (" (default)" if choice == defaults[group] else "")
            for choice, file in presets.items()
        }
        if only in (None, group):
            yield [" " * MARGIN + f"{group}=", *table(rows, width, 2 * MARGIN)]
