"""Files of torch.save from others: numbers of numpy are read, code is not run and is named."""

import os
import pickle
import struct
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch

from fastcondense.restricted_pickle import load, load_plain
from fastcondense.tensor_files import read_checkpoint


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def save(content, path, is_zip):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


@pytest.mark.parametrize("is_zip", [True, False])
def test_numbers_arrays_and_containers_come_back(tmp_path, is_zip):
    numbers = [np.int64(-3), np.int32(4), np.uint8(255), np.bool_(True), np.float16(0.5), np.float64(1e-300)]
    arrays = [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3)),
        np.arange(3).astype(">i4"),
        np.zeros((0, 4), dtype=bool),
    ]
    content = [torch.ones(2).half(), None, 0.25, {"a": (1, [True]), "numbers": numbers}, arrays]
    half, nothing, share, table, read = load(save(content, tmp_path / "x.tar", is_zip))
    assert torch.equal(half, content[0]) and (nothing, share) == (None, 0.25)
    assert table == content[3] and [type(x) for x in table["numbers"]] == [type(x) for x in numbers]
    for made, wanted in zip(read, arrays, strict=True):
        np.testing.assert_array_equal(made, wanted)
        assert made.shape == wanted.shape and made.dtype == wanted.dtype.newbyteorder("=")


def test_files_of_numpy_1_are_read(tmp_path):
    """It called the same module by another name."""
    path = save([np.int64(7), np.arange(2)], tmp_path / "x.tar", False)
    old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != path.read_bytes()
    path.write_bytes(old)
    number, array = load(path)
    assert number == 7 and array.tolist() == [0, 1]


def hostile(ran):
    return {
        "posix.system": Call(os.system, f"touch {ran}"),
        "posix.mkdir": Call(os.mkdir, str(ran)),
        "eval": Call(eval, f"__import__('os').mkdir({str(ran)!r})"),
        "getattr": Call(getattr, 1, "real"),
        "numpy.load": Call(np.load, str(ran), None, True),
        "numpy.dtype('O8')": np.array([1, None]),
        "numpy.dtype('V8')": np.zeros(2, [("a", "O")]),
    }


@pytest.mark.parametrize("name", hostile("x"))
@pytest.mark.parametrize("is_zip", [True, False])
def test_code_is_named_and_not_run(tmp_path, name, is_zip):
    ran = tmp_path / "ran"
    path = save({"weight": torch.ones(2), "more": [hostile(ran)[name]]}, tmp_path / "x.pth", is_zip)
    with pytest.raises(ValueError) as caught:
        read_checkpoint(path)
    assert f"it asks for {name}" in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value) and not ran.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_any_protocol_run_nothing_and_are_named(tmp_path, protocol):
    path, ran = tmp_path / "x.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"weight": Call(os.mkdir, str(ran))}, protocol))
    with pytest.raises(ValueError, match=r"asks for posix\.mkdir"):
        read_checkpoint(path)
    assert not ran.exists()


def test_the_state_of_a_dtype_cannot_make_it_another(tmp_path):
    """numpy's own constructor would take fields, offsets and flags from the file, and read pointers from its bytes."""

    class Forged:
        def __init__(self, fields):
            self.fields = fields

        def __reduce__(self):
            return np.dtype, ("i8", False, True), (3, "|", None, ("a",), self.fields, 8, 8, 0)

    def number(fields):
        return Call(np.int64(1).__reduce__()[0], Forged(fields), b"\x01\0\0\0\0\0\0\0")

    path = save([number({"a": (np.dtype("O"), 0)})], tmp_path / "x.tar", True)
    with pytest.raises(ValueError, match=r"asks for numpy\.dtype\('O8'\)"):
        load(path)
    assert load(save([number({"a": 0})], path, True)) == [1]


def test_an_array_cannot_be_larger_than_its_bytes(tmp_path):
    class Large:
        def __reduce__(self):
            rebuild, arguments, state = np.arange(2).__reduce__()
            return rebuild, arguments, (state[0], (1 << 20,), *state[2:])

    class Called:
        def __reduce__(self):
            return np.ndarray, ((1 << 20,),)

    for content in (Large(), Called()):
        with pytest.raises(ValueError):
            load(save([content], tmp_path / "x.tar", True))


def test_the_names_are_allowed_for_the_one_reading_alone(tmp_path):
    path, before = save([np.int64(1)], tmp_path / "x.tar", True), set(torch.serialization.get_safe_globals())
    assert load(path) == [1] and set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match=r"none\.tar cannot be read: there is no such file"):
        load(tmp_path / "none.tar")


def as_torch_saves(pickled, path, tail=b""):
    """A zip file of that pickle, as torch.save's are laid out, and some bytes behind it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", content)
    path.write_bytes(path.read_bytes() + tail)
    return path


NEW = b"\x80\x02"
TUPLES = NEW + b"})" + b"".join(b"q\x01h\x01\x86" for _ in range(70)) + b"K\x01s."
"""Seventy times t = (t, t), as a key: its hash takes 2^70 steps."""
LISTS = NEW + b"]q\x00K\x01a" + b"".join(b"]q%ch%cah%ca" % (k + 1, k, k) for k in range(40)) + b"."
"""Forty times l = [l, l]."""
LATE = (
    NEW
    + b"".join(b"]q%c" % k for k in range(40))
    + b"".join(b"h%ch%cah%cah%c" % (k, k - 1, k - 1, k) for k in range(39, 0, -1))
    + b"."
)
"""The same, of lists that are filled when they are in others already."""


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (NEW + b"cbuiltins\nbytearray\n\x8a\x08" + (10**12).to_bytes(8, "little") + b"\x85R.", "asks for bytearray"),
        (NEW + b"c__builtin__\nbytearray\n\x8a\x08" + (10**12).to_bytes(8, "little") + b"\x85R.", "for bytearray"),
        (TUPLES, "more than 10,000,000 values"),
        (LISTS, "more than 10,000,000 values"),
        (LATE, "changes what is in a container already"),
        (NEW + b"c_codecs\nencode\n(X\x02\x00\x00\x00abX\x03\x00\x00\x00HextR.", "bytes encoded as 'Hex'"),
        (NEW + b"cbuiltins\nset\n(ctorch._utils\n_rebuild_tensor_v2\n(tRtR.", "makes a set of what is none"),
        (NEW + b"(0K\x01.", "holds POP"),
        (NEW + b"}" + b")" + b"\x85" * 5000 + b"K\x01s.", "nests containers more than 1000 deep"),
    ],
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_what_a_few_bytes_could_make_is_refused_before(tmp_path, pickled, words, is_zip):
    path = tmp_path / "x.pth"
    if is_zip:
        as_torch_saves(pickled, path)
    else:
        path.write_bytes(pickled)
    with pytest.raises(ValueError, match=words):
        load(path)
    if not is_zip and not words.startswith(("asks", "for bytearray", "bytes", "makes")):
        with pytest.raises(ValueError, match=words):
            load_plain(path)


@pytest.mark.parametrize("tail", [b"PK\5\6", b"PK\5\6" + bytes(18), b"\0", b"more"])
def test_a_zip_file_that_readers_may_see_differently_is_refused(tmp_path, tail):
    assert load(as_torch_saves(NEW + b"K\x07.", tmp_path / "good.pth")) == 7
    with pytest.raises(ValueError, match="no zip file as torch"):
        load(as_torch_saves(NEW + b"K\x07.", tmp_path / "x.pth", tail))


def test_a_second_list_of_entries_is_refused(tmp_path):
    """torch goes by the offset that the end names, zipfile by what stands before the end."""
    path = as_torch_saves(NEW + b"K\x07.", tmp_path / "x.pth")
    content = path.read_bytes()
    size, begin = struct.unpack("<LL", content[-10:-2])
    path.write_bytes(content[:-22] + content[begin : begin + size] + content[-22:])
    with pytest.raises(ValueError, match="no zip file as torch"):
        load(path)


def test_a_record_of_64_bits_that_is_none_is_refused(tmp_path):
    """zipfile passes over it, to a list of entries before the end; torch follows the locator."""
    path = as_torch_saves(NEW + b"K\x07.", tmp_path / "x.pth")
    content = path.read_bytes()
    end = len(content) - 22
    for size in (end + 1, end, 0):
        record = b"none" + bytes(36) + struct.pack("<QQ", size, 0) + b"PK\6\7" + bytes(16)
        path.write_bytes(content[:-22] + record + content[-22:])
        with pytest.raises(ValueError, match="no zip file as torch"):
            load(path)


def test_files_of_torch_pass_what_is_looked_at_before(tmp_path):
    """Shared tensors, lists that grow by parts of a thousand, and the attributes of a state_dict."""
    shared = torch.arange(3)
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    content = {"state": state, "many": [*range(5000)], "twice": [shared, shared, (shared,)], "space": Namespace(a=[1])}
    for is_zip in (True, False):
        found = load(save(content, tmp_path / f"{is_zip}.pth", is_zip))
        assert found["many"] == content["many"] and torch.equal(found["twice"][2][0], shared)
        assert list(found["state"]) == list(state) and found["space"] == content["space"]
