"""What a run says at its end, as tables: scores beside their baselines, at every size, and DD-Ranking's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rich.table import Table

from ..log import plain
from ..words import bytes_in_words, seconds_in_words

ARMS = {
    "random_soft": "random real, soft labels",
    "random_hard": "random real, hard labels",
    "herding_soft": "real by herding, soft labels",
    "herding_hard": "real by herding, hard labels",
    "nearest": "real nearest to the mean, hard labels",
    "aligned": "real most in its direction, hard labels",
    "medoid_soft": "real by medoids, soft labels",
    "bps_soft": "real by BPS, soft labels",
    "best_soft": "best real subset, soft labels",
    "full_soft": "all real images, soft labels, as many views",
    "full": "all real images, hard labels",
}
_IMAGES = {"condensed": "condensed", "random": "random real", "herding": "real by herding", "full": "all real images"}
_SHORT = {"full": "all real", "best": "best real"}
_VIEWS = {"recipe": "", "plain": ", whole images"}
SIZE_NAMES = {
    "nested": "this set",
    "independent": "made for the size (A)",
    "stacked": "one-image sets (B)",
}
RANKING_SCORES = (
    ("hard_label_recovery", "hard label recovery, less is better (points)", 1),
    ("improvement_over_random", "improvement over random (points)", 1),
    ("improvement_over_random_plain", "the same, whole images (points)", 1),
    ("label_robust_score", "label-robust score", 3),
    ("augmentation_robust_score", "augmentation-robust score", 3),
)
_IN_COLUMNS = ("train.student", "train.epochs", "train.seeds", "ipc", "evaluate.baselines")
_MOST_CHANGES = 4
_TEXT = ("known from", "other settings")
SCORE_HEAD = ("trained on", "top-1 last", "top-1 best", "top-5 last", "condensed minus it", "views", "needs")
MARGIN = (
    "condensed minus it: points of top-1 of the last epoch, paired by seed, with the 95 % interval of Student's t from "
    "two seeds on; no difference: it holds 0. views: those that a student sees in its training, which needs the bytes "
    "of images and stored labels, or of the teachers that replay them"
)
Rows = list[list[str]]


def plain_table(title: str, head: Sequence[str], *parts: Iterable[Sequence[str]], caption: str = "") -> Table:
    """A table for the terminal with a line between its parts; no text in it is markup. Columns after the first are
    numbers, but for some. Names of usual length in the first are not broken.
    """
    all_rows = [[tuple(row) for row in rows] for rows in parts]
    longest = max((len(row[0]) for rows in all_rows for row in rows), default=0)
    table = Table(title=plain(title), caption=plain(caption), title_justify="left", caption_justify="left")
    for number, name in enumerate(head):
        side: Literal["right", "left"] = "right" if number and name not in _TEXT else "left"
        table.add_column(plain(name), overflow="fold", justify=side, min_width=None if number else min(longest, 26))
    for rows in all_rows:
        for row in rows:
            table.add_row(*map(plain, row))
        table.add_section()
    return table


def in_words(score: Mapping[str, float], seeds: int, digits: int = 1) -> str:
    """A mean, and over several seeds the deviation."""
    return f"{score['mean']:.{digits}f}" + f" ± {score['std']:.{digits}f}" * (seeds > 1)


def seeds_in_words(result: Mapping[str, Any]) -> str:
    return f"{result['seeds']} seed{'s' if result['seeds'] > 1 else ''} from {result['seed']}"


def arm_title(arm: str, labels: str, is_imported: bool = False) -> str:
    """What an arm's students were trained on, in words."""
    if ":" in arm:
        return f"{arm}, soft labels"
    return ARMS.get(
        arm, f"{'imported' if is_imported else 'condensed'}, {'hard' if labels == 'hard' else 'soft'} labels"
    )


def short_title(arm: str) -> str:
    """The same of a baseline, for the head of a column: "random, soft"."""
    images, _, labels = arm.rpartition("_")
    if arm in ("nearest", "aligned"):
        return f"{arm}, hard"
    return arm if ":" in arm else "all real, hard" if arm == "full" else f"{_SHORT.get(images, images)}, {labels}"


def score_rows(result: Mapping[str, Any]) -> Rows:
    """Rows of what was trained on, of columns SCORE_HEAD, in words."""
    arms = {"condensed": result, **result["baselines"]}
    keys, seeds, own = ("top1_last", "top1_best", "top5_last"), result["seeds"], result["top1_last"]["seeds"]
    return [
        [
            arm_title(arm, result["labels"], "origin" in result)
            + (f" ({scores['chosen']})" if "chosen" in scores else ""),
            *(in_words(scores[key], seeds) for key in keys),
            margin_in_words(own, scores["top1_last"]["seeds"]) if arm != "condensed" else "",
            f"{scores['views']:,}" if "views" in scores else "",
            bytes_in_words(scores["needs"]) if "needs" in scores else "",
        ]
        for arm, scores in arms.items()
    ]


def margin(own: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the differences seed by seed, and the ends of its 95 % interval by Student's t; NaN for a single seed."""
    differences = [a - b for a, b in zip(own, other, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return mean, math.nan, math.nan
    from scipy.stats import t  # takes a second to import

    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return mean, mean - half, mean + half


def margin_in_words(own: Sequence[float], other: Sequence[float]) -> str:
    """The margin and its interval, or that there is no difference: the interval holds 0."""
    return interval_in_words(*margin(own, other))


def interval_in_words(mean: float, low: float, high: float) -> str:
    """A margin and the ends of its interval, NaN for those of a single seed."""
    if math.isnan(low):
        return f"{mean:+.1f}"
    return f"{'no difference' if low <= 0 <= high else f'{mean:+.1f}'} [{low:+.1f}, {high:+.1f}]"


def honest_table(result: Mapping[str, Any]) -> Table:
    """The condensed set beside its baselines, with the recipe, epochs, seeds, bytes and seconds they belong to."""
    sizes = ", ".join(f"{name} {bytes_in_words(count)}" for name, count in result["bytes"].items())
    times = ", ".join(f"{name} {seconds_in_words(seconds)}" for name, seconds in result["seconds"].items())
    origin = result.get("origin")
    source = f"images: imported from {origin['path']} ({origin['layout']}).\n" if origin else ""
    if (count := workers_in_words(result)) != "1":
        source += f"students: trained by {count} workers together, each with its share of a batch.\n"
    return plain_table(
        f"{result['recipe']}: {result['student']}, ipc {result['ipc']}, {result['epochs']} epochs, "
        f"{seeds_in_words(result)}",
        SCORE_HEAD,
        score_rows(result),
        caption=f"top-1 and top-5 in % of {result['test_images']} test images; ± is the deviation over seeds; best is "
        f"chosen on the test images. {MARGIN}.\n{source}bytes: {sizes}. time: {times}. recipe sha256 "
        f"{result['recipe_sha256'][:12]}",
    )


def workers_in_words(result: Mapping[str, Any]) -> str:
    """How many workers trained a student together, which decides its figures: "1", or "1 or 4" if they differ."""
    arms = (result, *result["baselines"].values())
    return " or ".join(map(str, sorted({count for scores in arms for count in scores.get("workers", [1])})))


def evaluation_rows(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], Rows]:
    """Head and rows of the table of all evaluations of a set: the student, what it was trained on, and what settings
    are other than those of the first.
    """
    found = baselines_of(results)
    has_sizes = len({result["ipc"] for result in results}) > 1
    rows = []
    for result in results:
        arms = {"condensed": result, **result["baselines"]}
        arms_in_order = ("condensed", *found)
        scores = (in_words(arms[arm]["top1_last"], result["seeds"]) if arm in arms else "" for arm in arms_in_order)
        about = [str(result[key]) for key in ("epochs", "seeds", *(["ipc"] if has_sizes else []))]
        changes = changes_in_words(result["settings"], results[0]["settings"])
        if (count := workers_in_words(result)) != workers_in_words(results[0]):
            changes = ", ".join(filter(None, (changes, f"workers {count}")))
        rows.append([result["student"], *about, *scores, changes])
    names = ["epochs", "seeds", *(["images a class"] if has_sizes else [])]
    own = "imported" if "origin" in results[0] else "condensed"
    return ["student", *names, own, *(short_title(arm) for arm in found), "other settings"], rows


def baselines_of(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """The baselines of any of the results: those that ship in their order, then the user's own."""
    some = dict.fromkeys(arm for result in results for arm in result["baselines"])
    return [*(arm for arm in ARMS if arm in some), *(arm for arm in some if arm not in ARMS)]


def changes_in_words(settings: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """The settings of an evaluation that are not those of the first, but for what has columns of its own."""
    mine, others = flat(settings), flat(first)
    changed = [key for key in mine if key not in _IN_COLUMNS and mine[key] != others.get(key)]
    named = ", ".join(f"{key} {_value(mine[key])}" for key in changed[:_MOST_CHANGES])
    left = len(changed) - _MOST_CHANGES
    return named + f" and {left} more" * (left > 0)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree of settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def evaluations_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """All evaluations of the same images: a row a student, beside what else the student was trained on."""
    head, rows = evaluation_rows(results)
    return plain_table(
        f"{results[0]['recipe']}: all {len(results)} evaluations of its images, top-1 of the last epoch",
        head,
        rows,
        caption=f"in % of {results[0]['test_images']} test images; ± is the deviation over seeds.",
    )


def size_curves(result: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, float]]]:
    """Scores by size of each way in which sets of these sizes were made, which is named."""
    return {SIZE_NAMES.get(name, ARMS.get(name, name)): of for name, of in result["top1_last"].items()}


def size_table(result: Mapping[str, Any]) -> Table:
    """Top-1 of the last epoch at every size, a row for each way in which such a set was made."""
    rows = [
        [name, *(in_words(score, result["seeds"]) for score in of.values())] for name, of in size_curves(result).items()
    ]
    return plain_table(
        f"{result['recipe']}: top-1 of the last epoch, {result['student']}, {result['epochs']} epochs, "
        f"{seeds_in_words(result)}",
        ("images a class", *map(str, result["sizes"])),
        rows,
    )


def ranking_rows(result: Mapping[str, Any]) -> Rows:
    """DD-Ranking's scores of the students' last and best epochs."""
    both = [result["scores"][f"top1_{epoch}"] for epoch in ("last", "best")]
    seeds = result.get("seeds", 1)
    return [[name, *(in_words(of[key], seeds, digits) for of in both)] for key, name, digits in RANKING_SCORES]


def ranking_table(result: Mapping[str, Any]) -> Table:
    """DD-Ranking's scores below the accuracies that they are made from, for the students' last and best epochs."""
    rates, accuracies = ", ".join(map(str, result["ranking"]["learning_rates"])), []
    for arm in result["arms"].values():
        more = " (given)" if arm["top1_last"]["lr"] is None else _VIEWS[arm["views"]]
        scores = (in_words(arm[key], result["seeds"]) for key in ("top1_last", "top1_best"))
        accuracies.append([f"{_IMAGES[arm['images']]}, {arm['labels']} labels{more}", *scores])
    return plain_table(
        f"{result['recipe']}: DD-Ranking, {result['student']}, ipc {result['ipc']}, {result['epochs']} epochs, "
        f"{seeds_in_words(result)}",
        ("trained on", "top-1 last", "top-1 best"),
        accuracies,
        ranking_rows(result),
        caption=f"top-1 in % of {result['test_images']} test images; ± is the deviation over seeds; best is chosen on "
        f"the test images{f', and so is each learning rate among {rates}' * bool(rates)}.\nscores lie in [0, 1]; 0.269 "
        "says that nothing is lost to all real images with hard labels, and nothing gained over random ones. recipe "
        f"sha256 {result['recipe_sha256'][:12]}",
    )
