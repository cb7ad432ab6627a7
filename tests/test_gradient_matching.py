"""Gradient matching, multi-formation and MDC's subsets against float64 and brute-force transcriptions of the spec."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcondense.data.jobs import jobs
from fastcondense.networks import zoo
from fastcondense.recipe import recipe
from fastcondense.recipe.gradients import Gradients
from fastcondense.recover import by_gradients, matched_networks
from fastcondense.recover import formation as formation_module
from fastcondense.recover.by_gradients import ByGradients, read_real
from fastcondense.recover.formation import Formation, shown, shown_tiles
from fastcondense.recover.gradient_matching import FeatureDistances, GradientMatching
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


# --- the loss and its gradient ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "metric"),
    [("zoo/convnet3_w32_in", "mse"), ("zoo/convnet3_w32_in", "l1"), ("zoo/resnet10_ap_in_small", "mse")],
)
def test_loss_and_image_gradient_equal_double_backward(network, metric):
    torch.manual_seed(0)
    net = zoo.build(network, 4).double()
    size = 32 if "convnet" in network else 16
    real, tiles = torch.randn(5, 3, size, size).double(), torch.randn(7, 3, size, size).double()
    label = torch.tensor([2])
    subset, frozen = torch.arange(4), torch.arange(2)

    # As the spec says it: a graph for the set and one for the subset, all parameters, convolutions matched.
    images = tiles.clone().requires_grad_()
    seen = torch.cat((images[frozen].detach(), images[2:]))

    def gradients(batch, create_graph):
        entropy = F.cross_entropy(net(batch), label.expand(len(batch)))
        return torch.autograd.grad(entropy, list(net.parameters()), create_graph=create_graph)

    wanted, whole, part = gradients(real, False), gradients(seen, True), gradients(seen[subset], True)
    expected = 0
    for made in (whole, part):
        for a, b in zip(wanted, made, strict=True):
            if a.dim() == 4:
                expected = expected + ((a - b) ** 2 if metric == "mse" else (a - b).abs()).sum()
    (expected_gradient,) = torch.autograd.grad(expected, images)

    leaves = [tiles[:2].clone(), tiles[2:4].clone().requires_grad_(), tiles[4:].clone().requires_grad_()]
    loss = GradientMatching(net, metric)(real, leaves, label, [[0, 1, 2], [0, 1]])
    found = torch.autograd.grad(loss, leaves[1:])
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    scale = expected_gradient.abs().max()
    assert float((torch.cat(found) - expected_gradient[2:]).abs().max() / scale) < 1e-6
    assert float(expected_gradient[:2].abs().max()) == 0

    single = GradientMatching(net.float(), metric)
    leaves32 = [leaf.detach().float().requires_grad_(leaf.requires_grad) for leaf in leaves]
    loss32 = single(real.float(), leaves32, label, [[0, 1, 2], [0, 1]])
    assert float(loss32.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_networks_with_batch_norm_are_refused():
    with pytest.raises(ValueError, match="without BatchNorm"):
        GradientMatching(zoo.build("zoo/convnet3_w32", 3), "mse")
    with pytest.raises(ValueError, match="'absent' is no module"):
        FeatureDistances(zoo.build("zoo/convnet3_w32_in", 3), "absent")


def test_feature_distances_equal_the_definition():
    torch.manual_seed(1)
    net = zoo.build("zoo/convnet3_in", 3)
    real, tiles, levels = (
        torch.randn(5, 3, 32, 32),
        torch.randn(12, 3, 32, 32),
        torch.tensor([1, 3, 2, 1, 2, 3, 4] + [4] * 5),
    )

    def features(x):
        for conv, norm in zip(net.convs, net.norms, strict=True):
            x = F.avg_pool2d(F.relu(F.group_norm(conv(x), 128, norm.weight, norm.bias)), 2)
        return x

    with torch.no_grad():
        expected = [
            float(((features(real).mean(0) - features(tiles[levels <= n]).mean(0)) ** 2).sum()) for n in (1, 2, 3)
        ]
    found = FeatureDistances(net, "last_pool")(real, tiles, levels, 4)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


# --- formation -------------------------------------------------------------------------------------------------------


def bilinear(image, size):
    """[C, H, W] -> [C, size, size] with half-pixel centres and repeated edges, pixel by pixel."""
    _, height, width = image.shape
    out = np.zeros((len(image), size, size))
    for r in range(size):
        for c in range(size):
            y, x = max((r + 0.5) * height / size - 0.5, 0), max((c + 0.5) * width / size - 0.5, 0)
            y0, x0 = int(y), int(x)
            y1, x1, v, u = min(y0 + 1, height - 1), min(x0 + 1, width - 1), y - y0, x - x0
            out[:, r, c] = (1 - v) * ((1 - u) * image[:, y0, x0] + u * image[:, y0, x1])
            out[:, r, c] += v * ((1 - u) * image[:, y1, x0] + u * image[:, y1, x1])
    return out


@pytest.mark.parametrize(("size", "factor"), [(8, 2), (8, 3), (7, 2), (10, 3), (6, 1)])
def test_formation_equals_a_loop_over_tiles(size, factor):
    images = torch.rand(3, 2, size, size, generator=torch.Generator().manual_seed(size))
    published = Formation(Gradients(factor=factor), 3, size)
    side, pad = -(-size // factor), (factor - size % factor) % factor
    padded = np.pad(images.double().numpy(), ((0, 0), (0, 0), (0, pad), (0, pad)), constant_values=0.5)
    expected = [
        bilinear(padded[j, :, r * side : (r + 1) * side, c * side : (c + 1) * side], size)
        for r in range(factor)
        for c in range(factor)
        for j in range(3)
    ]
    np.testing.assert_allclose(published(images), np.stack(expected), atol=1e-6)
    # The subset of n: the first n factor^2 tiles in that order.
    assert published.levels.tolist() == [k // factor**2 + 1 for k in range(3 * factor**2)]

    strips = list(np.array_split(np.arange(size), factor))
    corrected = Formation(Gradients(factor=factor, layout="canvas-major"), 3, size)
    expected = [
        bilinear(images[j].double().numpy()[:, rows][:, :, columns], size)
        for j in range(3)
        for rows in strips
        for columns in strips
    ]
    np.testing.assert_allclose(corrected(images), np.stack(expected), atol=1e-6)
    assert corrected.levels.tolist() == [j + 1 for j in range(3) for _ in range(factor**2)]


@pytest.mark.parametrize("layout", ["tile-major", "canvas-major"])
def test_mosaics_show_their_pictures(layout):
    pictures = torch.arange(18.0).view(18, 1, 1, 1).expand(18, 3, 7, 7)
    formation = Formation(Gradients(factor=3, layout=layout), 2, 7)
    images = formation.mosaic(pictures)
    first = images[0, 0]
    assert first[0, 0] == 0 and first[0, 3] == (2 if layout == "tile-major" else 1)  # q K + j, or j factor^2 + q
    if layout == "canvas-major":
        assert formation(images).mean((1, 2, 3)).tolist() == pytest.approx(list(range(18)))
        smaller = Formation(Gradients(factor=3, layout=layout), 1, 7).mosaic(pictures[:9])
        assert torch.equal(smaller, images[:1])


def test_several_factors(monkeypatch):
    monkeypatch.setattr(formation_module, "MOST_TILES", 12)
    images = torch.rand(5, 3, 8, 8)
    # 12 tiles at most: two images of four tiles and three of one would be 11, three would be 14.
    bound = Formation(Gradients(factor=2, formation="bound"), 5, 8)
    assert bound.parts == [(2, 0, 1), (1, 1, 5)]  # (12 - 5) // 4 images of four tiles, as published
    assert torch.equal(bound(images)[4:], images[1:])


@pytest.mark.parametrize("layout", ["tile-major", "canvas-major"])
@pytest.mark.parametrize("factor", [1, 2])
def test_students_see_the_tiles_of_a_subset(layout, factor):
    images = torch.randint(0, 256, (2, 5, 3, 8, 8), dtype=torch.uint8)
    settings = Gradients(factor=factor, layout=layout)
    pixels, labels = shown_tiles(settings, images, 3)
    assert len(pixels) == 2 * 3 * factor**2 and labels.tolist() == [0] * 3 * factor**2 + [1] * 3 * factor**2
    expected = Formation(settings, 5, 8)(images[1].double())[: 3 * factor**2]
    assert float((pixels[labels == 1].double() - expected).abs().max()) <= 0.5 + 1e-4
    if layout == "canvas-major":  # a subset is a set of its own
        assert torch.equal(pixels, shown_tiles(settings, images[:, :3], 3)[0])


# --- most learnable subsets ------------------------------------------------------------------------------------------


def published_subsets(distances, period, num_iterations):
    """(matched, frozen) in each iteration: flags and quit times of every size, as spec 5.2 describes the code."""
    sizes = range(1, len(distances[0]) + 1)
    matched, quits, keeps = dict.fromkeys(sizes, False), dict.fromkeys(sizes, -1), dict.fromkeys(sizes, False)
    before, found, measured = None, [], iter(distances)
    for i in range(num_iterations):
        for n in sizes:
            if quits[n] == i:
                matched[n], keeps[n] = False, True
        now = [n for n in sizes if matched[n]]
        kept = [n for n in sizes if keeps[n] and now and n < min(now)]
        found.append((now[0] if now else 0, max(kept, default=0)))
        if i == 0 or (i + 1) % period == 0:
            current = next(measured)
            chosen = 1 if before is None else int(np.argmax(np.abs(np.array(before) - np.array(current)))) + 1
            matched = {n: n == chosen for n in sizes}
            quits[chosen] = i + 1 + period
            before = current
    return found


def ours(distances, period, num_iterations):
    subset, found, measured = LearnableSubset(period), [], iter(distances)
    for i in range(num_iterations):
        subset.begin(i)
        found.append((subset.size, subset.frozen))
        if subset.is_measured(i):
            subset.choose(next(measured), i)
        subset = LearnableSubset.restored(json.loads(json.dumps(vars(subset))), len(distances[0]))
    return found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("period", [1, 3, 10])
def test_choices_equal_the_published_flags(seed, period):
    distances = np.random.default_rng(seed).random((200, 6)).round(2).tolist()
    assert ours(distances, period, 100) == published_subsets(distances, period, 100)


def test_the_worked_timeline():
    steps = [1, 4, 2, 5]  # which distance changes at i = 99, 199, 299
    distances = np.cumsum([[0.0] * 5] + [[float(n + 1 == step) for n in range(5)] for step in steps[1:]], axis=0)
    found = ours(distances.tolist(), 100, 301)
    assert found[0] == (0, 0) and found[1] == found[99] == (1, 0) and found[100] == (4, 0)
    assert found[101] == found[199] == (4, 1) and found[200] == (2, 1) and found[300] == (5, 4)


def test_one_image_has_no_subset():
    subset = LearnableSubset(2)
    subset.choose([], 0)
    assert (subset.size, subset.frozen) == (0, 0)


# --- whole jobs ------------------------------------------------------------------------------------------------------


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


def test_settings_that_no_job_could_mean(tmp_path):
    for settings, message in (
        ({"factor": 0}, "recover.gradients.factor must be at least 1, got 0"),
        ({"momentum": 1.0}, "recover.gradients.momentum must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            small_run(tmp_path, **settings)
