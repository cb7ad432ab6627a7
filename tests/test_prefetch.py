"""Batches on the device: the same, in order, and the caller's own."""

import pytest
import torch

from fastcondense.loaders.prefetch import on_device

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def made(sizes, device=CPU):
    """Batches of one loader: channels_last pixels and ids."""
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        pixels = torch.randint(0, 256, (size, 16, 16, 3), dtype=torch.uint8, generator=generator)
        yield pixels.permute(0, 3, 1, 2).to(device), torch.arange(size)


def test_on_the_cpu_batches_pass_one_by_one():
    drawn = []

    def batches():
        for batch in made([4, 4, 1]):
            drawn.append(batch)
            yield batch

    for count, (pixels, ids) in enumerate(on_device(batches(), CPU), 1):
        assert len(drawn) == count and pixels is drawn[-1][0] and ids is drawn[-1][1]
    assert count == 3


@needs_gpu
@pytest.mark.parametrize("source", ["cpu", "cuda"])
@pytest.mark.parametrize("sizes", [[], [3], [64, 64, 64, 7, 64, 65, 1]])
def test_on_a_gpu_batches_are_the_same_and_stay_so(sizes, source):
    device = torch.device("cuda")
    found = []
    for pixels, ids in on_device(made(sizes, torch.device(source)), device):
        assert pixels.is_cuda and ids.is_cuda and pixels.is_contiguous(memory_format=torch.channels_last)
        torch.cuda._sleep(1_000_000)  # the caller is slower than the copies
        found.append((pixels, ids, pixels.float() * 2))
    wanted = list(made(sizes))
    assert len(found) == len(wanted)
    for (pixels, ids, doubled), (others, other_ids) in zip(found, wanted, strict=True):
        assert torch.equal(pixels.cpu(), others) and torch.equal(ids.cpu(), other_ids)
        assert torch.equal(doubled.cpu(), others.float() * 2)


@needs_gpu
def test_on_a_gpu_the_next_batch_is_asked_for_before_this_one_is_given():
    drawn = []

    def batches():
        for batch in made([4, 4, 4]):
            drawn.append(batch)
            yield batch

    assert [len(drawn) for _ in on_device(batches(), torch.device("cuda"))] == [2, 3, 3]
