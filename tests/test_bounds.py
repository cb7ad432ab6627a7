"""Declared bounds: what they refuse, in which words, for every setting that has one."""

import math
import re
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated

import pytest

from fastcondense.options import parse_stage
from fastcondense.recipe import recipe
from fastcondense.recipe.bounds import AtLeast, Count, Decay, PositiveFloat, Share, ShareAboveZero, Within, check_bounds
from fastcondense.recipe.recipe import Recipe


@dataclass(frozen=True)
class Inner:
    share: Share = 0.5
    pairs: tuple[Count, Annotated[int, Within(0, 30)]] = (1, 0)


@dataclass(frozen=True)
class Outer:
    count: Count = 1
    decay: Decay = 0.0
    sizes: tuple[Count, ...] = ()
    free: float = 0.0
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Outer(count=0), "count must be at least 1, got 0"),
        (Outer(decay=1.0), "decay must lie in [0, 1), got 1.0"),
        (Outer(sizes=(2, 0, 1)), "sizes must be at least 1, got (2, 0, 1)"),
        (Outer(inner=Inner(share=-0.1)), "inner.share must lie in [0, 1], got -0.1"),
        (Outer(inner=Inner(share=math.nan)), "inner.share must lie in [0, 1], got nan"),
        (Outer(inner=Inner(pairs=(0, 30))), "inner.pairs must be at least 1, got (0, 30)"),
        (Outer(inner=Inner(pairs=(1, 31))), "inner.pairs must lie in [0, 30], got (1, 31)"),
        (Outer(free=math.nan), "free must be finite, got nan"),
        (Outer(free=-math.inf), "free must be finite, got -inf"),
    ],
)
def test_what_is_beyond_a_bound_is_named(wrong, message):
    with pytest.raises(ValueError) as raised:
        check_bounds(wrong)
    assert str(raised.value) == message
    with pytest.raises(ValueError) as raised:
        check_bounds(wrong, "here.")
    assert str(raised.value) == f"here.{message}"


def test_ends_are_inside_or_not():
    check_bounds(Outer(count=1, decay=0.0, sizes=(1, 9), free=-1e9, inner=Inner(1.0, (1, 30))))
    above, positive = typing.get_args(ShareAboveZero)[1], typing.get_args(PositiveFloat)[1]
    assert [above.allows(x) for x in (0, 1e-9, 1, 1.1)] == [False, True, True, False]
    assert [positive.allows(x) for x in (0, 1e-9, math.inf, math.nan)] == [False, True, True, False]
    assert [AtLeast(2).allows(x) for x in (1, 2, math.nan)] == [False, True, False]


def declared(settings, where=""):
    """Every setting that has a bound on itself: its place, its type and the bound."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for one in fields(settings):
        value, hint = getattr(settings, one.name), hints[one.name]
        if is_dataclass(value):
            yield from declared(value, f"{where}{one.name}.")
        elif typing.get_origin(hint) is Annotated:
            kind, *marks = typing.get_args(hint)
            yield from ((f"{where}{one.name}", kind, mark) for mark in marks if hasattr(mark, "allows"))


def changed(settings, path, value):
    head, _, rest = path.partition(".")
    return replace(settings, **{head: changed(getattr(settings, head), rest, value) if rest else value})


def test_every_bound_of_a_recipe_is_checked_and_parsed():
    """Values beyond each bound are refused by name; tyro reads numbers through the annotations."""
    bounded = list(declared(Recipe()))
    assert len(bounded) > 60 and {"ipc", "squeeze.epochs", "labels.pool"} < {path for path, *_ in bounded}
    for path, kind, bound in bounded:
        beyond = next(x for x in (kind(-1), kind(0), kind(1), kind(2), kind(101)) if not bound.allows(x))
        with pytest.raises(ValueError) as raised:
            changed(Recipe(), path, beyond).check()
        assert str(raised.value) == f"{path} must {bound}, got {beyond}"
    flags = "--recipe sre2l/digits-ipc1 --labels.pool 0.5 --labels.rand-augment 2 9 --evaluate.sizes 1 2".split()
    labels = parse_stage("train", "", flags).settings.labels
    assert (labels.pool, labels.rand_augment) == (0.5, (2, 9))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--squeeze.lr -1", "squeeze.lr must be positive, got -1.0"),
        (
            "--squeeze.probe.schedule multistep",
            "squeeze.probe.schedule multistep needs squeeze.probe.milestones in (0, 1), got ()",
        ),
        ("--squeeze.schedule multistep --squeeze.gamma nan", "squeeze.gamma must be positive, got nan"),
        ("--train.schedule multistep --train.milestones 0.5 nan", "train.milestones must be finite, got (0.5, nan)"),
        ("--recover.lr inf", "recover.lr must be finite, got inf"),
        ("--recover.betas 0.5 1", "recover.betas must lie in [0, 1), got (0.5, 1.0)"),
        ("--recover.initial.flip 2", "recover.initial.flip must lie in [0, 1], got 2.0"),
        ("--recover.match-weight -1", "recover.match_weight must be at least 0, got -1.0"),
        ("--train.weight-decay -1", "train.weight_decay must be at least 0, got -1.0"),
        ("--train.temperature inf", "train.temperature must be finite, got inf"),
        ("--labels.crop-ratio 1 inf", "labels.crop_ratio must be finite, got (1.0, inf)"),
        ("--dataset.mean 123 117 104", "dataset.mean must lie in [0, 1], got (123.0, 117.0, 104.0)"),
        ("--dataset.std 58 57 57", "dataset.std must lie in (0, 1], got (58.0, 57.0, 57.0)"),
        ("--recover.roll 0 99999999999", "recover.roll must lie in [-65535, 65535], got (0, 99999999999)"),
        ("--seed 9007199254740993", "seed must lie in [0, 4503599627370496], got 9007199254740993"),
        ("--train.epochs 99999999999999999999", "train.epochs may be at most 2147483647, got 99999999999999999999"),
        ("--recover.initial.crops 2147483648", "recover.initial.crops may be at most 2147483647, got 2147483648"),
        ("--squeeze.padding 9", "squeeze.padding 9 is more than dataset.image_size 8"),
        ("--dataset.image-size 16", "dataset.resize 8 is less than dataset.image_size 16"),
    ],
)
def test_numbers_that_no_run_could_mean_are_refused_by_name(flags, message):
    settings = parse_stage("train", "", ["--recipe", "sre2l/digits-ipc1", *flags.split()]).settings
    with pytest.raises(ValueError, match=re.escape(message)):
        settings.check()


def test_an_unknown_type_in_toml_is_still_refused():
    with pytest.raises(ValueError, match=r"ipc must be of type int, got 'x'"):
        recipe.from_toml("ipc = 3\n[squeeze]\nepochs = 2\n", "mine.toml", ipc="x")
    with pytest.raises(ValueError, match=r"labels\.pool must be of type float, got 'all'"):
        recipe.from_toml("[labels]\npool = 'all'\n", "mine.toml")


def test_what_says_how_a_run_is_carried_out_stands_in_no_hash():
    plain = Recipe()
    how = replace(
        plain,
        name="another",
        dataset=replace(plain.dataset, workers=7, loader="folder", on_error="skip", counts=(3, 4, 5)),
        squeeze=replace(plain.squeeze, shared=True, sync_batch_norm=True, evaluate_every=3),
        recover=replace(plain.recover, snapshots=0, reproducible=False),
        train=replace(plain.train, sync_batch_norm=True),
        evaluate=replace(plain.evaluate, sizes=(1, 2), compare=("stacked",)),
        ranking=replace(plain.ranking, real_accuracy=50.0),
    )
    assert how.sha256() == plain.sha256()
    assert replace(plain, recover=replace(plain.recover, lr=0.5)).sha256() != plain.sha256()
