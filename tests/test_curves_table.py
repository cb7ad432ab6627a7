"""Committed curves: what is copied from a run, and the page that is written from them."""

import dataclasses
import json

import curves
import pytest

from fastcondense.recipe.recipe import load


def finished(folder, lr=0.5, mean=90.04):
    made = load("sre2l/digits-ipc5")
    made = dataclasses.replace(made, recover=dataclasses.replace(made.recover, lr=lr))
    of = {size: {"mean": mean + k, "std": 0.26} for k, size in enumerate(("1", "5"))}
    curve = {
        "recipe_sha256": made.sha256(),
        **{"student": "zoo/convnet1", "epochs": 4, "seed": 0, "seeds": 2, "sizes": [1, 5]},
        "top1_last": {"nested": of, "stacked": of, "herding_soft": of},
        "versions": {"torch": "2.13.0"},
    }
    folder.mkdir()
    (folder / "recipe.toml").write_text(made.to_toml())
    (folder / "curve.json").write_text(json.dumps(curve))
    (folder / "environment.json").write_text(json.dumps({"device": "cpu"}))
    return folder / "curve.json"


def test_a_curve_is_copied_and_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "LINES", tmp_path / "curves.jsonl")
    for folder, mean in (("a", 80.0), ("b", 90.04)):  # the second is of the same recipe and replaces the first
        assert curves.main(["add", str(finished(tmp_path / folder, mean=mean))]) == 0
    assert curves.main(["table"]) == curves.main(["table", "--check"]) == 0
    text = (tmp_path / "curves.md").read_text()
    assert text.count("| images a class") == 1 and "![Top-1 by size](curves-digits.svg)" in text
    assert "`sre2l/digits-ipc5`" in text and "cpu; changed: recover.lr 0.5." in text
    assert "| this set | 90.0 ± 0.3 | 91.0 ± 0.3 |" in text
    assert "| one-image sets (B) |" in text and "| real by herding, soft labels |" in text
    assert curves.drawn_from(tmp_path / "curves-digits.svg") == {
        f"sre2l/digits-ipc5, {name}": {"1": {"mean": 90.04, "std": 0.26}, "5": {"mean": 91.04, "std": 0.26}}
        for name in ("this set", "one-image sets (B)", "real by herding, soft labels")
    }
    third = ["add", str(finished(tmp_path / "c", lr=0.125)), "--reduced", "10 images a class"]
    assert curves.main(third) == 0
    assert curves.main(["table", "--check"]) == 1 and curves.main(["table"]) == 0
    text = (tmp_path / "curves.md").read_text()
    assert text.count("| images a class") == 2 and "; of the data: 10 images a class." in text


def test_a_curve_of_another_recipe_is_refused(tmp_path):
    curve = finished(tmp_path / "a")
    (tmp_path / "a" / "recipe.toml").write_text(load("sre2l/digits-ipc5").to_toml())
    with pytest.raises(ValueError, match="is not a curve of the"):
        curves.line_of(curve)


def test_the_committed_page_is_up_to_date():
    assert curves.main(["table", "--check"]) == 0
