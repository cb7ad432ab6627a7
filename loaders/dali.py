"""Image files decoded, cut and resized by NVIDIA DALI, on the CPU or on a GPU, with windows that come from outside.

Files that DALI and Pillow would decode differently, or that DALI would stumble over, are Pillow's: see `is_for_dali`.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from torch import Tensor

from .folder import AHEAD, ImageFile, Workers, cuts_of_files, finished, write_square
from .resize import OUT_HEIGHT
from .source import Centered, Cut, Faults

Feed = tuple[list[np.ndarray], np.ndarray, np.ndarray] | tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]
"""JPEG bytes; for Windowed the windows' corners, shapes and flips; for Centered the shapes that images are resized to
and the squares' corners in them."""


def is_for_dali(file: ImageFile, cut: Cut, window: np.ndarray) -> bool:
    """Whether a file is a complete grey or YCbCr JPEG, and its window not empty and inside it.

    A window outside makes DALI read memory that is not its own. Pillow refuses a JPEG that ends early; DALI may not.
    """
    header = file.header
    if header.format != "JPEG" or header.mode not in ("RGB", "L") or header.info.get("adobe_transform") == 0:
        return False
    if not file.data.endswith(b"\xff\xd9"):
        return False
    top, left, height, width = (int(value) for value in window[:4])
    is_inside = min(top, left) >= 0 and top + height <= header.height and left + width <= header.width
    return isinstance(cut, Centered) or (is_inside and min(height, width) > 0)


class DALILoader:
    """Image files decoded by DALI with `workers` threads on `device`; a Loader (source.py). Batches lie on `device`.

    On a GPU, JPEGs are decoded by nvJPEG and resized there. On the CPU DALI needs none.
    """

    def __init__(self, files: Sequence[Path], workers: int, device: torch.device):
        self.files, self.device, self.workers = files, device, Workers(max(1, workers))
        self.threads = max(1, workers)
        self._idle: dict[tuple[Any, ...], _Engine] = {}

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, sample: int) -> ImageFile:
        return ImageFile.read(self.files[sample])

    def batches(self, ids: Sequence[np.ndarray], cut: Cut, faults: Faults) -> Iterator[tuple[Tensor, Tensor]]:
        """See source.Loader. Batches are channels_last."""
        longest = max((len(batch) for batch in ids), default=1)
        size = 1 << (longest - 1).bit_length()  # a power of two: engines are few, whatever the batches
        key = type(cut), cut.size, size
        planned = (_Batch(batch, files, cut, self.workers) for batch, files in self.workers.read(self._read, ids))
        while True:
            engine = self._idle.pop(key, None) or _Engine(cut, size, self.threads, self.device)
            for batch, made in engine.run(planned):
                if result := finished(batch.ids, *batch.collect(made, self.device), faults):
                    yield result
            if not engine.is_broken:
                break
        self._idle[key] = engine  # if the caller leaves before, it is dropped with what it holds


class _Batch:
    """A batch under way: DALI makes the samples at `rows`, Pillow the other ones that could be read."""

    def __init__(self, ids: np.ndarray, files: list[Any], cut: Cut, workers: Workers):
        self.ids, self.files, self.cut, self.workers = ids, files, cut, workers
        self.table = cuts_of_files(files, ids, cut)
        read = [k for k, file in enumerate(files) if isinstance(file, ImageFile)]
        self.rows = [k for k in read if is_for_dali(files[k], cut, self.table[k])]
        self._squares = torch.empty(len(ids), cut.size, cut.size, 3, dtype=torch.uint8)
        self._others: dict[int, Future[Any]] = {}
        self._leave_to_pillow(sorted(set(read) - set(self.rows)))

    def _leave_to_pillow(self, rows: Iterable[int]) -> None:
        for k in rows:
            self._others[k] = self.workers.start(write_square, self.files[k], self.table[k], self._squares[k].numpy())

    def feed(self) -> Feed:
        """The arrays that the pipeline is given."""
        files = [self.files[k] for k in self.rows]
        jpegs = [np.frombuffer(file.data, dtype=np.uint8) for file in files]
        if not isinstance(self.cut, Centered):
            table = self.table[self.rows]
            return jpegs, table[:, :2].copy(), table[:, 2:4].copy(), table[:, 4].copy()
        shapes, corners = np.split(self.table[self.rows][:, OUT_HEIGHT:], 2, axis=1)
        return jpegs, shapes.astype(np.float32), corners.copy()

    def collect(self, made: Tensor | None, device: torch.device) -> tuple[Tensor, list[Any]]:
        """Pixels [B, S, S, 3] on `device` and, a sample, a ValueError or anything else.

        made: what DALI made of `rows`. If it made nothing, Pillow reads them, or names the one that is wrong.
        """
        if made is None:
            self._leave_to_pillow(self.rows)
        outcomes = [self._others[k].result() if k in self._others else file for k, file in enumerate(self.files)]
        if made is None:
            return self._squares.to(device), outcomes
        made = _roll(made, self.table[self.rows])
        if len(self.rows) == len(self.ids):
            return made, outcomes
        pixels = self._squares.to(device)
        pixels[torch.tensor(self.rows, device=device)] = made
        return pixels, outcomes


def _roll(squares: Tensor, table: np.ndarray) -> Tensor:
    """squares [N, S, S, 3], shifted circularly by the table's last columns."""
    rolls = torch.from_numpy(table[:, 5:7]).long()
    if not rolls.any():
        return squares
    index = (torch.arange(squares.shape[1]) - rolls[:, :, None]).remainder(squares.shape[1]).to(squares.device)
    sample = torch.arange(len(squares), device=squares.device)[:, None, None]
    return squares[sample, index[:, 0, :, None], index[:, 1, None, :]]


class _Engine:
    """A pipeline for one kind and size of cuts and at most `batch_size` images; lives until a file breaks it."""

    def __init__(self, cut: Cut, batch_size: int, threads: int, device: torch.device):
        self.is_broken = False
        self._source: Callable[[], Feed]
        self._on_gpu = on_gpu = device.type == "cuda"
        device_id = (device.index if device.index is not None else torch.cuda.current_device()) if on_gpu else None
        self._pipeline = Pipeline(batch_size, threads, device_id, prefetch_queue_depth=AHEAD)
        with self._pipeline:
            # Windows are those of the stored pixels. nvJPEG's plain upsampling of colours is not libjpeg's.
            decoding: dict[str, Any] = {"adjust_orientation": False, "jpeg_fancy_upsampling": True}
            decoding["device"] = "mixed" if on_gpu else "cpu"
            scaling = {"interp_type": types.INTERP_LINEAR, "antialias": True}
            if isinstance(cut, Centered):
                jpeg, shape, corner = self._inputs(types.UINT8, types.FLOAT, types.INT32)
                images = fn.resize(fn.decoders.image(jpeg, **decoding), size=shape, **scaling)
                square = {"start": corner, "shape": 2 * [cut.size], "axes": [0, 1]}
                images = fn.slice(images, out_of_bounds_policy="pad", **square)
            else:
                jpeg, corner, shape, flip = self._inputs(types.UINT8, types.INT32, types.INT32, types.INT32)
                images = fn.decoders.image_slice(jpeg, start=corner, shape=shape, axes=[0, 1], **decoding)
                images = fn.flip(fn.resize(images, size=2 * [cut.size], **scaling), horizontal=flip)
            self._pipeline.set_outputs(images)

    def _inputs(self, *kinds: types.DALIDataType) -> list[Any]:
        return list(fn.external_source(lambda: self._source(), num_outputs=len(kinds), batch=True, dtype=list(kinds)))

    def run(self, batches: Iterator[_Batch]) -> Iterator[tuple[_Batch, Tensor | None]]:
        """Every batch with what DALI made of its rows, [rows, S, S, 3]; None if it had none, or broke."""
        fed: deque[_Batch] = deque()
        is_planning = False

        def source() -> Feed:
            nonlocal is_planning
            is_planning = True
            while (batch := next(batches, None)) is not None:
                fed.append(batch)
                if batch.rows:
                    is_planning = False
                    return batch.feed()
            is_planning = False
            raise StopIteration

        self._source = source
        try:
            while True:
                (images,) = self._pipeline.run(torch.cuda.current_stream() if self._on_gpu else None)
                while not fed[0].rows:
                    yield fed.popleft(), None
                yield fed.popleft(), torch.from_dlpack(images.as_tensor())
        except StopIteration:
            self._pipeline.reset()
        except RuntimeError as error:
            if is_planning or not fed:  # no file is to blame
                raise
            self.is_broken = True
            reason = str(error).strip().splitlines()[-1]
            warnings.warn(f"DALI gave up; Pillow reads {len(fed)} batches in its place: {reason}", stacklevel=2)
        yield from ((batch, None) for batch in fed)
