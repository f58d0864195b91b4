"""What the programs that read dipo's files make of them, on networks with a fixed and with a free batch.

    python benchmarks/consumers.py --rknn ENV/bin/python --aimet ENV/bin/python --qnn ENV/bin/python

The environments are those of docs/verify.md. Each network is quantized for `ort` and written for the other targets;
`dipo.verify` then runs in each environment. In RKNN toolkit's own the lines of docs/platforms.md are run, too, as they
stand there: with a free batch `load_onnx` is given the sizes as the table above them says. Writes
`consumers.txt` beside this script, line by line.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

import dipo
from dipo.export.targets import TARGETS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
SAMPLES = 24
CONSUMERS = {
    "own": r"OpenVINO|for AMCT|for TIDL",
    "rknn": r"RKNN toolkit",
    "aimet": r"AIMET",
    "qnn": r"ONNX Runtime's QNN",
}
"""Pattern of the rows of `dipo verify`, by name of the environment."""


def networks() -> Iterator[tuple[str, onnx.ModelProto, dict[str, np.ndarray]]]:
    """Yields each network, with samples for its inputs, with a free and with a fixed batch."""
    from matrix_networks import CASES  # type: ignore[import-not-found]

    model = onnx.load(ROOT / "dipo" / "zoo" / "mobilenet.onnx")
    images = np.load(ROOT / "dipo" / "zoo" / "digits.npz")["calib_x"][:64].transpose(0, 3, 1, 2)
    digits = {"input": (images / np.float32(255) - np.float32(0.5)) / np.float32(0.5)}
    yield "mobilenet, free batch", model, digits
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del fixed.graph.value_info[:]
    yield "mobilenet, batch of 1", fixed, digits
    for name, case in CASES.items():
        for batch, words in (("N", "free batch"), (1, "batch of 1")):
            built = case(batch=batch)
            yield f"{name}, {words}", built.model, dict(built.samples)


def recipe(*, sizes: str) -> str:
    """The lines for RKNN toolkit 2 as they stand in the documentation, with the sizes that a free batch asks for."""
    page = (ROOT / "docs" / "platforms.md").read_text(encoding="utf-8")
    lines = re.search(r"\*\*rk\*\*.*?\n\n((?:    [^\n]*\n)+)", page, re.DOTALL)
    assert lines is not None
    text = "\n".join(line.strip() for line in lines[1].splitlines())
    return text.replace('load_onnx("deploy.onnx")', f'load_onnx("deploy.onnx"{sizes})')


def run_recipe(python: str, folder: Path, samples: dict[str, np.ndarray], *, free: bool) -> str:
    """Runs the documentation's lines in the folder; says whether the file for the device is there."""
    names = []
    for row in range(SAMPLES):
        files = [f"{number}-{row}.npy" for number in range(len(samples))]
        for file, array in zip(files, samples.values(), strict=True):
            np.save(folder / file, array[row : row + 1])
        names.append(" ".join(files))
    (folder / "samples.txt").write_text("\n".join(names) + "\n")
    shapes = [[1, *array.shape[1:]] for array in samples.values()]
    sizes = f", inputs={list(samples)}, input_size_list={shapes}" if free else ""
    script = f"from rknn.api import RKNN\nimport dipo.export.rknn_config\n{recipe(sizes=sizes)}"
    done = _run([python, "-c", script], cwd=folder)
    file = folder / "net.rknn"
    if file.is_file():
        return f"net.rknn of {file.stat().st_size} bytes"
    said = [line for line in done.splitlines() if re.search(r"Error|ERROR|\bE\b", line)]
    return f"nothing written: {said[-1][:120] if said else 'no reason'}"


def verdicts(python: str, run: Path, pattern: str) -> Iterator[str]:
    """The rows of `dipo verify` on the consumers of an environment, each with its file."""
    file = ""
    for line in _run([python, "-m", "dipo.verify", f"run={run}"], cwd=run).splitlines():
        first = re.match(r"\S+\.(onnx|json|yaml|txt|prototxt|cache)\b", line)
        file = first[0] if first else file
        if re.search(pattern, line) and re.search(r"(ok|failed|refused|unchecked)\s*$", line):
            yield f"{file:40} {line[first.end() :].strip() if first else line.strip()}"
        elif line.startswith("  refused:"):
            yield f"    {line.strip()[:150]}"


def _run(command: list[str], *, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def main() -> None:
    """Prints and writes the table, line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=".", help="pattern of the networks")
    for name in CONSUMERS.keys() - {"own"}:
        parser.add_argument(f"--{name}", help="its environment's interpreter")
    args = parser.parse_args()
    pythons = {"own": sys.executable, **{name: getattr(args, name) for name in ("rknn", "aimet", "qnn")}}
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        Path(__file__).with_suffix(".txt").write_text("\n".join(lines) + "\n")

    only = "" if args.only == parser.get_default("only") else f" --only '{args.only}'"
    say(f"python benchmarks/consumers.py --rknn ... --aimet ... --qnn ...{only}")
    say(f"dipo {dipo.__version__}, w8a8, algo=none")
    say("file, consumer, tensors accepted, ignored, recomputed, SQNR dB against quantized.onnx, agreement %, verdict")
    for name, model, samples in networks():
        if not re.search(args.only, name):
            continue
        say(f"\n{name}")
        with tempfile.TemporaryDirectory() as scratch:
            run = Path(scratch) / "run"
            others = [target for target in TARGETS if target != "ort" and not _refuses(name, target)]
            dipo.quantize(model, samples, folder=run, options={"export.also": others, "cluster.compile": False})
            for environment, pattern in CONSUMERS.items():
                if pythons[environment]:
                    for line in verdicts(str(Path(pythons[environment]).absolute()), run, pattern):
                        say(f"  {line}")
            if pythons["rknn"]:
                made = run_recipe(str(Path(pythons["rknn"]).absolute()), run / "rk", samples, free="free" in name)
                say(f"  {'rk/deploy.onnx':40} the lines of docs/platforms.md: {made}")


def _refuses(network: str, target: str) -> bool:
    """TIDL has no layer for a Where."""
    return target == "ti" and network.startswith("masked")


if __name__ == "__main__":
    main()
