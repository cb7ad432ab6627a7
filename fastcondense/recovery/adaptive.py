"""Adaptive nested recover: all slots of a job grow together, and the prefix that learns most is matched too.

Cells are the slots of a job: one image of each of its classes, optimised as an independent job of one slot would be. In
rounds each is visited once. Between rounds one prefix is chosen, that whose distance to the targets has changed most;
its cells are pulled towards the statistics that it should have, and those of a smaller prefix that was chosen before
rest (spec sre2l_cda_scdd_rded_mdc 5.6, mode A; MDC's selection and freezing, 5.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..data.real import Normalization, stored
from ..jobs import Job
from ..precision import arithmetic, network_dtype
from ..recipe import Recipe
from ..teachers.teacher import Teacher
from .graph import Graphs
from .nested import Pool, merge
from .recording import Record
from .recover import Recovered, RecoverStep, Sources, check_layers
from .schedule import Turn, turns
from .unfinished import State, Unfinished, remaining


@dataclass
class PrefixChoice:
    """Which prefix is matched beside the cells, and what rests meanwhile."""

    sizes: tuple[int, ...]
    """Slots of the prefixes that can be chosen, growing, all below that of the whole job."""
    size: int = 0
    """Of the one that is matched now; 0: none."""
    past: list[int] = field(default_factory=list)
    """Sizes that were chosen in earlier rounds."""
    distances: list[float] = field(default_factory=list)
    """Of the prefixes, after the last round."""

    @property
    def frozen(self) -> int:
        """Slots that rest: the largest size chosen before that is below the one chosen now."""
        return max((size for size in self.past if size < self.size), default=0)

    def choose(self, distances: Sequence[float]) -> None:
        """Chooses for the next round, by the distances after this one: the smallest size before the first round, then
        that whose distance has changed most, the smaller one of equals."""
        if not self.sizes:
            return
        if self.size and self.size not in self.past:
            self.past.append(self.size)
        changes = [abs(new - old) for new, old in zip(distances, self.distances, strict=True)] if self.size else [0.0]
        self.size = self.sizes[changes.index(max(changes))]
        self.distances = list(distances)


class Prefixes:
    """Unions of a cell with the other cells of the chosen prefix, whose statistics are those of their last visit."""

    def __init__(self, recipe: Recipe, choice: PrefixChoice):
        self.recover, self.choice = recipe.recover, choice
        self.pools: dict[tuple[int, int], Pool] = {}
        """Of a teacher and a slot: what the slot's images have together, as they are, without augmentation."""

    def measure(self, slot: int, images: Tensor, teachers: Sequence[Teacher]) -> None:
        """Takes the statistics of a slot's images, normalised [classes, 3, S, S]."""
        for which, teacher in enumerate(teachers):
            self.pools[which, slot] = Pool.of(len(images), teacher.batch_targets(images))

    def prefix(self, which: int, size: int) -> Pool:
        """What the first `size` slots have together."""
        return merge([self.pools[which, slot] for slot in range(size)])

    def union(self, which: int, job: Job, kind: str) -> tuple[float, Pool | None]:  # noqa: ARG002
        """See `Unions`. The kind does not matter: all cells have the same classes."""
        size, slot = self.choice.size, job.first_slot
        if slot >= size or size == 1:
            return 0.0, None
        return (size - 1) / size, merge([self.pools[which, other] for other in range(size) if other != slot])

    def weights(self, job: Job) -> tuple[Tensor, Tensor]:
        """1 for the cell's own matching, and `nested.weight` for that of a prefix that it is in."""
        ones = torch.ones(self.recover.iterations)
        return ones, ones * (self.recover.nested.weight if job.first_slot < self.choice.size else 0.0)


class AdaptiveRecoverer:
    """Recovers jobs of all slots, one after another. num_classes: of the data set."""

    def __init__(
        self, recipe: Recipe, teachers: Sequence[Teacher], device: torch.device, sources: Sources, num_classes: int
    ):
        self.recipe, self.device, self.sources, self.num_classes = recipe, device, sources, num_classes
        self.teachers = [teacher.cast(network_dtype(recipe.recover.precision)) for teacher in teachers]
        check_layers(recipe, self.teachers)

    def __call__(
        self,
        job: Job,
        _running_means: Mapping[str, Tensor] | None = None,
        unfinished: Unfinished | None = None,
        _ahead: Job | None = None,
    ) -> Recovered:
        """Recovers a job; losses are those of an iteration, averaged over the cells that came as far.

        With `unfinished` the state is saved there now and then, between two visits, and gone on from, to the same bits.
        Raises ValueError if images are not finite.
        """
        with arithmetic(self.recipe.recover.precision, self.recipe.recover.reproducible):
            growing = AdaptiveJob(self, job)
            count = self.recipe.recover.nested.rounds * job.num_slots
            for number in remaining(count, unfinished, self.device, growing.state, growing.restore):
                growing.advance(number)
        images = growing.images()
        if not bool(torch.isfinite(images).all()):
            raise ValueError(f"recover diverged in job {job.index}: images are not finite; try a smaller recover.lr")
        levels = Normalization.of(self.recipe.dataset, torch.device("cpu")).levels(images)
        return Recovered(stored(levels, self.recipe.recover.storage), growing.losses(), {}, Record())


class AdaptiveJob:
    """The cells of a job, each a state on the host that the one step on the device takes up and leaves."""

    def __init__(self, recoverer: AdaptiveRecoverer, job: Job):
        self.recipe, self.teachers, self.device = recoverer.recipe, recoverer.teachers, recoverer.device
        nested, blocks = self.recipe.recover.nested, -(-recoverer.num_classes // job.num_classes)
        # numbered as jobs of one slot are: windows depend on the number
        self.cells = [
            Job(slot * blocks + job.first_class // job.num_classes, slot, 1, job.first_class, job.num_classes)
            for slot in range(job.num_slots)
        ]
        sizes = nested.sizes or range(1, job.num_slots)
        self.choice = PrefixChoice(tuple(sorted({size for size in sizes if size < job.num_slots})))
        self.prefixes = Prefixes(self.recipe, self.choice)
        sources = Sources(recoverer.sources.initial, recoverer.sources.local, self.prefixes)
        self.step = RecoverStep(self.recipe, self.cells[0], self.teachers, self.device, sources)
        numbers = range(len(self.teachers))
        self.plain = [self.step.plain_matching(which, self.cells[0]) for which in numbers]
        self.layouts = [self.step.layout(which, self.cells[0]) for which in numbers]
        self.graphs, self.advances = Graphs(self.device), dict[Turn, Callable[[], None]]()
        self.lengths = [len(part) for part in np.array_split(range(self.recipe.recover.iterations), nested.rounds)]
        self.states: list[State] = []
        for cell in self.cells:
            self.step.load(cell)
            self.states.append(self._left())
            self.prefixes.measure(cell.first_slot, self.step.images, self.teachers)
        self.choice.choose(self.distances())

    def advance(self, number: int) -> None:
        """Visit `number`, of a cell that may rest; at the end of a round a prefix is chosen."""
        which, slot = divmod(number, len(self.cells))
        if slot >= self.choice.frozen:
            self._visit(self.cells[slot], self.lengths[which])
        if slot == len(self.cells) - 1:
            self.choice.choose(self.distances())

    def distances(self) -> list[float]:
        """Of each prefix that can be chosen, to the targets: matching without running means, summed over teachers."""
        found = []
        for size in self.choice.sizes:
            pools = [self.prefixes.prefix(which, size) for which in range(len(self.teachers))]
            moments = [pool.moments(of, self.device) for of, pool in zip(self.layouts, pools, strict=True)]
            found.append(sum(float(of(seen)) for of, seen in zip(self.plain, moments, strict=True)))
        return found

    def images(self) -> Tensor:
        """Of all cells, class by class, normalised [N, 3, S, S] on the host."""
        return torch.stack([state["images"] for state in self.states], 1).flatten(0, 1)

    def losses(self) -> Tensor:
        """As a shard holds them, float32 [T, 3]: the mean over the cells that did the iteration."""
        tables = torch.stack([state["losses"] for state in self.states])
        done = torch.tensor([int(state["step"]) for state in self.states])
        is_done = torch.arange(tables.shape[1]) < done[:, None]
        return (tables * is_done[..., None]).sum(0) / is_done.sum(0)[:, None]

    def state(self) -> State:
        """All that visits have changed, for `restore`; statistics are measured again."""
        tensors = {f"{slot}/{name}": kept for slot, state in enumerate(self.states) for name, kept in state.items()}
        chosen = {"size": [self.choice.size], "past": self.choice.past}
        tensors |= {f"choice/{name}": torch.tensor(numbers, dtype=torch.int64) for name, numbers in chosen.items()}
        return tensors | {"choice/distances": torch.tensor(self.choice.distances, dtype=torch.float64)}

    def restore(self, _number: int, tensors: State) -> None:
        """Goes on from the state of this job that was saved."""
        for slot, state in enumerate(self.states):
            state.update({name: tensors[f"{slot}/{name}"] for name in state})
            self.prefixes.measure(slot, state["images"].to(self.device), self.teachers)
        size, past, distances = (tensors[f"choice/{name}"].tolist() for name in ("size", "past", "distances"))
        self.choice.size, self.choice.past, self.choice.distances = size[0], past, distances

    def _visit(self, cell: Job, iterations: int) -> None:
        order = turns(self.recipe, len(self.teachers), cell)
        advances = [self._advance(turn) for turn in order]
        state = self.states[cell.first_slot]
        self.step.load(cell)
        self.step.restore(0, state)
        for union in self.step.unions:  # of another prefix, or of cells that have changed
            for matching in union.matchings:
                matching.reset()
        begun = int(state["step"])
        for iteration in range(begun, begun + iterations):
            advances[iteration % len(order)]()
        self.states[cell.first_slot] = self._left()
        self.prefixes.measure(cell.first_slot, self.step.images, self.teachers)

    def _advance(self, turn: Turn) -> Callable[[], None]:
        """One iteration of a turn: on a GPU a graph, captured once."""
        if turn not in self.advances:
            self.advances[turn] = self.graphs.capture(lambda: self.step(turn), self.step.step.zero_)
        return self.advances[turn]

    def _left(self) -> State:
        """All that the cell in the step goes on from, copied to the host."""
        return {name: buffer.to("cpu", copy=True) for name, buffer in self.step.state().items()}
