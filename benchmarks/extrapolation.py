"""Hours that a recipe would take on all of ImageNet-1k, from its steps as they are measured on this device.

Measured: one recover step of a job, and one update of a student with labels on the fly. Computed: a recipe's jobs times
its iterations, and its epochs times its images, at the measured time an image. Where a step is measured with fewer
images than the recipe's, or smaller ones, time is taken to grow with the number of pixels. Left out, and said so: the
teachers (published weights), reading real images, evaluation, baselines, and the start of the processes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from labels import Student
from measure import DEVICE, interleaved
from session import Session
from steps import OurStep

from fastcondense.data.jobs import jobs
from fastcondense.networks import zoo
from fastcondense.networks.precision import arithmetic, network_dtype
from fastcondense.recipe import recipe as recipes
from fastcondense.recipe.recipe import Recipe
from fastcondense.teachers.teacher import Teacher

CLASSES = 1000
IPCS = (10, 50, 200)
LEFT_OUT = "teachers, reading real images, evaluation, baselines, start of processes"


@dataclass(frozen=True)
class Steps:
    """Milliseconds of a recover step of `images` images and of a student's step of `batch_size`, of `size` pixels."""

    recover_ms: float
    images: int
    student_ms: float
    batch_size: int
    size: int


def hours(recipe: Recipe, steps: Steps) -> dict[str, float]:
    """Of recover, and of one student on the condensed images."""
    pixels = (recipe.dataset.image_size / steps.size) ** 2
    images = sum(job.num_images for job in jobs(recipe, CLASSES))
    recover_ms = recipe.recover.iterations * images * steps.recover_ms / steps.images
    views = recipe.train.epochs * CLASSES * recipe.ipc
    train_ms = views * steps.student_ms / steps.batch_size
    return {"recover": pixels * recover_ms / 3.6e6, "train": pixels * train_ms / 3.6e6}


def why_not(recipe: Recipe) -> str | None:
    """What of a recipe is not in these steps, or None."""
    recover, labels = recipe.recover, recipe.labels
    network = recipe.train.student
    if recover.objective != "statistics" or not recover.iterations:
        return "recover is no optimisation against statistics"
    if recover.statistics != ("bn",) or recover.targets != ("global",):
        return "its targets need a pass over real images"
    if recipe.squeeze.teachers != (network,) or recover.stages or recover.flatness_weight:
        return "its teachers are not the student's network alone, or its steps differ from each other"
    if labels.source != "teachers" or labels.pool < 1 or labels.is_in_training:
        return "its labels are not those of teachers in evaluation mode"
    return None


def measured(recipe: Recipe, options: argparse.Namespace) -> Steps:
    """The recipe's two steps on this device, with random weights and images."""
    is_gpu = DEVICE.type == "cuda"
    images = options.images or (recipe.recover.batch_size if is_gpu else 4)
    batch_size = options.batch_size or (recipe.train.batch_size if is_gpu else 8)
    size = options.size or recipe.dataset.image_size
    dataset = replace(recipe.dataset, image_size=size, resize=size)
    precision = options.precision or recipe.recover.precision
    recover = replace(recipe.recover, batch_size=images, precision=precision)
    recipe = replace(recipe, dataset=dataset, recover=recover)
    net, names = zoo.build(recipe.train.student, CLASSES), [str(k) for k in range(CLASSES)]
    teacher = Teacher.of(net, "benchmark", names, range(CLASSES), dataset, recover.statistics, recover.patch_size)
    teacher = teacher.to(DEVICE).cast(network_dtype(precision))
    step = OurStep(recipe, jobs(recipe, CLASSES)[0], [teacher], DEVICE).captured()
    recover_ms = interleaved({"recover": step}, max(2, options.repeats), 1)["recover"].median
    of_student = argparse.Namespace(
        network=recipe.train.student,
        images=2 * batch_size,
        size=size,
        classes=CLASSES,
        batch_size=batch_size,
        precision=options.precision or recipe.train.precision,
        label_precision=options.precision or recipe.labels.precision,
    )
    student = Student(of_student)
    update, item = student.step(student.on_the_fly), next(student.views.tables(0, student.train))
    with arithmetic(student.train.precision):
        student_ms = interleaved({"student": lambda: update(item)}, max(2, options.repeats), 1)["student"].median
    return Steps(recover_ms, images, student_ms, batch_size, size)


def extrapolate(session: Session, name: str, options: argparse.Namespace) -> None:
    """Prints and stores the hours at every IPC, with the inputs; or says why not."""
    recipe = recipes.load(f"{name}-ipc{options.ipc[0]}") if options.ipc else None
    reason = "no --ipc" if recipe is None else why_not(recipe)
    if recipe is None or reason is not None:
        session.skip(f"extrapolation of {name}", reason or "")
        return
    steps = measured(recipe, options)
    print(
        f"EXTRAPOLATED, not run: {name}, from a recover step of {steps.images} images of {steps.size} pixels in "
        f"{steps.recover_ms:.1f} ms and a student's step of {steps.batch_size} in {steps.student_ms:.1f} ms; "
        f"left out: {LEFT_OUT}"
    )
    for ipc in options.ipc:
        whole = recipes.load(f"{name}-ipc{ipc}")
        found = hours(whole, steps)
        image_bytes = CLASSES * ipc * 3 * whole.dataset.image_size**2
        print(f"  IPC {ipc:4}: recover {found['recover']:10.2f} h, one student {found['train']:10.2f} h, on one device")
        session.add(
            f"{whole.name} extrapolated",
            "ours",
            shapes=[(steps.images, 3, steps.size, steps.size), (steps.batch_size, 3, steps.size, steps.size)],
            dtype=options.precision or whole.recover.precision,
            num_bytes=image_bytes,
            recipe=whole.name,
            ipc=ipc,
            extrapolated=True,
            device_hours={stage: float(f"{value:.4g}") for stage, value in found.items()},
            inputs={
                "recover_step_ms": float(f"{steps.recover_ms:.4g}"),
                "recover_images": steps.images,
                "student_step_ms": float(f"{steps.student_ms:.4g}"),
                "student_batch": steps.batch_size,
                "size": steps.size,
                "iterations": whole.recover.iterations,
                "jobs": len(jobs(whole, CLASSES)),
                "epochs": whole.train.epochs,
            },
            left_out=LEFT_OUT,
        )
