"""DINO's loss and its gradients against a float64 transcription; center, teacher, schedules and head by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcondense.recipe.settings import DINO
from fastcondense.squeeze.dino import Head, SelfDistillation, distill
from fastcondense.squeeze.multi_crop import Crops
from fastcondense.views.windows import Views


def distill_by_hand(student, teacher, center, student_temperature, teacher_temperature):
    """Cross-entropies of all pairs of different views, one by one, float64."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        pairs = []
        for i, view in enumerate(t):
            wanted = torch.exp((view.detach() - center) / teacher_temperature)
            wanted = wanted / wanted.sum()
            for j, other in enumerate(s):
                if i != j:
                    logits = other / student_temperature
                    pairs.append(-(wanted * (logits - torch.log(torch.exp(logits).sum()))).sum())
        losses.append(sum(pairs) / len(pairs))
    return torch.stack(losses)


@pytest.mark.parametrize(("batch", "views", "size"), [(1, 2, 3), (3, 5, 17), (4, 8, 40)])
def test_the_loss_and_its_gradient(batch, views, size):
    generator = torch.Generator().manual_seed(views)
    student, teacher, center = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) / 3
        for shape in ((batch, views, size), (batch, 2, size), (size,))
    )
    exact, single = student.requires_grad_(), student.detach().float().requires_grad_()
    wanted = distill_by_hand(exact, teacher, center, 0.1, 0.05)
    made = distill(single, teacher.float().requires_grad_(), center.float(), 0.1, torch.tensor(0.05))
    torch.testing.assert_close(made.double(), wanted, rtol=1e-5, atol=1e-5)
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), exact)
    (gradient,) = torch.autograd.grad(made.sum(), single)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-4, atol=1e-5)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


CROPS = [Crops(2, 6, Views()), Crops(3, 4, Views())]
SMALL = {"outputs": 11, "hidden": 8, "bottleneck": 5, "local_crops": 3, "local_size": 4, "frozen_epochs": 0}


def learner(epochs=5, steps=2, **settings):
    torch.manual_seed(0)
    return SelfDistillation(Net(), "fc", DINO(**(SMALL | settings)), CROPS, epochs, steps)


def rows(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2 * 3 * 36 + 3 * 3 * 16, generator=generator)


def head_by_hand(head, x, has_norms):
    a, b, c = head.layers[0], head.layers[3], head.layers[6]
    for layer in (a, b):
        y = x @ layer.weight.T + layer.bias
        if has_norms:
            y = (y - y.mean(0)) / (y.var(0, correction=0) + 1e-5).sqrt()
        x = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    x = x @ c.weight.T + c.bias
    return (x / x.norm(dim=1, keepdim=True)) @ (head.last / head.last.norm(dim=1, keepdim=True)).T


@pytest.mark.parametrize("has_norms", [False, True])
def test_the_head(has_norms):
    torch.manual_seed(0)
    head, x = Head(9, DINO(**SMALL, head_batch_norm=has_norms)), torch.randn(6, 9)
    torch.testing.assert_close(head(x), head_by_hand(head, x, has_norms), rtol=1e-5, atol=2e-6)
    assert head(x).shape == (6, 11) and head(x).abs().max() <= 1
    assert 0.01 < Head(400, DINO(hidden=300)).layers[0].weight.std() < 0.03


def test_steps_are_those_of_a_loop_by_hand():
    made = learner(decay=0.8, center_decay=0.7, first_teacher_temperature=0.08, temperature_epochs=2)
    student, teacher = copy.deepcopy(made.student).double(), copy.deepcopy(made.teacher).double()
    center = torch.zeros(11, dtype=torch.float64)
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.3)
    for step in range(6):
        x = rows(step)
        losses = made(x)
        optimizer.zero_grad()
        losses.mean().backward()
        assert all(p.grad is None for p in made.teacher.parameters())
        optimizer.step()

        if step:  # the teacher's update ends the step before
            decay = 1 - 0.2 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 10))
            with torch.no_grad():
                for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                    old.copy_(decay * old + (1 - decay) * new)
        large = x.double()[:, :216].reshape(6, 3, 6, 6)
        small = x.double()[:, 216:].reshape(9, 3, 4, 4)
        answers = torch.cat((student(large).view(3, 2, 11), student(small).view(3, 3, 11)), 1)
        wanted = teacher(large).view(3, 2, 11).detach()
        by_hand = distill_by_hand(answers, wanted, center, 0.1, 0.08 if step < 2 else 0.04)
        student.zero_grad()
        by_hand.mean().backward()
        with torch.no_grad():
            for p in student.parameters():
                p -= 0.3 * p.grad
        center = 0.7 * center + 0.3 * wanted.mean((0, 1))
        torch.testing.assert_close(losses.double(), by_hand, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made.center.double(), center, rtol=1e-4, atol=1e-6)
    for made_net, wanted_net in ((made.student, student), (made.teacher, teacher)):
        for name, value in wanted_net.state_dict().items():
            torch.testing.assert_close(made_net.state_dict()[name].double(), value.double(), rtol=2e-3, atol=2e-5)
    assert not torch.equal(made.teacher.conv.weight, made.student.conv.weight)


def test_the_last_layer_is_still_while_it_is_frozen():
    made = learner(frozen_epochs=2)
    for step in range(6):
        made.zero_grad()
        made(rows(step)).mean().backward()
        gradient = made.student.fc.last.grad
        assert float(gradient.abs().max()) > 0 if step >= 4 else float(gradient.abs().max()) == 0
        assert float(made.student.fc.layers[0].weight.grad.abs().max()) > 0


def test_schedules():
    made = learner(epochs=10, steps=4, decay=0.9, first_teacher_temperature=0.02, temperature_epochs=5)
    decays = [float(made.decay(torch.tensor(step))) for step in (0, 20, 40)]
    assert decays == pytest.approx([0.9, 0.95, 1.0], abs=1e-6)
    temperatures = [float(made.teacher_temperature(torch.tensor(step))) for step in (0, 3, 4, 8, 16, 39)]
    assert temperatures == pytest.approx([0.02, 0.02, 0.025, 0.03, 0.04, 0.04], abs=1e-6)
    assert float(learner().teacher_temperature(torch.tensor(3))) == pytest.approx(0.04)


def test_the_kept_network_is_the_teacher_or_the_student():
    teacher, student = learner(), learner(network="student")
    assert teacher.trained is teacher.teacher and student.trained is student.student


def test_evaluation_changes_nothing():
    made = learner().eval()
    before = copy.deepcopy(made.state_dict())
    assert F.relu(made(rows(0))).min() > 0
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
