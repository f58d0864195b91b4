"""Imports run downwards: from a floor to those below it, never to a neighbour on the same floor, and in no circle."""

from __future__ import annotations

import ast
from pathlib import Path

import dipo

PACKAGE = Path(dipo.__file__).parent
FLOORS = [
    {"launch", "__main__"},
    {"cli"},
    {"nightly", "verify", "api"},
    {"job"},
    {"stages"},
    {"cluster"},
    {"config"},
    {"algo", "export", "report", "zoo"},
    {"graph"},
    {"recipe"},
    {"quant", "data", "run"},
    {"section", "registry"},
    {"errors"},
]
"""From the top."""
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
HEAVY = {"torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "ray", "hydra", "omegaconf", "pydantic"}
HOMES = {"ray": "cluster", "hydra": "config", "omegaconf": "config", "pydantic": "section"}
"""Packages that are imported in one place alone."""


def modules():
    """Each module's path by its dotted name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imports(tree):
    """The modules that are imported anywhere in a file, those for types alone included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            inner = [member for member in members if member in MODULES]
            yield from inner if len(inner) == len(members) else [node.module, *inner]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(module):
    """Return the module or package that stands on a floor: `graph` of `dipo.graph.plan`."""
    return module.split(".")[1]


def test_every_room_has_a_floor():
    rooms = {room(name) for name in MODULES if name != "dipo"}
    assert rooms == LEVEL.keys()


def test_imports_run_downwards():
    wrong = []
    for name, path in MODULES.items():
        # `python -m dipo.verify` is a door of the command line's, which stands above.
        if name == "dipo" or path.name == "__main__.py":
            continue
        for other in imports(ast.parse(path.read_text())):
            if other.startswith("dipo.") and room(other) in LEVEL and room(other) != room(name):
                below = LEVEL[room(other)] > LEVEL[room(name)]
                wrong += [] if below else [f"{name} imports {other}"]
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_imports():
    """Of those that run when a module is imported; a function may wait with its own."""
    needs = {}
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        needs[name] = {other for other in imports(tree) if other in MODULES and other != name}
    free = True
    while free:
        free = {name for name, others in needs.items() if not others & needs.keys()}
        needs = {name: others for name, others in needs.items() if name not in free}
    assert not needs, f"in circles, or above one: {sorted(needs)}"


def test_walls_around_packages_hold():
    wrong = []
    for name, path in MODULES.items():
        for other in imports(ast.parse(path.read_text())):
            home = HOMES.get(other.partition(".")[0])
            if home is not None and room(f"{name}.dipo") != home:
                wrong.append(f"{name} imports {other}")
            if other.partition(".")[0] == "torch" and room(f"{name}.dipo") == "export":
                wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(wrong)
