"""The settings of a run, part by part (recover, train: their own files); their docstrings are the command line's help.

Whatever a paper or its published code fixes is a field here, so that a method is data and never a branch of code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from .bounds import (
    HOW,
    AtLeast,
    Count,
    CountOrZero,
    NonNegativeFloat,
    PositiveFloat,
    Share,
    ShareAboveZero,
    Within,
)
from .optimization import Optimization, Optimizer
from .shared import Operation, Precision, Views
from .unread import ReadIf

PixelStatistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of red, green and blue, in [0, 1]."""
_Chosen = Literal["random_soft", "random_hard", "herding_soft", "herding_hard", "medoid_soft", "bps_soft", "best_soft"]
Baseline = Literal[_Chosen, "nearest", "aligned", "full_soft", "full"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The real images."""

    name: Literal["digits", "cifar10", "cifar100", "svhn", "tiny-imagenet", "folder"] | str = "folder"
    """digits ships with scikit-learn; the others come from --data. folder: <split>/<class>/<image>, as ImageNet. Or
    your own module:function: function(--data or None) gives the classes' names, and images and labels of training and
    of test, as pairs; images are uint8 [N, H, W, 3] or paths of files."""
    image_size: Count = 224
    """Side of the square that networks see and that is recovered, in pixels."""
    resize: Count = 256
    """Pixels that the short side is resized to at evaluation, before the central image_size square is cut."""
    mean: tuple[Share, Share, Share] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue in [0, 1], which networks' inputs are normalised by."""
    std: tuple[ShareAboveZero, ShareAboveZero, ShareAboveZero] = (0.229, 0.224, 0.225)
    """Their deviation."""
    classes: tuple[str, ...] = ()
    """Classes that are taken alone, in this order; empty takes all, in the data set's own order."""
    counts: Annotated[tuple[CountOrZero, CountOrZero, CountOrZero], HOW] = (0, 0, 0)
    """Classes, training and test images, for `fastcondense plan` where the data are not at hand; 0 0 0: not known. Runs
    count what is there."""
    workers: Annotated[CountOrZero, HOW] = 0
    """Threads that decode images; 0: the machine's cores over the workers on it."""
    loader: Annotated[Literal["auto", "ffcv", "packed", "dali", "folder"], HOW] = "auto"
    """What reads the images: ffcv and packed, which needs no library, read packed ones, dali and folder read files.
    They differ by rounding."""
    on_error: Annotated[Literal["raise", "skip"], HOW] = "raise"
    """A file that cannot be read ends the run, or it is left out and listed in the log."""

    def check(self) -> None:
        """Raises ValueError for evaluation squares that images would not fill."""
        if self.resize < self.image_size:
            raise ValueError(
                f"dataset.resize {self.resize} is less than dataset.image_size {self.image_size}: images that "
                "networks are tested on would have black borders; it needs as many pixels, or more"
            )


@dataclass(frozen=True, kw_only=True)
class MoCo:
    """Momentum contrast: an image's two views agree, and differ from those of a queue of other images (MoCo v2)."""

    temperature: PositiveFloat = 0.2
    """What similarities are divided by before their softmax."""
    queue: Count = 65536
    """Views of earlier batches that a view is told from; few images want fewer than there are of them."""
    decay: Share = 0.999
    """Decay a step of the key encoder, which is the running mean of the query encoder's weights."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptimization(Optimization):
    """How a teacher is trained."""

    evaluate_every: Annotated[CountOrZero, HOW] = 0
    """Epochs between evaluations; 0: ten. The last is always evaluated. A teacher is the same however often it is."""


@dataclass(frozen=True, kw_only=True)
class SelfSupervision(TeacherOptimization, Views):
    """How a teacher's backbone learns from images without labels, before a linear probe is fitted on it (SC-DD).

    Defaults are MoCo v2's on ImageNet.
    """

    method: Literal["none", "moco"] = "none"
    """none: teachers are trained with labels. moco: MoCo v2."""
    epochs: Count = 200
    """Passes over the images."""
    batch_size: Annotated[int, AtLeast(2)] = 256
    """Images a step."""
    optimizer: Optimizer = "sgd"
    """sgd is with momentum."""
    lr: PositiveFloat = 0.03
    """Learning rate at its highest."""
    weight_decay: NonNegativeFloat = 1e-4
    decay_all: bool = True
    """Whether every parameter decays."""
    accumulate: Count = 1
    """Parts of a batch whose BatchNorms are apart; MoCo's keys are shuffled among them (published: 8, one a GPU)."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Annotated[float, Within(0, 0.5)]] = (
        0.4,
        0.4,
        0.4,
        0.1,
    )
    """Largest relative change of brightness, contrast and saturation, and largest turn of the hue, in whole ones."""
    grey: Share = 0.2
    """Probability that a view loses its colours."""
    blur: Share = 0.5
    """Probability of a Gaussian blur."""
    moco: MoCo = field(default_factory=MoCo)

    def check(self, where: str, image_size: int) -> None:
        """Raises ValueError for settings that make no sense together."""
        super().check(where, image_size)
        if self.method == "moco" and self.moco.queue < self.batch_size:
            raise ValueError(f"{where}.moco.queue must hold a batch of {self.batch_size} views, got {self.moco.queue}")


@dataclass(frozen=True, kw_only=True)
class Probe(TeacherOptimization):
    """How the linear layer on a frozen self-supervised backbone is trained, on views as squeeze's own.

    The backbone stays in evaluation mode: neither its weights nor its running statistics change. Published: MoCo v2 lr
    30, multistep 0.6 0.8; MoCo v3 90 epochs, lr 0.1 for 256 images; SwAV lr 0.3, decay 1e-6; DINO lr 1e-3 for 256.
    """

    epochs: Count = 100
    """Passes over the images."""
    batch_size: Count = 256
    """Images a step."""
    optimizer: Optimizer = "sgd"
    """sgd is with momentum."""
    lr: PositiveFloat = 0.1
    """Learning rate at its highest."""
    weight_decay: NonNegativeFloat = 0.0


@dataclass(frozen=True, kw_only=True)
class Squeeze(TeacherOptimization, Views):
    """Teachers: where they come from, and how those that are trained here are trained."""

    teachers: tuple[str, ...] = ("torchvision/resnet18",)
    """zoo/NAME (small images), torchvision/NAME, timm/NAME, or your own module:function(num_classes=...)."""
    weights: tuple[str, ...] = ("train",)
    """Weights, one a teacher or one for all: train, torchvision's weights name or timm's tag (or "default"), or a
    checkpoint, FILE, or FILE:KEY where it holds several (FILE:ema); those of MoCo, SwAV and DINO (its teacher) are
    recognised."""
    normalization: tuple[str, ...] = ("own",)
    """What a teacher's inputs are normalised by, one a teacher or one for all: own, as its pretrained weights say, or
    else dataset.mean and dataset.std; dataset, these; or R,G,B/R,G,B, mean and deviation of pixels in [0, 1]."""
    probe_weights: tuple[str, ...] = ()
    """A linear layer in place of the weights' own, one a teacher or one for all: a file of its weights, "train" to fit
    it on the frozen network, or "" for none. Self-supervised checkpoints need one."""
    classes_file: str = ""
    """Text file with the class name of each output of the checkpoints, one a line, if it differs from the data set."""
    gate_images: CountOrZero = 10
    """Real training images a class on which every teacher must beat chance before anything is recovered; 0: no gate."""
    shared: Annotated[bool, HOW] = False
    """Several workers train a teacher together, each on its part of every batch: faster, but the weights depend on the
    number of workers. Otherwise each teacher is trained by one of them, and teachers side by side."""
    sync_batch_norm: Annotated[bool, HOW] = False
    """Whether BatchNorms see a batch of all ranks, as with train.sync_batch_norm, in teachers trained with `shared`."""
    self_supervision: SelfSupervision = field(default_factory=SelfSupervision)
    probe: Probe = field(default_factory=Probe)

    @property
    def sources(self) -> dict[str, str]:
        """The source of each teacher's weights, by its name."""
        weights = self.weights * len(self.teachers) if len(self.weights) == 1 else self.weights
        return dict(zip(self.teachers, weights, strict=True)) if self.teachers else {}

    def pixel_statistics(self, teacher: int, own: PixelStatistics | None) -> PixelStatistics | None:
        """Mean and deviation for a teacher whose weights say `own`; None: the data set's. Raises ValueError for others
        than `normalization` may be.
        """
        if len(self.normalization) not in (1, len(self.teachers)):
            raise ValueError(
                f"squeeze.normalization needs one entry, or one a teacher ({len(self.teachers)}), got "
                f"{len(self.normalization)}"
            )
        text = self.normalization[teacher % len(self.normalization)]
        if text in ("own", "dataset"):
            return own if text == "own" else None
        try:
            (r, g, b), (dr, dg, db) = (tuple(float(value) for value in part.split(",")) for part in text.split("/"))
        except ValueError:
            raise ValueError(
                f"squeeze.normalization needs own, dataset or R,G,B/R,G,B, mean and deviation, got {text!r}"
            ) from None
        if not min(dr, dg, db) > 0:
            raise ValueError(f"squeeze.normalization needs deviations above 0, got {text!r}")
        return (r, g, b), (dr, dg, db)


@dataclass(frozen=True, kw_only=True)
class Labels(Views):
    """Soft labels: computed on the fly by the teachers, on views that a seed replays."""

    source: Literal["teachers", "stored", "hard"] | str = "teachers"
    """teachers: a label is computed when its view is seen; stored: read from files; hard: the classes themselves. Or
    your own module:function: function(views [B, 3, S, S], classes [B], partners [B], share [B]) gives logits [B, K]."""
    stored: str = ""
    """Folder of stored labels: ours (`relabel --store`), or FKD files of published code; empty: labels/ of the run."""
    top_k: CountOrZero = 0
    """Logits that a stored label keeps, the largest ones; 0: all of them."""
    precision: Precision = "auto"
    """Arithmetic of the teachers when they label; bf16: their weights and maps too; auto as in recover."""
    teachers: tuple[str, ...] = ()
    """Teachers among squeeze.teachers whose labels are averaged; empty: all of them."""
    ensemble: Literal["mean", "norm-equalized"] = "mean"
    """Mean of logits; norm-equalized: of logits scaled to the teachers' mean norm in the training batch (G-VBSM)."""
    priors: tuple[float, ...] = ()
    """Worth of each of labels.teachers, in per cent: the mean is weighted by softmax(prior / 10)."""
    batch_norm: Literal["eval", "train"] = "eval"
    """train: the teachers' BatchNorms take the statistics of batch_norm_size views that are seen together (CV-DD)."""
    batch_norm_size: Annotated[Count, ReadIf("batch_norm", ("train",))] = 8
    """Views that the teachers' BatchNorms see together: as many as the student's, train.batch_size / train.accumulate,
    so that both see the same views."""
    dropout: bool = False
    """Whether the teachers' dropout layers are active, as in code that leaves teachers in training mode."""
    pool: ShareAboveZero = 1.0
    """Share of all batches of views that exist; below 1, epochs draw theirs from the first of them (LPLD's pruning)."""
    mix: Literal["none", "cutmix", "mixup"] = "cutmix"
    """How a view is mixed with that of another image."""
    mix_alpha: Annotated[PositiveFloat, ReadIf("mix", ("cutmix", "mixup"))] = 1.0
    """lambda ~ Beta(alpha, alpha)."""
    mix_probability: Annotated[Share, ReadIf("mix", ("cutmix", "mixup"))] = 1.0
    """Probability that a view is mixed."""
    tile_shuffle: Annotated[int, Within(1, 64)] = 1
    """Columns, and rows, of tiles an image that are permuted before the crop (RDED)."""
    tile_pick: Annotated[int, Within(1, 64)] = 1
    """Tiles a side: a view shows one tile, enlarged, or with probability 1 / tile_pick^2 the whole image (CIM). Real
    images of the baselines are not made of tiles, and are seen whole."""
    augment: tuple[Operation, ...] = ()
    """Differentiable siamese augmentations of the normalised view (Zhao and Bilen, ICML'21), one draw an image; where
    images are mixed, before that."""
    rand_augment: tuple[Annotated[int, Within(0, 30)], Annotated[int, Within(0, 30)]] = (0, 0)
    """RandAugment's number of operations and magnitude, before the crop (Cubuk et al., 2020); 0 0: none."""

    @property
    def is_in_training(self) -> bool:
        """Whether some layers of the teachers are in training mode."""
        return self.batch_norm == "train" or self.dropout

    def check(self, where: str, image_size: int) -> None:
        """Raises ValueError for settings that make no sense together."""
        super().check(where, image_size)
        if self.augment and self.mix == "mixup":
            raise ValueError("labels.augment needs labels.mix none or cutmix, got mixup")
        if self.tile_pick > 1 and self.padding:
            raise ValueError("labels.tile_pick needs labels.padding 0: beyond a tile are the others, not black pixels")
        if self.batch_norm == "train" and self.batch_norm_size < 2:
            raise ValueError(
                f"labels.batch_norm train needs a batch_norm_size of 2 or more, got {self.batch_norm_size}"
            )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Honest baselines: the same student, epochs and views on something else than the condensed images."""

    baselines: tuple[Baseline | str, ...] = ("random_soft", "random_hard")
    """random_soft, random_hard: random real images of the same IPC with soft or hard labels; herding_soft,
    herding_hard, medoid_soft, bps_soft: those that a rule of recover.initial.kind chooses in the features of the first
    labelling teacher, or in pixels if there is no teacher (bps needs one); best_soft: the best of these three, as other
    training images tell; nearest, aligned: with hard labels, those that recover.teachers see nearest to the mean of
    their class, or most in its direction from the mean of all; full_soft: all real images with soft labels, in as many
    views as the condensed ones; full: all real images with hard labels, for full_epochs. Or your own module:function,
    whose images get soft labels: function(images of a class uint8 [N, 3, S, S], count) gives uint8 [count, 3, S, S]."""
    sizes: Annotated[tuple[Count, ...], HOW] = ()
    """Images per class at which the set is scored, each time the first of every class: `evaluate --ipc 1,2,5`."""
    compare: Annotated[tuple[Literal["independent", "stacked"], ...], HOW] = ()
    """Sets scored beside them: those made for each size (A), and those put together from sets of one image a class of
    other seeds (B)."""
    full_epochs: CountOrZero = 0
    """Epochs on the full data; 0 takes squeeze.epochs, and for frozen students train.epochs."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """DD-Ranking's scores, which `fastcondense rank` makes; nothing else depends on these settings."""

    labels: Literal["soft", "hard"] = "soft"
    """Labels on both sides of the improvement over random images, with the recipe's views and without."""
    real_accuracy: Annotated[float, Within(0, 100)] = 0.0
    """Top-1 in % of students on all real images with hard labels, where it is known; 0: they are trained, as many
    epochs as evaluate.full_epochs says."""
    learning_rates: tuple[PositiveFloat, ...] = ()
    """Every student on condensed and on random images is trained with each of these, and the most accurate on the test
    images counts; empty: train.lr alone. DD-Ranking's are 0.001 0.005 0.01 0.05 0.1."""
