"""The stage that writes what replays a run's labels, instead of labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.real import Normalization
from ..files import write_json
from ..recipe.evaluation import label_parts
from ..recipe.recipe import Recipe
from ..records import Replay, read_manifest
from ..recover.formation import shown
from ..recover.stage import condensed_set
from ..run import Run
from ..sets.condensed import CondensedSet
from ..teachers.kept import labelling_teachers
from ..teachers.teacher import Teacher
from ..user_functions import is_own, source_sha256
from .fingerprint import SampledViews, fingerprint, sample_views
from .labels import label_source
from .resident import place
from .stored_labels import store_labels
from .views import ReplayedViews

TRANSFORM = "window of uint8 pixels, bilinear and antialiased in float32, flip, roll, normalisation, mixing; version 1"


def relabel(run: Run) -> Replay:
    """Writes what replays the labels into the manifest, and a fingerprint that tells whether another machine does.

    A set is replayed, bundled and verified with the labels of its run's own recipe: with other settings the manifest
    stays. With labels.source stored, the labels are written too. Returns the replay specification.
    """
    own, teachers, condensed = run.own_recipe(), labelling_teachers(run), condensed_set(run)
    weights = {teacher.name: teacher.sha256 for teacher in teachers}
    replay, path = specification(own, condensed, weights), run.out / "condensed" / "manifest.json"
    if label_parts(own) != label_parts(run.recipe):
        run.log.say("relabel: these are not the labels of the run's own recipe.toml; what replays those stays as it is")
        if run.recipe.labels.source == "stored":
            store_labels(run, condensed, teachers)
        return specification(run.recipe, condensed, weights)
    if run.recipe.needs_no_teacher:
        write_json(path, {**read_manifest(path), "replay": replay, "digests": condensed.digests})
        run.log.say("relabel: labels are the classes; no teacher is asked")
        return replay
    seen = take_sample(run.recipe, condensed, teachers, run.normalize)
    kept = {"replay": replay, "digests": condensed.digests, "fingerprint": fingerprint(seen)}
    write_json(path, {**read_manifest(path), **kept})
    if run.recipe.labels.source == "stored":
        store_labels(run, condensed, teachers)
    agreement = 100 * float((seen.logits.argmax(1) == seen.labels).float().mean())
    entropy = -(seen.logits.softmax(1) * seen.logits.log_softmax(1)).sum(1).mean()
    run.log.say(
        f"relabel: replay needs 0 bytes of labels and {num_bytes(replay)} bytes that tell how; on {len(seen.labels)} "
        f"views the teachers name the image's class in {agreement:.1f} %, mean entropy {float(entropy):.2f} nats"
    )
    return replay


def replay_of(run: Run) -> Replay:
    """What replays the labels of a run's recipe on its condensed images."""
    return specification(run.recipe, condensed_set(run), {one.name: one.sha256 for one in labelling_teachers(run)})


def specification(recipe: Recipe, condensed: CondensedSet, weights: Mapping[str, str]) -> Replay:
    """All that decides the labels of a set, beside its images, the order of its classes and the teachers' weights, of
    which `weights` has the sha256 by name."""
    source = recipe.labels.source
    own: Any = {"source_sha256": source_sha256(source, "labels.source")} if is_own(source) else {}
    return own | {
        "generator": "Philox-4x32-10",
        "seeds": [recipe.seed + number for number in range(recipe.train.seeds)],
        "views": recipe.parts("labels")["labels"],
        "transform": TRANSFORM,
        "mean": list(recipe.dataset.mean),
        "std": list(recipe.dataset.std),
        "epochs": recipe.train.epochs,
        "batch_size": recipe.train.batch_size,
        "ipc": condensed.ipc,
        "images": hashlib.sha256("".join(condensed.digests).encode()).hexdigest(),
        "classes": hashlib.sha256(json.dumps(condensed.classes).encode()).hexdigest(),
        "teachers": dict(weights),
    }


def check_teachers(folder: Path, teachers: Sequence[Teacher]) -> None:
    """Raises ValueError if the condensed set in `folder` was labelled with other weights than the teachers'."""
    replay = read_manifest(folder / "manifest.json").get("replay")
    kept = replay["teachers"] if replay else {}
    for teacher in teachers:
        if teacher.name in kept and teacher.sha256 != kept[teacher.name]:
            raise ValueError(
                f"teacher {teacher.name} has the weights {teacher.sha256[:12]}, but {folder} was labelled with "
                f"{kept[teacher.name][:12]}; relabel again, or give the teacher's weights (squeeze.weights)"
            )


def take_sample(
    recipe: Recipe, condensed: CondensedSet, teachers: Sequence[Teacher], normalize: Normalization
) -> SampledViews:
    """The sampled views of the recipe's first seed, on the device of `normalize`."""
    device = normalize.gain.device
    pixels, labels = shown(recipe, condensed)
    views = ReplayedViews(place(pixels, device), labels.to(device), recipe.labels, normalize, recipe.seed)
    return sample_views(views, label_source(recipe.labels, teachers, len(condensed.classes), recipe.seed), recipe.train)


def num_bytes(tree: Any) -> int:
    """Length of a tree as compact JSON."""
    return len(json.dumps(tree, separators=(",", ":")).encode())
