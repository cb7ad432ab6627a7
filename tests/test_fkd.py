"""FKD files of every layout, made here by torch.save: views against Pillow and torchvision, labels, order, traps."""

import dataclasses
import io
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import BatchSampler, RandomSampler

from fastcondense.data.real import Normalization
from fastcondense.labels.fkd import BatchMixedViews, FKDViews, read_fkd
from fastcondense.labels.fkd_files import SamplerOrder, check_settings, is_fkd, num_bytes, read_batch
from fastcondense.labels.view_tables import Span
from fastcondense.labels.views import ReplayedViews
from fastcondense.log import Log
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.settings import Dataset, Labels, Train
from fastcondense.vision import torchvision

F = torchvision.transforms.functional

COUNT, SIZE, CLASSES, BATCH, EPOCHS = 21, 20, 7, 8, 3
DATASET = Dataset(name="digits", image_size=SIZE, resize=SIZE)
NORMALIZE = Normalization.of(DATASET, torch.device("cpu"))


def image_set(**settings):
    """A set of three images a class, in class order, and its views."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, SIZE, SIZE), dtype=torch.uint8)
    return ReplayedViews(images, torch.arange(COUNT) // 3, Labels(**settings), NORMALIZE, 0)


def orders(num_permutations=2):
    """Batches of ids in every epoch: by torch's own sampler, or by the one permutation that old torch drew."""
    generator = torch.Generator().manual_seed(42)
    if num_permutations == 2:
        sampler = BatchSampler(RandomSampler(range(COUNT), generator=generator), BATCH, drop_last=False)
        return [[torch.tensor(batch) for batch in sampler] for _ in range(EPOCHS)]
    return [list(torch.randperm(COUNT, generator=generator).split(BATCH)) for _ in range(EPOCHS)]


def write(folder, layout="sre2l", mix="cutmix", num_permutations=2, classes=None):
    """Files as the published code writes them, and what it drew: {(epoch, batch): (ids, fields)}.

    layout: sre2l (six fields), gvbsm (and the index) or edc (and patches). The logits of a view are largest at the
    class of its image.
    """
    draw, written = np.random.default_rng(1), {}
    labels = torch.arange(COUNT) // 3 if classes is None else classes
    for epoch, batches in enumerate(orders(num_permutations)):
        for number, ids in enumerate(batches):
            count = len(ids)
            height, width = (draw.integers(3, SIZE + 1, count) for _ in range(2))
            top, left = draw.integers(0, SIZE - height + 1), draw.integers(0, SIZE - width + 1)
            coords = torch.from_numpy(np.stack((top, left, height, width), 1) / SIZE).float()
            flip, partner = torch.from_numpy(draw.random(count) < 0.5), torch.from_numpy(draw.permutation(count))
            first, last = draw.integers(0, 9, 2), draw.integers(9, SIZE + 1, 2)
            logits = torch.from_numpy(draw.normal(size=(count, CLASSES))).half()
            logits[torch.arange(count), labels[ids]] += 9
            box = [first[0], first[1], last[0], last[1]]
            assert type(box[0]) is np.int64
            mixing = {
                "cutmix": [partner, float(draw.random()), box],
                "mixup": [partner, float(draw.random()), None],
                "none": [None, None, None],
            }[mix]
            fields = [coords, flip, *mixing, logits]
            fields += [] if layout == "sre2l" else [ids]
            fields += [torch.zeros(count, 2, 2, dtype=torch.int32)] if layout == "edc" else []
            path = folder / f"epoch_{epoch}" / f"batch_{number}.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(fields, path)
            written[epoch, number] = ids, fields
    return written


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


# --- a run's settings ------------------------------------------------------------------------------------------------


def run_of(train=None, classes=CLASSES, **labels):
    recipe = Recipe(labels=Labels(**labels), train=Train(**{"batch_size": BATCH, "epochs": EPOCHS, **(train or {})}))
    said = io.StringIO()
    names = tuple(str(k) for k in range(classes))
    return SimpleNamespace(recipe=recipe, real=SimpleNamespace(classes=names), log=Log(Console(file=said, width=999)))


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": {"batch_size": 4}}, "train.batch_size is 4, but .* made with 8"),
        ({"train": {"epochs": 4}}, "train.epochs is 4, but .* holds 3 epochs"),
        ({"mix": "mixup"}, "labels.mix is mixup, but .* made with cutmix"),
        ({"tile_shuffle": 2}, "labels.tile_shuffle must be 1, got 2"),
        ({"pool": 0.5}, "labels.pool must be 1.0, got 0.5"),
        ({"classes": 8}, r"logits \(8, 7\) for 8 classes"),
    ],
)
def test_settings_that_the_files_do_not_follow_are_refused(tmp_path, settings, message):
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_fkd(run_of(**settings), tmp_path, image_set())


def test_another_order_of_classes_is_at_chance(tmp_path):
    write(tmp_path, classes=(torch.arange(COUNT) // 3 + 1) % CLASSES)
    with pytest.raises(ValueError, match=r"name the class of 3 of 63 views, which is chance; .* order of its classes"):
        read_fkd(run_of(), tmp_path, image_set())


def test_another_number_of_images_is_refused(tmp_path):
    write(tmp_path)
    views = image_set()
    fewer = ReplayedViews(views.images[:20], views.labels[:20], views.settings, NORMALIZE, 0)
    with pytest.raises(ValueError, match="holds labels of 21 images, but the set has 20"):
        read_fkd(run_of(), tmp_path, fewer)


# --- traps -----------------------------------------------------------------------------------------------------------


def test_other_entries_of_the_folder_are_no_epochs(tmp_path):
    assert not is_fkd(tmp_path) and not is_fkd(tmp_path / "none")
    write(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.tar"))
    for name in ("batch_index.json", "epoch_1.bak", "epoch_x", ".DS_Store"):
        (tmp_path / name).write_text("")
    assert is_fkd(tmp_path) and FKDViews(tmp_path, image_set(), CLASSES).num_epochs == EPOCHS
    assert num_bytes(tmp_path, EPOCHS) == size


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("epoch_1", "epoch_1 is missing"),
        ("epoch_0/batch_1.tar", "epoch_0/batch_1.tar is missing"),
        ("epoch_0/batch_2.tar", "holds labels of 16 images, but the set has 21"),
        ("epoch_2/batch_1.tar", "label file .*epoch_2/batch_1.tar is missing"),
    ],
)
def test_a_missing_file_is_named(tmp_path, missing, message):
    write(tmp_path)
    (tmp_path / missing).rename(tmp_path / "away")
    with pytest.raises(ValueError, match=message):
        list(FKDViews(tmp_path, image_set(), CLASSES).epoch(2, Train(batch_size=BATCH)))


class Call:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_label_file_with_code_runs_nothing_and_is_named(tmp_path, is_zip):
    folder, ran = tmp_path / "fkd", tmp_path / "ran"
    write(folder)
    path = folder / "epoch_0" / "batch_0.tar"
    fields = torch.load(path, weights_only=False)
    torch.save([*fields[:4], Call(ran), fields[5]], path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=rf"label file {path} cannot be read: it asks for posix\.system"):
        FKDViews(folder, image_set(), CLASSES)
    assert not ran.exists()


def test_numpys_numbers_need_the_restricted_reader(tmp_path):
    """torch's own, since 2.6, refuses the published files."""
    write(tmp_path)
    path = tmp_path / "epoch_0" / "batch_0.tar"
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path)
    batch, _ = read_batch(path, SIZE)
    assert all(type(x) is int for x in batch.box)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.full((8, 4), 0.7), "a window is not in images of 20 pixels"),
        (0, torch.full((8, 4), 1.5), "coords must be shares"),
        (0, torch.zeros(8, 4), "a window is not in images"),
        (2, torch.zeros(8, dtype=torch.int64), "must be a permutation of the batch's 8 views"),
        (3, 1.5, r"lambda must lie in \[0, 1\]"),
        (4, [0, 0, 21, 4], "the box .* is not in images of 20 pixels"),
        (4, [5, 0, 4, 4], "the box"),
        (5, torch.zeros(7, CLASSES), "7 labels of 8 views"),
        (5, None, "NoneType"),
        (1, {}, "coords have 32 values for 0 views"),
    ],
)
def test_a_file_that_cannot_be_true_is_named(tmp_path, place, value, message):
    write(tmp_path)
    path = tmp_path / "epoch_0" / "batch_0.tar"
    fields = torch.load(path, weights_only=False)
    fields[place] = value
    torch.save(fields, path)
    with pytest.raises(ValueError, match=f"batch_0.tar is no batch of FKD: .*{message}"):
        read_batch(path, SIZE)
    torch.save(fields[:5], path)
    with pytest.raises(ValueError, match="is no batch of FKD"):
        read_batch(path, SIZE)


@pytest.mark.parametrize("count", [7, 9])
def test_batches_of_another_size_in_an_epoch_are_refused(tmp_path, count):
    write(tmp_path)
    path = tmp_path / "epoch_1" / "batch_1.tar"
    fields = torch.load(path, weights_only=False)
    rows = torch.arange(count) % 8
    fields = [fields[0][rows], fields[1][rows], torch.arange(count), *fields[3:5], fields[5][rows]]
    torch.save(fields, path)
    with pytest.raises(ValueError, match=r"batch_1.tar of epoch 1 .* is not about 8 of 21 images"):
        FKDViews(tmp_path, image_set(), CLASSES).read(1)


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


@pytest.mark.parametrize(
    "settings",
    [{"padding": 2}, {"roll": (0, 3)}, {"tile_pick": 2}, {"rand_augment": (1, 9)}, {"pool": 0.5}],
)
def test_settings_that_files_cannot_say_are_refused(settings):
    check_settings(Labels(crop_scale=(0.5, 1.0), flip=0.0, batch_norm="train", ensemble="norm-equalized"))
    with pytest.raises(ValueError, match=f"labels.{next(iter(settings))} must be"):
        check_settings(dataclasses.replace(Labels(), **settings))
