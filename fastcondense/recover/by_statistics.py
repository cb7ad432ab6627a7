"""Recover by statistics: cross-entropy and moments matched through frozen teachers (SRe2L, CDA, G-VBSM, EDC, ...)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.jobs import Job
from ..data.noise import InitialImages, noise
from ..data.real import Normalization
from ..kernels.crop import crop
from ..kernels.pixel_adam import pixel_adam
from ..networks.graph import Graphs
from ..networks.precision import network_dtype
from ..recipe.recipe import Recipe
from ..sets.record import Record
from ..statistics.matching import Matching, layer_weights
from ..statistics.targets import wanted_moments
from ..teachers.moments import Moments
from ..teachers.teacher import Teacher
from .anchors import AnchorsOf
from .background import prepare
from .canvas import Canvas, resized
from .early_late import begun
from .engine import Recoverer
from .pyramid import LevelPyramid
from .recording import JobRecorder
from .regularizers import densification, flatness, image_priors, own_loss
from .schedule import Turn, learning_rates, live_layers, stages, turns, window_table
from .unfinished import State

_TEMPERATURE = 4.0  # of G-VBSM's densification and of EDC's flatness
_FLATNESS_DECAY = 0.99  # an iteration, of the running mean of the images that flatness compares with


class RecoverStep:
    """One iteration on static buffers, so that it can be captured; nothing in it is read by the host."""

    def __init__(
        self,
        recipe: Recipe,
        job: Job,
        teachers: Sequence[Teacher],
        device: torch.device,
        initial_of: InitialImages | None = None,
        anchors_of: AnchorsOf | None = None,
    ):
        recover = recipe.recover
        self.recipe, self.recover, self.teachers, self.counts = recipe, recover, teachers, job.counts
        self.device = device
        self.initial_of, self.anchors_of = initial_of or noise(recipe, device), anchors_of
        self.stages, self.begun = stages(recipe), begun(recipe, job, device)
        self.canvases = {side: Canvas(job.num_images, side, device) for side, _ in self.stages}
        self.canvas = self.canvases[self.stages[0][0]]
        self.pyramid = LevelPyramid(recipe, job.num_images, device) if recover.pyramid.every else None
        self.normalize, self.job = Normalization.of(recipe.dataset, device), job
        self.initial = torch.empty(job.num_images, 3, *2 * (recipe.dataset.image_size,), device=device)
        self.wanted = [teacher.outputs[job.classes().to(device)] for teacher in teachers]
        targets = [list(zip(recover.target_weights, self._targets(teacher, job), strict=True)) for teacher in teachers]
        self.matching = [
            Matching(sets, layer_weights(len(one.layers), device), recover.statistics_ema, recover.ema_start)
            for one, sets in zip(teachers, targets, strict=True)
        ]
        self.own_loss = own_loss(recover.loss) if recover.loss else None
        self.live = [live.to(device) for live in self._live(job)]
        self.low, self.high = self.normalize.range()
        self.windows = window_table(recipe, job).to(device, copy=True)
        self.rates = learning_rates(recover).to(device)
        self.losses = torch.zeros(recover.iterations, 3, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.updates = torch.zeros(1, device=device)
        """Number of the optimiser's updates since the stage began."""
        self.initial.copy_(self.initial_of(job))
        self.reset()

    @property
    def images(self) -> Tensor:
        """The current images, normalised [N, 3, S, S]."""
        return self.canvas.images

    def load(self, job: Job) -> None:
        """Fills all buffers, in place, with the beginning of a job of the same shape."""
        classes, self.job = job.classes(), job
        self.initial.copy_(self.initial_of(job))
        for number, teacher in enumerate(self.teachers):
            self.wanted[number].copy_(teacher.outputs[classes.to(teacher.outputs.device)])
            for which, moments in enumerate(self._targets(teacher, job)):
                self.matching[number].set_targets(which, moments)
        for live, now in zip(self.live, self._live(job), strict=True):
            live.copy_(now)
        self.windows.copy_(window_table(self.recipe, job))
        self.reset()

    def reset(self) -> None:
        """Resets, in place, what iterations change to the beginning of the job that is loaded."""
        self.canvas = self.canvases[self.stages[0][0]]
        self.canvas.fill(self.initial)
        if self.pyramid is not None:
            self.pyramid.load(self.job)
            self.canvas.fill(self.normalize(255 * self.pyramid.pixels()))
        for zeroed in (self.losses, self.step, self.updates):
            zeroed.zero_()
        for matching in self.matching:
            matching.reset()

    def state(self) -> State:
        """All that the iterations have changed, for `restore`; not copied."""
        tensors = {name: value for name, value in vars(self.canvas).items() if isinstance(value, Tensor)}
        tensors |= {"losses": self.losses, "step": self.step, "updates": self.updates}
        tensors |= self.pyramid.state() if self.pyramid is not None else {}
        for number, matching in enumerate(self.matching):
            tensors |= {f"matching/{number}/{key}": value for key, value in matching.state().items()}
        return tensors

    def restore(self, stage: int, tensors: State) -> None:
        """Goes on, in place, from the state of a job that is loaded; `stage`: in which it was."""
        self.canvas = self.canvases[self.stages[stage][0]]
        mine = {name: value for name, value in self.state().items() if "/" not in name}
        for name, buffer in mine.items():
            buffer.copy_(tensors[name])
        for number, matching in enumerate(self.matching):
            matching.load_state({key: tensors[f"matching/{number}/{key}"] for key in ("average", "rate")})

    def layer_losses(self, which: int) -> Tensor:
        """What each of a teacher's layers added to its matching loss in the last iteration: float64 [L]."""
        return self.matching[which].layer_losses()

    def enter_stage(self, stage: int) -> None:
        """Goes on at the stage's size, with a share of real images, the initial or retrieved ones, and a new
        optimiser. Between rounds nothing changes but which images have begun.
        """
        if self.recover.rounds > 1:
            return
        side, share = self.stages[stage][0], self.recover.residual
        real = self.initial if self.anchors_of is None else self.anchors_of(self.job, self.images, side)
        images = torch.lerp(resized(real, side), resized(self.images, side), share)
        self.canvas = self.canvases[side]
        self.canvas.fill(images)
        self.updates.zero_()

    def grow(self, iteration: int) -> None:
        """Lets the pyramid's next level in, if there is one and that is due before the iteration."""
        if self.pyramid is not None and self.pyramid.grow(iteration):
            self.canvas.images.copy_(self.normalize(255 * self.pyramid.pixels()))

    def loss(
        self, canvas: Canvas, images: Tensor, turn: Turn, windows_now: Tensor, begun_now: Tensor | None = None
    ) -> Tensor:
        """images: those of the canvas, normalised [N, 3, S, S]. Total, cross-entropy, weighted matching loss: [3]."""
        recover, wanted = self.recover, self.wanted
        if begun_now is not None:
            images, wanted = images[begun_now], [one[begun_now] for one in wanted]
        views = crop(images, windows_now, canvas.side, dtype=self.teachers[0].dtype)
        answers, entropies, distances, own_terms = [], [], [], []
        for which, weight in turn:
            logits, moments = self.teachers[which](views)
            live = self.live[which].index_select(0, self.step)[0] if recover.drop_rate else None
            answers.append(logits)
            entropies.append(weight * F.cross_entropy(logits, wanted[which]))
            if self.own_loss is not None:
                own_terms.append(weight * self.own_loss(views.float(), logits, wanted[which]))
            distances.append(weight * recover.match_weight * self.matching[which](moments, live))
        entropy, matching = sum(entropies[1:], entropies[0]), sum(distances[1:], distances[0])
        total = sum(own_terms, entropy + matching)
        if recover.tv_weight or recover.l2_weight:
            variation, norm = image_priors(views)
            total = total + recover.tv_weight * variation + recover.l2_weight * norm
        if recover.densification_weight:
            dense = densification(views.float(), self.counts, _TEMPERATURE)
            total = total + recover.densification_weight * dense
        if recover.flatness_weight:
            with torch.no_grad():
                mean_views = crop(canvas.average, windows_now, canvas.side, dtype=self.teachers[0].dtype)
                before = [self.teachers[which](mean_views)[0] for which, _ in turn]
            for (_, weight), logits, old in zip(turn, answers, before, strict=True):
                flat = flatness(logits, old, _TEMPERATURE)
                total = total + weight * recover.flatness_weight * flat
        return torch.stack((total, entropy, matching))

    def __call__(self, turn: Turn, canvas: Canvas | None = None, begun_now: Tensor | None = None) -> None:
        """Advances images, optimiser state, loss log and step counter by one iteration. begun_now: the numbers of the
        images that are seen, int64; all of them by default.
        """
        canvas = canvas or self.canvas
        leaves = self.pyramid.leaves() if self.pyramid else [canvas.images.detach().requires_grad_()]
        images = self.normalize(255 * self.pyramid.pixels(leaves)) if self.pyramid else leaves[0]
        losses = self.loss(canvas, images, turn, self.windows.index_select(0, self.step)[0], begun_now)
        gradients, rate = torch.autograd.grad(losses[0], leaves), self.rates.index_select(0, self.step)[0]
        if self.recover.flatness_weight:
            canvas.average.lerp_(canvas.images, 1 - _FLATNESS_DECAY)
        self.updates += 1
        if self.pyramid is not None:
            self.pyramid.descend(gradients, rate)
            canvas.images.copy_(self.normalize(255 * self.pyramid.pixels()))
        else:
            pixel_adam(
                canvas.images,
                gradients[0],
                canvas.first,
                canvas.second,
                rate,
                self.updates[0],
                betas=self.recover.betas,
                low=self.low,
                high=self.high,
            )
        self.losses.index_copy_(0, self.step, losses.detach()[None])
        self.step += 1

    def _targets(self, teacher: Teacher, job: Job) -> list[Moments]:
        """Moments that the teacher's are compared with, for each of recover.targets."""
        return [wanted_moments(teacher, kind, job) for kind in self.recover.targets]

    def _live(self, job: Job) -> list[Tensor]:
        return [
            live_layers(self.recipe, job, teacher.name, [not layer.is_batch_norm for layer in teacher.layers])
            for teacher in self.teachers
        ]


class ByStatistics(Recoverer):
    """Cross-entropy and the matching of statistics. Buffers and CUDA graphs are made once for each shape of a job.

    initial_of: the images that a job begins with; noise by default. anchors_of: real images that are mixed in between
    stages; by default those that the job began with. Raises ValueError as `check_layers` does.
    """

    def __init__(
        self,
        recipe: Recipe,
        teachers: Sequence[Teacher],
        device: torch.device,
        initial_of: InitialImages | None = None,
        anchors_of: AnchorsOf | None = None,
    ):
        super().__init__(recipe, device)
        self.initial_of, self.anchors_of = initial_of or noise(recipe, device), anchors_of
        self.teachers = [teacher.cast(network_dtype(recipe.recover.precision)) for teacher in teachers]
        check_layers(recipe, self.teachers)
        self.graphs = Graphs(device)
        self.steps: dict[tuple[int, ...], RecoverStep] = {}
        self.advances: dict[tuple[tuple[int, ...], Turn, int, int], Callable[[], None]] = {}
        self.stage_of = [stage for stage, (_, count) in enumerate(stages(recipe)) for _ in range(count)]

    def begin(self, job: Job) -> None:
        recover = self.recipe.recover
        is_alike = recover.split_classes and not recover.densification_weight
        shape = (job.num_images,) if is_alike else job.shape
        is_new = shape not in self.steps
        if is_new:
            self.steps[shape] = RecoverStep(
                self.recipe, job, self.teachers, self.device, self.initial_of, self.anchors_of
            )
        self.step, order = self.steps[shape], turns(self.recipe, len(self.teachers), job)
        self.turn_advances = [
            [self._advance(shape, turn, stage) for turn in order] for stage in range(len(self.step.stages))
        ]
        if is_new:
            self.step.reset()  # from what captures have left behind
        else:
            self.step.load(job)
        self.recorder = JobRecorder(self.recipe, job, self.teachers, order, self.device)

    def prepare(self, ahead: Job) -> None:
        prepare(ahead, self.initial_of)

    def advance(self, iteration: int) -> None:
        stage = self.stage_of[iteration]
        if iteration and stage != self.stage_of[iteration - 1]:
            self.step.enter_stage(stage)
        self.step.grow(iteration)
        self.recorder.before(iteration, self.step.images)
        in_turn = self.turn_advances[stage]
        in_turn[iteration % len(in_turn)]()
        self.recorder.after(iteration, self.step.layer_losses)

    def state(self) -> State:
        return self.step.state() | self.recorder.state()

    def restore(self, tensors: State) -> None:
        self.step.restore(self.stage_of[int(tensors["step"]) - 1], tensors)
        self.recorder.restore(tensors)

    def made(self) -> tuple[Tensor, Tensor, Record]:
        return self.step.images, self.step.losses, self.recorder.record()

    def _advance(self, shape: tuple[int, ...], turn: Turn, stage: int) -> Callable[[], None]:
        """One iteration of a turn on the canvas of the stage: on a GPU a graph, captured once for all stages alike."""
        step = self.steps[shape]
        key = shape, turn, step.stages[stage][0], stage if self.recipe.recover.rounds > 1 else 0
        if key not in self.advances:

            def advance() -> None:
                step(turn, step.canvases[step.stages[stage][0]], step.begun[stage])

            self.advances[key] = self.graphs.capture(advance, step.step.zero_)
        return self.advances[key]


def check_layers(recipe: Recipe, teachers: Sequence[Teacher]) -> None:
    """Raises ValueError if statistics are to be matched, and no teacher has a layer that keeps them.

    Some teachers may have none, as AlexNet among networks with BatchNorm (FADRM+): theirs is cross-entropy.
    """
    recover = recipe.recover
    if recover.iterations and recover.match_weight and not any(teacher.layers for teacher in teachers):
        names = ", ".join(teacher.name for teacher in teachers)
        raise ValueError(f"no layer to match in {names} (recover.statistics {' '.join(recover.statistics)})")
