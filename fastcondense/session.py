"""A stage of a run carried out in this process, as the command line and the Python API do: locked, logged, recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from . import __version__, stages
from .data.jobs import with_batch_size
from .devices import choose_device
from .kernels.common.threads import before_compiling
from .loaders.reading import check_folder
from .log import Log
from .options import Options
from .recipe.precision import PARTS, with_precisions
from .run import Run
from .sets import hub
from .sets.bundle import unpack
from .sets.imported import import_images
from .sets.published_sets import read_published
from .workers import distributed, lock
from .workers.cost import cost

_HELPED = {"everything": "recover", "squeeze": "squeeze", "recover": "recover"}
"""Stages of which a second launch on the run takes its part, and that stage: the first does what only one may do."""

_COMPILING = "compiling the CPU's loops for this processor, which takes up to a minute, once"


def prepare(options: Options, *, is_worker: bool = False, is_silent: bool = False, typed: str = "") -> Run:
    """The run that the options name, which is checked; nothing is written. is_worker: it is one of several processes;
    typed: the command line that asks for it.

    Raises ValueError for a recipe or data that cannot be used.
    """
    assert options.out is not None
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out} is not a folder; choose another --out")
    device = choose_device("cpu" if options.launch.gpus == 0 else options.device)
    if is_worker:
        device = distributed.join(device)
    check_folder(options.out)
    log = Log(is_silent=is_silent or distributed.rank() > 0)
    run = Run(options.settings, options.out, options.data, device, log, options.track, options.mixed_versions, typed)
    run.check()
    stages.check_names(run)
    return run


def carry_out(stage: str, run: Run, options: Options, command: str = "") -> None:
    """Carries out a function of stages.py on a run that `prepare` has made; its cost is that of `command`, or of the
    stage.

    Images and a bundle that the options name are brought into the run's folder first. Raises ValueError if another
    launch holds the folder.
    """
    published = None
    if options.images and not distributed.rank():
        path, name = hub.fetch(options.images[0]) if hub.is_name(options.images[0]) else (Path(options.images[0]), "")
        there = next(folder for folder in (run.out, *run.out.parents) if folder.is_dir())
        published = read_published(path, run.real.classes, run.recipe.ipc, run.recipe.dataset, name, there)
    with contextlib.closing(run.log), lock.locked(run.out, _share(stage, options, run.device)) as is_helper:
        if options.bundle is not None:
            with distributed.first_alone():
                unpack(options.bundle, run.out, run.real.classes, run.data or run.real.name)
        run.open(is_helper=is_helper)
        if options.images:
            with distributed.first_alone():
                if published is not None:
                    import_images(published, run.out / "condensed", run.recipe, run.log)
            published = None  # and with it what its pixels lie in
        compiling = before_compiling(lambda: run.log.tell(_COMPILING))
        with compiling, cost(run.log, run.device.type, command or stage):
            function: Callable[[Run], object] = getattr(stages, _HELPED[stage] if is_helper else stage)
            function(run)
        if is_helper:
            run.log.say(f"helped another launch on {run.out}, which does what is left of the run")
        elif not distributed.rank():
            run.record()


def _share(stage: str, options: Options, device: torch.device) -> str:
    """A text that launches have in common if they may work on a run side by side, because they make the same bits;
    empty if this one must be alone."""
    if stage not in _HELPED or options.images or options.bundle is not None:
        return ""
    # batch_size 0 and precision auto become what is chosen once, and the run's from then on
    settings = with_precisions(with_batch_size(options.settings, 0), dict.fromkeys(PARTS, "auto"))
    return f"{settings.sha256()} {device.type} torch {torch.__version__} {__version__}"
