"""Image files: decoding, cutting and batching against torchvision's transforms; views of files and of memory agree."""

import io

import numpy as np
import pytest
import torch
from image_files import cut_window, png_file
from PIL import Image

from fastcondense.data.datasets import Split
from fastcondense.data.real import Normalization, split_batches, squares, training_batches
from fastcondense.loaders.class_folders import index_folder
from fastcondense.loaders.file_names import FileNames
from fastcondense.loaders.folder import FolderLoader, cut_center, decode
from fastcondense.loaders.source import Centered, Faults, Windowed
from fastcondense.recipe.settings import Dataset
from fastcondense.recipe.shared import Views
from fastcondense.rng import Stream
from fastcondense.views.windows import windows
from fastcondense.vision import torchvision

transforms = torchvision.transforms
CPU = torch.device("cpu")
# landscape, portrait, square, thin, and smaller than the target: width, height
SIZES = [(53, 37), (37, 53), (41, 41), (97, 12), (11, 61), (19, 13), (7, 9), (1, 3)]


def noise(width, height, seed=0):
    rng = np.random.default_rng((width, height, seed))
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def whole(_ids, heights, widths):
    """Windows that take every image as it is."""
    zero = heights * 0
    return np.stack([zero, zero, heights, widths, zero, zero, zero], -1).astype(np.int32)


def write_pngs(folder, count, size=(21, 17)):
    files = []
    for k in range(count):
        files.append(folder / f"{k:02d}.png")
        noise(*size, k).save(files[-1])
    return files


# --- cuts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resize", "size"), [(32, 28), (33, 28), (28, 28), (36, 31), (64, 61)])
@pytest.mark.parametrize("image_size", SIZES)
def test_cut_center_is_torchvisions_resize_and_center_crop(image_size, resize, size):
    check_cut_center(noise(*image_size), resize, size)


@pytest.mark.parametrize(("resize", "size"), [(24, 28), (27, 28), (25, 28)])
def test_cut_center_pads_as_torchvision_where_the_square_is_wider_than_the_image(resize, size):
    check_cut_center(noise(40, 40), resize, size)


def check_cut_center(image, resize, size):
    wanted = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size)])(image)
    np.testing.assert_array_equal(np.asarray(cut_center(image, resize, size)), np.asarray(wanted))


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("size", [16, 31])
@pytest.mark.parametrize("window", [(0, 0, 37, 53), (3, 8, 20, 11), (36, 52, 1, 1), (5, 0, 7, 53), (2, 3, 31, 31)])
def test_cut_window_is_torchvisions_resized_crop(window, size, flip):
    image = noise(53, 37)
    wanted = transforms.functional.resized_crop(image, *window, [size, size])
    wanted = transforms.functional.hflip(wanted) if flip else wanted
    np.testing.assert_array_equal(np.asarray(cut_window(image, (*window, flip, 0, 0), size)), np.asarray(wanted))


def test_cut_window_over_the_edge_sees_black():
    image = noise(16, 16)
    wanted = transforms.functional.crop(transforms.functional.pad(image, 4), 1, 7, 16, 16)
    np.testing.assert_array_equal(np.asarray(cut_window(image, (-3, 3, 16, 16, 0, 0, 0), 16)), np.asarray(wanted))


# --- decoding --------------------------------------------------------------------------------------------------------


def test_every_mode_becomes_rgb(tmp_path):
    rgb = np.asarray(noise(9, 7))
    grey = rgb[..., 0]
    alpha = np.dstack([rgb, grey])
    white = rgb * (grey[..., None] / 255) + 255 * (1 - grey[..., None] / 255)
    indices = grey % 4
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
    palette = Image.fromarray(indices)
    palette.putpalette(colours.tobytes())
    one_bit = Image.fromarray(grey > 127)
    written = {
        "grey.png": (Image.fromarray(grey), np.repeat(grey[..., None], 3, axis=2)),
        "rgba.png": (Image.fromarray(alpha), np.rint(white).astype(np.uint8)),
        "opaque.png": (Image.fromarray(np.dstack([rgb, np.full_like(grey, 255)])), rgb),
        "palette.png": (palette, colours[indices]),
        "one_bit.png": (one_bit, np.repeat(np.where(grey > 127, 255, 0)[..., None], 3, axis=2)),
    }
    for name, (image, wanted) in written.items():
        image.save(tmp_path / name)
        decoded = decode(tmp_path / name)
        assert decoded.mode == "RGB" and Image.open(tmp_path / name).mode != "RGB"
        np.testing.assert_array_equal(np.asarray(decoded), wanted)


def test_cmyk_and_grey_jpeg_become_rgb(tmp_path):
    # uniform inks survive JPEG: no cyan, half magenta, no yellow, no black
    Image.new("CMYK", (16, 16), (0, 128, 0, 0)).save(tmp_path / "x.jpg", quality=95)
    decoded = decode(tmp_path / "x.jpg")
    assert Image.open(tmp_path / "x.jpg").mode == "CMYK" and decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded).astype(int) - (255, 127, 255)).max() <= 3
    Image.new("L", (16, 16), 77).save(tmp_path / "x.jpg")
    assert np.unique(np.asarray(decode(tmp_path / "x.jpg"))).tolist() == [77]


def broken_files():
    jpeg = io.BytesIO()
    noise(64, 64).save(jpeg, "JPEG")
    png = io.BytesIO()
    noise(64, 64).save(png, "PNG")
    return {
        "truncated.jpg": jpeg.getvalue()[:-1500],
        "truncated.png": png.getvalue()[:-3000],
        "text.jpg": b"<html>404 not found</html>",
        "empty.jpg": b"",
        "header.png": png_file(8, 8),
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", broken_files())
def test_a_broken_file_is_one_line_that_names_it(tmp_path, name, workers):
    files = write_pngs(tmp_path, 5)
    files[3] = tmp_path / name
    files[3].write_bytes(broken_files()[name])
    batches = FolderLoader(files, workers).batches(split_batches(np.arange(5), 2), Windowed(21, whole), Faults())
    assert next(batches)[1].tolist() == [0, 1]
    with pytest.raises(ValueError, match=f"{files[3]} (is not an image|cannot be read)") as caught:
        next(batches)
    assert type(caught.value) is ValueError and "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_vanished_is_named(tmp_path, workers):
    with pytest.raises(ValueError, match=r"gone\.png cannot be read"):
        list(FolderLoader([tmp_path / "gone.png"], workers).batches([np.arange(1)], Centered(8, 8), Faults()))


def test_an_image_beyond_pillows_limit_is_named(tmp_path):
    (tmp_path / "huge.png").write_bytes(png_file(60000, 60000))
    with pytest.raises(ValueError, match=r"huge\.png"):
        decode(tmp_path / "huge.png")


# --- the index and batches -------------------------------------------------------------------------------------------


def test_index_folder_sorts_classes_by_name_and_files_within_them(tmp_path):
    for name in ("b/2.png", "b/10.PNG", "a/sub/x.JPEG", "a/y.jpg", "a/notes.txt", "B/z.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "stray.jpg").touch()
    files, labels, classes = index_folder(tmp_path)
    wanted = ["B/z.webp", "a/sub/x.JPEG", "a/y.jpg", "b/10.PNG", "b/2.png"]
    assert classes == ("B", "a", "b") and [path.relative_to(tmp_path).as_posix() for path in files] == wanted
    assert labels.tolist() == [0, 1, 1, 2, 2] and labels.dtype == np.int64


def test_index_folder_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=f"no folder {tmp_path / 'x'}"):
        index_folder(tmp_path / "x")
    (tmp_path / "1.png").touch()
    with pytest.raises(ValueError, match=f"{tmp_path} holds no class folders"):
        index_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "readme.txt").touch()
    with pytest.raises(ValueError, match=f"{tmp_path / 'cat'} holds no image"):
        index_folder(tmp_path)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_keep_the_order_of_the_ids_and_the_last_is_partial(tmp_path, workers):
    loader = FolderLoader(write_pngs(tmp_path, 7, (21, 21)), workers)
    ids = np.array([4, 0, 6, 2, 2, 5, 1])
    assert len(loader) == 7
    for _epoch in range(2):
        batches = list(loader.batches(np.split(ids, range(3, len(ids), 3)), Windowed(21, whole), Faults()))
        assert [batch_ids.tolist() for _, batch_ids in batches] == [[4, 0, 6], [2, 2, 5], [1]]
        for pixels, batch_ids in batches:
            assert pixels.dtype == torch.uint8 and pixels.shape == (len(batch_ids), 3, 21, 21)
            assert pixels.is_contiguous(memory_format=torch.channels_last) and batch_ids.dtype == torch.int64
            for image, k in zip(pixels, batch_ids.tolist(), strict=True):
                np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(noise(21, 21, k)))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_files_are_listed_and_the_others_come(tmp_path, workers):
    files = write_pngs(tmp_path, 7, (21, 21))
    for k, content in {1: b"", 4: b"<html>", 5: files[5].read_bytes()[:-300]}.items():
        files[k].write_bytes(content)
    faults = Faults("skip")
    batches = FolderLoader(files, workers).batches(
        [np.array(ids) for ids in ([1, 0, 2], [4, 5], [6, 3])], Centered(21, 21), faults
    )
    found = [(pixels, ids.tolist()) for pixels, ids in batches]
    assert [ids for _, ids in found] == [[0, 2], [6, 3]]  # a batch that loses all its samples is not yielded
    for pixels, ids in found:
        for image, k in zip(pixels, ids, strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(noise(21, 21, k)))
    assert sorted(faults.skipped) == [1, 4, 5]
    assert all(str(files[k]) in reason for k, reason in faults.skipped.items())


def test_windows_are_asked_for_once_a_batch_with_the_sizes_in_the_headers(tmp_path):
    files, asked = [tmp_path / f"{width}x{height}.png" for width, height in SIZES], []
    for file, (width, height) in zip(files, SIZES, strict=True):
        noise(width, height).save(file)

    def windows_of(ids, heights, widths):
        asked.append((ids.tolist(), list(zip(widths.tolist(), heights.tolist(), strict=True))))
        return whole(ids, heights, widths)

    list(FolderLoader(files, 2).batches([np.array([3, 1]), np.array([0, 2, 7])], Windowed(8, windows_of), Faults()))
    assert asked == [([3, 1], [SIZES[3], SIZES[1]]), ([0, 2, 7], [SIZES[0], SIZES[2], SIZES[7]])]


def test_an_epoch_that_is_left_early_leaves_the_loader_usable(tmp_path):
    loader = FolderLoader(write_pngs(tmp_path, 9, (21, 21)), 2)
    ids = np.split(np.arange(9), 9)
    for count in (1, 3):
        batches = loader.batches(ids, Centered(21, 21), Faults())
        for _ in range(count):
            next(batches)
    assert [int(batch[0]) for _, batch in loader.batches(ids, Centered(21, 21), Faults())] == list(range(9))


def test_a_picture_turned_by_its_exif_tag_is_taken_as_it_is_stored(tmp_path):
    image, exif = Image.linear_gradient("L").resize((24, 16)).convert("RGB"), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to look at
    image.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    decoded = decode(tmp_path / "turned.jpg")
    assert decoded.size == (24, 16)
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(image)).max() <= 3


# --- real images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [False, True])
def test_squares_are_torchvisions_evaluation_pipeline(tmp_path, in_memory):
    size = (45, 33)
    files = write_pngs(tmp_path, 3, size)
    images = np.stack([np.asarray(noise(*size, k)) for k in range(3)]) if in_memory else None
    dataset = Dataset(image_size=28, resize=32, workers=0)
    made, ids = squares(Split(np.zeros(3, np.int64), images, () if in_memory else tuple(files)), dataset, CPU)
    pipeline = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.PILToTensor()])
    assert made.dtype == torch.uint8 and ids.tolist() == [0, 1, 2]
    assert torch.equal(made, torch.stack([pipeline(noise(*size, k)) for k in range(3)]))


def test_normalization_is_torchvisions_and_pixels_undo_it():
    dataset = Dataset(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 1.5))
    normalize = Normalization.of(dataset, CPU)
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    wanted = transforms.functional.normalize(levels.double() / 255, dataset.mean, dataset.std)
    made = normalize(levels)
    assert made.dtype == torch.float32 and made.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made.double(), wanted, rtol=0, atol=2e-6)
    assert torch.equal(normalize.pixels(made), levels)
    black, white = normalize.range()
    torch.testing.assert_close(black.double(), wanted[0, :, 0, 0], rtol=0, atol=2e-6)
    torch.testing.assert_close(white.double(), wanted[0, :, -1, -1], rtol=0, atol=2e-6)


PLAIN = Dataset(image_size=15, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), workers=0)


def both_splits(folder, count=9, size=(21, 17)):
    """The same images in memory and as files; labels tell every image."""
    files, labels = write_pngs(folder, count, size), np.arange(count) * 10
    images = np.stack([np.asarray(noise(*size, k)) for k in range(count)])
    return Split(labels, images), Split(labels, files=FileNames.of(files))


def epoch_of(split, views, epoch, batch_size):
    batches = list(training_batches(split, PLAIN, views, Stream(3, "test"), epoch, batch_size, CPU))
    assert [len(x) for x, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    return torch.cat([x for x, _ in batches]), torch.cat([labels for _, labels in batches])


@pytest.mark.parametrize("in_memory", [True, False])
def test_order_and_windows_of_training_do_not_depend_on_the_batch_size(tmp_path, in_memory):
    split = both_splits(tmp_path)[0 if in_memory else 1]
    wanted, labels = epoch_of(split, Views(), 2, 9)
    assert sorted(labels.tolist()) == [10 * k for k in range(9)]
    for batch_size in (1, 2, 4, 5):
        made, made_labels = epoch_of(split, Views(), 2, batch_size)
        assert torch.equal(made_labels, labels)
        torch.testing.assert_close(made, wanted, rtol=0, atol=1e-6)
    other, other_labels = epoch_of(split, Views(), 3, 9)
    assert not torch.equal(other_labels, labels)
    assert not torch.allclose(other[other_labels.argsort()], wanted[labels.argsort()], atol=0.05)


@pytest.mark.parametrize("epoch", [0, 5])
def test_training_views_are_torchvisions_crops_of_the_window_table(tmp_path, epoch):
    split, _ = both_splits(tmp_path)
    made, labels = epoch_of(split, Views(), epoch, 4)
    for view, label in zip(made, labels.tolist(), strict=True):
        sample = label // 10
        top, left, height, width, flip, _, _ = windows(Stream(3, "test"), Views(), sample, epoch, 17, 21)[0].tolist()
        pixels = torch.from_numpy(split.images[sample]).permute(2, 0, 1).double() / 255
        wanted = transforms.functional.resized_crop(pixels, top, left, height, width, [15, 15], antialias=True)
        wanted = wanted.flip(2) if flip else wanted
        torch.testing.assert_close(view.double(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("views", [Views(), Views(crop_scale=(0.5, 0.9), flip=0.0), Views(roll=(2, 6))])
def test_files_and_memory_give_the_same_views(tmp_path, views):
    in_memory, in_files = both_splits(tmp_path)
    (x, labels), (y, file_labels) = epoch_of(in_memory, views, 1, 4), epoch_of(in_files, views, 1, 4)
    assert torch.equal(labels, file_labels)
    assert (x - y).abs().max() <= 1.5 / 255  # Pillow rounds to a level after each axis


def test_padded_views_of_files_and_memory_are_the_same(tmp_path):
    in_memory, in_files = both_splits(tmp_path, size=(15, 15))
    views = Views(padding=3)
    x, y = epoch_of(in_memory, views, 1, 4)[0], epoch_of(in_files, views, 1, 4)[0]
    torch.testing.assert_close(x, y, rtol=0, atol=1e-6)
