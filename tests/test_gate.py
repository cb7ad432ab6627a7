"""The gate, with teachers that are wrong in known ways: orders, chance, preprocessing."""

import math

import numpy as np
import pytest
import small
import torch
from torch import nn

from fastcondense.networks import zoo
from fastcondense.recipe.settings import Dataset
from fastcondense.squeeze.gate import check_gate, is_chance, judge
from fastcondense.teachers.teacher import Teacher

CPU = torch.device("cpu")
DIGITS = Dataset(name="digits", image_size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
OTHER = Dataset(name="digits", image_size=8, resize=8, mean=(5.0, 5.0, 5.0), std=(0.05, 0.05, 0.05))


# --- orders, of answers that are drawn -------------------------------------------------------------------------------


def drawn(order, count, rights, seed=0, outputs=None):
    """A judgement of `count` images a class, a share `rights` of which is named after the class's output, order[k]."""
    generator = np.random.default_rng(seed)
    order, num_outputs = np.asarray(order), outputs or len(order)
    labels = np.arange(len(order)).repeat(count)
    noise = generator.integers(0, num_outputs, len(labels))
    predicted = torch.from_numpy(np.where(generator.random(len(labels)) < rights, order[labels], noise))
    labels = torch.from_numpy(labels)
    return judge(labels, predicted, range(len(order)), num_outputs, predicted == labels)


def as_text(count):
    """The number of each class where the numbers are sorted as text."""
    return [int(name) for name in sorted(map(str, range(count)))]


ORDERS = {
    "as text, 11": as_text(11),
    "as text, 100": as_text(100),
    "as text, 1000": as_text(1000),
    "shifted": [*range(1, 20), 0],
    "two exchanged": [1, 0, *range(2, 10)],
    "two exchanged of 200": [*range(100), 150, *range(101, 150), 100, *range(151, 200)],
    "two pairs": [1, 0, 3, 2, *range(4, 12)],
    "reversed": list(range(9, -1, -1)),
}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("rights", [0.95, 0.8])
def test_another_order_is_found_whatever_the_accuracy(name, rights):
    order = ORDERS[name]
    found = drawn(order, 10, rights)
    assert list(found.moved) == [k for k, output in enumerate(order) if k != output]
    assert [found.best[k] for k in found.moved] == [order[k] for k in found.moved]


@pytest.mark.parametrize(("count", "rights"), [(1, 0.95), (2, 0.7), (10, 0.15)])
def test_text_order_is_found_with_few_images_and_with_weak_teachers(count, rights):
    found = drawn(as_text(100), count, rights)
    assert len(found.moved) > 40 and found.best_hits > found.hits


@pytest.mark.parametrize(("classes", "count"), [(10, 2), (100, 2), (100, 3)])
def test_exchanged_pairs_are_found_of_which_no_single_one_is_likely(classes, count):
    """Two images a class prove no exchange of two classes, but half of all classes exchanged."""
    found = drawn(range(classes - 1, -1, -1), count, 0.95)
    right = [k for k in found.moved if found.best[k] == classes - 1 - k]
    assert len(right) >= 0.8 * classes and len(found.moved) - len(right) <= 0.05 * classes


@pytest.mark.parametrize(("classes", "count"), [(2, 3), (2, 50), (10, 1), (10, 10), (60, 1), (100, 3), (300, 2)])
def test_the_right_order_is_never_doubted(classes, count):
    for seed in range(4):
        for rights in (0.0, 0.3, 0.9):
            assert drawn(range(classes), count, rights, seed).moved == ()


def test_classes_that_look_alike_are_no_exchange():
    """Forty pairs whose images are named either way: for some pair, by chance, more the other way."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        labels = np.arange(80).repeat(10)
        predicted = torch.from_numpy(np.where(generator.random(800) < 0.5, labels, labels ^ 1))
        order = judge(torch.from_numpy(labels), predicted, range(80), 80, predicted == torch.from_numpy(labels))
        assert order.best_hits > order.hits and order.moved == ()


def test_a_class_that_is_an_output_of_none_of_them_is_found():
    """Ten classes of a network of 30 outputs; class 3 is output 17."""
    found = drawn([0, 1, 2, 17, *range(4, 10)], 20, 0.95, outputs=30)
    assert found.moved == (3,) and found.best[3] == 17


# --- chance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "count", "classes", "wanted"),
    [
        (6, 6, 2, False),  # all right: p = 1/64
        (5, 6, 2, True),  # p = 7/64
        (11, 12, 2, False),  # p = 13/4096
        (9, 12, 2, True),
        (10, 10, 1, False),
        (4, 4, 2, False),
        (20, 100, 10, False),  # p = 0.002 > 0.001: see below
        (21, 100, 10, False),
        (14, 100, 10, True),
        (1, 100, 100, True),
    ],
)
def test_chance_is_what_the_binomial_distribution_says(hits, count, classes, wanted):
    p = 1 / classes
    tail = sum(math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(hits, count + 1))
    if (hits, count) == (20, 100):
        wanted = tail > 1e-3
    assert is_chance(hits, count, classes) is wanted


# --- teachers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return [part[:150] for part in small.digits("test")]


@pytest.fixture(scope="module")
def trained():
    return small.trained_network()


def gate(net, digits, dataset=DIGITS, outputs=range(10), classes="0123456789", **options):
    teacher = Teacher.of(net, "mine", classes, list(outputs), dataset)
    return check_gate(teacher, *digits, classes, dataset, CPU, **options)


def test_two_classes_of_three_images_each_are_refused_as_chance_with_what_another_order_gives():
    pixels = torch.tensor([0, 0, 0, 20, 20, 20], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    labels = torch.tensor([1, 1, 1, 0, 0, 0])
    with pytest.raises(ValueError, match=r"at chance: 0 of 6 .* right, and 6 in the class order that fits best, which"):
        gate(nn.Sequential(nn.Flatten(), Levels(2)), (pixels, labels), outputs=range(2), classes="ab")


def test_a_trained_teacher_passes_with_its_accuracy(trained, digits):
    pixels, labels = digits
    with torch.no_grad():
        accuracy = float((trained(pixels / 255).argmax(1) == labels).double().mean())
    said = []
    assert accuracy > 0.8
    assert gate(trained, digits, say=said.append) == pytest.approx(accuracy, abs=0.011) and said == []


def test_another_class_order_is_named_with_what_is_moved(trained, digits):
    with pytest.raises(
        ValueError, match=r"teacher mine has its outputs in another order .* moves 10 of 10 classes"
    ) as caught:
        gate(trained, digits, outputs=[(k + 3) % 10 for k in range(10)])
    assert "('0' is named '7', '1' is named '8'," in str(caught.value)
    assert "preprocessing" not in str(caught.value) and "squeeze.classes_file" in str(caught.value)


def test_two_exchanged_classes_are_refused_far_above_chance(trained, digits):
    with pytest.raises(ValueError, match=r"moves 2 of 10 classes \('3' is named '5', '5' is named '3'\)"):
        gate(trained, digits, outputs=[0, 1, 2, 5, 4, 3, 6, 7, 8, 9])


def test_a_teacher_that_was_trained_here_is_not_asked_for_its_order(trained, digits):
    outputs = [0, 1, 2, 5, 4, 3, 6, 7, 8, 9]
    assert 0.5 < gate(trained, digits, outputs=outputs, is_trained=True) < 0.9


def test_numbers_sorted_as_text_are_recognised():
    """Twelve grey levels, a network that knows them in the order of numbers, and folders in that of text."""
    classes = sorted(map(str, range(12)))
    net = nn.Sequential(nn.Flatten(), Levels(12))
    pixels = torch.tensor([20 * int(name) for name in classes], dtype=torch.uint8).repeat_interleave(4)
    labels = torch.arange(12).repeat_interleave(4)
    with pytest.raises(ValueError, match="cause: its outputs are in the order of numbers, the folders in that of text"):
        gate(net, (pixels[:, None, None, None].expand(-1, 3, 8, 8), labels), outputs=range(12), classes=classes)


class Levels(nn.Module):
    """Logits of grey levels 0, 20, 40 ... in the order of numbers."""

    def __init__(self, count):
        super().__init__()
        self.levels = nn.Parameter(torch.arange(count) * 20 / 255)

    def forward(self, x):
        return -100 * (x.mean(1, keepdim=True) - self.levels).abs()


def test_another_normalisation_is_named(trained, digits):
    with pytest.raises(ValueError, match=r"at chance: .*preprocessing\. With pixels in \[0, 1\] without") as caught:
        gate(trained, digits, OTHER)
    assert "order" not in str(caught.value)


def test_a_better_preprocessing_is_told_of_a_teacher_that_passes(trained, digits):
    """Less contrast: still far above chance."""
    said, dim = [], Dataset(name="digits", image_size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(2.5, 2.5, 2.5))
    top1 = gate(trained, digits, dim, say=said.append)
    assert 0.2 < top1 < 0.8 and "is its preprocessing another? With pixels in [0, 1] without" in said[0]


class SwappedChannels(nn.Module):
    """Sees the blue channel only; the red one is noise to it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x[:, 2:].repeat(1, 3, 1, 1))


def test_swapped_channels_are_named(trained, digits):
    pixels, labels = digits[0].clone(), digits[1]
    pixels[:, 2] = 255 - pixels[:, 2] // 2
    with pytest.raises(ValueError, match=r"preprocessing\. With blue, green, red channels it has"):
        gate(SwappedChannels(trained), (pixels, labels))


def test_untrained_weights_are_refused_without_a_false_hint(digits):
    torch.manual_seed(3)
    with pytest.raises(ValueError, match=r"at chance: .*untrained or wrong weights") as caught:
        gate(zoo.build("zoo/convnet2", 10), digits)
    assert "Likeliest" not in str(caught.value)
