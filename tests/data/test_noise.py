import pickle

import numpy as np
import pytest

from dipo.data.noise import make_noise
from dipo.data.samples import InputSpec
from dipo.errors import UserError

FLOAT = np.dtype(np.float32)
IMAGE = InputSpec("image", (None, 3, 32, 32), FLOAT)
FEATURES = InputSpec("features", (None, 16), FLOAT)


def test_any_part_and_any_reader_gives_the_same_numbers():
    noise = make_noise([IMAGE, FEATURES], num=12, seed=3)
    whole = noise.read(0, 12).inputs
    part = pickle.loads(pickle.dumps(noise)).read(5, 9).inputs
    for name, array in whole.items():
        np.testing.assert_array_equal(array[5:9], part[name])
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
    assert whole["image"].shape == (12, 3, 32, 32)
    assert whole["features"].shape == (12, 16)
    assert noise.read(0, 12).labels is None
    assert not np.array_equal(whole["image"][0], whole["image"][1])
    assert len(noise.take(4)) == 4


def test_numbers_are_normal_and_neighbours_alike():
    # Pixels with this mean and deviation have ends so far out that hardly any number is cut.
    images = make_noise([IMAGE], num=200, seed=0, mean=[0.5], std=[0.1]).read(0, 200).inputs["image"]
    assert abs(images.mean()) < 0.1
    assert abs(images.std() - 1) < 0.1
    neighbours = np.corrcoef(images[..., 1:].ravel(), images[..., :-1].ravel())[0, 1]
    assert neighbours > 0.6
    features = make_noise([FEATURES], num=200, seed=0).read(0, 200).inputs["features"]
    assert abs(np.corrcoef(features[:, 1:].ravel(), features[:, :-1].ravel())[0, 1]) < 0.1


def test_preprocessed_pixels_have_ends():
    noise = make_noise([IMAGE], num=20, seed=0, mean=[0.5, 0.4, 0.3], std=[0.2])
    images = noise.read(0, 20).inputs["image"]
    for channel, mean in enumerate((0.5, 0.4, 0.3)):
        assert images[:, channel].min() >= np.float32((0 - mean) / 0.2)
        assert images[:, channel].max() <= np.float32((1 - mean) / 0.2)
    alone = make_noise([IMAGE], num=20, seed=0, std=[0.5]).read(0, 20).inputs["image"]
    assert alone.min() >= 0
    assert alone.max() <= 2


def test_without_a_mean_they_are_pixels():
    for std in (None, [0.25]):
        factor = 1 if std is None else 4
        images = make_noise([IMAGE], num=50, seed=0, std=std).read(0, 50).inputs["image"]
        assert images.min() == 0
        assert images.max() == factor
        assert images.mean() == pytest.approx(0.5 * factor, rel=0.1)
        assert images.std() == pytest.approx(factor / 12**0.5, rel=0.15)


def test_the_digest_follows_what_the_numbers_follow():
    digests = {
        make_noise([IMAGE], num=8, seed=0).digest(), make_noise([IMAGE], num=8, seed=1).digest(),
        make_noise([IMAGE], num=9, seed=0).digest(), make_noise([FEATURES], num=8, seed=0).digest(),
        make_noise([IMAGE], num=8, seed=0, mean=[0.5]).digest(),
    }  # fmt: skip
    assert len(digests) == 5
    assert make_noise([IMAGE], num=8, seed=0).digest() in digests


def test_the_log_says_that_it_is_no_data():
    assert make_noise([IMAGE], num=8, seed=0).describe() == "8 samples of noise, no data (image 3x32x32)"


@pytest.mark.parametrize(
    "spec", [InputSpec("tokens", (None, 8), np.dtype(np.int64)), InputSpec("image", (None, 3, None, None), FLOAT)]
)
def test_what_noise_cannot_fill_is_refused(spec):
    with pytest.raises(UserError, match=rf"input '{spec.name}' .* give data\.path"):
        make_noise([spec], num=8, seed=0)


def test_other_channels_are_refused():
    with pytest.raises(UserError, match=r"data\.mean has 2 numbers for 3 channels"):
        make_noise([IMAGE], num=8, seed=0, mean=[0.5, 0.5])
