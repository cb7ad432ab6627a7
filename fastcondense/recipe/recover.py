"""The settings of recover: initial images, what is matched with what, and in which order (see settings.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from .bounds import HOW, Count, CountOrZero, Decay, NonNegativeFloat, PositiveFloat, Share, ShareAboveZero
from .gradients import Gradients
from .means import Means, Pyramid
from .shared import Precision, Views
from .unread import ReadIf

Storage = Literal["png", "jpeg"]


@dataclass(frozen=True, kw_only=True)
class Initial(Views):
    """The initial images, from which optimisation starts. Views: the crops that mosaics are chosen from."""

    kind: Literal["noise", "real", "herding", "medoid", "bps", "median", "difficulty", "mosaic"] | str = "noise"
    """noise: normal, in normalised pixels; real: random training images; mosaic: the crops that teachers know best;
    herding: real images whose mean is nearest to their class's, one after another; medoid: those with the least mean
    distance to the images of their class; bps: in turns those in the middle of clusters of their class and those at
    their margins, which the teacher is least sure of, without noise; median: the image of the middle probability of its
    class, and from there outwards (DELT); difficulty: of each group of difficulty the hardest (PSM). Or your own
    module:function or file.py:function, which gives the image [3, S, S] of a place: function(images of the class uint8
    [N, 3, S, S], place), levels from 0 to 255."""
    space: Literal["features", "pixels"] = "features"
    """What herding and medoid compare: what the first teacher has before its classifier, or pixels. bps and median need
    the teacher."""
    teachers: tuple[str, ...] = ()
    """Teachers that score crops, by the mean of their logits, or the first of which gives features; empty: all of
    squeeze.teachers."""
    candidates: CountOrZero = 300
    """Random training images a class that crops are cut from (RDED's mipc); 0: all of them."""
    preselected: CountOrZero = 0
    """Candidates that are cropped, namely those whose evaluation squares score best (EDC: 300); 0: all."""
    crops: CountOrZero = 5
    """Random crops of each; 0: its evaluation square instead (CIM)."""
    one_per_image: bool = True
    """Whether the best crop of an image alone is ranked, or all of its crops are (EDC)."""
    crop_size: Literal["tile", "image"] = "tile"
    """Size that crops have when they are scored. tile: image_size / factor, in a frame of mean colour (RDED);
    image: image_size, and a mosaic shows them smaller (CIM, EDC). Evaluation squares are always of image_size."""
    resize: Literal["nearest", "antialias"] = "nearest"
    """How a crop is resized to its tile where their sizes differ: nearest pixels as published, or bilinear."""
    factor: Count = 2
    """Crops a side of a mosaic: factor^2 crops an image."""
    layout: Literal["rank-major", "contiguous"] = "rank-major"
    """Which ranks tile an image. rank-major: tile q of image j of n has rank q n + j, as published; contiguous: image j
    has the ranks j factor^2 to (j + 1) factor^2 - 1: the first images are what RDED chooses for a smaller ipc."""
    flip: Share = 0.0
    """Probability that a crop is mirrored."""
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    """Range of a crop's width / height."""


@dataclass(frozen=True, kw_only=True)
class Committee:
    """Several teachers an iteration, each weighted by what it is known to be worth (CV-DD)."""

    size: Count = 1
    """Teachers that look at an image together; 1: the teachers take turns."""
    choice: Literal["pairs", "random"] = "pairs"
    """pairs: slot k gets the k-th of all committees of that size, in the teachers' order; random: a drawn one."""
    priors: tuple[float, ...] = ()
    """Worth of each of recover.teachers, in per cent: weights are softmax(prior / 5); empty: the same."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Matching of a network's features of tiles with those of real images, its anchors (CIM)."""

    layer: str = ""
    """Module of the first teacher whose input is matched, by its name in the network, e.g. "layer3" or "fc"."""


@dataclass(frozen=True, kw_only=True)
class Recover(Views):
    """Images by gradient descent on cross-entropy plus the matching of statistics (SRe2L, CDA, G-VBSM, EDC, ...)."""

    objective: Literal["statistics", "features", "gradients", "means"] = "statistics"
    """statistics: cross-entropy and layers' statistics through the teachers; features: see recover.features (CIM);
    gradients: see recover.gradients (IDC, MDC); means: see recover.means (frozen backbones)."""
    teachers: tuple[str, ...] = ()
    """Teachers among squeeze.teachers that are matched; they take turns. Empty: all of them."""
    iterations: CountOrZero = 4000
    """0 keeps the initial images (RDED)."""
    snapshots: Annotated[CountOrZero, HOW] = 8
    """Moments, evenly spread over the iterations, at which small copies of some images are kept for the report: the
    first slot's, of up to 20 classes."""
    lr: PositiveFloat = 0.25
    """Learning rate of the pixels, in normalised units, at its highest."""
    betas: tuple[Decay, Decay] = (0.5, 0.9)
    """Adam's decays of the gradient's mean and of its square."""
    batch_size: CountOrZero = 100
    """Images optimised together, at most; 0: as many as fit in memory. What a job makes depends on the number, so it is
    chosen once, when recover begins a set, and stands in recipe.toml and in the manifest from then on."""
    slots_per_job: CountOrZero = 1
    """Images of a class that are optimised together; 0: all of them."""
    classes_per_job: CountOrZero = 0
    """Classes that are optimised together; 0: as many as batch_size holds."""
    split_classes: bool = False
    """Jobs are batch_size consecutive images, class by class, and end where a class does not (EDC, G-VBSM). Otherwise
    jobs of the same slots end together."""
    initial: Initial = field(default_factory=Initial)
    committee: Committee = field(default_factory=Committee)
    features: Features = field(default_factory=Features)
    gradients: Gradients = field(default_factory=Gradients)
    means: Means = field(default_factory=Means)
    pyramid: Pyramid = field(default_factory=Pyramid)
    match_weight: NonNegativeFloat = 0.01
    """Weight of the matching loss (r_bn), in which the first layer counts ten times."""
    statistics: tuple[Literal["bn", "conv", "patch"], ...] = ("bn",)
    """What is matched: mean and variance of the inputs of BatchNorms (with the running ones), of convolutions (with the
    data set's), and with patch the mean and variance of every patch of the convolutions' inputs too (G-VBSM)."""
    patch_size: Annotated[Count, ReadIf("statistics", ("patch",))] = 16
    """Side of a patch: 16 for 224-pixel images, 4 for 32 and 64."""
    targets: tuple[Literal["global", "category", "difficulty"], ...] = ("global",)
    """What the statistics are matched with. global: the whole data set's; category: those of the batch's classes,
    averaged over its images (EDC, LPLD); difficulty: those of real images as difficult as the job's slot: each class is
    cut into ipc groups by how far the moments of an image are from a teacher's BatchNorms' (PSM)."""
    target_weights: tuple[NonNegativeFloat, ...] = (1.0,)
    """Weight of each of the targets: 0.5 0.5 for EDC's half global, half category."""
    class_variance: Annotated[Literal["within-image", "full"], ReadIf("targets", ("category",))] = "within-image"
    """A class's variance: the mean of its images' own variances, as published, or that of all its pixels."""
    swapped_patches: Annotated[bool, ReadIf("statistics", ("patch",))] = False
    """Take a class's patch means for variances and the reverse, as EDC's published code does."""
    statistics_files: str = ""
    """Folder of the published layout (ConvFeatureHook, BNFeatureHook) whose statistics are taken, not collected."""
    gradient_share: ShareAboveZero = 1.0
    """Match only the layers that together give this share of the matching loss's image gradient for the least cost."""
    statistics_ema: Decay = 0.0
    """Decay an iteration of the running mean that is compared instead of the batch's statistics (G-VBSM's alpha)."""
    ema_start: Annotated[Literal["first", "zero"], ReadIf("statistics_ema")] = "first"
    """The running mean's first value: the first batch's, or 0 as in the published code."""
    drop_rate: Decay = 0.0
    """Probability that a convolution is not matched in an iteration (G-VBSM's beta)."""
    precision: Precision = "auto"
    """Arithmetic of the teachers; images and statistics are float32 in any case. auto: bf16 where the device multiplies
    it natively and fast, which are GPUs of compute capability 8.0 or more, CPUs with AMX (amx_bf16) and AMD's with
    avx512_bf16, else tf32 on a GPU and fp32 on a CPU; fp32 without iterations, and no gradients are matched in bf16. It
    is chosen when a run begins, and stands in its recipe.toml from then on. As published: tf32 on a GPU."""
    reproducible: Annotated[bool, HOW] = True
    """Whether images are the same from any number of workers and threads, to the bit: one thread a worker on a CPU,
    deterministic algorithms of cuDNN on a GPU. Otherwise all threads, and whatever cuDNN finds to be fastest."""
    storage: Storage = "png"
    """What is kept of the finished images. png: all, rounded to bytes; jpeg: what is left of them, truncated to bytes,
    after a JPEG of quality 75 and 4:2:0, as several methods were published. In the set they are lossless either way."""
    tv_weight: NonNegativeFloat = 0.0
    """Weight of the images' total variation."""
    l2_weight: NonNegativeFloat = 0.0
    """Weight of the images' L2 norm."""
    densification_weight: NonNegativeFloat = 0.0
    """Weight of G-VBSM's data densification: KL between a class's Gram eigenvalues as they are and flattened."""
    flatness_weight: NonNegativeFloat = 0.0
    """Weight of EDC's flatness: KL between the answers to the images and to their running mean."""
    loss: str = ""
    """Your own term beside the others, file.py:function or module:function: it is called with what a teacher sees,
    normalised float32 [N, 3, S, S], its logits [N, K] and the classes among them, int64 [N], and gives one number. On a
    GPU a CUDA graph captures it: nothing in it may be read by the host."""
    stages: tuple[Count, ...] = ()
    """Sides of the images in equal parts of the iterations (FADRM); empty: image_size throughout."""
    rounds: Count = 1
    """Equal parts of the iterations, in each of which further images of a class begin; they end together (DELT). Jobs
    need all of a class's images, slots_per_job 0. 1: all begin at once."""
    residual: Annotated[ShareAboveZero, ReadIf("stages")] = 1.0
    """Share of the optimised images that is kept between stages; the rest is their anchors' (FADRM's alpha)."""
    anchors: Annotated[Literal["initial", "retrieved"], ReadIf("stages")] = "initial"
    """The real images that are mixed in between stages. initial: those that optimisation began with (FADRM); retrieved:
    each time, of initial.candidates images of the class, the one nearest to the condensed image in the features of the
    first of initial.teachers, and not too complex (RETA)."""
    curriculum: Literal["none", "cosine"] = "none"
    """cosine: the crop's smallest area share falls from 1 to crop_scale's lower end over the iterations (CDA)."""

    def check(self, where: str, image_size: int) -> None:
        """Raises ValueError for views that make no sense, and for classes that are split where they must be whole."""
        super().check(where, image_size)
        found = self.slots_per_job, self.classes_per_job, self.objective
        if self.split_classes and found != (0, 0, "statistics"):
            wanted = "slots_per_job 0, classes_per_job 0 and objective statistics"
            raise ValueError(f"recover.split_classes needs {wanted}, got {', '.join(map(str, found))}")
        if self.rounds > 1 and (self._is_apart or self.stages or self.objective != "statistics"):
            wanted = "objective statistics, slots_per_job 0, no split_classes, no stages, no densification or flatness"
            raise ValueError(f"recover.rounds needs {wanted}")
        if "difficulty" in self.targets and (self.slots_per_job != 1 or set(self.statistics) != {"bn"}):
            raise ValueError("recover.targets difficulty needs slots_per_job 1 and statistics bn")
        if self.anchors == "retrieved" and (self.objective != "statistics" or len(self.stages) < 2):
            raise ValueError(
                "recover.anchors retrieved needs recover.objective statistics and at least two recover.stages"
            )

    @property
    def _is_apart(self) -> bool:
        """Whether images of a class are in several jobs, or a loss compares all of a job's images."""
        return bool(self.slots_per_job or self.split_classes or self.densification_weight or self.flatness_weight)
