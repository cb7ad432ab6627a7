"""Every recipe that ships holds the numbers of the published scripts, written down here from the specification.

Sources: sre2l_cda_scdd_rded_mdc 6.1, 6.2 and 7; gvbsm_edc 1.1, 3, 4 and 5; fadrm_cvdd_cim_lpld 2 to 7.
"""

import dataclasses
import itertools
import re
from functools import reduce
from pathlib import Path

from published_numbers import MOSAICS, RATES, RECOVER, SQUEEZE, STATISTICS, TRAIN

from fastcondense.networks import zoo
from fastcondense.recipe import layers, recipe
from fastcondense.recipe.layers import RECIPES
from fastcondense.recipe.protocol import PROTOCOLS
from fastcondense.recipe.recipe import Recipe, from_toml, load
from fastcondense.vision import timm, torchvision

NETWORKS = {"zoo": zoo.ZOO, "torchvision": torchvision.models.list_models(), "timm": timm.list_models()}

SINGLE = [  # a number that belongs to one method, or to one recipe
    ("sre2l/imagenet1k", "train.temperature", 20.0),
    ("sre2l/cifar100", "train.temperature", 30.0),
    ("sre2l/cifar100", "labels.mix_alpha", 0.8),
    ("sre2l/cifar100", "labels.batch_norm", "train"),
    ("sre2l/cifar100-corrected", "labels.batch_norm", "eval"),
    *((name, "train.decay_all", True) for name in ("sre2l/cifar100", "scdd/cifar100", "cda/cifar10")),
    *((name, "train.decay_all", False) for name in ("sre2l/imagenet1k", "scdd/imagenet1k", "edc/cifar100")),
    ("sre2l/tiny-imagenet", "squeeze.warmup_epochs", 5),
    ("scdd/cifar100", "train.temperature", 30.0),
    ("scdd/cifar100", "squeeze.self_supervision.lr", 0.06),
    ("scdd/tiny-imagenet", "recover.lr", 0.6),
    ("scdd/imagenet1k", "squeeze.self_supervision.lr", 0.03),
    ("gvbsm/imagenet1k", "train.ce_weight", 0.1),
    ("gvbsm/imagenet1k", "labels.ensemble", "norm-equalized"),
    ("gvbsm/imagenet1k", "labels.precision", "auto"),
    ("sre2l/imagenette", "recover.precision", "auto"),
    ("scdd/digits", "squeeze.probe.precision", "fp32"),
    ("gvbsm/cifar10", "labels.ensemble", "mean"),
    ("gvbsm/cifar10", "train.ce_weight", 0.15),
    ("gvbsm/tiny-imagenet", "train.ce_weight", 0.1),
    ("gvbsm/tiny-imagenet", "train.accumulate", 2),
    *((name, "train.accumulate", 2) for name in ("sre2l/imagenet1k", "gvbsm/imagenet1k")),
    *((name, "train.accumulate", 1) for name in ("cda/imagenet1k", "scdd/imagenet1k", "lpld/imagenet1k")),
    ("fadrm/tiny-imagenet-ipc1", "train.epochs", 1000),
    ("gvbsm/tiny-imagenet-ipc50", "recover.slots_per_job", 5),
    ("gvbsm/tiny-imagenet-ipc100", "recover.slots_per_job", 10),
    ("gvbsm/imagenet1k", "recover.slots_per_job", 0),
    *((name, "recover.split_classes", True) for name in ("gvbsm/imagenet1k", "edc/imagenet1k", "edc/cifar10")),
    *((name, "recover.split_classes", False) for name in ("gvbsm/tiny-imagenet", "lpld/imagenet1k", "edc/digits")),
    ("edc/cifar10", "train.milestones", (0.8, 0.9, 0.95)),
    ("edc/cifar10", "train.gamma", 0.5),
    ("edc/cifar10", "labels.rand_augment", (2, 9)),
    ("edc/imagenet1k", "labels.rand_augment", (0, 0)),
    ("edc/cifar100", "train.momentum", 0.875),
    ("edc/imagenet10", "squeeze.schedule_stretch", 3.0),
    ("edc/imagenet1k", "recover.initial.preselected", 300),
    ("rded/imagenet1k", "labels.tile_shuffle", 2),
    ("rded/cifar10", "labels.tile_shuffle", 1),
    ("rded/tiny-imagenet", "dataset.resize", 72),
    ("rded/cifar10", "dataset.std", (0.229, 0.224, 0.225)),
    ("fadrm/imagenet1k", "recover.stages", (200, 224, 200, 224)),
    ("reta/imagenet1k", "recover.stages", (200, 224, 200, 224)),
    ("reta/imagenet1k", "recover.anchors", "retrieved"),
    ("psm/imagenet1k", "recover.targets", ("difficulty",)),
    ("psm/imagenet1k", "recover.slots_per_job", 1),
    ("delt/imagenet1k", "recover.rounds", 8),
    ("delt/imagenet1k", "recover.iterations", 4000),
    ("delt/imagenet1k", "labels.rand_augment", (2, 6)),
    ("delt/imagenet1k-ipc50", "train.batch_size", 200),
    ("delt/imagenet1k", "labels.crop_scale", (0.25, 1.0)),
    ("delt/imagenet1k", "labels.tile_shuffle", 1),
    ("fadrm/cifar100", "recover.stages", (32, 32, 32, 32)),
    ("fadrm/tiny-imagenet", "recover.stages", (64, 64)),
    ("fadrm/tiny-imagenet", "labels.batch_norm", "eval"),
    ("fadrm-plus/tiny-imagenet", "recover.residual", 0.5),
    ("fadrm-plus/tiny-imagenet", "labels.batch_norm", "train"),
    ("cvdd/cifar10-ipc50", "recover.committee.choice", "random"),
    ("cvdd/cifar10-ipc10", "recover.committee.choice", "pairs"),
    ("cvdd/cifar10-ipc1", "recover.teachers", ("zoo/mobilenet_v2_x1_0", "zoo/densenet121")),
    ("cvdd/cifar10-ipc1", "recover.committee.priors", (67.6, 67.4)),
    ("cvdd/cifar100-ipc1", "recover.committee.priors", (51.6, 59.4)),
    ("cvdd/tiny-imagenet-ipc1", "recover.committee.priors", (46.5, 44.8)),
    ("cvdd/imagenet1k-ipc1", "recover.committee.priors", (56.4, 52.5)),
    ("cvdd/imagenet1k", "recover.committee.priors", (56.4, 42.3, 52.5, 44.2, 40.6)),
    ("cvdd/imagenette", "labels.priors", (62.4, 52.0, 57.2, 54.0, 60.8)),
    ("cim/imagenet1k", "recover.lr", 0.01),
    ("cim/imagenet1k", "recover.features.layer", "layer3"),
    ("cim/cifar10", "recover.features.layer", "fc"),
    ("cim/cifar10", "train.ce_weight", 0.0),
    ("cim/cifar10", "train.gamma", 0.2),
    ("cim/cifar10", "train.milestones", (2 / 3, 5 / 6)),
    ("cim/cifar10", "labels.tile_pick", 2),
    ("lpld/imagenet1k", "labels.pool", 0.025),
    ("lpld/imagenet1k", "recover.classes_per_job", 1),
    ("lpld/tiny-imagenet", "train.warmup_epochs", 5),
    *(("hald/imagenet1k", f"train.{key}", value) for key, value in (("hard_share", 0.5), ("hard_smoothing", 0.8))),
    *(("lpqld/imagenet1k", f"train.{key}", value) for key, value in (("anneal", (30, 0.7, 2)), ("label_classes", 100))),
    *(("lpqld/imagenet1k", f"labels.{key}", value) for key, value in (("pool", 0.1), ("top_k", 100))),
    *((f"hald/imagenet1k-ipc{ipc}", "labels.pool", 150 / ipc / 300) for ipc in (1, 10, 50)),  # 150 labels a class
]


def test_recipes_hold_the_published_numbers():
    tables = [*RECOVER, *STATISTICS, *MOSAICS, *TRAIN, *SQUEEZE]
    for name, settings in [*tables, *((name, {key: value}) for name, key, value in SINGLE)]:
        found = load(name)
        assert {key: reduce(getattr, key.split("."), found) for key in settings} == settings, name


def test_students_have_the_published_learning_rates():
    for (name, student), rates in RATES.items():
        found = [load(f"{name}-ipc{ipc}", student).train for ipc in (1, 10, 50)]
        assert [(train.lr, train.schedule_stretch) for train in found] == rates, (name, student)
        assert {train.student for train in found} == {student}


def test_rates_of_students_are_of_networks_that_exist():
    for name in recipe.names():
        tree = layers.tree_of(recipe.file_of(name).read_text(), name)
        for student, table in tree.get("by_student", {}).items():
            assert set(table) <= {"train", "by_ipc"} and student != load(name).train.student, name
            library, _, model = student.partition("/")
            assert model in NETWORKS[library], (name, student)


TEACHERS = {
    "gvbsm/imagenet1k": "resnet18 mobilenet_v2 efficientnet_b0 shufflenet_v2_x0_5",
    "gvbsm/cifar10": "resnet18 convnet3_in mobilenet_v2_x0_5 wrn16_2 shufflenet_v2_x0_5_1x1",
    "edc/imagenet1k": "resnet18 mobilenet_v2 efficientnet_b0 shufflenet_v2_x0_5 alexnet",
    "edc/imagenet10": "resnet18 mobilenet_v2 shufflenet_v2_x0_5",
    "edc/tiny-imagenet": "resnet18 convnet3_in mobilenet_v2_x0_5 wrn16_2 shufflenet_v2_x0_5_1x1",
    "edc/cifar10": "resnet18 convnet3_in mobilenet_v2_x0_5 wrn16_2 shufflenet_v2_x0_5_1x1 convnet1_in convnet2_in "
    "convnet3_w32_in",
    "fadrm-plus/imagenet1k": "resnet18 densenet121 shufflenet_v2_x1_0 mobilenet_v2",
    "fadrm-plus/imagenet1k-ipc1": "resnet18 mobilenet_v2 shufflenet_v2_x1_0 alexnet",
    "fadrm-plus/tiny-imagenet": "resnet18 shufflenet_v2_x0_5 densenet121 mobilenet_v2_x1_0",
    "fadrm-plus/tiny-imagenet-ipc1": "resnet18 shufflenet_v2_x0_5 mobilenet_v2_x1_0",
    "cvdd/imagenet1k": "resnet18 resnet50 shufflenet_v2_x1_0 mobilenet_v2 densenet121",
    "cvdd/cifar10": "resnet18 resnet50 shufflenet_v2_x0_5 mobilenet_v2_x1_0 densenet121",
    "scdd/imagenet1k": "resnet50",
}


def test_teachers_in_the_order_of_their_turns():
    for name, wanted in TEACHERS.items():
        found = load(name)
        teachers = found.recover.teachers or found.squeeze.teachers
        assert " ".join(teacher.partition("/")[2] for teacher in teachers) == wanted, name


SUBSETS = "cifar10 imagenet10 imagenet1k digits"
EVERYWHERE = "cifar10 cifar100 tiny-imagenet imagenet10 imagenet1k digits"
CELLS = {
    **dict.fromkeys(("sre2l", "gvbsm", "edc", "rded", "fadrm", "fadrm-plus"), EVERYWHERE),
    "cda": EVERYWHERE,
    "scdd": "cifar10 cifar100 tiny-imagenet imagenet1k digits",
    "cvdd": "cifar10 cifar100 tiny-imagenet imagenette imagenet1k digits",
    "sre2l-plus-plus": "cifar10 cifar100 tiny-imagenet imagenette imagenet1k digits",
    "cim": "cifar10 cifar100 tiny-imagenet imagenet1k digits",
    "lpld": "tiny-imagenet imagenet1k digits",
    **dict.fromkeys((f"subset-{kind}" for kind in ("random", "herding", "medoid", "bps")), SUBSETS),
}
GRADIENTS = "cifar10 cifar100 svhn imagenet10 digits"
SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32, "svhn": 32, "tiny-imagenet": 64}
FROZEN = ("means", "lgm")
"""Methods for networks of ImageNet, which are shown CIFAR-10 at 112 pixels."""


def test_every_method_has_its_data_sets():
    cells = {f"{method}/{data}" for method, datas in CELLS.items() for data in datas.split()}
    cells |= {f"{method}/imagenette" for method in CELLS}
    cells |= {f"{method}/{data}" for method in ("idc", "mdc") for data in GRADIENTS.split()}
    assert cells <= set(recipe.names())


def test_every_recipe_loads_and_round_trips():
    for name, ipc in itertools.product(recipe.names(), (1, 10, 50)):
        method, data = name.removesuffix("-corrected").split("/")
        found = load(f"{name}-ipc{ipc}")
        assert (found.name, found.method, found.ipc) == (f"{name}-ipc{ipc}", method, ipc)
        size = 112 if method in FROZEN and data == "cifar10" else SIZES.get(re.sub("-(convnet3|muon)$", "", data), 224)
        assert found.dataset.image_size == size, name
        assert ipc == 50 or from_toml(found.to_toml(), "copy") == found, name
        parts = found.train.batch_size // found.train.accumulate
        assert found.labels.batch_norm == "eval" or found.labels.batch_norm_size == parts, name


def test_subsets_are_trained_on_and_labelled_as_mosaics_are():
    """Their tiles alone are not shuffled; and the choice does not depend on the number of images."""
    for data, ipc in itertools.product(f"{SUBSETS} imagenette".split(), (1, 10, 50, 100)):
        wanted = load(f"rded/{data}-ipc{ipc}")
        for kind in ("random", "herding", "medoid", "bps"):
            found = load(f"subset-{kind}/{data}-ipc{ipc}")
            assert (found.train, found.dataset, found.squeeze) == (wanted.train, wanted.dataset, wanted.squeeze)
            assert found.labels == dataclasses.replace(wanted.labels, tile_shuffle=1)
            parts = found.recover_parts()
            assert "ipc" not in parts and found.sha256(*parts) == load(f"subset-{kind}/{data}").sha256(*parts)


def test_corrected_variants_differ():
    for name in recipe.names():
        assert not name.endswith("-corrected") or load(name).parts() != load(name.removesuffix("-corrected")).parts()


def header(name: str) -> str:
    """The comment at the head of a recipe's file, on one line."""
    lines = (RECIPES / f"{name}.toml").read_text().split("\n")
    last = next(k for k, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line[1:].strip() for line in lines[:last])


JPEG = {  # whose code writes .jpg; the others' writes .png, or tensors
    **dict.fromkeys(
        ("sre2l", "cda", "scdd", "rded", "cvdd", "sre2l-plus-plus", "lpld", "lpqld", "delt", "hald"), "every data set"
    ),
    "edc": "cifar10 imagenet10 imagenette imagenet1k",
    "gvbsm": "imagenet10 imagenette imagenet1k",
}


def test_images_are_stored_as_published_and_lossless_where_corrected():
    for name in recipe.names():
        method, data = name.removesuffix("-corrected").split("/")
        is_jpeg = data != "digits" and (data in JPEG.get(method, "") or JPEG.get(method) == "every data set")
        assert load(name).recover.storage == ("jpeg" if is_jpeg and not name.endswith("-corrected") else "png"), name
        assert not is_jpeg or f"{method}/{data}-corrected" in recipe.names(), name
        assert is_jpeg == ("stored as JPEG, as published; corrected: lossless." in header(f"{method}/{data}")), name


def with_referred(name: str, seen: tuple[str, ...] = ()) -> str:
    """The header with those of the recipes that it refers to: "as edc/imagenet10"."""
    text = header(name)
    referred = {other for other in re.findall(r"\bas ([a-z0-9+-]+/[a-z0-9-]+)", text) if other not in (*seen, name)}
    return " ".join([text, *(with_referred(other, (*seen, name)) for other in sorted(referred))])


def test_headers_name_what_differs_wherever_it_does():
    for name in recipe.names():
        method, data = name.removesuffix("-corrected").split("/")
        found, text = load(name), with_referred(f"{method}/{data}")
        if data == "digits" or method in ("fastcondense", "means") or method.startswith("subset-"):
            continue  # our own settings
        assert found.labels.mix != "cutmix" or "partners from all images" in text, name
        has_variances = method in ("edc", "gvbsm") and found.recover.match_weight
        assert not has_variances or "published ones are means of batches' variances" in text, name
        is_mosaic = method == "edc" and found.recover.initial.kind == "mosaic"
        assert is_mosaic == ("cut to squares, not squashed" in text), name
        is_exact = found.recover.storage == "jpeg" or name.endswith("-corrected") or method in ("idc", "mdc", "cim")
        is_said = "the published code truncates them" in text or "stores its images is not known here" in text
        assert is_exact or is_said, name


def published_files() -> list[str]:
    return [name for name in recipe.names() if not name.endswith("-corrected")]


def test_headers_state_what_is_published():
    """The header's accuracies, "48.6 (IPC 10)" or "48.6 (10)", are those of the recipe's own student, all of them."""
    for name in published_files():
        pairs = re.findall(r"(\d+\.\d+) \((?:IPC )?(\d+)\b", header(name))
        stated = {ipc: float(accuracy) for accuracy, ipc in pairs}
        table = recipe.published(name)
        assert stated == table.get(load(name).train.student, {}), name
        assert bool(table) == bool(stated) and (not table or table["source"]), name


def test_published_accuracies():
    """A few, from the tables of the specification."""

    def of(name: str, student: str) -> list[float]:
        return list(recipe.published(name)[student].values())

    assert of("edc/cifar10", "zoo/resnet18") == [32.6, 79.1, 87.0]
    assert of("edc/imagenet10", "torchvision/mobilenet_v2") == [36.4, 54.2, 80.2]
    assert of("gvbsm/cifar10", "zoo/resnet18") == [53.5, 59.2]
    assert of("rded/cifar10", "zoo/resnet18") == [22.9, 37.1, 62.1]
    assert of("fadrm-plus/imagenet1k", "torchvision/resnet101") == [14.1, 58.1, 66.2]
    assert of("cvdd/cifar100", "zoo/resnet50") == [15.5, 48.7, 64.8]
    assert of("cim/imagenet1k", "torchvision/resnet18") == [7.3, 48.7, 60.4, 62.4]
    assert of("lpld/imagenet1k", "torchvision/resnet18") == [20.2, 33.0, 46.7, 54.0, 59.6]
    assert of("lpqld/imagenet1k", "torchvision/resnet18") == [29.6, 41.2, 51.3, 56.2, 59.9]
    assert of("scdd/imagenet1k", "torchvision/resnet18") == [32.1, 53.1, 57.9, 63.5]


def test_published_tables_name_students_and_numbers():
    for name in published_files():
        for student, accuracies in recipe.published(name).items():
            if student != "source":
                assert re.fullmatch(r"(zoo|torchvision|timm)/\w+", student)
                assert all(int(ipc) > 0 and 0 < accuracy < 100 for ipc, accuracy in accuracies.items())


def test_networks_and_weights_exist():
    for name in recipe.names():
        for ipc in (1, 10, 50):
            found = load(f"{name}-ipc{ipc}")
            weights = found.squeeze.weights * len(found.squeeze.teachers)
            networks = {found.train.student: "train", **dict(zip(found.squeeze.teachers, weights, strict=False))}
            networks |= dict.fromkeys(set(recipe.published(name.removesuffix("-corrected"))) - {"source"}, "train")
            for network, source in networks.items():
                library, _, model = network.partition("/")
                assert model in NETWORKS[library], (name, network)
                assert source == "train" or torchvision.models.get_model_weights(model)[source]


def test_shared_files_are_all_used():
    used = set()
    for path in RECIPES.glob("**/*.toml"):
        used |= set(re.findall(r'"([\w-]+/[\w-]+)"', path.read_text().partition("\n[")[0]))
    shared = {path.relative_to(RECIPES / "shared").with_suffix("").as_posix() for path in shared_files()}
    by_name = {f"protocol/{name}{size}" for name in PROTOCOLS for size in ("", "-large")}  # --protocol
    assert shared <= used | by_name


def shared_files() -> list[Path]:
    return sorted((RECIPES / "shared").glob("*/*.toml"))


def test_what_is_not_set_is_off():
    """Regularisers, curricula and committees appear in the methods that have them, and nowhere else."""
    defaults = Recipe().recover
    owners = {
        "densification_weight": {"gvbsm"},
        "statistics_ema": {"gvbsm", "edc"},
        "swapped_patches": {"edc"},
        "drop_rate": {"gvbsm"},
        "curriculum": {"cda", "delt"},
        "committee": {"cvdd", "sre2l-plus-plus"},
        "stages": {"fadrm", "fadrm-plus", "reta", "psm"},
        "residual": {"fadrm", "fadrm-plus", "reta", "psm"},
        "anchors": {"reta"},
        "rounds": {"delt"},
        "features": {"cim"},
        "objective": {"cim", "idc", "mdc", *FROZEN},
        **dict.fromkeys(("means", "pyramid"), FROZEN),
        "gradients": {"idc", "mdc"},
        "betas": {"cim", *FROZEN},
        **dict.fromkeys(("tv_weight", "l2_weight", "flatness_weight", "gradient_share"), ()),
        **dict.fromkeys(("statistics_files", "loss"), ()),
        "storage": {*JPEG},
        "split_classes": {"edc", "gvbsm"},
    }
    for name in recipe.names():
        found = load(name)
        for field in dataclasses.fields(found.recover):
            if found.method not in owners.get(field.name, {found.method}):
                assert getattr(found.recover, field.name) == getattr(defaults, field.name), (name, field.name)
