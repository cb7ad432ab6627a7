"""What could be changed where a plan takes days: settings that a stage's time is proportional to, and more workers."""

from __future__ import annotations

from ..students.costs import views_an_epoch
from ..words import seconds_in_words
from .plan import Plan

_LONG, _WANTED = 24 * 3600.0, 12 * 3600.0  # seconds
_MOST_WORKERS = 64


def advice(plan: Plan) -> list[str]:
    """A line for each stage that takes a tenth or more of a run of over a day; none for a shorter run."""
    total = sum(stage.wall for stage in plan.times)
    if total < _LONG:
        return []
    long = sorted((stage for stage in plan.times if stage.wall >= total / 10), key=lambda stage: -stage.wall)
    lines = [f"{stage.name} takes {seconds_in_words(stage.wall)}: {_changes(plan, stage.name)}" for stage in long]
    if plan.device.type == "cpu":
        lines.append("this was measured on a CPU; `fastcondense plan` on a machine with a GPU says what it takes there")
    return lines


def _changes(plan: Plan, stage: str) -> str:
    recipe = plan.recipe
    if stage == "squeeze":
        return f"{_half('--squeeze.epochs', recipe.squeeze.epochs)}; --squeeze.weights takes networks that are trained"
    if stage == "recover":
        return "; ".join(filter(None, (_fewer_images(plan), _more_workers(plan))))
    if stage == "train":
        train, names = recipe.train, ", ".join(recipe.evaluate.baselines) or "none"
        each = plan.wall("train") / (train.seeds * (1 + len(recipe.evaluate.baselines)))
        halves = _half("--train.epochs", train.epochs)
        return (
            f"{halves}; --train.seeds {train.seeds} and --evaluate.baselines {names} are "
            f"{train.seeds * (1 + len(recipe.evaluate.baselines))} students of {seconds_in_words(each)} on average"
        )
    views = views_an_epoch(recipe, plan.size.num_classes)
    return f"--train.evaluate-every {2 * recipe.train.evaluation_interval(views, plan.size.num_test)} takes half"


def _fewer_images(plan: Plan) -> str:
    recover, ipc = plan.recipe.recover, plan.recipe.ipc
    found = [f"--recover.iterations {recover.iterations // 2}"] * (recover.iterations > 1)
    found += [f"--ipc {ipc // 2}"] * (ipc > 1)
    return f"{' or '.join(found)} takes half" if found else ""


def _more_workers(plan: Plan) -> str:
    """The fewest workers, of 2, 4, 8 ..., with which its jobs take half a day; those of all if that is never so."""
    one, count = next(stage.one for stage in plan.times if stage.name == "recover"), plan.num_workers
    most = min(_MOST_WORKERS, len(plan.jobs))
    while 2 * count <= most and one / count > _WANTED:
        count *= 2
    return f"--gpus {count} takes {seconds_in_words(one / count)}" if count > plan.num_workers else ""


def _half(flag: str, value: float) -> str:
    return f"{flag} {max(1, int(value) // 2)} takes half"
