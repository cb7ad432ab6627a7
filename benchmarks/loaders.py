"""Images a second of every loader, training and evaluation crops, interleaved in one process.

    fastcondense bench loaders [--data DIR] [--beton FILE.beton ...]

--data: a folder of <class>/<image>; without one, parts of two photographs that come with scikit-learn, as JPEGs.
--beton: the same images packed; without one they are packed here, as they are.

torchvision   DataLoader with worker processes, Pillow, RandomResizedCrop or Resize and CenterCrop, horizontal flip
timm          timm.data.create_loader, likewise
simplejpeg    torchvision's DataLoader and transforms, with simplejpeg in Pillow's place
spdl          SPDL's pipeline of threads over the same images and transforms
decoding      the ceiling of all that decodes whole images: nothing else, in threads, of bytes in memory
folder        ours: threads, simplejpeg where it is installed, else Pillow
packed        ours: the same of a packed file
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
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gate import Gate
from loader_peers import (
    RESIZE,
    SIZE,
    Pass,
    dali_own_pass,
    decoding_pass,
    ffcv_own_pass,
    spdl_pass,
    timm_batches,
    torchvision_batches,
)
from measure import DEVICE, Timing
from PIL import Image
from sample_images import photograph_parts
from session import Session

from fastcondense.data.sources import is_installed
from fastcondense.loaders import turbo
from fastcondense.loaders.class_folders import index_folder
from fastcondense.loaders.folder import FolderLoader
from fastcondense.loaders.packed import PackedLoader
from fastcondense.loaders.prefetch import on_device
from fastcondense.loaders.source import Centered, Cut, Faults, Loader, Windowed
from fastcondense.recipe.shared import Views
from fastcondense.rng import Stream
from fastcondense.views.windows import windows

QUICK = {"images": 48, "batch_size": 16, "rounds": 2}
KINDS = ("train", "evaluate")


def our_loaders(
    files: list[Path], workers: int, device: torch.device, has_dali: bool, has_ffcv: bool, betons: list[Path]
) -> dict[str, Loader]:
    """Every loader of ours by its name, that of files first; one with FFCV and one without for each packed file."""
    loaders: dict[str, Loader] = {"folder": FolderLoader(files, workers)}
    loaders |= {f"packed {beton.stem}": PackedLoader(beton, workers=workers) for beton in betons}
    if has_dali:
        from fastcondense.loaders.dali import DALILoader

        loaders["dali"] = DALILoader(files, workers, device)
    if has_ffcv:
        from fastcondense.loaders.ffcv import FFCVLoader

        loaders |= {f"ffcv {beton.stem}": FFCVLoader(beton, workers=workers) for beton in betons}
    return loaders


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


def is_usable(session: Session, gate: Gate | None, library: str) -> bool:
    """Whether a library is installed, and our loader of it passes its tests, which quick runs do not run."""
    if not is_installed(library):
        session.skip(library, "not installed")
        return False
    problem = gate.problem([f"{library}_loader"]) if gate and not session.is_quick else None
    if problem is not None:
        session.refuse(library, problem)
    return problem is None


def make_passes(session: Session, options: argparse.Namespace, device: torch.device) -> dict[tuple[str, str], Pass]:
    """Every variant that can run here, by its name and the kind of crops."""
    files = index_folder(options.data)[0]
    files = [files[k] for k in Stream(0, "benchmark/files").permutation(len(files))[: options.images]]
    size, workers = options.batch_size, options.workers
    has_dali, has_ffcv = (is_usable(session, options.gate, library) for library in ("dali", "ffcv"))
    loaders = our_loaders(files, workers, device, has_dali, has_ffcv, options.beton)
    passes: dict[tuple[str, str], Pass] = {}
    missing = [name for name in ("simplejpeg", "spdl") if find_spec(name) is None]
    for name in missing:
        session.skip(name, "not installed")
    for kind in KINDS:
        others = {"torchvision": torchvision_batches(files, kind, size, workers)}
        others["timm"] = timm_batches(files, kind, size, workers, device)
        if "simplejpeg" not in missing:
            others["simplejpeg"] = torchvision_batches(files, kind, size, workers, by_turbo=True)
        for name, batches in others.items():
            passes[name, kind] = lambda _round, batches=batches: sum(len(images) for images, _ in batches)
        if "spdl" not in missing:
            passes["spdl", kind] = spdl_pass(files, kind, size, workers)
        passes["decoding", kind] = decoding_pass(files, workers)
        if has_dali:
            passes["dali_own", kind] = dali_own_pass(files, kind, size, workers, device)
        for beton in options.beton if has_ffcv else []:
            passes[f"ffcv_own {beton.stem}", kind] = ffcv_own_pass(beton, kind, size, workers)
        for name, loader in loaders.items():
            passes[name, kind] = our_pass(loader, kind, size, device)
    return passes


def finish() -> None:
    """Waits until the process is idle: DALI's own pipelines decode ahead of what was asked for, in others' time."""
    idle = False
    while not idle:
        busy = time.process_time()
        time.sleep(0.005)
        idle = time.process_time() - busy < 0.001


def photographs(folder: Path, count: int) -> Path:
    """A folder of `count` JPEGs of about ImageNet's mean size: parts of the photographs that scikit-learn ships."""
    (folder / "photographs" / "x").mkdir(parents=True)
    parts = photograph_parts(count, 375, 500)

    def write_one(k: int) -> None:
        Image.fromarray(parts[k]).save(folder / "photographs" / "x" / f"{k:06d}.jpg", quality=90)

    with ThreadPoolExecutor() as threads:
        list(threads.map(write_one, range(count)))
    return folder / "photographs"


def packed(files: list[Path], data: Path, folder: Path, workers: int) -> Path:
    """The images as they are, in one packed file."""
    from fastcondense.loaders.pack import Packing, pack

    out, labels = folder / "jpeg.beton", np.zeros(len(files), dtype=np.int64)
    pack(files, labels, ("all",), out, Packing(max_resolution=0), source=data, workers=workers)
    return out


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path)
    parser.add_argument("--beton", type=Path, nargs="*", default=[])
    parser.add_argument("--images", type=int, default=1000, help="images of --data that are read in a round")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)


def run(session: Session, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.data is None:
            options.data = photographs(folder, options.images)
        if not options.beton:
            options.beton = [packed(index_folder(options.data)[0], options.data, folder, options.workers)]
        compare(session, options, DEVICE)


def compare(session: Session, options: argparse.Namespace, device: torch.device) -> None:
    """All variants in turns, `rounds` times, and their lines."""
    passes = make_passes(session, options, device)
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
        line: dict[str, Any] = {
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
            "ratio_to_decoding": ratio((name, kind), ("decoding", kind)),
            "decoder": turbo.decoder(),
        }
        if name not in ("torchvision", "timm", "simplejpeg"):  # whose work is that of other processes
            line["cpu_ms_per_image"] = round(statistics.median(busy[name, kind]), 3)
        if own != name and (own, kind) in speeds:
            line["ratio_to_own"] = ratio((name, kind), (own, kind))
        of = f"{line['ratio_to_torchvision']} of torchvision, {line['ratio_to_decoding']} of decoding alone"
        print(f"  {name:16} {kind:9} {median:8.1f} images/s, {of}", flush=True)
        shapes = [(options.batch_size, 3, SIZE, SIZE)]
        timing = Timing.of([1e3 * counts[name, kind] / speed for speed in values])
        session.add(f"{kind} crops", name, timing, shapes=shapes, dtype="uint8", **line)
