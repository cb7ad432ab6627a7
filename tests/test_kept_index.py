"""Indices of large image folders: kept, taken while no folder has changed, and small in memory."""

import os
import tracemalloc
from pathlib import Path

import pytest

from fastcondense.data import kept_index
from fastcondense.data.kept_index import indexed
from fastcondense.loaders.class_folders import index_classes
from fastcondense.loaders.file_names import FileNames


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three classes, one with a folder inside, in a cache that takes folders of any size that have changed by now."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_index, "_WORTH", 1)
    monkeypatch.setattr(kept_index, "_SETTLED", -60)
    for name in ("b/1.jpg", "a/x.JPEG", "a/sub/y.png", "a/sub.png", "a/notes.txt", b"c/\xff.png"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path / "data"), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "data"


def walked(monkeypatch):
    """The folders that are walked from here on."""
    found = []
    monkeypatch.setattr(kept_index, "index_classes", lambda root: found.append(root) or index_classes(root))
    return found


def same(one, other):
    assert one.files == other.files and one.labels.tolist() == other.labels.tolist()
    assert (one.classes, one.said, one.root, one.times) == (other.classes, other.said, other.root, other.times)


def test_a_folder_is_walked_once_until_something_in_it_changes(folder, monkeypatch):
    calls, plain = walked(monkeypatch), index_classes(folder)
    names = [path.relative_to(folder).as_posix() for path in plain.files]
    assert names == ["a/sub/y.png", "a/sub.png", "a/x.JPEG", "b/1.jpg", "c/\udcff.png"]
    same(indexed(folder), plain)
    same(indexed(folder), plain)
    assert len(calls) == 1 and "1 .txt" in plain.said[0]
    for k, change in enumerate((
        lambda: (folder / "a" / "sub" / "z.png").touch(),
        lambda: (folder / "b" / "1.jpg").rename(folder / "b" / "2.jpg"),
        lambda: (folder / "d").mkdir() or (folder / "d" / "1.png").touch(),
        lambda: [path.unlink() for path in (folder / "a" / "sub").iterdir()] and (folder / "a" / "sub").rmdir(),
    )):  # fmt: skip
        change()
        same(indexed(folder), index_classes(folder))
        same(indexed(folder), index_classes(folder))
        assert len(calls) == k + 2


def test_what_is_no_kept_index_is_not_taken(folder, monkeypatch):
    calls = walked(monkeypatch)
    indexed(folder)
    (kept,) = (folder.parent / "cache" / "fastcondense").iterdir()
    data = kept.read_bytes()
    for damaged in (data[:-3], b"", data.replace(b"1.jpg", b"9.jpg")):
        kept.write_bytes(damaged)
        same(indexed(folder), index_classes(folder))
    assert len(calls) == 4
    monkeypatch.setattr(kept_index, "is_read", lambda ending: ending == ".png")  # a Pillow that reads less
    indexed(folder)
    assert len(calls) == 5


def test_small_folders_and_those_that_change_now_are_not_kept(folder, monkeypatch):
    for name, value in (("_SETTLED", 60), ("_WORTH", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(kept_index, name, value)
            indexed(folder)
        assert not (folder.parent / "cache").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "a" / "x.JPEG"))  # no folder
    same(indexed(folder), index_classes(folder))


def test_indices_do_not_pile_up(folder, monkeypatch):
    monkeypatch.setattr(kept_index, "_MOST_KEPT", 2)
    for name in ("data", "one", "two"):
        folder = folder.rename(folder.with_name(name)) if folder.name != name else folder
        indexed(folder)
        assert index_classes(folder).times.keys() == indexed(folder).times.keys()
    assert len(list((folder.parent / "cache" / "fastcondense").iterdir())) == 2


def test_names_of_files_are_paths_and_small():
    tracemalloc.start()
    files = FileNames(
        Path("/data/imagenet/train"), [f"n{k % 1000:08d}/n{k % 1000:08d}_{k}.JPEG" for k in range(50_000)]
    )
    chosen = files.take(range(49_999, -1, -1))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 50_000 * 110  # a Path took 340, and 520 once its text was asked for
    assert files[1] == Path("/data/imagenet/train/n00000001/n00000001_1.JPEG") == chosen[-2]
    assert list(files[3:5]) == [files[3], files[4]] and list(files)[-1] == files[-1]
    assert FileNames(Path(), ["a/b"]) + FileNames(Path("/"), ["c"]) == FileNames.of(["a/b", Path("/c")])
    assert list(FileNames(Path("."), ["a"]).texts()) == ["a"]
