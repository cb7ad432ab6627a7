"""Checkpoints in their containers, class orders, and the gate with teachers that are wrong in known ways."""

import os
import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from fastcondense.data.datasets import load
from fastcondense.files import read_checkpoint
from fastcondense.networks import zoo
from fastcondense.recipe.settings import Dataset
from fastcondense.teachers.teacher import Teacher, check_gate, load_weights, match_classes, state_dict

CPU = torch.device("cpu")


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


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_are_read(tmp_path, prefix):
    net = network(0)
    save_file({prefix + name: value for name, value in net.state_dict().items()}, tmp_path / "x.safetensors")
    assert_same(load_into_other(tmp_path / "x.safetensors"), net)


def test_legacy_files_are_read_and_may_lack_the_counters_of_batch_norm(tmp_path):
    net = network(0)
    state = {name: value for name, value in net.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert_same(load_into_other(tmp_path / "x.pth"), net)


def test_the_net_that_data_parallel_and_compile_wrap_is_the_same(tmp_path):
    net = network(0)
    torch.save(nn.DataParallel(net).state_dict(), tmp_path / "x.pth")
    assert_same(load_into_other(tmp_path / "x.pth"), net)


def changed(state, change):
    if change == "missing":
        del state["norms.1.running_var"]
    elif change == "unexpected":
        state["extra.weight"] = torch.zeros(2)
    else:
        state["head.weight"] = torch.zeros(7, 128)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"x\.pth lacks 'norms\.1\.running_var' \(1 such"),
        ("unexpected", r"x\.pth has the unexpected 'extra\.weight' \(1 such"),
        ("misshapen", r"x\.pth: 'head\.weight' has shape \(7, 128\), the network \(10, 128\)"),
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


# --- the gate --------------------------------------------------------------------------------------------------------

DIGITS = Dataset(name="digits", image_size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
OTHER = Dataset(name="digits", image_size=8, resize=8, mean=(5.0, 5.0, 5.0), std=(0.05, 0.05, 0.05))


@pytest.fixture(scope="module")
def digits():
    real = load(Dataset(name="digits"), None)

    def tensors(split):
        return torch.from_numpy(split.images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(split.labels)

    return tensors(real.train), tensors(real.test)


@pytest.fixture(scope="module")
def trained(digits):
    """A small network for pixels in [0, 1]."""
    (pixels, labels), _ = digits
    torch.manual_seed(0)
    net = zoo.build("zoo/convnet3_w32", 10)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(4):
        for ids in torch.randperm(len(labels)).split(64):
            loss = F.cross_entropy(net(pixels[ids] / 255), labels[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def gate(net, digits, dataset=DIGITS, outputs=range(10)):
    pixels, labels = digits[1][0][:100], digits[1][1][:100]
    teacher = Teacher.of(net, "mine", "0123456789", list(outputs), dataset)
    return check_gate(teacher, pixels, labels, dataset, CPU)


def test_a_trained_teacher_passes_with_its_accuracy(trained, digits):
    pixels, labels = digits[1][0][:100], digits[1][1][:100]
    with torch.no_grad():
        accuracy = float((trained(pixels / 255).argmax(1) == labels).double().mean())
    assert accuracy > 0.8
    assert gate(trained, digits) == pytest.approx(accuracy, abs=0.011)


def test_another_class_order_is_named(trained, digits):
    with pytest.raises(ValueError, match=r"teacher mine is at chance: .*Likeliest cause: class order") as caught:
        gate(trained, digits, outputs=[(k + 3) % 10 for k in range(10)])
    assert "preprocessing" not in str(caught.value) and "squeeze.classes_file" in str(caught.value)


def test_another_normalisation_is_named(trained, digits):
    with pytest.raises(ValueError, match=r"at chance: .*preprocessing\. With pixels in \[0, 1\] without") as caught:
        gate(trained, digits, OTHER)
    assert "class order" not in str(caught.value)


class SwappedChannels(nn.Module):
    """Sees the blue channel only; the red one is noise to it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x[:, 2:].repeat(1, 3, 1, 1))


def test_swapped_channels_are_named(trained, digits):
    pixels, labels = digits[1][0][:100].clone(), digits[1][1][:100]
    pixels[:, 2] = 255 - pixels[:, 2] // 2
    teacher = Teacher.of(SwappedChannels(trained), "mine", "0123456789", list(range(10)), DIGITS)
    with pytest.raises(ValueError, match=r"preprocessing\. With blue, green, red channels it has"):
        check_gate(teacher, pixels, labels, DIGITS, CPU)


def test_untrained_weights_are_refused_without_a_false_hint(digits):
    with pytest.raises(ValueError, match=r"at chance: .*untrained or wrong weights") as caught:
        gate(network(3), digits)
    assert "Likeliest" not in str(caught.value)


# --- Teacher ---------------------------------------------------------------------------------------------------------


def test_a_teacher_gives_the_networks_logits_in_the_data_sets_order(trained, digits):
    x = digits[1][0][:7] / 255
    teacher = Teacher.of(trained, "mine", "20", [2, 0], DIGITS)
    with torch.no_grad():
        wanted = trained(x)
    torch.testing.assert_close(teacher.logits(x), wanted[:, [2, 0]], rtol=1e-5, atol=1e-5)
    logits, moments = teacher(x)
    assert logits.shape == (7, 10) and len(moments) == 3
    assert all(layer.moments is None for layer in teacher.layers)


def test_a_teachers_hash_is_that_of_its_weights(trained):
    first = Teacher.of(trained, "a", "0123456789", list(range(10)), DIGITS)
    other = Teacher.of(network(0), "a", "0123456789", list(range(10)), DIGITS)
    assert first.sha256 == Teacher.of(trained, "b", "01", [3, 2], DIGITS).sha256 != other.sha256


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


def test_a_network_whose_output_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="teacher mine has 4 outputs, but 10 classes are needed"):
        Teacher.of(zoo.build("zoo/convnet1", 4), "mine", "0123456789", list(range(10)), DIGITS)
    rigid = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(ValueError, match="teacher mine cannot take 8 x 8 images"):
        Teacher.of(rigid, "mine", "0123456789", list(range(10)), DIGITS)
