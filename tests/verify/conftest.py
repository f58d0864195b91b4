from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "export" / "targets"))

from exported import write_files
from platform_networks import platform_case

from dipo.export.targets import TARGETS

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a platform's files of a small network, as a run leaves them; returns the folder."""

    def made(platform: str, *, below: str = "", **options: object) -> Path:
        folder = tmp_path / below
        folder.mkdir(exist_ok=True)
        model, quantized = platform_case(TARGETS[platform].spec)
        write_files(TARGETS[platform], model, quantized, folder, **options)
        if not below:
            samples = np.clip(np.random.default_rng(0).normal(size=(8, 3, 8, 8)), -2, 2.25).astype(np.float32)
            np.savez(tmp_path / "samples.npz", calib_x=samples)
            config = f"platform: {{name: {platform}}}\ndata: {{path: {tmp_path / 'samples.npz'}}}\n"
            (folder / "config.yaml").write_text(config)
        return folder

    return made
