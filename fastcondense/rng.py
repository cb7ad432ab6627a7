"""Counter-based random numbers: every draw is a pure function of (seed, purpose, counters).

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11). The code uses only integer
operators that numpy arrays and torch tensors share, so both give the same bits. Words are kept in int64, because
torch has no uint32 arithmetic; products wrap modulo 2^64, and their upper half is masked out.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import betaincinv

Array = Any  # a numpy int64/float64 array or a torch tensor of the same dtype
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Array, Array, Array, Array], key: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
    """Ten rounds of Philox-4x32: four int64 arrays of words in [0, 2^32) -> four of the same kind and shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((right >> 32) & _LOW) ^ c1 ^ k0,
            right & _LOW,
            ((left >> 32) & _LOW) ^ c3 ^ k1,
            left & _LOW,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Stream:
    """All random numbers of one purpose. ``a``, ``b``, ``c`` below are counters in [0, 2^32): ints or int64 arrays."""

    seed: int
    purpose: str

    def words(self, a: Array, b: Array = 0, c: Array = 0) -> tuple[Array, Array, Array, Array]:
        """Four words in [0, 2^32) for every (a, b, c), which are broadcast. numpy unless one of them is a tensor."""
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"a seed must lie in [0, 2^64), got {self.seed}")
        if any(isinstance(x, torch.Tensor) for x in (a, b, c)):
            device = next(x.device for x in (a, b, c) if isinstance(x, torch.Tensor))
            parts = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.int64, device=device) for x in (a, b, c)))
        else:
            parts = np.broadcast_arrays(*(np.atleast_1d(np.asarray(x, dtype=np.int64)) for x in (a, b, c)))
        top = parts[0] * 0 + (self.seed >> 32)
        return philox((*parts, top), (self.seed & _LOW, zlib.crc32(self.purpose.encode())))

    def uniform(self, a: Array, b: Array = 0, c: Array = 0) -> tuple[Array, Array, Array, Array]:
        """Four float64 numbers in [0, 1), multiples of 2^-32, for every (a, b, c)."""
        w0, w1, w2, w3 = (
            w.double() if isinstance(w, torch.Tensor) else w.astype(np.float64) for w in self.words(a, b, c)
        )
        unit = 2.0**-32
        return w0 * unit, w1 * unit, w2 * unit, w3 * unit

    def part(self, name: str) -> Stream:
        """The numbers of a part of this purpose: independent of its own."""
        return Stream(self.seed, f"{self.purpose}/{name}")

    def permutation(self, count: int, b: int = 0) -> np.ndarray:
        """A permutation of range(count), int64, uniform over all of them up to ties in 63-bit keys.

        It sorts by words (i, b, 0): what else is drawn from them, by `uniform` or `words`, comes out sorted.
        """
        high, low, _, _ = self.words(np.arange(count), b)
        return np.argsort((high >> 1 << 32) | low, kind="stable")

    def beta(self, alpha: float, a: Array, b: Array = 0) -> np.ndarray:
        """Beta(alpha, alpha) by inversion of its distribution function, float64 in (0, 1)."""
        u = self.uniform(a, b)[0] + 2.0**-33
        return u if alpha == 1.0 else betaincinv(alpha, alpha, u)

    def normal(self, rows: list[tuple[int, int]], count: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Standard normal numbers, float32 [len(rows), count]; row r depends on rows[r] alone (Box-Muller)."""
        index = torch.arange(-(-count // 4), device=device)
        result = torch.empty(len(rows), 4 * len(index), device=device)
        for at, (b, c) in enumerate(rows):  # one row at a time: the float64 scratch stays small
            u0, u1, u2, u3 = self.uniform(index, b, c)
            for k, (radius, angle) in enumerate(((u0, u1), (u2, u3))):
                length = torch.sqrt(-2.0 * torch.log1p(-radius))  # 1 - radius lies in (0, 1]
                result[at, 2 * k :: 4] = (length * torch.cos(2 * math.pi * angle)).float()
                result[at, 2 * k + 1 :: 4] = (length * torch.sin(2 * math.pi * angle)).float()
        return result[:, :count]

    @contextlib.contextmanager
    def torch_generator(self, a: int = 0, b: int = 0) -> Iterator[None]:
        """Seeds torch's global generators from (a, b) inside the block: for weight initialisation and dropout only."""
        w0, w1, _, _ = self.words(a, b)
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(w0[0]) << 31 ^ int(w1[0]))
            yield
