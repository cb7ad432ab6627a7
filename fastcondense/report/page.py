"""The report of a run: one HTML page with all that it needs inside, light or dark, without scripts or requests."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_atomic
from ..run import Run
from ..teachers.kept import read_teachers
from ..words import bytes_in_words
from . import looks, scores
from .embedding import ImageFeatures, image_features
from .findings import Findings, read_findings
from .html import Html, counted, details, document, facts, join, short, table, tag

_SECTIONS = {
    "images": "Images",
    "forming": "Forming",
    "losses": "Losses",
    "features": "Features",
    "accuracy": "Accuracy",
    "classes": "Classes",
    "costs": "Costs",
}


def write_report(run: Run) -> Path:
    """Writes report.html of what the run, by its own recipe, has made so far; nothing is made for it."""
    settings, run = run.own_recipe(), copy.copy(run)
    run.recipe = settings
    found = read_findings(run)
    path = run.out / "report.html"
    write_atomic(path, page(found, _features(found)).encode(errors="replace"))
    return path


def _features(found: Findings) -> ImageFeatures | None:
    """Features of condensed and real images by the first teacher; None without images or if a teacher is missing."""
    names = found.run.recipe.squeeze.teachers
    if not found.images or not names or len(found.teachers) < len(names):
        return None
    return image_features(found.run, read_teachers(found.run)[0], found.images)


def page(found: Findings, seen: ImageFeatures | None) -> str:
    """The whole page."""
    recipe = found.run.recipe
    links = [tag("a", name, href=f"#{key}") for key, name in _SECTIONS.items()]
    body = [
        _header(found),
        tag("nav", *links),
        tag(
            "main",
            looks.images(found),
            looks.forming(found),
            looks.losses(found),
            looks.features(found, seen),
            scores.accuracy(found),
            scores.by_class(found),
            scores.costs(found),
        ),
        tag("footer", "Made by fastcondense inspect. The page holds all that it shows and asks for nothing."),
    ]
    return document(f"{recipe.name}, fastcondense", *body)


def _header(found: Findings) -> Html:
    recipe = found.run.recipe
    versions: Mapping[str, Any] = found.result["versions"] if found.result else found.environment
    is_gpu = str(found.environment.get("device", "")).startswith("cuda")
    device = versions.get("gpu" if is_gpu else "cpu", found.environment.get("device", "unknown"))
    packages = ("fastcondense", "torch", "torchvision", "timm", "triton", "numpy", "python")
    details_of_run = [
        ("method", recipe.method),
        ("recipe sha256", tag("code", recipe.sha256()[:12])),
        ("data", f"{recipe.dataset.name}, {len(found.titles)} classes, {recipe.dataset.image_size} pixels"),
        ("images a class", str(recipe.ipc)),
        ("student", short(recipe.train.student)),
        ("seeds", ", ".join(str(recipe.seed + number) for number in range(recipe.train.seeds))),
        ("made", found.dates or "nothing yet"),
        *([("imported from", found.origin["path"])] if found.origin else []),
        ("CPU or GPU", device),
        *([("commit", tag("code", versions["commit"]))] if "commit" in versions else []),
        ("data path", tag("code", str(found.environment.get("data") or "none: it comes with a package"))),
        ("versions", ", ".join(f"{name} {versions[name]}" for name in packages if name in versions)),
    ]
    return tag(
        "header",
        tag("p", "fastcondense report", class_="over"),
        tag("h1", recipe.name),
        tag("p", _summary(found), class_="lead"),
        _stages(found),
        facts(details_of_run),
        _teachers(found),
        _commands(found),
        details("The whole recipe", tag("pre", recipe.to_toml())),
    )


def _commands(found: Findings) -> Html:
    """What was typed: the first command, and all others on demand."""
    if not found.commands:
        return join([])
    first, *others = found.commands
    parts = [tag("p", tag("code", first), class_="note")]
    if others:
        parts.append(details(f"{len(others)} more commands", tag("pre", "\n".join(others))))
    return join(parts)


def _summary(found: Findings) -> str:
    """What came out, in a sentence or two."""
    recipe, result = found.run.recipe, found.result
    if not result:
        return (
            f"{found.num_finished} of {found.num_jobs} jobs are finished: {found.num_images} images of "
            f"{len(found.titles) * recipe.ipc}. There are no scores yet."
        )
    mine = result["top1_last"]["mean"]
    text = (
        f"Trained on {result['ipc']} condensed {'image' if result['ipc'] == 1 else 'images'} a class, "
        f"{short(result['student'])} names {mine:.1f} % of {result['test_images']} test images."
    )
    for arm, words in (("random_soft", "with the same soft labels"), ("random_hard", "with hard labels")):
        if arm in result["baselines"]:
            other = result["baselines"][arm]["top1_last"]["mean"]
            points = f"{abs(mine - other):.1f}"
            place = "level with" if points == "0.0" else f"{points} points {'above' if mine > other else 'below'}"
            return f"{text} That is {place} random real images {words} ({other:.1f} %)."
    return text


def _stages(found: Findings) -> Html:
    """The list of the stages, and how far each is."""
    recipe = found.run.recipe
    trained, wanted = sum(len(some) for some in found.students.values()), recipe.train.seeds * len(found.students)
    progress = {
        "squeeze": (len(found.teachers), len(recipe.squeeze.teachers), "teacher"),
        "recover": (found.num_finished, found.num_jobs, "job"),
        "relabel": (int(found.replay is not None), 1, ""),
        "train": (trained, wanted, "student"),
        "evaluate": (int(bool(found.result)), 1, ""),
    }
    items = []
    for stage, (count, of, noun) in progress.items():
        state = "done" if count == of else "partly" if count else "open"
        words = "finished" if count == of else counted(count, of, noun) if count else "not run"
        words = words if of else "not needed"
        if stage == "evaluate" and found.has_other_scores:
            state, words = "partly", "with other settings"
        items.append(tag("li", tag("b", stage), " ", words, class_=state))
    return tag("ol", *items, class_="stages")


def _teachers(found: Findings) -> Html:
    if not found.teachers:
        return join([])
    rows = [
        (short(t.name), tag("code", t.sha256[:12]), f"{t.top1:.1f}", bytes_in_words(t.bytes)) for t in found.teachers
    ]
    return table(("teacher", "weights' sha256", "top-1, %", "bytes"), rows, num_text=2)
