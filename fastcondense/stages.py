"""The stages behind the command line, each resumable, and all in a row."""

from __future__ import annotations

from collections.abc import Callable

from .data.jobs import jobs
from .labels import relabel as labels
from .labels.relabel import check_teachers
from .recover.stage import condensed_set, made_jobs, recover
from .report import report
from .run import Run
from .sets.condensed import shard_path
from .sets.loss_bands import read_loss_band
from .squeeze.stage import squeeze
from .students.curve import evaluate_sizes
from .students.evaluate import evaluate as evaluate_set
from .students.ranking import rank
from .students.students import arms, train_arm
from .teachers.kept import chosen
from .workers import distributed
from .workers.distributed import first_alone, once

__all__ = ["evaluate", "everything", "inspect", "rank", "recover", "relabel", "squeeze", "train"]


def train(run: Run) -> None:
    """Trains all students: on the condensed set and on each baseline; several ranks share each batch."""
    teachers = chosen(squeeze(run), run.recipe.labels.teachers)
    with first_alone():
        condensed = condensed_set(run)
    check_teachers(run.out / "condensed", teachers)
    for arm in arms(run):
        train_arm(run, arm, condensed, teachers)


def relabel(run: Run) -> None:
    """Writes what replays the labels; one worker does."""
    squeeze(run)
    once(lambda: labels.relabel(run))


def inspect(run: Run) -> None:
    """Writes report.html of what there is, and once all images are finished grid.png and losses.png beside them."""
    from .report.page import write_report  # matplotlib takes a second to import

    if distributed.rank():
        return
    if all(shard_path(run.out / "condensed", job.index).exists() for job in made_jobs(run)):
        picture(run)
    run.log.say(f"inspect: {write_report(run)}")


def picture(run: Run) -> None:
    """Writes grid.png (images) and losses.png (curves) beside the condensed images."""
    condensed, folder = condensed_set(run), run.out / "condensed"
    report.image_grid(condensed, folder / "grid.png")
    paths = (shard_path(folder, job.index) for job in jobs(run.recipe, len(condensed.classes)))
    pictures = ["grid.png"]
    if (band := read_loss_band(path for path in paths if path.exists())) is not None:
        report.loss_curves(band, folder / "losses.png")
        pictures.append("losses.png")
    for name in pictures:
        run.log.picture(folder / name)


def evaluate(run: Run) -> None:
    """Scores the students, or students of every size that `--ipc 1,2,5` names."""
    if run.recipe.evaluate.sizes:
        evaluate_sizes(run)
    else:
        evaluate_set(run)


def everything(run: Run) -> None:
    """All stages in a row."""
    stages: dict[str, Callable[[Run], object]] = {
        "recover": recover,
        "relabel": relabel,
        "inspect": lambda run: once(lambda: picture(run)),
        "train": train,
        "evaluate": evaluate,
    }
    for name, stage in stages.items():
        with run.cost(name):
            stage(run)
    with run.cost("inspect"):
        inspect(run)
