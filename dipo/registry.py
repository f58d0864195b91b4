"""Names for things that others may add to: steps, targets, range methods, operators.

What comes with dipo is listed in one place. What another package brings, it announces as an entry point, of the group
that the registry names, in its `pyproject.toml`:

    [project.entry-points."dipo.targets"]
    mydevice = "mypackage.mydevice:TARGET"

A name is known without importing what it stands for; that is loaded when somebody asks for it, in each process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from dipo.errors import UserError

if TYPE_CHECKING:
    from importlib import metadata

EntryT = TypeVar("EntryT")


class Registry(Mapping[str, EntryT], Generic[EntryT]):
    """Entries by name: dipo's own in the order of their list, then those of other packages, by name."""

    def __init__(self, kind: str, own: Mapping[str, EntryT], *, group: str) -> None:
        """List dipo's own entries.

        Args:
            kind: What the entries are, for messages: `step`.
            own: dipo's own entries, by name.
            group: The group of entry points in which other packages announce theirs.
        """
        self.kind, self.group = kind, group
        self._own = dict(own)
        self._loaded: dict[str, EntryT] = {}

    @cached_property
    def _announced(self) -> dict[str, metadata.EntryPoint]:
        if not _is_announced(self.group):
            return {}
        from importlib import metadata

        found = sorted(metadata.entry_points(group=self.group), key=lambda point: point.name)
        for point in found:
            if point.name in self._own:
                raise UserError(
                    f"{self.kind} '{point.name}' of {_origin(point)}: dipo has one of that name, rename it there"
                )
        return {point.name: point for point in found}

    def __getitem__(self, name: str) -> EntryT:
        """Return the entry of that name.

        Raises:
            KeyError: There is none.
            UserError: Another package announces it, and it cannot be imported.
        """
        if name in self._own:
            return self._own[name]
        if name not in self._loaded:
            point = self._announced[name]
            try:
                self._loaded[name] = point.load()
            except (ImportError, AttributeError) as error:
                raise UserError(
                    f"{self.kind} '{name}' of {_origin(point)}: {point.value} cannot be imported ({error}), "
                    "mend or uninstall that package"
                ) from error
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._announced

    def __len__(self) -> int:
        return len(self._own) + len(self._announced)

    def __contains__(self, name: object) -> bool:
        # Mapping's own would import what the name stands for. Dipo's names need no look at the installed packages.
        return name in self._own or name in self._announced


def _origin(point: metadata.EntryPoint) -> str:
    return "another package" if point.dist is None else point.dist.name


def _is_announced(group: str) -> bool:
    """Return whether an installed package may have entry points of a group.

    Reading the files directly takes a tenth of the time of `importlib.metadata`, which matters for `--help`.
    """
    section = f"[{group}]".encode()
    for entry in map(Path, sys.path):
        if entry.is_file():
            return True  # an archive, which importlib looks into
        for file in entry.glob("*.*-info/entry_points.txt"):
            if section in file.read_bytes():
                return True
    return False
