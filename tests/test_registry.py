"""Names of dipo's own things and of other packages'."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipo.errors import UserError
from dipo.registry import Registry


def _announce(folder: Path, monkeypatch: pytest.MonkeyPatch, points: str) -> None:
    """A distribution with entry points, as an installed one looks."""
    info = folder / "toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dipo.things]\n{points}\n")
    monkeypatch.syspath_prepend(folder)


def test_names_are_known_before_anything_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_thing.py").write_text("THING = 7\n")
    _announce(tmp_path, monkeypatch, "toy = toy_thing:THING\nbroken = no_such_module:THING")
    things = Registry("thing", {"own": 1}, group="dipo.things")
    assert list(things) == ["own", "broken", "toy"]
    assert things["own"] == 1
    assert things["toy"] == 7
    assert "other" not in things
    with pytest.raises(UserError, match="thing 'broken' of toys: no_such_module:THING cannot be imported"):
        things["broken"]


def test_another_package_cannot_take_a_name_of_dipo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _announce(tmp_path, monkeypatch, "own = toy_thing:THING")
    with pytest.raises(UserError, match="dipo has one of that name"):
        list(Registry("thing", {"own": 1}, group="dipo.things"))
