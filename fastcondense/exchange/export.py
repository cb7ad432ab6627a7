"""The condensed images of a run in the formats of others: image folders, Hugging Face, tensors, DD-Ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import Positional

from ..devices import choose_device
from ..files import new_folder, write_json
from ..labels.fkd import write_fkd
from ..labels.labels import TeacherLabels
from ..labels.view_tables import Span
from ..loaders.class_folders import is_hidden
from ..log import Log
from ..recipe.recipe import Recipe
from ..records import Origin, Result, read_data
from ..recover.formation import has_scattered_subsets
from ..run import Run
from ..sets import hub
from ..sets.bundle import read_folder, read_verified
from ..sets.condensed import CondensedSet
from ..sets.encoded import encode
from ..sets.parquet_sets import write_rows
from ..sets.published_sets import CLASSES_FILE
from ..sets.sealed_zip import is_bundle
from ..sets.tensor_sets import ABOUT, write_image_tensors
from ..teachers.kept import labelling_teachers, teacher_path
from ..tensor_files import write_checkpoint
from ..words import bytes_in_words
from .hub_card import dataset_card

_LABELLED_TOGETHER = 64
_OF_FORMATS = {
    "--jpeg": ("folder", "parquet"),
    "--numbers": ("folder",),
    "--ipc": ("folder", "parquet", "tensors", "ddranking"),
}
"""The formats that an option says something of."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `fastcondense export`: what is exported where, and how."""

    run: Positional[Path | None] = None
    """Folder of a run whose condensed images are finished, or a bundle."""
    format: Literal["folder", "parquet", "tensors", "ddranking", "fkd"] = "folder"
    """folder: <class>/<image>; parquet: what datasets.load_dataset reads, with a card; tensors: normalised, in .pt and
    .safetensors; ddranking: image and soft-label tensors for its compute_metrics; fkd: SRe2L's label files."""
    out: Path | None = None
    """New folder, which appears when it is complete."""
    ipc: int = 0
    """Images a class, the first ones; 0: all."""
    jpeg: int = 0
    """Quality, 1 to 100, of JPEGs in place of PNGs, which loses detail; 0: PNG."""
    numbers: bool = False
    """Class folders 00000, 00001, ... as some published code needs them. So they are also called where class names in
    sorted order, which ImageFolder takes for the labels, are not in class order."""
    data: Path | None = None
    """The real images, if they are not where the run found them; ddranking needs their classes for its teachers."""
    push_to_hub: str = ""
    """A data set user/set of the Hugging Face Hub that it is also uploaded to, as whoever `hf auth login` says."""
    code: tuple[str, ...] = ()
    """Functions that its recipe names as networks, module:function or file.py:function, and that you trust."""


def export(options: ExportOptions, log: Log) -> None:
    """Writes the images as the options say. Raises ValueError that names what is wrong; then nothing is left behind."""
    if options.run is None or options.out is None:
        raise ValueError("export needs the folder of a run and --out DIR")
    if not (0 <= options.jpeg <= 100):
        raise ValueError(f"--jpeg needs a quality from 1 to 100, got {options.jpeg}")
    if options.ipc < 0:
        raise ValueError(f"--ipc needs a number of images a class, or 0 for all, got {options.ipc}")
    asked = {"--jpeg": options.jpeg, "--numbers": options.numbers, "--ipc": options.ipc}
    for flag, formats in _OF_FORMATS.items():
        if asked[flag] and options.format not in formats:
            raise ValueError(f"{flag} is of --format {' and '.join(formats)}, not {options.format}; leave it out")
    if options.push_to_hub:
        hub.check_name(options.push_to_hub)
    path, is_file = options.run, is_bundle(options.run)
    contents = read_verified(path) if is_file else read_folder(path)
    settings, condensed = contents.recipe, contents.condensed.first(options.ipc or contents.condensed.ipc)
    if condensed.ipc < contents.condensed.ipc and has_scattered_subsets(settings):
        raise ValueError(f"the set of {condensed.ipc} images a class is tiles of all images of {path}; leave out --ipc")
    if is_file and options.format in ("ddranking", "fkd"):
        raise ValueError(f"--format {options.format} needs a run: unpack {path} first (fastcondense relabel)")
    with new_folder(options.out) as folder:
        if options.format == "folder":
            _write_folder(condensed, folder, options.jpeg, options.numbers)
        elif options.format == "parquet":
            of_these = [result for result in contents.results if result["ipc"] == condensed.ipc]
            _write_parquet(settings, condensed, folder, options.jpeg, of_these, contents.manifest.get("origin"))
        elif options.format == "tensors":
            write_image_tensors(condensed, folder, settings.dataset)
        else:
            run = Run(settings, path, options.data or read_data(path), choose_device("auto"), log)
            if options.format == "fkd":
                write_fkd(run, folder, settings.train.epochs)
            else:
                _write_ddranking(run, condensed, folder)
    files = [path for path in options.out.rglob("*") if path.is_file()]
    log.say(
        f"export: {condensed.num_images} images, {condensed.ipc} of each of "
        f"{len(condensed.classes)} classes, in {options.out}: {bytes_in_words(sum(p.stat().st_size for p in files))}"
    )
    if options.push_to_hub:
        log.say(f"export: pushed to {hub.push(options.out, options.push_to_hub)}")


def _write_folder(condensed: CondensedSet, folder: Path, jpeg: int, has_numbers: bool) -> None:
    names = folder_names(condensed.classes, has_numbers)
    for name in names:
        (folder / name).mkdir()
    for file in encode(condensed, range(len(names) * condensed.ipc), jpeg):
        (folder / names[file.label] / file.name).write_bytes(file.data)
    write_json(folder / CLASSES_FILE, dict(zip(names, condensed.classes, strict=True)))


def folder_names(classes: tuple[str, ...], has_numbers: bool) -> list[str]:
    """Folders whose sorted order is class order: the classes' names where that is so, otherwise 00000, 00001, ..."""
    is_plain = all(name.isprintable() and not is_hidden(name) and not set(name) & set('/\\:*?"<>|') for name in classes)
    if has_numbers or not is_plain or CLASSES_FILE in classes or list(classes) != sorted(classes):
        return [f"{k:05d}" for k in range(len(classes))]
    return list(classes)


def _write_parquet(
    settings: Recipe,
    condensed: CondensedSet,
    folder: Path,
    jpeg: int,
    results: Sequence[Result],
    origin: Origin | None,
) -> None:
    paths = write_rows(condensed, folder, jpeg)
    encoding = f"JPEG of quality {jpeg}" if jpeg else "lossless PNG"
    card = dataset_card(settings, condensed, sum(path.stat().st_size for path in paths), encoding, results, origin)
    (folder / "README.md").write_text(card, encoding="utf-8", errors="replace")


def _write_ddranking(run: Run, condensed: CondensedSet, folder: Path) -> None:
    """images.pt, labels.pt, soft_labels.pt: what compute_metrics(image_tensor, soft_labels) takes in mode "S".

    images float32 [classes * ipc, 3, S, S], normalised, class by class; soft labels float32 [classes * ipc, classes],
    the teachers' mean logits of the whole images. Its own data sets have their classes in sorted order.
    """
    settings = run.recipe
    for name in settings.labels.teachers or settings.squeeze.teachers:
        if not teacher_path(run.out, name).is_file():
            raise ValueError(f"teacher {name} of {run.out} is not finished, but soft labels need it; run squeeze first")
    if run.real.classes != condensed.classes:
        raise ValueError(f"the classes of {run.data} are not those of {run.out}, or in another order")
    source = TeacherLabels(labelling_teachers(run), settings.labels, settings.seed)
    pixels, labels = condensed.flat()
    images, logits = run.normalize(pixels.to(run.device)), []
    for begin in range(0, len(labels), _LABELLED_TOGETHER):
        end = min(begin + _LABELLED_TOGETHER, len(labels))
        logits.append(source.logits(images[begin:end], Span(0, begin, end)).mean(0).cpu())
    write_checkpoint(folder / "images.pt", images.cpu().contiguous())
    write_checkpoint(folder / "labels.pt", labels)
    write_checkpoint(folder / "soft_labels.pt", torch.cat(logits))
    about: dict[str, Any] = {"classes": condensed.classes, "ipc": condensed.ipc}
    about |= {"mean": settings.dataset.mean, "std": settings.dataset.std, "soft_labels": "logits"}
    write_json(folder / ABOUT, about)
    if list(condensed.classes) != sorted(condensed.classes):
        run.log.say(
            "export: the classes are not in sorted order; see that DD-Ranking's are in this one (ddranking.json)"
        )
