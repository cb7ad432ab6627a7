"""The report of a run: numbers against the run's files, pages of unfinished runs, and a look through a browser."""

import base64
import io
import itertools
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from browser import CHROMIUM, look
from PIL import Image
from small import fastcondense

from fastcondense.data import datasets
from fastcondense.files import read_json, write_json
from fastcondense.networks import zoo
from fastcondense.recipe import recipe
from fastcondense.recipe.evaluation import sha256_with
from fastcondense.report.diversity import diversity
from fastcondense.report.embedding import embed, image_features
from fastcondense.report.findings import LayerMeans, class_titles, read_findings
from fastcondense.report.html import document, tag
from fastcondense.report.images import animation, thumbnail
from fastcondense.run import Run
from fastcondense.sets.record import LayerLosses
from fastcondense.squeeze.stage import squeeze
from fastcondense.tensor_files import read_tensors, write_tensors

FAST = (
    "--squeeze.epochs 1 --squeeze.gate-images 0 --recover.iterations 10 --train.epochs 3 --train.evaluate-every 1 "
    "--evaluate.baselines random_soft"
).split()
IDC = "--squeeze.teachers --recover.objective gradients --labels.source hard --evaluate.baselines random_hard".split()


def test_names_cannot_say_anything_to_a_terminal_that_shows_the_page():
    page = document("r", tag("p", "\x1b]0;x\x07", "\x9b2J", "t\u00e4nch \u2009\n"))
    assert "<p>\\x1b]0;x\\x07\\x9b2Jt\u00e4nch \u2009\n</p>" in page


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "digits"
    assert fastcondense("run", out, *FAST) == 0
    return out


class Page(HTMLParser):
    """Text and data URIs by section; raises AssertionError for tags that do not match."""

    EMPTY = ("meta", "img", "source", "br", "use", "path", "rect", "image", "circle", "line")

    def __init__(self, text):
        super().__init__()
        self.open, self.section, self.texts, self.sources, self.links = [], "", {}, {}, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, name, attributes):
        found = dict(attributes)
        if name == "section":
            self.section = found["id"]
        for key in ("src", "srcset"):
            if key in found:
                self.sources.setdefault(self.section, []).append(found[key])
        self.links += [found[key] for key in ("href", "xlink:href", "action", "data", "poster") if key in found]
        if name not in self.EMPTY:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        if name not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, name):
        if name not in self.EMPTY:
            assert self.open.pop() == name

    def handle_data(self, data):
        self.texts.setdefault(self.section, []).append(data)

    def text(self, section):
        return " ".join("".join(f"{part} " for part in self.texts.get(section, [])).split())


def page_of(out):
    return Page((out / "report.html").read_text())


def decoded(uri):
    assert uri.startswith("data:image/webp;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_the_page_is_whole_and_asks_for_nothing(finished):
    text = (finished / "report.html").read_text()
    page = Page(text)
    assert set(page.texts) >= set("forming losses images features accuracy classes costs".split())
    assert "not run" not in text
    assert all(source.startswith("data:image/") for sources in page.sources.values() for source in sources)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "<script" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    names = re.findall(r'(?:https?:)?//[^\s"\'<)]+', re.sub(r'"data:[^"]*"', '""', text))
    assert set(names) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, which nobody fetches
    assert len(text) < 1_000_000


def test_a_second_report_has_the_same_bytes(finished):
    before = (finished / "report.html").read_bytes()
    assert fastcondense("inspect", finished, *FAST) == 0
    assert (finished / "report.html").read_bytes() == before


def test_small_images_are_shown_to_the_bit(finished):
    shown = [np.asarray(decoded(uri).convert("RGB")) for uri in page_of(finished).sources["images"]]
    assert len(shown) == 40  # a class: two condensed, two real
    train = datasets.load(recipe.load(str(finished / "recipe.toml")).dataset, None).train
    for label in range(10):
        real = [image for image, own in zip(train.images, train.labels, strict=True) if own == label]
        assert all(any(np.array_equal(tile, one) for one in real) for tile in shown[4 * label + 2 : 4 * label + 4])
    for job in range(4):
        shard, _ = read_tensors(finished / "condensed" / f"shard-{job:05d}.safetensors")
        for label, slot, image in zip(shard["classes"], shard["slots"], shard["images"], strict=True):
            assert np.array_equal(shown[4 * label + slot], image.permute(1, 2, 0).numpy())


def test_the_animation_and_the_strips_are_the_snapshots(finished):
    still, moving, *strips = page_of(finished).sources["forming"]
    shards = [read_tensors(finished / "condensed" / f"shard-{job:05d}.safetensors")[0] for job in (0, 1)]
    kept = torch.cat([shard["snapshots/images"] for shard in shards], 1)
    assert kept.shape == (8, 10, 3, 8, 8)
    frames = torch.cat((kept, torch.cat([shard["images"] for shard in shards])[None])).permute(0, 1, 3, 4, 2).numpy()
    picture = decoded(moving)
    assert picture.n_frames == 9 and picture.size == (264, 5 * 148 + 20) and decoded(still).size == picture.size
    texts = []
    for number in range(9):
        picture.seek(number)
        pixels, drawn = np.asarray(picture.convert("RGB")), np.asarray(picture.convert("RGBA"))[..., 3]
        for k in range(10):
            top, left = 148 * (k // 2), 136 * (k % 2)
            wanted = frames[number, k].repeat(16, 0).repeat(16, 1)
            assert np.array_equal(pixels[top : top + 128, left : left + 128], wanted)
            assert drawn[top + 128 : top + 148, left : left + 128].any()  # its class
        texts.append(drawn[-20:].tobytes())
    assert len(set(texts)) == 9  # the iteration
    tiles = [np.asarray(decoded(uri).convert("RGB")) for uri in strips]
    for (k, number), tile in zip(itertools.product(range(10), range(9)), tiles, strict=True):
        assert np.array_equal(tile, frames[number, k])
    assert "0 1 2 3 5 6 7 8 10" in page_of(finished).text("forming")


def test_accuracies_are_those_of_the_result(finished):
    result, text = read_json(finished / "result.json"), page_of(finished).text("accuracy")
    for name, scores in (("condensed", result), ("random real", result["baselines"]["random_soft"])):
        cells = (scores[key] for key in ("top1_last", "top1_best", "top5_last"))
        assert f"{name}, soft labels " + " ".join(f"{c['mean']:.1f} ± {c['std']:.1f}" for c in cells) in text
    difference = result["top1_last"]["mean"] - result["baselines"]["random_soft"]["top1_last"]["mean"]
    assert f"{abs(difference):.1f} points {'above' if difference > 0 else 'below'} random" in page_of(finished).text("")


def test_classes_are_counted_as_the_stored_students_answer(finished):
    """Recomputed from the weights, with plain bookkeeping, summed over both seeds."""
    settings = recipe.load(str(finished / "recipe.toml"))
    test = datasets.load(settings.dataset, None).test
    mean, std = (np.array(x)[:, None, None] for x in (settings.dataset.mean, settings.dataset.std))
    x = torch.from_numpy(((test.images.transpose(0, 3, 1, 2) / 255 - mean) / std).astype(np.float32))
    counts = np.zeros((10, 10), dtype=int)
    for folder in sorted(finished.glob("students/*/condensed/seed*")):
        net = zoo.build("zoo/convnet1", 10)
        net.load_state_dict(read_tensors(folder / "weights.safetensors")[0])
        mine = np.zeros_like(counts)
        np.add.at(mine, (test.labels, net.eval()(x).argmax(1).numpy()), 1)
        kept = read_json(folder / "student.json")["classes"]
        assert kept["images"] == mine.sum(1).tolist() and kept["right"] == mine.diagonal().tolist()
        for label in range(10):
            wrong = sorted((int(mine[label, k]) for k in range(10) if k != label), reverse=True)
            assert [n for c, _, n in kept["confused"] if c == label] == [n for n in wrong[:3] if n]
        assert all(mine[label, answer] == n and label != answer for label, answer, n in kept["confused"])
        counts += mine
    shares = 100 * counts.diagonal() / counts.sum(1)
    table = page_of(finished).text("classes").partition("top-1 ")[2]
    for label in np.argsort(shares, kind="stable")[:3]:
        assert re.search(rf"\b{label} (\d \(\d+ %\),? ?)*(none )?{shares[label]:.1f}\b", table)


def test_costs_are_those_of_the_files(finished):
    text, result = page_of(finished).text("costs"), read_json(finished / "result.json")
    assert "recover 20 images by 4 jobs 3.8 kB" in text and "relabel what replays the labels 0 B" in text
    assert f"squeeze 1 teacher {result['bytes']['teachers'] / 1000:.1f} kB" in text
    spent = sum(read_json(path)["seconds"]["train"] for path in finished.glob("students/*/*/*/student.json"))
    assert f"train 4 students {spent:.1f} s" in text


def test_features_are_what_the_classifier_reads(finished):
    """Against the plain network in float64; diversity against a loop over all pairs."""
    run = Run(recipe.load(str(finished / "recipe.toml")), finished)
    found = read_findings(run)
    seen = image_features(run, squeeze(run)[0], found.images)
    net, read = zoo.build("zoo/convnet3_w32", 10), []
    net.load_state_dict(read_tensors(next(finished.glob("teachers/*/weights.safetensors")))[0])
    net.double().eval().get_submodule(seen.layer).register_forward_pre_hook(lambda _, x: read.append(x[0]))
    text, distances = page_of(finished).text("features"), {"condensed": [], "real": []}
    for label in range(10):
        pixels = torch.stack([found.images[label, slot] for slot in (0, 1)])
        net(run.normalize(pixels).double())
        np.testing.assert_allclose(seen.condensed[label], read.pop().detach().numpy(), rtol=1e-3, atol=1e-4)
        assert len(seen.real[label]) == 30
        for kind, features in (("condensed", seen.condensed[label]), ("real", seen.real[label][:2])):
            a, b = features.astype(float)
            distances[kind].append(1 - a @ b / np.sqrt(a @ a * (b @ b)))
    means = {kind: f"{np.mean(values):.3f}" for kind, values in distances.items()}
    assert f"{means['condensed']} for 2 condensed images a class, {means['real']} for as many random real ones" in text
    assert "20 condensed images (ringed) and 300 of 1437 real training images" in text


def test_diversity_is_the_mean_over_all_pairs():
    features = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32) + 1
    pairs = [(features[i], features[j]) for i in range(7) for j in range(7) if i != j]
    cosines = [np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)) for a, b in pairs]
    assert diversity(features) == pytest.approx(1 - np.mean(cosines), rel=1e-6)
    assert diversity(np.array([[1.0, 0], [0, 2], [-3, 0]])) == pytest.approx((1 + 2 + 1) / 3)
    assert diversity(np.array([[0.0, 0], [1, 0]])) == 1.0
    assert math.isnan(diversity(features[:1]))


def test_what_cannot_be_embedded_is_not():
    assert embed(np.zeros((9, 4), np.float32), 0) is None and embed(np.eye(4, dtype=np.float32), 0) is None
    groups = np.repeat(np.eye(2, 8), 10, 0) * 20 + np.random.default_rng(0).normal(size=(20, 8))
    parts = np.split(places := embed(groups.astype(np.float32), 2**40), 2)
    centers = [part.mean(0) for part in parts]
    spread = max(np.linalg.norm(part - center, axis=1).max() for part, center in zip(parts, centers, strict=True))
    assert places.shape == (20, 2) and np.linalg.norm(centers[0] - centers[1]) > spread


def test_layers_of_jobs_are_averaged_a_teacher():
    def losses(teacher, value):
        return LayerLosses(teacher, ("a", "b"), torch.tensor([0, 5]), torch.tensor([[value, 0.0], [1.0, 2 * value]]))

    means = LayerMeans()
    for tables in ([losses("x", 1.0), losses("y", 5.0)], [losses("x", 3.0)]):
        means.add(tables)
    one, other = means.tables()
    assert (one.teacher, other.teacher) == ("x", "y") and other.losses.tolist() == [[5, 0], [1, 10]]
    assert one.losses.tolist() == [[2, 0], [1, 4]] and one.iterations.tolist() == [0, 5]


def test_names_are_for_people_and_cannot_be_markup():
    assert class_titles(["n01440764", "n00000000"]) == ("tench", "n00000000")
    assert class_titles(["n01440764", "cat"]) == ("n01440764", "cat")
    assert tag("p", "<b>&", title='"x"') == '<p title="&#34;x&#34;">&lt;b&gt;&amp;</p>'


def test_photographs_are_reduced_and_small():
    noise = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = decoded(thumbnail(noise))
    assert picture.size == (88, 88) and len(thumbnail(noise)) < 10_000
    frames = [noise[None, :, :64, :64].expand(3, -1, -1, -1)] * 2
    moving, still, size = animation(frames, 2, ["a\n\u2029\x1b", "b" * 99, ""], ["first", "second"])
    assert size == (2 * 128 + 8, 2 * 148 + 20) and decoded(moving).size == size and decoded(still).size == size
    assert np.asarray(decoded(still).convert("RGBA"))[200, 200, 3] == 0  # the fourth place is empty


def test_nothing_is_made_for_a_report(tmp_path):
    out = tmp_path / "empty"
    assert fastcondense("inspect", out, *FAST) == 0
    names = ".lock data.json environment.json log.jsonl recipe.toml report.html".split()
    assert sorted(path.name for path in out.iterdir()) == names
    page = page_of(out)
    missing = {"images": "recover", "losses": "recover", "accuracy": "evaluate", "classes": "train"}
    for section, command in missing.items():
        assert f"fastcondense {command}" in page.text(section)
    assert "0 of 4 jobs are finished" in page.text("") and page.text("").count("not run") == 5
    assert page.text("costs").count("not run") == 5


def test_a_run_without_teachers_misses_nothing(tmp_path):
    out = tmp_path / "idc"
    assert fastcondense("inspect", out, *FAST, *IDC) == 0
    page = page_of(out)
    assert "squeeze not needed" in page.text("") and "has no teacher" in page.text("features")
    assert "squeeze 0 teachers 0 B 0.0 s" in page.text("costs") and "Labels are hard." in page.text("costs")


@pytest.fixture
def changed(finished, tmp_path):
    """A copy of the finished run that may be damaged."""
    out = shutil.copytree(finished, tmp_path / "digits")
    (out / "report.html").unlink()
    return out


def test_an_unfinished_run_shows_what_there_is(changed):
    (changed / "condensed" / "shard-00001.safetensors").unlink()
    shutil.rmtree(changed / "results")
    shutil.rmtree(next(changed.glob("students/*/random_soft")))
    assert fastcondense("inspect", changed, *FAST) == 0
    page = page_of(changed)
    assert "3 of 4 jobs are finished: 15 images of 20" in page.text("")
    assert len(page.sources["images"]) == 15 + 15 and len(page.sources["forming"]) == 2 + 5 * 9
    assert "Not all students are trained yet: random real, soft labels." in page.text("accuracy")
    assert "not scored yet" in page.text("accuracy") and "Mean over 3 jobs" in page.text("losses")


def test_a_run_of_before_is_shown_without_what_it_did_not_keep(changed):
    for path in (changed / "condensed").glob("shard-*"):
        tensors, metadata = read_tensors(path)
        write_tensors(path, {k: v for k, v in tensors.items() if "/" not in k}, {"seconds": metadata["seconds"]})
    for path in changed.glob("students/*/*/*/student.json"):
        write_json(path, {k: v for k, v in read_json(path).items() if k != "classes"})
    assert fastcondense("inspect", changed, *FAST) == 0
    page = page_of(changed)
    assert "Nothing was kept on the way" in page.text("forming") and "forming" not in page.sources
    assert "No layer's matching loss was kept" in page.text("losses") and "before answers" in page.text("classes")


def test_other_scores_are_shown_if_there_are_any(changed):
    values = {"1": (31.0, 1.0), "2": (45.5, 2.0)}
    scores = {size: {"mean": mean, "std": std, "seeds": [mean]} for size, (mean, std) in values.items()}
    curve = {"student": "s", "epochs": 3, "sizes": [1, 2], "top1_last": {"nested": scores, "random_soft": scores}}
    write_json(changed / "curve.json", curve)
    ranked = {"mean": 0.2345, "std": 0.0}
    keys = ("hard_label_recovery", "improvement_over_random", "improvement_over_random_plain")
    keys += ("label_robust_score", "augmentation_robust_score")
    table = {f"top1_{epoch}": dict.fromkeys(keys, ranked) for epoch in ("last", "best")}
    write_json(changed / "ranking.json", {"scores": table})
    result = read_json(own := next(changed.glob("results/*.json")))
    settings = result["settings"] | {"train": result["settings"]["train"] | {"lr": 0.5}}
    sha256 = sha256_with(recipe.load(str(changed / "recipe.toml")), settings)
    write_json(own, result | {"recipe_sha256": sha256, "settings": settings})
    assert fastcondense("inspect", changed, *FAST) == 0
    text = page_of(changed).text("accuracy")
    assert "At every size" in text and "this set random real, soft labels" in text
    assert "DD-Ranking score last best" in text and "label-robust score 0.234 0.234" in text
    assert f"with settings {sha256[:12]}, not of those above" in text
    assert "evaluate with other settings" in page_of(changed).text("")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_nothing_is_blank_overflows_or_is_fetched(finished, tmp_path):
    widths = [1200, 390, 390, 1200]
    pictures, measured = look(finished / "report.html", widths, 2000, tmp_path)
    for picture, found, width, is_dark in zip(pictures, measured, widths, (False, True, False, True), strict=True):
        assert (found["width"], found["scroll"]) == (width, width) and found["outside"] == []
        assert not found["requests"] and not found["broken"] and found["images"] > 100 and found["height"] > 3000
        assert (picture[2, 2].mean() < 60) == is_dark and (picture[2, 2].mean() > 240) != is_dark
        for part in np.array_split(picture, 5):  # each stretch of the page has something on it
            assert np.abs(part.astype(int) - picture[2, 2]).max(2).mean() > 0.5
            assert len(np.unique(part.reshape(-1, 3), axis=0)) > 20
