"""A bad flag exits with 2 and one line: the flag, the rule and the value."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys

import absl.flags
import pytest
import tensorflow_datasets as tfds

import flowers17_tfdata
from flowers17_tfdata import cli, flags
from flowers17_tfdata.config import rules
from flowers17_tfdata.config.config import (
    GROUPS,
    Config,
    all_flags,
    from_values,
    to_values,
)
from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.config.option import Kind, flags_of
from flowers17_tfdata.data.source import open_source
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.phases.registry import PHASES

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--phas=train", "there is no flag --phas (did you mean --phase?)"),
        ("--phase=trian", "--phase must be one of prepare, "),
        ("--image_size=big", "--image_size"),
        ("--image_size=8", "--image_size must be at least 32; got 8"),
        ("--dropout=nan", "--dropout must be at least 0; got nan"),
        ("--dropout=1.5", "--dropout must be at most 0.95; got 1.5"),
        (
            "--finetune_learning_rate=0",
            "--finetune_learning_rate must be a number above 0; got 0.0",
        ),
        ("--transfer_learning_rate=inf", "--transfer_learning_rate must"),
        ("--global_batch_size=0", "--global_batch_size must be at least 1"),
        ("--num_virtual_devices=3", "--global_batch_size must be a multiple"),
        ("--workdir=", "--workdir must not be empty"),
        ("--dataset=", "--dataset must not be empty"),
        ("--dataset=folder:", "--dataset=folder:PATH must name a folder"),
        ("--dataset=csv:", "and csv:FILE a table; got 'csv:'"),
        ("--dataset=csv:~no_one/x.csv", "--dataset: ~no_one has no home fold"),
        ("--class_weights=on", "--class_weights must be one of none, balanced"),
        ("--split_seed=-1", "--split_seed must be at least 0; got -1"),
        ("--split_fractions=0.7,0.3", "--split_fractions must be TRAIN,VALID"),
        ("--split_fractions=0.7,0.2,0.2", "with the sum 1; got '0.7,0.2,0.2'"),
        ("--split_fractions=0.7,0.3,0", "each above 0"),
        ("--split_fractions=0.5,nan,0.5", "--split_fractions must be"),
        ("--split_fractions=a,b,c", "--split_fractions must be"),
        ("--cache=disk", "--cache must be one of auto, memory, none; got"),
        ("--augment_on=gpu", "--augment_on must be one of auto, host, device"),
        ("--feature_views=-1", "--feature_views must be at least 0; got -1"),
        ("--xla=maybe", "--xla must be one of auto, on, off; got 'maybe'"),
        ("--head_units=8", "got --head_units=8 and --transfer_optimizer=lbfgs"),
        ("--feature_views=0", "--feature_views below 1 goes with --transfer_"),
        ("--finetune_epochs=-1", "--finetune_epochs must be at least 0; got"),
        ("stray", "every argument must be a --flag=value; got 'stray'"),
        ("--refit=maybe", "--refit must be true or false; got 'maybe'"),
        ("--crop=much", "--crop must be a number; got 'much'"),
        ("--epochs=5", "--transfer_epochs, --finetune_epochs?"),
        ("--batch-size=5", "did you mean --global_batch_size?"),
        ("--data=x", "did you mean --dataset=folder:PATH?"),
        ("--model=resnet50", "--backbone names the network"),
        ("evaluate", "did you mean --phase=evaluate?"),
        ("tests", "did you mean --dataset=folder:tests?"),
        ("main.py", "did you mean --phase=predict --images=main.py?"),
        ("x.flags", "did you mean --flagfile=x.flags?"),
    ],
)
def test_bad_flags_exit_2_with_one_line(
    argument, expected, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    assert cli.main(["main.py", argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert expected in err


@pytest.mark.parametrize(
    "steps",
    [
        "3",
        "3,",
        ",3",
        "3,2",
        "0,1",
        "-1,2",
        "1,2,3",
        "1, 2",
        "1.0,2",
        "a,b",
        "١,٢",
    ],
)
def test_bad_profile_steps_exit_2_with_one_line(steps, capsys):
    assert cli.main(["main.py", f"--profile_steps={steps}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: --profile_steps must be FIRST,LAST with 1 <= FIRST <= LAST; "
        f"got {steps!r}\n"
    )


@pytest.mark.parametrize(
    ("steps", "expected"),
    [("", None), ("1,1", (1, 1)), ("2,10", (2, 10)), ("9,10", (9, 10))],
)
def test_profile_steps(steps, expected):
    config = flags.parse(["main.py", f"--profile_steps={steps}"])
    assert config.runtime.profile_range == expected


def test_contradicting_flags():
    flag = "--augmentation=none"
    with pytest.raises(ConfigError, match=f"--feature_views above 2.*{flag}"):
        flags.parse(["main.py", "--feature_views=3", flag])
    # The image and its mirror image are not drawn at random.
    flags.parse(["main.py", "--feature_views=2", flag])
    with pytest.raises(ConfigError, match="--crop below 1 goes with"):
        flags.parse(["main.py", "--crop=0.5", flag])
    with pytest.raises(ConfigError, match="--archive goes with"):
        flags.parse(["main.py", "--dataset=mnist", "--archive=x"])
    with pytest.raises(ConfigError, match="--model does not go with"):
        flags.parse(["main.py", "--phase=train", "--model=x.keras"])
    with pytest.raises(
        ConfigError, match="--init_from does not go with --phase=train"
    ):
        flags.parse(["main.py", "--phase=train", "--init_from=x.keras"])
    with pytest.raises(ConfigError, match="--strategy=default"):
        flags.parse(
            ["main.py", "--strategy=default", "--num_virtual_devices=2"]
        )


def test_what_goes_with_a_solved_head():
    trained = "--transfer_optimizer=adamw"
    for flag in ("--head_units=8", "--feature_views=0"):
        with pytest.raises(ConfigError, match="and --transfer_optimizer=lbfgs"):
            flags.parse(["main.py", flag])
        flags.parse(["main.py", flag, trained])
    find_lr = ["main.py", "--phase=find_lr", "--find_lr_stage=transfer"]
    with pytest.raises(ConfigError, match="--find_lr_stage=transfer goes with"):
        flags.parse(find_lr)
    flags.parse([*find_lr, trained])


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        ([], ("transfer", "finetune")),
        (["--refit"], ("transfer", "finetune", "refit")),
        (["--finetune_epochs=0"], ("transfer",)),
        (["--finetune_epochs=0", "--refit"], ("transfer", "refit")),
    ],
)
def test_stages_of_a_training(arguments, stages):
    config = flags.parse(["main.py", *arguments])
    assert config.optimization.stages == stages


def test_no_fine_tuning_is_no_phase():
    command = ["main.py", "--finetune_epochs=0"]
    with pytest.raises(ConfigError, match="--finetune_epochs must be at least"):
        flags.parse([*command, "--phase=finetune"])
    flags.parse([*command, "--phase=refit"])


def test_values_round_trip_and_do_not_leak_between_parses():
    first = flags.parse(["main.py", "--seed=7", "--nohorizontal_flip"])
    assert first.runtime.seed == 7
    assert first.input.horizontal_flip is False
    assert from_values(to_values(first)) == first
    assert flags.parse(["main.py"]) == Config()


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ("saved_mdel", "got 'saved_mdel' (did you mean saved_model?)"),
        ("keras,pdf", "got 'pdf'"),
        ("keras, onnx,keras", "got keras 2 times"),
        (",", "got ','"),
    ],
)
def test_bad_export_formats_exit_2_with_one_line(formats, message, capsys):
    assert cli.main(["main.py", f"--export_formats={formats}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --export_formats must ")
    assert line.endswith(message)


def test_export_formats_keep_their_order():
    config = flags.parse(["main.py", "--export_formats=onnx, keras,"])
    assert config.export.formats == ("onnx", "keras")


def _help(capsys, *arguments) -> set[str]:
    """Returns the names of the flags that a help text lists."""
    assert cli.main(["main.py", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.strip() for line in lines if line.startswith("  --")]
    return {
        line.partition("=")[0].removeprefix("--").removeprefix("[no]")
        for line in listed
    }


def test_version(capsys):
    assert cli.main(["main.py", "--version", "--workdir=x"]) == 0
    out = capsys.readouterr().out
    assert out == f"flowers17-tfdata {flowers17_tfdata.__version__}\n"


def test_help_has_two_tiers(capsys):
    common, full = _help(capsys, "--help"), _help(capsys, "--helpfull")
    assert full == set(to_values(Config()))
    assert common == {f.name for f in all_flags() if f.common}
    assert 20 <= len(common) <= 30


def test_help_of_a_phase_lists_the_flags_that_it_reads(capsys):
    predict = _help(capsys, "--phase=predict", "--helpfull")
    assert {"images", "model", "strategy", "workdir"} <= predict
    assert not {"finetune_epochs", "export_dir", "dataset"} & predict
    assert "top_k" not in _help(capsys, "--phase=predict", "--help")


def test_every_option_is_declared_with_a_kind():
    """A field without one would be no flag, and nothing would check it."""
    for name, group in GROUPS.items():
        fields = {f.name for f in dataclasses.fields(group)}
        flags_of_group = {f.name for f in flags_of(group)}
        assert fields - flags_of_group == (
            set(GROUPS) - {"run"} if name == "run" else set()
        )
    assert all(isinstance(flag.kind, Kind) for flag in all_flags())


def test_rules_name_flags_and_phases_that_exist():
    names = set(to_values(Config()))
    for flag in all_flags():
        assert flag.required_by in ("", *PHASES)
        for needs in flag.needs:
            assert needs.flag in names
            if needs.flag == "phase":
                assert set(needs.values) <= set(PHASES)


def test_every_phase_can_be_run():
    for name, phase in PHASES.items():
        assert set(phase.groups) <= set(GROUPS)
        module = phase.target.partition(":")[0]
        package = "flowers17_tfdata.phases"
        assert importlib.util.find_spec(f"{package}.{module}"), name
        assert callable(phase.run), name


@pytest.mark.slow
def test_help_and_flag_errors_do_not_wait_for_tensorflow():
    script = (
        "import sys; from flowers17_tfdata import cli; "
        "codes = [cli.main(['main.py', a]) for a in ('--help', '--seed=x')]; "
        "assert codes == [0, 2], codes; "
        "slow = {'tensorflow', 'keras', 'numpy', 'tensorflow_datasets'}; "
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )


def test_absl_flags_of_other_programs_are_left_alone(capsys):
    theirs = absl.flags.FLAGS
    absl.flags.DEFINE_string("precision", "theirs", "")
    try:
        config = flags.parse(["main.py", "--precision=float32"])
        assert config.runtime.precision == "float32"
        assert theirs["precision"].value == "theirs"
    finally:
        delattr(theirs, "precision")
    # absl.logging defines it.
    assert cli.main(["main.py", "--stderrthreshold=info"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: there is no flag --stderrthreshold")


def test_an_error_is_one_line_whatever_the_path(capsys):
    assert cli.main(["main.py", "--flagfile=no\nsuch\nfile"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("flag", ["workdir", "data_dir", "folders_dir"])
@pytest.mark.parametrize("inside", ["", "/runs", "/../photos/x"])
def test_nothing_is_written_among_own_images(tmp_path, flag, inside, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    argv = [
        "main.py",
        f"--workdir={tmp_path / 'work'}",
        f"--dataset=folder:{photos}",
        f"--{flag}={photos}{inside}",
    ]
    assert cli.main(argv) == 2
    assert f"--{flag} must lie outside the folder of images" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (
            "--weights=nt.h5",
            1,
            "existing file; got 'nt.h5' (did you mean net.",
        ),
        ("--weights=folder", 1, "imagenet, none or an existing file; got 'fol"),
        (
            "--weights=a.txt",
            2,
            "--weights must be a file that ends in .h5",
        ),
        ("--phase=finetune --init_from=x.keras", 1, "--init_from must be an"),
        ("--phase=evaluate --model=x.keras", 1, "--model must be an existing"),
        ("--phase=export --model=a.txt", 2, "--model must be a file that ends"),
        ("--phase=predict a.jpg --labels=b.txt", 1, "--labels must be an"),
        ("--archive=17.tgz", 1, "--archive 17.tgz does not exist"),
        ("--folds=3 --weights=x.h5", 1, "--weights must be imagenet, none or"),
    ],
)
def test_missing_files_are_told_before_anything_is_read(
    tmp_path, monkeypatch, capsys, arguments, code, expected
):
    monkeypatch.chdir(tmp_path)
    for name in ("net.h5", "a.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("flowers17_tfdata.phases.runner.run", None)
    assert cli.main(["main.py", *arguments.split()]) == code
    err = capsys.readouterr().err
    assert expected in err
    assert err.count("\n") == 1


def test_files_that_the_phase_does_not_read_may_be_missing(tmp_path):
    """A flag file serves all phases, and a run outlives its weights file."""
    arguments = [f"--workdir={tmp_path}", "--weights=no.h5"]
    for phase in ("prepare", "evaluate", "folders"):
        config = flags.parse(["main.py", *arguments, f"--phase={phase}"])
        rules.check_files(config)
    config = flags.parse(["main.py", *arguments])
    with pytest.raises(UserError, match=r"got 'no\.h5'"):
        rules.check_files(config)
    (tmp_path / "checkpoints" / "transfer").mkdir(parents=True)
    rules.check_files(config)


def test_a_home_folder_that_is_not_there(tmp_path, monkeypatch, capsys):
    """A container may run as a user without a name and without HOME."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cli.main(["main.py", "--phase=evaluate", "--workdir=~/x"]) == 2
    assert "--workdir: ~ has no home folder" in capsys.readouterr().err
    default = "~/tensorflow_datasets"
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", default)
    config = DataConfig(dataset=f"folder:{tmp_path}")
    with pytest.raises(ConfigError, match="--data_dir must be given"):
        open_source(config)


def test_flags_are_parsed_in_threads():
    def parse(seed: int) -> int:
        return flags.parse(["main.py", f"--seed={seed}"]).runtime.seed

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(parse, range(200))) == list(range(200))


def test_a_flag_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.flags"
    path.write_text("# mine\n--seed=3\n", encoding="utf-8-sig")
    assert flags.parse(["main.py", f"--flagfile={path}"]).runtime.seed == 3


def test_a_table_for_people_is_not_written_to_a_data_file():
    argv = ["main.py", "--phase=predict", "--images=x.jpg"]
    with pytest.raises(ConfigError, match=r"--output=a\.csv goes with --form"):
        flags.parse([*argv, "--output=a.csv"])
    assert flags.parse([*argv, "--output=a.txt"]).predict.format == "table"
    flags.parse([*argv, "--output=a.jsonl", "--format=json"])


def test_names_of_other_programs_lead_to_flags_that_exist():
    names = {flag.name for flag in all_flags()}
    for ours, others in flags._KNOWN_ELSEWHERE.items():
        assert {name.partition("=")[0] for name in ours} <= names
        # They would never be looked up.
        assert not set(others.split()) & names


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["predict", "x.jpg"], "--phase=predict --images=x.jpg"),
        (["predict", "x.jpg", "y.jpg"], "--phase=predict --images=FILES"),
    ],
)
def test_words_without_dashes_get_a_hint(words, meant):
    with pytest.raises(ConfigError) as caught:
        flags.parse(["main.py", *words])
    assert f"did you mean {meant}?" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--seed=x", "(--seed is from "),
        ("--epochs=3", "(--epochs is from "),
        ("--dropout=3", "(--dropout is from "),
        ("--feature_views=3", "(--feature_views is from "),
        ("--seed=3", ""),
    ],
)
def test_a_flag_that_was_not_typed_is_traced_to_its_file(
    line, expected, tmp_path, capsys
):
    path = tmp_path / "a.flags"
    path.write_text(f"{line}\n--workdir={tmp_path}\n--nohorizontal_flip\n")
    argv = ["main.py", "--augmentation=none", "--crop=0.5"]
    if line != "--seed=3":
        argv.pop()
    assert cli.main([*argv, "--flagfile", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count(" is from ") == bool(expected)
    assert (f"{expected}{path})" if expected else "--crop") in err
    # What was typed wins, and is no longer the file's.
    assert cli.main([*argv, line, f"--flagfile={path}"]) == 2
    assert " is from " not in capsys.readouterr().err
