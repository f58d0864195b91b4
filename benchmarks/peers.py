"""Other tools and dipo on the same networks and samples, in turns: accuracy, and time and memory as ratios.

    python benchmarks/peers.py mobilenet --runs 3
    python benchmarks/peers.py resnet20 --only aimet-w4a8-adaround --cache /tmp/peers --dipo ../other-checkout

Each peer runs in a virtual environment of its own with pinned versions, which is made where it is missing. One pair is
a whole process of the peer and then one of each dipo run that it is compared with. Writes `peers-NETWORK.txt` beside
this script: rows that were run take the place of their former ones, and what stands below `Notes` is kept.

Run it with the Python of dipo's environment. Samples: what `data/README.md` of the folder with the networks tells.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peers_cost import Cost, measure
from peers_table import HEAD, Line, Score, unexplained, update

HERE = Path(__file__).parent
SCRIPTS = HERE / "peers"
CALIBRATION_IMAGES = 256
VERIFIED_IMAGES = 32
"""Images on which dipo, in its timed runs, checks what it wrote; the peers check nothing."""

READING = ("numpy==2.4.6", "onnx==1.23.2", "pillow==13.0.0")
CLEANING = (*READING, "onnx-ir==1.1.0", "onnxscript==0.7.2")
ENVIRONMENTS = {
    "ort": (*CLEANING, "onnxruntime==1.32.0"),
    "nncf": (*CLEANING, "nncf==3.4.0", "onnxruntime==1.32.0"),
    "openvino": (*READING, "openvino==2026.4.1", "nncf==3.4.0"),
    "aimet": (*CLEANING, "aimet-onnx==2.42.0", "torch==2.13.0", "onnxruntime==1.32.0"),
}
"""What pip installs for each peer. Which build of torch it takes is pip's configuration."""


@dataclass(frozen=True)
class Network:
    """A float network, its samples, and how pixels become its input."""

    model: str
    samples: str
    part: str
    """Of the samples, what is held out for the scores."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalization(self) -> list[str]:
        """The scripts' options."""
        return ["--mean", *map(str, self.mean), "--std", *map(str, self.std)]


@dataclass(frozen=True)
class Peer:
    """A tool with one of its settings, and the dipo runs that it is compared with."""

    environment: str
    script: str
    setting: str
    rivals: tuple[str, ...]
    suffix: str = ".onnx"

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.environment}-{self.setting}"


NETWORKS = {
    "resnet20": Network(
        "resnet20_cifar10.onnx", "cifar10_subset.npz", "test", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
    "mobilenet": Network("mobilenet_v1_025_224.onnx", "imagenet_subset", "val", (0.5,), (0.5,)),
}
NEAREST, CORRECTED = "precision=w8a8 +algo=none", "precision=w8a8 +algo=bias_correction"
W4A8 = "precision=w4a8 precision.first_last_bits=null +algo="
"""All layers at 4 bits, as AIMET has them."""
PEERS = (
    *(Peer("ort", "ort_static.py", f"w8a8-{method}", (NEAREST,)) for method in ("minmax", "entropy", "percentile")),
    *(Peer("nncf", "nncf_quantize.py", f"w8a8-{way}", (CORRECTED,)) for way in ("default", "full")),
    *(Peer("openvino", "nncf_quantize.py", f"w8a8-{way}", (CORRECTED,), ".xml") for way in ("default", "full")),
    *(Peer("aimet", "aimet.py", setting, (NEAREST,)) for setting in ("w8a8", "w8a8-enhanced")),
    Peer("aimet", "aimet.py", "w4a8", (f"{W4A8}none",)),
    Peer("aimet", "aimet.py", "w4a8-seqmse", (f"{W4A8}none", f"{W4A8}adaround")),
    Peer("aimet", "aimet.py", "w4a8-adaround", (f"{W4A8}adaround", f"{W4A8}brecq")),
)


@dataclass(frozen=True)
class Setup:
    """Where everything is."""

    network: Network
    shared: Path
    cache: Path
    dipo: Path
    scratch: Path

    def python(self, environment: str) -> str:
        """The interpreter of a peer; makes its environment where that is missing or has other versions."""
        folder = self.cache / environment
        made = folder / "requirements.txt"
        wanted = "\n".join(ENVIRONMENTS[environment])
        python = str(folder / "bin" / "python")
        if not made.is_file() or made.read_text() != wanted:
            print(f"installing {', '.join(ENVIRONMENTS[environment])} in {folder}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", *ENVIRONMENTS[environment]], check=True)
            made.write_text(wanted)
        return python

    def peer_command(self, peer: Peer, target: Path) -> list[str]:
        """Quantizes with a peer."""
        files = [str(self.shared / self.network.model), str(self.shared / self.network.samples), str(target)]
        options = ["--setting", peer.setting, "--num", str(CALIBRATION_IMAGES), *self.network.normalization()]
        return [self.python(peer.environment), str(SCRIPTS / peer.script), *files, *options]

    def dipo_command(self, options: str, folder: Path) -> list[str]:
        """Quantizes with dipo."""
        python = self.dipo / ".venv" / "bin" / "python"
        return [
            str(python) if python.exists() else sys.executable,
            "-m",
            "dipo.launch",
            f"model.path={self.shared / self.network.model}",
            f"data.path={self.shared / self.network.samples}",
            f"data.mean={list(self.network.mean)}",
            f"data.std={list(self.network.std)}",
            f"data.num={CALIBRATION_IMAGES}",
            f"data.eval_num={VERIFIED_IMAGES}",
            "cluster=inline",
            f"cluster.threads={os.cpu_count()}",
            *options.split(),
            f"run.dir={folder}",
        ]

    def score(self, model: Path) -> Score:
        """Runs a model on the held-out images and compares it with the float network."""
        logits, labels = self._logits(model)
        reference, _ = self._logits(self.shared / self.network.model)
        return Score.of(logits, reference, labels)

    def _logits(self, model: Path) -> tuple[np.ndarray, np.ndarray]:
        target = self.scratch / f"{model.parent.name}-{model.name}.npz"
        python = self.python("openvino") if model.suffix == ".xml" else sys.executable
        files = [str(model), str(self.shared / self.network.samples), str(target)]
        options = ["--part", self.network.part, *self.network.normalization()]
        subprocess.run([python, str(SCRIPTS / "logits.py"), *files, *options], check=True)
        with np.load(target) as arrays:
            return arrays["logits"], arrays["labels"]


def compare(peer: Peer, setup: Setup, runs: int) -> list[Line]:
    """The lines of a peer: `runs` times the peer and each of its rivals, in turns."""
    target = setup.scratch / peer.name / f"quantized{peer.suffix}"
    target.parent.mkdir()
    command = setup.peer_command(peer, target)
    folders: dict[str, Path] = {}
    peer_costs: list[Cost] = []
    costs: dict[str, list[Cost]] = {rival: [] for rival in peer.rivals}
    for run in range(runs):
        peer_costs.append(measure(command))
        for number, rival in enumerate(peer.rivals):
            folders[rival] = setup.scratch / f"{peer.name}-rival{number}-run{run}"
            costs[rival].append(measure(setup.dipo_command(rival, folders[rival]), cwd=setup.dipo))
    score = setup.score(target)
    return [
        Line(
            peer=peer.name,
            rival=rival.removeprefix("precision="),
            peer_score=score,
            dipo_score=setup.score(folders[rival] / "quantized.onnx"),
            time=statistics.median(a.seconds / b.seconds for a, b in zip(peer_costs, costs[rival], strict=True)),
            memory=statistics.median(a.peak_mb / b.peak_mb for a, b in zip(peer_costs, costs[rival], strict=True)),
            dipo_seconds=statistics.median(cost.seconds for cost in costs[rival]),
            dipo_mb=statistics.median(cost.peak_mb for cost in costs[rival]),
            runs=runs,
        )
        for rival in peer.rivals
    ]


def header(name: str, setup: Setup) -> list[str]:
    """What the figures hold for."""
    packages = dict.fromkeys(package for packages in ENVIRONMENTS.values() for package in packages)
    return [
        f"python benchmarks/{Path(__file__).name} {name}",
        f"{setup.network.model}, {CALIBRATION_IMAGES} calibration images, scored on {setup.network.samples} "
        f"({setup.network.part}); {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        f"Python {platform.python_version()}, {', '.join(packages)}",
        "time, memory: peer / dipo, whole processes, medians of the pairs; memory is the peak of the process tree.",
        f"dipo also checks {VERIFIED_IMAGES} images in ONNX Runtime. * better than dipo's; the notes say why.",
    ]


def main() -> None:
    """Runs the pairs, row by row, and writes the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [peer.name for peer in PEERS]
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PEER", help=", ".join(names))
    parser.add_argument("--runs", type=int, default=3, help="pairs of each row")
    parser.add_argument("--shared", type=Path, default=HERE.parent.parent / "shared" / "data", help="networks, samples")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "dipo" / "peers", help="environments")
    parser.add_argument("--dipo", type=Path, default=HERE.parent, help="checkout that is measured")
    args = parser.parse_args()
    result = HERE / f"peers-{args.network}.txt"
    folders = {name: getattr(args, name).expanduser().resolve() for name in ("shared", "cache", "dipo")}
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        setup = Setup(NETWORKS[args.network], scratch=Path(scratch), **folders)
        for environment in {peer.environment for peer in PEERS if peer.name in args.only}:
            setup.python(environment)
        for peer in PEERS:
            if peer.name in args.only:
                lines = compare(peer, setup, args.runs)
                print("\n".join(map(str, lines)), flush=True)
                update(result, header(args.network, setup), lines, order=names)
    for name in unexplained(result):
        print(f"{result.name}: say below its 'Notes' why {name} is better than dipo there")


if __name__ == "__main__":
    main()
