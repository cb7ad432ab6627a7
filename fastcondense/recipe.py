"""A recipe is one run: frozen dataclasses, TOML in and out. Papers are recipes (data), never branches of code.

``load("sre2l/cifar10-ipc50")`` reads ``recipes/sre2l/cifar10.toml`` and sets ipc to 50, after applying that file's
``[by_ipc.50]`` table if it has one. A path to a TOML file works the same way.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from .precision import Precision
from .windows import Views

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The real images."""

    name: Literal["digits", "cifar10", "cifar100", "tiny-imagenet", "folder"] = "folder"
    """digits ships with scikit-learn; the others come from --data. folder: <split>/<class>/<image>, as ImageNet."""
    image_size: int = 224
    """Side of the square that networks see and that is recovered, in pixels."""
    resize: int = 256
    """At evaluation the short side is resized to this before the central image_size square is cut."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    classes: tuple[str, ...] = ()
    """Only these classes, in this order; empty takes all, in the data set's own order."""
    workers: int = 2
    """Threads that decode images."""
    loader: Literal["auto", "ffcv", "dali", "folder"] = "auto"
    """What reads the images: ffcv needs packed ones, dali and folder (Pillow) read files. They differ by rounding."""
    on_error: Literal["raise", "skip"] = "raise"
    """A file that cannot be read ends the run, or it is left out and listed in the log."""


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How a network is trained."""

    epochs: int = 300
    batch_size: int = 128
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    """Applied to weights of more than one dimension only, unless decay_all."""
    decay_all: bool = False
    momentum: float = 0.9
    """SGD's."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's and AdamW's."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """cosine: (1 + cos(pi e / (stretch E))) / 2 for epoch e of E after the warm-up."""
    schedule_stretch: float = 1.0
    """zeta; 2 is the smoothed schedule of RDED and EDC, which ends at half the learning rate."""
    warmup_epochs: int = 0
    """Linear from a hundredth of the learning rate."""
    ema: float = 0.0
    """Decay a step of the exponential moving average of the weights that is evaluated; 0 evaluates the weights."""
    evaluate_every: int = 10
    """Epochs between evaluations; the last is always evaluated."""
    precision: Precision = "fp32"
    """Arithmetic of the network; bf16 is autocast, with float32 weights."""


@dataclass(frozen=True, kw_only=True)
class Squeeze(Optimization, Views):
    """Teachers: where they come from, and how those that are trained here are trained."""

    teachers: tuple[str, ...] = ("torchvision/resnet18",)
    """zoo/NAME (small images), torchvision/NAME, timm/NAME, or your own module:function(num_classes=...)."""
    weights: tuple[str, ...] = ("train",)
    """One a teacher or one for all: train, torchvision's weights name or timm's tag (or "default"), or a checkpoint."""
    classes_file: str = ""
    """Text file with the class name of each output of the checkpoints, one a line, if it differs from the data set."""
    gate_images: int = 10
    """Real training images a class on which every teacher must beat chance before anything is recovered; 0: no gate."""


@dataclass(frozen=True, kw_only=True)
class Recover(Views):
    """Images by gradient descent on cross-entropy plus the matching of BatchNorm statistics (SRe2L, CDA)."""

    iterations: int = 4000
    lr: float = 0.25
    betas: tuple[float, float] = (0.5, 0.9)
    batch_size: int = 100
    """Images optimised together: one of each of so many different classes."""
    match_weight: float = 0.01
    """Weight of the BatchNorm matching loss (r_bn)."""
    first_layer_weight: float = 10.0
    """Weight of the first layer among those that are matched."""
    statistics: tuple[Literal["bn", "conv", "patch"], ...] = ("bn",)
    """What is matched: mean and variance of the inputs of BatchNorms (with the running ones), of convolutions (with the
    data set's), and with patch the mean and variance of every patch of the convolutions' inputs too (G-VBSM)."""
    patch_size: int = 16
    """Side of a patch: 16 for 224-pixel images, 4 for 32 and 64."""
    statistics_ema: float = 0.0
    """Decay an iteration of the running mean that is compared instead of the batch's statistics (G-VBSM's alpha)."""
    ema_start: Literal["first", "zero"] = "first"
    """The running mean's first value: the first batch's, or 0 as in the published code."""
    precision: Precision = "fp32"
    """Arithmetic of the teachers; images and statistics are float32 in any case."""
    tv_weight: float = 0.0
    l2_weight: float = 0.0
    curriculum: Literal["none", "step", "linear", "cosine"] = "none"
    """CDA: the crop's smallest area share falls from 1 to crop_scale's lower end in the first `milestone` of it."""
    milestone: float = 1.0
    per_image_windows: bool = False
    """One window an image instead of one a batch; a change of method."""


@dataclass(frozen=True, kw_only=True)
class Labels(Views):
    """Soft labels: computed on the fly by the teachers, on views that a seed replays."""

    mix: Literal["none", "cutmix", "mixup"] = "cutmix"
    mix_alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha)."""
    mix_probability: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Train(Optimization):
    """Students on the condensed set."""

    student: str = "torchvision/resnet18"
    loss: Literal["kl", "kl_t2", "mse_ce"] = "kl"
    """kl: KL(teacher || student) at `temperature`; kl_t2: times its square; mse_ce: MSE of logits + ce_weight * CE."""
    temperature: float = 20.0
    ce_weight: float = 0.1
    seeds: int = 1
    """Students, each from another seed."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Honest baselines: the same student, epochs and views on something else than the condensed images."""

    baselines: tuple[Literal["random_soft", "random_hard", "full"], ...] = ("random_soft", "random_hard")
    """random_soft, random_hard: random real images of the same IPC with soft or hard labels; full: all real images."""
    full_epochs: int = 0
    """Epochs on the full data; 0 takes squeeze.epochs."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run from real images to a score."""

    name: str = "custom"
    method: str = "custom"
    seed: int = 0
    ipc: int = 10
    """Images per class."""
    dataset: Dataset = field(default_factory=Dataset)
    squeeze: Squeeze = field(default_factory=Squeeze)
    recover: Recover = field(default_factory=Recover)
    labels: Labels = field(default_factory=Labels)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)

    def check(self) -> Recipe:
        """Returns self; raises ValueError for values that no run could mean."""
        for views in (self.squeeze, self.recover, self.labels):
            views.check()
        at_least_one = {
            "ipc": self.ipc,
            "dataset.image_size": self.dataset.image_size,
            "recover.iterations": self.recover.iterations,
            "recover.batch_size": self.recover.batch_size,
            "squeeze.epochs": self.squeeze.epochs,
            "squeeze.batch_size": self.squeeze.batch_size,
            "train.epochs": self.train.epochs,
            "train.batch_size": self.train.batch_size,
            "train.seeds": self.train.seeds,
            "number of squeeze.teachers": len(self.squeeze.teachers),
        }
        for name, value in at_least_one.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if len(self.squeeze.weights) not in (1, len(self.squeeze.teachers)):
            raise ValueError(
                f"squeeze.weights needs one entry, or one a teacher ({len(self.squeeze.teachers)}), "
                f"got {len(self.squeeze.weights)}"
            )
        if len(set(self.squeeze.teachers)) < len(self.squeeze.teachers):
            raise ValueError(f"squeeze.teachers must differ from each other, got {self.squeeze.teachers}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in [0, 2^64), got {self.seed}")
        if not 0 < self.train.temperature:
            raise ValueError(f"train.temperature must be positive, got {self.train.temperature}")
        return self

    def parts(self, *names: str) -> dict[str, Any]:
        """The named parts as a JSON-like tree (all that decides results, if none is named)."""
        tree = json.loads(json.dumps(dataclasses.asdict(self)))
        del tree["name"]
        for key in ("workers", "loader", "on_error"):
            del tree["dataset"][key]
        return {name: tree[name] for name in names} if names else tree

    def sha256(self, *names: str) -> str:
        """Hash of `parts`: equal hashes, equal settings."""
        return hashlib.sha256(json.dumps(self.parts(*names), sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The recipe as TOML, every field written out; `from_toml` reads it back."""
        return tomli_w.dumps(dataclasses.asdict(self))


# The parts that decide what a stage makes: a finished stage is reused by any recipe that agrees in these.
SQUEEZE_PARTS = ("seed", "dataset", "squeeze")
RECOVER_PARTS = (*SQUEEZE_PARTS, "method", "recover")  # not ipc: an IPC-n set is the beginning of an IPC-K set
TRAIN_PARTS = (*RECOVER_PARTS, "ipc", "labels", "train")


def from_toml(text: str, source: str, ipc: int | None = None) -> Recipe:
    """TOML -> Recipe. Raises ValueError for unknown keys (with the nearest valid one) and wrong types."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source} is not valid TOML: {error}") from None
    by_ipc = tree.pop("by_ipc", {})
    ipc = ipc if ipc is not None else tree.get("ipc", Recipe.ipc)
    tree["ipc"] = ipc
    _merge(tree, by_ipc.get(str(ipc), {}))
    try:
        recipe: Recipe = _build(Recipe, tree, "")
        return recipe.check()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def load(name_or_file: str) -> Recipe:
    """A recipe by name ("sre2l/digits-ipc10") or from a TOML file. Raises ValueError with the nearest known name."""
    path = Path(name_or_file)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ValueError(f"there is no recipe file {path}")
        recipe = from_toml(path.read_text(), str(path))
        return recipe if recipe.name != Recipe.name else dataclasses.replace(recipe, name=path.stem)
    stem, ipc = name_or_file, None
    if match := re.fullmatch(r"(.+)-ipc(\d+)", name_or_file):
        stem, ipc = match[1], int(match[2])
    path = RECIPES / f"{stem}.toml"
    if stem not in names():
        near = difflib.get_close_matches(stem, names(), 1, 0.0)
        raise ValueError(
            f"there is no recipe {name_or_file!r}; the nearest is {near[0]!r} (known: {', '.join(names())})"
        )
    recipe = from_toml(path.read_text(), f"recipe {stem}", ipc)
    return dataclasses.replace(recipe, name=f"{stem}-ipc{recipe.ipc}")


def names() -> list[str]:
    """Names of the recipes that ship, without the -ipc suffix."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.glob("*/*.toml"))


def _merge(tree: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _build(kind: Any, value: Any, where: str) -> Any:
    """A TOML value as the annotated type `kind`; `where` is its dotted key."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a table, got {value!r}")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                near = difflib.get_close_matches(key, hints, 1, 0.0)[0]
                raise ValueError(f"unknown key {where + key!r}; the nearest valid one is {where + near!r}")
        built = {
            key: _build(hints[key], item, f"{where}{key}." if isinstance(item, dict) else f"{where}{key}")
            for key, item in value.items()
        }
        return typing.cast(type, kind)(**built)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where} must be one of {', '.join(map(str, args))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {value!r}")
        if args[-1] is Ellipsis:
            args = args[:1] * len(value)
        if len(args) != len(value):
            raise ValueError(f"{where} needs {len(args)} values, got {len(value)}")
        return tuple(_build(arg, item, where) for arg, item in zip(args, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} must be of type {kind.__name__}, got {value!r}")
    return value
