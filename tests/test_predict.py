"""`--phase=predict`: the files it finds, its predictions, its errors."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from flowers17_tfdata import cli, terminal
from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.phases.predict import formats, image_files
from flowers17_tfdata.predictor import Prediction
from flowers17_tfdata.scoring import predictions
from tests import fakes

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_flags, dummy_archive):
    """A workdir with a model, and the folder of the images it evaluated."""
    workdir = tmp_path_factory.mktemp("predict")
    images = workdir / "images"
    shutil.unpack_archive(dummy_archive, images, filter="data")
    common = [f"--workdir={workdir}", "--strategy=default"]
    train = ["main.py", "--phase=transfer", *common, *tiny_flags]
    assert cli.main(train) == 0
    # The workdir tells it all but its own place.
    assert cli.main(["main.py", "--phase=evaluate", *common]) == 0
    return workdir, images / "jpg"


@pytest.fixture
def default_flags() -> list[str]:
    return ["--phase=predict"]


@pytest.fixture
def predict(trained, run):
    """Returns `predict(*arguments) -> (exit code, stdout, stderr)`."""
    return functools.partial(run, trained[0])


def test_predictions_are_those_of_the_evaluation(predict, trained, tmp_path):
    workdir, folder = trained
    expected = predictions.load(workdir / "predictions_test.npz")
    out = tmp_path / "out.jsonl"
    paths = [folder / name for name in expected.ids]
    code, _, err = predict(
        "--format=json", "--top_k=17", f"--output={out}", *paths
    )
    assert code == 0, err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    class_names = json.loads((workdir / "evaluation.json").read_text())[
        "class_names"
    ]
    for row, probabilities in zip(rows, expected.probabilities, strict=True):
        found = {c["label"]: c["probability"] for c in row["top"]}
        np.testing.assert_allclose(
            [found[name] for name in class_names], probabilities, atol=2e-6
        )
        assert row["label"] == row["top"][0]["label"]
        values = [c["probability"] for c in row["top"]]
        assert values == sorted(values, reverse=True)
    # The labels are the true ones more often than chance would have it.
    true = [class_names[label] for label in expected.labels]
    hits = np.mean([r["label"] == t for r, t in zip(rows, true, strict=True)])
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert hits == pytest.approx(evaluation["accuracy"])
    assert hits > 0.2


def test_unreadable_files_come_at_the_end_and_in_the_exit_code(
    predict, trained, tmp_path
):
    _, folder = trained
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no image")
    good = [folder / "image_0001.jpg", folder / "image_0002.jpg"]
    code, out, err = predict(
        "--format=csv", good[0], broken, tmp_path / "none.png", good[1]
    )
    assert code == 1
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["file"] for row in rows] == [
        str(p) for p in (good[0], broken, tmp_path / "none.png", good[1])
    ]
    assert [bool(row["error"]) for row in rows] == [False, True, True, False]
    assert rows[2]["error"] == "No such file or directory"
    assert rows[3]["label"]
    assert not rows[1]["label"]
    assert err.splitlines() == [
        f"error: 2 of 4 files can't be read (each row says why), first {broken}"
    ]


def test_damaged_files_are_predicted_and_named(predict, trained, tmp_path):
    damaged = tmp_path / "damaged.jpg"
    whole = trained[1] / "image_0001.jpg"
    damaged.write_bytes(whole.read_bytes()[:-2])
    code, out, err = predict("--format=csv", whole, damaged)
    assert code == 0, err
    first, second = csv.DictReader(io.StringIO(out))
    assert first | {"file": str(damaged)} == second
    assert not second["error"]
    note = f"{damaged}: Premature end of JPEG file"
    assert [line for line in err.splitlines() if "damaged" in line] == [
        f"damaged, but classified: {note}"
    ]


def test_other_kinds_of_images_are_taken(predict, tmp_path):
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, [40, 50], np.uint8)
    cv2.imwrite(str(tmp_path / "gray.PNG"), gray)
    cv2.imwrite(str(tmp_path / "deep.bmp"), np.dstack([gray] * 3))
    alpha = rng.integers(0, 256, [40, 50, 4], np.uint8)
    cv2.imwrite(str(tmp_path / "sub, folder.png"), alpha)
    (tmp_path / "notes.txt").write_text("no image")
    code, out, err = predict(f"--images={tmp_path}", "--top_k=1")
    assert code == 0, err
    names = [line.split("  ")[0] for line in out.splitlines()]
    assert [pathlib.Path(name).name for name in names] == [
        "deep.bmp",
        "gray.PNG",
        "sub, folder.png",
    ]
    # One existing path may hold commas.
    code, out, err = predict(f"--images={tmp_path / 'sub, folder.png'}")
    assert code == 0, err
    assert len(out.splitlines()) == 1


def test_named_and_listed_files_go_together(predict, trained, tmp_path):
    first, second, third = (trained[1] / f"image_000{k}.jpg" for k in (1, 2, 3))
    comma = tmp_path / "a,b.jpg"
    comma.write_bytes(third.read_bytes())
    _, out, _ = predict("--format=csv", f"--images={first},{second}", comma)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [r["file"] for r in rows] == [str(first), str(second), str(comma)]
    _, out, _ = predict("--format=csv", "--num_virtual_devices=2", first)
    assert len(out.splitlines()) == 2


def test_only_worker_0_of_a_cluster_predicts(predict, trained, monkeypatch):
    cluster = {"cluster": {"worker": ["localhost:1", "localhost:2"]}}
    image = trained[1] / "image_0001.jpg"
    for index, lines in ((0, 1), (1, 0)):
        task = {"task": {"type": "worker", "index": index}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(cluster | task))
        code, out, err = predict(image)
        assert code == 0, err
        assert len(out.splitlines()) == lines


def test_names_need_not_be_utf8(predict, trained, tmp_path):
    name = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg"))
    shutil.copy(trained[1] / "image_0001.jpg", name)
    for form in ("table", "csv", "json"):
        code, out, err = predict(f"--format={form}", name)
        assert code == 0, err
        assert "caf\\" in out
    assert json.loads(out)["file"] == name


def test_more_classes_than_there_are(predict, trained):
    image = trained[1] / "image_0001.jpg"
    _, out, _ = predict("--format=csv", "--top_k=40", image)
    assert out.splitlines()[0].count("label") == 17


@pytest.mark.slow
def test_a_list_on_standard_input_is_read_in_a_process(trained):
    workdir, folder = trained
    names = [folder / "image_0003.jpg", folder / "image_0001.jpg"]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "tests.worker_main", "--phase=predict"),
            *(f"--workdir={workdir}", "--images=-", "--format=json"),
        ],
        input="\n".join(map(str, names)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    # Standard output contains only the predictions.
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["file"] for row in rows] == list(map(str, names))


@pytest.mark.slow
def test_tensorflow_adds_nothing_to_standard_error(tmp_path):
    command = [sys.executable, "main.py", "--phase=predict", "--images=x.jpg"]
    result = subprocess.run(
        [*command, f"--workdir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        # conftest.py silences more than a user's environment does.
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: --workdir {tmp_path} holds no model_")


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        ([], 2, "--images must be given for --phase=predict"),
        (["--images=no/*.jpg"], 2, "--images: a pattern must match files"),
        (
            ["--images=x.jpg", "--model=no.keras"],
            1,
            "--model must be an existing",
        ),
        (
            ["--images=x.jpg", "--labels=no.txt"],
            1,
            "--labels must be an existing",
        ),
        (["--images=x.jpg", "--output=/dev/null/x"], 1, "--output /dev/null/x"),
        (["--images=x.jpg", "--format=xml"], 2, "--format must be one of"),
        (["--images=x.jpg", "--launch_local=2"], 2, "--launch_local does not"),
        (
            ["--images=~nobody_at_all/x"],
            2,
            "--images: ~nobody_at_all has no home folder",
        ),
    ],
)
def test_mistakes_get_one_line(predict, flags, code, expected):
    got, out, err = predict(*flags)
    assert got == code
    assert out == ""
    assert expected in err.splitlines()[-1]


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.jpg").touch()
    with pytest.raises(ConfigError, match="holds none"):
        image_files.find_images(str(tmp_path), io.StringIO())


def test_files_of_all_kinds_of_names(tmp_path):
    for name in ("b/2.jpg", "b/1.JPEG", "b/c/3.png", "b/readme.md", "a.gif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def find(spec, stdin=""):
        paths = image_files.find_images(spec, io.StringIO(stdin))
        return [path.removeprefix(f"{tmp_path}/") for path in paths]

    assert find(f"{tmp_path}/b") == ["b/1.JPEG", "b/2.jpg", "b/c/3.png"]
    assert find(f"{tmp_path}/**/*.png") == ["b/c/3.png"]
    found = find(f"{tmp_path}/a.gif, x,{tmp_path}/b/*.jpg")
    assert found == ["a.gif", "x", "b/2.jpg"]
    assert find(f"{tmp_path}/a.gif\na,b.jpg") == ["a.gif", "a,b.jpg"]
    assert find("-", "x y.jpg\n\nz.jpg\r\n") == ["x y.jpg", "z.jpg"]


def test_an_empty_list_predicts_nothing(predict, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, out, err = predict("--images=-", "--format=csv")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    assert "names no images" in err


def test_a_folder_is_read_as_training_reads_it(tmp_path, capsys):
    """By contents, through links; and what is left out is named."""
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for path in (folder, elsewhere):
        path.mkdir()
    cv2.imwrite(str(elsewhere / "b.png"), fakes.make_smooth_image(8, 8))
    shutil.copy(elsewhere / "b.png", folder / "a.jpg_large")
    (folder / "linked").symlink_to(elsewhere)
    for name in ("notes.txt", ".hidden.png", "clip.mp4"):
        (folder / name).write_bytes(b"x")
    terminal.configure("normal")
    found = image_files.find_images(str(folder), io.StringIO())
    names = [str(pathlib.Path(path).relative_to(folder)) for path in found]
    assert names == ["a.jpg_large", "linked/b.png"]
    said = "".join(capsys.readouterr())
    for kind in ("1 .txt file", "1 hidden file", "1 .mp4 file"):
        assert kind in said


def test_table_is_aligned():
    stream = io.StringIO()
    write = formats.make_writer(
        "table",
        stream,
        top_k=2,
        files=["a.jpg", "longer.jpg"],
        class_names=["Iris", "Daffodil"],
    )
    classes = (("Iris", 0.75), ("Daffodil", 0.25))
    write(Prediction("a.jpg", classes))
    write(Prediction("longer.jpg", classes[:1]))
    assert stream.getvalue().splitlines() == [
        "a.jpg       Iris      75.0%  Daffodil  25.0%",
        "longer.jpg  Iris      75.0%",
    ]
