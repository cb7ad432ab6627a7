"""A student's step on static buffers: the bits of the plain one, with and without warm-ups, and as a CUDA graph."""

import contextlib
import copy

import pytest
import torch
from small import SmallNetwork, frozen_network
from torch import nn

from fastcondense.data.real import Normalization
from fastcondense.labels.labels import TeacherLabels, hard_labels, student_loss
from fastcondense.labels.resident import HostImages
from fastcondense.labels.views import ReplayedViews
from fastcondense.networks.fit import fit, make_optimizer, set_learning_rate
from fastcondense.networks.graph import WARM_UPS, Graphs
from fastcondense.networks.precision import arithmetic
from fastcondense.networks.train_step import Batch, CapturedStep, TrainStep
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.settings import Dataset, Labels, Optimization
from fastcondense.recipe.train import Train
from fastcondense.rng import Stream
from fastcondense.students.task import why_not_captured
from fastcondense.teachers.teacher import Teacher

CPU = torch.device("cpu")
DATASET = Dataset(name="digits", image_size=8, resize=8)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CASES = {
    "kl, AdamW": ({}, {}),
    "equalized, priors, SGD": (
        {"ensemble": "norm-equalized", "priors": (3.0, 9.0), "mix": "mixup"},
        {"optimizer": "sgd", "lr": 0.05, "loss": "mse_ce"},
    ),
    "groups, parts, pool, average": (
        {"batch_norm": "train", "batch_norm_size": 3, "pool": 0.5},
        {"accumulate": 2, "ema": 0.9, "optimizer": "adam"},
    ),
    "augmented, bf16 labels": ({"mix": "none", "augment": ("brightness", "cutout"), "precision": "bf16"}, {"ema": 0.5}),
}


class Arm:
    """What a student is trained with: 23 images in batches of 6, the last of five; two teachers."""

    def __init__(self, labels, train, device=CPU, is_staged=False):
        self.labels, self.device = Labels(**labels), device
        self.train = Train(**({"epochs": 4, "batch_size": 6, "temperature": 3.0, "evaluate_every": 2} | train))
        pixels = torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images = HostImages(pixels, device) if is_staged else pixels.to(device)
        normalize = Normalization.of(DATASET, device)
        self.views = ReplayedViews(images, torch.arange(23, device=device) % 5, self.labels, normalize, 3)
        nets = [frozen_network("zoo/convnet1", 5, seed) for seed in (0, 1)]
        names, unfused = range(5), self.labels.is_in_training
        teachers = [Teacher.of(n, str(k), names, names, DATASET, has_unfused=unfused) for k, n in enumerate(nets)]
        self.source = TeacherLabels([teacher.to(device) for teacher in teachers], self.labels, 0)
        torch.manual_seed(5)
        self.net = SmallNetwork().to(device, memory_format=torch.channels_last)

    def make(self, item):
        batch = self.views.make(item)
        return Batch(batch.images, self.source(batch), item.num_views)

    def loss(self, logits, wanted):
        return student_loss(logits, wanted, self.train)

    def items(self, epoch):
        return self.views.tables(epoch, self.train)

    def fit(self, checkpoint, is_captured, report=lambda _: None):
        arguments = (self.train, self.items, self.loss, lambda _: {}, Stream(1, "test"), checkpoint, report)
        return fit(copy.deepcopy(self.net), *arguments, make=self.make, is_captured=is_captured)


def same_training(one, other):
    """Networks and histories, to the bit."""
    for name, value in one[0].state_dict().items():
        assert torch.equal(value, other[0].state_dict()[name]), name
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.parametrize("case", CASES)
def test_a_step_on_static_buffers_gives_the_bits_of_the_plain_one(tmp_path, case):
    arm = Arm(*CASES[case])
    plain = arm.fit(tmp_path / "plain", False)
    same_training(arm.fit(tmp_path / "static", True), plain)
    same_training(Arm(*CASES[case], is_staged=True).fit(tmp_path / "staged", True), plain)
    assert not torch.equal(plain[0].head.weight, arm.net.head.weight)


def warmed_up(_graphs, step, rewind):
    """What Graphs.capture does on a GPU, without a graph: a capture runs the step's host code, but computes nothing."""
    for _ in range(WARM_UPS):
        rewind()
        step()
    rewind()
    return step


@pytest.mark.parametrize("case", CASES)
def test_warm_ups_leave_no_trace(tmp_path, monkeypatch, case):
    """Not in weights, statistics, the optimizer, the moving average, the loss, nor dropout's random numbers."""
    plain = Arm(*CASES[case]).fit(tmp_path / "plain", False)
    monkeypatch.setattr(Graphs, "capture", warmed_up)
    same_training(Arm(*CASES[case]).fit(tmp_path / "warm", True), plain)


class Interruption(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_captured_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, optimizer):
    """Its buffers are made in another epoch then."""
    monkeypatch.setattr("fastcondense.networks.fit._SECONDS_BETWEEN_CHECKPOINTS", 0)
    monkeypatch.setattr(Graphs, "capture", warmed_up)
    arm = Arm({}, {"optimizer": optimizer, "ema": 0.9, "evaluate_every": 1})

    def interrupt(entry):
        if entry["epoch"] == 3:
            raise Interruption

    with pytest.raises(Interruption):
        arm.fit(tmp_path / "cut", True, interrupt)
    same_training(arm.fit(tmp_path / "cut", True), arm.fit(tmp_path / "whole", True))


def test_buffers_are_made_once_a_shape_and_overwritten():
    arm, seen = Arm({}, {}), []
    step = CapturedStep(arm.net, make_optimizer(arm.net, arm.train, True), arm.train, arm.loss, arm.make)
    for epoch in range(2):
        for item in arm.items(epoch):
            step(item)
            buffers = step.captured[item.shape][0]
            assert buffers is not item and torch.equal(buffers.table.ids, item.table.ids)
            seen.append(buffers.table.windows.data_ptr())
    assert list(step.captured) == [(6, 6, False), (5, 5, False)]
    assert len(set(seen)) == 2 and step.count == 46


def test_a_checkpoint_of_another_devices_optimizer_is_read(tmp_path):
    """A GPU's fused optimizer keeps other settings beside its state, and its learning rate in a tensor."""
    arm = Arm({}, {"epochs": 2})
    plain = arm.fit(tmp_path / "plain", False)
    state = torch.load(tmp_path / "plain")
    state["epoch"] = 1
    for group in state["optimizer"]["param_groups"]:
        group |= {"lr": torch.tensor(7.0), "fused": True, "capturable": True, "foreach": None}
    torch.save(state, tmp_path / "changed")
    again, history = arm.fit(tmp_path / "changed", False)
    assert history[-1]["lr"] == plain[1][-1]["lr"]
    assert not torch.equal(again.head.weight, plain[0].head.weight)  # its last epoch was made twice
    assert again.head.weight.isfinite().all()


def test_a_learning_rate_on_the_device_is_set_in_place():
    rate = torch.tensor(1.0)
    for optimizer in (torch.optim.SGD([torch.zeros(1)], lr=rate), torch.optim.SGD([torch.zeros(1)], lr=1.0)):
        kept = optimizer.param_groups[0]["lr"]
        set_learning_rate(optimizer, 0.25)
        assert float(optimizer.param_groups[0]["lr"]) == 0.25
        assert not isinstance(kept, torch.Tensor) or optimizer.param_groups[0]["lr"] is kept


def test_what_the_host_does_in_a_step_keeps_it_from_being_captured():
    source = Arm({}, {}).source
    for labels, reason in {
        (): None,
        (("tile_shuffle", 2),): "change images from the host",
        (("rand_augment", (1, 9)),): "change images from the host",
        (("dropout", True),): "labels.dropout is seeded from the host",
        (("batch_norm", "train"), ("pool", 0.5), ("tile_pick", 2)): None,
    }.items():
        found = why_not_captured(Recipe(labels=Labels(**dict(labels))), source)
        assert (found is None) == (reason is None) and (reason is None or reason in found)
    assert why_not_captured(Recipe(labels=Labels(dropout=True)), hard_labels) is None
    assert why_not_captured(Recipe(), lambda _: None) == "labels are read on the host, or are your own function's"


# --- arithmetic of the teachers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [{}, {"batch_norm": "train", "batch_norm_size": 3}])
def test_teachers_label_in_their_precision_and_give_float32(labels):
    exact, rounded = (Arm({**labels, "precision": precision}, {}) for precision in ("fp32", "bf16"))
    batch = next(exact.views.epoch(0, exact.train))
    wanted, made = exact.source(batch).logits, rounded.source(batch).logits
    assert wanted is not None and made is not None
    assert made.dtype == wanted.dtype == torch.float32
    assert 1e-4 < float((made - wanted).norm() / wanted.norm()) < 0.03
    assert not labels or torch.equal(made, made.bfloat16().float())  # the head's output, under autocast


def test_the_students_arithmetic_is_not_the_teachers(monkeypatch):
    arm, seen = Arm({"precision": "tf32"}, {}), []
    batch = next(arm.views.epoch(0, arm.train))
    monkeypatch.setattr(Teacher, "logits", lambda *_: seen.append(switch()) or torch.zeros(6, 5))

    def switch():
        return torch.backends.cuda.matmul.fp32_precision

    with arithmetic("fp32"):
        arm.source(batch)
        assert seen == ["tf32", "tf32"] and switch() == "ieee"


# --- on a GPU --------------------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_a_graph_gives_the_bits_of_single_steps(case, precision):
    """With the same optimizer; nothing is said between host and device while graphs are replayed."""
    labels, train = CASES[case]
    arm = Arm(labels, {**train, "precision": precision}, torch.device("cuda", 0))
    steps = {}
    for kind in (TrainStep, CapturedStep):
        net = copy.deepcopy(arm.net).train()
        steps[kind] = kind(net, make_optimizer(net, arm.train, True), arm.train, arm.loss, arm.make)
        for epoch in range(4):
            items = list(arm.items(epoch))
            torch.cuda.synchronize()
            with Stream(2, "test").torch_generator(epoch), arithmetic(precision), quiet(kind is CapturedStep and epoch):
                for item in items:
                    steps[kind](item)
    single, captured = steps[TrainStep], steps[CapturedStep]
    kept = single.changing(), captured.changing()
    assert kept[0].keys() == kept[1].keys() and len(kept[0]) > 15 and single.count == captured.count
    for name, tensor in kept[0].items():
        assert torch.equal(tensor, kept[1][name]), name


@contextlib.contextmanager
def quiet(is_quiet):
    """Host and device must not wait for each other inside."""
    torch.cuda.set_sync_debug_mode("error" if is_quiet else "default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_training_on_a_gpu_is_resumed_to_the_same_bits_and_follows_the_cpus(tmp_path, monkeypatch):
    monkeypatch.setattr("fastcondense.networks.fit._SECONDS_BETWEEN_CHECKPOINTS", 0)
    arm = Arm({}, {"ema": 0.9, "evaluate_every": 1}, torch.device("cuda", 0))

    def interrupt(entry):
        if entry["epoch"] == 3:
            raise Interruption

    with pytest.raises(Interruption):
        arm.fit(tmp_path / "cut", True, interrupt)
    whole = arm.fit(tmp_path / "whole", True)
    same_training(arm.fit(tmp_path / "cut", True), whole)
    arm.net.drop.p = 0.0
    on_cpu = Arm({}, {"ema": 0.9})
    on_cpu.net.drop.p = 0.0
    made, wanted = arm.fit(tmp_path / "gpu", True)[0], on_cpu.fit(tmp_path / "cpu", False)[0]
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name].cpu(), value, rtol=1e-3, atol=1e-4)


@needs_gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_captured_optimizer_follows_the_plain_one(optimizer):
    device, nets = torch.device("cuda", 0), []
    optimization = Optimization(optimizer=optimizer, lr=0.01)
    for is_captured in (False, True):
        torch.manual_seed(0)
        net = nn.Linear(7, 5).to(device)
        made = make_optimizer(net, optimization, is_captured)
        for rate in (0.01, 0.02, 0.005):
            set_learning_rate(made, rate)
            made.zero_grad()
            net(torch.ones(3, 7, device=device)).square().sum().backward()
            made.step()
        nets.append(net)
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
