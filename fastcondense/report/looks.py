"""The report's sections on the images: what they look like, how they formed, their losses, what a teacher sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..recover.recording import shrunk
from . import plots
from .diversity import diversity
from .embedding import ImageFeatures, embed
from .findings import Findings
from .html import Html, details, figure, image, join, legend, not_run, note, section, sentence, short, table, tag
from .images import LOSSLESS, THUMBNAIL, animation, thumbnail
from .plots import COLORS

SLOTS = 10
"""Images of a class that the grid shows."""
FORMING = 10
"""Classes whose images are shown as they form, and that are embedded in the plane: as many as there are colours."""
_LOSSES = ("total", "cross-entropy", "matching, weighted")


def images(found: Findings) -> Html:
    """A row a class with the images of its first slots."""
    recipe, labels = found.run.recipe, sorted({label for label, _ in found.images})
    if not labels:
        return section("images", "Images", not_run("No image is finished.", "fastcondense recover RUN"))
    rows = []
    for label in labels:
        slots = sorted(slot for other, slot in found.images if other == label and slot < SLOTS)
        title = found.titles[label]
        tiles = [image(thumbnail(found.images[label, slot]), f"{title}, image {slot}") for slot in slots]
        real = [image(thumbnail(one), f"{title}, real") for one in found.real[label][: len(slots)]]
        both = tag("div", tag("div", *tiles, class_="tiles"), tag("div", *real, class_="tiles real"))
        rows.append(tag("div", tag("h3", title), both, class_="row"))
    size, left_out = recipe.dataset.image_size, len(found.titles) - len(labels)
    parts = [f"{min(SLOTS, recipe.ipc)} of {recipe.ipc} images a class, and below them, framed, random real ones"]
    if left_out:
        parts.append(f"{len(labels)} of {len(found.titles)} classes; {left_out} classes are not shown")
    if size > THUMBNAIL:
        parts.append(f"reduced from {size} to {THUMBNAIL} pixels, with loss; the set itself is lossless")
    else:
        parts.append(
            f"{size} pixels, enlarged" + (", with loss; the set itself is lossless" if size > LOSSLESS else "")
        )
    widths = f"--slots:{min(SLOTS, recipe.ipc)};--few:{min(5, recipe.ipc)}"
    return section(
        "images", "Images", note(sentence(parts)), tag("div", *rows, class_=f"rows {_grid(size)}", style=widths)
    )


def forming(found: Findings) -> Html:
    """The first image of some classes over the iterations, moving and side by side."""
    title, snapshots = "Images forming", found.snapshots
    if not found.images:
        return section("forming", title, not_run("No image is finished.", "fastcondense recover RUN"))
    if snapshots is None:
        return section(
            "forming", title, note("Nothing was kept on the way (recover.snapshots, or recover.iterations 0).")
        )
    last = {label: found.images[label, 0] for label in snapshots.classes.tolist() if (label, 0) in found.images}
    columns = [k for k, label in enumerate(snapshots.classes.tolist()) if label in last][:FORMING]
    labels = [int(snapshots.classes[k]) for k in columns]
    side = snapshots.images.shape[-1]
    frames = [
        *snapshots.images[:, columns],
        shrunk(torch.stack([last[label] for label in labels]).float(), side).round().byte(),
    ]
    moments = [*snapshots.iterations.tolist(), found.run.recipe.recover.iterations]
    names, captions = [found.titles[label] for label in labels], [f"iteration {moment}" for moment in moments]
    moving, still, (width, height) = animation(frames, min(2, len(labels)), names, captions)
    picture = Html(
        f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{still}">'
        f'<img class="forming" src="{moving}" width="{width}" height="{height}" '
        f'alt="the first images of {len(labels)} classes while they are optimised"></picture>'
    )
    cells = [tag("span"), *(tag("span", str(moment), class_="moment") for moment in moments)]
    for row, label in enumerate(labels):
        cells.append(tag("span", found.titles[label], class_="name"))
        for frame, moment in zip(frames, moments, strict=True):
            cells.append(image(thumbnail(frame[row]), f"{found.titles[label]} at iteration {moment}"))
    strips = tag("div", *cells, class_=f"strips {_grid(side)}", style=f"--n:{len(moments)}")
    parts = [f"the first image of {len(labels)} classes, by iterations; the last column is what the set holds"]
    if len(found.titles) > len(labels):
        parts.append(f"{len(found.titles) - len(labels)} classes are not shown")
    if side < found.run.recipe.dataset.image_size:
        parts.append(f"reduced to {side} pixels")
    return section("forming", title, note(sentence(parts)), tag("div", picture, strips, class_="side"))


def losses(found: Findings) -> Html:
    """Total, cross-entropy and matching over the iterations; then the matching of each layer, a table a teacher."""
    title = "Losses"
    if found.losses is None:
        if found.num_finished:
            return section("losses", title, note("Nothing was optimised (recover.iterations 0)."))
        return section("losses", title, not_run("Nothing was optimised yet.", "fastcondense recover RUN"))
    band = found.losses
    has_loss = (band.low != 0).any(0) | (band.high != 0).any(0)
    curves = [figure(plots.curve(band, k, name), "") for k, name in enumerate(_LOSSES) if has_loss[k]]
    jobs = f"{band.num_jobs} job{'s' if band.num_jobs > 1 else ''}"
    parts = [note(f"Mean over {jobs} and the range between them."), tag("div", *curves, class_="thirds")]
    if not found.layers:
        return section("losses", title, *parts, note("No layer's matching loss was kept."))
    for rows in found.layers:
        seconds = ", each in its own iterations" if len(found.layers) > 1 else ""
        caption = (
            f"{short(rows.teacher)}: what each of {len(rows.names)} layers adds to the matching loss, weighted, "
            f"in {len(rows.iterations)} iterations; mean over jobs{seconds}. Layers go from the input downwards."
        )
        heat = tag("div", plots.layers(rows), class_="scroll wide")
        parts += [tag("h3", "Layer by layer"), figure(heat, caption), _heaviest(rows.names, rows.losses.numpy())]
    return section("losses", title, *parts)


def _heaviest(names: Sequence[str], values: np.ndarray) -> Html:
    """The layers that the last iteration's loss comes from, most of it first."""
    first, last = values[0], values[-1]
    total = last.sum(dtype=np.float64)
    rows = [
        (names[k], f"{first[k]:.3g}", f"{last[k]:.3g}", f"{100 * last[k] / total:.1f} %" if total else "0")
        for k in np.argsort(-last, kind="stable")
    ]
    head = ("layer", "first", "last", "share of last")
    return details(f"All {len(names)} layers in numbers", table(head, rows))


def features(found: Findings, seen: ImageFeatures | None) -> Html:
    """The plane of the features of condensed and real images, and how much images of a class differ."""
    title = "What a teacher sees"
    if seen is None:
        if not found.run.recipe.squeeze.teachers:
            return section("features", title, note("The run has no teacher."))
        missing = "no image is finished" if found.teachers else "no teacher is finished"
        return section("features", title, not_run(f"Nothing to embed: {missing}.", "fastcondense recover RUN"))
    teacher = short(found.teachers[0].name)
    what = f"what {seen.layer}, the last layer of {teacher}, reads" if seen.layer else f"the logits of {teacher}"
    return section(
        "features",
        title,
        note(f"Features are {what}."),
        tag("div", _plane(found, seen), _spread(found, seen), class_="halves"),
    )


def _plane(found: Findings, seen: ImageFeatures) -> Html:
    labels = list(seen.condensed)[:FORMING]
    parts = [
        (label, is_condensed, of[label])
        for is_condensed, of in ((False, seen.real), (True, seen.condensed))
        for label in labels
    ]
    owners = np.concatenate([np.full(len(part), label) for label, _, part in parts])
    is_condensed = np.concatenate([np.full(len(part), kind) for _, kind, part in parts])
    places = embed(np.concatenate([part for *_, part in parts]), found.run.recipe.seed)
    if places is None:
        return tag("figure", tag("h3", "t-SNE"), note("Too few images, or all features are the same."))
    colors = {found.titles[label]: COLORS[k] for k, label in enumerate(labels)}
    index = {label: k for k, label in enumerate(labels)}
    plot = plots.scatter(places, [index[int(owner)] for owner in owners], is_condensed)
    num_real, num_train = int((~is_condensed).sum()), int(np.isin(found.run.real.train.labels, labels).sum())
    left_out = len(found.titles) - len(labels)
    caption = (
        f"t-SNE of {int(is_condensed.sum())} condensed images (ringed) and {num_real} of {num_train} real training "
        f"images, drawn by the run's seed."
        + (f" {left_out} of {len(found.titles)} classes are left out." if left_out else "")
    )
    return figure(join([tag("h3", "Real and condensed"), plot, legend(colors)]), caption)


def _spread(found: Findings, seen: ImageFeatures) -> Html:
    """Diversity of each class beside that of as many real images."""
    head = tag("h3", "Diversity within classes")
    rows = {}
    for label, mine in seen.condensed.items():
        count = min(len(mine), len(seen.real[label]))
        rows[label] = count, diversity(mine[:count]), diversity(seen.real[label][:count])
    rows = {label: row for label, row in rows.items() if not math.isnan(row[1])}
    if not rows:
        return tag("figure", head, note("It needs two images a class or more."))
    counts, condensed, real = ([row[k] for row in rows.values()] for k in range(3))
    plot = plots.dots([found.titles[label] for label in rows], [(condensed, 0), (real, 1)], "mean cosine distance")
    many = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    caption = (
        f"Mean cosine distance between the features of two images of a class: {np.mean(condensed):.3f} for {many} "
        f"condensed images a class, {np.mean(real):.3f} for as many random real ones."
    )
    left_out = len(found.titles) - len(rows)
    caption += f" {left_out} of {len(found.titles)} classes are left out." if left_out else ""
    return figure(join([head, plot, legend({"condensed": COLORS[0], "random real": COLORS[1]})]), caption)


def _grid(size: int) -> str:
    """The CSS class that says how images of that many pixels are enlarged."""
    return "pixels" if size <= LOSSLESS else "photos"
