"""Copies what a finished run has scored into the committed results, which the tables of accuracy are made from.

    python benchmarks/add_run.py runs/sre2l/cifar10-ipc10/result.json [--reduced "2000 images a class"]
    python benchmarks/add_run.py runs/nested/curve.json

A result.json becomes a line of benchmarks/results/accuracy.jsonl, a curve.json one of curves.jsonl; a line of the same
run is replaced. --reduced says which part of the data the run has seen: such a run never stands beside a published
figure. Then `python benchmarks/tables.py` writes the tables.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from fastcondense.files import read_json, write_atomic
from fastcondense.recipe import recipe
from fastcondense.recipe.evaluation import with_evaluation
from fastcondense.recipe.recipe import Recipe
from fastcondense.report.report import margin

RESULTS = Path(__file__).resolve().parent / "results"
COPIED = (
    *("dataset", "method", "ipc", "student", "teachers", "epochs", "seed", "seeds", "test_images", "sizes", "bytes"),
    *("views", "needs"),
)
SCORES = ("top1_last", "top1_best")
COSTS = ("views", "needs", "chosen")
HIDDEN = {"seed", "ipc", "train.seeds", "evaluate.baselines", "squeeze.weights"}  # what a curve's caption says anyway

Line = dict[str, Any]
Settings = dict[str, Any]


def settings(made: Recipe) -> Settings:
    """All that decides results, by dotted name, without folders that mean nothing on another machine."""

    def flat(tree: dict[str, Any], prefix: str) -> Settings:
        found = {}
        for key, value in tree.items():
            found |= (
                flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: without_folders(value)}
            )
        return found

    return flat(made.parts(), "")


def without_folders(value: Any) -> Any:
    """Names of files in place of their paths."""
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "..")) else value


def line_of(file: Path, reduced: str = "") -> Line:
    """A run's line, from its folder: a file of results/, result.json or curve.json, recipe.toml, environment.json and
    log.jsonl.

    settings: those that are not the defaults of `Recipe`; of a curve, changes: those that are not the recipe's. Raises
    ValueError if the recipe does not ship, or if the scores are of another recipe.toml or of imported images.
    """
    folder, found = file.parent.parent if file.parent.name == "results" else file.parent, read_json(file)
    made = recipe.load(str(folder / "recipe.toml"))
    if "settings" in found:
        made = with_evaluation(made, found["settings"])
    if made.sha256() != found["recipe_sha256"]:
        raise ValueError(f"{file} is not a result of the recipe.toml beside it; run evaluate again")
    if "origin" in found:
        raise ValueError(f"{file} is of imported images, which the recipe's method did not make")
    name, defaults = re.sub(r"-ipc\d+$", "", made.name), settings(Recipe())
    own, shipped = settings(made), settings(recipe.load(f"{name}-ipc{made.ipc}"))
    finished = max(json.loads(event)["time"] for event in (folder / "log.jsonl").read_text().splitlines())
    line = {"recipe": name, "recipe_sha256": found["recipe_sha256"], "ipc": made.ipc}
    line |= {key: found[key] for key in COPIED if key in found}
    line |= {key: rounded(found[key]) for key in SCORES if key in found}
    if "sizes" in found:
        line["changes"] = {key: own[key] for key in shipped if own[key] != shipped[key] and key not in HIDDEN}
    else:
        line["settings"] = {key: value for key, value in own.items() if value != defaults[key]}
        arms = sorted(found["baselines"].items())
        line["baselines"] = {
            arm: {key: rounded(of[key]) for key in SCORES}
            | {key: of[key] for key in COSTS if key in of}
            | margin_over(found, of)
            for arm, of in arms
        }
        line["seconds"] = {stage: round(seconds, 1) for stage, seconds in found["seconds"].items()}
    return line | {
        "reduced": reduced,
        "device": found["versions"].get("gpu", read_json(folder / "environment.json")["device"]),
        "versions": found["versions"],
        "date": datetime.datetime.fromtimestamp(finished, datetime.UTC).date().isoformat(),
    }


def margin_over(found: Settings, baseline: Settings) -> Settings:
    """What the condensed images have more than a baseline, paired by seed, with its interval; nothing of one seed."""
    mean, *ends = margin(found["top1_last"]["seeds"], baseline["top1_last"]["seeds"])
    return {} if math.isnan(ends[0]) else {"margin": rounded([mean, *ends])}


def rounded(scores: Any) -> Any:
    """All numbers of a tree to three digits behind the point, without those of single seeds."""
    if isinstance(scores, dict):
        return {key: rounded(value) for key, value in scores.items() if key != "seeds"}
    return [rounded(value) for value in scores] if isinstance(scores, list) else round(scores, 3)


def read_lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(line: Line, path: Path) -> None:
    """Appends the line to the file; one of the same run, sizes and part of the data is replaced."""

    def run_of(line: Line) -> tuple[Any, ...]:
        return line["recipe_sha256"], line["reduced"], line.get("sizes")

    kept = [old for old in read_lines(path) if run_of(old) != run_of(line)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(entry) + "\n" for entry in [*kept, line]).encode())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="result.json or curve.json of a run")
    parser.add_argument("--reduced", default="", help="what the recipe does not say, such as a part of the data")
    options = parser.parse_args(arguments)
    try:
        line = line_of(options.file, options.reduced)
        path = RESULTS / ("curves.jsonl" if "sizes" in line else "accuracy.jsonl")
        add(line, path)
        print(f"{line['recipe']}-ipc{line['ipc']} is in {path.name}")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"add_run: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
