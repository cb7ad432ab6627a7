"""Densification and flatness against float64 transcriptions of the specification, and where eigenvalues coincide."""

import numpy as np
import pytest
import torch
from kernel_checks import NoHostReads, relative_rms
from torch.nn import functional as F

from fastcondense.recover.regularizers import densification, flatness, image_priors


def noise(count, size, scale=1.0, seed=0):
    return scale * torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def published_densification(views, num_classes, temperature):
    """Class by class, by the eigenvalues of a general matrix, as published."""
    size = views.shape[2]
    rows = (F.adaptive_avg_pool2d(views, 32) if size > 32 else views).flatten(1)
    total = 0.0
    for mine in rows.split(num_classes) if isinstance(num_classes, list) else rows.chunk(num_classes):
        eigenvalues = torch.linalg.eigvals(mine @ mine.T).real
        target = torch.softmax(eigenvalues / temperature, 0).detach()
        total = total + (target * (target.log() - torch.log_softmax(eigenvalues, 0))).sum()
    return total


CASES = [  # classes, views of each, side, scale of the pixels: eigenvalues of 0.1 to 2000, some of whose gaps are small
    (2, 10, 224, 1.0),
    (3, 5, 64, 0.5),
    (3, 7, 45, 0.1),
    (1, 4, 33, 0.05),
    (2, 10, 32, 0.7),
    (1, 50, 32, 0.1),
    (4, 3, 17, 0.1),
    (5, 2, 7, 0.3),
    (1, 3, 1, 0.3),
    ([3, 5, 1], None, 32, 0.1),
    ([2, 2], None, 17, 0.1),
]


@pytest.mark.parametrize("temperature", [4.0, 1.5])
@pytest.mark.parametrize(("num_classes", "m", "size", "scale"), CASES)
def test_densification_equals_the_published_formula(num_classes, m, size, scale, temperature):
    views = (
        noise(num_classes * m if m else sum(num_classes), size, scale)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
    )
    truth = views.detach().double().requires_grad_()
    loss = densification(views, num_classes, temperature)
    expected = published_densification(truth, num_classes, temperature)
    assert loss.dtype == torch.float32 and loss.shape == () and loss > 0
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    (gradient,), (wanted,) = torch.autograd.grad(2 * loss, views), torch.autograd.grad(2 * expected, truth)
    assert relative_rms(gradient, wanted) < 1e-6


def orthogonal(energies):
    """Views of disjoint pixels, so that their Gram matrix is diagonal: float64 [m, 3, 6, 6], eigenvalues `energies`."""
    m = len(energies)
    rows = torch.zeros(m, 108, dtype=torch.float64)
    for k, energy in enumerate(energies):
        pixels = torch.arange(k, 108, m)
        rows[k, pixels] = (energy / len(pixels)) ** 0.5
    return rows.view(m, 3, 6, 6)


COINCIDING = [
    (5.0, 5.0, 2.0),
    (5.0, 5.0 + 1e-9, 2.0),
    (7.0, 2.0, 2.0, 2.0, 0.0),
    (3.0, 3.0, 3.0),
    (0.0, 0.0),
    (900.0, 900.0, 2.0),
]


@pytest.mark.parametrize("energies", COINCIDING, ids=str)
def test_densification_where_eigenvalues_coincide(energies):
    """Then row k's gradient is 2 (q_k - p_k) z_k, whatever eigenvectors a solver would have chosen."""
    views = orthogonal(energies).requires_grad_()
    log_p, log_q = (torch.log_softmax(torch.tensor(energies, dtype=torch.float64) / t, 0) for t in (4.0, 1.0))
    p, q = log_p.exp(), log_q.exp()
    loss = densification(views, 1)
    (gradient,) = torch.autograd.grad(loss, views)
    assert float(loss.detach()) == pytest.approx(float((p * (log_p - log_q)).sum()), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(gradient, 2 * (q - p)[:, None, None, None] * views.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("energies", COINCIDING[:3], ids=str)
def test_densification_gradient_is_the_slope_of_the_loss(energies):
    """Finite differences of KL(p || q) with p held, in directions that make coinciding eigenvalues part."""
    views = orthogonal(energies).requires_grad_()
    (gradient,) = torch.autograd.grad(densification(views, 1), views)
    held = torch.softmax(torch.tensor(energies, dtype=torch.float64).sort().values / 4, 0)

    def loss(at):
        rows = at.flatten(1)
        eigenvalues = torch.linalg.eigvalsh(rows @ rows.T)
        return float((held * (held.log() - torch.log_softmax(eigenvalues, 0))).sum())

    for seed in range(3):
        direction = noise(len(energies), 6, seed=seed).double()
        step = 1e-5
        slope = (loss(views.detach() + step * direction) - loss(views.detach() - step * direction)) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_densification_of_one_view_a_class_is_nothing():
    views = noise(4, 9).requires_grad_()
    loss = densification(views, 4)
    assert loss == 0 and not torch.autograd.grad(loss, views)[0].any()


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 30.0])
def test_densification_of_equal_views_stays_finite(scale):
    """Black images, and eigenvalues of millions beside zeros: one of them takes everything, in p and in q."""
    views = noise(1, 32, scale).expand(10, -1, -1, -1).clone().requires_grad_()
    loss = densification(views, 2)
    (gradient,) = torch.autograd.grad(loss, views)
    assert abs(float(loss.detach())) < 1e-6 and gradient.isfinite().all()


def test_densification_of_low_precision_views_is_float32():
    views = noise(6, 40, 0.2).bfloat16().requires_grad_()
    loss = densification(views, 2)
    expected = published_densification(views.detach().double(), 2, 4.0)
    (gradient,) = torch.autograd.grad(loss, views)
    assert loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16 and gradient.any()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)


def test_densification_needs_complete_classes():
    with pytest.raises(ValueError, match="as many views in each of 3 classes, got 7"):
        densification(noise(7, 8), 3)
    with pytest.raises(ValueError, match="needs 8 views, those of 2 classes, got 7"):
        densification(noise(7, 8), [3, 5])


@pytest.mark.parametrize("temperature", [4.0, 1.5])
@pytest.mark.parametrize("distance", [3.0, 1e-2])
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (5, 116), (20, 1000)])
def test_flatness_equals_the_published_formula(shape, distance, temperature):
    generator = torch.Generator().manual_seed(0)
    ema_logits = 3 * torch.randn(shape, generator=generator)
    logits = (ema_logits + distance * torch.randn(shape, generator=generator)).requires_grad_()
    truth = logits.detach().double().requires_grad_()
    p = torch.softmax(ema_logits.double() / temperature, 1)
    q = torch.softmax(truth / temperature, 1)
    expected = (p * (p.log() - q.log())).sum() / (shape[0] * shape[1])
    followed = ema_logits.requires_grad_()
    loss = flatness(logits, followed, temperature)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    gradient, none = torch.autograd.grad(loss, (logits, followed), allow_unused=True)
    (wanted,) = torch.autograd.grad(expected, truth)
    assert relative_rms(gradient, wanted) < 1e-6 and none is None


def test_nothing_is_read_by_the_host():
    views, logits = noise(6, 40, 0.2).requires_grad_(), torch.randn(6, 5, requires_grad=True)
    with NoHostReads():
        torch.autograd.grad(densification(views, 2) + flatness(logits, logits + 1), (views, logits))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 9, 13), (5, 1, 7, 8), (2, 4, 1, 6), (1, 1, 1, 1)], ids=str)
def test_image_priors_are_norms_written_out(shape, dtype):
    views = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    exact = views.double().numpy()
    squares = [0.0] * 4
    for n, c, h, w in np.ndindex(*shape):
        for k, (down, right) in enumerate(((0, 1), (1, 0), (1, 1), (1, -1))):
            if h + down < shape[2] and 0 <= w + right < shape[3]:
                squares[k] += (exact[n, c, h, w] - exact[n, c, h + down, w + right]) ** 2
    variation, norm = image_priors(views)
    limit = 1e-12 if dtype == torch.float64 else 1e-6
    assert float(variation) == pytest.approx(sum(square**0.5 for square in squares), rel=limit)
    assert float(norm) == pytest.approx(np.sqrt((exact**2).sum((1, 2, 3))).mean(), rel=limit)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(image_priors, views.requires_grad_())


def test_where_a_norm_is_zero_so_is_the_gradient_of_image_priors():
    flat = torch.full((2, 3, 6, 5), 0.5).requires_grad_()
    variation, norm = image_priors(flat)
    assert variation == 0 and not torch.autograd.grad(variation, flat, retain_graph=True)[0].any()
    assert torch.autograd.grad(norm, flat)[0].all()
    black = torch.randn(2, 3, 6, 5).mul_(torch.tensor([1.0, 0.0])[:, None, None, None]).requires_grad_()
    (gradient,) = torch.autograd.grad(image_priors(black)[1], black)
    assert gradient[0].any() and not gradient[1].any()
