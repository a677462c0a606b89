"""The console: its modes, help, hints and closed pipes."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import keras
import pytest

from flowers17_tfdata import cli, command_help, flags, terminal
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.errors import (
    ConfigError,
    DownloadFailed,
    UserError,
    did_you_mean,
)
from flowers17_tfdata.models import backbones, summary
from flowers17_tfdata.phases.registry import PHASES
from tests import fakes

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _normal_console():
    terminal.configure("normal")
    yield
    terminal.configure("normal")


def _show_all() -> None:
    terminal.say("a line", epoch=3)
    terminal.detail("a note")
    terminal.show_table("title", ["class", "images"], [["rose", 5]])


def test_console_modes(capsys):
    _show_all()
    out = capsys.readouterr().out
    assert "a line\n" in out
    assert "a note" not in out
    assert "rose" in out
    # Colour codes are for terminals.
    assert "\x1b" not in out

    terminal.configure("verbose")
    _show_all()
    assert "a note" in capsys.readouterr().out

    terminal.configure("quiet")
    _show_all()
    assert capsys.readouterr() == ("", "")

    terminal.configure("json")
    _show_all()
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert [x["message"] for x in lines] == ["a line", "a note", "title"]
    assert lines[0]["epoch"] == 3
    assert lines[2]["rows"] == [{"class": "rose", "images": 5}]
    assert all(x["time"] > 1e9 for x in lines)

    terminal.configure("normal", on_stderr=True)
    terminal.say("where predictions go to standard output")
    assert capsys.readouterr() == (
        "",
        "where predictions go to standard output\n",
    )


def test_names_in_brackets_are_shown(capsys):
    names = ["rose [hybrid]", "[red]x", "a[/b]"]
    terminal.show_table("[t]", ["[c]"], [[name] for name in names])
    out = capsys.readouterr().out
    for name in (*names, "[t]", "[c]"):
        assert name in out


@pytest.mark.parametrize("width", [20, 80])
def test_a_long_name_takes_no_room_from_the_numbers(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    name = "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae"
    columns = ["class", "precision", "recall", "F1", "images"]
    terminal.show_table("t", columns, [[name, 0.125, 0.25, 0.375, 123456]])
    out = capsys.readouterr().out
    for text in (*columns, "0.125", "0.250", "0.375", "123456"):
        assert text in out
    assert "…" not in out


def test_an_unknown_width_hides_nothing(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    terminal.say("a line")
    terminal.show_table("t", ["class"], [["rose"]])
    out = capsys.readouterr().out
    assert "a line" in out
    assert "rose" in out


def test_a_run_for_machines_prints_json_alone(
    tmp_path, data_dir, dummy_archive, tiny_backbone, capsys
):
    code = cli.main(
        [
            "main.py",
            "--phase=transfer",
            "--console=json",
            f"--workdir={tmp_path}",
            f"--data_dir={data_dir}",
            f"--archive={dummy_archive}",
            f"--backbone={tiny_backbone}",
            *("--weights=none", "--image_size=32", "--strategy=default"),
            *("--transfer_optimizer=adamw", "--head_units=16"),
            *("--transfer_epochs=2", "--model_summary"),
        ]
    )
    out, err = capsys.readouterr()
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    epochs = [x for x in lines if "epoch" in x]
    assert [x["epoch"] for x in epochs] == [1, 2]
    assert 0 <= epochs[1]["validation_accuracy"] <= 1
    assert any("head_dense" in x["message"] for x in lines)


@pytest.mark.parametrize("phase", PHASES)
def test_help_of_a_phase_shows_its_flags_alone(phase, capsys):
    assert cli.main(["main.py", f"--phase={phase}", "--help"]) == 0
    text = capsys.readouterr().out
    for flag, phases in {
        "--images=": {"predict"},
        "--export_formats=": {"export"},
        "--baseline=": {"compare"},
        "--finetune_epochs=": {
            *("transfer", "finetune", "refit", "train"),
            *("find_lr", "learning_curve", "review", "benchmark"),
        },
        "--workdir=": set(PHASES),
    }.items():
        assert (f"\n  {flag}" in text) == (phase in phases), flag
    assert "usage: python main.py" in text


def test_misspelt_values_get_a_suggestion():
    with pytest.raises(ConfigError, match=r"did you mean finetune\?"):
        flags.parse(["main.py", "--phase=fintune"])
    with pytest.raises(ConfigError, match=r"did you mean inceptionv3\b"):
        backbones.get_preprocess("inceptoin_v3")
    assert did_you_mean("xyz", ["train", "test"]) == ""


def test_a_misspelt_flag_gets_a_suggestion(capsys):
    assert cli.main(["main.py", "--fintune_epochs=3"]) == 2
    assert "did you mean --finetune_epochs?" in capsys.readouterr().err


def test_a_failed_download_tells_what_to_do(
    tmp_path, data_dir, dummy_archive, monkeypatch, capsys
):
    def no_network(*args, **kwargs):
        raise Exception("URL fetch failure on https://example.org: None")

    monkeypatch.setattr(keras.utils, "get_file", no_network)
    backbones.register(
        "downloading_net", _downloading_net, fakes.preprocess_input
    )
    code = cli.main(
        [
            "main.py",
            "--phase=transfer",
            f"--workdir={tmp_path}",
            f"--data_dir={data_dir}",
            f"--archive={dummy_archive}",
            *("--backbone=downloading_net", "--image_size=32"),
            "--strategy=default",
        ]
    )
    assert code == 1
    first, *hint = capsys.readouterr().err.strip().splitlines()
    assert first.startswith(
        "error: --weights=imagenet: the weights of downloading_net"
    )
    assert "--weights=PATH" in first
    text = "\n".join(hint)
    for part in ("--flagfile=quickstart", "--archive=", "--weights="):
        assert part in text
    # A network of one's own has no weights that Keras could download.
    assert "keras.applications" not in text
    # One screen.
    assert len(hint) < 20


def test_missing_weights_are_named_by_their_own_network(monkeypatch):
    def no_network(*args, **kwargs):
        raise Exception("URL fetch failure on https://example.org: None")

    module = sys.modules[keras.applications.MobileNetV2.__module__]
    monkeypatch.setattr(module.file_utils, "get_file", no_network)
    with pytest.raises(DownloadFailed) as caught:
        backbones.build_backbone("mobilenet_v2", 96, "imagenet")
    text = command_help.offline_text("main.py", caught.value.constructor)
    assert "keras.applications.MobileNetV2(include_top=False)" in text
    assert "inception" not in text


def _downloading_net(input_shape, weights):
    if weights == "imagenet":
        keras.utils.get_file("tiny.h5", "https://example.org")
    return fakes.build_tiny_net(input_shape)


@pytest.mark.slow
def test_a_closed_pipe_ends_it_without_a_word():
    script = (
        "import os, sys; from flowers17_tfdata import cli; "
        "sys.exit(cli.main(['main.py', '--help']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        # Unbuffered: otherwise it would write only after the reader has gone.
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141
    assert err == ""


def test_a_name_that_the_encoding_lacks_is_replaced():
    program = (
        "from flowers17_tfdata import cli, terminal\n"
        "cli.main(['main.py', '--help'])\n"
        "terminal.show_table('t', ['class'], [['caf\\u00e9 \\u82b1']])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"caf\\xe9 \\u82b1" in done.stdout
    assert done.stderr == b""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_as_the_null_device(tmp_path, closed):
    found = tmp_path / "found"
    program = (
        "import sys\n"
        "from flowers17_tfdata import cli, terminal\n"
        "code = cli.main(['main.py', '--phase=nonesuch'])\n"
        "terminal.say('a line')\n"
        f"open({str(found)!r}, 'w').write(f'{{code}} {{sys.stdin.read()}}')\n"
    )
    line = shlex.join([sys.executable, "-c", program])
    done = subprocess.run(
        ["bash", "-c", f"{line} {closed}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert found.read_text() == "2 "


def test_plot_needs_graphviz_before_anything_is_trained(monkeypatch):
    pytest.importorskip("pydot")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"--plot_model needs .* Graphviz"):
        summary.check_can_plot(ModelConfig(plot_model=True))


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is missing")
def test_the_network_is_drawn(tmp_path):
    config = ModelConfig(plot_model=True)
    summary.check_can_plot(config)
    summary.show(fakes.make_model(), "transfer", tmp_path, config)
    data = (tmp_path / "plot_transfer.png").read_bytes()
    assert data.startswith(b"\x89PNG")


def test_flags_of_a_run_come_from_its_workdir(tmp_path, capsys):
    path = tmp_path / "config.json"
    flags_of_run = {
        "image_size": 64,
        "backbone": "mobilenet",
        "global_batch_size": 8,
        "finetune_epochs": 99,
        "dataset": "oxford_flowers17/synthetic",
        "of_a_later_version": 1,
        "precision": "float32",
        "split_seed": 7,
        # These belong to the command line or the machine, not to the run.
        "archive": "gone.tgz",
        "cache": "memory",
        "augment_on": "device",
        "seed": 5,
    }
    path.write_text(json.dumps({"flags": flags_of_run}))

    def parse(*arguments):
        return flags.parse(["main.py", f"--workdir={tmp_path}", *arguments])

    config = parse("--phase=evaluate", "--global_batch_size=4")
    assert config.input.image_size == 64
    assert config.data.dataset == "oxford_flowers17/synthetic"
    assert config.optimization.global_batch_size == 4
    assert config.optimization.finetune_epochs == 8
    assert config.runtime.precision == "float32"
    assert config.data.split_seed == 7
    assert config.data.archive == ""
    assert config.input.cache == config.input.augment_on == "auto"
    # Another data set has its own split.
    other = parse("--phase=evaluate", "--dataset=folder:x")
    assert other.data.split_seed == 0
    assert other.input.image_size == 64
    # A training phase takes its flags from the command line alone.
    assert parse("--phase=finetune").input.image_size == 299

    path.write_text(json.dumps({"flags": {"image_size": "large"}}))
    with pytest.raises(ConfigError, match="holds 'large' for image_size"):
        parse("--phase=evaluate")
    path.write_text("{")
    with pytest.raises(ConfigError, match="can't be read"):
        parse("--phase=evaluate")


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs Linux's full device"
)
def test_a_full_standard_output_is_named(monkeypatch, capfd):
    stream = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["main.py", "--help"]) == 1
    stream.close()
    line = "error: standard output: [Errno 28] No space left on device\n"
    assert capfd.readouterr().err == line
