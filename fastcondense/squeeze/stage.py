"""Squeeze: real data into teachers. Trains them or takes given weights, checks them at the gate, and keeps them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.real import split_batches, training_batches
from ..files import first_difference, read_checkpoint, read_tensors, write_tensors
from ..networks import zoo
from ..networks.encoders import classifier_name, feature_size
from ..networks.fit import fit
from ..networks.score import score
from ..networks.train_step import Batch, synchronised
from ..recipe.recipe import SQUEEZE_PARTS
from ..rng import Stream
from ..run import Run
from ..teachers.kept import rebuild, teacher_path
from ..teachers.teacher import Teacher, check_gate, count_outputs, head_size, load_weights, match_classes, state_dict
from ..workers.distributed import meet, rank, world_size
from ..workers.work import Items
from .probe import read_probe, train_probe
from .self_supervision import pretrain
from .ssl_checkpoints import import_backbone, is_self_supervised


def squeeze(run: Run) -> list[Teacher]:
    """The recipe's teachers on the run's device, each past the gate; finished ones are read from the run's folder.

    All workers of a launch call this. Each teacher is made by one of them, or with squeeze.shared by all together.
    """
    if not run.teachers:
        is_made = all(teacher_path(run.out, architecture).exists() for architecture in run.recipe.squeeze.teachers)
        with contextlib.nullcontext() if is_made else run.cost("squeeze"):
            run.teachers = _squeeze(run)
    return run.teachers


def _squeeze(run: Run) -> list[Teacher]:
    settings = run.recipe.squeeze
    weights = settings.weights * len(settings.teachers) if len(settings.weights) == 1 else settings.weights
    wanted = list(zip(settings.teachers, weights, strict=True))
    paths = [teacher_path(run.out, architecture) for architecture in settings.teachers]
    made: dict[int, Teacher] = {}
    if settings.shared:
        for number, (architecture, source) in enumerate(wanted):
            made[number] = _teacher(run, number, architecture, source)
            meet()
    else:
        work = Items(f"teachers of {run.out}", range(len(wanted)), lambda number: paths[number].exists())
        for number, _ in run.fleet.draw(work):
            made[number] = _teacher(run, number, *wanted[number])
    return [made.get(number) or _teacher(run, number, *wanted[number]) for number in range(len(wanted))]


def _teacher(run: Run, number: int, architecture: str, weights: str) -> Teacher:
    path = teacher_path(run.out, architecture)
    classes = run.real.classes
    identity = run.identity("squeeze") | {"architecture": architecture, "classes": list(classes)}
    if path.exists():
        state, kept = read_tensors(path)
        if difference := first_difference(json.loads(kept["identity"]), identity):
            raise ValueError(
                f"{path} is a teacher of another recipe ({difference}); choose another --out, or delete that file"
            )
        net = rebuild(architecture, state, kept, path)
        run.log.say(f"teacher {architecture}: finished already, {float(kept['top1']):.1f} % top-1 on the test images")
        return _frozen(run, net, architecture, json.loads(kept["outputs"]))

    # Named after its settings, so that an interrupted training never goes on with others.
    checkpoint = path.parent / f"checkpoint-{run.recipe.sha256(*SQUEEZE_PARTS)[:8]}.pt"
    with run.stopwatch() as watch:
        net, outputs = _obtain(run, number, architecture, weights, checkpoint)
        teacher = _frozen(run, net, architecture, outputs)
        if teacher.note is not None:
            run.log.say(
                f"teacher {architecture} cannot be traced ({teacher.note}): its {len(teacher.layers)} BatchNorms are "
                "replaced one by one, without fusing the ReLUs after them"
            )
        gate = _gate(run, teacher)
        top1 = _accuracy(run, teacher)
    metadata = {
        "architecture": architecture,
        "identity": json.dumps(identity),
        "classes": json.dumps(classes),
        "outputs": json.dumps(outputs),
        "num_outputs": str(teacher.num_outputs),
        "sha256": teacher.sha256,
        "top1": f"{top1:.4f}",
        "seconds": f"{watch.seconds:.3f}",
    }
    if rank() == 0 or not run.recipe.squeeze.shared:
        write_tensors(path, net.state_dict(), metadata)
        for finished in (checkpoint, _probe_path(checkpoint)):
            finished.unlink(missing_ok=True)
    run.log.event("teacher", architecture=architecture, top1=top1, gate=gate, seconds=watch.seconds)
    return teacher


def _frozen(run: Run, net: nn.Module, architecture: str, outputs: Sequence[int]) -> Teacher:
    """The network as a teacher with the statistics that recover is going to match, on the run's device."""
    recipe, classes = run.recipe, run.real.classes
    matched = recipe.recover.statistics, recipe.recover.patch_size
    has_unfused = recipe.labels.is_in_training and architecture in (recipe.labels.teachers or recipe.squeeze.teachers)
    return Teacher.of(net, architecture, classes, outputs, recipe.dataset, *matched, has_unfused).to(run.device)


def _obtain(run: Run, number: int, architecture: str, weights: str, checkpoint: Path) -> tuple[nn.Module, list[int]]:
    """A network with its weights, and its output of each class."""
    settings, classes = run.recipe.squeeze, run.real.classes
    names = None
    if settings.classes_file:
        names = Path(settings.classes_file).read_text().split("\n")
        names = [name.strip() for name in names if name.strip()]
    method, is_trained = settings.self_supervision.method, weights == "train"
    probe = next(iter(settings.probe_weights[number:] or settings.probe_weights[:1]), "")
    if is_trained:
        with Stream(run.recipe.seed, "squeeze/init").torch_generator(number):
            net = zoo.build(architecture, len(classes))
        if method == "none":
            return _train(run, net, number, architecture, checkpoint), list(range(len(classes)))
        net, probe = pretrain(run, net, number, architecture, checkpoint), "train"
    elif (
        Path(weights).suffix in (".pt", ".pth", ".tar", ".th", ".ckpt", ".bin", ".safetensors")
        or Path(weights).exists()
    ):
        net = _read(run, architecture, Path(weights), len(names or ()), bool(probe))
    else:
        net = zoo.build(architecture, len(classes), weights)
    if probe == "train":
        net = train_probe(run, net, classifier_name(architecture), number, _probe_path(checkpoint))
        return net, list(range(len(classes)))
    if probe:
        classifier = classifier_name(architecture)
        layer = read_probe(read_checkpoint(Path(probe)), Path(probe), feature_size(net, classifier))
        net.set_submodule(classifier, layer)
    num_outputs = count_outputs(net, run.recipe.dataset.image_size, architecture)
    return net, match_classes(num_outputs, names, classes, architecture)


def _probe_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name.replace("checkpoint", "probe"))


def _read(run: Run, architecture: str, path: Path, num_outputs: int, has_probe: bool) -> nn.Module:
    """The network in a checkpoint file, with so many outputs, or as many as the file says if that is 0.

    A self-supervised backbone gets an untrained classifier, if there is a probe to replace it; else ValueError.
    """
    loaded, classes = read_checkpoint(path), run.real.classes
    state = {} if is_self_supervised(loaded, path) else state_dict(loaded, path)
    small, large = (zoo.build(architecture, count).state_dict() for count in (len(classes), len(classes) + 1))
    size = head_size(state, small, large)
    if size is None:
        classifier = classifier_name(architecture)
        imported = import_backbone(loaded, small, classifier, path)
        run.log.say(imported.report)
        state = imported.state
        if imported.has_classifier:
            size = head_size(state, small, large)
        elif has_probe:
            state |= {name: value for name, value in small.items() if name.startswith(f"{classifier}.")}
        else:
            raise ValueError(
                f"checkpoint {path} has no classifier; name a file of a linear probe in squeeze.probe_weights, or "
                f"train one there. {imported.report}"
            )
    net = zoo.build(architecture, num_outputs or size or len(classes))
    load_weights(net, state, path)
    return net


def _train(run: Run, net: nn.Module, number: int, architecture: str, checkpoint: Path) -> nn.Module:
    recipe = run.recipe
    stream = Stream(recipe.seed, f"squeeze/views/{number}")
    run.log.say(f"squeeze: training {architecture}, {recipe.squeeze.epochs} epochs")

    settings = recipe.squeeze
    mine, world = (rank(), world_size()) if settings.shared else (0, 1)
    sizes = [len(batch) for batch in split_batches(np.arange(len(run.real.train)), settings.batch_size)]

    def batches(epoch: int) -> Iterator[Batch]:
        made = training_batches(
            run.real.train,
            recipe.dataset,
            settings,
            stream,
            epoch,
            settings.batch_size,
            run.device,
            rank=mine,
            world=world,
        )
        for (images, labels), size in zip(made, sizes, strict=False):  # a batch of unreadable files is missing
            yield Batch(images, labels, size if world > 1 else len(images))

    if settings.sync_batch_norm:
        net = synchronised(net, run.device, "squeeze.sync_batch_norm")
    net, _ = fit(
        zoo.channels_last(net, run.device),
        settings,
        batches,
        F.cross_entropy,
        lambda net: score(net, run.test_images, run.normalize, is_shared=settings.shared),
        Stream(recipe.seed, f"squeeze/dropout/{number}"),
        checkpoint,
        lambda entry: run.report_epoch(f"teacher {architecture}", entry, settings.epochs),
        lambda epochs: run.log.track(epochs, f"teacher {architecture}"),
        make=lambda batch: batch,
        is_shared=settings.shared,
    )
    return net.cpu()


def _gate(run: Run, teacher: Teacher) -> float:
    count = run.recipe.squeeze.gate_images
    if count == 0:
        return float("nan")
    pixels, labels = run.real_images(count, "squeeze/gate", run.recipe.seed)
    return check_gate(teacher, pixels, labels, run.recipe.dataset, run.device)


def _accuracy(run: Run, teacher: Teacher) -> float:
    """Says and returns the teacher's top-1 on the test split, in per cent."""
    count = right = right_of_all = 0
    outputs = teacher.outputs.cpu()
    for pixels, labels in run.test_images.batches(128):
        with torch.no_grad():
            logits: Tensor = teacher(run.normalize(pixels))[0].cpu()
        count += len(labels)
        right += int((logits[:, outputs].argmax(1) == labels.cpu()).sum())
        right_of_all += int((logits.argmax(1) == outputs[labels.cpu()]).sum())
    top1, top1_of_all = 100 * right / count, 100 * right_of_all / count
    more = (
        f"; {top1_of_all:.1f} % among all {teacher.num_outputs} outputs" if teacher.num_outputs > len(outputs) else ""
    )
    run.log.say(f"teacher {teacher.name}: {top1:.1f} % top-1 on {count} test images{more}")
    return top1
