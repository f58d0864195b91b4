"""Every algorithm and every target on networks with windows, with a detector's head and with attention masks.

Of each part of the outputs: the written file computes what was simulated, no algorithm leaves less of it than plain
rounding does, and where little is left of it the report says so. The fast suite has each algorithm on one target and
each target with plain rounding, the slow one the whole product.
"""

import functools
from dataclasses import dataclass

import pytest
import torch
from matrix_networks import CASES

import dipo
from dipo.algo.activation_cache import cut
from dipo.algo.simulate import simulate
from dipo.errors import UserError
from dipo.export.runtime import run_model
from dipo.export.targets import TARGETS
from dipo.graph.torch_module import channels_last
from dipo.report.measures import output_error

EQUAL_DB = 50
"""Least of the file against the simulation: a sum that lies between two codes may fall to either side."""
LITTLE_DB = 15
"""Below this a part is not what the float network makes of it, and the report has to say so."""
SLACK_DB = 1.0
"""The samples of the evaluation are others than those that an algorithm was judged on."""
OPTIONS = {"algo.iters": 20, "algo.tune_iters": 4, "algo.equalize_per_channel": True, "cluster.compile": False}
ALGOS = (
    "none", "equalize", "update_bn", "bias_correction", "gptq", "adaround", "brecq", "qdrop", "tune", "full", "analyze",
    "sparse",
)  # fmt: skip
SWING_DB = 2.0
"""SLACK_DB of equalize, which no guard judges, where scales are powers of two: it moves ranges across them by chance
(the scores of windows, with six sets of weights: -1.6 to 1.5 dB, 0.1 on average)."""
LOSES = {"sparse"}
"""Algorithms that take something away because the user asks for it."""

REFUSED = {("masked", "ti"): "TIDL has no layer for node 'causal' \\(Where\\)"}
"""What the report of a refusal says, by network and target."""


@dataclass(frozen=True)
class Outcome:
    """What a job made of the parts of a network's outputs, in dB by name of the part."""

    kept: dict[str, float]
    """The written file against the float network."""
    equal: dict[str, float]
    """The written file against the simulation."""
    said: frozenset[str]
    """What the report's notes are on."""


@functools.cache
def outcome(case, algo, target):
    """Run a job, and its files and its simulation once more on the samples of the evaluation."""
    built = CASES[case]()
    samples = built.eval()
    result = dipo.quantize(built.model, built.calib(), eval_data=samples, algo=algo, target=target, options=OPTIONS)
    source, spec = result._source, TARGETS[target].spec
    found = simulate(
        source.model,
        plan=source.plan,
        quantized=source.quantized,
        rules=spec,
        batches=cut(built.num_eval, source.config.data.batch_size),
        inputs=lambda batch: {
            name: channels_last(torch.from_numpy(array[batch.start : batch.stop])) for name, array in samples.items()
        },
        profile_samples=0,
        device=torch.device("cpu"),
        progress=lambda _: None,
    )
    deployed = run_model(result.folder / "quantized.onnx", [samples], threads=1, float_biases=not spec.int32_bias)

    def against(reference):
        return {
            name: output_error({name: part.of(reference)}, {name: part.of(deployed)}).sqnr_db
            for name, part in built.parts.items()
        }

    said = frozenset(note.name for note in result.report.notes)
    return Outcome(against(found.fp_outputs), against(found.q_outputs), said)


def check(case, algo, target):
    if (case, target) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[case, target]):
            outcome(case, algo, target)
        return
    found, plain = outcome(case, algo, target), outcome(case, "none", target)
    parts = CASES[case]().parts
    assert {name: db for name, db in found.equal.items() if db < EQUAL_DB} == {}, "deployed is not what was simulated"
    # What a step costs is said under its own name.
    said = {name: found.said & {*parts[name].values, "sparsify", "update_bn"} for name in parts}
    lost = [name for name, db in found.kept.items() if db < LITTLE_DB and not said[name]]
    assert lost == [], f"lost without a word: {found.kept}"
    if algo not in LOSES:
        spec = TARGETS[target].spec
        swings = algo == "equalize" and (spec.power_of_two or spec.prefers_power_of_two)
        slack = SWING_DB if swings else SLACK_DB
        worse = {name: (db, plain.kept[name]) for name, db in found.kept.items() if db < plain.kept[name] - slack}
        assert worse == {}, "below plain rounding"


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("case", CASES)
def test_every_algorithm(case, algo):
    check(case, algo, "ort")


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "ort"])
@pytest.mark.parametrize("case", CASES)
def test_every_target(case, target):
    check(case, "none", target)


@pytest.mark.slow
@pytest.mark.parametrize("target", [name for name in TARGETS if name != "ort"])
@pytest.mark.parametrize("algo", [name for name in ALGOS if name != "none"])
@pytest.mark.parametrize("case", CASES)
def test_every_algorithm_on_every_target(case, algo, target):
    check(case, algo, target)


@pytest.mark.parametrize("case", CASES)
def test_ranges_of_batchnorm_are_refused_in_a_sentence_where_nothing_normalizes(case):
    built = CASES[case]()
    with pytest.raises(UserError, match=r"node '\w+' \(\w+\): what it makes cannot be told without samples"):
        dipo.quantize(built.model, built.calib(), eval_data=built.eval(), algo="dfq", options=OPTIONS)
