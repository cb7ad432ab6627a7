"""The command `plan`: its options, and a plan as a person reads it."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from ..devices import choose_device
from ..log import Log
from ..options import Options
from ..run import cost_unit
from ..words import bytes_in_words, seconds_in_words
from .extent import extent
from .plan import Plan, Planner


@dataclass(frozen=True)
class PlanOptions(Options):
    """What is planned, and for whom: the options of a stage, most of all the recipe's fields, and these."""

    seconds: float = 60.0
    """About so long is measured; steps that are larger than that allows are extrapolated, and it says so."""


def plan(options: PlanOptions, log: Log) -> None:
    """Measures a few steps, then prints jobs, memory, disk and time of the recipe's run. Nothing is written.

    Raises ValueError for numbers that make no sense, and for a data set of unknown size.
    """
    launch = options.launch
    if (launch.gpus or 0) < 0 or options.seconds <= 0:
        raise ValueError(f"plan needs --gpus of 0 or more and --seconds above 0, got {launch.gpus}, {options.seconds}")
    recipe = options.settings.check()
    device = choose_device("cpu" if launch.gpus == 0 else options.device)
    size = extent(recipe, options.data)
    log.say(f"plan: measuring on {device.type} for about {options.seconds:.0f} s, with untrained networks")
    made = Planner(recipe, size, 1 if launch.gpus is None else launch.num_local, device, options.seconds).plan()
    for part in (times(made), memory(made), disk(made)):
        log.console.print(part)
    for note in made.notes:
        log.console.print(f"note: {note}", markup=False)


def times(plan: Plan) -> Table:
    """Seconds of each stage on one worker and on all, and what they cost."""
    unit = cost_unit(plan.device.type)
    workers = f"{plan.num_workers} worker" + "s" * (plan.num_workers > 1)
    first = plan.jobs[0].num_images
    table = Table(
        title=f"{plan.recipe.name} on {workers} ({plan.device.type}): {plan.size.num_classes} classes and "
        f"{plan.size.num_train} training images by {plan.size.source}; {len(plan.jobs)} jobs of up to {first} images",
        caption="Reading and decoding real images, compiling, and writing are not in these times.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("stage")
    for name in ("one worker", workers, unit):
        table.add_column(name, justify="right")
    table.add_column("known from")
    for stage in plan.times:
        hours = f"{plan.num_workers * stage.wall / 3600:.3g}"
        table.add_row(stage.name, seconds_in_words(stage.one), seconds_in_words(stage.wall), hours, stage.source)
    one, wall = sum(stage.one for stage in plan.times), sum(stage.wall for stage in plan.times)
    table.add_section()
    table.add_row("all", seconds_in_words(one), seconds_in_words(wall), f"{plan.num_workers * wall / 3600:.3g}", "")
    return table


def memory(plan: Plan) -> Table:
    """Bytes a worker."""
    where = "of the GPU" if plan.device.type == "cuda" else "of the machine"
    table = Table(
        title=f"memory {where}, a worker; {bytes_in_words(plan.free)} may be used here, and the process itself holds "
        f"{bytes_in_words(plan.itself)} of the host's",
        title_justify="left",
    )
    table.add_column("stage")
    table.add_column("bytes", justify="right")
    table.add_column("known from")
    for stage, (size, source) in plan.memory.items():
        table.add_row(stage, bytes_in_words(size), source)
    return table


def disk(plan: Plan) -> Table:
    """Bytes on disk, counted from shapes."""
    table = Table(title="disk", title_justify="left")
    table.add_column("what")
    table.add_column("bytes", justify="right")
    for what, size in plan.disk.items():
        if size:
            table.add_row("checkpoint of a student in training" if what == "checkpoint" else what, bytes_in_words(size))
    table.add_section()
    table.add_row("all", bytes_in_words(sum(plan.disk.values())))
    return table
