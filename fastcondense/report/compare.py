"""The command that puts condensed sets side by side: one table of all their evaluations, and one page with images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from ..files import write_atomic
from ..log import Log
from ..records import Result
from ..sets.bundle import Contents, read_folder, read_verified
from ..sets.sealed_zip import is_bundle
from ..words import bytes_in_words, seconds_in_words
from . import html
from .html import Html, bar, image, join, note, section, short, table, tag
from .images import LOSSLESS, THUMBNAIL, thumbnail
from .plots import COLORS
from .report import Rows, baselines_of, flat, in_words, plain_table, short_title

CLASSES, SLOTS = 10, 5
"""The first classes of each set and the first images of each, which the page shows."""
_MOST = 6
"""Settings that are named one by one where protocols differ."""
_NO_PROTOCOL = ("ipc", "train.student", "train.seeds", "evaluate.baselines", "labels.stored")
_SIZES = ("images", "labels", "teachers")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `fastcondense compare`: which sets, and where the page goes."""

    sets: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs whose condensed images are finished, and bundles."""
    out: Path = Path("compare.html")
    """The page, NAME.html."""


@dataclass(frozen=True)
class Compared:
    """A set that is compared: a short name that no other has, and what is in it."""

    name: str
    contents: Contents


def compare(options: CompareOptions, log: Log) -> Iterator[Table]:
    """Yields the table of all evaluations of the sets, and writes the page.

    Raises ValueError for fewer than two sets, and for another kind of file to write to.
    """
    if len(options.sets) < 2:
        raise ValueError(f"compare needs two sets or more, folders of runs or bundles, got {len(options.sets)}")
    if options.out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"compare --out is a page, whose name ends in .html, got {options.out}")
    names = names_of(options.sets)
    sets = [
        Compared(name, read_verified(path) if is_bundle(path) else read_folder(path))
        for name, path in zip(names, options.sets, strict=True)
    ]
    head, rows = score_table(sets)
    first = len(head) - len(_SIZES) - 2
    scores = [row[:first] for row in rows]
    yield plain_table("condensed sets side by side", head[:first], scores, caption="\n".join(remarks(sets)))
    costs = [[row[0], row[2], *row[first:]] for row in rows]
    yield plain_table("bytes and seconds", [head[0], head[2], *head[first:]], costs)
    write_atomic(options.out, page(sets).encode(errors="replace"))
    log.say(f"compare: {options.out}")


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ from each other: their last parts, or as many as it takes."""
    parts = [path.resolve().with_suffix("" if path.is_file() else path.suffix).parts for path in paths]
    if len(set(parts)) < len(parts):  # a run and its bundle
        parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts))):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number + 1})" for number, path in enumerate(paths)]


def score_table(sets: Sequence[Compared]) -> tuple[list[str], Rows]:
    """Head and rows: an evaluation a row; accuracies beside baselines, bytes, and seconds of what made them.

    Top-1 of the last epoch in per cent; time is that of squeeze and recover, and of the training of one student.
    """
    found = baselines_of(result for one in sets for result in one.contents.results)
    head = ["set", "method", "student", "images a class", "condensed", *(short_title(arm) for arm in found)]
    head += [*(f"bytes of {name}" for name in _SIZES), "time to make", "time of a student"]
    rows = []
    for one in sets:
        recipe, origin = one.contents.recipe, one.contents.manifest.get("origin")
        about = [one.name, "imported" if origin else recipe.method]
        if not one.contents.results:
            rows.append(
                [*about, "not evaluated", str(one.contents.condensed.ipc), *[""] * (len(head) - len(about) - 2)]
            )
        for result in one.contents.results:
            arms: Mapping[str, Any] = {"condensed": result, **result["baselines"]}
            scores = [
                in_words(arms[arm]["top1_last"], result["seeds"]) if arm in arms else ""
                for arm in ["condensed", *found]
            ]
            sizes, seconds = result["bytes"], result["seconds"]
            costs = [*(bytes_in_words(sizes[name]) for name in ("images", "labels", "teachers"))]
            costs += [seconds_in_words(seconds["squeeze"] + seconds["recover"])]
            costs += [seconds_in_words(seconds["train"] / result["seeds"])]
            rows.append([*about, short(result["student"]), str(result["ipc"]), *scores, *costs])
    return head, rows


def remarks(sets: Sequence[Compared]) -> list[str]:
    """What makes the rows hard to compare: other data, other protocols of the same student; then what figures mean."""
    found = []
    for what, values in _data(sets).items():
        if len(set(values) - {""}) > 1:
            told = _told((one.name, value) for one, value in zip(sets, values, strict=True) if value)
            found.append(f"These are different data, accuracies do not compare: {what} {told}.")
    by_student: dict[str, list[tuple[str, Result]]] = {}
    for one in sets:
        for result in one.contents.results:
            by_student.setdefault(result["student"], []).append((one.name, result))
    for student, some in by_student.items():
        protocols = [(name, flat(result["settings"])) for name, result in some]
        keys = dict.fromkeys(key for _, settings in protocols for key in settings if key not in _NO_PROTOCOL)
        differing = [key for key in keys if len({str(settings.get(key)) for _, settings in protocols}) > 1]
        if differing:
            told = "; ".join(
                f"{key} {_told((n, s.get(key, 'none')) for n, s in protocols)}" for key in differing[:_MOST]
            )
            more = f"; and {len(differing) - _MOST} more settings" if len(differing) > _MOST else ""
            found.append(f"Students {short(student)} are trained in different ways: {told}{more}.")
    return [*found, "Top-1 of the last epoch in % of the test images; ± is the deviation over seeds."]


def _data(sets: Sequence[Compared]) -> dict[str, list[str]]:
    """What must be the same of the data, in words, set by set; empty where it is not known."""
    recipes = [one.contents.recipe for one in sets]
    tested = [sorted({result["test_images"] for result in one.contents.results}) for one in sets]
    return {
        "data set": [recipe.dataset.name for recipe in recipes],
        "pixels a side": [str(recipe.dataset.image_size) for recipe in recipes],
        "classes": [_classes(one.contents.condensed.classes) for one in sets],
        "test images": [", ".join(map(str, some)) for some in tested],
    }


def _classes(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return f"{len(names)} ({text if len(text) <= 60 else text[:59] + '…'})"


def _told(pairs: Iterable[tuple[str, Any]]) -> str:
    """Values with the names of those that have them: "50 (a, b), 300 (c)"."""
    names: dict[str, list[str]] = {}
    for name, value in pairs:
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        if name not in names.setdefault(text, []):
            names[text].append(name)
    return ", ".join(f"{value} ({', '.join(some)})" for value, some in names.items())


def page(sets: Sequence[Compared]) -> str:
    """The whole page, with all that it needs inside."""
    title = " and ".join(one.name for one in sets) if len(sets) == 2 else f"{len(sets)} condensed sets"
    header = tag("header", tag("p", "fastcondense compare", class_="over"), tag("h1", title))
    footer = tag("footer", "Made by fastcondense compare. The page holds all that it shows and asks for nothing.")
    body = [header, tag("main", _accuracy(sets), _costs(sets), _images(sets)), footer]
    return html.document(f"{title}, fastcondense", *body)


def _accuracy(sets: Sequence[Compared]) -> Html:
    head, rows = score_table(sets)
    first = len(head) - len(_SIZES) - 2
    shown = []
    for row in rows:
        mean = row[4].split(" ")[0]
        share = bar(float(mean) / 100, COLORS[0]) if mean else ""
        shown.append([*row[:4], join([row[4], share]), *row[5:first]])
    return section("accuracy", "Accuracy", table(head[:first], shown, num_text=3), *map(note, remarks(sets)))


def _costs(sets: Sequence[Compared]) -> Html:
    head, rows = score_table(sets)
    first = len(head) - len(_SIZES) - 2
    shown = [[*row[:4], *row[first:]] for row in rows]
    remark = "Images count as uint8. Labels of 0 B are replayed by the teachers. Time to make is squeeze and recover."
    return section("costs", "Bytes and seconds", table([*head[:4], *head[first:]], shown, num_text=3), note(remark))


def _images(sets: Sequence[Compared]) -> Html:
    """A row a class: the first images of each set that has it."""
    labels = dict.fromkeys(name for one in sets for name in one.contents.condensed.classes[:CLASSES])
    corners = [one.contents.condensed.corner(CLASSES, SLOTS) for one in sets]
    rows = []
    for label in labels:
        blocks = []
        for one, corner in zip(sets, corners, strict=True):
            classes = one.contents.condensed.classes[:CLASSES]
            if label in classes:
                mine = corner[classes.index(label)]
                kind = "pixels" if mine.shape[-1] <= LOSSLESS else "photos"
                tiles = [image(thumbnail(pixels), f"{label} of {one.name}, image {k}") for k, pixels in enumerate(mine)]
                blocks.append(
                    tag(
                        "div",
                        tag("p", one.name, class_="name"),
                        tag("div", *tiles, class_=f"tiles {kind}", style=f"--slots:{SLOTS};--few:{SLOTS}"),
                    )
                )
        rows.append(tag("div", tag("h3", label), tag("div", *blocks, class_="abreast"), class_="row"))
    text = (
        f"The first {SLOTS} images of the first {CLASSES} classes of each set; reduced to {THUMBNAIL} pixels at most."
    )
    return section("images", "Images", note(text), *rows)
