"""Gradient matching, multi-formation and MDC's subsets against float64 and brute-force transcriptions of the papers."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcondense.networks import zoo
from fastcondense.recipe.gradients import Gradients
from fastcondense.recover import formation as formation_module
from fastcondense.recover.formation import Formation, shown_tiles
from fastcondense.recover.gradient_matching import FeatureDistances, GradientMatching
from fastcondense.recover.learnable_subset import LearnableSubset

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

    # As published: a graph for the set and one for the subset, all parameters, convolutions matched.
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
    """(matched, frozen) in each iteration: flags and quit times of every size, as the published code has them."""
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
