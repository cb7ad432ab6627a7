"""Code and paths that a stranger's recipe names: nothing is imported, read or written by their word."""

import contextlib
import dataclasses
import json
import re
import shutil
import sys
import threading
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from small import fastcondense
from test_bundle import rewritten, said

from fastcondense import trust
from fastcondense.cli import main
from fastcondense.recipe.recipe import Recipe, from_toml
from fastcondense.recover.background import Ahead, Writer

PLAIN = {  # free text that is neither code nor a path
    "name",
    "method",
    "dataset.classes",
    "squeeze.normalization",
    "recover.teachers",
    "recover.initial.teachers",
    "recover.features.layer",
    "recover.gradients.layer",
    "labels.teachers",
}
FEWER = "--squeeze.epochs 1 --squeeze.gate-images 0 --recover.iterations 2 --train.epochs 1 --train.seeds 1".split()
CODE = "import pathlib\npathlib.Path('ran').touch()\nfrom fastcondense.networks.zoo import build\n"
CODE += "def net(num_classes):\n    return build('zoo/convnet3_w32', num_classes)\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that is relabelled, and its bundle."""
    out = tmp_path_factory.mktemp("trust") / "digits"
    for command in ("recover", "relabel"):
        assert fastcondense(command, out, *FEWER) == 0
    assert main(["bundle", str(out)]) == 0
    return out


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with a module whose import leaves the file `ran`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "x.py").write_text(CODE)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("fastcondense_user_")]:
        del sys.modules[name]


def with_settings(run, path, *changes):
    """A sealed copy of the run's bundle with `old` replaced by `new` in its recipe, for pairs of them."""

    def change(members):
        text = members["recipe.toml"].decode()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        members["recipe.toml"] = text.encode()

    return str(rewritten(run.with_suffix(".zip"), path, change))


def strings(kind: Any, prefix: str = "") -> set[str]:
    """Settings that take any text."""
    found = set()
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= strings(hint, f"{prefix}{name}.")
        elif hint is str or "str" in re.findall(r"\w+", re.sub(r"Literal\[[^]]*\]", "", str(hint))):
            found.add(prefix + name)
    return found


def test_every_setting_of_any_text_is_code_or_a_path_or_neither():
    assert strings(Recipe) == {*trust.CODE, *trust.PATHS, *PLAIN}


@pytest.mark.parametrize(
    ("command", "change"),
    [
        ("train", ('student = "zoo/convnet1"', 'student = "x.py:net"')),
        ("plan", ('"zoo/convnet3_w32"', '"x:net"')),
        ("recover", ('loss = ""', 'loss = "x.py:net"')),
    ],
)
def test_code_that_a_bundle_names_is_not_imported(run, folder, capsys, command, change):
    path = with_settings(run, folder / "b.zip", change)
    assert main([command, path, "--out", "o", "--device", "cpu"]) == 1
    assert not (folder / "ran").exists()
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1
    assert "is code that the recipe of a run or bundle names, and your command line does not" in lines[0]


def test_a_teacher_of_manifest_and_recipe_is_not_imported(run, folder, capsys):
    def change(members):
        for name in ("recipe.toml", "manifest.json"):
            members[name] = members[name].replace(b"zoo/convnet3_w32", b"x.py:net")
        named = from_toml(members["recipe.toml"], "changed").sha256()  # the attacker knows that it is looked at
        manifest = json.loads(members["manifest.json"])
        manifest["bundle"]["recipe_sha256"] = named
        members["manifest.json"] = json.dumps(manifest).encode()
        members["teachers/x.py-net/weights.safetensors"] = members.pop("teachers/zoo-convnet3-w32/weights.safetensors")

    def renamed(members):
        (old,) = (name for name in members if name.startswith("teachers/"))
        members["teachers/zoo-convnet3-w32/weights.safetensors"] = members.pop(old)
        change(members)

    path = str(rewritten(run.with_suffix(".zip"), folder / "b.zip", renamed))
    assert main(["verify", path]) == 1
    assert "'x.py:net' is code that" in said(capsys) and not (folder / "ran").exists()
    main(["verify", path, "--code", "x.py:net"])
    assert (folder / "ran").exists(), "it is, once the command line names it"


def test_a_run_goes_on_with_its_own_code_where_the_command_names_it(run, folder, capsys):
    shutil.copytree(run, "o")
    recipe = Path("o", "recipe.toml")
    recipe.write_text(re.sub(r"(?m)^student = .*$", 'student = "x.py:net"', recipe.read_text()))
    assert main(["train", "o", "--device", "cpu"]) == 1
    assert "--train.student" in said(capsys) and not (folder / "ran").exists()
    assert main(["train", "o", "--device", "cpu", "--train.student", "x.py:net", "--evaluate.baselines"]) == 0
    assert (folder / "ran").exists()
    (folder / "ran").unlink()
    for name in [name for name in sys.modules if name.startswith("fastcondense_user_")]:
        del sys.modules[name]
    assert main(["evaluate", "o", "--device", "cpu", "--evaluate.baselines"]) == 0, "what was scored is read"
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("setting", trust.PATHS)
def test_paths_of_a_strangers_recipe_are_not_opened(folder, setting):
    def used(given, inside=None):
        with trust.only(given, inside):
            return trust.path(str(folder / "o" / "secret"), setting)

    with pytest.raises(ValueError, match=f"{setting} .* your command line does not.*--{setting.replace('_', '-')}"):
        used(())
    assert used([str(folder / "o" / "secret")]) == used((), folder / "o") == folder / "o" / "secret"
    (folder / "o").symlink_to(folder.parent)
    with pytest.raises(ValueError, match=setting):
        used((), folder / "run")
    assert trust.path("anywhere", setting).name == "anywhere", "a program that uses the library trusts itself"


def test_labels_are_stored_nowhere_else(run, folder, capsys):
    outside = folder / "outside"
    change = ('stored = ""', f'stored = "{outside}"'), ('source = "teachers"', 'source = "stored"')
    path = with_settings(run, folder / "b.zip", *change)
    assert main(["relabel", path, "--out", "o", "--device", "cpu"]) == 1
    assert f"labels.stored '{outside}' is a path that" in said(capsys) and not outside.exists()
    assert main(["relabel", path, "--out", "o", "--device", "cpu", "--labels.stored", str(outside)]) == 0
    assert outside.exists()


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../b", "", "a b", "x\x1b[2J", "[/bold]"])
def test_a_name_is_no_path(name):
    with pytest.raises(ValueError, match="name is part of paths"):
        dataclasses.replace(Recipe(), name=name).check()


@pytest.mark.parametrize("name", ["../shared/data/cifar10", "/etc/passwd", "a//b", 3, ["x"]])
def test_a_recipe_extends_shared_files_alone(name):
    with pytest.raises(ValueError, match=r"S extends .* but there is no"):
        from_toml(f"extends = [{name!r}]" if not isinstance(name, list) else f"extends = [{name}]", "S")


def test_trust_ends_with_its_block():
    with contextlib.suppress(KeyError), trust.only(()):
        raise KeyError
    assert trust.code("x.py:net", "student") == "x.py:net"


def test_threads_do_not_lend_each_other_their_trust():
    """One enters while another is in its block, and goes on when that one has left."""
    first_in, second_in, first_out, seen = threading.Event(), threading.Event(), threading.Event(), []

    def first():
        with trust.only(()):
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second():
        first_in.wait(10)
        with trust.only(()):
            second_in.set()
            first_out.wait(10)
            seen.append(trust.is_given("evil.py:f"))

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [False] and trust.is_given("x.py:net")


def test_what_is_made_beside_a_job_is_allowed_what_the_job_is():
    with trust.only(("mine.py:f",)), ThreadPoolExecutor(1) as thread, Writer() as write:
        ahead, written = Ahead(trust.is_given, thread), []
        ahead.prepare("theirs.py:f")
        assert (ahead("theirs.py:f"), ahead("mine.py:f")) == (False, True)
        write(lambda: written.append(trust.is_given("theirs.py:f")))
    assert written == [False]
