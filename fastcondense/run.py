"""A run: a recipe, a folder that holds all it makes, the real data, a device and a log."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import datasets
from .data.datasets import RealData, Split
from .data.jobs import kept_batch_size, makes_the_same, with_batch_size
from .data.real import EvaluationImages, Normalization, square_batches, squares
from .data.sources import choose, decoder_of, skipped
from .data.splits import by_class, check_classes
from .devices import fastest_arithmetic, versions
from .files import first_difference, tree_sha256, write_atomic, write_json
from .loaders.reading import read_file
from .log import Log
from .recipe.evaluation import made_otherwise, remembered
from .recipe.precision import PARTS, precisions, settled
from .recipe.recipe import SQUEEZE_PARTS, Recipe, own_recipe
from .recipe.train import check_fewer
from .records import Environment, MadeFrom, check_names, read_checked, read_manifest
from .rng import Stream
from .tracking import open_trackers
from .user_functions import is_own, source_sha256
from .workers.distributed import rank
from .workers.work import Items, draw

_DATA = "data.json"
"""Name of the file that tells a run's real images from others."""


@dataclass
class Run:
    """A run: its folder and what every stage needs. Nothing is read or written before `open`."""

    recipe: Recipe
    out: Path
    data: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log: Log = field(default_factory=Log)
    track: Sequence[str] = ()
    """Trackers that `open` opens: tensorboard, wandb (tracking.py)."""
    is_mixed: bool = False
    """Whether images may be added to those that other versions of torch, timm or fastcondense have made."""
    command: str = ""
    """What the launch was started with, as a person would type it."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What stages have read in this process and will ask for again, by name."""
    _skipped: set[str] = field(default_factory=set)

    def check(self) -> None:
        """Raises ValueError for a recipe or data that cannot be used, before anything is written."""
        self.recipe.check()
        student = self.recipe.train.student  # flags and recipes come together one by one: known only now
        if self.recipe.train.frozen and student not in self.recipe.squeeze.teachers:
            raise ValueError(f"train.frozen needs a train.student among squeeze.teachers, got {student!r}")
        check_names(self.real.classes, f"the classes of {self.data}")
        for name, count in (
            ("labels.top_k", self.recipe.labels.top_k),
            ("train.label_classes", self.recipe.train.label_classes),
        ):
            check_fewer(name, count, len(self.real.classes))
        if self.recipe.recover.batch_size == 0:
            as_begun = self._settled(begun) if (begun := self._begun()) is not None else self.recipe
            self.recipe = with_batch_size(self.recipe, kept_batch_size(self.out, as_begun))
        self._check_place()
        self._check_data()
        self._check_images()
        needed = [name for name in self.recipe.evaluate.baselines if not (name.startswith("full") or is_own(name))]
        if needed:
            self.real.check_counts(self.recipe.ipc, f"baseline {needed[0]} at ipc {self.recipe.ipc}")
        self.real.check_counts(max(1, self.recipe.squeeze.gate_images), "the teacher gate (squeeze.gate_images)")

    def _check_place(self) -> None:
        """Raises ValueError if the run's folder would be taken for a class of its data, or for images of one."""
        for split in (self.real.train, self.real.test):
            is_ours = split.files and not is_own(self.recipe.dataset.name)  # else files may lie anywhere
            if is_ours and self.out.resolve().is_relative_to(split.files.root.resolve()):
                raise ValueError(
                    f"{self.out} lies in {split.files.root}, whose folders are the classes: choose another --out"
                )

    def _check_data(self) -> None:
        """Raises ValueError if the run was begun with other real images."""
        path = self.out / _DATA
        if path.exists() and self._has_made():
            kept, now = read_checked(path, MadeFrom), self.real.about()
            was = kept["images"]
            for part, before, found in (("train", was["train"], now["train"]), ("test", was["test"], now["test"])):
                if not (difference := first_difference(before, found, part)):
                    continue
                if before["images"] == found["images"]:
                    difference = f"as many images of {part}, but other files or labels"
                raise ValueError(
                    f"{self.out} was made from {kept['path'] or kept['name']}, and {self.data or self.real.name} is "
                    f"other data ({difference}); choose another --out, or the first --data"
                )

    def _check_images(self) -> None:
        """Raises ValueError if the images that are there were made by other settings than the launch's."""
        path = self.out / "condensed" / "manifest.json"
        if not self._has_images() or not path.exists():
            return
        manifest = read_manifest(path)
        check_classes(manifest["classes"], self.real.classes, path.parent, self.data or self.real.name)
        if difference := made_otherwise(manifest["recipe"], self._settled(self._begun())):
            raise ValueError(
                f"{path.parent} holds images of another recipe ({difference}); choose another --out, or delete that "
                "folder"
            )

    def _has_images(self) -> bool:
        return any(self.out.glob("condensed/shard-*"))

    def _has_made(self) -> bool:
        """Whether anything is there that was made from real images."""
        return self._has_images() or any(self.out.glob("teachers/*/weights.safetensors"))

    def open(self, *, is_helper: bool = False) -> None:
        """Makes the run's folder with its recipe, environment and log.

        is_helper: another launch works in the folder already, and this one has a log of its own beside.
        """
        loader, reason = choose(self.real.train, self.recipe.dataset, self.device)
        before, now = self._loader_before(), (loader, decoder_of(loader))
        self.out.mkdir(parents=True, exist_ok=True)
        said = self._settle_precision(is_helper)
        if rank() == 0 and not ((self.out / _DATA).exists() and self._has_made()):
            where = str(self.data.resolve()) if self.data else None
            write_json(self.out / _DATA, {"name": self.real.name, "path": where, "images": self.real.about()})
        if rank() == 0:
            settings = self.recipe.parts()
            self.log.trackers = open_trackers(self.track, self.out, self.recipe.name, settings)
        if not rank() and not (self.out / "recipe.toml").exists():
            self.record()
        elif not rank() and not (self.out / "environment.json").exists():  # it was killed before, or is of a bundle
            self._record_environment()
        helper = f"-{socket.gethostname()}-{os.getpid()}" if is_helper else ""
        self.log.write_to(self.out / (f"log-{rank()}{helper}.jsonl" if rank() or is_helper else "log.jsonl"))
        self.log.say(f"loader: {_named(*now)}; {reason}")
        if before not in (None, now):
            self.log.say(f"loader: before, this run used {_named(*before)}; its pixels may differ by rounding")
        if said:
            self.log.say(f"precision: {said}")
        for text in (*self.real.said, *self.real.untested()):
            self.log.say(f"data: {text}")
        settings = {"recipe": self.recipe.name, "sha256": self.recipe.sha256(), "command": self.command}
        self.log.event("start", **settings, versions=versions())

    def own_recipe(self) -> Recipe:
        """The recipe of the run: what its images are made with, and the labels, students and scores that it was begun
        with, whatever the settings of this launch are.
        """
        if (own := self._begun()) is None:
            return self.recipe
        own = settled(own, *fastest_arithmetic(self.device)[:2], self.recipe)
        return remembered(self.recipe, own) if self._has_images() or makes_the_same(own, self.recipe) else self.recipe

    def _begun(self) -> Recipe | None:
        """The recipe that the run was begun with."""
        path = self.out / "recipe.toml"
        return own_recipe(path) if path.exists() else None

    def _settled(self, begun: Recipe | None) -> Recipe:
        native, single, _ = fastest_arithmetic(self.device)
        return settled(self.recipe, native, single, begun)

    def _settle_precision(self, is_helper: bool) -> str:
        """Puts what the run computes in in the place of "auto", and says it in words.

        One process of all that begin the run chooses and writes it down; the others find it there. Raises ValueError
        for a helper that was asked for another precision than the run has.
        """

        def is_settled(_: int = 0) -> bool:
            begun = self._begun()
            return begun is not None and "auto" not in precisions(begun).values()

        asked, was_settled = precisions(self.recipe), is_settled()
        if "auto" in asked.values():
            for _ in draw(Items("precision", self.out, [0], is_settled)):
                self.recipe = self._settled(self._begun())
                self.record()
            self.recipe = self._settled(self._begun())
        now, first = precisions(self.recipe), precisions(self._begun() or self.recipe)
        if is_helper and (other := [part for part in PARTS if now[part] != first[part]]):
            raise ValueError(
                f"another launch works on {self.out} with {other[0]}.precision {first[other[0]]}, not "
                f"{now[other[0]]}; wait for it, or choose another --out"
            )
        chosen = ", ".join(f"{part} {now[part]}" for part in now if asked[part] == "auto" and "." not in part)
        why = "as the run was begun" if was_settled else f"for {fastest_arithmetic(self.device)[2]}"
        return f"{chosen}, {why}" if chosen else ""

    def record(self) -> None:
        """Writes environment.json and recipe.toml; a recipe that a stage refuses must not replace what is there."""
        self._record_environment()
        path, text = self.out / "recipe.toml", self.own_recipe().to_toml().encode()
        if not path.exists() or read_file(path) != text:
            write_atomic(path, text)  # last: by it a run's folder is known

    def _record_environment(self) -> None:
        loader, _ = choose(self.real.train, self.recipe.dataset, self.device)
        data = str(self.data.resolve()) if self.data else None
        where = {"device": str(self.device), "loader": loader, "decoder": decoder_of(loader), "data": data}
        write_json(self.out / "environment.json", versions() | where)

    def _loader_before(self) -> tuple[str, str | None] | None:
        """The loader and decoder of environment.json, if there is one that names them."""
        path = self.out / "environment.json"
        kept = read_checked(path, Environment) if path.is_file() else Environment()
        return (kept["loader"], kept.get("decoder")) if "loader" in kept else None

    def identity(self, stage: str) -> dict[str, Any]:
        """The settings that decide what `stage` ("squeeze" or "recover") makes, and the files of functions in them.

        Raises ValueError if there is no such function.
        """
        parts = self.recipe.parts(*{"squeeze": SQUEEZE_PARTS, "recover": self.recipe.recover_parts()}[stage])
        recover = self.recipe.recover
        if stage == "recover" and recover.loss:
            parts["loss_sha256"] = source_sha256(recover.loss, "recover.loss")
        if stage == "recover" and is_own(recover.initial.kind):
            parts["initial_sha256"] = source_sha256(recover.initial.kind, "recover.initial.kind")
        return parts

    def folder_of(self, kind: str, **decided_by: object) -> Path:
        """The folder of what is found in the training images, class by class: named after all that decides it."""
        of_data = {"dataset": self.recipe.parts("dataset"), "classes": self.real.classes, "images": self.real.about()}
        return self.out / f"{kind}-{tree_sha256(of_data | decided_by)[:8]}"

    @cached_property
    def real(self) -> RealData:
        """The real images. Raises ValueError as `datasets.load`, and for those of one class."""
        real = datasets.load(self.recipe.dataset, self.data)
        if len(real.classes) < 2:
            raise ValueError(f"{self.data or real.name} has one class, {real.classes[0]!r}: two or more are needed")
        return real

    @cached_property
    def normalize(self) -> Normalization:
        return Normalization.of(self.recipe.dataset, self.device)

    @cached_property
    def test_images(self) -> EvaluationImages:
        """The test split as the evaluation transform sees it."""
        return EvaluationImages(self.real.test, self.recipe.dataset, self.device)

    def real_images(self, count: int, purpose: str, seed: int) -> tuple[Tensor, Tensor]:
        """The images of `real_ids`, uint8 [classes * count, 3, S, S], and int64 labels."""
        taken = self.real.train.take(self.real_ids(count, purpose, seed))
        return squares(taken, self.recipe.dataset, self.device)[0], torch.from_numpy(taken.labels)

    def real_ids(self, count: int, purpose: str, seed: int) -> np.ndarray:
        """`count` random real training samples a class, by class, int64 [classes * count]: `readable` ones."""
        split = self.real.train
        order = Stream(seed, purpose).permutation(len(split))
        while True:
            chosen = [ids[:count] for ids in by_class(order, split.labels, len(self.real.classes))]
            ids = np.concatenate(chosen)
            if len(ids) < count * len(chosen):
                poorest = min(range(len(chosen)), key=lambda label: len(chosen[label]))
                what = {"squeeze/gate": "the teacher gate (squeeze.gate_images)"}.get(purpose, purpose)
                raise ValueError(
                    f"{what} needs {count} training images a class; of class {self.real.classes[poorest]!r} "
                    f"{len(chosen[poorest])} can be read"
                )
            kept = self.readable(ids)
            if len(kept) == len(ids):
                return ids
            order = order[~np.isin(order, np.setdiff1d(ids, kept))]

    def readable(self, ids: np.ndarray) -> np.ndarray:
        """Those of some training samples that can be read, in their order; with dataset.on_error "raise" all of them:
        nothing is read before it is shown."""
        if self.recipe.dataset.on_error != "skip":
            return ids
        taken = self.real.train.take(ids)
        read = [some.cpu().numpy() for _, some in square_batches(taken, self.recipe.dataset, self.device)]
        self.report_skipped(taken)
        return ids[np.concatenate(read)] if read else ids[:0]

    def report_epoch(self, what: str, entry: dict[str, float], epochs: int) -> None:
        """One line for an evaluated epoch, and for every file that was skipped."""
        self.report_skipped(self.real.train, self.real.test)
        self.log.event("epoch", what=what, **entry)
        text = f"{what}: epoch {entry['epoch']:.0f} of {epochs}, loss {entry['loss']:.4f}, top-1 {entry['top1']:.1f} %"
        self.log.tell(text)

    def report_skipped(self, *splits: Split) -> None:
        """Says which files were left out (dataset.on_error "skip"), each once."""
        for split in splits:
            for reason in skipped(split).values():
                if reason not in self._skipped:
                    self._skipped.add(reason)
                    self.log.say(f"skipped: {reason}")


def _named(loader: str, decoder: str | None) -> str:
    return f"{loader} ({decoder})" if decoder else loader
