"""Recipes hold the numbers of the published scripts (specification, section 6) and refuse what they do not know."""

import dataclasses

import pytest

from fastcondense import recipe
from fastcondense.recipe import Recipe, from_toml, load

# iterations, lr, r_bn, batch, smallest crop, flip, roll; epochs, batch, optimiser, lr, weight decay, tau, loss, mix
PUBLISHED = {
    "sre2l/imagenet1k": (4000, 0.25, 0.01, 100, 0.08, 0.5, (0, 32), 300, 1024, "adamw", 1e-3, 0.01, 20, "kl", "cutmix"),
    "sre2l/tiny-imagenet": (4000, 0.1, 1.0, 100, 0.08, 0.5, (-4, 4), 100, 256, "sgd", 0.2, 1e-4, 20, "kl_t2", "none"),
    "sre2l/cifar100": (1000, 0.25, 0.01, 100, 1.0, 0.0, (0, 4), 400, 128, "adamw", 1e-3, 0.01, 30, "kl", "mixup"),
    "cda/imagenet1k": (4000, 0.25, 0.01, 100, 0.08, 0.5, (0, 32), 300, 128, "adamw", 1e-3, 0.01, 20, "kl", "cutmix"),
    "cda/tiny-imagenet": (4000, 0.4, 0.05, 100, 0.08, 0.5, (0, 4), 100, 256, "sgd", 0.2, 1e-4, 20, "kl_t2", "none"),
    "cda/imagenet21k": (2000, 0.05, 0.25, 100, 0.08, 0.5, (0, 32), 300, 1024, "adamw", 1e-3, 0.01, 20, "kl", "cutmix"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_hold_the_published_numbers(name):
    found = load(name)
    recover, train = found.recover, found.train
    assert PUBLISHED[name] == (
        recover.iterations,
        recover.lr,
        recover.match_weight,
        recover.batch_size,
        recover.crop_scale[0],
        recover.flip,
        recover.roll,
        train.epochs,
        train.batch_size,
        train.optimizer,
        train.lr,
        train.weight_decay,
        train.temperature,
        train.loss,
        found.labels.mix,
    )


@pytest.mark.parametrize("name", recipe.names())
def test_what_all_recipes_share(name):
    found = load(name)
    is_features = found.recover.objective == "features"
    assert found.recover.betas == ((0.9, 0.999) if is_features else (0.5, 0.9))
    assert found.recover.first_layer_weight == 10
    assert found.recover.tv_weight == found.recover.l2_weight == 0
    assert found.method == name.split("/")[0]
    assert (found.recover.curriculum, found.recover.milestone) == (("cosine", 1.0) if "cda" in name else ("none", 1.0))
    assert set(found.evaluate.baselines) >= {"random_soft", "random_hard"}


def test_every_data_set_has_both_methods():
    shared = {"digits", "cifar10", "cifar100", "tiny-imagenet", "imagenet1k"}
    for method in ("sre2l", "cda"):
        assert shared <= {name.split("/")[1] for name in recipe.names() if name.startswith(method)}


def test_squeeze_settings_of_the_small_data_sets():
    tiny, cifar = load("sre2l/tiny-imagenet").squeeze, load("sre2l/cifar100").squeeze
    assert (tiny.epochs, tiny.batch_size, tiny.lr, tiny.weight_decay, tiny.warmup_epochs) == (50, 256, 0.2, 1e-4, 5)
    assert (cifar.epochs, cifar.batch_size, cifar.lr, cifar.weight_decay, cifar.padding) == (200, 128, 0.1, 5e-4, 4)


def test_pixel_statistics():
    assert load("cda/imagenet21k").dataset.mean == (0, 0, 0) and load("cda/imagenet21k").dataset.std == (1, 1, 1)
    assert load("sre2l/imagenet1k").dataset.mean == (0.485, 0.456, 0.406)
    assert load("sre2l/tiny-imagenet").dataset.std == (0.2302, 0.2265, 0.2262)
    assert load("sre2l/cifar100").dataset.mean == (0.4914, 0.4822, 0.4465)


def test_ipc_suffix_and_per_ipc_table(tmp_path):
    assert load("sre2l/imagenet1k-ipc200").ipc == 200
    file = tmp_path / "mine.toml"
    file.write_text("ipc = 10\n[train]\nbatch_size = 7\n[by_ipc.50.train]\nbatch_size = 100\n")
    assert load(str(file)).train.batch_size == 7 and load(str(file)).name == "mine"
    assert from_toml(file.read_text(), "mine", 50).train.batch_size == 100


@pytest.mark.parametrize("name", recipe.names())
def test_toml_round_trip(name):
    assert from_toml(load(name).to_toml(), "copy") == load(name)


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
        ("[labels]\naugment = ['flip']", "labels.augment needs labels.mix none"),
        ("[train]\nschedule = 'multistep'", "train.schedule multistep needs train.milestones in (0, 1), got ()"),
        ("[squeeze]\nschedule = 'multistep'\nmilestones = [50.0]", "needs squeeze.milestones in (0, 1), got (50.0,)"),
    ],
)
def test_bad_recipes_are_refused(toml, message):
    with pytest.raises(ValueError) as caught:
        from_toml(toml, "mine.toml")
    assert message in str(caught.value) and "mine.toml" in str(caught.value)


def test_unknown_names_give_the_nearest():
    with pytest.raises(ValueError, match="nearest is 'sre2l/digits'"):
        load("sre2l/digit-ipc10")
    with pytest.raises(ValueError, match=r"no recipe file .*absent\.toml"):
        load("absent.toml")


def test_defaults_are_valid():
    assert Recipe().check() == Recipe()
