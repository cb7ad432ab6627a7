"""Mutated and generated manifests, results, recipes and JSON: one line that names the source, or the same content.

What hypothesis found once stands as an example.
"""

import time

import pytest
from hostile_files import FAST, MANIFEST, RESULT, TOML, TREES, changed, one_line, places
from hypothesis import example, given
from hypothesis import strategies as st

from fastcondense import records
from fastcondense.recipe.recipe import from_toml
from fastcondense.records import Result, check_manifest, checked, parse_json


def test_the_examples_are_good():
    assert check_manifest(MANIFEST, "M") is MANIFEST and checked(RESULT, Result, "R") is RESULT


@pytest.mark.parametrize(("tree", "kind"), [(MANIFEST, records.Manifest), (RESULT, Result)], ids=["manifest", "result"])
def test_every_field_of_another_type_is_named(tree, kind):
    """Numbers in place of texts, texts in place of anything else; but where any value is allowed."""
    for place in places(tree):
        value = tree
        for key in place:
            value = value[key]
        if {"views", "recover", "format", "settings"} & set(place) - {place[-1]} or place == ("format",):
            continue
        with pytest.raises(ValueError, match=r"^M is damaged: field "):
            checked(changed(tree, place, 3 if isinstance(value, str) else "x"), kind, "M")


@given(st.data())
@FAST
def test_mutated_manifests_are_read_or_named(data):
    place = data.draw(st.sampled_from(list(places(MANIFEST))))
    tree = changed(MANIFEST, place, data.draw(TREES), removed=data.draw(st.booleans()))
    kept = one_line(lambda: check_manifest(tree, "M"), "M")
    if kept is not None:
        assert len(set(kept["classes"])) == len(kept["classes"]) == len(kept.get("digests", kept["classes"]))


@pytest.mark.parametrize("depth", [100, 101, 950])
def test_a_tree_that_is_deep_is_refused(depth):
    """Those who write or compare it call themselves as often; brackets in texts count for nothing."""
    text = '{"[[\\"[": ' * (depth - 1) + "[]" + "}" * (depth - 1)
    if depth == 100:
        assert "[" in next(iter(parse_json(text, "J")))
    else:
        with pytest.raises(ValueError, match=r"^J is damaged: it nests values more than 100 deep"):
            parse_json(text, "J")


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:0truefalsnN-e.\\u', max_size=60).map(str.encode))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"1" * 5000)
@example(b'"' + b'\\"' * 500_000)
@example(b"\xff")
@FAST
def test_any_bytes_as_json_are_read_or_named(text):
    one_line(lambda: parse_json(text, "J"), "J")


# --- recipes ---------------------------------------------------------------------------------------------------------


BOMBS = [
    ".".join(["a"] * 50_000) + " = 1",
    "[" + ".".join(['"a"'] * 50_000) + "]",
    "[[" + ".".join(["'a.b'"] * 50_000) + "]]",
    "x = " + "[" * 50_000 + "]" * 50_000,
    "x = " + "{a=" * 50_000 + "1" + "}" * 50_000,
    '# """\nx = ' + "[" * 50_000 + "\n#",
    "x = 'it is'\ny = " + "[" * 50_000,
    '"""' * 100_000,
    '\\"""' * 100_000,
    "x = " + "9" * 100_000,
    "seed = 0x" + "f" * 100_000,
    "train.lr = 0x" + "f" * 100_000,
    "k" * 500_000 + " = 1",
    "a" * 2_000_000,
    "by_ipc = 3",
    "corrected = 3",
    "extends = 3",
    "name = 1979-05-27",
    "train = [1]",
    "ipc = true",
]


@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_recipes_that_take_long_or_overflow_are_refused_at_once(text):
    begin = time.process_time()
    with pytest.raises(ValueError, match=r"^S\b"):
        from_toml(text, "S")
    assert time.process_time() - begin < 1.5


@given(st.data())
@FAST
def test_mutated_recipes_are_read_or_named(data):
    begin = data.draw(st.integers(0, len(TOML)))
    end = begin + data.draw(st.integers(0, 12))
    part = data.draw(st.text(alphabet="=[]{}\"'.,#\n-0123456789einfatru_ \\", max_size=8))
    recipe = one_line(lambda: from_toml(TOML[:begin] + part + TOML[end:], "S"), "S")
    assert recipe is None or from_toml(recipe.to_toml(), "S") == recipe or "nan" in recipe.to_toml()


@given(st.binary(max_size=40))
@example(b"\xff\xfe")
@FAST
def test_any_bytes_as_a_recipe_are_read_or_named(text):
    one_line(lambda: from_toml(text, "S"), "S")


def test_a_tree_of_many_values_in_few_bytes_is_refused():
    with pytest.raises(ValueError, match=r"^J is damaged: it holds 2,000,001 values in 4,000,003 bytes"):
        parse_json("[" + "1," * 2_000_000 + "1]", "J")
    assert len(parse_json("[" + "1," * 900_000 + "1]", "J")) == 900_001


@pytest.mark.parametrize("value", [None, 3, [], {}, {"train": 1, "test": 2}])
def test_data_of_a_run_are_checked(value):
    with pytest.raises(ValueError, match=r"^D is damaged: field images"):
        checked({"name": "digits", "path": None, "images": value}, records.MadeFrom, "D")
