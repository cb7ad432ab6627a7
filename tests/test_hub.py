"""Sets on the Hugging Face Hub, by a stub of its library: what is asked for, and that what is pushed comes back."""

import inspect
import shutil

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from set_files import LAYOUTS, first, write_folder
from small import digits, fastcondense, shards

from fastcondense.cli import main
from fastcondense.files import read_json
from fastcondense.recipe.recipe import load
from fastcondense.sets import hub
from fastcondense.sets.bundle import read_folder

COMMIT = "5eed" * 10


def of_digits(begin: int) -> np.ndarray:
    """Two real digits of each class, uint8 [10, 2, 8, 8, 3]."""
    pixels, labels = digits()
    return np.stack([pixels[labels == k][begin : begin + 2].permute(0, 2, 3, 1).numpy() for k in range(10)])


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder that stands for the Hub: data sets by their names. Only what is asked for is given."""
    root = tmp_path / "hub"

    def download(name, **more):
        inspect.signature(huggingface_hub.snapshot_download).bind(name, **more)
        if not (root / name).is_dir() or more["revision"] not in (None, "main", COMMIT):
            raise OSError(f"404 Client Error: {name} at {more['revision']}\nis not there")
        there = tmp_path / "cache" / name.replace("/", "--") / "snapshots" / COMMIT
        files = [path.relative_to(root / name).as_posix() for path in (root / name).rglob("*") if path.is_file()]
        for file in filter_repo_objects(files, allow_patterns=more["allow_patterns"]):
            (there / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name / file, there / file)
        assert more["repo_type"] == "dataset"
        return str(there)

    class Api:
        def create_repo(self, name, **more):
            inspect.signature(huggingface_hub.HfApi.create_repo).bind(self, name, **more)
            if name.startswith("nobody/"):
                raise OSError("401 Client Error: Unauthorized")
            assert more == {"repo_type": "dataset", "exist_ok": True}
            (root / name).mkdir(parents=True, exist_ok=True)
            return f"https://huggingface.co/datasets/{name}"

        def upload_folder(self, **more):
            inspect.signature(huggingface_hub.HfApi.upload_folder).bind(self, **more)
            shutil.copytree(more["folder_path"], root / more["repo_id"], dirs_exist_ok=True)

        def upload_file(self, **more):
            inspect.signature(huggingface_hub.HfApi.upload_file).bind(self, **more)
            shutil.copy(more["path_or_fileobj"], root / more["repo_id"] / more["path_in_repo"])

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "HfApi", Api)
    return root


@pytest.mark.parametrize(
    ("name", "place", "called"),
    [
        ("hf://user/set", "", "hf://user/set@" + COMMIT),
        ("hf://user/set@main/ipc2/", "ipc2", f"hf://user/set@{COMMIT}/ipc2"),
        ("hf://user/set/ipc2/x.NPZ", "ipc2/x.NPZ", f"hf://user/set@{COMMIT}/ipc2/x.NPZ"),
    ],
)
def test_what_is_read_is_fetched_and_nothing_else(remote, name, place, called):
    for file in ("a/1.JPEG", "ipc2/b/1.png", "ipc2/x.NPZ", "ipc2/classes.json", "labels/batch_0.tar", "README.md"):
        (remote / "user/set" / file).parent.mkdir(parents=True, exist_ok=True)
        (remote / "user/set" / file).write_bytes(b"0")
    path, found = hub.fetch(name)
    root = next(parent for parent in (path, *path.parents) if parent.name == COMMIT)
    have = {file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()}
    assert found == called and path == root / place and hub.fetch(found)[0] == path
    inside = {"ipc2/b/1.png", "ipc2/x.NPZ", "ipc2/classes.json"}
    assert have == {"": {"a/1.JPEG", *inside} - {"ipc2/classes.json"}, "ipc2": inside}.get(place, {"ipc2/x.NPZ"})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf://set", "hf://set is no set of the Hub: needed is hf://user/set"),
        ("hf://user/other", r"hf://user/other cannot be fetched: 404 Client Error: user/other at None is not there"),
        ("hf://user/set/ipc50", r"hf://user/set/ipc50 holds no images of a kind that is read"),
    ],
)
def test_what_cannot_be_had_is_one_line(remote, name, words):
    (remote / "user/set").mkdir(parents=True)
    (remote / "user/set/README.md").write_text("#")
    with pytest.raises(ValueError, match=words) as caught:
        hub.fetch(name)
    assert "\n" not in str(caught.value)


def test_several_sets_are_scored_at_once_and_one_comes_back_from_the_hub(remote, tmp_path, capsys):
    """Two sets, one of them on the Hub: a run each, one training of the teacher, one table; then there and back."""
    here = write_folder(tmp_path / "random", of_digits(5), *LAYOUTS["sre2l"])
    write_folder(remote / "somebody" / "digits", of_digits(0), *LAYOUTS["rded"])
    out, more = tmp_path / "runs", ("--train.seeds", "1", "--train.epochs", "2", "--evaluate.baselines", "random_soft")
    assert fastcondense("run", out, "--images", str(here), "hf://somebody/digits", *more) == 0
    said = capsys.readouterr().out
    assert "condensed sets side by side" in said and said.count("imported, soft labels") == 2
    assert f"images: imported from hf://somebody/digits@{COMMIT}" in " ".join(said.split()).replace("- ", "-")
    origin = read_json(out / "digits" / "condensed" / "manifest.json")["origin"]
    assert origin["path"] == f"hf://somebody/digits@{COMMIT}" and (out / "compare.html").is_file()
    assert '"event": "teacher"' in (out / "random" / "log.jsonl").read_text()
    assert '"event": "teacher"' not in (out / "digits" / "log.jsonl").read_text()
    # there and back
    command = ["export", str(out / "digits"), "--out", str(tmp_path / "x")]
    assert main([*command, "--push-to-hub", "me"]) == 1 and "--push-to-hub needs user/set" in capsys.readouterr().err
    assert main([*command, "--push-to-hub", "me/mine"]) == 0
    assert "export: pushed to https://huggingface.co/datasets/me/mine" in capsys.readouterr().out
    assert fastcondense("recover", tmp_path / "back", "--images", "hf://me/mine", "--squeeze.epochs", "1") == 0
    assert shards(tmp_path / "back") == shards(out / "digits")
    assert np.array_equal(first(of_digits(0)), read_folder(tmp_path / "back").condensed.images)
    assert main(["bundle", str(out / "digits"), "--out", str(tmp_path / "b.zip"), "--push-to-hub", "me/mine"]) == 0
    assert (remote / "me/mine/b.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    capsys.readouterr()
    assert main(["bundle", str(out / "digits"), "--out", str(tmp_path / "c.zip"), "--push-to-hub", "nobody/x"]) == 1
    assert f"nobody/x cannot be pushed to, and {tmp_path / 'c.zip'} is kept: 401" in capsys.readouterr().err
    assert (tmp_path / "c.zip").exists()


def test_several_sets_need_a_folder_of_their_own(tmp_path, capsys):
    (tmp_path / "recipe.toml").write_text(load("sre2l/digits").to_toml())
    assert main(["evaluate", str(tmp_path), "--images", "a", "b"]) == 1
    assert "several --images make a run each, and" in capsys.readouterr().err
    assert fastcondense("recover", tmp_path / "x", "--images") == 1
    assert "--images needs the place of a set" in capsys.readouterr().err
