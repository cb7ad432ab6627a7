"""Images a second of every loader, training and evaluation crops, interleaved in one process.

    python benchmarks/loaders.py --data DIR [--beton FILE.beton ...] [--out FILE.jsonl]

--data: a folder of <class>/<image>; --beton: the same images packed. `fastcondense bench loaders` does the same.

torchvision   DataLoader with worker processes, Pillow, RandomResizedCrop or Resize and CenterCrop, horizontal flip
folder        ours: threads, Pillow
dali          ours: windows from the table, external_source
dali_own      DALI's readers.file and image_random_crop
ffcv          ours: windows from the table
ffcv_own      FFCV's RandomResizedCropRGBImageDecoder, or CenterCropRGBImageDecoder

All give uint8 batches in host memory (on the GPU: there). Libraries that are not installed are left out, and said so.
Each line of the result is one variant: median and quartiles of images a second over the rounds, medians of the rounds'
ratios, and the processor's milliseconds an image in this process, which other work on the machine moves less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import write
from PIL import Image

from fastcondense.data.sources import is_installed
from fastcondense.loaders.folder import FolderLoader, index_folder
from fastcondense.loaders.prefetch import on_device
from fastcondense.loaders.source import Centered, Cut, Faults, Loader, Windowed
from fastcondense.rng import Stream
from fastcondense.vision import torchvision
from fastcondense.windows import Views, windows

SIZE, RESIZE = 224, 256
KINDS = ("train", "evaluate")
Pass = Callable[[int], int]  # round -> images that were seen


class Files(torch.utils.data.Dataset):
    """What torchvision's ImageFolder does with a transform, for a given list of files."""

    def __init__(self, files: list[Path], kind: str):
        self.files, t = files, torchvision.transforms
        cuts = {
            "train": [t.RandomResizedCrop(SIZE), t.RandomHorizontalFlip()],
            "evaluate": [t.Resize(RESIZE), t.CenterCrop(SIZE)],
        }
        self.transform = t.Compose([*cuts[kind], t.PILToTensor()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> torch.Tensor:
        with Image.open(self.files[k]) as image:
            return self.transform(image.convert("RGB"))


def torchvision_pass(files: list[Path], kind: str, batch_size: int, workers: int) -> Pass:
    """Worker processes live on over the rounds; they are spawned, because forked ones and numba's threads clash."""
    loader = torch.utils.data.DataLoader(
        Files(files, kind),
        batch_size,
        shuffle=kind == "train",
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
    )
    return lambda _round: sum(len(batch) for batch in loader)


def our_pass(loader: Loader, kind: str, batch_size: int, device: torch.device) -> Pass:
    """One epoch through the interface of loaders/source.py."""
    stream, views, count = Stream(0, "benchmark"), Views(), len(loader)

    def run(number: int) -> int:
        order = stream.permutation(count, number) if kind == "train" else np.arange(count)
        cut: Cut = Centered(SIZE, RESIZE)
        if kind == "train":
            cut = Windowed(SIZE, lambda ids, heights, widths: windows(stream, views, ids, number, heights, widths))
        batches = loader.batches(np.split(order, range(batch_size, count, batch_size)), cut, Faults())
        return sum(len(pixels) for pixels, _ in on_device(batches, device))

    return run


def dali_own_pass(files: list[Path], kind: str, batch_size: int, workers: int, device: torch.device) -> Pass:
    """DALI's own reader and random crop. Sums to the samples of whole batches, the last one padded."""
    from nvidia.dali import Pipeline, fn, types

    on_gpu = device.type == "cuda"
    decoder = "mixed" if on_gpu else "cpu"
    pipeline = Pipeline(batch_size, workers, (device.index or 0) if on_gpu else None, prefetch_queue_depth=2)
    with pipeline:
        jpegs, _ = fn.readers.file(files=[str(path) for path in files], random_shuffle=kind == "train", name="reader")
        if kind == "train":
            area, aspect = (0.08, 1.0), (3 / 4, 4 / 3)
            images = fn.decoders.image_random_crop(
                jpegs, device=decoder, random_area=area, random_aspect_ratio=aspect, num_attempts=10
            )
            images = fn.resize(images, size=[SIZE, SIZE], interp_type=types.INTERP_LINEAR, antialias=True)
            images = fn.flip(images, horizontal=fn.random.coin_flip())
        else:
            images = fn.decoders.image(jpegs, device=decoder)
            images = fn.resize(images, resize_shorter=RESIZE, interp_type=types.INTERP_LINEAR, antialias=True)
            images = fn.crop(images, crop=(SIZE, SIZE))
        pipeline.set_outputs(images)
    rounds = -(-len(files) // batch_size)
    return lambda _round: sum(len(torch.from_dlpack(pipeline.run()[0].as_tensor())) for _ in range(rounds))


def ffcv_own_pass(beton: Path, kind: str, batch_size: int, workers: int) -> Pass:
    """FFCV's own loader and crops."""
    import ffcv.loader
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    operations = (
        [RandomResizedCropRGBImageDecoder((SIZE, SIZE)), RandomHorizontalFlip(), ToTensor()]
        if kind == "train"
        else [CenterCropRGBImageDecoder((SIZE, SIZE), SIZE / RESIZE), ToTensor()]
    )
    order = ffcv.loader.OrderOption.RANDOM if kind == "train" else ffcv.loader.OrderOption.SEQUENTIAL
    loader = ffcv.loader.Loader(
        str(beton),
        batch_size,
        workers,
        order=order,
        drop_last=False,
        pipelines={"image": operations, "label": [IntDecoder(), ToTensor()]},
    )
    return lambda _round: sum(len(images) for images, _ in loader)


def make_passes(options: argparse.Namespace, device: torch.device) -> dict[tuple[str, str], Pass]:
    """Every variant that can run here, by its name and the kind of crops."""
    files = index_folder(options.data)[0]
    files = [files[k] for k in Stream(0, "benchmark/files").permutation(len(files))[: options.images]]
    size, workers = options.batch_size, options.workers
    has_dali, has_ffcv = is_installed("dali"), is_installed("ffcv")
    loaders: dict[str, Loader] = {"folder": FolderLoader(files, workers)}
    if has_dali:
        from fastcondense.loaders.dali import DALILoader

        loaders["dali"] = DALILoader(files, workers, device)
    if has_ffcv:
        from fastcondense.loaders.ffcv import FFCVLoader

        loaders |= {f"ffcv {beton.stem}": FFCVLoader(beton, workers=workers) for beton in options.beton}
    passes: dict[tuple[str, str], Pass] = {}
    for kind in KINDS:
        passes["torchvision", kind] = torchvision_pass(files, kind, size, workers)
        if has_dali:
            passes["dali_own", kind] = dali_own_pass(files, kind, size, workers, device)
        for beton in options.beton if has_ffcv else []:
            passes[f"ffcv_own {beton.stem}", kind] = ffcv_own_pass(beton, kind, size, workers)
        for name, loader in loaders.items():
            passes[name, kind] = our_pass(loader, kind, size, device)
    for library, is_here in (("DALI", has_dali), ("FFCV", has_ffcv)):
        if not is_here:
            print(f"{library} is not installed: left out", file=sys.stderr)
    return passes


def finish() -> None:
    """Waits until the process is idle: DALI's own pipelines decode ahead of what was asked for, in others' time."""
    idle = False
    while not idle:
        busy = time.process_time()
        time.sleep(0.005)
        idle = time.process_time() - busy < 0.001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--beton", type=Path, nargs="*", default=[])
    parser.add_argument("--images", type=int, default=1000, help="images of --data that are read in a round")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file to which the lines are appended")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    passes = make_passes(options, device)
    speeds: dict[tuple[str, str], list[float]] = {key: [] for key in passes}
    counts: dict[tuple[str, str], int] = {}
    busy: dict[tuple[str, str], list[float]] = {key: [] for key in passes}
    for number in range(options.rounds + 1):  # the first one compiles, starts workers and fills the file cache
        for key, run in passes.items():
            start, busy_start = time.perf_counter(), time.process_time()
            count = run(number)
            finish()
            counts[key] = count
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                speeds[key].append(count / (time.perf_counter() - start))
                busy[key].append(1e3 * (time.process_time() - busy_start) / count)

    def ratio(one: tuple[str, str], other: tuple[str, str]) -> float:
        return round(statistics.median(a / b for a, b in zip(speeds[one], speeds[other], strict=True)), 3)

    for (name, kind), values in speeds.items():
        low, median, high = statistics.quantiles(values, n=4)
        own = name.replace("dali", "dali_own", 1) if name == "dali" else name.replace("ffcv ", "ffcv_own ", 1)
        line = {
            "benchmark": "loaders",
            "variant": name,
            "crops": kind,
            "data": options.data.name,
            "images": counts[name, kind],
            "size": SIZE,
            "batch_size": options.batch_size,
            "workers": options.workers,
            "images_per_s": round(median, 1),
            "quartiles": [round(low, 1), round(high, 1)],
            "images_per_s_per_core": round(median / min(options.workers, len(os.sched_getaffinity(0))), 1),
            "ratio_to_torchvision": ratio((name, kind), ("torchvision", kind)),
        }
        if name != "torchvision":  # whose work is that of other processes
            line["cpu_ms_per_image"] = round(statistics.median(busy[name, kind]), 3)
        if own != name and (own, kind) in speeds:
            line["ratio_to_own"] = ratio((name, kind), (own, kind))
        print(json.dumps(line))
        write([line], options.out)


if __name__ == "__main__":
    main()
