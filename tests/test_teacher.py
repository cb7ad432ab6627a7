"""Checkpoints in their containers, classes by name, and what a teacher gives."""

import os
import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from small import digits, trained_network
from torch import nn

from fastcondense.kernels.frozen_batch_norm import frozen_batch_norm
from fastcondense.networks import zoo
from fastcondense.recipe.settings import Dataset
from fastcondense.teachers import moments
from fastcondense.teachers.cut import Cut
from fastcondense.teachers.teacher import Teacher, match_classes
from fastcondense.teachers.weights import choose_state, load_weights, state_dict
from fastcondense.tensor_files import read_checkpoint


def network(seed):
    torch.manual_seed(seed)
    net = zoo.build("zoo/convnet2", 10)
    for norm in net.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return net


def load_into_other(path):
    net = network(1)
    load_weights(net, state_dict(read_checkpoint(path), path), path)
    return net


def assert_same(net, wanted):
    for name, value in wanted.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


# --- checkpoints -----------------------------------------------------------------------------------------------------

CONTAINERS = {
    "bare": lambda state: state,
    "ordered": OrderedDict,
    "state_dict": lambda state: {"epoch": 3, "arch": "x", "state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "epoch": 3},
    "nested": lambda state: {"epoch": 3, "model": {"step": 1, "state_dict": state}},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "_orig_mod.module.", "module.model."])
def test_every_container_and_prefix_is_read(tmp_path, container, prefix):
    net = network(0)
    state = {prefix + name: value for name, value in net.state_dict().items()}
    torch.save(CONTAINERS[container](state), tmp_path / "x.pth")
    assert_same(load_into_other(tmp_path / "x.pth"), net)


def test_safetensors_are_read(tmp_path):
    net = network(0)
    save_file({"module." + name: value for name, value in net.state_dict().items()}, tmp_path / "x.safetensors")
    assert_same(load_into_other(tmp_path / "x.safetensors"), net)


def test_legacy_files_are_read_and_may_lack_the_counters_of_batch_norm(tmp_path):
    net = network(0)
    state = {name: value for name, value in net.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert_same(load_into_other(tmp_path / "x.pth"), net)


def changed(state, change):
    if change == "missing":
        del state["norms.1.running_var"]
    elif change == "unexpected":
        state["extra.weight"] = torch.zeros(2)
    elif change == "infinite":
        state["head.weight"] = state["head.weight"] / 0
    else:
        state["head.weight"] = torch.zeros(7, 128)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"x\.pth lacks 'norms\.1\.running_var' \(1 such"),
        ("unexpected", r"x\.pth has the unexpected 'extra\.weight' \(1 such"),
        ("misshapen", r"x\.pth: 'head\.weight' has shape \(7, 128\), the network \(10, 128\)"),
        ("infinite", r"x\.pth: 'head\.weight' has values that are not finite"),
    ],
)
def test_an_entry_that_does_not_fit_is_named_and_nothing_is_copied(tmp_path, change, message):
    net, untouched = network(1), network(1)
    with pytest.raises(ValueError, match=message):
        load_weights(net, changed(network(0).state_dict(), change), tmp_path / "x.pth")
    assert_same(net, untouched)


def test_another_architectures_checkpoint_is_refused(tmp_path):
    state = zoo.build("zoo/resnet20", 10).state_dict()
    with pytest.raises(ValueError, match=r"x\.pth lacks 'convs\.0\.weight' .*another architecture"):
        load_weights(network(0), state, tmp_path / "x.pth")


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"state_dict": {"a": "b"}}, torch.zeros(2)])
def test_a_file_without_a_state_dict_says_where_it_looked(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth holds no state dict \(looked under state_dict, model"):
        state_dict(read_checkpoint(tmp_path / "x.pth"), tmp_path / "x.pth")


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_with_code_runs_nothing_and_is_refused(tmp_path, legacy):
    content = {"state_dict": network(0).state_dict(), "args": _Bomb(tmp_path / "ran")}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"checkpoint .*x\.pth cannot be read as weights") as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists() and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_with_code_runs_nothing(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps(_Bomb(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"x\.pth cannot be read as weights"):
        read_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def write_damaged(path, kind):
    whole = path.with_name("whole.pth")
    torch.save(network(0).state_dict(), whole, _use_new_zipfile_serialization=kind != "legacy")
    content = {"empty": b"", "text": b"<html>404</html>\n", "zip": whole.read_bytes()[:-300]}
    path.write_bytes(content.get(kind, whole.read_bytes()[:200]))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["empty", "text", "zip", "legacy"])
def test_a_damaged_checkpoint_is_named(tmp_path, kind, suffix):
    path = tmp_path / f"x{suffix}"
    write_damaged(path, kind)
    with pytest.raises(ValueError, match=rf"x\{suffix} cannot be read"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"\x80\x02K", b"\x80\x02.", b"\x80\x02}U"])
def test_a_checkpoint_cut_in_mid_opcode_is_named(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth cannot be read"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_missing_checkpoint_is_named(tmp_path, suffix):
    with pytest.raises(ValueError, match=rf"none\{suffix}"):
        read_checkpoint(tmp_path / f"none{suffix}")


# --- class order -----------------------------------------------------------------------------------------------------

# Well-known indices of ImageNet's 1000 classes.
WNIDS = {"n01440764": 0, "n02123045": 281, "n02504458": 386, "n03888257": 701, "n15075141": 999}


def test_wnids_find_their_outputs_among_1000():
    names = list(WNIDS)[::-1]
    assert match_classes(1000, None, names, "x") == [WNIDS[name] for name in names]


def test_output_names_decide_and_beat_equal_numbers():
    assert match_classes(3, ["cat", "dog", "eel"], ["eel", "cat"], "x") == [2, 0]
    assert match_classes(3, ["cat", "dog", "eel"], ["dog", "eel", "cat"], "x") == [1, 2, 0]


def test_equal_numbers_without_names_are_one_to_one():
    assert match_classes(3, None, ["a", "c", "b"], "x") == [0, 1, 2]


def test_classes_that_do_not_line_up_are_named():
    with pytest.raises(ValueError, match="class 'yak' of the data set is not among the outputs of teacher mine"):
        match_classes(2, ["cat", "dog"], ["dog", "yak"], "mine")
    with pytest.raises(ValueError, match="2 class names were given for the 3 outputs of mine"):
        match_classes(3, ["cat", "dog"], ["dog"], "mine")
    with pytest.raises(ValueError, match=r"mine has 5 outputs and the data set 2 classes; .*squeeze\.classes_file"):
        match_classes(5, None, ["a", "b"], "mine")
    with pytest.raises(ValueError, match="1000 outputs and the data set 2 classes"):
        match_classes(1000, None, ["n01440764", "cat"], "mine")


DIGITS = Dataset(name="digits", image_size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_of_several_weights_one_is_taken_and_said_and_a_key_takes_another(tmp_path):
    path, nets = tmp_path / "x.pt", [network(seed) for seed in range(3)]
    first, average, nested = (net.state_dict() for net in nets)
    torch.save({"epoch": 3, "ema": average, "model": first, "optimizer": {"state": {0: {"m": first}}}}, path)
    state, said = choose_state(read_checkpoint(path), path, "")
    assert torch.equal(state["head.weight"], first["head.weight"])
    assert "model is taken, not ema; squeeze.weights" in said and f"{path}:ema takes that" in said
    state, said = choose_state(read_checkpoint(path), path, "ema")
    assert torch.equal(state["head.weight"], average["head.weight"]) and said == ""
    with pytest.raises(ValueError, match=r"x\.pt holds no weights under 'emma'; it has ema, model"):
        choose_state(read_checkpoint(path), path, "emma")
    torch.save({"swa": {"module": nested}, "avg": average}, path)
    with pytest.raises(ValueError, match=r"holds no state dict .*name one of swa\.module, avg in squeeze\.weights"):
        choose_state(read_checkpoint(path), path, "")
    state, _ = choose_state(read_checkpoint(path), path, "swa.module")
    assert torch.equal(state["head.weight"], nested["head.weight"])


def test_an_output_name_that_is_there_twice_is_asked_about():
    assert match_classes(3, ["crane", "cat", "crane"], ["cat"], "mine") == [1]
    with pytest.raises(ValueError, match="class 'crane' is the name of several outputs of mine"):
        match_classes(3, ["crane", "cat", "crane"], ["cat", "crane"], "mine")


# --- Teacher ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return trained_network()


@pytest.fixture(scope="module")
def pixels():
    return digits("test")[0][:7]


def test_a_teacher_gives_the_networks_logits_in_the_data_sets_order(trained, pixels):
    x = pixels / 255
    teacher = Teacher.of(trained, "mine", "20", [2, 0], DIGITS)
    with torch.no_grad():
        wanted = trained(x)
    torch.testing.assert_close(teacher.logits(x), wanted[:, [2, 0]], rtol=1e-5, atol=1e-5)
    logits, moments = teacher(x)
    assert logits.shape == (7, 10) and len(moments) == 3
    assert all(layer.moments is None for layer in teacher.layers)


def test_a_teacher_sees_its_own_normalisation(trained, pixels):
    """Images in the data set's normalisation are, for it, in its own; what has no other one is not touched."""
    mean, std = (0.2, 0.4, 0.6), (0.5, 0.25, 2.0)
    about = trained, "a", "0123456789", range(10), DIGITS
    teacher = Teacher.of(*about, has_unfused=True, statistics_of_pixels=(mean, std))
    x = pixels / 255  # what DIGITS makes of them
    own = (x.double() - torch.tensor(mean)[:, None, None].double()) / torch.tensor(std)[:, None, None].double()
    wanted = trained.double()(own).detach()
    trained.float()
    torch.testing.assert_close(teacher.logits(x).double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(teacher.see(own.float()).double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(teacher.unfused(teacher.adapted(x)).double(), wanted, rtol=1e-4, atol=1e-4)
    half = teacher.cast(torch.bfloat16)
    assert half.logits(x.bfloat16()).sub(wanted).abs().max() < 0.1 * wanted.abs().max()
    features = Cut(Teacher.of(*about), "head")(own.float())
    torch.testing.assert_close(Cut(teacher, "head")(x), features, rtol=1e-4, atol=1e-4)
    same = Teacher.of(*about, statistics_of_pixels=(DIGITS.mean, DIGITS.std))
    assert same.adaptation is None and same.adapted(x) is x


def test_a_teachers_hash_is_that_of_its_weights(trained):
    first = Teacher.of(trained, "a", "0123456789", list(range(10)), DIGITS)
    other = Teacher.of(network(0), "a", "0123456789", list(range(10)), DIGITS)
    assert first.sha256 == Teacher.of(trained, "b", "01", [3, 2], DIGITS).sha256 != other.sha256


def test_a_teachers_identity_is_that_of_its_answers(trained):
    """Weights, which output is of which class, and what inputs are normalised by."""
    order, swapped, statistics = [*range(10)], [0, 1, 2, 5, 4, 3, *range(6, 10)], ((0.2, 0.4, 0.6), (0.5, 0.25, 2.0))
    made = [
        Teacher.of(net, "a", "0123456789", outputs, DIGITS, statistics_of_pixels=pixels)
        for net, outputs, pixels in [
            (trained, order, None),
            (network(0), order, None),
            (trained, swapped, None),
            (trained, order, statistics),
        ]
    ]
    assert len({teacher.identity for teacher in made}) == 4
    again = Teacher.of(trained, "b", "abcdefghij", order, DIGITS, statistics_of_pixels=(DIGITS.mean, DIGITS.std))
    assert again.identity == made[0].identity


def test_running_targets_are_the_running_statistics(trained):
    targets = Teacher.of(trained, "a", "0123456789", list(range(10)), DIGITS).matched_targets()
    assert len(targets) == len(trained.norms) == 3
    for (mean, var), norm in zip(targets, trained.norms, strict=True):
        assert torch.equal(mean, norm.running_mean) and torch.equal(var, norm.running_var)


@pytest.mark.parametrize("statistics", [("bn",), ("conv",), ("patch",), ("bn", "conv", "patch")])
def test_no_module_keeps_moments_after_a_call(trained, statistics):
    teacher = Teacher.of(trained, "a", "0123456789", list(range(10)), DIGITS, statistics, 4)
    for made in (teacher, teacher.cast(torch.bfloat16)):
        _, moments = made(torch.zeros(2, 3, 8, 8, dtype=made.dtype, requires_grad=True))
        vectors = [vector for layer in moments for vector in layer]
        assert len(moments) == len(made.layers) > 0 and all(vector.requires_grad for vector in vectors)
        assert len(made.keepers) >= 3 and all(not keeper.kept for keeper in made.keepers)


@pytest.mark.parametrize("statistics", [("bn",), ("bn", "conv", "patch")])
def test_on_a_cpu_logits_and_features_take_no_moments(trained, statistics, monkeypatch):
    teacher = Teacher.of(trained, "a", "0123456789", list(range(10)), DIGITS, statistics, 4)
    x, lengths = torch.rand(2, 3, 8, 8), []

    def counted(*arguments, **settings):
        made = frozen_batch_norm(*arguments, **settings)
        lengths.append(len(made))
        return made

    monkeypatch.setattr(moments, "frozen_batch_norm", counted)
    logits, kept = teacher(x)
    assert min(lengths) >= 3
    lengths.clear()
    assert torch.equal(teacher.logits(x), logits) and torch.equal(teacher.see(x), logits)
    Cut(teacher, "last_pool")(x)
    assert lengths == [1] * 9
    again = teacher(x)[1]
    vectors = [[vector for layer in layers for vector in layer] for layers in (kept, again)]
    assert all(torch.equal(first, second) for first, second in zip(*vectors, strict=True))


def test_a_network_whose_output_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="teacher mine has 4 outputs, but 10 classes are needed"):
        Teacher.of(zoo.build("zoo/convnet1", 4), "mine", "0123456789", list(range(10)), DIGITS)
    rigid = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(ValueError, match="teacher mine cannot take 8 x 8 images"):
        Teacher.of(rigid, "mine", "0123456789", list(range(10)), DIGITS)
