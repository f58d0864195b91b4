"""What the guard keeps and costs: each step without it and with it, next to rounding to nearest.

    python benchmarks/guard.py [--networks gated,decoder,digits,resnet20,mobilenet_v1]

`gated` is a stack of gated layers, one vector a sample, as a GRU's decoder is; `decoder` two blocks of a transformer's
decoder, eight positions a sample: both with few samples, which say little about their weights. The others are those
of the README, with its numbers of samples. Figures are those of `report.json`: the written model in ONNX Runtime on
samples that calibration did not see. `step s` is processor time: a run's less that of rounding to nearest. One seed,
eager kernels, one thread, `cluster=inline`. Lines of the networks that are named are made again in `guard.txt`, the
others are kept.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from dipo.config import compose_config
from dipo.report.report import Report
from dipo.stages.pipeline import run_silently

TABLE = Path(__file__).with_suffix(".txt")
DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
HEAD = f"{'network':13} {'options':48} {'none':>6} {'unguarded':>10} {'guarded':>8} {'back':>7} {'step s':>15}"
RESNET20 = [f"model.path={DATA / 'resnet20_cifar10.onnx'}", "data=cifar10", f"data.path={DATA / 'cifar10_subset.npz'}"]
MOBILENET = [f"model.path={DATA / 'mobilenet_v1_025_224.onnx'}", f"data.path={DATA / 'imagenet_subset'}"]
NETWORKS = {
    "digits": ["+model=mobilenet"],
    "resnet20": [*RESNET20, "data.num=512", "data.eval_num=1000"],
    "mobilenet_v1": [*MOBILENET, "data.mean=0.5", "data.std=0.5"],
}
FEW = [
    "+algo=bias_correction precision=w4a8 data.num=16",
    "+algo=qdrop precision=w4a8 data.num=16",
    "+algo=qdrop precision=w4a4 data.num=16",
    "+algo=qdrop precision=w4a4 data.num=64",
]
MANY = ["+algo=bias_correction precision=w4a8", "+algo=brecq precision=w4a8 algo.iters=80"]
MANY += ["+algo=qdrop precision=w4a4 algo.iters=80"]
ROWS = {"gated": FEW, "decoder": FEW, "digits": MANY, "resnet20": MANY[::2], "mobilenet_v1": MANY[:1]}
WIDTH, POSITIONS = 96, 8

GATED = """(float[N,96] x) => (float[N,96] y) {
  h0 = Gemm(x, w_in, b_in)
  LAYERS
  y = Gemm(hLAST, w_out, b_out)
}"""
GATE = """
  zINDEX = Gemm(hPREVIOUS, wzINDEX, bzINDEX)
  gINDEX = Sigmoid(zINDEX)
  cINDEX = Gemm(hPREVIOUS, wcINDEX, bcINDEX)
  tINDEX = Tanh(cINDEX)
  dINDEX = Sub(tINDEX, hPREVIOUS)
  uINDEX = Mul(gINDEX, dINDEX)
  hINDEX = Add(hPREVIOUS, uINDEX)
"""
DECODER = """(float[N,8,96] x) => (float[N,8,96] y) {
  h0 = MatMul(x, w_in)
  LAYERS
  y = MatMul(hLAST, w_out)
}"""
ATTENTION = """
  qINDEX = MatMul(hPREVIOUS, wqINDEX)
  kINDEX = MatMul(hPREVIOUS, wkINDEX)
  vINDEX = MatMul(hPREVIOUS, wvINDEX)
  ktINDEX = Transpose<perm=[0,2,1]>(kINDEX)
  sINDEX = MatMul(qINDEX, ktINDEX)
  pINDEX = Softmax<axis=-1>(sINDEX)
  aINDEX = MatMul(pINDEX, vINDEX)
  oINDEX = MatMul(aINDEX, woINDEX)
  rINDEX = Add(hPREVIOUS, oINDEX)
  eINDEX = MatMul(rINDEX, wuINDEX)
  fINDEX = Relu(eINDEX)
  iINDEX = MatMul(fINDEX, wdINDEX)
  hINDEX = Add(rINDEX, iINDEX)
"""


def build(name: str, folder: Path) -> list[str]:
    """Writes a network with random weights and its samples; the options that name them."""
    rng = np.random.default_rng(0)
    gated = name == "gated"
    text, layer, count = (GATED, GATE, 4) if gated else (DECODER, ATTENTION, 2)
    layers = "".join(
        layer.replace("INDEX", str(index)).replace("PREVIOUS", str(index - 1)) for index in range(1, count + 1)
    )
    text = text.replace("LAYERS", layers).replace("LAST", str(count))
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> net {text}')
    for weight in sorted({each for node in model.graph.node for each in node.input if each[0] in "wb"}):
        wide, narrow = weight.startswith("wu"), weight.startswith("wd")
        shape = (4 * WIDTH if narrow else WIDTH, 4 * WIDTH if wide else WIDTH) if weight[0] == "w" else (WIDTH,)
        array = rng.standard_normal(shape).astype(np.float32) * (shape[0] ** -0.5 if weight[0] == "w" else 0.1)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), weight))
    onnx.save(model, folder / f"{name}.onnx")
    # Samples vary along few directions, as those of real networks do.
    rows = (640,) if gated else (640, POSITIONS)
    factors = rng.standard_normal((*rows, 12)) @ rng.standard_normal((12, WIDTH)) / 12**0.5
    samples = (factors + 0.3 * rng.standard_normal((*rows, WIDTH))).astype(np.float32)
    np.savez(folder / "samples.npz", calib_x=samples[:128], test_x=samples[128:])
    return [f"model.path={folder / name}.onnx", f"data.path={folder / 'samples.npz'}"]


def measure(network: list[str], options: str) -> tuple[Report, float]:
    """Runs one job; its report, and the seconds of processor time that it took."""
    with tempfile.TemporaryDirectory() as folder:
        config = compose_config([*network, *options.split(), "cluster=inline", "cluster.compile=false"])
        start = time.process_time()
        report = run_silently(config, Path(folder) / "run").report
        return report, time.process_time() - start


def line(name: str, network: list[str], options: str) -> str:
    """One line of the table."""
    precision = " ".join(option for option in options.split() if not option.startswith(("+algo", "algo.")))
    runs = [measure(network, text) for text in (precision, f"{options} algo.guard=false", options)]
    figures = [report.error["deployed_vs_fp32"].sqnr_db for report, _ in runs]
    (_, least), (_, without), (guarded, spent) = runs
    seconds = [without - least, spent - least]
    # Of less than a second most is chance.
    ratio = f"x{seconds[1] / seconds[0]:.2f}" if seconds[0] > 1 else "-"
    judged = [row.kept for row in guarded.units if row.kept is not None]
    return (
        f"{name:13} {options:48} {figures[0]:6.2f} {figures[1]:10.2f} {figures[2]:8.2f} "
        f"{judged.count(False):3}/{len(judged):<3} {seconds[0]:5.1f} {seconds[1]:5.1f} {ratio:>5}"
    )


def main() -> None:
    """Prints and writes the table, line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(ROWS))
    wanted = parser.parse_args().networks.split(",")
    old = TABLE.read_text().splitlines()[2:] if TABLE.exists() else []
    lines = [each for each in old if each.split()[0] not in wanted]
    print(HEAD, flush=True)
    for name in wanted:
        with tempfile.TemporaryDirectory() as folder:
            network = NETWORKS[name] if name in NETWORKS else build(name, Path(folder))
            for options in ROWS[name]:
                lines.append(line(name, network, options))
                print(lines[-1], flush=True)
                lines.sort(key=lambda each: list(ROWS).index(each.split()[0]))
                head = f"python benchmarks/guard.py; SQNR in dB, units taken back, seconds without and with\n{HEAD}\n"
                TABLE.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
