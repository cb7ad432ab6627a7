"""What the command line answers: without torch, help, completion, and one line about wrong input."""

import contextlib
import dataclasses
import io
import os
import re
import subprocess
import sys

import pytest
from small import said

from fastcondense.cli import main
from fastcondense.command_line import _blocks, flags
from fastcondense.log import PlainConsole
from fastcondense.options import COMMON, EXAMPLES, Options, parse_stage
from fastcondense.recipe.recipe import load
from fastcondense.report.report import plain_table


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("--help", 0),
        ("--version", 0),
        ("recipes", 0),
        ("status RUN", 0),
        ("recove", 1),
        ("run --recipe sre2l/digitz", 1),
        ("run --recipe sre2l/digits-ipc1 --recover.iteratons 3", 1),
    ],
)
def test_what_needs_no_tensor_answers_without_torch(command, status, tmp_path):
    (tmp_path / "recipe.toml").write_text('name = "mine"')
    (tmp_path / "log.jsonl").write_text("")
    arguments = [str(tmp_path) if word == "RUN" else word for word in command.split()]
    code = (
        f"import sys\nfrom fastcondense.cli import main\nassert main({arguments!r}) == {status}\n"
        "assert not {'torch', 'torchvision', 'numba', 'timm', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rum"], "nearest is 'run'"),
        (["run"], "--recipe is missing"),
        (["run", "--recipe", ""], "--recipe is empty"),
        (["run", ""], "the first argument of"),
        (["verify", ""], "the first argument of"),
        (["recover", "--recipe", "sre2l/digits", "--images", ""], "--images is empty"),
        (["run", "--recipe", "sre2l/digits", "--out="], "--out is empty"),
        (["run", "--recipe", "sre2l/digits", "--data", "", "--seed", "1"], "--data is empty"),
        (["run", "--recipe", "sre2l/digits", "--out"], "--out: expected one argument"),
        (["run", "--recipe", "sre2l/digits", "--ipc", "--out", "x"], "--ipc: expected one argument"),
        (["run", "--recipe", "sre2l/digit"], "nearest is 'sre2l/digits'"),
        (["run", "--recipe", "sre2l/digits", "--recover.iteration", "3"], "nearest is '--recover.iterations'"),
        (["run", "--recipe", "sre2l/digits", "--ipc", "0"], "ipc must be at least 1"),
        (["run", "--recipe", "sre2l/digits", "--ipc", "500"], "training images, but baseline random_soft"),
        (["run", "--recipe", "sre2l/cifar10"], "needs --data DIR"),
        (["run", "--recipe", "sre2l/cifar10", "--data", "absent"], "there is no folder absent"),
        (["run", "--recipe", "sre2l/cifar10", "--data", "."], "is empty"),
        (["run", "--recipe", "sre2l/digits", "--device", "abacus"], "there is no device 'abacus'"),
        (["run", "--recipe", "sre2l/digits", "--squeeze.teachers", "zoo/resnet19"], "nearest is 'resnet18'"),
        (
            ["run", "--recipe", "sre2l/digits", "--squeeze.weights", "absent.pth"],
            "absent.pth cannot be read: there is no such file",
        ),
    ],
)
def test_wrong_words_are_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert words in said(capsys)


def help_of(*arguments: str) -> str:
    """What a help option prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*arguments]) == 0
    return printed.getvalue()


def test_help_and_version(capsys):
    assert main([]) == 0 and "squeeze" in capsys.readouterr().out
    assert main(["--version"]) == 0 and "fastcondense 0" in capsys.readouterr().out
    assert main(["recipes", "--help"]) == 0 and "show NAME" in capsys.readouterr().out
    short = help_of("recover", "--recipe", "sre2l/digits-ipc3", "--help")
    shown = [line.split()[0] for line in short.splitlines() if line.startswith("  --")]
    assert sorted(shown) == sorted(COMMON) and "Images per class. (default: 3)" in short
    assert "--images DIR" not in short and "--recover.match-weight" not in short


def test_every_option_has_a_text():
    """And is among those by which the nearest is named."""
    text = help_of("run", "--recipe", "sre2l/digits", "--help-all")
    for option, *description in _blocks(text):
        assert not " ".join(description).startswith("(default"), option
    assert {word for option, *_ in _blocks(text) for word in re.findall(r"--[\w.-]+", option)} == {
        "--help",
        *flags(Options),
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("run --recipe sre2l/digits --ipc x", "Error parsing --ipc: invalid literal for int() with base 10: 'x'"),
        ("run --recipe sre2l/digits --labels.mix soft", "invalid choice 'soft' for argument '--labels.mix'"),
        ("run --recipe sre2l/digits --seed", "Missing value for argument '--seed'. Expected 1 values."),
        (
            "run --recipe sre2l/digits --recover.lrr=3",
            "unknown option '--recover.lrr=3'; the nearest is '--recover.lr'",
        ),
        (
            "run --recipe sre2l/digits --squeeze.shared true",
            "--squeeze.shared takes no value, or no more of them, got 'true'",
        ),
        (
            "squeeze --recipe sre2l/digits --squeeze.crop-scale 0.1 1 2",
            "--squeeze.crop-scale takes no value, or no more",
        ),
        ("run --recipe sre2l/digits --train.epochs 2 --ipc 1 2", "--ipc takes one number, or some with commas between"),
        ("bundle r s", "nothing is expected there: 's'"),
        ("recover --recipe sre2l/digits --workers 2", "--workers needs --gpus: --gpus 0 --workers N starts N workers"),
        ("squeeze --recipe sre2l/digits --restarts=0", "--restarts needs --gpus"),
        ("squeeze --recipe sre2l/digits --device meta", "there is no device 'meta' here: auto, cpu, cuda or cuda:N"),
        (
            "plan --recipe sre2l/digits --seconds nan",
            "plan needs --gpus of 0 or more and --seconds above 0, got None, nan",
        ),
        ("bundle", "Missing from fastcondense bundle: PATH"),
        ("export r --format zip", "invalid choice 'zip' for argument '--format'"),
        ("recipes cifar11", "there is no recipe 'cifar11'; the nearest is"),
        ("recipes show sre2l", "there is no recipe 'sre2l'; the nearest is 'sre2l/"),
        ("completion ksh", "one of bash, zsh, fish, tcsh"),
    ],
)
def test_what_tyro_refuses_is_one_line_too(arguments, words, capsys):
    assert main(arguments.split()) == 1
    assert words in said(capsys)


@pytest.mark.parametrize(
    "error", [MemoryError("no 9 GB"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")]
)
def test_too_little_memory_is_one_line(error, capsys, monkeypatch):
    def carry_out(*_, **__):
        raise error

    monkeypatch.setattr("fastcondense.session.prepare", carry_out)
    assert main(["squeeze", "--recipe", "sre2l/digits"]) == 1
    assert f"fastcondense: not enough memory: {error}" == said(capsys)


def test_a_run_without_a_recipe_gives_examples_or_the_run_that_is_there(tmp_path, capsys):
    (tmp_path / "recipe.toml").write_text('name = "mine"')
    assert main(["run", "--out", str(tmp_path)]) == 1
    assert f"fastcondense run {tmp_path}" in said(capsys)
    assert main(["run"]) == 1
    assert all(load(name) and name in (line := said(capsys)) for name in EXAMPLES[:1]) and len(line) < 250
    assert all(load(name).name == name for name in EXAMPLES)


def test_a_current_folder_that_is_gone_is_said(tmp_path, capsys, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["recover", "--recipe", "sre2l/digits"]) == 1
    assert said(capsys) == "fastcondense: the current folder has been deleted; change to another one"


def test_the_first_line_comes_before_torch_is_loaded(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\nfrom fastcondense.cli import main\n"
        f"main(['run', '--recipe', 'sre2l/digits', '--out', {str(tmp_path / 'r')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("fastcondense 0") and "run; loading PyTorch" in done.stdout and done.returncode


def test_a_reader_that_leaves_ends_the_command_silently():
    command = f"{sys.executable} -m fastcondense.cli recipes | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("cda/cifar10 ") and not done.stderr and done.returncode in (0, 141)


def test_a_shell_completes_commands_options_and_recipes(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("--recover.match-weight", "sre2l/digits", "verify", "plan"))
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bench_runs_a_benchmark_of_the_checkout(capfd, monkeypatch):
    assert main(["bench"]) == 0
    assert "end-to-end" in capfd.readouterr().out
    assert main(["bench", "loaders", "--help"]) == 0
    assert "--beton" in capfd.readouterr().out
    assert main(["bench", "kernel"]) == 1
    assert capfd.readouterr().err == "fastcondense: there is no benchmark 'kernel'; the nearest is 'kernels'\n"
    monkeypatch.setattr("fastcondense.cli.__file__", "/nowhere/fastcondense/cli.py")
    assert main(["bench", "loaders"]) == 1
    assert "needs a checkout" in capfd.readouterr().err


def test_the_last_of_two_sizes_counts():
    options = parse_stage("run", "", ["--recipe", "sre2l/digits", "--ipc", "4", "--ipc", "1"])
    assert (options.settings.ipc, options.settings.evaluate.sizes) == (1, ())
    options = parse_stage("evaluate", "", ["--recipe", "sre2l/digits", "--ipc", "4", "--ipc", "1,3"])
    assert options.settings.evaluate.sizes == (1, 3)


def test_a_number_of_images_brings_its_table():
    """As the name does: --ipc 50 is -ipc50, but for the name of the folder."""
    of_name = load("cvdd/cifar10-ipc50")
    for words in (
        "cvdd/cifar10-ipc10 --ipc 50",
        "cvdd/cifar10 --ipc=50",
        "cvdd/cifar10 --ipc +50",
        "cvdd/cifar10 --ipc 5_0",
    ):
        found = parse_stage("run", "", ["--recipe", *words.split()]).settings
        assert dataclasses.replace(found, name=of_name.name) == of_name
    resnet = ["--recipe", "cvdd/cifar10-ipc10", "--ipc", "50", "--train.student", "zoo/resnet50"]
    assert parse_stage("run", "", resnet).settings.train == load("cvdd/cifar10-ipc50", "zoo/resnet50").train


@pytest.mark.parametrize("stream", [">&-", "2>&-", "> /dev/null"])
def test_closed_and_narrow_streams_take_what_is_said(stream, tmp_path):
    (tmp_path / "recipe.toml").write_text("name = 'a\u00b1b'")
    (tmp_path / "log.jsonl").write_text("")
    command = f"{sys.executable} -m fastcondense.cli status {tmp_path} {stream}"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_table_that_nobody_reads_is_a_broken_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError), open(writing, "w") as file:
        PlainConsole(file=file).print("a table")


def test_names_in_texts_and_tables_command_no_terminal():
    file = io.StringIO()
    console, name = PlainConsole(file=file, width=80), "\x1b[31mtench\x9b2J [bold]:fish:"
    console.print(name)
    console.print(plain_table("scores", ["name"], [[name]], caption=name))
    text = file.getvalue()
    assert text.count("\\x1b[31mtench\\x9b2J [bold]:fish:") == 3 and text.replace("\n", "").isprintable()
