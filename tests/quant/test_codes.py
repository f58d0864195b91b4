import numpy as np

from dipo.quant.codes import nearest_codes
from dipo.quant.spec import QParams


def test_codes_are_the_nearest_ties_to_even_and_within_limits():
    qparams = QParams(np.float32([0.5, 1.0]), np.int32([0, 2]), -4, 3, 0)
    weight = np.float32([[0.25, 0.75, -9.0, 9.0], [0.4, -0.6, 0.5, 1.5]])
    np.testing.assert_array_equal(nearest_codes(weight, qparams), [[0, 2, -4, 3], [2, 1, 2, 3]])
    assert nearest_codes(weight, qparams).dtype == np.int32
