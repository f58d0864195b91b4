"""Every method on every network at every precision, in one table.

    python benchmarks/methods.py [--networks digits,resnet20,mobilenet_v1] [--precisions w4a4,...] [--rows PATTERN]

Each cell is one job in this process, with `cluster=inline` and one seed; the figures are those of `report.json`, of the
written model in ONNX Runtime on samples that calibration did not see. Methods that train have the same number of steps
for each unit, fewer than the default, so that the table can be made in an hour on two cores. What is there already is
kept, cell by cell, in `methods-NETWORK.json` beside this script, and only what the options name is run (again);
`methods.txt` is drawn from these files.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import dipo
from dipo.config import compose_config
from dipo.errors import JobError, UserError
from dipo.stages.pipeline import run_silently

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
NETWORKS = {
    "digits": ["+model=mobilenet"],
    "resnet20": [
        f"model.path={SHARED / 'resnet20_cifar10.onnx'}",
        "data=cifar10",
        f"data.path={SHARED / 'cifar10_subset.npz'}",
        "data.num=512",
        "data.eval_num=1000",
    ],
    "mobilenet_v1": [
        f"model.path={SHARED / 'mobilenet_v1_025_224.onnx'}",
        f"data.path={SHARED / 'imagenet_subset'}",
        "data.mean=0.5",
        "data.std=0.5",
    ],
}
PRECISIONS = ("w8a8", "w4a8", "w4a4", "w2a4")
STEPS = 80
TRAINED = f"algo.iters={STEPS}"
PER_TENSOR = "precision.weight_per_channel=false"
ROWS = {
    "rounded to nearest (mse ranges)": "",
    "activations minmax": "calib=minmax",
    "activations percentile 99.99": "calib=percentile",
    "activations kl": "calib=kl",
    "activations octav": "calib=octav",
    "weights minmax": "calib.weights=minmax",
    "weights percentile 99.99": "calib.weights=percentile",
    "weights symmetric": "precision.weight_symmetric=true",
    "power-of-two scales": "precision.power_of_two=true",
    "per tensor": f"{PER_TENSOR}",
    "per tensor, equalize": f"{PER_TENSOR} +algo=equalize",
    "per tensor, equalize, bias correction": f"{PER_TENSOR} algo.steps=[equalize,bias_correction]",
    "per tensor, dfq (no samples)": f"{PER_TENSOR} +algo=dfq",
    "equalize": "+algo=equalize algo.equalize_per_channel=true",
    "dfq (no samples)": "+algo=dfq",
    "bias correction": "+algo=bias_correction",
    "bias correction from BatchNorm": "+algo=bias_correction algo.bias_source=batchnorm",
    "update_bn": "+algo=update_bn",
    "update_bn, bias correction": "algo.steps=[update_bn,bias_correction]",
    "gptq": "+algo=gptq",
    "adaround": f"+algo=adaround {TRAINED}",
    "brecq": f"+algo=brecq {TRAINED}",
    "qdrop": f"+algo=qdrop {TRAINED}",
    "brecq, stages": f"+algo=brecq algo.unit=stage {TRAINED}",
    "brecq, whole network": f"+algo=brecq algo.unit=network {TRAINED}",
    "brecq, Fisher diagonal": f"+algo=brecq algo.loss=fisher {TRAINED}",
    "brecq, norm 2.4": f"+algo=brecq algo.loss_norm=2.4 {TRAINED}",
    "brecq, float inputs": f"+algo=brecq algo.inputs=float {TRAINED}",
    "brecq, straight-through": f"+algo=brecq algo.rounding=straight_through {TRAINED}",
    "brecq, weight scales trained": f"+algo=brecq algo.train_scale=true {TRAINED}",
    "brecq, biases not trained": f"+algo=brecq algo.train_bias=false {TRAINED}",
    "qdrop, activation scales not trained": f"+algo=qdrop algo.lr_act=0 {TRAINED}",
    "equalize, qdrop": f"algo.steps=[equalize,qdrop] {TRAINED}",
    "tune alone": "algo.steps=[tune]",
    "brecq, tune": f"+algo=tune {TRAINED}",
    "full": f"+algo=full {TRAINED}",
    "2:4, magnitude, not trained": "algo.steps=[sparsify,bias_correction] algo.sparsity_pattern=2:4 "
    "algo.sparsity_mask=magnitude",
    "2:4, error, not trained": "algo.steps=[sparsify,bias_correction] algo.sparsity_pattern=2:4",
    "2:4, error, qdrop": f"+algo=sparse algo.sparsity_pattern=2:4 {TRAINED}",
    "50 % unstructured, error, qdrop": f"+algo=sparse {TRAINED}",
}
"""What a row is called, and its options."""
Cell = dict[str, float | str]
Columns = dict[str, dict[str, Cell]]
"""Of a network: by precision and row."""
TABLE = Path(__file__).with_suffix(".txt")


def main() -> None:
    """Runs what is asked for and draws the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--rows", default="", help="regular expression")
    parser.add_argument("--missing", action="store_true", help="only cells that are not there yet")
    args = parser.parse_args()
    for network, precision, row in _cells(args):
        cell = _run(network, precision, row)
        store = _read(network)
        store.setdefault(precision, {})[row] = cell
        _store(network).write_text(json.dumps(store, indent=1, sort_keys=True) + "\n")
        print(f"{network} {precision} {row}: {_cell(cell)}", flush=True)
    TABLE.write_text(_table({network: _read(network) for network in NETWORKS}) + "\n")


def _cells(args: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    for row in ROWS:
        for network in args.networks.split(","):
            store = _read(network)
            for precision in args.precisions.split(","):
                known = row in store.get(precision, {})
                if re.search(args.rows, row) and not (args.missing and known):
                    yield network, precision, row


def _store(network: str) -> Path:
    return Path(__file__).with_name(f"methods-{network}.json")


def _read(network: str) -> Columns:
    found: Columns = json.loads(_store(network).read_text()) if _store(network).exists() else {}
    return found


def _run(network: str, precision: str, row: str) -> Cell:
    """One job's figures, or the sentence with which it was refused."""
    with tempfile.TemporaryDirectory() as scratch:
        common = ["cluster=inline", "cluster.threads=1", f"precision={precision}"]
        options = [*NETWORKS[network], *common, *ROWS[row].split()]
        begin = time.perf_counter()
        try:
            report = run_silently(compose_config(options), Path(scratch) / "run").report.to_plain()
        except (UserError, JobError) as error:
            return {"refused": str(error)}
        seconds = time.perf_counter() - begin
    error = report["error"]["deployed_vs_fp32"]
    spent = {name: round(value, 2) for name, value in report["seconds"].items()}
    own = sum(spent.get(name, 0.0) for name in (*compose_config(options).algo.steps, "calibrate", "ranges"))
    return {
        "top1": round(report["accuracy"]["deployed"], 2),
        "agreement": round(error["agreement"], 2),
        "sqnr_db": round(error["sqnr_db"], 2),
        "seconds": round(own, 1),
        "whole_seconds": round(seconds, 1),
        "dipo": dipo.__version__,
    }


def _cell(cell: Cell) -> str:
    if "refused" in cell:
        return "refused"
    return f"{cell['top1']:5.1f} {cell['agreement']:5.1f} {cell['sqnr_db']:5.1f} {cell['seconds']:5.0f}"


def _table(store: dict[str, Columns]) -> str:
    """A block for each network: rows are methods, columns precisions."""
    lines = [
        "python benchmarks/methods.py",
        f"dipo {dipo.__version__}, CPU, one thread, seed 0; {STEPS} steps a unit where a method trains.",
        "Figures of the written model in ONNX Runtime on samples that calibration did not see: top-1 %, agreement with",
        "float %, SQNR dB; then seconds of calibration, ranges and steps.",
    ]
    width = max(map(len, ROWS))
    for network, columns in store.items():
        lines += ["", network, " " * width + "".join(f"  | {precision:^23}" for precision in PRECISIONS)]
        lines.append(" " * width + "  |  top1 agree  SQNR     s " * len(PRECISIONS))
        for row in ROWS:
            cells = [columns.get(precision, {}).get(row) for precision in PRECISIONS]
            if any(cells):
                lines.append(f"{row:{width}}" + "".join(f"  | {_cell(cell) if cell else '':23}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
