"""Squeeze: real data into teachers. Trains them or takes given weights, checks them at the gate, and keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import trust
from ..data.real import split_batches, training_batches
from ..data.sources import decoding_threads
from ..devices import stopwatch
from ..files import read_lines, write_json
from ..loaders.complete import check_files
from ..networks import pretrained, zoo
from ..networks.encoders import classifier_name, feature_size
from ..networks.fit import fit
from ..networks.score import score
from ..networks.train_step import Batch, synchronised
from ..recipe.recipe import SQUEEZE_PARTS
from ..records import CheckedFiles, read_checked
from ..rng import Stream
from ..run import Run
from ..teachers.kept import check_kept, files_sha256, frozen, probe_of, read_teachers, teacher_identity, teacher_path
from ..teachers.teacher import Teacher, count_outputs, match_classes
from ..teachers.weights import checkpoint_of, choose_state, head_size, load_weights
from ..tensor_files import read_checkpoint, write_tensors
from ..workers.cost import cost
from ..workers.distributed import all_sum, rank, world_size
from ..workers.work import Items, draw
from .gate import check_gate
from .probe import read_probe, train_probe
from .self_supervision import pretrain
from .ssl_checkpoints import import_backbone, is_self_supervised


def squeeze(run: Run) -> list[Teacher]:
    """The recipe's teachers on the run's device, each past the gate; those that are missing are made first.

    All workers of a launch call this. Each teacher is made by one of them, or with squeeze.shared by all together.
    """
    if not run.kept.get("teachers"):
        names = run.recipe.squeeze.teachers
        finished = [name for name in names if teacher_path(run.out, name).exists()]
        for name in finished:
            check_kept(run, name)
            run.log.say(f"teacher {name} is finished already")
        is_together = run.recipe.squeeze.shared and world_size() > 1  # else ranks that see it at other times would part
        if len(finished) < len(names) or is_together:
            with cost(run.log, run.device.type, "squeeze"):
                _make(run)
    return read_teachers(run)


def _make(run: Run) -> None:
    """Makes this worker's part of the teachers, and waits for the others'."""
    wanted = list(run.recipe.squeeze.sources.items())
    paths = [teacher_path(run.out, architecture) for architecture, _ in wanted]
    if any(weights == "train" and not path.exists() for (_, weights), path in zip(wanted, paths, strict=True)):
        _check_files(run)
    work = Items("teachers", run.out, range(len(wanted)), lambda number: paths[number].exists())
    for number in _drawn(run, work):
        _teacher(run, number, *wanted[number])


def _drawn(run: Run, work: Items[int]) -> Iterator[int]:
    """Teachers for this process to make; if all of a launch share them, rank 0 draws, and tells the others which."""
    if not run.recipe.squeeze.shared or rank() == 0:
        for number, _ in draw(work):
            if run.recipe.squeeze.shared:
                all_sum(torch.tensor(number + 1, device=run.device))
            yield number
    if run.recipe.squeeze.shared:
        while number := int(all_sum(torch.tensor(0, device=run.device))):  # rank 0 adds what it draws, and then nothing
            yield number - 1


def _check_files(run: Run) -> None:
    """Rank 0 looks at all image files, once a run, so that a damaged one does not end the training that comes to it."""
    files, kept = run.real.train.files + run.real.test.files, run.out / "checked.json"
    if rank() or not files or run.recipe.dataset.on_error == "skip":
        return
    about = run.real.about()
    known = read_checked(kept, CheckedFiles) if kept.exists() else None
    first = known["files"] if known is not None and known["images"] == about else 0
    check_files(
        files[first:],
        decoding_threads(run.recipe.dataset),
        run.log.track,
        lambda count: write_json(kept, {"images": about, "files": first + count}),
    )


def _teacher(run: Run, number: int, architecture: str, weights: str) -> None:
    """Makes a teacher, leads it past the gate, and writes its file."""
    path = teacher_path(run.out, architecture)
    # Named after its settings, so that an interrupted training never goes on with others.
    checkpoint = path.parent / f"checkpoint-{run.recipe.sha256(*SQUEEZE_PARTS)[:8]}.pt"
    with stopwatch(run.device) as watch:
        net, outputs, is_trained = _obtain(run, number, architecture, weights, checkpoint)
        own = pretrained.pixel_statistics(net)
        statistics = None if is_trained else run.recipe.squeeze.pixel_statistics(number, own)
        teacher = frozen(run, net, architecture, outputs, statistics)
        if statistics is not None and teacher.normalization is not None:
            mean, std = statistics
            run.log.say(f"teacher {architecture} sees pixels normalised by mean {mean} and deviation {std}, as its own")
        if teacher.note is not None:
            run.log.say(
                f"teacher {architecture} cannot be traced ({teacher.note}): its {len(teacher.layers)} BatchNorms are "
                "replaced one by one, without fusing the ReLUs after them"
            )
        gate = _gate(run, teacher, is_trained)
        top1 = _accuracy(run, teacher)
    metadata = {
        "architecture": architecture,
        "identity": json.dumps(teacher_identity(run, architecture)),
        "classes": json.dumps(run.real.classes),
        "outputs": json.dumps(outputs),
        "num_outputs": str(teacher.num_outputs),
        "sha256": teacher.sha256,
        "top1": f"{top1:.4f}",
        "seconds": f"{watch.seconds:.3f}",
        "files": json.dumps(files_sha256(run, architecture)),
    }
    if teacher.normalization is not None:
        metadata["pixel_statistics"] = json.dumps(statistics)
    if rank() == 0 or not run.recipe.squeeze.shared:
        if not path.exists():  # else this process was taken for lost, and another has made it meanwhile
            write_tensors(path, net.state_dict(), metadata)
        for finished in (checkpoint, _probe_path(checkpoint)):
            finished.unlink(missing_ok=True)
    run.log.event("teacher", architecture=architecture, top1=top1, gate=gate, seconds=watch.seconds)


def _obtain(
    run: Run, number: int, architecture: str, weights: str, checkpoint: Path
) -> tuple[nn.Module, list[int], bool]:
    """A network with its weights, its output of each class, and whether it learned these classes here."""
    settings, classes = run.recipe.squeeze, run.real.classes
    names = None
    if settings.classes_file:
        names = read_lines(trust.path(settings.classes_file, "squeeze.classes_file"), "squeeze.classes_file")
    method, is_trained = settings.self_supervision.method, weights == "train"
    probe = probe_of(settings, number)
    if is_trained:
        with Stream(run.recipe.seed, "squeeze/init").torch_generator(number):
            net = zoo.trainable(architecture, len(classes), run.recipe.dataset.image_size)
        if method == "none":
            return _train(run, net, number, architecture, checkpoint), list(range(len(classes))), True
        net, probe = pretrain(run, net, number, architecture, checkpoint), "train"
    elif (file := checkpoint_of(weights)) is not None:
        trust.path(weights, "squeeze.weights")
        net = _read(run, architecture, *file, len(names or ()), bool(probe))
    else:
        net = zoo.build(architecture, len(classes), weights)
    if probe == "train":
        net = train_probe(run, net, classifier_name(architecture), number, _probe_path(checkpoint))
        return net, list(range(len(classes))), True
    if probe:
        classifier = classifier_name(architecture)
        path = trust.path(probe, "squeeze.probe_weights")
        layer = read_probe(read_checkpoint(path), path, feature_size(net, classifier))
        net.set_submodule(classifier, layer)
    num_outputs = count_outputs(net, run.recipe.dataset.image_size, architecture)
    return net, match_classes(num_outputs, names, classes, architecture), False


def _probe_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name.replace("checkpoint", "probe"))


def _read(run: Run, architecture: str, path: Path, key: str, num_outputs: int, has_probe: bool) -> nn.Module:
    """The network in a checkpoint file, under `key` if that is not "", with so many outputs, or as many as the file
    says if that is 0.

    A self-supervised backbone gets an untrained classifier, if there is a probe to replace it; else ValueError.
    """
    loaded, classes = read_checkpoint(path), run.real.classes
    if key:
        loaded, _ = choose_state(loaded, path, key)
    state: dict[str, Tensor] = {}
    if not is_self_supervised(loaded, path):
        state, said = choose_state(loaded, path, "")
        if said:
            run.log.say(said)
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


def _gate(run: Run, teacher: Teacher, is_trained: bool) -> float:
    count = run.recipe.squeeze.gate_images
    if count == 0:
        return float("nan")
    pixels, labels = run.real_images(count, "squeeze/gate", run.recipe.seed)
    what = teacher, pixels, labels, run.real.classes, run.recipe.dataset, run.device
    return check_gate(*what, is_trained=is_trained, say=run.log.say)


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
