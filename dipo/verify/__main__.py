"""The command line of the checks: `python -m dipo.verify run=outputs/...`."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dipo
from dipo.errors import UserError
from dipo.section import choose

FLAGS = ("--help", "--version")
OPTIONS = {"run": "a folder", "file": "a file", "platform": "a target", "samples": "a whole number", "all": "true"}
SAMPLES = 32
MANUAL = f"""\
NAME
    dipo.verify - has the programs read what dipo wrote that are to read it

SYNOPSIS
    python -m dipo.verify run=FOLDER [samples=N] [all=true]
    python -m dipo.verify file=FILE [platform=NAME] [samples=N] [all=true]

DESCRIPTION
    Loads each file of a run's folder, and of the folders of other targets in
    it, in its consumer, and says of every tensor whether its numbers were
    accepted, ignored or recomputed, and how far the consumer's outputs are
    from those of quantized.onnx beside the file. A consumer that is not
    installed is named, and counts as not asked.

    Range files are read by dipo itself, too: a file of another form, and a
    number that is not that of quantized.onnx, is refused.

    ONNX Runtime    every .onnx
    OpenVINO        quantized.onnx of platform=openvino
    QNN provider    quantized.onnx of platform=qnn, on the HTP's simulator
    AIMET           the encodings of snpe and qnn
    RKNN toolkit 2  the ranges of rk
    protobuf        the records of atlas and ti, by the vendors' definitions

    pip install 'dipo[verify]' installs OpenVINO; AIMET and RKNN toolkit 2 want
    environments of their own, see docs/verify.md.

OPTIONS
    run=FOLDER
        The folder of a run.
    file=FILE
        One file that a run wrote; the models beside it are used.
    platform=NAME
        Whose file it is, where its name does not say it (quantized.onnx).
    samples={SAMPLES}
        Samples to compute, of the run's data where they are still there,
        else noise.
    all=false
        Name the accepted tensors, too.
    -h, --help
        Print this page.
    --version
        Print the version.

EXIT STATUS
    0      No file was refused, and no tensor ignored.
    1      One was.
    2      The command line or the folder is wrong.
    130    Interrupted.
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
        with tempfile.NamedTemporaryFile("w", prefix="dipo-verify-", suffix=".log", delete=False) as file:
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
    words = _words(argv)
    if ("run" in words) == ("file" in words):
        raise UserError("give one of run=FOLDER and file=FILE, as in: python -m dipo.verify run=outputs/...")
    _check_platform(words)
    samples, every = _samples(words.get("samples", str(SAMPLES))), _flag(words.get("all", "false"))
    return _verify(words, samples=samples, every=every)


def _verify(words: Mapping[str, str], *, samples: int, every: bool) -> int:
    from rich.console import Console

    from dipo.verify.folder import config_of, data_beside, reported_sqnr, target_of, targets_of
    from dipo.verify.terminal import show

    console = Console(highlight=False)
    data: Mapping[str, Any] | None = None
    if "run" in words:
        root = Path(words["run"]).expanduser()
        targets = targets_of(root)
        data = config_of(root).get("data")
        reported = reported_sqnr(root)
        if reported is not None:
            sentence = f"{root}: quantized.onnx against the simulation, as the run found it: {reported:.2f} dB"
            console.print(sentence, markup=False, soft_wrap=True)
    else:
        file = Path(words["file"]).expanduser()
        root, targets = file.parent, [target_of(file, words.get("platform"))]
        data = data_beside(file)
    verdicts = [verdict for target in targets for verdict in _judge(target, data, samples, console)]
    show(verdicts, console, root=root, every=every)
    return int(any(verdict.failed for verdict in verdicts))


def _judge(target: Any, data: Mapping[str, Any] | None, samples: int, console: Any) -> list[Any]:
    """What all consumers say of a target's files."""
    from dipo.verify.probe import feed_of, make_probe
    from dipo.verify.table import judge
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


def _words(argv: Sequence[str]) -> dict[str, str]:
    words = {}
    for word in argv:
        if word.startswith("-"):
            raise UserError(f"unknown flag '{word}': {choose(word, FLAGS)}")
        key, equals, value = word.lstrip("+").partition("=")
        if key not in OPTIONS:
            raise UserError(f"unknown option '{key}': {choose(key, OPTIONS)}")
        if not equals or not value:
            raise UserError(f"{key} has no value: give {OPTIONS[key]}")
        words[key] = value
    return words


def _check_platform(words: Mapping[str, str]) -> None:
    from dipo.export.targets import TARGETS

    platform = words.get("platform")
    if platform is not None and "run" in words:
        raise UserError(f"platform={platform} goes with file=FILE alone: a run says whose its files are, leave it out")
    if platform is not None and platform not in TARGETS:
        raise UserError(f"platform '{platform}': {choose(platform, TARGETS)}")


def _samples(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"samples '{text}': give a whole number >= 1")
    return int(text)


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise UserError(f"all '{text}': give true or false")
    return text == "true"


def _complain(sentence: str) -> None:
    sys.stderr.write(f"dipo.verify: {' '.join(sentence.split())}\n")


if __name__ == "__main__":
    sys.exit(main())
