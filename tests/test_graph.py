"""A step as a CUDA graph: the same numbers as step by step, and no word between host and device while it runs."""

import pytest
import torch

from fastcondense.data.jobs import jobs
from fastcondense.networks import zoo
from fastcondense.networks.graph import WARM_UPS, Graphs
from fastcondense.networks.precision import arithmetic
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Committee, Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.recover.by_statistics import ByStatistics, RecoverStep
from fastcondense.teachers.teacher import Teacher

DATASET = Dataset(name="digits", image_size=16, resize=16)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_on_the_cpu_a_step_is_called_as_it_is():
    calls = []
    step = Graphs(torch.device("cpu")).capture(lambda: calls.append("step"), lambda: calls.append("rewind"))
    assert calls == []
    step()
    assert calls == ["step"]


def recipe(statistics, precision="fp32"):
    recover = Recover(
        iterations=12, lr=0.1, batch_size=4, statistics=statistics, precision=precision, tv_weight=1e-4, l2_weight=1e-5
    )
    return Recipe(ipc=2, dataset=DATASET, recover=recover)


def teachers(device, statistics):
    made = []
    for name in ("zoo/resnet20", "zoo/wrn16_2"):
        torch.manual_seed(len(made))
        net = zoo.build(name, 6).eval().requires_grad_(False)
        teacher = Teacher.of(net, name, [str(k) for k in range(6)], range(6), DATASET, statistics).to(device)
        _, moments = teacher(torch.randn(2, 3, 16, 16, device=device))
        teacher.targets = {
            layer.name: tuple(vector.detach() for vector in vectors)
            for layer, vectors in zip(teacher.layers, moments, strict=True)
        }
        made.append(teacher)
    return made


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("statistics", [("bn",), ("bn", "conv", "patch")])
def test_a_graph_gives_the_bits_of_single_steps_without_a_synchronisation(statistics, precision):
    device, settings = torch.device("cuda"), recipe(statistics, precision)
    frozen = teachers(device, statistics)
    recoverer = ByStatistics(settings, frozen, device)
    for job in jobs(settings, 6)[::3]:  # four images, then two: other buffers, other graphs
        images, losses, *_ = recoverer(job)
        eager = RecoverStep(settings, job, recoverer.teachers, device)
        with arithmetic(precision, settings.recover.reproducible):  # as in the graph
            for iteration in range(12):
                eager(((iteration % 2, 1.0),))
        assert torch.equal(eager.losses.cpu(), losses)
        step = recoverer.steps[job.shape]
        turns = [recoverer.advances[job.shape, ((which, 1.0),), 16] for which in (0, 1)]
        assert torch.equal(step.images, eager.images) and images.dtype == torch.uint8
        step.load(job)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for iteration in range(12):
                turns[iteration % 2]()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(step.losses.cpu(), losses)


METHODS = {
    "dropped layers, running means": {"statistics": ("bn", "conv", "patch"), "statistics_ema": 0.8, "drop_rate": 0.4},
    "flatness": {"flatness_weight": 1.0},
    "densification": {"densification_weight": 1.0, "slots_per_job": 0},
    "committee": {"committee": Committee(size=2, priors=(60.0, 63.0))},
    "stages": {"stages": (12, 16, 12, 16), "residual": 0.5},
}


@needs_gpu
@pytest.mark.parametrize("method", METHODS)
def test_graphs_of_every_method_give_the_bits_of_single_steps(method, monkeypatch):
    device = torch.device("cuda")
    options = {"iterations": 12, "lr": 0.1, "batch_size": 4} | METHODS[method]
    settings = Recipe(ipc=2, dataset=DATASET, recover=Recover(**options))
    frozen = teachers(device, options.get("statistics", ("bn",)))
    captured = ByStatistics(settings, frozen, device)
    with monkeypatch.context() as patched:
        patched.setattr(Graphs, "capture", lambda _self, step, _rewind: step)
        single = ByStatistics(settings, frozen, device)
        expected = [single(job) for job in jobs(settings, 6)]
    for job, wanted in zip(jobs(settings, 6), expected, strict=True):
        found = captured(job)
        assert torch.equal(found.images, wanted.images) and torch.equal(found.losses, wanted.losses)


@needs_gpu
def test_a_step_is_warmed_up_and_captured_once():
    device, calls = torch.device("cuda"), []
    counter = torch.zeros(1, device=device)

    def step():
        calls.append("step")
        counter.add_(1)

    replay = Graphs(device).capture(step, counter.zero_)
    assert len(calls) == WARM_UPS + 1
    counter.zero_()
    for _ in range(5):
        replay()
    assert len(calls) == WARM_UPS + 1 and counter.item() == 5
