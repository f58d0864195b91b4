"""`dipo verify`: have the programs read what dipo wrote that are to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from dipo.cli.command import Command
from dipo.cli.page import command, option_blocks, page, paragraphs, table, wrap
from dipo.cli.words import Line, read_values, texts
from dipo.errors import UserError
from dipo.export.targets import TARGETS
from dipo.section import Between, Called, OneOf, Option, Section, options

DESCRIPTION = """
Loads each file of a run's folder, and of the folders of other targets in it, in its consumer, and says of every \
tensor whether its numbers were accepted, ignored or recomputed, and how far the consumer's outputs are from those of \
quantized.onnx beside the file. A consumer that is not installed is named, and counts as not asked.

Range files are read by dipo itself, too: a file of another form, and a number that is not that of quantized.onnx, is \
refused.
"""
CONSUMERS = {
    "ONNX Runtime": "every .onnx",
    "OpenVINO": "quantized.onnx of platform=openvino",
    "QNN provider": "quantized.onnx of platform=qnn, on the HTP's simulator",
    "AIMET": "the encodings of snpe and qnn",
    "RKNN toolkit 2": "the ranges of rk",
    "protobuf": "the records of atlas and ti, by the vendors' definitions",
}
INSTALL = "pip install 'dipo[verify]' installs OpenVINO; AIMET and RKNN toolkit 2 want environments of their own, see \
docs/verify.md."
STATUS = {
    "0": "No file was refused, and no tensor ignored.",
    "1": "One was.",
    "2": "The command line or the folder is wrong.",
    "130": "Interrupted.",
}


@dataclass(frozen=True)
class VerifyWords(Section, prefix=""):
    """What the command line can say."""

    run: Annotated[str | None, Called("a folder")] = None
    """The folder of a run."""
    file: Annotated[str | None, Called("a file")] = None
    """One file that a run wrote; the models beside it are used."""
    platform: Annotated[str | None, OneOf(TARGETS)] = None
    """Whose file it is, where its name does not say it (quantized.onnx)."""
    samples: Annotated[int, Between(1)] = 32
    """Samples to compute, of the run's data where they are still there, else noise."""
    all: bool = False
    """Name the accepted tensors, too."""

    def __post_init__(self) -> None:
        """Check each option, then which of them go together."""
        super().__post_init__()
        if (self.run is None) == (self.file is None):
            raise UserError("give one of run=FOLDER and file=FILE, as in: dipo verify run=outputs/...")
        if self.platform is not None and self.run is not None:
            raise UserError(
                f"platform={self.platform} goes with file=FILE alone: a run says whose its files are, leave it out"
            )


def run(line: Line) -> int:
    """Ask all consumers; return 1 where one refused a file or ignored a tensor, else 0."""
    return _verify(VerifyWords(**read_values(line.words, _options())))


def _verify(asked: VerifyWords) -> int:
    from rich.console import Console

    from dipo.config import resolve_path
    from dipo.verify.discovery import config_beside, config_of, reported_sqnr, target_of, targets_of
    from dipo.verify.sessions import with_operators_of
    from dipo.verify.terminal import show

    console = Console(highlight=False)
    if asked.run is not None:
        root = Path(asked.run).expanduser()
        targets = targets_of(root)
        config = config_of(root)
        reported = reported_sqnr(root)
        if reported is not None:
            sentence = f"{root}: quantized.onnx against the simulation, as the run found it: {reported:.2f} dB"
            console.print(sentence, markup=False, soft_wrap=True)
    else:
        assert asked.file is not None, "one of the two is given"
        file = Path(asked.file).expanduser()
        root, targets = file.parent, [target_of(file, asked.platform)]
        config = config_beside(file)
    library = (config.get("model") or {}).get("op_library")
    with with_operators_of(None if library is None else resolve_path(library)):
        verdicts = [
            verdict for target in targets for verdict in _judge(target, config.get("data"), asked.samples, console)
        ]
    show(verdicts, console, root=root, every=asked.all)
    return int(any(verdict.failed for verdict in verdicts))


def _judge(target: Any, data: Mapping[str, Any] | None, samples: int, console: Any) -> list[Any]:
    """Return the verdicts of all consumers on a target's files."""
    from dipo.verify.consumers import judge
    from dipo.verify.probe import feed_of, make_probe
    from dipo.verify.verdict import Probe, Refused, Verdict

    model = target.quantized or next((file for file in target.files if file.suffix == ".onnx"), None)
    if model is None:
        raise UserError(f"{target.folder}: no quantized.onnx is there to compare with, leave it beside the file")
    try:
        feed = feed_of(model, data=data, samples=samples)
        probe = make_probe(feed, target.quantized)
    except Refused as answer:
        # Without it nothing can be compared, but the others still may load their files.
        return [Verdict("ONNX Runtime", model, refused=str(answer))]
    num = len(next(iter(probe.inputs.values())))
    console.print(f"{target.folder}: {num} samples {feed.kind}", markup=False, soft_wrap=True)
    assert isinstance(probe, Probe)
    return [verdict for file in target.files for verdict in judge(target, file, probe)]


def _options() -> Mapping[str, Option]:
    return {option.key: option for option in options(VerifyWords)}


def _page(line: Line, width: int) -> str:
    del line
    return page(
        {
            "NAME": [wrap("dipo verify - has the programs read what dipo wrote that are to read it", width)],
            "SYNOPSIS": [
                command("dipo verify run=FOLDER [samples=N] [all=true]", width),
                command("dipo verify file=FILE [platform=NAME] [samples=N] [all=true]", width),
            ],
            "DESCRIPTION": [*paragraphs(DESCRIPTION, width), table(CONSUMERS, width), wrap(INSTALL, width)],
            "FLAGS": [table(texts(VERIFY.flags), width)],
            "OPTIONS": list(option_blocks(VerifyWords, width)),
            "EXIT STATUS": [table(STATUS, width)],
        }
    )


VERIFY = Command(
    "verify",
    "Have each written file read by the program that is to read it.",
    _page,
    run,
    _options,
    program="dipo.verify",
)
main = VERIFY.main
