"""Labels of views: ensembles and training mode against plain networks, and the students' losses."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcondense.data.real import Normalization
from fastcondense.labels.labels import TeacherLabels, Wanted, ensemble_scales, hard_labels, student_loss
from fastcondense.labels.views import ReplayedViews
from fastcondense.networks import zoo
from fastcondense.recipe.settings import Dataset, Labels
from fastcondense.recipe.train import Train
from fastcondense.rng import Stream
from fastcondense.teachers.teacher import Teacher
from fastcondense.vision import timm, torchvision

DATASET = Dataset(name="digits", image_size=8, resize=8)
NORMALIZE = Normalization.of(DATASET, torch.device("cpu"))
OUTPUTS = [6, 1, 0, 2, 5]


def views(count=23, seed=3, **settings):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)
    return ReplayedViews(images, torch.arange(count) % 5, Labels(**settings), NORMALIZE, seed)


def first_batch(batch_size=6, **settings):
    return next(views(**settings).epoch(0, Train(batch_size=batch_size)))


def whole_epoch(source, replayed, epoch, batch_size):
    """The labels of an epoch, [E, N, classes]."""
    batches = replayed.epoch(epoch, Train(batch_size=batch_size, epochs=20))
    return torch.cat([source(batch).logits for batch in batches], 1)


def test_labels_come_from_the_teachers_mean_logits_and_the_right_outputs():
    nets = [zoo.build("zoo/convnet1", 7) for _ in range(2)]
    teachers = [Teacher.of(net, str(k), range(5), OUTPUTS, DATASET) for k, net in enumerate(nets)]
    batch = first_batch()
    wanted = TeacherLabels(teachers, Labels(), 0)(batch)
    with torch.no_grad():
        expected = torch.stack([net.eval()(batch.images)[:, OUTPUTS] for net in nets])
    assert wanted.logits is not None
    torch.testing.assert_close(wanted.logits, expected, rtol=1e-4, atol=1e-5)
    for target in (wanted, hard_labels(batch)):
        assert target.labels is batch.labels and target.partners is batch.partners and target.share is batch.share
    assert hard_labels(batch).logits is None


# --- ensembles -------------------------------------------------------------------------------------------------------


def logits_of_three_teachers():
    torch.manual_seed(1)
    return torch.randn(3, 6, 5) * torch.tensor([1.0, 7.0, 0.2])[:, None, None]


def ensemble(logits, **settings):
    """The mean that the loss is going to take."""
    scales = ensemble_scales(logits, Labels(**settings))
    return (logits if scales is None else logits * scales).mean(0)


def test_the_norm_equalized_mean_is_the_published_one():
    z = logits_of_three_teachers()
    norms = [(z[t].double() ** 2).sum().sqrt() for t in range(3)]
    expected = sum(z[t].double() / norms[t] * (sum(norms) / 3) for t in range(3)) / 3
    torch.testing.assert_close(ensemble(z, ensemble="norm-equalized").double(), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(expected.float(), z.mean(0), rtol=0.1)


def test_priors_weight_the_mean():
    z, priors = logits_of_three_teachers(), (56.4, 42.3, 52.5)
    total = sum(np.exp(p / 10) for p in priors)
    expected = sum(np.exp(p / 10) / total * z[t].double() for t, p in enumerate(priors))
    torch.testing.assert_close(ensemble(z, priors=priors).double(), expected, rtol=1e-6, atol=1e-6)
    sharp = ensemble(z, priors=(600.0, 1800.0, 200.0))
    torch.testing.assert_close(sharp, z[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("priors", "weights"),
    [
        ((63, 65.3, 68.5, 67.6, 67.4), (0.140, 0.177, 0.243, 0.222, 0.218)),
        ((64, 60.6, 51.6, 59.4, 56.4), (0.323, 0.230, 0.093, 0.204, 0.151)),
        ((46.5, 28.3, 43.6, 44.8, 41.5), (0.298, 0.048, 0.223, 0.251, 0.180)),
        ((62.4, 52, 57.2, 54, 60.8), (0.309, 0.109, 0.184, 0.134, 0.264)),
        ((56.4, 42.3, 52.5, 44.2, 40.6), (0.413, 0.101, 0.279, 0.122, 0.085)),
    ],
)
def test_priors_give_the_published_weights(priors, weights):
    """CV-DD's table; R18, R50, SV2, MBV2, D121."""
    scales = ensemble_scales(torch.zeros(5, 1, 1), Labels(priors=priors))
    assert scales is not None
    np.testing.assert_allclose(scales.flatten().numpy() / 5, weights, atol=6e-4)


def test_equalized_logits_can_be_weighted():
    z, weights = logits_of_three_teachers(), torch.softmax(torch.tensor([1.0, 2.0, 5.0]), 0)
    norms = z.flatten(1).norm(dim=1)
    expected = sum(weights[t] * z[t] / norms[t] * norms.mean() for t in range(3))
    made = ensemble(z, ensemble="norm-equalized", priors=(10.0, 20.0, 50.0))
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)


def test_the_loss_sees_the_weighted_ensemble():
    nets = [zoo.build("zoo/convnet1", 7) for _ in range(2)]
    teachers = [Teacher.of(net, str(k), range(5), OUTPUTS, DATASET) for k, net in enumerate(nets)]
    batch = first_batch()
    wanted = TeacherLabels(teachers, Labels(priors=(10.0, 30.0)), 0)(batch)
    with torch.no_grad():
        one, other = (net.eval()(batch.images)[:, OUTPUTS] for net in nets)
    weight = 1 / (1 + np.exp(2.0))
    mean = (weight * one + (1 - weight) * other) / 4
    student = torch.randn(6, 5)
    expected = F.kl_div(F.log_softmax(student / 4, 1), F.softmax(mean, 1), reduction="batchmean")
    torch.testing.assert_close(student_loss(student, wanted, Train(temperature=4.0)), expected, rtol=1e-5, atol=1e-6)


# --- training mode ---------------------------------------------------------------------------------------------------


class Dropping(nn.Module):
    """Convolutions, BatchNorm (an affine and running statistics that are not 0 and 1), dropout and stochastic depth."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.drop, self.depth = nn.Dropout(0.3), torchvision.ops.StochasticDepth(0.3, "row")
        self.path, self.last = timm.layers.DropPath(0.3), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 7)
        for norm in (self.norm, self.last):
            nn.init.uniform_(norm.weight, 0.5, 2)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        x = x + self.depth(self.drop(x)) + self.path(x)
        return self.head(self.last(x))


def dropping_teacher(name="dropping", seed=4):
    torch.manual_seed(seed)
    net = Dropping()
    return Teacher.of(net, name, range(5), OUTPUTS, DATASET, has_unfused=True), net


def in_groups(net, images, groups):
    """Logits of the plain network, group by group, in the order of the positions."""
    with torch.no_grad():
        return torch.cat([net(images[first:last])[:, OUTPUTS] for first, last in groups])


@pytest.mark.parametrize(
    ("count", "size", "batch_size", "groups"),
    [
        (16, 8, 16, [(0, 8), (8, 16)]),
        (21, 8, 16, [(0, 8), (8, 16), (16, 21)]),  # the last batch has five
        (17, 8, 16, [(0, 8), (8, 17)]),  # one image joins the batch, and the group, before
        (17, 8, 17, [(0, 8), (8, 17)]),
        (13, 4, 8, [(0, 4), (4, 8), (8, 13)]),
        (12, 5, 6, [(0, 6), (6, 12)]),  # groups of five and one in a batch of six
        (9, 128, 16, [(0, 9)]),
    ],
)
def test_batch_norms_take_the_statistics_of_their_group(count, size, batch_size, groups):
    settings = {"batch_norm": "train", "batch_norm_size": size}
    teacher, net = dropping_teacher()
    source, replayed = TeacherLabels([teacher], Labels(**settings), 0), views(count, **settings)
    images = torch.cat([batch.images for batch in replayed.epoch(2, Train(batch_size=count))])
    made = whole_epoch(source, replayed, 2, batch_size)[0]
    plain = copy.deepcopy(net).train()
    for module in (plain.drop, plain.depth, plain.path):
        module.eval()
    torch.testing.assert_close(made, in_groups(plain, images, groups), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made, in_groups(net.eval(), images, groups), rtol=0.1, atol=0.1)


def test_running_statistics_are_neither_read_nor_changed():
    settings = {"batch_norm": "train", "batch_norm_size": 4}
    teacher, _ = dropping_teacher()
    before = {name: value.clone() for name, value in teacher.unfused.state_dict().items()}
    source, fused_before = TeacherLabels([teacher], Labels(**settings), 0), teacher.logits(torch.ones(2, 3, 8, 8))
    made = whole_epoch(source, views(**settings), 0, 8)
    for name, value in teacher.unfused.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(teacher.logits(torch.ones(2, 3, 8, 8)), fused_before)
    teacher.unfused.norm.running_mean += 100
    assert torch.equal(whole_epoch(source, views(**settings), 0, 8), made)


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_dropout_is_drawn_for_the_epoch_and_the_group(batch_norm):
    settings = {"batch_norm": batch_norm, "batch_norm_size": 4, "dropout": True}
    teacher, net = dropping_teacher()
    source, replayed = TeacherLabels([teacher], Labels(**settings), 9), views(18, **settings)
    images = torch.cat([batch.images for batch in replayed.epoch(5, Train(batch_size=18))])
    made = whole_epoch(source, replayed, 5, 8)[0]
    plain = copy.deepcopy(net).train()
    if batch_norm == "eval":
        plain.norm.eval(), plain.last.eval()
    stream, groups = Stream(9, "labels/dropout/dropping"), [(0, 4), (4, 8), (8, 12), (12, 16), (16, 18)]
    expected = []
    for first, last in groups:
        with stream.torch_generator(5, first), torch.no_grad():
            expected.append(plain(images[first:last])[:, OUTPUTS])
    torch.testing.assert_close(made, torch.cat(expected), rtol=1e-5, atol=1e-5)

    state = torch.random.get_rng_state()
    assert torch.equal(whole_epoch(source, replayed, 5, 4)[0], made)
    assert torch.equal(torch.random.get_rng_state(), state)
    others = [
        whole_epoch(TeacherLabels([dropping_teacher("other")[0]], Labels(**settings), 9), replayed, 5, 8)[0],
        whole_epoch(TeacherLabels([teacher], Labels(**settings), 8), replayed, 5, 8)[0],
    ]
    assert not any(torch.allclose(other, made, rtol=1e-2) for other in others)


@pytest.mark.parametrize("more", [{}, {"dropout": True}, {"mix": "none", "tile_shuffle": 2}, {"pool": 0.3}])
def test_labels_in_training_mode_are_those_of_any_run(more):
    """For batches of whole groups: not the batch size, the epochs before nor the place in the run decide a label."""
    settings = {"batch_norm": "train", "batch_norm_size": 4, **more}
    teacher, _ = dropping_teacher()
    source, train = TeacherLabels([teacher], Labels(**settings), 1), Train(batch_size=8, epochs=6)
    labels = {}
    for epoch in range(3):
        labels |= {(batch.span, epoch): source(batch).logits for batch in views(**settings).epoch(epoch, train)}
    resumed = TeacherLabels([dropping_teacher()[0]], Labels(**settings), 1)
    for batch in reversed(list(views(**settings).epoch(2, train))):
        assert torch.equal(resumed(batch).logits, labels[batch.span, 2])
    if "pool" not in more:
        together = [whole_epoch(source, views(**settings), 2, size) for size in (4, 8, 12, 23)]
        assert all(torch.equal(together[0], other) for other in together[1:])


def test_without_the_unfused_network_there_are_no_labels_in_training_mode():
    teacher = Teacher.of(Dropping(), "mine", range(5), OUTPUTS, DATASET)
    assert teacher.unfused is None
    for settings in (Labels(batch_norm="train"), Labels(dropout=True)):
        with pytest.raises(ValueError, match="teacher mine has no unfused network"):
            TeacherLabels([teacher], settings, 0)


def test_the_unfused_network_is_a_copy_and_is_not_cast():
    teacher, net = dropping_teacher()
    with torch.no_grad():
        net.head.weight.zero_()
    assert bool(teacher.unfused.head.weight.any())
    copied = teacher.cast(torch.bfloat16)
    assert copied.unfused is None and teacher.unfused is not None and not teacher.unfused.head.weight.requires_grad


# --- losses ----------------------------------------------------------------------------------------------------------


def test_a_part_of_what_is_wanted_belongs_to_its_views():
    t, labels, partners, share = torch.randn(3, 6, 5), torch.arange(6) % 5, torch.arange(6) % 3, torch.rand(6)
    for logits in (t, None):
        part = Wanted(logits, labels, partners, share)[slice(2, 5)]
        assert (part.logits is None) == (logits is None) and (logits is None or torch.equal(part.logits, t[:, 2:5]))
        for made, whole in ((part.labels, labels), (part.partners, partners), (part.share, share)):
            assert torch.equal(made, whole[2:5])


def test_the_recipe_names_the_loss():
    torch.manual_seed(0)
    z, t = torch.randn(6, 5), torch.randn(3, 6, 5)
    labels, partners, share = torch.arange(6) % 5, torch.arange(6) % 3, torch.rand(6)
    hard = share[:, None] * F.one_hot(labels, 5) + (1 - share[:, None]) * F.one_hot(partners, 5)
    p, q = torch.softmax(t.mean(0) / 4, 1), torch.softmax(z / 4, 1)
    divergence, entropy = (p * (p / q).log()).sum() / 6, F.cross_entropy(z, hard)
    for loss, expected in {
        "kl": divergence,
        "kl_t2": 16 * divergence,
        "mse_ce": F.mse_loss(z, t.mean(0)) + 0.3 * entropy,
    }.items():
        train = Train(loss=loss, temperature=4.0, ce_weight=0.3)
        torch.testing.assert_close(student_loss(z, Wanted(t, labels, partners, share), train), expected)
        torch.testing.assert_close(student_loss(z, Wanted(None, labels, partners, share), train), entropy)


def test_own_labels_leave_the_partner_out_of_the_entropy_beside_soft_labels_alone():
    torch.manual_seed(0)
    z, t = torch.randn(6, 5), torch.randn(3, 6, 5)
    labels, partners, share = torch.arange(6) % 5, torch.arange(6) % 3, torch.rand(6)
    train = Train(loss="mse_ce", ce_weight=0.3, ce_labels="own")
    expected = F.mse_loss(z, t.mean(0)) + 0.3 * F.cross_entropy(z, labels)
    torch.testing.assert_close(student_loss(z, Wanted(t, labels, partners, share), train), expected)
    hard = Wanted(None, labels, partners, share)
    assert torch.equal(student_loss(z, hard, train), student_loss(z, hard, Train()))
