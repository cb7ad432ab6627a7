"""Manifests, results and bundles of strangers, and what is done to them: what tests of hostile files share."""

import copy
import json

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fastcondense.recipe.recipe import Recipe
from fastcondense.sets import sealed_zip

FAST = settings(
    max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
SHA = "0" * 64
REPLAY = {
    "generator": "Philox-4x32-10",
    "seeds": [0],
    "views": {"mix": "cutmix"},
    "transform": "t",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.1, 0.2, 0.3],
    "epochs": 3,
    "batch_size": 4,
    "ipc": 1,
    "images": SHA,
    "classes": SHA,
    "teachers": {"zoo/convnet1": SHA},
}
SCORE = {"mean": 1.0, "std": 0.0, "seeds": [1.0]}
SCORES = dict.fromkeys(("top1_last", "top1_best", "top5_last"), SCORE)
RESULT = SCORES | {
    "recipe": "r",
    "recipe_sha256": SHA,
    "settings": {"ipc": 1, "labels": {}, "train": {}, "evaluate": {}},
    "dataset": "digits",
    "method": "sre2l",
    "ipc": 1,
    "student": "zoo/convnet1",
    "teachers": ["zoo/convnet1"],
    "epochs": 3,
    "seed": 0,
    "seeds": 1,
    "labels": "teachers",
    "test_images": 5,
    "baselines": {"full": SCORES},
    "bytes": {"images": 1, "labels": 0, "teachers": 2},
    "seconds": {"squeeze": 1.0, "recover": 1.0, "train": 1.0, "evaluate": 1.0},
    "versions": {"torch": "2"},
}
MANIFEST = {
    "format": 3,
    "classes": ["a", "b"],
    "recipe": {"recover": {"batch_size": 5}},
    "teachers": {"zoo/convnet1": SHA},
    "ipc": 1,
    "replay": REPLAY,
    "digests": [SHA, SHA],
    "fingerprint": {"tables": SHA, "pixels": [[0.1, 0.2]], "classes": [[0, 1]], "logits": [[1.0, 0.5]]},
    "bundle": {"format": 3, "teachers": {}, "embedded": [], "recipe_sha256": SHA, "results": [RESULT]},
}
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(SHA),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def places(tree, at=()):
    """Paths of all nodes of a JSON tree but the root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def changed(tree, place, value=None, *, removed=False):
    """A copy with another value at the place, or without it."""
    tree = copy.deepcopy(tree)
    *way, last = place
    node = tree
    for key in way:
        node = node[key]
    if removed:
        del node[last]
    else:
        node[last] = value
    return tree


def one_line(read, name):
    """What `read` gives, or None after a ValueError of one line that names its source."""
    try:
        return read()
    except ValueError as error:
        assert name in str(error) and "\n" not in str(error), error
        return None


TOML = Recipe(name="x").to_toml()


MEMBERS = {"manifest.json": b"{}", "images/0.png": bytes(range(200)), "b": b"\x50\x4b\x05\x06" * 30}


def sealed(path, members=MEMBERS):
    with sealed_zip.writing(path) as archive:
        for name, data in members.items():
            archive.put(name, data)
    return path


def contents(path, **how):
    with sealed_zip.reading(path, **how) as archive:
        return {name: archive.read(name) for name in archive.names}


def bomb(path, ipc, classes=2, size=224, **members):
    """A sealed bundle of a few hundred bytes that claims to hold so many images."""
    recipe = Recipe(name="x", ipc=ipc)
    text = recipe.to_toml().replace("image_size = 224", f"image_size = {size}", 1)
    tree = MANIFEST | {"classes": [str(k) for k in range(classes)], "digests": [SHA] * classes}
    plain = {"manifest.json": json.dumps(tree).encode(), "recipe.toml": text.encode()}
    return sealed(path, plain | members)
