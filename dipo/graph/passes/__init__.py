"""The passes that normalise a network to the form that everything else relies on, in their order.

A pass raises a `UserError` whose sentence lacks the model's name; its caller, who knows it, adds it.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import PassBase
from onnx_ir.passes.common import TopologicalSortPass

from dipo.graph.compared_outputs import RestoreOutputs
from dipo.graph.one_by_one import set_rows
from dipo.graph.op_library import set_library
from dipo.graph.passes.batch_first import BatchFirst
from dipo.graph.passes.constant_parameters import ConstantParameters
from dipo.graph.passes.constant_targets import ConstantTargets
from dipo.graph.passes.default_domain import DefaultDomain
from dipo.graph.passes.drop_no_ops import DropNoOps
from dipo.graph.passes.enclose_subgraphs import DiscloseSubgraphs, EncloseSubgraphs
from dipo.graph.passes.fold_fills import FoldFills
from dipo.graph.passes.fold_weights import FoldWeights
from dipo.graph.passes.free_batch import FreeBatch
from dipo.graph.passes.free_unknown_sizes import FreeUnknownSizes
from dipo.graph.passes.infer_shapes import InferShapes
from dipo.graph.passes.inline import Inline
from dipo.graph.passes.interface import RecordInterface, RestoreInterface
from dipo.graph.passes.modern_opset import ModernOpset
from dipo.graph.passes.name_graphs import NameGraphs
from dipo.graph.passes.name_nodes import NameNodes, RecordLayerNames
from dipo.graph.passes.own_parameters import OwnParameters, UntieParameters
from dipo.graph.passes.refuse_constant_outputs import RefuseConstantOutputs
from dipo.graph.passes.resize_scales import ResizeScales
from dipo.graph.passes.scalar_limits import ScalarLimits
from dipo.graph.passes.simplify import Simplify
from dipo.graph.passes.single_precision import SinglePrecision
from dipo.graph.passes.true_shapes import TrueShapes

READING: tuple[PassBase, ...] = (
    DefaultDomain(),
    TopologicalSortPass(),
    NameGraphs(),
    FreeUnknownSizes(),
)
"""The passes that bring the ways in which a file may be written to one; they hold for any file that ONNX allows."""

IN_SINGLE_PRECISION: tuple[PassBase, ...] = (
    ConstantParameters(),
    Inline(),
    FoldWeights(),
    SinglePrecision(),
)
"""The passes that bring a file to float32 and change nothing else."""

NORMALISATION: tuple[PassBase, ...] = (
    ConstantParameters(),
    ModernOpset(),
    TrueShapes(),
    RecordInterface(),
    Inline(),
    FoldFills(),
    # Constants are computed in the types of the file.
    FoldWeights(),
    SinglePrecision(),
    UntieParameters(),
    RecordLayerNames(),
    Simplify(),
    # Once more: the optimizer may have found out what a weight depends on, such as a shape.
    FoldWeights(),
    EncloseSubgraphs(),
    ScalarLimits(),
    InferShapes(),
    ConstantTargets(),
    DropNoOps(),
    ResizeScales(),
    BatchFirst(),
    FreeBatch(),
    RefuseConstantOutputs(),
    NameNodes(),
    OwnParameters(),
)
"""The passes in order; afterwards `passes.invariants` hold."""
ONE_BY_ONE: tuple[PassBase, ...] = tuple(each for each in NORMALISATION if not isinstance(each, FreeBatch))
"""The passes for a network that runs one sample at a time: its batch stays as it is."""
WHOLE: tuple[PassBase, ...] = tuple(BatchFirst(whole=True) if isinstance(p, BatchFirst) else p for p in ONE_BY_ONE)
"""Those for one of which a sample is all that its file takes in a run."""


def as_in_file(model: ir.Model) -> ir.Model:
    """Return a copy of a normalised network whose inputs and outputs are those of the user's file.

    Some values have other names there, see `passes.interface.names_in_file`.
    """
    copy = model.clone()
    RestoreOutputs()(copy)
    RestoreInterface()(copy)
    DiscloseSubgraphs()(copy)
    set_rows(copy, None)
    set_library(copy, None)
    return copy
