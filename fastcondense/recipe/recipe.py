"""A recipe is one run: frozen dataclasses, TOML in and out. Papers are recipes (data), never branches of code.

What a file and its tables come to is put together in layers.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tomli_w

from ..loaders.reading import read_file
from .bounds import HOW, Count, Within, check_bounds, deciding
from .layers import CORRECTED, IPC, NAME, RECIPES, layers, merged, tree_of
from .means import check_frozen
from .recover import Recover
from .settings import Dataset, Evaluate, Labels, Ranking, Squeeze
from .shared import Views
from .train import Train
from .typed import build

MARK = f"-{CORRECTED}"
"""The end of the names that ask for that table."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run from real images to a score."""

    name: Annotated[str, HOW] = "custom"
    """Name of the recipe, and of its folder in runs/."""
    method: str = "custom"
    """Name of the method in tables."""
    seed: Annotated[int, Within(0, 2**52)] = 0
    """What every random choice of the run is drawn from; further students count on from it."""
    ipc: Count = IPC
    """Images per class."""
    dataset: Dataset = field(default_factory=Dataset)
    squeeze: Squeeze = field(default_factory=Squeeze)
    recover: Recover = field(default_factory=Recover)
    labels: Labels = field(default_factory=Labels)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    ranking: Annotated[Ranking, HOW] = field(default_factory=Ranking)

    def check(self) -> Recipe:
        """Returns self; raises ValueError for values that no run could mean."""
        check_bounds(self)
        if not NAME.fullmatch(self.name) or {".", ".."} & set(self.name.split("/")):
            raise ValueError(f"name is part of paths: letters, digits, -_. and / between them, got {self.name!r}")
        parts: dict[str, Views] = {
            "squeeze": self.squeeze,
            "squeeze.self_supervision": self.squeeze.self_supervision,
            "recover": self.recover,
            "recover.initial": self.recover.initial,
            "labels": self.labels,
        }
        self.dataset.check()
        for where, part in parts.items():
            part.check(where, self.dataset.image_size)
        self._check_teachers()
        self._check_recover()
        trained: dict[str, Squeeze | Train] = {"squeeze": self.squeeze, "train": self.train}
        apart = {f"squeeze.{name}": getattr(self.squeeze, name) for name in ("self_supervision", "probe")}
        for name, optimization in (trained | apart).items():
            milestones, is_multistep = optimization.milestones, optimization.schedule == "multistep"
            if is_multistep and not (milestones and all(0 < share < 1 for share in milestones)):
                raise ValueError(f"{name}.schedule multistep needs {name}.milestones in (0, 1), got {milestones}")
        for name, optimization in trained.items():
            if optimization.sync_batch_norm and optimization.accumulate > 1:
                raise ValueError(f"{name}.sync_batch_norm needs {name}.accumulate 1: parts of a batch are seen alone")
        if self.squeeze.sync_batch_norm and not self.squeeze.shared:
            raise ValueError("squeeze.sync_batch_norm needs squeeze.shared: other teachers see whole batches")
        is_supervised = self.squeeze.self_supervision.method == "none" and "train" not in self.squeeze.probe_weights
        if self.squeeze.shared and not is_supervised:
            raise ValueError("squeeze.shared is for teachers trained on labels; leave it out for others")
        if (self.labels.stored or self.labels.top_k) and self.labels.source != "stored":
            raise ValueError(f"labels.stored and labels.top_k need labels.source stored, got {self.labels.source}")
        self.train.check(self.labels.top_k)
        check_frozen(self.train, self.labels, self.evaluate.baselines)
        if self.train.prefix > self.ipc:
            raise ValueError(f"train.prefix is {self.train.prefix}, more than the images of a class, ipc {self.ipc}")
        return self

    def _check_recover(self) -> None:
        recover, initial, size = self.recover, self.recover.initial, self.dataset.image_size
        if len(recover.targets) != len(recover.target_weights) or not recover.targets:
            raise ValueError(
                f"recover.target_weights needs one weight for each of the targets {', '.join(recover.targets)}, "
                f"got {recover.target_weights}"
            )
        recover.gradients.check(recover.slots_per_job or self.ipc)
        is_plain = recover.objective in ("statistics", "means") and not recover.stages and initial.kind == "noise"
        wanted = "recover.objective statistics or means, no recover.stages, and recover.initial.kind noise"
        recover.pyramid.check(size, recover.iterations, "" if is_plain else wanted)
        if recover.objective == "means" and not recover.pyramid.every:
            raise ValueError("recover.objective means needs recover.pyramid.every above 0, got 0")
        if "patch" in recover.statistics and any(side != size for side in recover.stages):
            raise ValueError("recover.statistics patch needs images of one size: the number of patches depends on it")
        if initial.kind in ("bps", "median") and (initial.space == "pixels" or self.needs_no_teacher):
            raise ValueError(f"recover.initial.kind {initial.kind} needs a teacher, and recover.initial.space features")
        if "bps_soft" in self.evaluate.baselines and self.needs_no_teacher:
            raise ValueError("evaluate.baselines bps_soft needs a teacher, and this recipe has none")
        if initial.factor > size:
            raise ValueError(f"recover.initial.factor {initial.factor} is more than dataset.image_size")
        if recover.loss and (recover.objective != "statistics" or not recover.iterations):
            raise ValueError(
                "recover.loss needs recover.objective statistics and iterations, got "
                f"{recover.objective} and {recover.iterations}"
            )
        has_anchors = initial.kind == "mosaic" and (initial.crops == 0 or initial.crop_size == "image")
        if recover.objective == "features" and not (has_anchors and recover.features.layer):
            raise ValueError(
                "recover.objective features needs recover.features.layer, and mosaics of whole images "
                "(recover.initial.kind mosaic with crops 0 or crop_size image)"
            )

    def _check_teachers(self) -> None:
        teachers = self.squeeze.teachers
        if not teachers and not self.needs_no_teacher:
            raise ValueError("squeeze.teachers needs at least one, got none")
        if len(self.squeeze.weights) not in (1, len(teachers)):
            raise ValueError(
                f"squeeze.weights needs one entry, or one a teacher ({len(teachers)}), got {len(self.squeeze.weights)}"
            )
        for number in range(len(teachers)):
            source = self.squeeze.weights[number % len(self.squeeze.weights)]
            if self.squeeze.pixel_statistics(number, None) is not None and source == "train":
                raise ValueError(f"squeeze.normalization is of given weights, but {teachers[number]} is trained here")
        if len(probes := self.squeeze.probe_weights) not in (0, 1, len(teachers)):
            raise ValueError(
                f"squeeze.probe_weights needs none, one, or one a teacher ({len(teachers)}), got {len(probes)}"
            )
        if len(set(teachers)) < len(teachers):
            raise ValueError(f"squeeze.teachers must differ from each other, got {teachers}")
        for name, some in (
            ("recover.teachers", self.recover.teachers),
            ("recover.initial.teachers", self.recover.initial.teachers),
            ("labels.teachers", self.labels.teachers),
        ):
            if unknown := [teacher for teacher in some if teacher not in teachers]:
                raise ValueError(f"{name} names {unknown[0]!r}, which is not among squeeze.teachers")
        for name, values, some in (
            ("recover.committee.priors", self.recover.committee.priors, self.recover.teachers),
            ("labels.priors", self.labels.priors, self.labels.teachers),
        ):
            if values and len(values) != len(some or teachers):
                raise ValueError(f"{name} needs one number a teacher ({len(some or teachers)}), got {len(values)}")
        if self.recover.committee.size > max(1, len(self.recover.teachers or teachers)):
            raise ValueError(f"recover.committee.size is {self.recover.committee.size}, but there are fewer teachers")

    @property
    def shown_ipc(self) -> int:
        """Images of a class that students are trained on."""
        return self.train.prefix or self.ipc

    @property
    def needs_no_teacher(self) -> bool:
        """Whether no stage asks a teacher: gradients are matched, and labels are hard."""
        return self.recover.objective == "gradients" and self.labels.source == "hard"

    def parts(self, *names: str) -> dict[str, Any]:
        """The named parts as a JSON-like tree (all that decides results, if none is named)."""
        tree = json.loads(json.dumps(deciding(self)))
        return {name: tree[name] for name in names} if names else tree

    def sha256(self, *names: str) -> str:
        """Hash of `parts`: equal hashes, equal settings."""
        return sha256_of(self.parts(*names))

    def to_toml(self) -> str:
        """The recipe as TOML, every field written out; `from_toml` reads it back."""
        return tomli_w.dumps(dataclasses.asdict(self))

    def recover_parts(self) -> tuple[str, ...]:
        """The parts that decide the condensed images: not ipc, where an IPC-n set is the beginning of an IPC-K set."""
        recover = self.recover
        is_ranked = recover.initial.kind == "mosaic" and recover.initial.layout == "rank-major"
        has_groups = recover.slots_per_job != 1 or recover.objective == "features"
        has_groups |= recover.initial.kind == "difficulty" or "difficulty" in recover.targets
        has_groups |= recover.objective == "means" and recover.means.target != "gradient"
        return (*SQUEEZE_PARTS, "method", "recover", *(["ipc"] if is_ranked or has_groups else []))


def sha256_of(parts: Mapping[str, Any]) -> str:
    """Hash of a tree of settings, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# The parts that decide the teachers: a finished stage is reused by any recipe that agrees in what decides it.
SQUEEZE_PARTS = ("seed", "dataset", "squeeze")


def from_toml(
    text: str | bytes, source: str, ipc: int | None = None, *, corrected: bool = False, student: str = ""
) -> Recipe:
    """TOML -> Recipe, of `student` if given. Raises ValueError for unknown keys (with the nearest) and wrong types."""
    found = layers(text, source, ipc, corrected=corrected, student=student)
    try:
        recipe: Recipe = build(Recipe, merged(found), "")
        return recipe.check()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def whole_recipe(text: bytes, source: str) -> Recipe:
    """The recipe of a run or a bundle, which is written in full. Raises ValueError as `from_toml`, and if parts of it
    are missing: what was left of it would mean the defaults."""
    recipe = from_toml(text, source)
    held = tree_of(text, source)
    for name, part in vars(recipe).items():
        if dataclasses.is_dataclass(part) and name not in held:
            raise ValueError(f"{source} is damaged: it lacks [{name}]")
    return recipe


def own_recipe(path: Path) -> Recipe:
    """The recipe in the folder of a run."""
    return whole_recipe(read_file(path), str(path))


def load(name_or_file: str, student: str = "", ipc: int | None = None) -> Recipe:
    """A recipe by name ("sre2l/digits-ipc10") or TOML file, of `student` and with `ipc` images a class if given. Raises
    ValueError with the nearest known name."""
    path = Path(name_or_file)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ValueError(f"there is no recipe file {path}")
        recipe = from_toml(path.read_bytes(), str(path), ipc, corrected=path.stem.endswith(MARK), student=student)
        name = recipe.name if recipe.name != Recipe.name else re.sub(r"[^\w.-]", "-", path.stem)
        return dataclasses.replace(recipe, name=name)
    return _shipped(name_or_file, student, ipc)


@functools.cache
def _shipped(name: str, student: str, ipc: int | None) -> Recipe:
    """A recipe that ships; its files stay as they are. Its name stays too, whatever ipc is."""
    stem, own = split_name(name)
    of, text = own if ipc is None else ipc, file_of(stem).read_text()
    recipe = from_toml(text, f"recipe {stem}", of, corrected=stem.endswith(MARK), student=student)
    return dataclasses.replace(recipe, name=f"{stem}-ipc{own or recipe.ipc}")


def split_name(name: str) -> tuple[str, int | None]:
    """A shipped name without its -ipc suffix, and that number. Raises ValueError with the nearest known name."""
    match = re.fullmatch(r"(.+)-ipc(\d+)", name)
    stem, ipc = (match[1], int(match[2])) if match else (name, None)
    if stem not in names():
        near = difflib.get_close_matches(stem, names(), 1, 0.0)[0]
        raise ValueError(f"there is no recipe {name!r}; the nearest is {near!r} (`fastcondense recipes` lists them)")
    return stem, ipc


def file_of(stem: str) -> Path:
    """The file of a shipped recipe, whose name has no -ipc suffix."""
    return RECIPES / f"{stem.removesuffix(MARK)}.toml"


@functools.cache
def names() -> tuple[str, ...]:
    """Names of the recipes that ship, without the -ipc suffix; a file with a [corrected] table is two of them."""
    found: list[str] = []
    for path in RECIPES.glob("*/*.toml"):
        name = path.relative_to(RECIPES).with_suffix("").as_posix()
        found += [name, *([name + MARK] if CORRECTED in tree_of(path.read_text(), name) else [])]
    return tuple(sorted(found))


def published(name: str) -> dict[str, Any]:
    """What the authors of the recipe `name` (without suffixes) published: source, and top-1 by student and ipc."""
    return dict(tree_of(file_of(name).read_text(), f"recipe {name}").get("published", {}))
