"""The card of an exported data set: what it is, where it comes from, what it scores and what it weighs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from huggingface_hub import DatasetCardData

from ..recipe.recipe import Recipe
from ..records import Origin, Result
from ..report.report import MARGIN, SCORE_HEAD, score_rows
from ..sets.condensed import CondensedSet
from ..words import bytes_in_words

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def dataset_card(
    recipe: Recipe,
    condensed: CondensedSet,
    num_bytes: int,
    encoding: str,
    results: Sequence[Result],
    origin: Origin | None,
) -> str:
    """README.md of the data set: Hugging Face's YAML header, then Markdown.

    num_bytes: of the images as exported; results: evaluations of these images; origin: where imported ones come from.
    """
    count, size = condensed.num_images, condensed.shape[-1]
    method = "imported" if origin else recipe.method
    header = DatasetCardData(
        pretty_name=f"{recipe.name}, condensed images",
        task_categories=["image-classification"],
        size_categories=[next((name for most, name in _SIZES if count < most), "1M<n<10M")],
        tags=["dataset-distillation", "dataset-compression", f"ipc-{condensed.ipc}", method, "fastcondense"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    )
    made = f"recovered by `{recipe.method}` with fastcondense"
    if origin:
        made = (
            f"imported from `{Path(origin['path']).name}` ({origin['layout']}; sha256 of the pixels {origin['sha256']})"
        )
    lines = [
        "---",
        header.to_yaml(),
        "---",
        "",
        f"# {recipe.name}",
        "",
        f"{count} condensed images of {len(condensed.classes)} classes of `{recipe.dataset.name}`, {condensed.ipc} a "
        f"class, {size} x {size} pixels, {encoding}; {made}. The terms of the real images that they derive from apply.",
        "",
        f"Rows are in class order. Images: {bytes_in_words(num_bytes)}. No labels are stored but the classes.",
        "",
        *(itertools.chain.from_iterable(map(_scores, results)) if results else ["Not evaluated.", ""]),
        "## Recipe",
        "",
        f"sha256 {recipe.sha256()}",
        "",
        "```toml",
        tomli_w.dumps(_without_folders(dataclasses.asdict(recipe))).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _scores(result: Result) -> list[str]:
    seeds = f"{result['seeds']} seed{'s' * (result['seeds'] > 1)}"
    return [
        f"## Scores of {result['student']}",
        "",
        f"{result['epochs']} epochs, {seeds}, top-1 and top-5 in % of {result['test_images']} test images; best is "
        f"chosen on the test images. {MARGIN[0].upper()}{MARGIN[1:]}.",
        "",
        f"| {' | '.join(SCORE_HEAD)} |",
        f"|{' --- |' * len(SCORE_HEAD)}",
        *(f"| {' | '.join(row)} |" for row in score_rows(result)),
        "",
        f"Teachers, which give the soft labels: {', '.join(result['teachers'])}; "
        f"{bytes_in_words(result['bytes']['teachers'])}.",
        "",
    ]


def _without_folders(tree: Any) -> Any:
    """The tree with file names in place of paths: where things lay on a machine is nobody's business."""
    if isinstance(tree, dict):
        return {key: _without_folders(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_without_folders(value) for value in tree]
    return Path(tree).name if isinstance(tree, str) and Path(tree).is_absolute() else tree
