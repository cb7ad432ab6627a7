"""Repositories of published code: taken at the pinned commit alone, absent with the reason otherwise, and fetched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_peers import UTILS, make_repository
from published import repository
from published.repository import SRE2L, Absent, Repository


@pytest.fixture
def pinned(tmp_path: Path) -> Repository:
    return replace(SRE2L, commit=make_repository(tmp_path / "peers" / "SRe2L"))


def test_a_checkout_of_the_pinned_commit_is_taken(tmp_path: Path, pinned: Repository) -> None:
    assert pinned.folder(tmp_path / "peers") == tmp_path / "peers" / "SRe2L"


def test_anything_else_is_absent_with_the_reason(tmp_path: Path, pinned: Repository) -> None:
    peers = tmp_path / "peers"

    def refused(wanted: Repository, folder: Path | None = peers) -> str:
        with pytest.raises(Absent) as error:
            wanted.folder(folder)
        return str(error.value)

    assert "FASTCONDENSE_PEERS" in refused(pinned, None)
    assert "has no SRe2L" in refused(pinned, tmp_path)
    other = "0123456789" * 4
    assert refused(replace(pinned, commit=other)) == f"SRe2L is at {pinned.commit[:7]}, but 0123456 is what is measured"
    assert "no_such_package" in refused(replace(pinned, needs=("no_such_package",)))
    (peers / "SRe2L" / "SRe2L" / "recover" / "utils.py").write_text("x = 1\n")
    assert refused(pinned) == "SRe2L has changes: M SRe2L/recover/utils.py"
    (tmp_path / "plain" / "SRe2L").mkdir(parents=True)
    assert "git" in refused(pinned, tmp_path / "plain")


def test_a_plain_folder_inside_another_checkout_is_absent(tmp_path: Path) -> None:
    commit = make_repository(tmp_path)
    (tmp_path / "SRe2L").mkdir(exist_ok=True)
    with pytest.raises(Absent, match="not a git checkout"):
        replace(SRE2L, commit=commit).folder(tmp_path)


def test_fetching_clones_the_commit_and_only_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = make_repository(tmp_path / "hub" / "VILA-Lab" / "SRe2L")
    config = f'[url "file://{tmp_path}/hub/"]\ninsteadOf = https://github.com/\n[uploadpack]\nallowFilter = true\n'
    (tmp_path / "gitconfig").write_text(config)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    wanted, gone = replace(SRE2L, commit=commit), replace(repository.RDED, commit=commit)
    for _ in range(2):  # a finished clone is kept
        found = repository.fetch_all(tmp_path / "peers", [wanted, gone])
        assert found[str(wanted)] == "ready"
        assert "https://github.com/LINs-lab/RDED was not fetched" in found[str(gone)]
    folder = wanted.folder(tmp_path / "peers")
    assert (folder / "SRe2L" / "recover" / "utils.py").read_text() == UTILS
    assert not (folder / "other").exists()


def test_pins_are_whole_commits_of_five_repositories() -> None:
    assert len({one.commit for one in repository.REPOSITORIES}) == 5
    for one in repository.REPOSITORIES:
        assert len(one.commit) == 40 and int(one.commit, 16) and one.licence
        assert one.url.startswith("https://github.com/")
