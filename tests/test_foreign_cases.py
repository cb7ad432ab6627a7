"""Files of others that were found to hurt, or are made up to: each is refused in one line, and nothing is run."""

import io
import json
import os
import pickle
import zipfile
import zlib

import numpy as np
import pytest
import scipy.io
import torch
from foreign_files import PAIR, READERS, beton, check, fkd, mat, png, put, saved
from PIL import EpsImagePlugin, Image

from fastcondense.data.array_files import read_mat
from fastcondense.loaders.beton import CRC, FIELD, HEADER, RAW, SAMPLE, Sidecar, read_beton
from fastcondense.loaders.class_folders import EXTENSIONS, is_read
from fastcondense.loaders.complete import fault
from fastcondense.loaders.folder import FolderLoader, ImageFile, decode
from fastcondense.loaders.source import Centered, Faults


class Forged:
    """Calls numpy's own constructors with a state of the file's choice."""

    def __init__(self, function, arguments, state):
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


def forged_dtype():
    """One with a field of objects at an offset of its choice, by which numpy follows the bytes as pointers."""
    rebuild, arguments, state = np.zeros(2).__reduce__()
    kind = Forged(np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 27))
    return Forged(rebuild, arguments, (state[0], (1,), kind, False, b"\x41" * 8))


def forged_shape():
    rebuild, arguments, state = np.arange(2).__reduce__()
    return Forged(rebuild, arguments, (state[0], (1 << 40,), *state[2:]))


def with_pickle(content):
    """A file of torch.save whose pickle is another."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"a": 1}))) as archive, zipfile.ZipFile(out, "w") as made:
        for entry in archive.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            made.writestr(entry.filename, content if is_pickle else archive.read(entry))
    return out.getvalue()


def compressed(data):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in archive.infolist():
            made.writestr(entry.filename, archive.read(entry))
    return out.getvalue()


def fkd_with(**changes):
    names = "coords", "flip", "partner", "share", "box", "logits"
    fields = dict(zip(names, torch.load(io.BytesIO(fkd()), weights_only=False), strict=True))
    return saved(list((fields | changes).values()))


def wrong_sum():
    """A compressed matrix whose checksum, its last four bytes, is another's."""
    whole = mat(True)
    size = int(np.frombuffer(whole, "<u4", 1, 132)[0])
    return whole[: 136 + size - 1] + bytes([whole[136 + size - 1] ^ 1]) + whole[136 + size :]


def large_npz():
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made,
        made.open("images.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(160):
            member.write(bytes(1_000_000))
    return file.getvalue()


def large_mat():
    """An element that claims little and inflates to 300 MB."""
    packer = zlib.compressobj(1)
    matrix = np.array([6, 8, 6, 0, 5, 8, 1, 300_000_000, (1 << 16) | 1, ord("X"), 2, 300_000_000], "<u4").tobytes()
    content = packer.compress(np.array([14, 300_000_048], "<u4").tobytes() + matrix)
    for _ in range(120):
        content += packer.compress(bytes(1_000_000))
    content += packer.flush()
    return mat(False)[:128] + np.array([15, len(content)], "<u4").tobytes() + content


NESTED = b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s."  # hashing it overflows the stack of C
FOUND = {
    "an array with a dtype of the file's choice": ("CIFAR", lambda: pickle.dumps({"data": forged_dtype()}, 2)),
    "an array larger than its bytes": ("CIFAR", lambda: pickle.dumps({"data": forged_shape()}, 2)),
    "tuples in tuples": ("CIFAR", lambda: NESTED),
    "tuples in tuples, by torch": ("pt", lambda: with_pickle(NESTED)),
    "tuples in tuples, old": ("old pt", lambda: NESTED),
    "a memo of 64 GB": ("CIFAR", lambda: b"\x80\x02}r\xff\xff\xff\xff."),
    "a function that is changed": ("CIFAR", lambda: b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__)s\x86b."),
    "a tensor of a trillion numbers in four bytes": ("tensors", lambda: saved(torch.zeros(1).expand(10**6, 3, 8, 8))),
    "a compressed checkpoint": ("pt", lambda: compressed(saved(torch.zeros(10_000_000)))),
    "an archive without a pickle": ("pt", lambda: with_pickle(b"")),
    "names that are no text": ("pt", lambda: saved({1: torch.ones(1)})),
    "a class of 2^62": ("tensors", lambda: saved((PAIR[0], torch.tensor([0, 1, 2, 0, 1, 1 << 62])))),
    "an array that inflates": ("npz", large_npz),
    "a matrix that inflates": ("mat", large_mat),
    "a matrix with another's checksum": ("mat", wrong_sum),
    "FKD of whole numbers": ("FKD", lambda: saved([torch.ones(2, 4), torch.ones(2), None, None, None, 7])),
    "FKD that is not finite": ("FKD", lambda: fkd_with(logits=torch.full((3, 4), torch.nan).half())),
    "FKD of two million views": ("FKD", lambda: fkd_with(flip=torch.zeros(2_000_000, dtype=torch.uint8))),
    "FKD of wide windows": ("FKD", lambda: fkd_with(coords=torch.zeros(3, 40_000_000, dtype=torch.uint8))),
    "a list of classes that unfolds": ("sidecar", lambda: b'{"classes": [' + b"[]," * 5_000_000 + b"[]]}"),
    "deep JSON": ("JSON", lambda: b"[" * 200_000),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(tmp_path, name):
    reader, make = FOUND[name]
    _, read, file = READERS[reader]
    put(tmp_path, reader)
    data = make()
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ValueError):
        read(tmp_path / file)
    check(read, tmp_path / file, len(data))


@pytest.mark.parametrize(
    "change",
    [
        {"mode": RAW, "width": 65535, "height": 65535},  # 12.9 GB
        {"mode": RAW, "width": 0},
        {"data_ptr": (1 << 64) - 1},
        {"data_ptr": 1 << 40},
    ],
    ids=str,
)
def test_an_image_that_is_not_where_a_packed_file_says_is_named(tmp_path, change):
    """Its author seals the file as `pack` does."""
    content, text = beton()
    begin = HEADER.itemsize + 2 * FIELD.itemsize
    samples = np.frombuffer(content, SAMPLE, 5, begin).copy()
    for name, value in change.items():
        samples["image"][name][1] = value
    content = content[:begin] + samples.tobytes() + content[begin + samples.nbytes :]
    tree = json.loads(text)
    plain = Sidecar(**tree | {key: tuple(tree[key]) for key in ("classes", "counts")})
    header = np.frombuffer(content, HEADER, 1)[0]
    index = content[:begin], samples.tobytes(), content[int(header["allocations"]) - 5 * CRC.itemsize :]
    (tmp_path / "x.beton").write_bytes(content)
    (tmp_path / "x.beton.json").write_bytes(plain.sealed(*index).json())
    with pytest.raises(ValueError, match=r"x\.beton is not a \.beton file .*: image 1 is not where, or as large as"):
        read_beton(tmp_path / "x.beton")


def test_a_matlab_file_is_read_as_scipy_reads_it(tmp_path):
    for kind in ("u1", "<i2", "<f4", "<f8", "<i8"):
        arrays = {"X": (np.arange(24).reshape(2, 3, 4) * 5).astype(kind), "long_name_of_one": np.array([[7.0]])}
        for is_compressed in (False, True):
            scipy.io.savemat(tmp_path / "x.mat", arrays, do_compression=is_compressed)
            found, wanted = read_mat(tmp_path / "x.mat", list(arrays)), scipy.io.loadmat(tmp_path / "x.mat")
            for name in arrays:
                np.testing.assert_array_equal(found[name], wanted[name])
                assert found[name].dtype == wanted[name].dtype
    scipy.io.savemat(tmp_path / "x.mat", {"X": np.arange(4), "s": {"a": 1}, "c": np.array([[1 + 2j]])})
    assert list(read_mat(tmp_path / "x.mat", ["X", "y"])) == ["X"]
    with pytest.raises(ValueError, match=r"x\.mat cannot be read: c is no array of real numbers"):
        read_mat(tmp_path / "x.mat", ["c"])


def test_a_pipe_among_images_is_left_out_and_named(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(png())
    (tmp_path / "1.png").unlink()
    os.mkfifo(tmp_path / "1.png")
    files, faults = sorted(tmp_path.iterdir()), Faults("skip")
    batches = FolderLoader(files, 0).batches([np.arange(3)], Centered(8, 8), faults)
    assert [ids.tolist() for _, ids in batches] == [[0, 2]]
    assert list(faults.skipped) == [1] and "1.png is a pipe, not a file" in faults.skipped[1]
    assert fault(files[1]) == f"{files[1]} is a pipe, not a file"


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(ran) (w) file closefile\nshowpage\n"


def test_no_program_is_started_for_an_image(tmp_path, monkeypatch):
    """Pillow hands PostScript, whatever the file is called, to Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("started"))
    (tmp_path / "x.png").write_bytes(POSTSCRIPT)
    for read in (decode, lambda path: ImageFile.of(path, path.read_bytes()).decode()):
        with pytest.raises(ValueError, match=r"x\.png is not an image"):
            read(tmp_path / "x.png")
    assert fault(tmp_path / "x.png") == f"{tmp_path / 'x.png'} is not an image"


def test_every_kind_of_image_that_is_listed_is_read(tmp_path):
    for ending in sorted(EXTENSIONS):
        if is_read(ending):
            path = tmp_path / f"x{ending}"
            picture = Image.new("L" if ending in (".pgm", ".pbm") else "RGB", (8, 8), "white")
            picture.save(path, {".apng": "PNG", ".pnm": "PPM", ".jpe": "JPEG"}.get(ending))
            assert decode(path).size == (8, 8), ending
