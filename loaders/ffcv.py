"""Images of a .beton file through FFCV's engine, with windows from outside: FFCV's own crops cannot be replayed.

The decoder is an FFCV operation whose compiled code reads a table of cuts, one row a sample, through its address; the
table is refilled before every epoch. Pixels are those of the folder loader (decode_numba.py).
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from .beton import read_beton
from .decode_numba import batch_decoder, bind, pointer
from .folder import open_image
from .reading import naming
from .resize import NUM_COLUMNS, cut_square, table_of_cuts
from .source import Cut, Faults

_torch_threads = torch.get_num_threads()
import ffcv._libffcv  # noqa: E402
from ffcv.fields.rgb_image import SimpleRGBImageDecoder  # noqa: E402
from ffcv.loader import Loader as Engine  # noqa: E402
from ffcv.loader.epoch_iterator import EpochIterator  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402

torch.set_num_threads(_torch_threads)  # importing ffcv sets it to 1
bind(ctypes.CDLL(ffcv._libffcv.__file__))
AHEAD = 3  # batches that are ready before they are asked for


class _WindowDecoder(SimpleRGBImageDecoder):
    """FFCV's image decoder with the cut of every sample read from a table, and damaged samples marked."""

    def __init__(self, samples: int, crcs: np.ndarray):
        super().__init__()
        self.size, self.crcs = 1, np.array(crcs)
        self.table = np.zeros((samples, NUM_COLUMNS), dtype=np.int32)
        self.is_damaged = np.zeros(samples, dtype=np.bool_)

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        shape, dtype = (self.size, self.size, 3), np.dtype(np.uint8)
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        table_at, damaged_at, samples = self.table.ctypes.data, self.is_damaged.ctypes.data, len(self.table)
        crcs_at, decode_batch = self.crcs.ctypes.data, batch_decoder()

        def decode(batch: Any, squares: Any, images: Any, storage: Any) -> Any:
            table = numba.carray(pointer(table_at), (samples, NUM_COLUMNS), np.int32)
            is_damaged = numba.carray(pointer(damaged_at), samples, np.bool_)
            crcs = numba.carray(pointer(crcs_at), samples, np.uint32)
            file, places, lengths = storage
            decode_batch(batch, squares, images, file, places, lengths, crcs, table, is_damaged)
            return squares

        return decode


class _Batches:
    """The order of samples that FFCV takes, sliced batch by batch whatever their lengths."""

    def __init__(self, batches: Sequence[np.ndarray], longest: int):
        self.batches, self.longest = batches, longest

    def __len__(self) -> int:
        return len(self.batches) * self.longest

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.batches[part.start // self.longest]


class _Epoch(EpochIterator):
    """FFCV's thread over an epoch, which can be stopped, hands on its errors and leaves torch's threads alone."""

    error: BaseException | None = None

    def run(self) -> None:
        try:
            numba.set_num_threads(self.loader.num_workers)
            for k, rows in enumerate(self.iter_ixes):
                if self.terminate_event.is_set():
                    break
                slot = k % (AHEAD + 2)
                self.output_queue.put((slot, self.run_pipeline(k, rows, slot, None)))
        except BaseException as error:
            self.error = error
        self.output_queue.put(None)

    def squares(self) -> Iterator[np.ndarray]:
        """uint8 [B, S, S, 3] a batch, valid until the next one is asked for."""
        while (item := self.output_queue.get()) is not None:
            yield item[1][0]
        if self.error is not None:
            raise self.error
        if self.terminate_event.is_set():
            raise RuntimeError("another call of batches() ended this one")

    def stop(self) -> None:
        """Ends the thread, wherever it is."""
        self.terminate_event.set()
        while self.is_alive() or not self.output_queue.empty():
            while not self.output_queue.empty():
                self.output_queue.get_nowait()
            self.join(0.01)
        self.output_queue.put(None)
        self.close()


class FFCVLoader:
    """Images of a .beton file, decoded by `workers` threads (0: one); a Loader (source.py).

    rows: the .beton's samples that are samples 0, 1, ... here, each at most once; all, if not given. One epoch at a
    time: asking for batches ends what an earlier call still had to give. Raises ValueError as `read_beton`.
    """

    def __init__(self, path: Path, rows: np.ndarray | None = None, workers: int = 0):
        self.beton = read_beton(path)
        self.rows = np.arange(len(self.beton)) if rows is None else np.asarray(rows)
        if len(np.unique(self.rows)) < len(self.rows):
            raise ValueError("rows of a .beton file are named twice")
        settings: Any = numba.config  # not declared in its annotations
        self.workers = max(1, min(workers, settings.NUMBA_NUM_THREADS))
        self._decoder = _WindowDecoder(len(self.beton), self.beton.crcs)
        self._engine: Any = None
        self._epoch: _Epoch | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, ids: Sequence[np.ndarray], cut: Cut, faults: Faults) -> Iterator[tuple[Tensor, Tensor]]:
        """See source.Loader. Batches are channels_last."""
        ids = [np.asarray(batch, dtype=np.int64) for batch in ids if len(batch)]
        if not ids:
            return
        epoch = self._start(ids, cut)
        try:
            for batch, squares in zip(ids, epoch.squares(), strict=True):
                pixels = torch.from_numpy(squares.copy())  # FFCV fills the buffer again
                if (damaged := self._decoder.is_damaged[self.rows[batch]]).any():
                    kept = [k for k, bad in enumerate(damaged) if not bad or self._mend(batch[k], pixels[k], faults)]
                    batch, pixels = batch[kept], pixels[kept]
                if len(batch):
                    yield pixels.permute(0, 3, 1, 2), torch.from_numpy(batch)
        finally:
            epoch.stop()

    def _start(self, ids: list[np.ndarray], cut: Cut) -> _Epoch:
        if self._epoch is not None:
            self._epoch.stop()
        wanted = np.unique(np.concatenate(ids))
        if wanted[0] < 0 or wanted[-1] >= len(self):
            raise ValueError(f"samples {wanted[0]} to {wanted[-1]} are asked for, but there are {len(self)}")
        rows = self.rows[wanted]
        images = self.beton.samples["image"][rows]
        sizes = (images[side].astype(np.int64) for side in ("height", "width"))
        self._decoder.table[rows] = table_of_cuts(cut, wanted, *sizes)
        self._decoder.is_damaged[:] = False
        self._decoder.size = cut.size
        engine = self._built()
        engine.batch_size = max(len(batch) for batch in ids)
        batches = [self.rows[batch].astype(np.uint64) for batch in ids]
        self._epoch = _Epoch(engine, _Batches(batches, engine.batch_size))
        return self._epoch

    def _built(self) -> Any:
        """FFCV's loader, which compiles: made once, and used for every epoch."""
        if self._engine is None:
            threads = torch.get_num_threads()
            self._engine = Engine(
                str(self.beton.path),
                batch_size=1,
                num_workers=self.workers,
                os_cache=True,
                batches_ahead=AHEAD,
                pipelines={"image": [self._decoder], "label": None},
            )
            torch.set_num_threads(threads)
            for unused in ("sample_to_pages", "page_to_samples", "ptr_to_size"):  # a gigabyte for ImageNet
                getattr(self._engine.memory_manager, unused).clear()
        return self._engine

    def _mend(self, sample: np.int64, square: Tensor, faults: Faults) -> bool:
        """Lets Pillow decode what libjpeg-turbo complained about; what it refuses too, or is damaged, is a fault."""
        row = int(self.rows[sample])
        image = self.beton.samples["image"][row]
        try:
            with naming(self.beton.path, f"{self.beton.name_of(row)}: {{error}}"):
                with open_image(io.BytesIO(self.beton.stored(row))) as opened:
                    pixels = np.asarray(opened.convert("RGB"))
                if pixels.shape[:2] != (image["height"], image["width"]):
                    raise OSError(f"it has {pixels.shape[1]} x {pixels.shape[0]} pixels")
        except ValueError as error:
            faults.meet(int(sample), error)
            return False
        cut_square(pixels, self._decoder.table[row], square.numpy())
        return True
