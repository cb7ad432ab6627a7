"""A plan as a person reads it."""

from __future__ import annotations

from rich.console import Group, RenderableType

from ..log import plain
from ..report.report import plain_table
from ..words import bytes_in_words, seconds_in_words
from ..workers.cost import cost_unit
from .advice import advice
from .plan import Plan


def tables(plan: Plan) -> RenderableType:
    """Time of each stage on one worker and on all, and what they cost; bytes a worker; bytes on disk; notes."""
    many, place = plan.num_workers, "of the GPU" if plan.device.type == "cuda" else "of the machine"
    workers, size = f"{many} worker" + "s" * (many > 1), plan.size
    jobs = f"{len(plan.jobs)} job" + "s" * (len(plan.jobs) > 1)
    shared = (workers, cost_unit(plan.device.type)) if many > 1 else ()

    def row(name: str, one: float, wall: float, source: str) -> tuple[str, ...]:
        on_all = (seconds_in_words(wall), f"{many * wall / 3600:.3g}") if many > 1 else ()
        return name, seconds_in_words(one), *on_all, source

    one, wall = sum(stage.one for stage in plan.times), sum(stage.wall for stage in plan.times)
    times = plain_table(
        f"{plan.recipe.name} on {workers} ({plan.device.type}): {size.num_classes} classes and {size.num_train} "
        f"training images by {size.source}; {jobs} of up to {plan.jobs[0].num_images} images",
        ("stage", "one worker" if many > 1 else "time", *shared, "known from"),
        [row(stage.name, stage.one, stage.wall, stage.source) for stage in plan.times],
        [row("all", one, wall, "")],
        caption="Reading and decoding real images, compiling, and writing are not in these times.",
    )
    memory = plain_table(
        f"memory {place}, a worker; {bytes_in_words(plan.free)} may be used here, and the process itself holds "
        f"{bytes_in_words(plan.itself)} of the host's",
        ("stage", "bytes", "known from"),
        [(stage, bytes_in_words(size), source) for stage, (size, source) in plan.memory.items()],
    )
    names = {"checkpoint": "checkpoint of a student in training"}
    disk = plain_table(
        "disk",
        ("what", "bytes"),
        [(names.get(what, what), bytes_in_words(size)) for what, size in plan.disk.items() if size],
        [("all", bytes_in_words(sum(plan.disk.values())))],
    )
    return Group(times, memory, disk, *(plain(f"note: {note}") for note in (*plan.notes, *advice(plan))))
