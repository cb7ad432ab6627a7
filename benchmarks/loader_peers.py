"""Loaders of others that the benchmark of loaders runs: batches or passes over the same image files and crops."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastcondense.loaders import turbo
from fastcondense.loaders.folder import ImageFile
from fastcondense.vision import timm, torchvision

SIZE, RESIZE = 224, 256
Pass = Callable[[int], int]  # round -> images that were seen
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


class Files(torch.utils.data.Dataset):
    """What torchvision's ImageFolder and timm's ImageDataset do with a transform, for a given list of files.

    by_turbo: JPEG files are decoded by simplejpeg.
    """

    def __init__(self, files: list[Path], kind: str, *, by_turbo: bool = False):
        self.files, self.by_turbo, t = files, by_turbo, torchvision.transforms
        cuts = {
            "train": [t.RandomResizedCrop(SIZE), t.RandomHorizontalFlip()],
            "evaluate": [t.Resize(RESIZE), t.CenterCrop(SIZE)],
        }
        self.transform = t.Compose([*cuts[kind], t.PILToTensor()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        if self.by_turbo:
            return self.transform(Image.fromarray(ImageFile.read(self.files[k]).pixels())), 0
        with Image.open(self.files[k]) as image:
            return self.transform(image.convert("RGB")), 0


def torchvision_batches(files: list[Path], kind: str, batch_size: int, workers: int, by_turbo: bool = False) -> Batches:
    """Worker processes live on over the rounds; they are spawned, because forked ones and numba's threads clash."""
    return torch.utils.data.DataLoader(
        Files(files, kind, by_turbo=by_turbo),
        batch_size,
        shuffle=kind == "train",
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
    )


def timm_batches(files: list[Path], kind: str, batch_size: int, workers: int, device: torch.device) -> Batches:
    """Images and labels of a round through timm.data.create_loader, which sets the transform of `Files`.

    Bilinear crops and flips without colour jitter, as the others; uint8 batches by timm's fast collation. On a GPU its
    prefetcher copies them there and normalises, which is part of timm's loader; on the CPU its loader is read without.
    Training leaves out the last batch if it is not full.
    """
    loader = timm.data.create_loader(
        Files(files, kind),
        SIZE,
        batch_size,
        is_training=kind == "train",
        color_jitter=0.0,
        interpolation="bilinear",
        crop_pct=SIZE / RESIZE,
        num_workers=workers,
        persistent_workers=workers > 0,
        device=device,
        pin_memory=device.type == "cuda",
    )
    loader.loader.multiprocessing_context = "spawn" if workers else None
    return loader if device.type == "cuda" else loader.loader


def spdl_pass(files: list[Path], kind: str, batch_size: int, workers: int) -> Pass:
    """SPDL's pipeline: its threads read, decode and transform images, and collate them."""
    from spdl.pipeline import PipelineBuilder

    images = Files(files, kind, by_turbo=turbo.simplejpeg is not None)

    def run(_round: int) -> int:
        order = np.random.default_rng(_round).permutation(len(files)) if kind == "train" else range(len(files))
        building = PipelineBuilder().add_source([int(k) for k in order])
        building = building.pipe(images.__getitem__, concurrency=workers, output_order="input").aggregate(batch_size)
        pipeline = building.pipe(torch.utils.data.default_collate).add_sink(2).build(num_threads=workers)
        with pipeline.auto_stop():
            return sum(len(pixels) for pixels, _ in pipeline)

    return run


def decoding_pass(files: list[Path], workers: int) -> Pass:
    """Nothing but decoding whole images, by what our folder loader decodes with, in threads."""
    read = [(path, path.read_bytes()) for path in files]

    def run(_round: int) -> int:
        with ThreadPoolExecutor(workers) as threads:
            return sum(1 for _ in threads.map(lambda file: ImageFile.of(*file).pixels().shape, read))

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
