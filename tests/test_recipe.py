"""Recipes: names, layers, hashes, and what they refuse. Their numbers are in test_recipe_numbers.py."""

import dataclasses

import pytest

import fastcondense as fc
from fastcondense.options import parse_stage
from fastcondense.recipe import recipe
from fastcondense.recipe.layers import RECIPES
from fastcondense.recipe.recipe import Recipe, from_toml, load


@pytest.mark.parametrize("name", recipe.names())
def test_what_all_recipes_share(name):
    found = load(name)
    sees_features = found.recover.objective in ("features", "means")
    assert found.recover.betas == ((0.9, 0.999) if sees_features else (0.5, 0.9))
    assert found.recover.tv_weight == found.recover.l2_weight == 0
    assert found.method == name.split("/")[0]
    assert found.recover.curriculum == ("cosine" if found.method in ("cda", "delt") else "none")
    assert set(found.evaluate.baselines) >= (
        {"random_hard"} if found.needs_no_teacher or found.train.frozen else {"random_soft", "random_hard"}
    )


def test_pixel_statistics():
    assert load("cda/imagenet21k").dataset.mean == (0, 0, 0) and load("cda/imagenet21k").dataset.std == (1, 1, 1)
    assert load("sre2l/imagenet1k").dataset.mean == (0.485, 0.456, 0.406)
    assert load("sre2l/tiny-imagenet").dataset.std == (0.2302, 0.2265, 0.2262)
    assert load("sre2l/cifar100").dataset.mean == (0.4914, 0.4822, 0.4465)
    for name in ("gvbsm/cifar10", "edc/cifar100", "cvdd/cifar100"):
        assert load(name).dataset.mean == (0.5071, 0.4867, 0.4408) and load(name).dataset.std[0] == 0.2675
    assert load("cvdd/cifar10").dataset.std == (0.2470, 0.2435, 0.2616)
    assert load("edc/tiny-imagenet").dataset.mean == (0.485, 0.456, 0.406)


def test_a_student_has_its_own_table(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        "ipc = 10\n[train]\nstudent = 'zoo/resnet18'\nlr = 0.1\nepochs = 7\n[by_ipc.10.train]\nepochs = 8\n"
        "[by_student.'zoo/resnet50'.train]\nlr = 0.2\n[by_student.'zoo/resnet50'.by_ipc.10.train]\nepochs = 9\n"
        "[by_student.'zoo/resnet50'.by_ipc.50.train]\nepochs = 10\n"
    )
    train = load(str(file)).train
    assert (train.student, train.lr, train.epochs) == ("zoo/resnet18", 0.1, 8)
    flags = ["--recipe", str(file), "--train.student", "zoo/resnet50"]
    for found in (
        load(str(file), "zoo/resnet50"),
        parse_stage("run", "", flags).settings,
        fc.recipe(file, **{"train.student": "zoo/resnet50"}),
    ):
        assert (found.train.student, found.train.lr, found.train.epochs) == ("zoo/resnet50", 0.2, 9)
    assert load(str(file), "zoo/resnet20").train == dataclasses.replace(load(str(file)).train, student="zoo/resnet20")
    file.write_text(file.read_text().replace("student = 'zoo/resnet18'", "student = 'zoo/resnet50'"))
    assert load(str(file)).train.lr == 0.2


def test_another_student_on_the_command_line_has_its_own_rates(tmp_path):
    """In a recipe, and in the folder of a run of one; what the user has set stays."""

    def parsed(*arguments):
        return parse_stage("run", "", list(arguments)).settings.train

    by_name = "--recipe fadrm/cifar100-ipc1 --train.student zoo/resnet50".split()
    assert (parsed(*by_name).lr, parsed(*by_name).schedule_stretch) == (1e-3, 1.0)
    assert parsed(*by_name, "--train.lr", "0.5").lr == 0.5 and parsed(*by_name[:2]).lr == 5e-4
    run = tmp_path / "run"
    run.mkdir()
    kept = load("fadrm/cifar100-ipc1")
    (run / "recipe.toml").write_text(kept.to_toml())
    found = parsed(str(run), "--train.student", "zoo/resnet101")
    assert (found.student, found.lr, found.schedule_stretch, found.epochs) == ("zoo/resnet101", 5e-4, 1.0, 1000)
    mine = dataclasses.replace(kept, train=dataclasses.replace(kept.train, lr=0.3))
    (run / "recipe.toml").write_text(mine.to_toml())
    found = parsed(str(run), "--train.student", "zoo/resnet101")
    assert (found.lr, found.schedule_stretch) == (0.3, 1.0)


def test_ipc_suffix_and_per_ipc_table(tmp_path):
    assert load("sre2l/imagenet1k-ipc200").ipc == 200
    file = tmp_path / "mine.toml"
    file.write_text("ipc = 10\n[train]\nbatch_size = 7\n[by_ipc.50.train]\nbatch_size = 100\n")
    assert load(str(file)).train.batch_size == 7 and load(str(file)).name == "mine"
    assert from_toml(file.read_text(), "mine", 50).train.batch_size == 100


def test_hash_names_what_matters():
    base = load("sre2l/digits")
    other = dataclasses.replace(base, train=dataclasses.replace(base.train, lr=0.5))
    assert base.sha256() != other.sha256() and base.sha256("recover") == other.sha256("recover")
    reading = dataclasses.replace(base.dataset, workers=0, loader="folder", on_error="skip")
    assert base.sha256() == dataclasses.replace(base, dataset=reading, name="x").sha256()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[recover]\niteration = 5", "unknown key 'recover.iteration'; the nearest valid one is 'recover.iterations'"),
        ("sead = 3", "the nearest valid one is 'seed'"),
        ("[recover]\nlr = 'fast'", "recover.lr must be of type float"),
        ("[recover]\nroll = [1]", "recover.roll needs 2 values"),
        ("[labels]\nmix = 'cutmx'", "labels.mix must be one of none, cutmix, mixup"),
        ("recover = 3", "recover must be a table"),
        ("ipc = 0", "ipc must be at least 1"),
        ("ipc = true", "ipc must be of type int"),
        ("seed = [", "not valid TOML"),
        ("[squeeze]\nweights = ['a', 'b']", "squeeze.weights needs one entry"),
        ("[labels]\ncrop_scale = [0.0, 1.0]", "crop_scale"),
        ("[by_ipc.05.recover]\nlr = 0.1", "by_ipc.05 can never be read"),
        ('[by_student."resnet18".train]\nlr = 0.1', "by_student.resnet18 can never be read"),
        ('[by_student."zoo/resnet18".by_ipc.x.train]\nlr = 0.1', "by_student.zoo/resnet18.by_ipc.x can never be read"),
        ("[by_ipc]\n5 = 3", "by_ipc.5 must be a table, got 3"),
        ("[by_ipc.1]\nipc = 5", "by_ipc.1 sets ipc, which says the tables that are read; set it outside of them"),
        ("[corrected]\nipc = 5", "corrected sets ipc, which says the tables that are read"),
        ('[by_student."zoo/resnet18"]\nipc = 5', "by_student.zoo/resnet18 sets ipc, which says the tables"),
        ('[by_student."zoo/resnet18".train]\nstudent = "zoo/resnet20"', "by_student.zoo/resnet18 sets train.student"),
        ("[ipc]\na = 1", "ipc must be of type int, got {'a': 1}"),
        ("\ufeffipc = 0", "ipc must be at least 1"),
        ("ipc = 2\n[train]\nprefix = 3", "train.prefix is 3, more than the images of a class, ipc 2"),
        ("[labels]\npool = 0.0", "labels.pool must lie in (0, 1]"),
        ("[recover]\ntargets = ['global', 'category']", "recover.target_weights needs one weight for each"),
        ("[recover]\nresidual = 0.0", "recover.residual must lie in (0, 1]"),
        ("[recover]\ndrop_rate = 1.0", "recover.drop_rate must lie in [0, 1)"),
        ("[recover]\nstages = [0]", "recover.stages must be at least 1, got (0,)"),
        ("[recover]\nstages = [200, 224]\nstatistics = ['conv', 'patch']", "patch needs images of one size"),
        ("[recover]\nobjective = 'features'", "recover.objective features needs recover.features.layer"),
        ("[recover]\nteachers = ['zoo/absent']", "recover.teachers names 'zoo/absent', which is not among"),
        ("[recover.committee]\nsize = 2", "recover.committee.size is 2, but there are fewer teachers"),
        ("[recover.committee]\npriors = [1.0, 2.0]", "recover.committee.priors needs one number a teacher"),
        ("[labels]\naugment = ['flip']\nmix = 'mixup'", "labels.augment needs labels.mix none or cutmix"),
        ("[train]\nschedule = 'multistep'", "train.schedule multistep needs train.milestones in (0, 1), got ()"),
        ("[squeeze]\nschedule = 'multistep'\nmilestones = [50.0]", "needs squeeze.milestones in (0, 1), got (50.0,)"),
    ],
)
def test_bad_recipes_are_refused(toml, message):
    with pytest.raises(ValueError) as caught:
        from_toml(toml, "mine.toml")
    assert message in str(caught.value) and "mine.toml" in str(caught.value)


def test_a_file_is_corrected_by_its_name(tmp_path):
    shipped = (RECIPES / "idc" / "digits.toml").read_text()
    for name in ("mine", "mine-corrected"):
        (tmp_path / f"{name}.toml").write_text(shipped)
        expected = load(f"idc/digits{name.removeprefix('mine')}")
        assert load(str(tmp_path / f"{name}.toml")).sha256() == expected.sha256()
    assert load("idc/digits").sha256() != load("idc/digits-corrected").sha256()


def test_unknown_names_give_the_nearest():
    with pytest.raises(ValueError, match="nearest is 'sre2l/digits'"):
        load("sre2l/digit-ipc10")
    with pytest.raises(ValueError, match=r"no recipe file .*absent\.toml"):
        load("absent.toml")


def test_defaults_are_valid():
    assert Recipe().check() == Recipe()
