"""The manual page that `--help` prints: made of the presets, and of the options with their types, defaults and docs."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from dipo.config import Config
from dipo.config.presets import default_choices, find_presets, summary
from dipo.section import Option, Section, options, parts, show

DESCRIPTION = """
dipo takes a float ONNX model and calibration samples, and gives back a quantized ONNX model, a range file for the \
deploy target, and a report that says how much was lost and where. It does so in one process, on the CPUs or GPUs of a \
machine, or on a Ray cluster, and the answer does not depend on how many workers helped.

A job starts from presets, one of each group: GROUP=CHOICE picks one. OPTION=VALUE sets one thing, and always wins \
over the presets. A leading + or ++ is allowed everywhere. Lists are written [a,b], mappings {a:1,b:2}, and \
nothing is null; a list of one needs no brackets, and a path no quotes beyond those of the shell.
"""
FLAGS = {
    "-h, --help": "Print this page.",
    "--version": "Print the version.",
    "--cfg": "Print the configuration that the command line makes, as YAML, and stop.",
    "--config-dir DIR": "Look for presets in DIR, too: model=mine is then DIR/model/mine.yaml. A folder named conf in "
    "the working directory is looked into without this flag.",
}
FILES = {
    "config.yaml": "The configuration, complete.",
    "fingerprint.json": "What the results depend on: a run is resumed with the same, or not at all.",
    "dipo.log": "What happened, with the time of each stage and unit.",
    "events.jsonl": "The same for programs, an event a line.",
    "workers/*.log": "What Ray's workers logged.",
    "statistics.safetensors": "What calibration saw.",
    "units/*.safetensors": "Finished units: integer weights, scales, biases. A run that was ended goes on behind them.",
    "network.safetensors": "The quantized network, from which dipo.export makes other targets' files.",
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
    "python -m dipo.export writes them later.",
    "dipo run.resume=outputs/2026-11-23/09-30-00-net-qdrop cluster.workers=2": "Go on with a run that was ended.",
    "dipo +model=mobilenet experiment=smoke cluster=inline": "Does everything run? Seconds, in this process.",
}


MARGIN = 4


def manual(*, width: int, own: Sequence[Path] = ()) -> str:
    """The page, wrapped to `width` columns (40 at least, 120 at most).

    Args:
        width: Columns of the terminal.
        own: The user's folders of presets, whose choices are listed, too.
    """
    width = min(max(width, 40), 120)
    description = [_wrap(paragraph, width) for paragraph in DESCRIPTION.strip().split("\n\n")]
    examples = [[*_command(command, width), *_wrap(text, width, 2 * MARGIN)] for command, text in EXAMPLES.items()]
    chapters = {
        "NAME": [_wrap("dipo - distributed post-training quantization of ONNX models", width)],
        "SYNOPSIS": [
            _wrap("dipo [FLAG ...] [GROUP=CHOICE ...] [OPTION=VALUE ...]", width),
            _wrap("python -m dipo.launch is the same as dipo.", width),
        ],
        "DESCRIPTION": description,
        "FLAGS": [_table(FLAGS, width)],
        "GROUPS": list(_groups(own, width)),
        "OPTIONS": list(_options(width)),
        "FILES": [_wrap("The folder of a run, run.dir, holds:", width), _table(FILES, width)],
        "EXIT STATUS": [_table(STATUS, width)],
        "EXAMPLES": examples,
    }
    pages = (f"{title}\n" + "\n\n".join("\n".join(block) for block in blocks) for title, blocks in chapters.items())
    return "\n\n".join(pages)


def _wrap(text: str, width: int, margin: int = MARGIN) -> list[str]:
    indent = " " * margin
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _command(command: str, width: int) -> list[str]:
    """A command to copy: its lines but the last end in a backslash."""
    *lines, last = _wrap(command, width - 2)
    return [*(f"{line} \\" for line in lines), last]


def _table(rows: Mapping[str, str], width: int, margin: int = MARGIN) -> list[str]:
    """Terms, and beside them (below them where the page is narrow) what they mean."""
    column = margin + max(map(len, rows)) + 2
    lines = []
    for term, text in rows.items():
        if column > width // 2:
            lines += [" " * margin + term, *_wrap(text, width, margin + MARGIN)]
        else:
            first, *rest = _wrap(text, width, column)
            lines += [f"{' ' * margin}{term}".ljust(column) + first.lstrip(), *rest]
    return lines


def _groups(own: Sequence[Path], width: int) -> Iterator[list[str]]:
    """A block for each group: its choices and what they are."""
    defaults = default_choices()
    for group, presets in find_presets(own).items():
        rows = {
            choice: summary(file) + (" (default)" if choice == defaults[group] else "")
            for choice, file in presets.items()
        }
        yield [" " * MARGIN + f"{group}=", *_table(rows, width, 2 * MARGIN)]


def _options(width: int) -> Iterator[list[str]]:
    """A block for each option: its default, what it is, and its type."""
    every: list[type[Section]] = [Config, *parts(Config).values()]
    for section in every:
        docs = docs_of(section)
        yield _wrap(f"{section.__doc__}".upper().rstrip("."), width)
        for option in options(section):
            text = f"{docs[option.name]} ({_type(option)})"
            yield [f"{' ' * MARGIN}{option.key}={_plain(option.default)}", *_wrap(text, width, 2 * MARGIN)]


def docs_of(section: type[Section]) -> dict[str, str]:
    """Return what stands beneath each field in the source, of the section or of the class that it inherits it from."""
    docs: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if base is not Section and issubclass(base, Section):
            docs |= _own_docs(base)
    return docs


def _own_docs(section: type[Section]) -> dict[str, str]:
    docs = {}
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    for statement, below in pairwise(definition.body):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs


def _type(option: Option) -> str:
    """The option's type and limits, as in `list of float above 0, or null`."""
    name = option.type.__name__
    limit = str(option.limit or "").replace("|", " | ")
    words = limit if option.type is str and limit else f"{name} {limit}".rstrip()
    return "list of " * option.is_list + words + ", or null" * option.optional


def _plain(value: object) -> str:
    """A default as the user would type it."""
    return value if isinstance(value, str) else show(value)
