"""Flags that change nothing are refused: which settings are read beside which others."""

import dataclasses
import typing

import pytest
from unused_settings import choices

from fastcondense.options import keys_of, parse_stage
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.typed import hints_of
from fastcondense.recipe.unread import ReadIf, check_read

RECIPE = ["--recipe", "sre2l/digits-ipc1"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--train.milestones 0.5", r"train\.milestones is read where train\.schedule is multistep, and that is cosine"),
        ("--train.gamma=0.5", r"train\.gamma is read where train\.schedule is multistep"),
        ("--squeeze.momentum 0.5 --squeeze.optimizer adam", r"squeeze\.optimizer is sgd or muon, and that is adam;"),
        (
            "--train.temperature 4 --train.loss mse_ce",
            r"where train\.loss is kl or kl_t2, and that is mse_ce; leave it",
        ),
        ("--recover.no-swapped-patches", r"recover\.swapped_patches is read where recover\.statistics is patch,"),
        ("--recover.residual 0.5", r"recover\.residual is read where recover\.stages is set, and that is empty;"),
        ("--recover.patch_size 4", r"recover\.patch_size is read where recover\.statistics is patch, and that is bn"),
        ("--train.hard-smoothing 0.8", r"where train\.hard_share is set, and that is 0\.0;"),
        (
            "--squeeze.self-supervision.gamma 2",
            r"squeeze\.self_supervision\.schedule is multistep, and that is cosine;",
        ),
    ],
)
def test_a_flag_that_changes_nothing_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_stage("recover", "", [*RECIPE, *flags.split()])


@pytest.mark.parametrize(
    "flags",
    [
        "--train.schedule multistep --train.milestones 0.5 --train.gamma 0.2",
        "--recover.statistics bn patch --recover.patch-size 4 --no-store",
        "--train.hard-share 0.5 --train.hard-smoothing 0.8",
        "--train.loss mse_ce --train.ce-weight 1 --train.ce-labels own",
    ],
)
def test_one_that_is_read_is_taken(flags):
    assert parse_stage("recover", "", [*RECIPE, *flags.split()]).settings != parse_stage("recover", "", RECIPE).settings


def test_files_may_hold_what_they_do_not_read(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('extends = ["data/cifar10"]\n[train]\nmilestones = [0.5]\n')
    assert parse_stage("recover", "", ["--recipe", str(file)]).settings.train.milestones == (0.5,)


def test_words_are_taken_for_the_settings_that_they_name():
    words = ["--train.no-decay-all", "--recover.lr=0.1", "--recover.means.views", "3", "-h"]
    assert keys_of(words) == ["train.decay_all", "recover.lr", "recover.means.views"]
    check_read(Recipe(), ["device", "train.none", "train.epochs.of"])


def marks(kind=Recipe):
    """Yields each mark with the dataclass that it is in."""
    for hint in hints_of(kind, include_extras=True).values():
        inner, *found = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        yield from ((kind, mark) for mark in found if isinstance(mark, ReadIf))
        if dataclasses.is_dataclass(inner):
            yield from marks(inner)


@pytest.mark.parametrize(("kind", "mark"), dict.fromkeys(marks()))
def test_what_a_mark_names_is_there(kind, mark):
    assert set(mark.values) <= set(choices(hints_of(kind)[mark.other]))
