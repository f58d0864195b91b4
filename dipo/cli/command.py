"""A command of `dipo`, and its start."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import dipo
from dipo.cli.guard import guarded
from dipo.cli.words import HELP, VERSION, Flag, Line, sort_words
from dipo.section import Option


def no_choices(line: Line) -> Mapping[str, Sequence[str]]:
    """Return no choices: a command without groups of presets."""
    del line
    return {}


@dataclass(frozen=True)
class Command:
    """A command of `dipo`."""

    name: str
    """What the user types: `export`."""
    summary: str
    """What it does, in a line."""
    page: Callable[[Line, int], str]
    """Its help, for a command line and a width."""
    run: Callable[[Line], int]
    """Does it, and returns the exit status."""
    options: Callable[[], Mapping[str, Option]]
    """What `option=value` words it takes, by option."""
    flags: tuple[Flag, ...] = (HELP, VERSION)
    groups: Callable[[Line], Mapping[str, Sequence[str]]] = no_choices
    """Groups of presets with their choices."""
    names: Callable[[], Sequence[str]] = tuple
    """Words without a value that it takes."""
    program: str = "dipo"
    """The name that stands before its errors."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command line `argv`, by default the process's own, and return the exit status."""
        return guarded(lambda: self.start(sys.argv[1:] if argv is None else argv), program=self.program)

    def start(self, argv: Sequence[str]) -> int:
        """Do what the words ask for, or print the help or the version, and return the exit status.

        Raises:
            UserError: The words are wrong, or what they name.
        """
        line = sort_words(argv, self.flags)
        if VERSION.name in line.flags:
            sys.stdout.write(f"dipo {dipo.__version__}\n")
            return 0
        if HELP.name in line.flags:
            sys.stdout.write(f"{self.page(line, columns())}\n")
            return 0
        return self.run(line)


def columns() -> int:
    """Return how wide a page is: as the terminal, but 40 columns at least and 120 at most."""
    return min(max(shutil.get_terminal_size().columns, 40), 120)
