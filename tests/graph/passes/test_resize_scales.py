"""A Resize that names its axes gives factors for all of them."""

import numpy as np
import pytest
from loaded import assert_same, load_model
from networks import network

from dipo.graph.accessors import array_of
from dipo.graph.passes.resize_scales import exact_scales

AXES = {
    "sizes": ("axes=[2,3]", ", k", np.array([12, 9]), [1, 1, 2, 1.5]),
    "sizes of one axis, counted from the end": ("axes=[-1]", ", k", np.array([18]), [1, 1, 1, 3]),
    "factors": ("axes=[3,2]", "k", np.array([2, 3], np.float32), [1, 1, 3, 2]),
}


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("axes", "port", "constant", "scales"), AXES.values(), ids=AXES)
def test_axes_become_factors(tmp_path, batch, mode, axes, port, constant, scales):
    text = f"""(float[{batch},3,6,6] x) => (float[{batch},4,H,W] y) {{
      [c1] a = Conv(x, w)
      [up] y = Resize<{axes},mode="{mode}">(a, , {port})
    }}"""
    loaded = assert_same(network(text, opset=18, w=(4, 3, 1, 1), k=constant), tmp_path)
    resize = loaded.graph[1]
    assert "axes" not in resize.attributes
    np.testing.assert_allclose(array_of(resize.inputs[2]), scales)
    assert "k" not in loaded.graph.initializers


def test_unknown_sizes_keep_their_axes(tmp_path):
    text = "(float[N,3,H,6] x) => (float[N,4,12,9] y) { [c1] a = Conv(x, w) \n [up] y = Resize<axes=[2,3]>(a, , , k) }"
    resize = load_model(network(text, opset=18, w=(4, 3, 1, 1), k=np.array([12, 9])), tmp_path).graph[1]
    assert "axes" in resize.attributes
    assert len(resize.inputs) == 4


def test_factors_give_all_sizes_exactly():
    old, new = (array.reshape(-1) for array in np.meshgrid(np.arange(1, 257), np.arange(1, 257)))
    scales = exact_scales(old, new)
    assert scales is not None
    assert scales.dtype == np.float32
    np.testing.assert_array_equal(np.floor(old.astype(np.float32) * scales), new)
