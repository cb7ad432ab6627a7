"""Recover by class means and by gradients of linear layers against float64 transcriptions on an unfused network."""

import dataclasses

import pytest
import torch
from small import frozen_network
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resized_crop

from fastcondense.data.jobs import Job, jobs
from fastcondense.networks import zoo
from fastcondense.recipe.means import Means, Pyramid
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.recover.by_means import ByMeans, MeansStep, view_table
from fastcondense.recover.by_statistics import ByStatistics
from fastcondense.recover.feature_targets import ClassDirections, backbone_of
from fastcondense.recover.head_gradients import head_gradient
from fastcondense.recover.pyramid import COLOURS, LevelPyramid, enlargement
from fastcondense.rng import Stream
from fastcondense.statistics.class_directions import Directions
from fastcondense.teachers.cut import Hooked
from fastcondense.teachers.teacher import Teacher

CPU = torch.device("cpu")
ARCHITECTURE, CLASSES = "zoo/resnet20", 4


def recipe(size=18, finest=11, ipc=2, iterations=40, every=3, views=3, **more):
    dataset = Dataset(name="digits", image_size=size, resize=size, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))
    recover = Recover(objective="means", iterations=iterations, lr=0.05, betas=(0.9, 0.999), slots_per_job=0)
    parts = {"pyramid": Pyramid(every=every, finest=finest), "means": Means(views=views)} | more
    return Recipe(ipc=ipc, seed=5, dataset=dataset, recover=dataclasses.replace(recover, **parts)).check()


def teacher(settings, statistics=("bn",)):
    net = frozen_network(ARCHITECTURE, CLASSES)
    return Teacher.of(net, ARCHITECTURE, range(CLASSES), range(CLASSES), settings.dataset, statistics)


def means_of(length=64):
    return torch.rand(CLASSES, length, generator=torch.Generator().manual_seed(1))


def step_of(settings, job):
    backbone = backbone_of(teacher(settings), "fp32")
    step = MeansStep(settings, job, [backbone], [ClassDirections(Directions.between(means_of()), job, CPU)], CPU)
    step.load(job)
    return step


def formed(levels, num_in, finest, size):
    """The images of float64 levels, of which the first are in."""
    total = sum(F.interpolate(level, (finest, finest), mode="bilinear") for level in levels[:num_in])
    colours = torch.tensor(COLOURS, dtype=torch.float64)
    colours = colours / colours.square().sum(0).sqrt().max()
    mixed = torch.stack([sum(colours[row, k] * total[:, k] for k in range(3)) for row in range(3)], 1)
    return F.interpolate(1 / (1 + (-2 * mixed).exp()), (size, size), mode="bilinear")


def features(net, images, settings):
    """What the last layer reads, of pixels in 0 ... 1."""
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (settings.dataset.mean, settings.dataset.std))
    found = []
    handle = net.linear.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    net((images - mean) / std)
    handle.remove()
    return found[0]


def transcribed(settings, job, levels, num_in, t):
    """The loss of iteration t: the sum over images of 1 - cos(z - mu, mu_k - mu)."""
    size, net = settings.dataset.image_size, frozen_network(ARCHITECTURE, CLASSES).double()
    images = formed(levels, num_in, settings.recover.pyramid.finest, size)
    table, wanted, total = view_table(settings, job)[t].tolist(), means_of().double(), 0
    for number, k in enumerate(job.classes().tolist()):
        seen = []
        for view in range(settings.recover.means.views):
            top, left, height, width, flip, *_ = table[view * job.num_images + number]
            one = resized_crop(images[number : number + 1], top, left, height, width, [size, size], antialias=True)
            seen.append(features(net, one.flip(3) if flip else one, settings))
        made, direction = torch.cat(seen).mean(0) - wanted.mean(0), wanted[k] - wanted.mean(0)
        total = total + 1 - made @ direction / made.norm() / direction.norm()
    return total


@pytest.mark.parametrize("num_in", [1, 3, 5])
def test_loss_and_gradient_equal_float64(num_in):
    settings, job = recipe(), Job(0, 0, 2, 1, 2)
    step = step_of(settings, job)
    for number in range(1, num_in):
        assert step.pyramid.grow(3 * number)
    leaves = step.pyramid.leaves()
    assert [level.shape[-1] for level in leaves] == [1, 2, 4, 8, 11]
    for t in (0, 7):
        total, mean = step.loss(step.pyramid.pixels(leaves), view_table(settings, job)[t])
        found = torch.autograd.grad(total, leaves)
        exact = [level.detach().double().requires_grad_() for level in leaves]
        expected = transcribed(settings, job, exact, num_in, t)
        torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-6)
        assert mean.item() == pytest.approx(total.item() / 4)
        for made, wanted in zip(found, torch.autograd.grad(expected, exact, allow_unused=True), strict=True):
            # float32 through 20 layers, summed over all pixels: relative to the largest component
            reference = torch.zeros_like(made).double() if wanted is None else wanted
            torch.testing.assert_close(made.double(), reference, rtol=0, atol=2e-3 * float(reference.abs().max()))


def test_levels_come_in_as_published():
    settings = recipe(size=8, finest=8, every=2)
    job = jobs(settings, CLASSES)[0]
    pyramid = LevelPyramid(settings, job.num_images, CPU)
    pyramid.load(job)
    rows = list(zip(job.classes().tolist(), job.slots().tolist(), strict=True))
    noise = [Stream(5, f"recover/pyramid/{s}").normal(rows, 3 * s * s).view(-1, 3, s, s).double() for s in (1, 2, 4, 8)]
    wanted, optimizer = [noise[0]], None
    for iteration in range(7):
        if iteration in (2, 4, 6):  # all before are multiplied by m / (m + 1), the new one is noise / (m + 1)
            m = len(wanted)
            wanted = [level.detach() * m / (m + 1) for level in wanted] + [noise[m] / (m + 1)]
        if iteration % 2 == 0:  # with a new Adam
            wanted = [level.clone().requires_grad_() for level in wanted]
            optimizer = torch.optim.Adam(wanted, 0.05)
        assert pyramid.grow(iteration) == (iteration in (2, 4, 6))
        leaves = pyramid.leaves()
        pyramid.descend(torch.autograd.grad(pyramid.pixels(leaves).square().sum(), leaves), torch.tensor(0.05))
        optimizer.zero_grad()
        formed(wanted, len(wanted), 8, 8).square().sum().backward()
        optimizer.step()
        exact = formed(wanted, len(wanted), 8, 8)
        torch.testing.assert_close(pyramid.pixels().double(), exact.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("source", "side"), [(1, 5), (8, 11), (32, 112), (7, 7)])
def test_enlargement_is_bilinear_interpolation(source, side):
    image = torch.rand(2, 3, source, source)
    up = enlargement(source, side)
    wanted = F.interpolate(image, (side, side), mode="bilinear", align_corners=False)
    torch.testing.assert_close(up @ image @ up.T, wanted, rtol=0, atol=1e-6)


def recoverer(settings):
    return ByMeans(
        settings,
        [backbone_of(teacher(settings), "fp32")],
        CPU,
        lambda job: [ClassDirections(Directions.between(means_of()), job, CPU)],
    )


def test_classes_do_not_know_each_other():
    """A class's levels and their gradients are the same in a job of all classes and in one of its own."""
    settings = recipe(slots_per_job=1)
    together, alone = step_of(settings, Job(0, 1, 1, 0, 4)), step_of(settings, Job(9, 1, 1, 2, 1))
    found = []
    for step, job in ((together, Job(0, 1, 1, 0, 4)), (alone, Job(9, 1, 1, 2, 1))):
        for number in range(1, 5):
            step.pyramid.grow(3 * number)
        leaves = step.pyramid.leaves()
        total, _ = step.loss(step.pyramid.pixels(leaves), view_table(settings, job)[4])
        found.append((leaves, torch.autograd.grad(total, leaves)))
    (levels, gradients), (own_levels, own_gradients) = found
    for level, own, gradient, own_gradient in zip(levels, own_levels, gradients, own_gradients, strict=True):
        assert torch.equal(level[2], own[0])
        # convolutions of other batches round otherwise: relative to the largest component
        largest = float(own_gradient.abs().max())
        torch.testing.assert_close(gradient[2], own_gradient[0], rtol=0, atol=2e-3 * largest)


def test_a_job_goes_on_to_the_same_bits():
    settings = recipe(iterations=20, slots_per_job=1, classes_per_job=4)
    whole = [job for job in jobs(settings, CLASSES) if job.first_slot == 1]
    _, losses, _ = recoverer(settings)(whole[0])
    assert losses[-5:, 0].mean() < losses[:5, 0].mean() and torch.equal(losses[:, 0], losses[:, 2])
    ours, again = recoverer(settings), recoverer(settings)
    ours.begin(whole[0])
    for t in range(20):
        if t == 13:
            kept = {name: tensor.clone() for name, tensor in ours.state().items()}
        ours.advance(t)
    again.begin(whole[0])
    again.restore(kept)
    for t in range(13, 20):
        again.advance(t)
    assert torch.equal(ours.made()[0], again.made()[0])


def test_two_backbones_are_matched_together():
    settings = recipe(iterations=30)
    job = jobs(settings, CLASSES)[0]
    both = [backbone_of(teacher(settings), "fp32"), lambda x: x.float().mean((2, 3))]
    targets = [
        ClassDirections(Directions.between(means_of()), job, CPU),
        ClassDirections(Directions.between(means_of(3)), job, CPU),
    ]
    made = MeansStep(settings, job, both, targets, CPU)
    made.load(job)
    total, _ = made.loss(made.pyramid.pixels(), view_table(settings, job)[0])
    parts = []
    for one, target in zip(both, targets, strict=True):
        alone = MeansStep(settings, job, [one], [target], CPU)
        alone.load(job)
        parts.append(alone.loss(alone.pyramid.pixels(), view_table(settings, job)[0])[0])
    torch.testing.assert_close(total, sum(parts))


# --- the published target --------------------------------------------------------------------------------------------


def test_a_layers_gradient_equals_autograd():
    generator = torch.Generator().manual_seed(0)
    z, head = (torch.randn(n, 9, generator=generator, dtype=torch.float64) for n in (14, 5))
    labels = torch.arange(14) % 5
    layer = torch.nn.Linear(9, 5).double()
    with torch.no_grad():
        layer.weight.copy_(head)
        layer.bias.zero_()
    F.cross_entropy(layer(z), labels).backward()
    wanted = torch.cat((layer.weight.grad, layer.bias.grad[:, None]), 1)
    torch.testing.assert_close(head_gradient(z, labels, head), wanted, rtol=1e-12, atol=1e-14)


def test_a_network_that_cannot_be_traced_gives_the_same_features():
    settings = recipe()
    made = teacher(settings)
    images = torch.randn(3, 3, 18, 18, generator=torch.Generator().manual_seed(2))
    hooked, idle = Hooked(made, "linear"), Hooked(made, "linear")
    torch.testing.assert_close(hooked(images), backbone_of(made, "fp32")(images))
    assert not made.fused.linear._forward_pre_hooks  # so that no idle one keeps what another has seen
    with pytest.raises(RuntimeError):
        idle(images[:, :2])
    assert not made.fused.linear._forward_pre_hooks


def test_a_vision_transformer_gives_what_its_head_reads():
    """Whether torch.fx traces it or not; CLS tokens are what DINO's linear probes read."""
    torch.manual_seed(0)
    net = zoo.build("timm/vit_tiny_patch16_224", 3).eval()
    made = Teacher.of(net, "timm/vit_tiny_patch16_224", range(3), range(3), Dataset())
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        wanted = net.forward_head(net.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone_of(made, "fp32")(images), wanted, rtol=1e-4, atol=1e-4)


def test_pretrained_weights_without_a_classifier_get_an_untrained_one(monkeypatch):
    """As timm's self-supervised ones are, and the probe that squeeze trains needs."""
    make = zoo.vision.timm.create_model
    name = "vit_tiny_patch16_224"
    monkeypatch.setattr(zoo.vision.timm, "create_model", lambda name, **_: make(name, num_classes=0))
    net = zoo.build(f"timm/{name}", 7, "default")
    assert net.head.weight.shape == (7, 192)


# --- the pyramid under another objective, and settings that do not go together ----------------------------------------


def test_images_of_statistics_form_as_a_pyramid_too():
    settings = recipe(iterations=30, objective="statistics", match_weight=0.1, batch_size=8)
    job = jobs(settings, CLASSES)[0]
    ours = ByStatistics(settings, [teacher(settings)], CPU)
    images, losses, _ = ours(job)
    assert losses[-1, 0] < 0.7 * losses[0, 0] and len(images) == 8
    again = ByStatistics(settings, [teacher(settings)], CPU)
    again.begin(job)
    for t in range(20):
        again.advance(t)
    kept = {name: tensor.clone() for name, tensor in again.state().items()}
    again.begin(job)
    again.restore(kept)
    for t in range(20, 30):
        again.advance(t)
    assert torch.equal(again.levels(again.made()[0]).round().to(torch.uint8), images)
    side = settings.recover.pyramid.finest
    smooth = F.interpolate(again.step.pyramid.pixels(), (side, side), mode="bilinear", antialias=True)
    assert smooth.shape[-1] == 11 and float(again.step.pyramid.is_in.sum()) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pyramid": Pyramid()}, "objective means needs recover.pyramid.every above 0"),
        ({"pyramid": Pyramid(every=10)}, "6 levels, of which the last comes in after 50 iterations; .* is 40"),
        ({"pyramid": Pyramid(every=1, finest=40)}, "finest is 40, more than dataset.image_size 18"),
        ({"objective": "gradients"}, "pyramid needs recover.objective statistics or means"),
        ({"objective": "statistics", "stages": (9, 18)}, "no recover.stages"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(**changes)
