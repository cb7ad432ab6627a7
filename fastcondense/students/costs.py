"""What stands beside an arm's accuracy: the views that a student sees, and the bytes that its training needs."""

from __future__ import annotations

from ..labels.stored_labels import stored_bytes
from ..labels.views import full_batches
from ..recipe.recipe import Recipe
from ..recover.formation import num_shown
from ..run import Run
from ..teachers.kept import teacher_bytes
from ..user_functions import is_own
from .arms import CONDENSED, Arm
from .frozen import REAL_VIEWS


def views_an_epoch(recipe: Recipe, num_classes: int) -> int:
    """Views that a student of condensed images is trained on in an epoch."""
    return _views(recipe, num_shown(recipe, num_classes))


def _views(recipe: Recipe, count: int) -> int:
    """Views of `count` images in an epoch."""
    batch = recipe.train.batch_size
    return count if recipe.labels.pool == 1 else full_batches(count, batch) * min(batch, count)


def views_an_epoch_of(run: Run, arm: Arm) -> int:
    """The same of an arm: all real images with hard labels are seen once an epoch. A frozen student's layer is shown
    the features of all views in each.
    """
    train, num_classes = run.recipe.train, len(run.real.classes)
    if arm.images == "full" and arm.labels == "hard":
        return len(run.real.train) * (REAL_VIEWS if train.frozen else 1)
    is_as_many = arm.images in ("condensed", "full")  # tiles are more than images; other real ones are whole
    count = num_shown(run.recipe, num_classes) if is_as_many else num_classes * run.recipe.shown_ipc
    return _views(run.recipe, count) * (train.frozen_views if train.frozen else 1)


def student_views(run: Run, arm: Arm) -> int:
    """Views that a student of an arm sees in all its epochs."""
    recipe, epochs = run.recipe, run.recipe.train.epochs
    if arm.images == "full" and arm.labels == "hard":
        epochs = recipe.evaluate.full_epochs or (recipe.train if recipe.train.frozen else recipe.squeeze).epochs
    return epochs * views_an_epoch_of(run, arm)


def needed_bytes(run: Run, arm: Arm) -> int:
    """Bytes that the training of an arm's students needs: images as uint8, and for soft labels the stored ones or the
    weights of the teachers that replay them; of a frozen student also its own. A function of the user's own needs what
    it knows itself.
    """
    recipe, num_classes = run.recipe, len(run.real.classes)
    count = len(run.real.train) if arm.images == "full" else num_classes * recipe.shown_ipc
    images = count * 3 * recipe.dataset.image_size**2
    if recipe.train.frozen:  # its labels are hard
        return images + teacher_bytes(run, [recipe.train.student])
    if arm.labels == "hard" or recipe.labels.source == "hard" or is_own(recipe.labels.source):
        return images
    if arm == CONDENSED and recipe.labels.source == "stored":
        return images + stored_bytes(run)
    return images + teacher_bytes(run, recipe.labels.teachers or recipe.squeeze.teachers)
