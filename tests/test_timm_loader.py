"""timm's loader, as the benchmark runs it, gives the images that the others are compared on."""

import torch
from loader_peers import SIZE, Files, timm_batches
from photographs import write_jpegs

CPU = torch.device("cpu")


def test_evaluation_images_are_torchvisions(tmp_path):
    files = write_jpegs(tmp_path, 5)
    loader = timm_batches(files, "evaluate", 2, 0, CPU)
    images = torch.cat([images for images, _ in loader])
    wanted = torch.stack([Files(files, "evaluate")[k][0] for k in range(5)])
    assert images.dtype == torch.uint8 and torch.equal(images, wanted)


def test_training_crops_are_all_but_the_last_part_of_a_batch(tmp_path):
    loader = timm_batches(write_jpegs(tmp_path, 5), "train", 2, 0, CPU)
    for _ in range(2):
        assert [(images.shape, images.dtype) for images, _ in loader] == 2 * [((2, 3, SIZE, SIZE), torch.uint8)]
