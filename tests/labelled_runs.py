"""A condensed run of the digits with other settings, its labels on the fly, and those that it has stored."""

import dataclasses

from small import fastcondense

from fastcondense.labels.labels import TeacherLabels
from fastcondense.labels.stored_labels import read_labels
from fastcondense.labels.views import ReplayedViews
from fastcondense.recipe.recipe import load
from fastcondense.recover.stage import condensed_set
from fastcondense.run import Run
from fastcondense.squeeze.stage import squeeze
from fastcondense.teachers.kept import chosen

FAST = (
    "--squeeze.teachers zoo/convnet3_w32 zoo/convnet1 --squeeze.epochs 2 --squeeze.gate-images 0 "
    "--recover.iterations 20 --train.seeds 1 --train.evaluate-every 4 --evaluate.baselines random_soft"
).split()


def write_condensed(out):
    """A run with teachers and condensed images; 20 of them, in batches of 8, 8 and 4."""
    assert fastcondense("recover", out, *FAST) == 0
    return out


def made(out, flags, *stages):
    """A run after some of its stages, as a process finds it that begins then."""
    assert not any(fastcondense(stage, out, *flags) for stage in stages)
    run = Run(load(str(out / "recipe.toml")), out)
    run.open()
    return run


def changed(out, labels=None, train=None, **more):
    """The run in that folder with other settings, in a process that has read nothing yet."""
    recipe = load(str(out / "recipe.toml"))
    labels = dataclasses.replace(recipe.labels, **{"source": "stored"} | (labels or {}))
    recipe = dataclasses.replace(recipe, labels=labels, train=dataclasses.replace(recipe.train, **train or {}), **more)
    run = Run(recipe, out)
    run.open()
    return run


def on_the_fly(run, seed=0):
    """The views, and the labels of teachers that were read anew."""
    teachers = chosen(squeeze(run), run.recipe.labels.teachers)
    pixels, labels = condensed_set(run).flat()
    views = ReplayedViews(pixels, labels, run.recipe.labels, run.normalize, seed)
    return views, TeacherLabels(teachers, run.recipe.labels, seed), teachers


def stored(run, seed=0):
    views, _, teachers = on_the_fly(run, seed)
    return read_labels(run, condensed_set(run), views, teachers, seed)[1]
