"""The stages behind the command line, each resumable, and all in a row."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from . import trust
from .data.jobs import jobs
from .devices import choose_device
from .labels import relabel as labels
from .labels.relabel import check_teachers
from .log import Log
from .networks import zoo
from .networks.precision import on_threads
from .options import PlanOptions
from .plan import stand_ins, table
from .plan.extent import extent
from .plan.job_size import settle
from .plan.plan import PARTS, Plan
from .recover.stage import condensed_set, made_jobs
from .recover.stage import recover as recover_images
from .report import report
from .run import Run
from .sets.condensed import shard_path
from .sets.loss_bands import read_loss_band
from .sets.results import read_results
from .squeeze.stage import squeeze
from .students.arms import arms
from .students.best_subset import train_arms
from .students.curve import evaluate_sizes
from .students.evaluate import evaluate as evaluate_set
from .students.ranking import rank as rank_students
from .students.students import check_student
from .teachers.cut import Cut
from .teachers.kept import labelling_teachers
from .user_functions import is_own, source_sha256
from .workers import distributed
from .workers.cost import cost
from .workers.distributed import first_alone, once


def plan(options: PlanOptions, log: Log) -> None:
    """Measures a few steps, then prints jobs, memory, disk and time of the recipe's run. Nothing is written.

    Raises ValueError for numbers that make no sense, and for a data set of unknown size.
    """
    launch = options.launch
    if (launch.gpus or 0) < 0 or not 0 < options.seconds < math.inf:
        raise ValueError(f"plan needs --gpus of 0 or more and --seconds above 0, got {launch.gpus}, {options.seconds}")
    recipe = options.settings.check()
    device = choose_device("cpu" if launch.gpus == 0 else options.device)
    size = extent(recipe, options.data)
    log.say(f"plan: measuring on {device.type} for about {options.seconds:.0f} s, with untrained networks")
    num_workers = 1 if launch.gpus is None else launch.num_local
    made, threads = Plan(recipe, size, num_workers, device, options.seconds), torch.get_num_threads()
    if launch.gpus == 0 and threads > 1 < num_workers:
        threads = max(1, threads // num_workers)
        many = f"{threads} thread" + "s" * (threads > 1)
        made.notes.append(f"workers on a CPU share its cores: steps were measured on {many}, which is one's part")
    with on_threads(threads):
        for part in log.track(PARTS, "plan"):
            made.measure(part)
    log.console.print(table.tables(made))


def check_names(run: Run) -> None:
    """Raises ValueError for networks and baselines that there are not, long before the last of them is needed."""
    for architecture in (*run.recipe.squeeze.teachers, run.recipe.train.student):
        zoo.check_name(architecture)
    for name in run.recipe.evaluate.baselines:
        if is_own(name) and trust.is_given(name):
            source_sha256(name, "evaluate.baselines")


def check_matched(run: Run) -> None:
    """Raises ValueError, before a teacher is trained, if it has no module recover.features.layer to be matched."""
    recipe = run.recipe
    if recipe.recover.objective == "features":
        name = stand_ins.matched(recipe)[0]
        Cut(stand_ins.teacher(recipe, name, len(run.real.classes), run.device), recipe.recover.features.layer)


def recover(run: Run) -> None:
    """Makes the condensed images, and the teachers that they need; jobs that cannot be, or not in memory, are refused
    first."""
    check_matched(run)
    settle(run)
    recover_images(run, squeeze(run))


def train(run: Run) -> None:
    """Trains all students: on the condensed set and on each baseline; several ranks share each batch."""
    squeeze(run)
    teachers = labelling_teachers(run)
    with first_alone():
        condensed = condensed_set(run)
    check_teachers(run.out / "condensed", teachers)
    train_arms(run, arms(run), condensed, teachers)


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
    from .report import images, plots  # matplotlib takes a second to import

    condensed, folder = condensed_set(run), run.out / "condensed"
    images.write_grid(condensed, folder / "grid.png")
    paths = (shard_path(folder, job.index) for job in jobs(run.recipe, len(condensed.classes)))
    pictures = ["grid.png"]
    if (band := read_loss_band(path for path in paths if path.exists())) is not None:
        plots.save_losses(band, folder / "losses.png")
        pictures.append("losses.png")
    for name in pictures:
        run.log.picture(folder / name)


def evaluate(run: Run) -> None:
    """Scores the students, or students of every size that `--ipc 1,2,5` names, and prints the table."""
    if not run.recipe.evaluate.sizes:
        run.log.console.print(report.honest_table(evaluate_set(run)))
        results = read_results(run.out, run.own_recipe())
        if len(results) > 1:
            run.log.console.print(report.evaluations_table(results))
        return
    from .report import plots

    result = evaluate_sizes(run)
    once(lambda: plots.save_sizes(report.size_curves(result), run.out / "curve.png"))
    run.log.console.print(report.size_table(result))


def rank(run: Run) -> None:
    """Computes DD-Ranking's scores, training the students that they need, and prints them."""
    squeeze(run)
    run.log.console.print(report.ranking_table(rank_students(run)))


def everything(run: Run) -> None:
    """Runs all stages in a row."""
    check_student(run)
    stages: dict[str, Callable[[Run], object]] = {
        "recover": recover,
        "relabel": relabel,
        "inspect": lambda run: once(lambda: picture(run)),
        "train": train,
        "evaluate": evaluate,
    }
    for name, stage in stages.items():
        with cost(run.log, run.device.type, name):
            stage(run)
    with cost(run.log, run.device.type, "inspect"):
        inspect(run)
