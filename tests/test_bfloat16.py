"""bfloat16 in numba's loops: the rounding is torch's, bit for bit."""

import numba
import torch

from fastcondense.kernels.common.bfloat16 import as_stored, store, widen
from fastcondense.kernels.common.threads import kernel, launch


@kernel
def round_all(x, rounded, wide, kept):
    for i in numba.prange(x.size):
        store(rounded, i, x[i])
        wide[i] = widen(rounded[i])
        kept[i] = as_stored(rounded, x[i])


def test_every_upper_half_and_its_ties_round_as_torchs():
    upper = torch.arange(2**16, dtype=torch.int64)[:, None] << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    x = (upper + lower).flatten().to(torch.int32).view(torch.float32)  # every exponent, infinities and NaN among them
    rounded, wide, kept = torch.empty(x.shape, dtype=torch.bfloat16), torch.empty_like(x), torch.empty_like(x)
    launch(round_all, x, rounded, wide, kept)
    expected = x.bfloat16()
    is_nan = x.isnan()
    assert torch.equal(rounded.isnan(), is_nan) and 0 < int(is_nan.sum()) < len(x) / 100
    assert torch.equal(rounded[~is_nan].view(torch.int16), expected[~is_nan].view(torch.int16))
    for back in (wide, kept):
        assert torch.equal(back[~is_nan], expected[~is_nan].float()) and back[is_nan].isnan().all()


def test_float32_is_left_alone():
    x = torch.randn(100)
    rounded, wide, kept = (torch.empty_like(x) for _ in range(3))
    launch(round_all, x, rounded, wide, kept)
    assert all(torch.equal(x, y) for y in (rounded, wide, kept))
