"""The stage that writes what replays a run's labels, instead of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .condense import condensed_set
from .files import read_json, write_json
from .labels import TeacherLabels
from .real import split_batches
from .run import Run
from .squeeze import chosen, squeeze
from .stored_labels import store_labels
from .views import ReplayedViews, Span

PROBES = 256


def relabel(run: Run) -> dict[str, Any]:
    """Writes what replays the labels into the manifest, instead of labels: settings, seeds, teachers, a fingerprint.

    The fingerprint is the five largest logits of up to 256 unmixed views of epoch 0, labelled in batches of 64: they
    tell another machine whether it computes the same labels. With labels.source stored, the labels are written too.
    Returns the replay specification.
    """
    teachers, condensed = chosen(squeeze(run), run.recipe.labels.teachers), condensed_set(run)
    pixels, labels = condensed.flat()
    views = ReplayedViews(
        pixels.to(run.device), labels.to(run.device), run.recipe.labels, run.normalize, run.recipe.seed
    )
    ids = views.order_stream.permutation(len(labels), 0)[:PROBES]
    source, parts = TeacherLabels(teachers, run.recipe.labels, run.recipe.seed), []
    for positions in split_batches(np.arange(len(ids)), 64):
        span = Span(0, int(positions[0]), int(positions[-1]) + 1)
        parts.append(source.logits(views.crops(0, ids[positions]), span).mean(0))
    logits = torch.cat(parts).cpu()
    values, indices = logits.topk(min(5, logits.shape[1]), dim=1)
    agreement = 100 * float((indices[:, 0] == labels[torch.from_numpy(ids)]).float().mean())
    recipe = run.recipe
    replay = {
        "generator": "Philox-4x32-10",
        "seeds": [recipe.seed + number for number in range(recipe.train.seeds)],
        "views": recipe.parts("labels")["labels"],
        "epochs": recipe.train.epochs,
        "batch_size": recipe.train.batch_size,
        "ipc": recipe.ipc,
        "crop": "bilinear, antialiased, float32, from uint8",
        "teachers": {teacher.name: teacher.sha256 for teacher in teachers},
        "fingerprint": {
            "ids": ids.tolist(),
            "classes": indices.tolist(),
            "logits": [[round(value, 4) for value in row] for row in values.tolist()],
        },
    }
    path = run.out / "condensed" / "manifest.json"
    write_json(path, read_json(path) | {"replay": replay})
    if recipe.labels.source == "stored":
        store_labels(run, condensed, teachers)
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    run.log.say(
        f"relabel: replay needs 0 bytes of labels; on {len(ids)} views of epoch 0 the teachers name the image's "
        f"class in {agreement:.1f} %, mean entropy {float(entropy):.2f} nats"
    )
    return replay
