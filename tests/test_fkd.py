"""FKD files made by torch.save: views against Pillow and torchvision, labels, order, and views that are written."""

from unittest import mock

import label_files
import numpy as np
import pytest
import torch
from label_files import BATCH, CLASSES, DATASET, EPOCHS, NORMALIZE, SIZE, image_set, orders, run_of, write
from PIL import Image
from torch.utils.data import RandomSampler

from fastcondense.labels import fkd
from fastcondense.labels import views as module_of_views
from fastcondense.labels.fkd import BatchMixedViews, FKDViews, read_fkd
from fastcondense.labels.fkd_files import SamplerOrder, is_fkd, num_bytes
from fastcondense.labels.view_tables import Span
from fastcondense.recipe.train import Train
from fastcondense.vision import torchvision

F = torchvision.transforms.functional


def published(images, ids, fields, is_tensor):
    """The mixed batch in [0, 1]: Pillow's crop by fractions, resize and flip (EDC: torchvision's on tensors)."""
    coords, flip, partner, lam, box = fields[:5]
    views = []
    for image, (top, left, height, width), is_flipped in zip(images[ids], coords.tolist(), flip, strict=True):
        if is_tensor:
            window = [round(x * SIZE) for x in (top, left, height, width)]
            view = F.resized_crop(image / 255, *window, [SIZE, SIZE], antialias=True)
        else:
            whole = Image.fromarray(image.permute(1, 2, 0).numpy())
            corners = (left * SIZE, top * SIZE, left * SIZE + width * SIZE, top * SIZE + height * SIZE)
            view = F.to_tensor(whole.crop(corners).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        views.append(F.hflip(view) if is_flipped else view)
    x = torch.stack(views)
    if box is not None:
        x[:, :, box[0] : box[2], box[1] : box[3]] = x[partner, :, box[0] : box[2], box[1] : box[3]]
    elif partner is not None:
        x = lam * x + (1 - lam) * x[partner]
    return x


@pytest.mark.parametrize(
    ("layout", "mix", "permutations"),
    [
        ("sre2l", "cutmix", 2),
        ("sre2l", "cutmix", 1),
        ("sre2l", "mixup", 2),
        ("sre2l", "none", 2),
        ("gvbsm", "cutmix", 2),
        ("edc", "cutmix", 2),
    ],
)
def test_views_and_labels_are_the_published_ones(tmp_path, layout, mix, permutations):
    written, source = write(tmp_path, layout, mix, permutations), image_set(mix=mix)
    views = FKDViews(tmp_path, source, CLASSES, permutations)
    for epoch in (2, 0, 1):
        for number, batch in enumerate(views.epoch(epoch, Train(batch_size=BATCH))):
            ids, fields = written[epoch, number]
            pixels = batch.images * torch.tensor(DATASET.std)[:, None, None]
            pixels += torch.tensor(DATASET.mean)[:, None, None]
            error = (pixels - published(source.images, ids, fields, layout == "edc")).abs()
            assert error.max() <= (1e-5 if layout == "edc" else 1.001 / 255)
            assert layout == "edc" or error.mean() < 0.35 / 255
            wanted = views.wanted(batch)
            assert torch.equal(wanted.logits, fields[5][None].float())
            assert torch.equal(wanted.labels, source.labels[ids])
            partner = torch.arange(len(ids)) if mix == "none" else fields[2]
            assert torch.equal(wanted.partners, source.labels[ids][partner])
            share = {"none": 1.0, "mixup": fields[3]}.get(mix)
            if share is None:
                rows, columns = (fields[4][k + 2] - fields[4][k] for k in (0, 1))
                share = 1 - rows * columns / SIZE**2
            torch.testing.assert_close(wanted.share, torch.full((len(ids),), float(share)))


def test_windows_are_rounded_as_pillow_does(tmp_path):
    """Fractions that are no whole pixels: edges are rounded, not lengths, and halves go to the even pixel."""
    write(tmp_path)
    coords = torch.tensor([[0.125, 0.0, 0.25, 1.0], [0.33, 0.17, 0.41, 0.38], [0.0, 0.025, 0.5, 0.95]])
    coords = torch.cat((coords, torch.rand(5, 4) * 0.4 + 0.1))
    path, source = tmp_path / "epoch_1" / "batch_1.tar", image_set()
    fields = torch.load(path, weights_only=False)
    fields[0], fields[4] = coords, [np.int64(0)] * 4
    torch.save(fields, path)
    views = FKDViews(tmp_path, source, CLASSES)
    made = list(views.epoch(1, Train(batch_size=BATCH)))[1]
    assert views.table([made.span]).windows[0].tolist()[:4] == [2, 0, 6, 20]  # rows 2.5 to 7.5
    pixels = made.images * torch.tensor(DATASET.std)[:, None, None] + torch.tensor(DATASET.mean)[:, None, None]
    wanted = published(source.images, orders()[1][1], fields, False)
    assert (pixels - wanted).abs().max() <= 1.001 / 255


def test_the_order_is_that_of_torchs_sampler():
    generator = torch.Generator().manual_seed(42)
    sampler = RandomSampler(range(50), generator=generator)
    wanted, order = [list(sampler) for _ in range(5)], SamplerOrder(50)
    for epoch in (0, 1, 2, 3, 4, 4, 2, 3, 0):
        assert order(epoch).tolist() == wanted[epoch]
    with mock.patch.object(torch, "randperm", wraps=torch.randperm) as drawn:  # no epoch before is drawn again
        assert [order(epoch).tolist() for epoch in (0, 1, 1, 2, 2, 2)] == [
            wanted[epoch] for epoch in (0, 1, 1, 2, 2, 2)
        ]
    assert sum(call.args[0] == 50 for call in drawn.call_args_list) == 4  # threads of other tests may draw too
    old = SamplerOrder(50, 1)
    assert old(0).tolist() == wanted[0] and old(1).tolist() != wanted[1] and old(2).tolist() == wanted[1]


def test_a_batch_is_a_file_and_a_single_last_view_joins_the_one_before(tmp_path):
    write(tmp_path)
    views = FKDViews(tmp_path, image_set(), CLASSES)
    assert views.spans(1, Train(batch_size=BATCH)) == [Span(1, 0, 8), Span(1, 8, 16), Span(1, 16, 21)]
    for number in (1, 2):
        (tmp_path / "epoch_0" / f"batch_{number}.tar").unlink()
    path = tmp_path / "epoch_0" / "batch_0.tar"
    fields = torch.load(path, weights_only=False)
    coords, flip, logits = (torch.cat([fields[k]] * 3) for k in (0, 1, 5))
    for name, rows in (("batch_0.tar", slice(0, 20)), ("batch_1.tar", slice(23, 24))):
        content = [coords[rows], flip[rows], torch.arange(len(flip[rows])), 0.5, fields[4], logits[rows]]
        torch.save(content, tmp_path / "epoch_0" / name)
    views = FKDViews(tmp_path, image_set(), CLASSES)
    (batch,) = views.epoch(0, Train(batch_size=20))
    assert len(batch.images) == 21 and torch.equal(views.wanted(batch).logits[0, 20], logits[23].float())


def test_each_file_is_read_once_and_few_are_held(tmp_path, monkeypatch):
    """Two epochs were held: 0.8 GB of logits where 1,000 classes have 200 images each."""
    monkeypatch.setattr(label_files, "BATCH", 2)
    monkeypatch.setattr(fkd, "CHUNK", 4)
    monkeypatch.setattr(module_of_views, "CHUNK", 4)
    written = write(tmp_path)
    views, held = FKDViews(tmp_path, image_set(), CLASSES), []
    with mock.patch.object(fkd, "read_batch", wraps=fkd.read_batch) as read:
        for epoch in range(EPOCHS):
            for number, batch in enumerate(views.epoch(epoch, Train(batch_size=2))):
                logits = views.wanted(batch).logits[0]
                assert torch.equal(logits[:2], written[epoch, number][1][5].float()) and len(logits) in (2, 3)
                held.append(len(views._held))
    assert len(held) == 30 and len(written) == 33 and max(held) <= 16
    paths = [call.args[0] for call in read.call_args_list]
    assert len(paths) == len(set(paths)) == 33


@pytest.mark.parametrize(("permutations", "name"), [(2, "torch's sampler"), (1, "an old torch's sampler")])
def test_the_sampler_is_the_one_that_the_labels_agree_with(tmp_path, permutations, name):
    write(tmp_path, num_permutations=permutations)
    run = run_of()
    found = read_fkd(run, tmp_path, image_set())
    assert found.order.num_permutations == permutations and f"order of {name}; " in run.log.console.file.getvalue()
    assert "100.0 % of 63 views" in run.log.console.file.getvalue()


def test_an_index_needs_no_sampler(tmp_path):
    written = write(tmp_path, "gvbsm", num_permutations=1)
    run = run_of()
    found = read_fkd(run, tmp_path, image_set())
    assert "index in the files; " in run.log.console.file.getvalue()
    ids = torch.cat([written[2, number][0] for number in range(3)])
    assert torch.equal(found.table(found.spans(2, run.recipe.train)).ids, ids)


def test_one_epoch_is_enough(tmp_path):
    (tmp_path / "epoch_0").mkdir()
    assert is_fkd(tmp_path)


def test_other_entries_of_the_folder_are_no_epochs(tmp_path):
    assert not is_fkd(tmp_path) and not is_fkd(tmp_path / "none")
    write(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.tar"))
    for name in ("batch_index.json", "epoch_1.bak", "epoch_x", ".DS_Store"):
        (tmp_path / name).write_text("")
    assert is_fkd(tmp_path) and FKDViews(tmp_path, image_set(), CLASSES).num_epochs == EPOCHS
    assert num_bytes(tmp_path, EPOCHS) == size


# --- views that are written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_views_for_files_are_mixed_by_the_batch(mix):
    source = image_set(mix=mix)
    views = BatchMixedViews(source.images, source.labels, source.settings, NORMALIZE, 5)
    spans = [Span(1, 0, 8), Span(1, 8, 16), Span(1, 16, 21)]
    table = views.table(spans)
    assert torch.equal(table.ids, torch.cat(orders()[1]))
    np.testing.assert_array_equal(table.windows, views.seen_windows(table.ids.numpy(), 1))  # those of every replay
    for span in spans:
        rows, fields = table.rows(span.begin, span.end), views.batch(span)
        assert fields.partner.sort().values.tolist() == list(range(len(rows.ids)))
        assert torch.equal(rows.partners, rows.ids[fields.partner])
        assert (fields.partner.tolist() == list(range(len(rows.ids)))) == (mix == "none")
        lam = views.lambda_stream.beta(1.0, span.begin, 1)[0]
        assert fields.share == (1.0 if mix == "none" else lam)
        if mix == "cutmix":
            top, left, bottom, right = fields.box
            side = int(SIZE * np.sqrt(1 - lam))
            assert bottom - top <= side and right - left <= side and min(fields.box) >= 0 and max(fields.box) <= SIZE
            assert rows.boxes.tolist() == [[top, bottom, left, right]] * len(rows.ids)
    assert len({views.batch(span).share for span in spans}) == (1 if mix == "none" else 3)
