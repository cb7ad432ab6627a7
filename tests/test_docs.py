"""docs/ builds strictly, names every module, and says what README, recipes and result files say."""

import html
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from documents import PAGES, ROOT, WRITTEN, cells, spans

from fastcondense.recipe import recipe


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e '.[docs]'")
def test_it_builds_strictly_with_every_link(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.relative_to(tmp_path / "site").with_suffix(".md") for path in (tmp_path / "site").rglob("*.html")}
    assert {page.relative_to(ROOT / "docs") for page in PAGES} <= made
    shown = {
        "settings": ("weight_decay: NonNegativeFloat = 0.01", "folder: <split>/<class>/<image>, as ImageNet."),
        "kernels": ("frozen_batch_norm_pool", "Differentiable in the images."),
    }
    for name, words in shown.items():
        text = (tmp_path / "site" / "reference" / f"{name}.html").read_text()
        text = html.unescape(re.sub(r"<[^>]+>", "", text))
        assert all(word in text for word in words)
    table = (tmp_path / "site" / "comparison.html").read_text()
    assert "published top-1 (IPC)" in table


def test_the_reference_names_every_module_once():
    text = "".join(page.read_text() for page in PAGES if page.parent.name == "reference")
    named = re.findall(r"^::: fastcondense\.(\w+)$", text, re.M)
    folder = ROOT / "fastcondense"
    modules = {path.parent.name for path in folder.glob("*/__init__.py")} | {path.stem for path in folder.glob("*.py")}
    assert sorted(named) == sorted(modules - {"__init__"})


def test_links_and_paths_of_files_exist():
    checked = 0
    for page in WRITTEN:
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
        folders = r"(docs|scripts|benchmarks|tests|fastcondense/recipes)/[\w./-]+"
        paths = [span for span in spans(page) if re.fullmatch(folders, span)]
        for link in links:
            if link and "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"
                checked += 1
        for path in paths:
            assert (ROOT / path).exists(), f"{page.name} names {path}"
            checked += 1
    assert checked > 30


def test_published_figures_are_the_recipes_and_say_where_they_were_read():
    rows = [row for row in cells(ROOT / "docs" / "methods.md") if row[0].endswith("/imagenet1k`")]
    assert len(rows) == 16
    for name, ten, fifty, _, source, _ in rows:
        published = recipe.published(name.strip("`"))["torchvision/resnet18"]
        assert (float(ten), float(fifty)) == (published["10"], published["50"]), name
        assert re.match(r"\[.+?\]\(https://(github\.com/[\w-]+/[\w-]+|arxiv\.org/abs/[\d.]+)\)", source), name


GENERATED = re.compile(r"<!-- (.+?): begin -->.*?<!-- \1: end -->", re.S)


@pytest.mark.parametrize("page", ["index", "comparison"])
def test_our_figures_stand_in_readme_or_in_tables_that_scripts_write(page, tmp_path):
    """A figure is written down once more, not anew."""
    made = [found[0] for path in WRITTEN for found in GENERATED.finditer(path.read_text())]
    text = "\n".join([(ROOT / "README.md").read_text(), *made])
    by_hand = tmp_path / "page.md"
    by_hand.write_text(GENERATED.sub("", (ROOT / "docs" / f"{page}.md").read_text()))
    number = r"[\d.]+( ± [\d.]+)?"
    shown = rf"(\*\*)?{number}(\*\*)?( \({number}\))?"  # in bold or not, with the best epoch's in brackets or without
    rows = [row for row in cells(by_hand) if re.fullmatch(shown, row[1])]
    assert len(rows) >= 3
    for row in rows:
        for figure in row[1:]:
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.])", text), f"there is no {figure} ({row[0]})"


def test_docstrings_are_text_but_in_code(monkeypatch):
    pytest.importorskip("griffe", reason="griffe is not installed: pip install -e '.[docs]'")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import docstrings

    assert docstrings.escape("a < b & `<c>` is <d>") == "a &lt; b &amp; `<c>` is &lt;d&gt;"
