"""The recipe of a job, readable top to bottom: load, plan, calibrate, transform, export, verify, report."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

import dipo
from dipo.algo.calibrate import Observed, quantize_model
from dipo.algo.captures import cut
from dipo.cluster.layout import even_shares
from dipo.cluster.pool import Pool, start_pool
from dipo.cluster.worker import Job
from dipo.config import Config, to_plain
from dipo.errors import UserError
from dipo.export.platforms import RULES, WRITERS
from dipo.graph.plan import QuantizedModel
from dipo.graph.units import find_units
from dipo.report.terminal import Terminal
from dipo.run import CONFIG, RunFolder
from dipo.stages.clock import Clock
from dipo.stages.load import Loaded, check_parity, load_job
from dipo.stages.transform import transform
from dipo.stages.verify import model_name, verify

log = logging.getLogger("dipo")


def run_job(config: Config) -> int:
    """Runs a job from its configuration to its report.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The configuration, the model or the data is wrong.
    """
    clock, terminal = Clock(), Terminal()
    device = _device(config)
    torch.set_num_threads(config.cluster.threads)
    with clock.stage("load"):
        loaded = load_job(config)
        parity = check_parity(loaded, threads=config.cluster.threads)
    if config.dry_run:
        _show_plan(config, loaded, terminal)
        return 0
    folder = RunFolder(_folder_path(config))
    try:
        _run(config, loaded, folder, clock, terminal, device=device, parity=parity)
    except UserError:
        # What is wrong with samples or labels may show late; nothing of such a run is of use.
        folder.discard()
        raise
    return 0


def _run(
    config: Config,
    loaded: Loaded,
    folder: RunFolder,
    clock: Clock,
    terminal: Terminal,
    *,
    device: str,
    parity: float,
) -> None:
    _log_to(folder.path / "dipo.log")
    folder.write_yaml(CONFIG, to_plain(config))
    log.info("dipo %s, %s", dipo.__version__, loaded.data.calib.describe())
    log.info("parity of torch and ONNX Runtime on the float network: %.2e of the largest output", parity)
    terminal.say(f"{model_name(config)}: {len(loaded.plan.layers)} layers, {loaded.data.calib.describe()}")
    terminal.say(f"torch and ONNX Runtime agree on the float network to {parity:.1e} of the largest output")
    with _workers(config, loaded, device, clock) as pool:
        observed = _calibrate(config, loaded, pool, folder, clock, terminal)
        with clock.stage("ranges"):
            quantized = quantize_model(loaded.model, plan=loaded.plan, statistics=observed.statistics, cfg=config.calib)
        done = transform(
            config,
            loaded,
            quantized=quantized,
            observed=observed,
            pool=pool,
            folder=folder,
            clock=clock,
            terminal=terminal,
        )
        with clock.stage("export"):
            files = _export(config, loaded, done.quantized, folder)
        report = verify(
            config, loaded, quantized=done.quantized, files=files, units=done.units, parity=parity,
            pool=pool, device=device, clock=clock, terminal=terminal,
        )  # fmt: skip
    folder.write_json("report.json", report.to_plain())
    terminal.show(report)
    terminal.say(f"run folder: {folder.path}")


@contextlib.contextmanager
def _workers(config: Config, loaded: Loaded, device: str, clock: Clock) -> Iterator[Pool]:
    job = Job(
        plan=loaded.plan,
        rules=RULES[config.platform.name],
        calib=loaded.data.calib,
        device=device,
        threads=config.cluster.threads,
        compile=config.cluster.compile,
    )
    with clock.stage("start workers"):
        pool = start_pool(job, loaded.model, cfg=config.cluster)
    try:
        yield pool
    finally:
        pool.close()


def _calibrate(
    config: Config, loaded: Loaded, pool: Pool, folder: RunFolder, clock: Clock, terminal: Terminal
) -> Observed:
    """One pass over the samples, sharded; the workers' statistics merge exactly."""
    shares = even_shares(cut(len(loaded.data.calib), config.data.batch_size), pool.size)
    with clock.stage("calibrate"), terminal.task("calibrate", len(loaded.data.calib), "samples") as progress:
        parts: list[Observed] = pool.call("observe", [(share,) for share in shares if share], progress=progress)
    observed = functools.reduce(Observed.merge, parts)
    statistics = observed.statistics.items()
    folder.write_arrays(
        "statistics.safetensors",
        {f"{name}/{key}": a for name, stats in statistics for key, a in stats.to_arrays().items()},
    )
    return observed


def _export(config: Config, loaded: Loaded, quantized: QuantizedModel, folder: RunFolder) -> list[Path]:
    metadata = {"dipo_version": dipo.__version__, "dipo_algo": config.algo.name, "dipo_platform": config.platform.name}
    return WRITERS[config.platform.name](loaded.model, quantized, folder.path, metadata=metadata)


def _show_plan(config: Config, loaded: Loaded, terminal: Terminal) -> None:
    """What a dry run prints."""
    plan, data = loaded.plan, loaded.data
    terminal.say(f"{model_name(config)}: {loaded.path}")
    terminal.say(f"calibration: {data.calib.describe()}")
    terminal.say(f"evaluation: {data.eval.describe() if data.eval else 'none, the calibration samples are taken'}")
    for name, layer in plan.layers.items():
        symmetry = "symmetric" if layer.spec.symmetric else "asymmetric"
        scales = "channel" if layer.spec.per_channel else "tensor"
        terminal.say(f"layer {name}: {layer.spec.bits}-bit weights, {symmetry}, per {scales}")
    for value, spec in plan.activations.items():
        terminal.say(f"activation {value}: {spec.bits} bits")
    steps = ", ".join(config.algo.steps) or "calibrate and export"
    if "reconstruct" in config.algo.steps:
        units = [unit for unit in find_units(loaded.model, granularity=config.algo.unit) if unit.layers]
        steps += f" ({len(units)} units, {config.algo.iters} steps each)"
    terminal.say(f"algorithm {config.algo.name}: {steps}; platform {config.platform.name}")


def _device(config: Config) -> str:
    wanted = config.cluster.device
    if wanted == "cuda" and config.cluster.address is None and not torch.cuda.is_available():
        raise UserError("cluster.device=cuda: torch finds no GPU here, take cluster.device=cpu or leave the option out")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def _folder_path(config: Config) -> Path:
    if config.run.dir is not None:
        return Path(config.run.dir).expanduser()
    now = datetime.datetime.now(tz=datetime.UTC).astimezone()
    return Path("outputs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}-{model_name(config)}-{config.algo.name}"


def _log_to(path: Path) -> None:
    for handler in [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]:
        log.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
