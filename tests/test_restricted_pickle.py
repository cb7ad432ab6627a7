"""Files of torch.save from others: numbers of numpy are read, code is not run and is named."""

import os
import pickle

import numpy as np
import pytest
import torch

from fastcondense.restricted_pickle import load
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
