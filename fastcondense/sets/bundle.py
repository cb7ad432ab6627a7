"""A bundle: one zip file with a condensed set and all that anyone needs to train on it and get the same labels.

    manifest.json                          what the run's condensed/manifest.json holds, and what lies in the bundle
    recipe.toml
    images/<class number>-<class>/<slot>.png   lossless; unzipped, it is an image folder in the order of the classes
    teachers/<name>/weights.safetensors    unless they are referenced by name and sha256 alone

Equal content gives equal bytes, and the file ends with the sha256 of all of them (sealed_zip.py). Nothing in it is run,
only these names are read, and no path of its recipe is opened (trust.py).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..data.jobs import jobs
from ..data.splits import check_classes
from ..files import slug, write_atomic, write_json
from ..leftovers import sweep
from ..loaders.folder import open_image
from ..loaders.reading import check_folder, naming, read_file
from ..recipe.recipe import Recipe, own_recipe, whole_recipe
from ..records import (
    Manifest,
    Network,
    Result,
    TeacherMetadata,
    check_manifest,
    checked,
    parse_json,
    read_manifest,
)
from ..teachers.kept import read_teacher, teacher_path
from ..tensor_files import read_metadata, read_tensors, write_tensors
from . import sealed_zip
from .condensed import CondensedSet, read_set, write_shard
from .encoded import encode
from .results import in_order, read_results
from .sealed_zip import SealedReader
from .stored_images import StoredImages

FORMAT = 3
_WORKERS = 4
_LARGEST_TEXT = 64 << 20
_SMALL_SET, _MOST_COMPRESSED = 200 << 20, 8
"""Bytes of images that any bundle may hold, and how many times the file's own bytes a larger one may: a PNG of one
colour is a thousandth of its pixels, images of recover are half of theirs or more."""

Weights = tuple[dict[str, Tensor], dict[str, str]]
"""A teacher's state dict, and the metadata of its file."""


@dataclass(frozen=True)
class Contents:
    """A condensed set with its recipe, its manifest, and those of its teachers' weights that are at hand."""

    path: Path
    """The bundle, or the folder of the run."""
    recipe: Recipe
    condensed: CondensedSet
    manifest: Manifest
    weights: dict[str, Weights]
    """Weights of teachers, by name."""
    results: list[Result]
    """All evaluations of these images."""


def read_folder(folder: Path) -> Contents:
    """The set in the folder of a run, with the teachers that are finished. Raises ValueError if there is none."""
    check_folder(folder)
    if not (folder / "recipe.toml").is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no recipe.toml")
    if not (folder / "condensed" / "manifest.json").is_file():
        raise ValueError(f"{folder} has no condensed images; run recover first")
    recipe = own_recipe(folder / "recipe.toml")
    manifest = read_manifest(folder / "condensed" / "manifest.json")
    classes, made = tuple(manifest["classes"]), max(recipe.ipc, manifest.get("ipc", 0))
    everything = jobs(replace(recipe, ipc=made), len(classes))
    condensed = read_set(folder / "condensed", everything, recipe.ipc, classes)
    paths = {name: teacher_path(folder, name) for name in recipe.squeeze.teachers}
    weights = {name: read_tensors(path) for name, path in paths.items() if path.exists()}
    return Contents(folder, recipe, condensed, manifest, weights, read_results(folder, recipe))


def read_run(folder: Path) -> Contents:
    """The set of a run, as `read_folder`, but raises ValueError for one without what replays its labels too."""
    contents = read_folder(folder)
    if "replay" not in contents.manifest or "digests" not in contents.manifest:
        raise ValueError(f"{folder} has no replay specification; run relabel first")
    return contents


def write_bundle(
    contents: Contents, folder: Path, path: Path, teachers: Literal["embed", "reference"]
) -> dict[str, int]:
    """Bundles the run in `folder`, of which `read_run` has given the contents, as the file `path`.

    Returns the bytes of images, labels, teachers and the rest.
    """
    recipe, condensed = contents.recipe, contents.condensed
    embedded = needed_teachers(recipe) if teachers == "embed" else ()
    files = {name: teacher_path(folder, name) for name in needed_teachers(recipe)}
    manifest: Manifest = {
        **contents.manifest,
        "bundle": {
            "format": FORMAT,
            "teachers": {name: _network(read_teacher(file)) for name, file in files.items()},
            "embedded": list(embedded),
            "recipe_sha256": recipe.sha256(),
            "results": contents.results,
        },
    }
    sizes = dict.fromkeys(("images", "labels", "teachers", "rest"), 0)
    members = itertools.chain(
        [("manifest.json", json.dumps(manifest, indent=1).encode(), "rest")],
        [("recipe.toml", recipe.to_toml().encode(), "rest")],
        ((name, data, "images") for name, data in _pngs(condensed)),
        ((_weights_name(name), read_file(files[name]), "teachers") for name in embedded),
    )
    sweep(path.parent, path.name)
    with sealed_zip.writing(path) as archive:
        for name, data, part in members:
            archive.put(name, data)
            sizes[part] += len(data)
    return sizes


def read_recipe(path: Path) -> Recipe:
    """The recipe of a bundle."""
    with sealed_zip.reading(path, must_be_sealed=False) as archive:
        return whole_recipe(_text(archive, "recipe.toml"), f"recipe.toml of {path}")


def read_bundle(path: Path) -> Contents:
    """The contents of a bundle, whose images are decoded when they are asked for. Raises ValueError that names what is
    missing, damaged or does not belong there."""
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(sealed_zip.reading(path))
        source = f"manifest.json of {path}"
        manifest = check_manifest(parse_json(_text(archive, "manifest.json"), source), source)
        if "bundle" not in manifest or "replay" not in manifest or "digests" not in manifest:
            raise ValueError(f"{path} is not a bundle: its manifest lacks bundle, replay or digests")
        inside, classes = manifest["bundle"], tuple(manifest["classes"])
        if inside["format"] != FORMAT:
            raise ValueError(f"{path} is a bundle of format {inside['format']}; this version reads format {FORMAT}")
        recipe = whole_recipe(_text(archive, "recipe.toml"), f"recipe.toml of {path}")
        _check_claims(archive, manifest, recipe)
        names = [_image_name(classes, label, slot) for label in range(len(classes)) for slot in range(recipe.ipc)]
        expected = {"manifest.json", "recipe.toml", *names, *(_weights_name(name) for name in inside["embedded"])}
        for name in sorted(expected ^ set(archive.names)):
            raise ValueError(f"{path} {'lacks' if name in expected else 'has the unexpected'} {name!r}")
        weights = {name: _read_weights(archive, name) for name in inside["embedded"]}
        pictures = _Pictures(archive, names, recipe.dataset.image_size, stack.pop_all())
    rows = torch.arange(len(names)).view(len(classes), recipe.ipc)
    images = StoredImages(pictures, torch.zeros_like(rows), rows)
    return Contents(path, recipe, CondensedSet(images, classes), manifest, weights, in_order(inside["results"], recipe))


def _check_claims(archive: SealedReader, manifest: Manifest, recipe: Recipe) -> None:
    """Raises ValueError if what the bundle says of itself and what it holds are of different sizes.

    Nothing that grows with what it says is made before.
    """
    path, inside, held = archive.path, manifest["bundle"], len(archive.names)
    teachers, claimed = inside["embedded"], len(manifest["classes"]) * recipe.ipc
    if (wanted := 2 + claimed + len(teachers)) > 2 * held + 1000:  # of fewer that lack, the first is named later
        raise ValueError(f"{path} has {held} members, not {wanted}: {claimed} images and {len(teachers)} teachers")
    if not set(teachers) <= set(recipe.squeeze.teachers) or len(set(map(slug, teachers))) < len(teachers):
        raise ValueError(f"{path} is damaged: field bundle.embedded: they are not the teachers of its recipe")
    size, pixels = path.stat().st_size, claimed * 3 * recipe.dataset.image_size**2
    if pixels > max(_SMALL_SET, _MOST_COMPRESSED * size):
        raise ValueError(f"{path} has {size} bytes and claims to hold images of {pixels}")
    if manifest.get("ipc", recipe.ipc) != recipe.ipc:
        raise ValueError(f"{path} is damaged: field ipc: {manifest['ipc']}, but its recipe has {recipe.ipc}")


def unpack(path: Path, folder: Path, classes: tuple[str, ...], data: object) -> None:
    """Makes the folder of a run from a bundle, with which every stage goes on. Again, it changes nothing.

    Raises ValueError if the folder holds another set or run, the bundle's images are not those that it names, or its
    classes not those of the real `data`.
    """
    contents = read_verified(path)
    check_classes(contents.manifest["classes"], classes, path, data)
    condensed, recipe = contents.condensed, contents.recipe
    target = folder / "condensed" / "manifest.json"
    if target.exists():
        held, given = read_manifest(target), contents.manifest
        if held.get("digests") != given["digests"]:
            raise ValueError(f"{folder} holds another condensed set than {path}; choose another --out")
        if held.get("replay", {}).get("teachers") != given["replay"]["teachers"]:
            raise ValueError(f"{folder} has the images of {path}, but other teachers; choose another --out")
        return
    _check_free(path, folder, contents)
    for name, (state, metadata) in contents.weights.items():
        write_tensors(teacher_path(folder, name), state, metadata)
    everything = jobs(recipe, len(condensed.classes))
    seconds = contents.results[0]["seconds"]["recover"] / len(everything) if contents.results else 0.0
    for job in everything:
        mine = condensed.some(job.classes(), job.slots())
        write_shard(folder / "condensed", job, mine, torch.zeros(0, 3), {"seconds": f"{seconds:.3f}"})
    write_atomic(folder / "recipe.toml", recipe.to_toml().encode())
    write_json(target, {key: value for key, value in contents.manifest.items() if key != "bundle"})


def _check_free(path: Path, folder: Path, contents: Contents) -> None:
    """Raises ValueError if a folder without a set holds what was not unpacked from the bundle: another run's work."""
    own, text = {teacher_path(folder, name): name for name in contents.weights}, contents.recipe.to_toml().encode()
    others = [one for one in folder.glob("recipe.toml") if read_file(one) != text]
    for one in sorted(folder.glob("teachers/*/weights.safetensors")):
        if one not in own or read_metadata(one).get("sha256") != contents.weights[own[one]][1].get("sha256"):
            others.append(one)
    for one in sorted((folder / "condensed").glob("shard-*.safetensors")):
        others += [one] * ("recipe" in read_metadata(one))  # what recover writes says so
    if others:
        raise ValueError(f"{folder} holds another run than {path}, as {others[0]} shows; choose another --out")


def digests_in(path: Path) -> list[str]:
    """The digests of the images, class by class, that a bundle names. Raises ValueError for any other file."""
    try:
        with sealed_zip.reading(path, must_be_sealed=False) as archive:
            return check_manifest(parse_json(_text(archive, "manifest.json"), path), path)["digests"]
    except (KeyError, ValueError):
        raise ValueError(f"{path} is there and is no bundle; choose another --out") from None


def read_verified(path: Path) -> Contents:
    """A bundle, each of whose images was read. Raises ValueError if they are not those that its manifest names."""
    contents = read_bundle(path)
    if wrong := first_wrong_class(contents):
        raise ValueError(f"{path}: the images of class {wrong!r} are not those that its manifest names")
    return contents


def first_wrong_class(contents: Contents) -> str:
    """The first class whose pixels are not those of the manifest's digests; empty if there is none."""
    found = contents.condensed.digests
    pairs = zip(contents.condensed.classes, found, contents.manifest["digests"], strict=True)
    return next((name for name, mine, kept in pairs if mine != kept), "")


def needed_teachers(recipe: Recipe) -> tuple[str, ...]:
    return () if recipe.needs_no_teacher else recipe.labels.teachers or recipe.squeeze.teachers


def _image_name(classes: tuple[str, ...], label: int, slot: int) -> str:
    return f"images/{label:05d}-{slug(classes[label])}/{slot:05d}.png"


def _weights_name(teacher: str) -> str:
    return f"teachers/{slug(teacher)}/weights.safetensors"


def _pngs(condensed: CondensedSet) -> Iterator[tuple[str, bytes]]:
    """Names and PNG files of all images."""
    for row, file in enumerate(encode(condensed, range(condensed.num_images), jpeg=0)):
        yield _image_name(condensed.classes, *divmod(row, condensed.ipc)), file.data


def _network(metadata: TeacherMetadata) -> Network:
    return {name: metadata[name] for name in Network.__annotations__ if name in metadata}  # type: ignore[return-value, literal-required]


def _text(archive: SealedReader, name: str) -> bytes:
    data = archive.read(name)
    if len(data) > _LARGEST_TEXT:
        raise ValueError(f"{archive.path}: {name} has {len(data)} bytes, and may have {_LARGEST_TEXT}")
    return data


class _Pictures:
    """The PNG files of a bundle, in one place; the bundle stays open, so that they are those which were checked."""

    def __init__(self, archive: SealedReader, names: list[str], size: int, opened: contextlib.ExitStack):
        self.archive, self.names = archive, names
        self.shape_of_one: tuple[int, ...] = (3, size, size)
        weakref.finalize(self, opened.close)

    def take(self, _place: int, rows: Tensor) -> Tensor:
        """Decodes the files at `rows`, int64 [n]: uint8 [n, 3, S, S]. Raises ValueError that names a damaged one."""
        images = torch.empty(len(rows), *self.shape_of_one, dtype=torch.uint8)
        with ThreadPoolExecutor(_WORKERS) as threads:
            for first in range(0, len(rows), 64):
                names = [self.names[row] for row in rows[first : first + 64].tolist()]
                files = [self.archive.read(name) for name in names]
                for image, pixels in zip(images[first:], threads.map(self._decode, names, files), strict=False):
                    image.copy_(pixels)
        return images

    def _decode(self, name: str, data: bytes) -> Tensor:
        source, size = f"{self.archive.path}: {name}", self.shape_of_one[1:]
        with naming(source, "{path} is damaged: {error}"), open_image(io.BytesIO(data)) as image:
            if (image.format, image.size, image.mode) != ("PNG", size, "RGB"):
                found = f"{image.format} of {image.size[0]} x {image.size[1]} {image.mode}"
                raise ValueError(f"{source} is a {found}, not a PNG of {size[0]} x {size[1]} RGB")
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _read_weights(archive: SealedReader, teacher: str) -> Weights:
    from safetensors.torch import load

    name = _weights_name(teacher)
    data = archive.read(name)
    source = f"{archive.path}: {name}"
    with naming(source, "{path} cannot be read as weights: {error}"):
        state = load(data)
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], source)
    return state, checked(header.get("__metadata__", {}), dict[str, str], source)
