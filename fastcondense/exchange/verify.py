"""The commands that bundle a run, and that tell whether this machine sees and labels a set as another one did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from .. import trust
from ..data.real import Normalization
from ..devices import choose_device
from ..files import first_difference
from ..labels.fingerprint import Verdict, compare
from ..labels.relabel import TRANSFORM, num_bytes, specification, take_sample
from ..log import Log
from ..networks import zoo
from ..recipe.evaluation import made_otherwise
from ..records import Network, TeacherMetadata, checked
from ..sets import hub
from ..sets.bundle import Contents, digests_in, first_wrong_class, needed_teachers, read_bundle, read_run, write_bundle
from ..sets.results import is_of
from ..sets.sealed_zip import is_bundle, is_sealed, read_seal
from ..teachers.kept import read_statistics, read_teacher, rebuild, teacher_path
from ..teachers.teacher import Teacher
from ..tensor_files import read_tensors, state_sha256
from ..user_functions import is_own
from ..words import bytes_in_words


@dataclass(frozen=True, kw_only=True)
class BundleOptions:
    """Options of `fastcondense bundle`: what is bundled where."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run that has been relabelled."""
    out: Path | None = None
    """The file; default <run>.zip beside the folder."""
    teachers: Literal["embed", "reference"] = "embed"
    """Whether the teachers' weights go into the bundle, or their names and sha256 alone."""
    push_to_hub: str = ""
    """A data set user/set of the Hugging Face Hub that it is also uploaded to, as whoever `hf auth login` says."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Options of `fastcondense verify`: what is verified, and with which weights."""

    path: Annotated[Path, tyro.conf.Positional]
    """A bundle, or the folder of a run."""
    teachers: Path | None = None
    """Folder of a run, or its teachers/, with weights that a bundle only names."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    code: tuple[str, ...] = ()
    """Functions that its recipe names as networks, module:function or file.py:function, and that you trust."""


def bundle(options: BundleOptions, log: Log) -> None:
    """Writes a bundle and says the bytes of everything."""
    if options.push_to_hub:
        hub.check_name(options.push_to_hub)
    run = options.run.resolve()
    path = options.out or run.with_name(f"{run.name}.zip")
    before = digests_in(path) if path.exists() else None
    contents = read_run(options.run)
    if before not in (None, contents.manifest["digests"]):
        raise ValueError(f"{path} is a bundle of other images; choose another --out, or remove it")
    if reason := disagreement(contents, lambda name: state_sha256(weights_of(contents, name, None)[0])):
        raise ValueError(f"{options.run} cannot be bundled: {reason}; run recover and relabel again")
    sizes, manifest = write_bundle(contents, options.run, path, options.teachers), contents.manifest
    parts = ", ".join(f"{name} {bytes_in_words(size)}" for name, size in sizes.items())
    replay, fingerprint = num_bytes(manifest["replay"]), num_bytes(manifest.get("fingerprint", {}))
    log.say(
        f"{path}: {bytes_in_words(path.stat().st_size)} ({parts}); of the rest, the replay specification has {replay} "
        f"bytes and the fingerprint {fingerprint}; sealed by sha256 {read_seal(path)}"
    )
    if options.push_to_hub:
        log.say(f"{path}: pushed to {hub.push(path, options.push_to_hub)}")


def verify(options: VerifyOptions, log: Log) -> int:
    """Says match, drift or mismatch; the exit status is 1 for a mismatch. No real data are needed."""
    path, is_file = options.path, is_bundle(options.path)
    is_whole = is_file and is_sealed(path)
    if is_file and not is_whole:
        verdict = Verdict("mismatch", "it was changed or damaged: its bytes have not the sha256 that it ends with")
    else:
        contents = read_bundle(path) if is_file else read_run(path)
        _check_use(options.teachers, contents)
        verdict = check(contents, options.teachers, choose_device(options.device))
    seal = f"; sealed by sha256 {read_seal(path)}" if is_whole else ""
    log.say(f"{path}: {verdict.kind}: {verdict.reason}{seal}")
    return 1 if verdict.kind == "mismatch" else 0


def _check_use(teachers: Path | None, contents: Contents) -> None:
    """Raises ValueError for --teachers that is no folder, or that nothing is read from."""
    if teachers is not None and not teachers.is_dir():
        raise ValueError(f"--teachers {teachers}: there is no such folder")
    if teachers is not None and set(needed_teachers(contents.recipe)) <= contents.weights.keys():
        raise ValueError(f"--teachers {teachers} is not read: the set holds its teachers' weights; leave it out")


def check(contents: Contents, folder: Path | None, device: torch.device) -> Verdict:
    """Compares a set with its manifest, from what must be equal to what may drift; weights may come from a folder.

    Raises ValueError where a teacher's weights are neither there, nor in the folder, nor known by name.
    """
    recipe, condensed, found = contents.recipe, contents.condensed, {}

    def sha256_of(name: str) -> str:
        found[name] = weights_of(contents, name, folder)
        return state_sha256(found[name][0])

    if reason := disagreement(contents, sha256_of):
        return Verdict("mismatch", reason)
    if recipe.needs_no_teacher:
        return Verdict("match", "labels are the classes; images, classes and recipe are those of its manifest")
    if "fingerprint" not in contents.manifest:
        return Verdict("mismatch", "it has no fingerprint of its labels")
    teachers = [labeller(contents, name, *weights).to(device) for name, weights in found.items()]
    seen = take_sample(recipe, condensed, teachers, Normalization.of(recipe.dataset, device))
    return compare(contents.manifest["fingerprint"], seen)


def disagreement(contents: Contents, sha256_of: Callable[[str], str]) -> str:
    """In what a set is not the one that its manifest tells of, before a teacher is asked; empty if it is that one.

    sha256_of: the hash of a teacher's weights by its name, called for each that labels. Labels of code that nobody
    vouches for are not compared.
    """
    recipe, condensed, replay = contents.recipe, contents.condensed, contents.manifest["replay"]
    inside, source = contents.manifest.get("bundle"), recipe.labels.source
    if replay["transform"] != TRANSFORM:
        return f"views are made as {replay['transform']!r}; here they are {TRANSFORM!r}"
    if wrong := first_wrong_class(contents):
        return f"the images of class {wrong!r} are not those that were labelled"
    if hashlib.sha256(json.dumps(condensed.classes).encode()).hexdigest() != replay["classes"]:
        return "the classes are in another order than when they were labelled"
    if inside is not None and inside["recipe_sha256"] != recipe.sha256():
        return "its recipe is not the one that it was bundled with"
    if difference := made_otherwise(contents.manifest["recipe"], recipe):
        return f"its images were made by another recipe than its own: {difference}"
    if not all(is_of(result, recipe) for result in contents.results):
        return "its scores are those of another recipe"
    if tuple(replay["teachers"]) != needed_teachers(recipe):
        return "the teachers of the recipe are not those that the set was labelled by"
    if len(replay["seeds"]) != recipe.train.seeds:
        return f"the recipe has {recipe.train.seeds} seeds, its labels {len(replay['seeds'])}"
    weights = {name: sha256_of(name) for name in replay["teachers"]}
    for name, sha256 in replay["teachers"].items():
        if weights[name] != sha256:
            return f"teacher {name} has other weights than when the set was labelled"
    if is_own(source) and not trust.is_given(source):
        return ""
    difference = first_difference(replay, specification(recipe, condensed, weights))
    return f"the recipe is not the one that the set was labelled with: {difference}" if difference else ""


def weights_of(
    contents: Contents, name: str, folder: Path | None
) -> tuple[dict[str, Tensor], Network | TeacherMetadata]:
    """A teacher's state dict and what is known of it; weights that the set only names may come from a folder.

    Raises ValueError where they are neither there, nor in the folder, nor known by name.
    """
    for found in _weights(contents, name, folder):
        return found
    raise ValueError(f"the weights of teacher {name} are not here; name a folder that has them by --teachers")


def labeller(contents: Contents, name: str, state: dict[str, Tensor], known: Network | TeacherMetadata) -> Teacher:
    """The teacher of these weights, as it labels the images of a set."""
    recipe, classes, source = contents.recipe, contents.condensed.classes, f"{contents.path}: teacher {name}"
    net, outputs = rebuild(name, state, known, len(classes), source)
    statistics, is_unfused = read_statistics(known, source), recipe.labels.is_in_training
    return Teacher.of(
        net, name, classes, outputs, recipe.dataset, has_unfused=is_unfused, statistics_of_pixels=statistics
    )


def _weights(
    contents: Contents, name: str, folder: Path | None
) -> Iterator[tuple[dict[str, Tensor], Network | TeacherMetadata]]:
    """The weights of a teacher from all places, the best first: the set itself, a folder, a library that knows them."""
    if name in contents.weights:
        state, metadata = contents.weights[name]
        yield state, checked(metadata, TeacherMetadata, f"{contents.path}: teacher {name}", is_text=True)
    for root in () if folder is None else (folder, folder.parent):
        if (path := teacher_path(root, name)).exists():
            yield read_tensors(path)[0], read_teacher(path)
    sources, inside = contents.recipe.squeeze.sources, contents.manifest.get("bundle")
    known = inside["teachers"].get(name) if inside else None
    if known and sources[name] != "train" and not Path(sources[name]).suffix:
        yield zoo.build(name, known["num_outputs"], sources[name]).state_dict(), known
