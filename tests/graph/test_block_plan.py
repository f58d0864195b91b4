"""Which layers have a scale for each block of inputs."""

import pytest
from networks import network, saved

from dipo.errors import UserError
from dipo.export.targets import TARGETS
from dipo.graph.constraints import fitting
from dipo.graph.load import load
from dipo.graph.plan import make_plan
from dipo.recipe import PrecisionConfig

NETWORK = """(float[N,32,6,6] x) => (float[N,6] y) {
  [plain] a = Conv<pads=[1,1,1,1]>(x, w1)
  [depthwise] b = Conv<group=36>(a, w2)
  [grouped] c = Conv<group=2>(b, w3)
  [up] d = ConvTranspose(c, w4)
  [pool] e = GlobalAveragePool(d)
  [flat] f = Flatten(e)
  [even] g = Gemm<transB=1>(f, w5)
  [odd] h = MatMul(g, w6)
  [few] y = MatMul(h, w7)
}"""
SHAPES = {
    "w1": (36, 32, 3, 3), "w2": (36, 1, 3, 3), "w3": (20, 18, 1, 1), "w4": (20, 32, 1, 1), "w5": (20, 32),
    "w6": (20, 16), "w7": (16, 6),
}  # fmt: skip


@pytest.fixture
def blocks(tmp_path):
    def find(platform="ort", **settings):
        model = load(saved(network(NETWORK, **SHAPES), tmp_path))
        plan = make_plan(
            model, TARGETS[platform].spec, PrecisionConfig(weight_bits=4, act_bits=8, first_last_bits=None, **settings)
        )
        return {name: layer.spec.block for name, layer in plan.layers.items() if layer.spec.block is not None}

    return find


def test_layers_with_more_inputs_than_a_block_have_blocks(blocks):
    assert blocks() == {}
    assert blocks(weight_block=16) == {"plain": 16, "grouped": 16, "even": 16, "odd": 16}


def test_targets_without_shorter_blocks_have_whole_ones(blocks):
    assert blocks("openvino", weight_block=16) == {"plain": 16, "even": 16}
    assert blocks("trt", weight_block=16) == {"even": 16}


def test_a_layer_may_have_others_or_none(blocks):
    more = {"plain": {"weight_block": None}, "odd": {"weight_block": 8}, "even": {"weight_per_channel": False}}
    assert blocks(weight_block=16, overrides=more) == {"grouped": 16, "odd": 8}
    assert blocks(overrides={"od*": {"weight_block": 8}}) == {"odd": 8}


@pytest.mark.parametrize("platform", sorted(name for name, target in TARGETS.items() if not target.spec.weight_blocks))
def test_targets_without_blocks_refuse_them(blocks, platform):
    for wishes in ({"weight_block": 16}, {"overrides": {"odd": {"weight_block": 16}}}):
        with pytest.raises(UserError, match=f"weight_block: platform {platform} has no scales for blocks of a weight"):
            blocks(platform, **wishes)
    fits = fitting(TARGETS[platform].spec, PrecisionConfig(weight_block=16, overrides={"odd": {"weight_block": 16}}))
    assert (fits.weight_block, fits.overrides) == (None, {"odd": {}})


def test_blocks_of_a_weight_with_one_scale_are_refused(blocks):
    with pytest.raises(UserError, match="blocks are parts of channels"):
        blocks(weight_block=16, weight_per_channel=False)
