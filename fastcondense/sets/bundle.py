"""A bundle: one zip file with a condensed set and all that anyone needs to train on it and get the same labels.

    manifest.json                          what the run's condensed/manifest.json holds, and what lies in the bundle
    recipe.toml
    images/<class number>-<class>/<slot>.png   lossless; unzipped, it is an image folder in the order of the classes
    teachers/<name>/weights.safetensors    unless they are referenced by name and sha256 alone

Equal content gives equal bytes. Nothing in it is run, and only these names are read.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.jobs import jobs
from ..files import new_file, read_json, read_tensors, slug, write_atomic, write_json, write_tensors
from ..leftovers import sweep
from ..recipe.recipe import Recipe, from_toml
from ..teachers.kept import teacher_path
from .condensed import CondensedSet, digests, read_set, write_shard

FORMAT = 1
_DATE = (1980, 1, 1, 0, 0, 0)
_WORKERS = 4
_LARGEST_TEXT = 64 << 20
_ENCRYPTED = 1  # of a member's flags
_NETWORK = (
    "sha256",
    "num_outputs",
    "outputs",
    "pixel_statistics",
)  # what the metadata of a teacher's file say of the network

Weights = tuple[dict[str, Tensor], dict[str, str]]
"""A teacher's state dict, and the metadata of its file."""


@dataclass(frozen=True)
class Contents:
    """A condensed set with its recipe, its manifest, and those of its teachers' weights that are at hand."""

    recipe: Recipe
    condensed: CondensedSet
    manifest: dict[str, Any]
    weights: dict[str, Weights]
    """By the teacher's name."""


def is_bundle(path: Path) -> bool:
    """Whether the path is a zip file."""
    return path.is_file() and zipfile.is_zipfile(path)


def read_folder(folder: Path) -> Contents:
    """The set in the folder of a run, with the teachers that are finished. Raises ValueError if there is none."""
    if not (folder / "recipe.toml").is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no recipe.toml")
    if not (folder / "condensed" / "manifest.json").is_file():
        raise ValueError(f"{folder} has no condensed images; run recover first")
    recipe = from_toml((folder / "recipe.toml").read_text(), str(folder / "recipe.toml"))
    manifest = read_json(folder / "condensed" / "manifest.json")
    classes, made = tuple(manifest["classes"]), max(recipe.ipc, manifest.get("ipc", 0))
    everything = jobs(replace(recipe, ipc=made), len(classes))
    condensed = read_set(folder / "condensed", everything, recipe.ipc, classes)
    paths = {name: teacher_path(folder, name) for name in recipe.squeeze.teachers}
    return Contents(recipe, condensed, manifest, {name: read_tensors(p) for name, p in paths.items() if p.exists()})


def read_run(folder: Path) -> Contents:
    """The same, but raises ValueError for a set without what replays its labels too."""
    contents = read_folder(folder)
    if "replay" not in contents.manifest:
        raise ValueError(f"{folder} has no replay specification; run relabel first")
    return contents


def write_bundle(folder: Path, path: Path, teachers: Literal["embed", "reference"]) -> dict[str, int]:
    """Bundles the run in `folder` as the file `path`; returns the bytes of images, labels, teachers and the rest."""
    contents = read_run(folder)
    recipe, condensed, weights = contents.recipe, contents.condensed, contents.weights
    result = folder / "result.json"
    needed = _needed_teachers(recipe)
    manifest = contents.manifest | {
        "bundle": {
            "format": FORMAT,
            "teachers": {
                name: {key: weights[name][1][key] for key in _NETWORK if key in weights[name][1]} for name in needed
            },
            "embedded": list(needed) if teachers == "embed" else [],
            "result": read_json(result) if result.exists() else None,
        }
    }
    sizes = dict.fromkeys(("images", "labels", "teachers", "rest"), 0)

    def put(name: str, data: bytes, part: str, compression: int = zipfile.ZIP_STORED) -> None:
        entry = zipfile.ZipInfo(name, _DATE)
        entry.external_attr = 0o644 << 16
        archive.writestr(entry, data, compression)
        sizes[part] += archive.getinfo(name).compress_size

    sweep(path.parent, path.name)
    with new_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        put("manifest.json", json.dumps(manifest, indent=1).encode(), "rest", zipfile.ZIP_DEFLATED)
        put("recipe.toml", recipe.to_toml().encode(), "rest", zipfile.ZIP_DEFLATED)
        for name, data in _pngs(condensed):
            put(name, data, "images")
        for name in manifest["bundle"]["embedded"]:
            put(_weights_name(name), teacher_path(folder, name).read_bytes(), "teachers")
    return sizes


def read_recipe(path: Path) -> Recipe:
    """The recipe of a bundle."""
    with _opened(path) as archive:
        return from_toml(_text(archive, "recipe.toml", path), f"recipe.toml of {path}")


def read_bundle(path: Path) -> Contents:
    """What is in a bundle. Raises ValueError that names what is missing, damaged or does not belong there."""
    with _opened(path) as archive:
        try:
            manifest = json.loads(_text(archive, "manifest.json", path))
            inside = manifest["bundle"]
            form, embedded, classes = inside["format"], inside["embedded"], tuple(manifest["classes"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a bundle: its manifest lacks {error}") from None
        if form != FORMAT:
            raise ValueError(f"{path} is a bundle of format {form}; this version reads format {FORMAT}")
        recipe = from_toml(_text(archive, "recipe.toml", path), f"recipe.toml of {path}")
        cells = [(label, slot) for label in range(len(classes)) for slot in range(recipe.ipc)]
        expected = {"manifest.json", "recipe.toml", *(_image_name(classes, *cell) for cell in cells)}
        expected |= {_weights_name(name) for name in embedded}
        found = archive.namelist()
        for name in sorted(expected ^ set(found)):
            raise ValueError(f"{path} {'lacks' if name in expected else 'has the unexpected'} {name!r}")
        if len(found) > len(expected):
            raise ValueError(f"{path} has two members of one name")
        images = _read_images(archive, classes, cells, recipe, path)
        weights = {name: _read_weights(archive, name, path) for name in embedded}
    return Contents(recipe, CondensedSet(images, classes), manifest, weights)


def unpack(path: Path, folder: Path) -> None:
    """Makes the folder of a run from a bundle, with which every stage goes on. Again, it changes nothing.

    Raises ValueError if the folder holds another set, or the bundle's images are not those that it names.
    """
    contents = read_bundle(path)
    condensed, recipe = contents.condensed, contents.recipe
    if wrong := first_wrong_class(contents):
        raise ValueError(f"{path}: the images of class {wrong!r} are not those that its manifest names")
    target = folder / "condensed" / "manifest.json"
    if target.exists():
        if read_json(target).get("digests") != contents.manifest["digests"]:
            raise ValueError(f"{folder} holds another condensed set than {path}; choose another --out")
        return
    for name, (state, metadata) in contents.weights.items():
        write_tensors(teacher_path(folder, name), state, metadata)
    everything = jobs(recipe, len(condensed.classes))
    result = contents.manifest["bundle"]["result"] or {}
    seconds = result.get("seconds", {}).get("recover", 0.0) / len(everything)
    for job in everything:
        mine = condensed.images[job.classes(), job.slots()]
        write_shard(folder / "condensed", job, mine, torch.zeros(0, 3), {"seconds": f"{seconds:.3f}"})
    write_atomic(folder / "recipe.toml", recipe.to_toml().encode())
    write_json(target, {key: value for key, value in contents.manifest.items() if key != "bundle"})


def first_wrong_class(contents: Contents) -> str:
    """The first class whose pixels are not those of the manifest's digests; empty if there is none."""
    found = digests(contents.condensed)
    pairs = zip(contents.condensed.classes, found, contents.manifest["digests"], strict=True)
    return next((name for name, mine, kept in pairs if mine != kept), "")


def _needed_teachers(recipe: Recipe) -> tuple[str, ...]:
    return recipe.labels.teachers or recipe.squeeze.teachers


def _image_name(classes: tuple[str, ...], label: int, slot: int) -> str:
    return f"images/{label:05d}-{slug(classes[label])}/{slot:05d}.png"


def _weights_name(teacher: str) -> str:
    return f"teachers/{slug(teacher)}/weights.safetensors"


def _pngs(condensed: CondensedSet) -> Iterator[tuple[str, bytes]]:
    """Names and PNG files of all images, encoded by several threads, one class in memory at a time."""

    def encode(pixels: Tensor) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())).save(file, "PNG")
        return file.getvalue()

    with ThreadPoolExecutor(_WORKERS) as threads:
        for label in range(len(condensed.classes)):
            for slot, data in enumerate(threads.map(encode, condensed.of_class(label))):
                yield _image_name(condensed.classes, label, slot), data


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a bundle: {error}") from None


def _member(archive: zipfile.ZipFile, name: str, largest: int, path: Path) -> bytes:
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise ValueError(f"{path} is not a bundle: it has no {name}") from None
    if entry.file_size > largest:
        raise ValueError(f"{path}: {name} has {entry.file_size} bytes, more than the {largest} that it may have")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & _ENCRYPTED:
        raise ValueError(f"{path}: {name} is encrypted, or packed in a way that bundles are not")
    try:
        return archive.read(entry)
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: {name} is damaged: {error}") from None


def _text(archive: zipfile.ZipFile, name: str, path: Path) -> str:
    try:
        return _member(archive, name, _LARGEST_TEXT, path).decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: {name} is no text") from None


def _read_images(
    archive: zipfile.ZipFile, classes: tuple[str, ...], cells: list[tuple[int, int]], recipe: Recipe, path: Path
) -> Tensor:
    """uint8 [classes, ipc, 3, S, S]."""
    size = recipe.dataset.image_size
    images = torch.empty(len(classes), recipe.ipc, 3, size, size, dtype=torch.uint8)
    largest = 4 * size * size + (1 << 16)

    def decode(name: str, data: bytes) -> Tensor:
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.size != (size, size) or image.mode != "RGB":
                    raise ValueError(f"{path}: {name} is {image.size} {image.mode}, not {size} x {size} RGB")
                return torch.from_numpy(np.array(image)).permute(2, 0, 1)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path}: {name} is damaged: {error}") from None

    with ThreadPoolExecutor(_WORKERS) as threads:
        for first in range(0, len(cells), 64):
            part = cells[first : first + 64]
            names = [_image_name(classes, *cell) for cell in part]
            files = [_member(archive, name, largest, path) for name in names]
            for (label, slot), pixels in zip(part, threads.map(decode, names, files), strict=True):
                images[label, slot] = pixels
    return images


def _read_weights(archive: zipfile.ZipFile, teacher: str, path: Path) -> Weights:
    from safetensors import SafetensorError
    from safetensors.torch import load

    name = _weights_name(teacher)
    data = _member(archive, name, 1 << 40, path)
    try:
        state = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: {name} cannot be read as weights: {error}") from None
    return state, dict[str, str](header.get("__metadata__", {}))
