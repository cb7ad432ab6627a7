"""Whole jobs of gradient matching against the published loop: subsets, any size, interruptions, jobs and prefixes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcondense.cli import main
from fastcondense.data.jobs import jobs
from fastcondense.files import read_json
from fastcondense.recipe import recipe
from fastcondense.recipe.gradients import Gradients
from fastcondense.recover import by_gradients, matched_networks
from fastcondense.recover.by_gradients import ByGradients, read_real
from fastcondense.recover.formation import shown
from fastcondense.recover.gradient_matching import FeatureDistances
from fastcondense.recover.learnable_subset import LearnableSubset
from fastcondense.recover.matched_networks import MatchedNetworks
from fastcondense.recover.unfinished import Unfinished
from fastcondense.rng import Stream
from fastcondense.run import Run
from fastcondense.sets.condensed import CondensedSet
from fastcondense.views.augment import augment, augmentations

SETTINGS = {
    "network": "zoo/convnet3_w32_in",
    "inner": 2,
    "factor": 2,
    "real_batch": 9,
    "net_images": 40,
    "subsets": True,
    "period": 2,
    "augment": ("brightness", "contrast", "crop", "cutout"),
}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(matched_networks, "_BATCH", 20)


def small_run(out: Path, ipc: int = 3, iterations: int = 3, classes_per_job: int = 0, **settings) -> Run:
    digits = recipe.load(f"mdc/digits-ipc{ipc}")
    gradients = Gradients(**(SETTINGS | settings))
    dataset = dataclasses.replace(digits.dataset, classes=("0", "1", "2"))
    recover = dataclasses.replace(
        digits.recover, gradients=gradients, iterations=iterations, classes_per_job=classes_per_job
    )
    return Run(dataclasses.replace(digits, dataset=dataset, recover=recover).check(), out)


def condensing(run: Run, job: int = 0) -> ByGradients:
    """A job that has begun."""
    made = ByGradients(run)
    made.begin(jobs(run.recipe, 3)[job])
    return made


def published_loop(run, num_iterations, choices):
    """IDC's and MDC's loop with one optimiser for the images of all classes, from the initial images on.

    choices: the subsets that are chosen, in turn. Returns the images, the mean distances at each choice, and what was
    matched and frozen in each iteration.
    """
    settings, seed, size = run.recipe.recover.gradients, run.recipe.seed, 8
    real, start = read_real(run), condensing(run)
    num_classes, ipc = start.images.shape[:2]
    images = start.images.flatten(0, 1).clone().requires_grad_()
    optimizer = torch.optim.SGD([images], run.recipe.recover.lr * ipc / 10, momentum=settings.momentum)
    networks = MatchedNetworks(settings, real, run.normalize, seed, "gradients/slot-0/networks")
    layers, stream = FeatureDistances(networks.net, "last_pool"), Stream(seed, "gradients/slot-0/augment")
    per_image, choices, seen, measured = settings.factor**2, list(choices), [], []
    matched, quits, kept = 0, {}, set()

    def gradients(batch, label, **options):
        weights = [weight for weight in networks.net.parameters() if weight.dim() == 4]
        entropy = F.cross_entropy(networks.net(batch), torch.full((len(batch),), label))
        return torch.autograd.grad(entropy, weights, **options)

    for i in range(num_iterations):
        networks.begin(i)
        images.data.clamp_(0, 1)
        kept |= {n for n, end in quits.items() if end == i}
        frozen = max((n for n in kept if n < matched), default=0)
        seen.append((matched, frozen))
        distances = []
        for sweep in range(settings.inner):
            for label in range(num_classes):
                tiles = start.formation(images[label * ipc : (label + 1) * ipc])
                tiles = torch.cat((tiles[: frozen * per_image].detach(), tiles[frozen * per_image :]))
                number = i * settings.inner + sweep
                batch = real.pixels[start._real_batch(label, number)]
                both = torch.cat((run.normalize(batch), run.normalize(255 * tiles)))
                both = augment(both, augmentations(stream, settings.augment, label, number, size), settings.augment)
                views, condensed = both[: len(batch)], both[len(batch) :]
                wanted = gradients(views, label)
                sets = [condensed, *([condensed[: matched * per_image]] if matched else [])]
                made = [gradients(part, label, create_graph=True) for part in sets]
                loss = sum(((a - b) ** 2).sum() for part in made for a, b in zip(wanted, part, strict=True))
                of_real, of_tiles = layers.features(views).mean(0), layers.features(condensed)
                means = [of_tiles[: n * per_image].mean(0) for n in range(1, ipc)]
                distances.append([float(((of_real - mean) ** 2).sum()) for mean in means])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            networks.train(i, sweep)
        if i == 0 or (i + 1) % settings.period == 0:
            matched = choices.pop(0)
            quits[matched] = i + 1 + settings.period
            measured.append(np.mean(distances, 0))
    return images.detach().view(start.images.shape), measured, seen


def test_a_job_equals_the_published_loop(tmp_path, monkeypatch):
    run, choices = small_run(tmp_path, ipc=4, iterations=5), [1, 3, 2]
    expected, distances, seen = published_loop(run, 5, choices)
    assert seen == [(0, 0), (1, 0), (3, 0), (3, 1), (2, 1)]
    measured = []

    def choose(subset, means, iteration):
        measured.append(means)
        subset.size, subset.distances = choices[len(measured) - 1], means
        subset.ends[subset.size] = iteration + 1 + subset.period

    monkeypatch.setattr(LearnableSubset, "choose", choose)
    mine = condensing(run)
    start = mine.images.clone()
    for iteration in range(5):
        mine.advance(iteration)
    np.testing.assert_allclose(measured, distances, rtol=1e-3, atol=0.006)  # ours are rounded to two decimals
    moved, apart = expected - start, mine.images - expected
    assert float(moved.abs().max()) > 0.05
    # a ReLU or a maximum whose input rounds across a boundary moves single pixels by more
    assert float(apart.norm()) < 1e-3 * float(moved.norm())


def test_frozen_images_do_not_change_by_a_bit(tmp_path):
    run = small_run(tmp_path, ipc=5, layout="canvas-major", momentum_shared=False, momentum=0.5, initial="random")
    mine = condensing(run)
    mine.advance(0)
    mine.subset.size, mine.subset.learned, mine.subset.ends = 4, [2], {}
    before = mine.images.clone().clamp(0, 1)
    mine.advance(1)
    assert torch.equal(mine.images[:, :2], before[:, :2])
    assert bool((mine.images[:, 2:] != before[:, 2:]).flatten(2).any(2).all())


def test_frozen_tiles_do_not_change_by_a_bit(tmp_path):
    run = small_run(tmp_path, ipc=3, momentum_shared=False, momentum=0.5)
    mine = condensing(run)
    mine.subset.size, mine.subset.learned = 2, [1]
    before = mine.images.clone()
    mine.advance(0)
    changed = (mine.images != before).any(2)
    assert (
        not changed[:, :3, :4, :4].any() and not changed[:, 0, :4, 4:].any()
    )  # tiles 0 to 3: three corners, one right
    assert changed[:, 1:, :4, 4:].any() and changed[:, :, 4:].any()


@pytest.mark.parametrize(
    ("ipc", "settings"),
    [
        (1, {"factor": 1}),
        (1, {}),
        (3, {"factor": 1}),
        (5, {"factor": 3}),
        (3, {"layout": "canvas-major", "initial": "random", "metric": "l1"}),
        (3, {"pretrain_epochs": 1, "net_images": 0, "layout": "canvas-major"}),
    ],
)
def test_any_size_and_factor(tmp_path, ipc, settings, monkeypatch):
    monkeypatch.setattr(by_gradients, "MOST_TILES", 7)
    run = small_run(tmp_path, ipc=ipc, iterations=3, **(settings | {"period": 1}))
    made = ByGradients(run)(jobs(run.recipe, 3)[0])
    assert made.images.shape == (3 * ipc, 3, 8, 8) and made.images.dtype == torch.uint8
    assert made.losses.shape == (3, 3) and bool((made.losses[:, 0] > 0).all())


def test_an_interrupted_job_goes_on_to_the_same_bits(tmp_path):
    run = small_run(tmp_path, ipc=3, iterations=4)
    run.out.joinpath("condensed").mkdir()
    whole = ByGradients(run)(jobs(run.recipe, 3)[0])
    mine = condensing(run)
    for iteration in range(2):
        mine.advance(iteration)
    job = jobs(run.recipe, 3)[0]
    unfinished = Unfinished(run.out / "condensed", job, "this recipe")
    unfinished.write(2, mine.state())
    resumed = ByGradients(run)(job, unfinished)
    assert torch.equal(resumed.images, whole.images) and torch.equal(resumed.losses, whole.losses)
    assert Unfinished(run.out / "condensed", job, "another recipe").read() is None


def test_classes_in_jobs_of_their_own_are_the_same(tmp_path):
    together = small_run(tmp_path, ipc=3, subsets=False)
    apart = small_run(tmp_path, ipc=3, subsets=False, classes_per_job=2)
    whole = ByGradients(together)(jobs(together.recipe, 3)[0]).images
    recoverer = ByGradients(apart)
    parts = [recoverer(job).images for job in jobs(apart.recipe, 3)]
    assert [len(part) for part in parts] == [6, 3] and torch.equal(torch.cat(parts), whole)
    with pytest.raises(ValueError, match="needs all 3 classes in a job, which has 2"):
        shared = small_run(tmp_path, ipc=3, classes_per_job=2)
        ByGradients(shared)(jobs(shared.recipe, 3)[0])


def test_stacked_sets_of_one_image(tmp_path):
    """Baseline B: slots are jobs of their own, which begin with other images; the first is the IPC-1 set."""
    one = small_run(tmp_path, ipc=1)
    several = small_run(tmp_path, ipc=3)
    stacked = dataclasses.replace(several.recipe.recover, slots_per_job=1)
    several.recipe = dataclasses.replace(several.recipe, recover=stacked)
    everything = jobs(several.recipe, 3)
    assert len(everything) == 3 and "ipc" not in several.recipe.recover_parts()
    recoverer = ByGradients(several)
    assert torch.equal(recoverer(everything[0]).images, ByGradients(one)(jobs(one.recipe, 3)[0]).images)
    starts = [condensing(several, number).images for number in range(3)]
    assert not torch.equal(starts[0], starts[1]) and not torch.equal(starts[1], starts[2])


def test_students_see_a_prefix_of_any_set(tmp_path):
    images = torch.randint(0, 256, (3, 4, 3, 8, 8), dtype=torch.uint8)
    condensed = CondensedSet(images, ("0", "1", "2"))
    run = small_run(tmp_path, ipc=4, layout="canvas-major")
    first = dataclasses.replace(run.recipe, train=dataclasses.replace(run.recipe.train, prefix=2))
    pixels, labels = shown(first, condensed)
    assert torch.equal(pixels, shown(run.recipe, CondensedSet(images[:, :2], condensed.classes))[0])
    assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8 and first.shown_ipc == 2 and run.recipe.shown_ipc == 4
    other = dataclasses.replace(recipe.load("rded/digits-ipc4"), train=first.train)
    assert torch.equal(shown(other, condensed)[0], images[:, :2].flatten(0, 1))


def test_a_size_of_a_set_of_scattered_tiles_is_its_first_tiles(tmp_path, capsys):
    """MDC's subset of n is the first n factor^2 tiles, which lie in many of the set's images."""
    out = tmp_path / "run"
    flags = "--recipe mdc/digits --recover.gradients.factor 2 --recover.iterations 1 --recover.gradients.inner 1"
    flags += " --recover.gradients.net-images 64 --train.epochs 1 --train.seeds 1 --evaluate.baselines random_hard"
    assert main(["run", *flags.split(), "--ipc", "4", "--out", str(out)]) == 0
    result = read_json(out / "result.json")
    assert (result["views"], result["baselines"]["random_hard"]["views"]) == (10 * 4 * 4, 10 * 4)
    assert main(["train", str(out), "--train.prefix", "1"]) == 0
    assert main(["evaluate", str(out), "--train.prefix", "1"]) == 0
    alone = read_json(out / "result.json")
    assert alone["ipc"] == 1 and alone["views"] == 10 * 4
    assert main(["evaluate", str(out), "--ipc", "1,4"]) == 0
    curve = read_json(out / "curve.json")["top1_last"]["nested"]
    assert curve["1"]["mean"] == alone["top1_last"]["mean"] and curve["4"]["mean"] == result["top1_last"]["mean"]
    capsys.readouterr()
    for command in (
        ["train", str(out), "--ipc", "1"],
        ["export", str(out), "--ipc", "1", "--out", str(tmp_path / "x")],
    ):
        assert main(command) == 1
        assert "tiles of" in capsys.readouterr().err


def test_settings_that_no_job_could_mean(tmp_path):
    for settings, message in (
        ({"factor": 0}, "recover.gradients.factor must be at least 1, got 0"),
        ({"momentum": 1.0}, "recover.gradients.momentum must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            small_run(tmp_path, **settings)
