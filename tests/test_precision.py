"""bf16 and TF32 as settings: what they change, and what stays float32."""

import copy

import pytest
import torch
from torch import nn

from fastcondense.data.jobs import jobs
from fastcondense.networks import zoo
from fastcondense.networks.fit import fit
from fastcondense.networks.precision import arithmetic
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Recover
from fastcondense.recipe.settings import Dataset, Optimization
from fastcondense.recover.by_statistics import ByStatistics
from fastcondense.rng import Stream
from fastcondense.teachers.moments import BatchNormKeeper
from fastcondense.teachers.teacher import Teacher

CPU = torch.device("cpu")
DATASET = Dataset(name="digits", image_size=16, resize=16)


def teacher():
    torch.manual_seed(0)
    net = zoo.build("zoo/resnet20", 6).eval().requires_grad_(False)
    return Teacher.of(net, "resnet20", [str(k) for k in range(6)], range(6), DATASET)


def recipe(precision):
    return Recipe(dataset=DATASET, recover=Recover(iterations=30, lr=0.1, batch_size=6, precision=precision))


def test_a_cast_teacher_computes_in_bf16_with_float32_moments_and_the_original_stays():
    original = teacher()
    cast = original.cast(torch.bfloat16)
    assert original.cast(torch.float32) is original and cast.sha256 == original.sha256
    for module in cast.fused.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            assert tensor.dtype == (torch.float32 if isinstance(module, BatchNormKeeper) else torch.bfloat16)
    x = torch.randn(4, 3, 16, 16)
    logits, moments = cast(x.bfloat16())
    wanted, wanted_moments = original(x)
    assert logits.dtype == torch.float32
    assert 0 < float((logits - wanted).norm() / wanted.norm()) < 0.05
    for vectors, truths in zip(moments, wanted_moments, strict=True):
        for vector, truth in zip(vectors, truths, strict=True):
            assert vector.dtype == torch.float32
            assert float((vector - truth).norm() / truth.norm()) < 0.03


def test_recover_in_bf16_follows_recover_in_fp32():
    losses = {}
    for precision in ("fp32", "tf32", "bf16"):
        settings = recipe(precision)
        recoverer = ByStatistics(settings, [teacher()], CPU)
        images, losses[precision], *_ = recoverer(jobs(settings, 6)[0])
        step = recoverer.steps[6, 1]
        assert step.images.dtype == step.canvas.first.dtype == step.losses.dtype == torch.float32
        assert images.dtype == torch.uint8
    assert torch.equal(losses["tf32"], losses["fp32"])  # there is no TF32 on a CPU
    assert not torch.equal(losses["bf16"], losses["fp32"])
    torch.testing.assert_close(losses["bf16"], losses["fp32"], rtol=0.1, atol=0.02)


@pytest.mark.parametrize(("precision", "fp32"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")])
def test_arithmetic_sets_and_restores_the_gpus_switches(precision, fp32):
    matmul, conv, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn

    def switches():
        return matmul.fp32_precision, conv.fp32_precision, cudnn.deterministic, cudnn.benchmark

    before = switches()
    with pytest.raises(RuntimeError), arithmetic(precision):
        assert switches() == (fp32, fp32, True, False)
        raise RuntimeError
    assert switches() == before


def test_training_in_bf16_keeps_float32_weights(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(32, 3, 8, 8), torch.randint(0, 4, (32,))
    x[:, 0] += y[:, None, None].float()
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    seen, losses = [], {}
    net[0].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    for precision in ("fp32", "bf16"):
        optimization = Optimization(epochs=20, batch_size=32, lr=0.01, precision=precision)
        trained, history = fit(
            copy.deepcopy(net),
            optimization,
            lambda _: [(x, y)],
            nn.functional.cross_entropy,
            lambda _: {"top1": 0.0},
            Stream(0, "test"),
            tmp_path / precision,
            lambda _: None,
            lambda epochs: epochs,
        )
        assert all(parameter.dtype == torch.float32 for parameter in trained.parameters())
        losses[precision] = history[-1]["loss"]
    assert seen[0] == torch.float32 and seen[-1] == torch.bfloat16
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05) and losses["bf16"] != losses["fp32"]
