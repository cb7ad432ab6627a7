"""Recover: images by gradient descent through frozen teachers (SRe2L, CDA, G-VBSM, EDC, CV-DD, FADRM, LPLD).

The images of a job depend on the recipe, the seed and the job alone; with recover.ema_carried, on the job before too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.real import Normalization, stored
from ..fleet.background import prepare
from ..jobs import Job
from ..kernels.crop import crop
from ..kernels.image_prior import image_prior
from ..kernels.pixel_adam import pixel_adam
from ..precision import arithmetic, network_dtype
from ..recipe import Recipe
from ..statistics.matching import Matching, layer_weights
from ..teachers.moments import Moments
from ..teachers.teacher import Teacher
from .canvas import Canvas, resized
from .graph import Graphs
from .initial import InitialImages, noise
from .nested import UnionMatching, Unions
from .recording import JobRecorder, Record
from .regularizers import densification, flatness, own_loss
from .schedule import Turn, learning_rates, live_layers, stages, turns, window_table
from .split import Part
from .unfinished import State, Unfinished, remaining


@dataclass(frozen=True)
class Sources:
    """What a job begins with: its initial images, the real images behind "local" targets, and other images."""

    initial: InitialImages
    local: Callable[[Job], Tensor] | None = None
    unions: Unions | None = None
    """What the images of nested recover are matched together with."""


class Recovered(NamedTuple):
    """What a job makes, on the host: images uint8 [N, 3, S, S]; losses float32 [T, 3], in columns total, cross-entropy
    and weighted matching; where they are carried on, the running means of its statistics; and how the images formed."""

    images: Tensor
    losses: Tensor
    running_means: dict[str, Tensor]
    record: Record


class RecoverStep:
    """One iteration on static buffers, so that it can be captured; nothing in it is read by the host."""

    def __init__(
        self,
        recipe: Recipe,
        job: Job,
        teachers: Sequence[Teacher],
        device: torch.device,
        sources: Sources | None = None,
    ):
        recover = recipe.recover
        self.recipe, self.recover, self.teachers, self.num_slots = recipe, recover, teachers, job.num_slots
        self.device = device
        self.sources = sources or Sources(noise(recipe, device))
        self.stages = stages(recipe)
        self.part = Part.of(job, recover.split)
        num_images = self.part.end - self.part.begin
        self.canvases = {side: Canvas(num_images, side, device) for side, _ in self.stages}
        self.canvas = self.canvases[self.stages[0][0]]
        self.initial = torch.empty(num_images, 3, *2 * (recipe.dataset.image_size,), device=device)
        self.wanted = [teacher.outputs[self._classes(job).to(device)] for teacher in teachers]
        targets = [list(zip(recover.target_weights, self._targets(teacher, job), strict=True)) for teacher in teachers]
        self.matching = [self._matching(teacher, sets) for teacher, sets in zip(teachers, targets, strict=True)]
        self.unions: list[UnionMatching] = []
        if self.sources.unions is not None:
            self.unions = [
                UnionMatching([self._matching(teacher, [one]) for one in sets], recover.targets, sets[0][1], device)
                for teacher, sets in zip(teachers, targets, strict=True)
            ]
        self.own_weights, self.union_weights = (torch.zeros(recover.iterations, device=device) for _ in range(2))
        self.own_loss = own_loss(recover.loss) if recover.loss else None
        self.live = [live.to(device) for live in self._live(job)]
        self.low, self.high = Normalization.of(recipe.dataset, device).range()
        self.windows = torch.empty_like(self._windows(job), device=device)
        self.rates = learning_rates(recover).to(device)
        self.losses = torch.zeros(recover.iterations, 3, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.updates = torch.zeros(1, device=device)
        """Of the optimiser since the stage began."""
        self.load(job)

    def plain_matching(self, which: int, job: Job) -> Matching:
        """Of a teacher's moments with the targets of a job, without a running mean."""
        teacher = self.teachers[which]
        return self._matching(
            teacher, list(zip(self.recover.target_weights, self._targets(teacher, job), strict=True)), 0.0
        )

    def layout(self, which: int, job: Job) -> Moments:
        """Moments of a teacher's layers, of which the lengths count alone."""
        return self._targets(self.teachers[which], job)[0]

    def _matching(
        self, teacher: Teacher, target_sets: Sequence[tuple[float, Moments]], ema: float | None = None
    ) -> Matching:
        recover = self.recover
        return Matching(
            target_sets,
            layer_weights(len(teacher.layers), recover.first_layer_weight, self.device),
            ema=recover.statistics_ema if ema is None else ema,
            ema_start=recover.ema_start,
            distance=recover.distance,
            layer_scale=recover.layer_scale,
        )

    @property
    def images(self) -> Tensor:
        """The current images, normalised [N, 3, S, S]; of a split job, this worker's."""
        return self.canvas.images

    def _classes(self, job: Job) -> Tensor:
        return job.classes()[self.part.rows]

    def _windows(self, job: Job) -> Tensor:
        table = window_table(self.recipe, job)
        return table[:, self.part.rows] if self.recover.per_image_windows else table

    def load(self, job: Job, running_means: Mapping[str, Tensor] | None = None) -> None:
        """Resets all buffers, in place, to the beginning of a job of the same shape.

        running_means: what `running_means` gave after another job, to go on with; otherwise they begin anew.
        """
        classes = self._classes(job)
        self.initial.copy_(self.sources.initial(job)[self.part.rows])
        self.canvas = self.canvases[self.stages[0][0]]
        self.canvas.fill(self.initial)
        for zeroed in (self.losses, self.step, self.updates):
            zeroed.zero_()
        for number, teacher in enumerate(self.teachers):
            self.wanted[number].copy_(teacher.outputs[classes.to(teacher.outputs.device)])
            for which, moments in enumerate(self._targets(teacher, job)):
                self.matching[number].set_targets(which, moments)
            self.matching[number].reset()
            if self.sources.unions is not None:
                self.unions[number].load(number, job, self._targets(teacher, job), self.sources.unions)
            if running_means is not None:
                mine = {key.partition("/")[2]: v for key, v in running_means.items() if key.startswith(f"{number}/")}
                self.matching[number].load_state(mine)
        for live, now in zip(self.live, self._live(job), strict=True):
            live.copy_(now)
        self.windows.copy_(self._windows(job))
        if self.sources.unions is not None:
            own, union = self.sources.unions.weights(job)
            self.own_weights.copy_(own)
            self.union_weights.copy_(union)

    def all_losses(self) -> Tensor:
        """The log of losses, a copy; of a split job, those of all images: matching is the same on all workers."""
        if self.part.is_whole:
            return self.losses.clone()
        total, entropy, matching = self.losses.unbind(1)
        others = self.part.summed(total - matching)
        return torch.stack((others + matching, self.part.summed(entropy.clone()), matching), 1)

    def running_means(self) -> dict[str, Tensor]:
        """The running means of all teachers' statistics as they are now, on the host."""
        states = (matching.state() for matching in self.matching)
        return {f"{number}/{key}": v.cpu() for number, state in enumerate(states) for key, v in state.items()}

    def state(self) -> State:
        """All that the iterations have changed, for `restore`; not copied."""
        tensors = {name: value for name, value in vars(self.canvas).items() if isinstance(value, Tensor)}
        tensors |= {"losses": self.losses, "step": self.step, "updates": self.updates}
        for name, matching in self._matchings():
            tensors |= {f"{name}/{key}": value for key, value in matching.state().items()}
        return tensors

    def restore(self, stage: int, tensors: State) -> None:
        """Goes on, in place, from the state of a job that is loaded; `stage`: in which it was."""
        self.canvas = self.canvases[self.stages[stage][0]]
        mine = {name: value for name, value in self.state().items() if "/" not in name}
        for name, buffer in mine.items():
            buffer.copy_(tensors[name])
        for name, matching in self._matchings():
            matching.load_state({key: tensors[f"{name}/{key}"] for key in ("average", "rate")})

    def _matchings(self) -> Iterator[tuple[str, Matching]]:
        for number, matching in enumerate(self.matching):
            yield f"matching/{number}", matching
        for number, union in enumerate(self.unions):
            yield from ((f"union/{number}/{kind}", one) for kind, one in enumerate(union.matchings))

    def layer_losses(self, which: int, iteration: int) -> Tensor:
        """What each of a teacher's layers added to its matching loss in `iteration`, the last one: float64 [L]."""
        losses = self.matching[which].layer_losses()
        if self.unions:
            own, union = self.own_weights[iteration], self.union_weights[iteration]
            losses = own * losses + union * self.unions[which].layer_losses()
        return losses

    def enter_stage(self, stage: int) -> None:
        """Goes on at the stage's size, with a share of the initial images and a new optimiser (spec 3.2)."""
        side, share = self.stages[stage][0], self.recover.residual
        images = torch.lerp(resized(self.initial, side), resized(self.images, side), share)
        self.canvas = self.canvases[side]
        self.canvas.fill(images)
        self.updates.zero_()

    def loss(self, canvas: Canvas, images: Tensor, turn: Turn, windows_now: Tensor) -> Tensor:
        """images: those of the canvas, normalised [N, 3, S, S]. Total, cross-entropy, weighted matching loss: [3]."""
        recover = self.recover
        views = crop(images, windows_now, canvas.side, dtype=self.teachers[0].dtype)
        answers, entropies, distances, own_terms = [], [], [], []
        for which, weight in turn:
            logits, moments = self.teachers[which](views)
            moments = self.part.pooled(moments)
            live = self.live[which].index_select(0, self.step)[0] if recover.drop_rate else None
            answers.append(logits)
            entropies.append(weight * self.part.share * F.cross_entropy(logits, self.wanted[which]))
            if self.own_loss is not None:
                own_terms.append(weight * self.own_loss(views, logits, self.wanted[which]))
            distance = self.matching[which](moments, live)
            if self.unions:
                own, union = (w.index_select(0, self.step)[0] for w in (self.own_weights, self.union_weights))
                distance = own * distance + union * self.unions[which](moments, live)
            distances.append(weight * recover.match_weight * distance)
        entropy, matching = sum(entropies[1:], entropies[0]), sum(distances[1:], distances[0])
        total = sum(own_terms, entropy + matching)
        if recover.tv_weight or recover.l2_weight:
            variation, norm = image_prior(views)
            total = total + recover.tv_weight * variation + recover.l2_weight * norm
        if recover.densification_weight:
            num_classes = len(images) // self.num_slots
            dense = densification(views.float(), num_classes, recover.densification_temperature)
            total = total + recover.densification_weight * dense
        if recover.flatness_weight:
            with torch.no_grad():
                mean_views = crop(canvas.average, windows_now, canvas.side, dtype=self.teachers[0].dtype)
                before = [self.teachers[which](mean_views)[0] for which, _ in turn]
            for (_, weight), logits, old in zip(turn, answers, before, strict=True):
                flat = flatness(logits, old, recover.flatness_temperature)
                total = total + weight * self.part.share * recover.flatness_weight * flat
        return torch.stack((total, entropy, matching))

    def __call__(self, turn: Turn, canvas: Canvas | None = None) -> None:
        """Advances images, optimiser state, loss log and step counter by one iteration."""
        canvas = canvas or self.canvas
        images = canvas.images.detach().requires_grad_()
        losses = self.loss(canvas, images, turn, self.windows.index_select(0, self.step)[0])
        (gradient,) = torch.autograd.grad(losses[0], images)
        if self.recover.flatness_weight:
            canvas.average.lerp_(canvas.images, 1 - self.recover.flatness_decay)
        self.updates += 1
        pixel_adam(
            canvas.images,
            gradient,
            canvas.first,
            canvas.second,
            self.rates.index_select(0, self.step)[0],
            self.updates[0],
            betas=self.recover.betas,
            low=self.low,
            high=self.high,
        )
        self.losses.index_copy_(0, self.step, losses.detach()[None])
        self.step += 1

    def _targets(self, teacher: Teacher, job: Job) -> list[Moments]:
        """What the teacher's moments are compared with, for each of recover.targets."""
        made: list[Moments] = []
        for kind in self.recover.targets:
            if kind == "local":
                if self.sources.local is None:
                    raise ValueError("recover.targets local needs real images")
                made.append(teacher.batch_targets(self.sources.local(job)))
            else:
                made.append(teacher.matched_targets() if kind == "global" else teacher.category_targets(job.classes()))
        return made

    def _live(self, job: Job) -> list[Tensor]:
        return [
            live_layers(self.recipe, job, teacher.name, [not layer.is_batch_norm for layer in teacher.layers])
            for teacher in self.teachers
        ]


class Recoverer:
    """Recovers jobs one after another. Buffers and CUDA graphs are made once for each shape of a job."""

    def __init__(
        self, recipe: Recipe, teachers: Sequence[Teacher], device: torch.device, sources: Sources | None = None
    ):
        self.recipe, self.device, self.sources = recipe, device, sources
        self.teachers = [teacher.cast(network_dtype(recipe.recover.precision)) for teacher in teachers]
        check_layers(recipe, self.teachers)
        self.graphs = Graphs(device)
        self.steps: dict[tuple[int, int], RecoverStep] = {}
        self.advances: dict[tuple[tuple[int, int], Turn, int], Callable[[], None]] = {}

    def __call__(
        self,
        job: Job,
        running_means: Mapping[str, Tensor] | None = None,
        unfinished: Unfinished | None = None,
        ahead: Job | None = None,
    ) -> Recovered:
        """Recovers a job; `running_means` are those that the job before ended with, where they are carried on.

        The last iterate is kept, as in the published codes. With `unfinished` the state is saved there now and then,
        and gone on from, to the same bits. `ahead`: the job after this one, whose initial images can be made meanwhile.
        Raises ValueError if images are not finite.
        """
        recipe = self.recipe
        if recipe.recover.iterations == 0:
            images = (self.sources or Sources(noise(recipe, self.device))).initial(job)
            return Recovered(self._pixels(images), torch.zeros(0, 3), {}, Record())
        with arithmetic(recipe.recover.precision, recipe.recover.reproducible):
            if job.shape not in self.steps:
                self.steps[job.shape] = RecoverStep(recipe, job, self.teachers, self.device, self.sources)
            step, order = self.steps[job.shape], turns(recipe, len(self.teachers), job)
            advances = [[self._advance(job.shape, turn, side) for turn in order] for side, _ in step.stages]
            step.load(job, running_means)
            if ahead is not None and self.sources is not None:
                prepare(ahead, self.sources.initial, self.sources.local)
            recorded = recipe if step.part.is_whole else replace(recipe, recover=replace(recipe.recover, snapshots=0))
            recorder = JobRecorder(recorded, job, self.teachers, order, self.device)
            stage_of = [stage for stage, (_, count) in enumerate(step.stages) for _ in range(count)]

            def restore(iteration: int, tensors: State) -> None:
                step.restore(stage_of[iteration - 1], tensors)
                recorder.restore(tensors)

            left = remaining(len(stage_of), unfinished, self.device, lambda: step.state() | recorder.state(), restore)
            for iteration in left:
                stage = stage_of[iteration]
                if iteration and stage != stage_of[iteration - 1]:
                    step.enter_stage(stage)
                recorder.before(iteration, step.images)
                advances[stage][iteration % len(order)]()
                recorder.after(iteration, step.layer_losses)
        losses, images = step.all_losses().cpu(), step.part.gathered(step.images)
        if not bool(torch.isfinite(images).all()):
            raise ValueError(f"recover diverged in job {job.index}: images are not finite; try a smaller recover.lr")
        carried = step.running_means() if recipe.recover.ema_carried else {}
        return Recovered(self._pixels(images), losses, carried, recorder.record())

    def _advance(self, shape: tuple[int, int], turn: Turn, side: int) -> Callable[[], None]:
        """One iteration of a turn on the canvas of that size: on a GPU a graph, captured once."""
        key = shape, turn, side
        if key not in self.advances:
            step, canvas = self.steps[shape], self.steps[shape].canvases[side]

            def advance() -> None:
                step(turn, canvas)

            self.advances[key] = self.graphs.capture(advance, step.step.zero_)
        return self.advances[key]

    def _pixels(self, images: Tensor) -> Tensor:
        return stored(Normalization.of(self.recipe.dataset, self.device).levels(images), self.recipe.recover.storage)


def check_layers(recipe: Recipe, teachers: Sequence[Teacher]) -> None:
    """Raises ValueError if statistics are to be matched, and no teacher has a layer that keeps them.

    Some teachers may have none, as AlexNet among networks with BatchNorm (FADRM+, spec 3.3): theirs is cross-entropy.
    """
    recover = recipe.recover
    if recover.iterations and recover.match_weight and not any(teacher.layers for teacher in teachers):
        names = ", ".join(teacher.name for teacher in teachers)
        raise ValueError(f"no layer to match in {names} (recover.statistics {' '.join(recover.statistics)})")
