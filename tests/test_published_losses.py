"""The whole recover loss of each method and its image gradient, against a float64 transcription of the specification.

The truth is a plain network with forward hooks on its BatchNorms and convolutions, autograd, and the formulas as they
are published; ours is a fused float32 teacher with the loss put together from the library's parts.
"""

import copy

import pytest
import torch
from kernel_checks import relative_rms
from torch import nn
from torch.nn import functional as F

from fastcondense.kernels.crop import crop
from fastcondense.networks import zoo
from fastcondense.recipe.settings import Dataset
from fastcondense.recover.regularizers import densification, flatness, image_priors
from fastcondense.statistics.matching import Matching, layer_weights
from fastcondense.teachers.teacher import Teacher

SIZE, PATCH, NUM_CLASSES = 17, 4, 6
DATASET = Dataset(name="digits", image_size=SIZE, resize=SIZE)
OUTPUTS = [5, 3, 0, 1, 2, 4]  # the networks' output of each class
EVERYTHING = ("bn", "conv", "patch")
WINDOWS = [(0, 0, 17, 17, 0, 0, 0), (2, 1, 13, 12, 1, 3, 2), (5, 4, 9, 11, 0, 0, 1), (0, 3, 17, 14, 1, 2, 0)]


def network(architecture, seed=0):
    """Random weights, and statistics and answers that do not hide a mistake. Without BatchNorm: AlexNet in small."""
    torch.manual_seed(seed)
    if architecture == "plain":
        convolutions = (
            nn.Conv2d(3, 8, 5, 2, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(),
        )
        net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(12 * 16, NUM_CLASSES))
    else:
        net = zoo.build(architecture, NUM_CLASSES)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
        elif isinstance(module, nn.Linear):
            module.weight.data *= 5
    return net.eval().requires_grad_(False)


def noise(count, seed, scale=1.0):
    return scale * torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def published_view(images, window):
    top, left, height, width, flip, roll_y, roll_x = window
    seen = images[:, :, top : top + height, left : left + width]
    seen = F.interpolate(seen, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return torch.roll(seen.flip(3) if flip else seen, (roll_y, roll_x), (2, 3))


def view(images, window):
    return crop(images, torch.tensor([window]), SIZE)


class Hooked:
    """A float64 network. Its answer, and the published statistics of its layers' inputs by the layers' names."""

    def __init__(self, net, kinds):
        self.net, self.kinds = copy.deepcopy(net).double(), kinds
        self.inputs, self.norms = {}, {}
        for name, module in self.net.named_modules():
            is_norm = isinstance(module, nn.BatchNorm2d)
            if (is_norm and "bn" in kinds) or (isinstance(module, nn.Conv2d) and {"conv", "patch"} & set(kinds)):
                self.norms[name] = module if is_norm else None
                module.register_forward_hook(lambda _, args, __, name=name: self.inputs.update({name: args[0].clone()}))

    def __call__(self, views):
        logits = self.net(views)
        return logits, {name: self.vectors(self.inputs[name], norm is None) for name, norm in self.norms.items()}

    def vectors(self, x, is_convolution):
        found = []
        if not is_convolution or "conv" in self.kinds:
            found += [x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).var(1, unbiased=False)]
        if is_convolution and "patch" in self.kinds:
            rows, columns = (-(-side // PATCH) for side in x.shape[2:])
            y = F.interpolate(x, (rows * PATCH, columns * PATCH), mode="bilinear", align_corners=False)
            tiles = y.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(2, 3, 0, 1, 4, 5)
            tiles = tiles.reshape(rows * columns, -1)
            found += [tiles.mean(1), tiles.var(1, unbiased=False)]
        return found

    def running(self):
        """BatchNorms' running statistics."""
        return {name: [norm.running_mean, norm.running_var] for name, norm in self.norms.items() if norm is not None}

    def real(self, seed):
        """Targets such as real images would give."""
        with torch.no_grad():
            return self(noise(9, seed).double() + 0.3)[1]


class Averages:
    """Running means e <- a e + (1 - a) s from zero; what is compared has e's value and s's gradient (EDC)."""

    def __init__(self, decay):
        self.decay, self.kept = decay, {}

    def __call__(self, layers, live=None):
        averaged = {}
        for number, (name, vectors) in enumerate(layers.items()):
            if live is not None and not live[number]:
                continue
            old = self.kept.get(name, [0.0] * len(vectors))
            pairs = zip(old, vectors, strict=True)
            self.kept[name] = [self.decay * e + (1 - self.decay) * s.detach() for e, s in pairs]
            averaged[name] = [s + (e - s.detach()) for e, s in zip(self.kept[name], vectors, strict=True)]
        return averaged


def published_distance(layers, targets, first):
    """Norms of the differences, with the weight 10 for the first layer of the network."""
    return sum(
        (10 if name == first else 1) * torch.norm(target - vector)
        for name, vectors in layers.items()
        for target, vector in zip(targets[name], vectors, strict=True)
    )


def teacher_of(net, kinds=("bn",)):
    return Teacher.of(copy.deepcopy(net), "net", [str(k) for k in range(NUM_CLASSES)], OUTPUTS, DATASET, kinds, PATCH)


def in_order(teacher, targets):
    """Targets by the layers' names -> float32 moments, layer by layer."""
    assert [layer.name for layer in teacher.layers] == list(targets)
    return [tuple(vector.float() for vector in targets[layer.name]) for layer in teacher.layers]


def matching_of(teacher, *target_sets, **settings):
    sets = [(share, in_order(teacher, targets)) for share, targets in target_sets]
    return Matching(sets, layer_weights(len(teacher.layers)), **settings)


def assert_same(loss, images, expected, truth):
    (gradient,), (wanted,) = torch.autograd.grad(loss, images), torch.autograd.grad(expected, truth)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert relative_rms(gradient, wanted) < 2e-6


def leaves(count, seed, scale=1.0):
    images = noise(count, seed, scale).requires_grad_()
    return images, images.detach().double().requires_grad_()


ARCHITECTURES = ["zoo/convnet2", "zoo/wrn16_2", "zoo/resnet20"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("window", WINDOWS)
def test_sre2l(architecture, window):
    """CE + r_bn (10 R_1 + R_2 + ...) + TV + L2 of a view (SRe2L)."""
    net = network(architecture)
    hooked, teacher = Hooked(net, ("bn",)), teacher_of(net)
    labels = torch.tensor([4, 0, 2, 1, 5])
    images, truth = leaves(5, 1)
    weight, tv_weight, l2_weight = 0.01, 1e-4, 1e-5

    z = published_view(truth, window)
    logits, layers = hooked(z)
    steps = z[..., 1:] - z[..., :-1], z[..., 1:, :] - z[..., :-1, :]
    diagonals = z[..., 1:, 1:] - z[..., :-1, :-1], z[..., 1:, :-1] - z[..., :-1, 1:]
    variation = sum(torch.norm(difference) for difference in steps + diagonals)
    expected = F.cross_entropy(logits, torch.tensor(OUTPUTS)[labels])
    expected = expected + weight * published_distance(layers, hooked.running(), next(iter(layers)))
    expected = expected + tv_weight * variation + l2_weight * torch.norm(z.flatten(1), dim=1).mean()

    views = view(images, window)
    logits, moments = teacher(views)
    matching = Matching([(1.0, teacher.matched_targets())], layer_weights(len(teacher.layers)))
    variation, norm = image_priors(views)
    loss = F.cross_entropy(logits, teacher.outputs[labels]) + weight * matching(moments)
    loss = loss + tv_weight * variation + l2_weight * norm
    assert_same(loss, images, expected, truth)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_g_vbsm(architecture):
    """BatchNorms, channels and patches as running means, convolutions that drop out, densification."""
    net = network(architecture)
    hooked, teacher = Hooked(net, EVERYTHING), teacher_of(net, EVERYTHING)
    targets = hooked.real(7) | hooked.running()
    matching = matching_of(teacher, (1.0, targets), ema=0.4, ema_start="zero")
    averages, first = Averages(0.4), next(iter(targets))
    labels, weight = torch.tensor([1, 1, 1, 4, 4, 4]), 0.01
    generator = torch.Generator().manual_seed(3)
    for iteration, window in enumerate(WINDOWS):
        images, truth = leaves(6, iteration, 0.1)
        drawn = torch.rand(len(teacher.layers), generator=generator) >= 0.4
        live = drawn | torch.tensor([name in hooked.running() for name in targets])

        z = published_view(truth, window)
        logits, layers = hooked(z)
        expected = F.cross_entropy(logits, torch.tensor(OUTPUTS)[labels])
        expected = expected + weight * published_distance(averages(layers, live), targets, first)
        for mine in z.flatten(1).chunk(2):
            eigenvalues = torch.linalg.eigvals(mine @ mine.T).real
            p = torch.softmax(eigenvalues / 4, 0).detach()
            expected = expected + F.kl_div(torch.log_softmax(eigenvalues, 0), p, reduction="sum")

        views = view(images, window)
        logits, moments = teacher(views)
        loss = F.cross_entropy(logits, teacher.outputs[labels]) + weight * matching(moments, live)
        loss = loss + densification(views, 2)
        assert_same(loss, images, expected, truth)


def test_edc():
    """Half of the distance from global, half from the batch's categories; teachers take turns; flatness."""
    nets = [network("zoo/wrn16_2"), network("plain")]
    hooks, teachers = [Hooked(net, EVERYTHING) for net in nets], [teacher_of(net, EVERYTHING) for net in nets]
    batches = torch.tensor([[0, 0, 3, 3, 3], [1, 1, 2, 2, 5]])
    averages, global_targets, tables, matchings = [], [], [], []
    for hooked, teacher in zip(hooks, teachers, strict=True):
        global_targets.append(hooked.real(7) | hooked.running())
        tables.append([hooked.real(20 + label) for label in range(NUM_CLASSES)])
        averages.append(Averages(0.8))
        sets = (0.5, global_targets[-1]), (0.5, global_targets[-1])
        matchings.append(matching_of(teacher, *sets, ema=0.8, ema_start="zero"))
    weight = 0.01
    for iteration, window in enumerate(WINDOWS):
        images, truth = leaves(5, iteration, 0.7)
        earlier = noise(5, 50 + iteration)
        labels, which = batches[iteration // 2], iteration % 2
        hooked, teacher, matching = hooks[which], teachers[which], matchings[which]
        category = {
            name: [
                torch.stack([tables[which][label][name][k] for label in labels]).mean(0) for k in range(len(vectors))
            ]
            for name, vectors in global_targets[which].items()
        }

        logits, layers = hooked(published_view(truth, window))
        layers, first = averages[which](layers), next(iter(layers))
        expected = F.cross_entropy(logits, torch.tensor(OUTPUTS)[labels])
        for targets in (global_targets[which], category):
            expected = expected + weight * 0.5 * published_distance(layers, targets, first)
        with torch.no_grad():
            p = torch.softmax(hooked(published_view(earlier.double(), window))[0] / 4, 1)
        expected = expected + (p * (p.log() - torch.log_softmax(logits / 4, 1))).sum() / (5 * NUM_CLASSES)

        matching.set_targets(1, in_order(teacher, category))
        logits, moments = teacher(view(images, window))
        loss = F.cross_entropy(logits, teacher.outputs[labels]) + weight * matching(moments)
        with torch.no_grad():
            before, _ = teacher(view(earlier, window))
        loss = loss + flatness(logits, before)
        assert_same(loss, images, expected, truth)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("label", [0, 4])
def test_lpld(architecture, label):
    """The images of a class, through BatchNorms whose targets are that class's statistics (LPLD)."""
    net = network(architecture)
    hooked, teacher = Hooked(net, ("bn",)), teacher_of(net)
    targets = hooked.real(20 + label)
    images, truth = leaves(7, label)
    labels = torch.full((7,), label)

    logits, layers = hooked(published_view(truth, WINDOWS[1]))
    expected = F.cross_entropy(logits, torch.tensor(OUTPUTS)[labels])
    expected = expected + 0.01 * published_distance(layers, targets, next(iter(layers)))

    logits, moments = teacher(view(images, WINDOWS[1]))
    loss = F.cross_entropy(logits, teacher.outputs[labels]) + 0.01 * matching_of(teacher, (1.0, targets))(moments)
    assert_same(loss, images, expected, truth)


def test_cv_dd():
    """Two teachers look at the same view, weighted by the softmax of their worth (CV-DD)."""
    nets, priors = [network("zoo/wrn16_2"), network("zoo/resnet20", 1)], torch.tensor([63.0, 65.3]).double()
    images, truth = leaves(6, 4)
    labels = torch.arange(6)
    z, views = published_view(truth, WINDOWS[1]), view(images, WINDOWS[1])
    loss, expected = 0.0, 0.0
    for net, share in zip(nets, torch.exp(priors / 5) / torch.exp(priors / 5).sum(), strict=True):
        hooked, teacher = Hooked(net, ("bn",)), teacher_of(net)
        logits, layers = hooked(z)
        entropy = F.cross_entropy(logits, torch.tensor(OUTPUTS)[labels])
        distance = published_distance(layers, hooked.running(), next(iter(layers)))
        expected = expected + share * (entropy + 0.01 * distance)
        logits, moments = teacher(views)
        entropy = F.cross_entropy(logits, teacher.outputs[labels])
        distance = matching_of(teacher, (1.0, hooked.running()))(moments)
        loss = loss + float(share) * (entropy + 0.01 * distance)
    assert_same(loss, images, expected, truth)


def test_fadrm_with_a_teacher_without_batch_norm():
    """It has nothing to match: R = 0, and cross-entropy alone is left (FADRM)."""
    net = network("plain")
    teacher = teacher_of(net)
    images, truth = leaves(6, 4)
    labels = torch.arange(6)
    expected = F.cross_entropy(net.double()(published_view(truth, WINDOWS[1])), torch.tensor(OUTPUTS)[labels])
    logits, moments = teacher(view(images, WINDOWS[1]))
    matching = Matching([(1.0, teacher.matched_targets())], layer_weights(len(teacher.layers)))
    loss = F.cross_entropy(logits, teacher.outputs[labels]) + 0.01 * matching(moments)
    assert_same(loss, images, expected, truth)
