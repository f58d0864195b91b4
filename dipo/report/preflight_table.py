"""The table in front of a job: what its network is made of, how samples are read, and what it will cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from rich.table import Table
from rich.text import Text

from dipo.report.network_facts import Estimate, FloatRow, NetworkFacts, Preflight, RegionRow

NAMED = 5
"""Number of rows of one kind, and of operators, that are named unless all are asked for."""
TINY = 0.0005
"""Share of the multiplications below which none is said."""
_UNITS = ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"))


def preflight_table(found: Preflight, *, every: bool) -> Table:
    """Return the table.

    Args:
        found: What it says.
        every: Whether all nodes that stay float and all operators are named.
    """
    table = Table(title=Text(found.title), title_justify="left", title_style="bold", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = [*_composition(found.facts, None if every else NAMED), *found.samples.items(), *_cost(found.estimate)]
    for name, text in rows:
        table.add_row(name, Text(text))
    return table


def _composition(facts: NetworkFacts, most: int | None) -> Iterator[tuple[str, str]]:
    yield "in torch", _operators(facts.operators, most)
    if not facts.regions:
        yield "in ONNX Runtime", "nothing"
    names = ("in ONNX Runtime", *[""] * len(facts.regions))
    yield from zip(names, _some([_region(row) for row in facts.regions], most), strict=False)
    layers = f"{facts.quantized} of {facts.layers} layers"
    yield "quantized", layers + _of_multiplications(facts.quantized_share)
    if facts.stays_float:
        yield "stays float", _nodes(len(facts.stays_float), "product") + _of_multiplications(facts.float_share)
        yield from (("", text) for text in _some([_float(row) for row in facts.stays_float], most))
    if facts.units is not None:
        yield "units", str(facts.units)
    yield "parameters", amount(facts.parameters)
    yield "multiplications", f"{amount(facts.multiplications)} a sample"


def _cost(estimate: Estimate | None) -> Iterator[tuple[str, str]]:
    if estimate is None:
        yield "cost", "not measured, this machine lacks the device"
        return
    yield "memory", f"about {amount(estimate.worker_mb * 1e6, _BYTES, digits=2)} a worker"
    parts = [f"{name} {duration(seconds)}" for name, seconds in estimate.seconds.items()]
    beside = f", and {', '.join(estimate.unknown)}" if estimate.unknown else ""
    total = duration(sum(estimate.seconds.values()))
    yield "time", f"about {total} with {_nodes(estimate.workers, 'worker')}{beside}: {', '.join(parts)}"


_BYTES = ((1e9, "GB"), (1e6, "MB"))


def _operators(counts: Mapping[str, int], most: int | None) -> str:
    """Return numbers of nodes by operator in words: `60 nodes: 31 Conv, 21 Clip and 8 others`."""
    total = sum(counts.values())
    named = list(counts.items())[:most]
    left = total - sum(number for _, number in named)
    others = f" and {left} of others" if left else ""
    listed = ", ".join(f"{number} {name}" for name, number in named)
    return f"{_nodes(total, 'node')}: {listed}{others}"


def _nodes(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _region(row: RegionRow) -> str:
    alone = len(row.nodes) == 1
    what = f" ({next(iter(row.operators))})" if alone else f" and others, {_operators(row.operators, None)}"
    return f"{row.nodes[0]}{what}{_of_multiplications(row.share)}"


def _float(row: FloatRow) -> str:
    share = f", {100 * row.share:.1f} %" if row.share >= TINY else ""
    return f"{row.name} ({row.operator}{share}): {row.why}"


def _some(rows: list[str], most: int | None) -> list[str]:
    """Return the first rows, and how many more there are; a single one more is named, too."""
    if most is None or len(rows) <= most + 1:
        return rows
    return [*rows[:most], f"and {len(rows) - most} more, see --verbose"]


def _of_multiplications(share: float) -> str:
    if share < TINY:
        return ""
    return f", {100 * share:.1f} % of the multiplications"


def amount(number: float, units: tuple[tuple[float, str], ...] = _UNITS, *, digits: int = 3) -> str:
    """Return a number in words, of some significant digits: `1.03 million`."""
    for size, word in units:
        if number >= size:
            return f"{_digits(number / size, digits)} {word}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Return a time to two digits, in the unit that fits: `45 s`, `3.2 min`, `11 h`; less than a second is one."""
    if seconds < 1:
        return "1 s"
    for size, unit, until in ((1, "s", 120), (60, "min", 7200)):
        if seconds < until:
            return f"{_digits(seconds / size, 2)} {unit}"
    return f"{_digits(seconds / 3600, 2)} h"


def _digits(number: float, digits: int) -> str:
    """Return a number rounded to some significant digits, without an exponent."""
    decimals = digits - 1 - math.floor(math.log10(number)) if number else 0
    return f"{round(number, decimals):.{max(0, decimals)}f}"
