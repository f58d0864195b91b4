"""What a job's network is made of: what computes it, what is quantized of it, and what not and why."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir
import torch

from dipo.algo.step import UnitStep
from dipo.config import Config
from dipo.export.targets import TARGETS
from dipo.graph import operators
from dipo.graph.accessors import name_of, node_name
from dipo.graph.float_products import float_products
from dipo.graph.layers import layer_of, layers_of
from dipo.graph.multiplications import Shapes, multiplications
from dipo.graph.opset import ENCLOSED
from dipo.graph.program import regions
from dipo.graph.recurrent import BITS, is_recurrent, names_of
from dipo.graph.torch_module import GraphModule, channels_last
from dipo.graph.units import find_units
from dipo.report.network_facts import FloatRow, NetworkFacts, RegionRow
from dipo.stages.load import JobInputs
from dipo.stages.sequential import solved_units


def network_facts(loaded: JobInputs, config: Config, *, shapes: Shapes) -> NetworkFacts:
    """Count a network's nodes, layers and multiplications.

    Args:
        loaded: The job.
        config: Its configuration.
        shapes: Result of `sample_shapes`.
    """
    model, plan = loaded.model, loaded.plan
    products = {node: multiplications(node, shapes) for node in model.graph}
    total = sum(products.values())

    def share(nodes: Iterable[ir.Node]) -> float:
        return sum(products[node] for node in nodes) / total if total else 0.0

    groups = regions(model)
    in_runtime = set(itertools.chain(*groups))
    why = _reasons(loaded, config, [node for node in model.graph if products[node] or layer_of(node)], in_runtime)
    rows = [FloatRow(node_name(node), _operator(node, model), reason, share([node])) for node, reason in why.items()]
    quantized = [node for node in model.graph if node not in why]
    return NetworkFacts(
        operators=_counted((node for node in model.graph if node not in in_runtime), model),
        regions=[
            RegionRow(
                [node_name(node) for node in group],
                _counted(group, model),
                share(group),
                {node_name(node): _weights(node, loaded, config) for node in group if _has_weights(node)},
            )
            for group in groups
        ],
        layers=sum(1 for _ in layers_of(model)),
        quantized=len(plan.layers),
        stays_float=sorted(rows, key=lambda row: -row.share),
        units=_units(loaded),
        parameters=sum(
            math.prod(value.const_value.shape.numpy())
            for value in model.graph.initializers.values()
            if value.const_value is not None and value.const_value.dtype.is_floating_point()
        ),
        multiplications=total,
        quantized_share=share(quantized),
    )


def sample_shapes(loaded: JobInputs) -> dict[str, tuple[int, ...]]:
    """Return the shape of every value of the network for one sample, by name."""
    sample = loaded.data.calib.read(0, 1).inputs
    names = [name_of(value) for node in loaded.model.graph for value in node.outputs if value.name]
    shapes = {name: array.shape for name, array in sample.items()}
    module = GraphModule(loaded.model, outputs=names).eval()
    with torch.inference_mode():
        for name, value in module.walk({name: channels_last(torch.from_numpy(each)) for name, each in sample.items()}):
            if isinstance(value, torch.Tensor):
                shapes[name] = tuple(value.shape)
    return shapes


def _reasons(
    loaded: JobInputs, config: Config, products: Sequence[ir.Node], in_runtime: set[ir.Node]
) -> dict[ir.Node, str]:
    """Return why products stay float, of those that do."""
    plan, rules = loaded.plan, TARGETS[config.platform.name].spec
    known = float_products(loaded.model)
    quantized = plan.activations.keys() | plan.aliases.keys()
    found: dict[ir.Node, str] = {}
    for node in products:
        name, kind = node_name(node), operators.key_of(node)
        if name in plan.layers:
            continue
        if node in in_runtime:
            weights = _weights(node, loaded, config) if _has_weights(node) else "its weights stay float"
            found[node] = f"computed in ONNX Runtime, {weights}"
        elif name in known:
            found[node] = known[name]
        elif any(fnmatchcase(name, pattern) for pattern in config.precision.skip):
            found[node] = "left out by precision.skip"
        elif kind not in rules.operators:
            found[node] = f"{config.platform.name} computes no {kind} with integers"
        elif layer_of(node) is None and not {v.name for v in node.inputs if v is not None} <= quantized:
            found[node] = "a product of activations that are not both quantized"
    return found


def _has_weights(node: ir.Node) -> bool:
    return is_recurrent(node) or bool(names_of(node))


def _weights(node: ir.Node, loaded: JobInputs, config: Config) -> str:
    """Return in which form the weights of a recurrent node, or inside a branch or loop, are stored, and why."""
    names, platform = names_of(node), config.platform.name
    stored = [name for name in names if name in loaded.plan.recurrent]
    if stored and not is_recurrent(node):
        return f"{len(stored)} weights of layers inside are stored in {BITS} bits"
    if names and len(stored) == len(names):
        return f"its weights are stored in {BITS} bits"
    if not names:
        return "its weights are computed and stay float"
    if not TARGETS[platform].spec.recurrent_weights:
        return f"its weights stay float, the form in which {platform} reads them"
    if any(fnmatchcase(node_name(node), pattern) for pattern in config.precision.skip):
        return "its weights stay float, left out by precision.skip"
    left = " and ".join(name for name in names if name not in stored)
    return f"of its weights {left} {'stays' if len(names) - len(stored) == 1 else 'stay'} float, read elsewhere too"


def _units(loaded: JobInputs) -> int | None:
    """Return the largest number of units of a step that solves them; None without such a step."""
    steps = [step for step in loaded.steps if isinstance(step, UnitStep)]
    if not steps:
        return None
    found = (find_units(loaded.model, granularity=step.granularity, samples=loaded.samples) for step in steps)
    return max(len(solved_units(units, loaded.plan)) for units in found)


def _counted(nodes: Iterable[ir.Node], model: ir.Model) -> dict[str, int]:
    return dict(Counter(_operator(node, model) for node in nodes).most_common())


def _operator(node: ir.Node, model: ir.Model) -> str:
    """Return a node's operator; of a call that holds a node with subgraphs, that node's."""
    held = model.functions[node.op_identifier()][0] if node.domain == ENCLOSED else node
    return operators.key_of(held)
