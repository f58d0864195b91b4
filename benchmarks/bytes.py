"""SHA-256 of what sixteen jobs write: three networks, every step, both schedules, twelve targets.

    python benchmarks/bytes.py                      compares with bytes.json, names what differs, exits with 1
    python benchmarks/bytes.py --record             writes bytes.json
    python benchmarks/bytes.py --only qdrop         the jobs whose name has that in it

A refactor leaves them as they are. What an ONNX file says of dipo's version and of the hash of the configuration is
left out: both follow what options there are. Torch's sums depend on the processor's vector instructions: `bytes.json`
says on what it was recorded; elsewhere, record with the older version first. Without ../shared/data, two of the
networks are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

RECORD = Path(__file__).with_suffix(".json")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ORIGIN = {"dipo_version", "dipo_config"}
COMMON = ["cluster.grad_shards=4", "cluster.threads=1", "seed=3"]
INLINE = ["cluster=inline", "cluster.compile=false"]
DIGITS = ["+model=mobilenet", "data.num=96", "data.eval_num=64"]
RESNET20 = [f"model.path={DATA / 'resnet20_cifar10.onnx'}", f"data.path={DATA / 'cifar10_subset.npz'}", "data=cifar10"]
RESNET20 += ["data.num=96", "data.eval_num=64"]
MOBILENET_V1 = [f"model.path={DATA / 'mobilenet_v1_025_224.onnx'}", f"data.path={DATA / 'imagenet_subset'}"]
MOBILENET_V1 += ["data.mean=0.5", "data.std=0.5", "data.num=32", "data.eval_num=16"]


@dataclass(frozen=True)
class Job:
    """One run of the launcher."""

    name: str
    network: list[str]
    options: list[str]
    cluster: list[str]

    @property
    def command(self) -> list[str]:
        """Without the run's folder."""
        return [sys.executable, "-m", "dipo.launch", *self.network, *self.options, *self.cluster, *COMMON]


JOBS = [
    Job("digits-none-w8a8", DIGITS, ["export.also=[trt,snpe,ti,openvino]"], INLINE),
    Job("digits-equalize-bias-tensor-w8a8", DIGITS, ["algo.steps=[equalize,bias_correction]",
        "precision.weight_per_channel=false", "platform=trt"], INLINE),
    Job("digits-update_bn-analyze-w4a8", DIGITS, ["algo.steps=[update_bn,analyze]", "precision=w4a8"], INLINE),
    Job("digits-dfq", ["+model=mobilenet"], ["+algo=dfq", "export.also=[atlas,rk]"], INLINE),
    Job("digits-adaround-w4a4", DIGITS, ["+algo=adaround", "precision=w4a4", "algo.iters=12"], INLINE),
    Job("digits-full-parallel-w4a4", DIGITS, ["+algo=full", "precision=w4a4", "algo.iters=16", "algo.tune_iters=6",
        "cluster.schedule=parallel"], INLINE),
    Job("digits-qdrop-fisher-ray-w4a4", DIGITS, ["+algo=qdrop", "precision=w4a4", "algo.iters=6", "algo.loss=fisher"],
        ["cluster.workers=2"]),
    Job("digits-brecq-parallel-ray-w4a8", DIGITS, ["+algo=brecq", "precision=w4a8", "algo.iters=12", "platform=trt"],
        ["cluster.workers=2", "cluster.schedule=parallel"]),
    Job("digits-sparse-scales-w4a8", DIGITS, ["algo.steps=[sparsify,brecq,tune]", "algo.sparsity_pattern=2:4",
        "precision=w4a8", "algo.iters=8", "algo.tune_iters=6", "algo.train_scale=true", "export.format=qop"], INLINE),
    Job("resnet20-none-kl-w8a8", RESNET20, ["calib=kl", "export.also=[snpe,trt,atlas,imx,stpu,magicmind,rv]"], INLINE),
    Job("resnet20-qdrop-bias-tune-w2a4", RESNET20, ["algo.steps=[qdrop,bias_correction,tune]", "precision=w2a4",
        "algo.iters=6", "algo.tune_iters=4", "export.also=[snpe]"], INLINE),
    Job("resnet20-straight-parallel-w4a4", RESNET20, ["+algo=brecq", "precision=w4a4", "algo.iters=10",
        "algo.rounding=straight_through", "cluster.schedule=parallel"], INLINE),
    Job("resnet20-sparsify-unstructured-w8a8", RESNET20, ["algo.steps=[sparsify,update_bn]", "platform=ti"], INLINE),
    Job("mobilenet_v1-bias_correction-w8a8", MOBILENET_V1, ["+algo=bias_correction", "export.also=[qnn,openvino]"],
        INLINE),
    Job("mobilenet_v1-brecq-bias-w4a8", MOBILENET_V1, ["algo.steps=[brecq,bias_correction]", "precision=w4a8",
        "algo.iters=4", "export.weights=packed", "calib=octav"], INLINE),
    Job("mobilenet_v1-equalize-adaround-w4a8", MOBILENET_V1, ["algo.steps=[equalize,adaround,analyze]",
        "algo.equalize_per_channel=true", "precision=w4a8", "algo.iters=4", "platform=trt"], INLINE),
]  # fmt: skip


def digests(job: Job) -> dict[str, str]:
    """SHA-256 of the targets' files of a run, by path within its folder."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        done = subprocess.run([*job.command, f"run.dir={folder}"], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{job.name}: exit status {done.returncode}\n{done.stderr}")
        names = (folder / "written.list").read_text().split("\n")
        return {name: hashlib.sha256(_content(folder / name)).hexdigest() for name in names if name}


def _content(path: Path) -> bytes:
    if path.suffix != ".onnx":
        return path.read_bytes()
    model = onnx.load(path, load_external_data=False)
    kept = [entry for entry in model.metadata_props if entry.key not in ORIGIN]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model.SerializeToString(deterministic=True)


def main() -> int:
    """Runs the jobs; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    jobs = [job for job in JOBS if args.only in job.name and (DATA.is_dir() or job.network[0] == DIGITS[0])]
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {"jobs": {}}
    different = []
    for job in jobs:
        start = time.perf_counter()
        found = digests(job)
        stored = known["jobs"].get(job.name, {})
        wrong = [name for name in sorted({*found, *stored}) if found.get(name) != stored.get(name)]
        word = "recorded" if args.record else "differs: " + ", ".join(wrong) if wrong else "the same"
        print(f"{job.name}: {len(found)} files, {word} ({time.perf_counter() - start:.1f} s)", flush=True)
        different += wrong
        if args.record:
            known["jobs"][job.name] = found
    if args.record:
        import dipo

        known |= {"dipo": dipo.__version__, "torch": torch.__version__, "machine": platform.machine()}
        known["vector_instructions"] = torch.backends.cpu.get_cpu_capability()
        RECORD.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        return 0
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
