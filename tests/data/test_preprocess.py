import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipo.data.preprocess import Fit, Layout, Preprocessing, fit
from dipo.data.samples import InputSpec
from dipo.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocessing(
    mean: tuple[float, ...] = (0.0,), std: tuple[float, ...] = (1.0,), layout: Layout = "auto"
) -> Preprocessing:
    return Preprocessing(mean=mean, std=std, scale=1 / 255, size=None, layout=layout)


def fitted(
    wanted: tuple[int | None, ...], stored: np.ndarray, how: Preprocessing | None = None, dtype: str = "float32"
) -> Fit:
    spec = InputSpec("image", (None, *wanted), np.dtype(dtype))
    return fit(spec, shape=stored.shape[1:], dtype=stored.dtype, how=how or preprocessing(), source="f.npz")


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def reference(nhwc: np.ndarray) -> np.ndarray:
    return ((nhwc / 255 - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2).astype(np.float32)


@pytest.mark.parametrize("wanted", [(3, 6, 5), (3, None, None), (None, None, None)])
def test_nhwc_pixels_become_what_float64_arithmetic_gives(wanted: tuple[int | None, ...]) -> None:
    stored = pixels(4, 6, 5, 3)
    result = fitted(wanted, stored, preprocessing(MEAN, STD)).apply(stored, first=0, source="f")
    np.testing.assert_allclose(result, reference(stored), rtol=0, atol=1e-6)
    assert result.dtype == np.float32 and result.flags.c_contiguous and result.flags.writeable


def test_every_pixel_code_agrees_with_the_reference_to_the_last_bit() -> None:
    stored = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3)
    result = fitted((3, 16, 16), stored, preprocessing(MEAN, STD)).apply(stored, first=0, source="f")
    np.testing.assert_array_max_ulp(result, reference(stored), maxulp=1)


def test_nchw_pixels_are_not_transposed() -> None:
    stored = pixels(4, 6, 5, 3)
    nchw = np.ascontiguousarray(stored.transpose(0, 3, 1, 2))
    result = fitted((3, 6, 5), nchw, preprocessing(MEAN, STD)).apply(nchw, first=0, source="f")
    np.testing.assert_allclose(result, reference(stored), rtol=0, atol=1e-6)


@pytest.mark.parametrize("from_nchw", [False, True])
def test_model_with_channels_last_gets_them_last(from_nchw: bool) -> None:
    nhwc = pixels(2, 6, 5, 3)
    stored = nhwc.transpose(0, 3, 1, 2) if from_nchw else nhwc
    result = fitted((6, 5, 3), stored, preprocessing(MEAN, STD)).apply(stored, first=0, source="f")
    np.testing.assert_allclose(result, reference(nhwc).transpose(0, 2, 3, 1), rtol=0, atol=1e-6)
    assert result.flags.c_contiguous


@pytest.mark.parametrize("layout", ["auto", "nchw", "nhwc"])
def test_grey_images_get_a_channel_axis(layout: Layout) -> None:
    stored = pixels(2, 6, 5)
    result = fitted((1, 6, 5), stored, preprocessing((0.5,), (0.5,), layout)).apply(stored, first=0, source="f")
    np.testing.assert_allclose(result[:, 0], stored / 127.5 - 1, rtol=0, atol=1e-6)


def test_floats_are_transposed_only_where_only_that_fits() -> None:
    stored = np.arange(2 * 7 * 8 * 5, dtype=np.float32).reshape(2, 7, 8, 5)
    same = fitted((7, 8, 5), stored, preprocessing(MEAN, STD)).apply(stored, first=0, source="f")
    np.testing.assert_array_equal(same, stored)
    moved = fitted((5, 7, 8), stored).apply(stored, first=0, source="f")
    np.testing.assert_array_equal(moved, stored.transpose(0, 3, 1, 2))
    undecided = fitted((None, None, None), stored[..., :3]).apply(stored[..., :3], first=0, source="f")
    assert undecided.shape == (2, 7, 8, 3)


def test_layout_overrules_the_shapes() -> None:
    stored = np.arange(2 * 3 * 3 * 3, dtype=np.float32).reshape(2, 3, 3, 3)
    auto, nhwc = (
        fitted((3, 3, 3), stored, preprocessing(layout=x)).apply(stored, first=0, source="f") for x in ("auto", "nhwc")
    )
    np.testing.assert_array_equal(auto, stored)
    np.testing.assert_array_equal(nhwc, stored.transpose(0, 3, 1, 2))


def test_wrong_layout_is_told_with_both_shapes() -> None:
    with pytest.raises(UserError, match=r"f\.npz .*32x32x3 \(data\.layout=nchw\).*'image' takes 3x32x32"):
        fitted((3, 32, 32), pixels(1, 32, 32, 3), preprocessing(layout="nchw"))


@pytest.mark.parametrize("shape", [(28, 28, 3), (32, 32), (3, 32, 32, 1), ()])
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="'image' takes 3x32x32"):
        fitted((3, 32, 32), pixels(2, *shape))


def test_pixels_for_a_flat_input_are_scaled_without_channels() -> None:
    stored = pixels(3, 64)
    result = fitted((64,), stored, preprocessing((0.5,), (0.25,))).apply(stored, first=0, source="f")
    np.testing.assert_allclose(result, (stored / 255 - 0.5) / 0.25, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("stored", "wanted"), [("uint8", "uint8"), ("int64", "int64"), ("int32", "int64")])
def test_integer_inputs_get_the_stored_integers(stored: str, wanted: str) -> None:
    values = pixels(4, 7).astype(stored)
    result = fitted((7,), values, preprocessing((0.5,), (0.5,)), wanted).apply(values, first=0, source="f")
    assert result.dtype == wanted
    np.testing.assert_array_equal(result, values)


def test_floats_for_an_integer_input_are_refused() -> None:
    with pytest.raises(UserError, match=r"holds float32, but input 'image' takes int64"):
        fitted((7,), np.zeros((2, 7), np.float32), dtype="int64")


def test_integers_that_overflow_the_input_are_refused() -> None:
    stored = np.array([[1, 2], [3, 2**40]], np.int64)
    with pytest.raises(UserError, match=r"f: sample 1 has a value out of range"):
        fitted((2,), stored, dtype="int32").apply(stored, first=0, source="f")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_sample_that_is_not_finite_is_named(bad: float) -> None:
    stored = np.zeros((5, 3, 4, 4), np.float64)
    stored[2, 1, 3, 3] = bad
    with pytest.raises(UserError, match=r"f\.npz: sample 12 has NaN or Inf for input 'image'"):
        fitted((3, 4, 4), stored).apply(stored, first=10, source="f.npz")


def test_mean_must_fit_the_channels() -> None:
    with pytest.raises(UserError, match=r"data\.mean has 2 values, but f\.npz has 3 channel"):
        fitted((3, 4, 4), pixels(1, 4, 4, 3), preprocessing((0.5, 0.5), STD))
    with pytest.raises(UserError, match=r"data\.std has 3 values, but f\.npz has 1 channel"):
        fitted((1, 4, 4), pixels(1, 4, 4), preprocessing((0.5,), STD))


@given(st.integers(0, 255), st.floats(-1, 1), st.floats(0.05, 4))
def test_half_precision_inputs_are_normalised_before_they_are_rounded(code: int, mean: float, std: float) -> None:
    stored = np.full((1, 2, 2, 3), code, np.uint8)
    result = fitted((3, 2, 2), stored, preprocessing((mean,), (std,)), "float16").apply(stored, first=0, source="f")
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, (code / 255 - mean) / std, rtol=1e-3, atol=1e-4)


def test_result_shares_no_memory_with_what_is_stored() -> None:
    stored = np.zeros((2, 3, 4, 4), np.float32)
    result = fitted((3, 4, 4), stored).apply(stored, first=0, source="f")
    assert not np.shares_memory(result, stored)
