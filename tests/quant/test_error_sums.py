import pytest
import torch

from dipo.quant.error_sums import ErrorSums


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 5), (6,)])
def test_sums_of_batches_add_up_to_those_of_all(shape):
    generator = torch.Generator().manual_seed(0)
    # Small integers: float32 adds them exactly.
    fp, q = (torch.randint(-4, 5, shape, generator=generator).float() for _ in range(2))
    whole = ErrorSums.between(fp, q)
    assert whole == ErrorSums.between(fp[:4], q[:4]) + ErrorSums.between(fp[4:], q[4:])
    assert whole == ErrorSums(
        float((fp * fp).sum()), float((q * q).sum()), float((fp * q).sum()), float(((fp - q) ** 2).sum()), fp.numel()
    )
    assert ErrorSums() + whole == whole


def test_elements_whose_float_number_is_infinite_are_left_out():
    fp = torch.tensor([1.0, -torch.inf, 2.0, torch.inf])
    q = torch.tensor([1.5, -torch.inf, 2.0, 7.0])
    assert ErrorSums.between(fp, q) == ErrorSums.between(fp[::2], q[::2])
