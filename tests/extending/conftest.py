"""What another package brings, as dipo finds it where that package is installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dipo.algo.steps import STEPS
from dipo.export.targets import TARGETS
from dipo.quant.range_methods import RANGE_METHODS

HERE = Path(__file__).parent
REGISTRIES = (TARGETS, STEPS, RANGE_METHODS)
"""All that remember which names are announced."""

Announce = Callable[..., None]


def _forget() -> None:
    for registry in REGISTRIES:
        vars(registry).pop("_announced", None)
        registry._loaded.clear()


@pytest.fixture
def announce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Announce]:
    """Announces things of modules in this folder, `announce("dipo.targets", toy="toy_target:TARGET")`.

    A distribution's folder with the entry points lies on the path of this process and of those that it starts.
    """
    site = tmp_path / "site"
    info = site / "toys-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.syspath_prepend(str(site))
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(HERE), *([before] if before else [])]))

    def add(group: str, **points: str) -> None:
        lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
        with (info / "entry_points.txt").open("a") as file:
            file.write("\n".join(lines) + "\n")
        _forget()

    yield add
    monkeypatch.undo()
    _forget()
