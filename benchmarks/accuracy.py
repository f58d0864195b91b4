"""A table of runs: accuracy of the deployed model, agreement and SQNR against FP32, and seconds.

    python benchmarks/accuracy.py NAME model.path=... data.path=... -- "precision=w4a4" "precision=w4a4 +algo=qdrop" ...

Each quoted text is one run's options, added to the common ones. Figures are those of `report.json`: the written model
in ONNX Runtime on the evaluation samples. `units s` is the time of all units, from their captures to the last bias;
`run s` the whole process. Writes `accuracy-NAME.txt` beside this script.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HEAD = f"{'options':44} {'top-1':>6} {'agree':>6} {'SQNR':>6} {'sim.':>6} {'units s':>8} {'run s':>7}"


def row(common: list[str], options: str) -> str:
    """Runs one job; its line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "dipo.launch", *common, *options.split(), f"run.dir={folder}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        report = json.loads((Path(folder) / "report.json").read_text())
    error, top1 = report["error"]["deployed_vs_fp32"], report["accuracy"]["deployed"]
    simulated = report["error"]["simulated_vs_fp32"]["sqnr_db"]
    units = sum(unit["seconds"] for unit in report["units"])
    measured = f"{top1:6.2f} {error['agreement']:6.2f} {error['sqnr_db']:6.2f} {simulated:6.2f}"
    return f"{options:44} {measured} {units:8.1f} {seconds:7.1f}"


def main() -> None:
    """Prints and writes the table, line by line."""
    cut = sys.argv.index("--")
    name, common, rows = sys.argv[1], sys.argv[2:cut], sys.argv[cut + 1 :]
    target = Path(__file__).with_name(f"accuracy-{name}.txt")
    lines = [
        f"python benchmarks/accuracy.py {name} {' '.join(common)} -- {' '.join(repr(text) for text in rows)}",
        HEAD,
    ]
    print(HEAD, flush=True)
    for options in rows:
        lines.append(row(common, options))
        print(lines[-1], flush=True)
        target.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
