"""Bundles and shards of strangers: every changed byte is seen, and what they claim takes no memory."""

import hashlib
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hostile_files import MEMBERS, SHA, bomb, contents, one_line, sealed
from memory import begin_peak, peak

from fastcondense.cli import main
from fastcondense.data.jobs import Job, jobs
from fastcondense.recipe.recipe import Recipe
from fastcondense.sets import sealed_zip
from fastcondense.sets.bundle import read_bundle
from fastcondense.sets.condensed import read_record, read_set, write_shard
from fastcondense.sets.loss_bands import read_loss_band
from fastcondense.sets.stored_images import read_shard, shard_path
from fastcondense.tensor_files import read_tensors, write_tensors


def test_every_changed_byte_of_a_sealed_file_is_seen(tmp_path):
    good = sealed(tmp_path / "z").read_bytes()
    assert contents(tmp_path / "z") == MEMBERS
    assert sealed_zip.read_seal(tmp_path / "z") == hashlib.sha256(good[:-64]).hexdigest()
    for place in range(len(good)):
        (tmp_path / "z").write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert not sealed_zip.is_sealed(tmp_path / "z"), place
    for length in range(len(good)):
        (tmp_path / "z").write_bytes(good[:length])
        assert not sealed_zip.is_sealed(tmp_path / "z"), length


def test_mutated_files_without_their_seal_are_read_or_named(tmp_path):
    good, dice, path = sealed(tmp_path / "z").read_bytes(), random.Random(0), tmp_path / "z"
    for _ in range(400):
        bad = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            bad[dice.randrange(len(bad))] = dice.randrange(256)
        path.write_bytes(bad)
        found = one_line(lambda: contents(path, must_be_sealed=False), str(path))
        assert found is None or set(found.values()) <= set(MEMBERS.values())  # names have no checksum, bytes have


def test_a_list_of_members_that_is_long_for_its_file_is_refused(tmp_path):
    content = bytearray(sealed(tmp_path / "z").read_bytes())
    end = len(content) - 64 - 22
    content[end + 12 : end + 16] = (1 << 30).to_bytes(4, "little")
    (tmp_path / "z").write_bytes(content)
    with pytest.raises(ValueError, match="its list of members has 1073741824 bytes"):
        contents(tmp_path / "z", must_be_sealed=False)


def sealed_bytes(content):
    return content + hashlib.sha256(content).hexdigest().encode()


def test_an_end_that_can_be_read_in_two_ways_is_no_bundle(tmp_path):
    """The list of members is read where Python's zipfile takes it to be, and measured there too."""
    good = sealed(tmp_path / "z").read_bytes()[:-64]
    end = len(good) - 22
    inner = good[: end + 4] + b"PK\5\6" + good[end + 8 :]
    record, place = b"PK\6\6" + bytes(52), b"PK\6\7" + (0).to_bytes(4, "little")
    elsewhere = good[:end] + record + place + (7).to_bytes(8, "little") + b"\1\0\0\0" + good[end:]
    for content in (inner, elsewhere):
        (tmp_path / "z").write_bytes(sealed_bytes(content))
        with pytest.raises(ValueError, match=r"z is not a bundle: it does not end as one does"):
            contents(tmp_path / "z")


def test_a_zip_of_several_disks_is_no_bundle(tmp_path, capsys):
    place = b"PK\6\7" + bytes(4) + bytes(8) + (2).to_bytes(4, "little")
    (tmp_path / "z").write_bytes(b"PK\6\6" + bytes(52) + place + b"PK\5\6" + bytes(18))
    assert main(["verify", str(tmp_path / "z")]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "z") in said and said.count("\n") == 1


@pytest.mark.parametrize(("count", "size"), [(2, 0), (300, 10_000)])
def test_members_within_members_hold_no_more_than_the_file(tmp_path, count, size):
    """Each member holds all that come after it, headers and all: 300 of 10 kB would be 3 GB from 1 MB."""
    data, heads, members = bytes(size), [], []
    for number in reversed(range(count)):
        name = f"{number:05d}".encode()
        fields = struct.pack("<5H3L2H", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
        data = b"PK\3\4" + fields + name + data
        heads.append((b"PK\1\2" + struct.pack("<H", 20) + fields, name, len(data)))
    whole = len(data)
    for head, name, length in heads:
        members.append(head + bytes(10) + struct.pack("<L", whole - length) + name)
    table = b"".join(members)
    record = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, count, count, len(table), whole, 64)
    (tmp_path / "z").write_bytes(sealed_bytes(data + table + record))
    held = begin_peak()
    found = one_line(lambda: contents(tmp_path / "z"), str(tmp_path / "z"))
    assert found is None or count == 2
    assert peak() - held < 50e6


# --- claims and memory -----------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
import fastcondense.cli, fastcondense.exchange.verify
from fastcondense.vision import torchvision
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    status = fastcondense.cli.main(["verify", path])
    print(status, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_claims_of_a_small_bundle_take_no_memory(tmp_path):
    claims = [{"ipc": 10**9}, {"ipc": 10**18}, {"ipc": 1, "size": 10**6}, {"ipc": 10**5, "classes": 5000}]
    paths = [str(bomb(tmp_path / f"{k}.zip", **claim)) for k, claim in enumerate(claims)]
    found = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    lines, errors = found.stdout.split("\n")[:-1], found.stderr.split("\n")[:-1]
    assert len(lines) == len(errors) == len(paths)
    for line, error, path in zip(lines, errors, paths, strict=True):
        status, grown = map(int, line.split())
        assert status == 1 and path in error and grown < 200, (line, error)


def test_a_set_of_one_colour_that_is_large_for_its_file_is_refused(tmp_path):
    images = {f"images/0000{k}-{k}/{slot:05d}.png": b"" for k in range(2) for slot in range(800)}
    with pytest.raises(ValueError, match="and claims to hold images of 240844800"):
        read_bundle(bomb(tmp_path / "b.zip", 800, 2, **images))


def test_millions_of_jobs_are_refused():
    with pytest.raises(ValueError, match="are 2000000000 jobs, more than 2000000"):
        jobs(Recipe(ipc=10**9), 200)


# --- shards ----------------------------------------------------------------------------------------------------------

JOB = Job(0, 0, 2, 1, 3)
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), np.uint8))


def test_every_damaged_byte_of_a_shard_is_named_or_changes_nothing(tmp_path):
    write_shard(tmp_path, JOB, PIXELS, torch.rand(3, 3), {"seconds": "1"})
    path = shard_path(tmp_path, 0)
    good = path.read_bytes()
    whole, kept = read_tensors(path)
    begin = 8 + int.from_bytes(good[:8], "little")
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        found = one_line(lambda: read_shard(tmp_path, JOB, "images", "losses"), str(path))
        assert place < begin or found is None, place
        assert found is None or all(torch.equal(found[name], whole[name]) for name in ("images", "classes", "slots"))
    assert "tensors_sha256" not in kept


@pytest.mark.parametrize(
    "change",
    [
        {"images": None},
        {"images": PIXELS.float()},
        {"images": PIXELS[:5]},
        {"images": PIXELS[:, :1]},
        {"images": PIXELS.flatten()},
        {"classes": None},
        {"classes": JOB.classes() + 10**6},
        {"classes": -JOB.classes()},
        {"slots": JOB.slots().float()},
        {"slots": JOB.slots()[:3]},
    ],
    ids=lambda change: " ".join(change),
)
def test_shards_of_other_shapes_are_named(tmp_path, change):
    tensors = {"images": PIXELS, "classes": JOB.classes(), "slots": JOB.slots(), "losses": torch.zeros(0, 3)} | change
    write_tensors(shard_path(tmp_path, 0), {name: t for name, t in tensors.items() if t is not None}, {})
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors"):
        read_set(tmp_path, [JOB], 2, tuple("abcd"))


def test_digests_are_looked_at_once(tmp_path, monkeypatch):
    whole = Job(0, 0, 2, 0, 3)
    write_shard(tmp_path, whole, PIXELS, torch.zeros(0, 3), {})
    found, seen = read_set(tmp_path, [whole], 2, tuple("abc")), []
    monkeypatch.setattr("fastcondense.tensor_files._sha256", lambda tensor: seen.append(tensor.shape) or SHA)
    with pytest.raises(ValueError, match="its 'images' are not those that were written"):
        found.of_class(0)
    monkeypatch.undo()
    assert torch.equal(found.of_class(1), PIXELS[2:4])
    monkeypatch.setattr("fastcondense.tensor_files._sha256", lambda _: pytest.fail("again"))
    assert torch.equal(found.first(1).images[:, 0], PIXELS[::2])


RECORD = {
    "snapshots/images": torch.zeros(2, 4, 3, 5, 5, dtype=torch.uint8),
    "snapshots/classes": torch.arange(4),
    "snapshots/iterations": torch.tensor([0, 9]),
    "layers/0/losses": torch.ones(7, 2),
    "layers/0/iterations": torch.arange(7),
}


@pytest.mark.parametrize(
    "change",
    [
        {"snapshots/images": torch.zeros(2, 4, 3, 5, 6, dtype=torch.uint8)},
        {"snapshots/images": torch.zeros(2, 4, 1, 5, 5, dtype=torch.uint8)},
        {"snapshots/images": torch.zeros(3)},
        {"snapshots/classes": torch.arange(4.0)},
        {"snapshots/iterations": torch.arange(3)},
        {"snapshots/more": torch.arange(3)},
        {"layers/0/losses": torch.ones(7, 3)},
        {"layers/0/losses": torch.ones(7, 2).double()},
        {"layers/0/iterations": torch.arange(6)},
        {"layers": "[" * 50_000},
        {"layers": '[["t", "ab"]]'},
        {"layers": '[["t", ["a", "b"]], ["u", []]]'},
    ],
    ids=lambda change: " ".join(change),
)
def test_a_record_that_cannot_be_one_is_named(tmp_path, change):
    def written(tensors):
        tensors, layers = dict(tensors), '[["t", ["a", "b"]]]'
        write_tensors(shard_path(tmp_path, 0), tensors, {"layers": tensors.pop("layers", layers)})
        return read_record(tmp_path, 0)

    assert written(RECORD).layers[0].names == ("a", "b")
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors cannot be read: "):
        written(RECORD | change)


def test_losses_of_other_iterations_are_named(tmp_path):
    paths = [shard_path(tmp_path, number) for number in range(2)]
    for path, count in zip(paths, (3, 2), strict=True):
        write_tensors(path, {"losses": torch.ones(count, 3)}, {})
    with pytest.raises(ValueError, match=r"shard-00001.* it has losses of 2 iterations, those before of 3"):
        read_loss_band(paths)
