"""A plan as a person reads it."""

from __future__ import annotations

from rich.table import Table

from ..run import cost_unit
from ..words import bytes_in_words, seconds_in_words
from .plan import Plan


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
