"""The report: numbers, pictures, escaping, and how a browser shows it."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import json
import os
import pathlib
import re
import shlex
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata import cli, flags, session
from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.config.option import Kind, flags_of
from flowers17_tfdata.input.examples import load_examples
from flowers17_tfdata.input.input_pipeline import make_eval_dataset
from flowers17_tfdata.models import saved_models
from flowers17_tfdata.phases import report
from flowers17_tfdata.phases.report import (
    audit_findings,
    augmented_views,
    grad_cam,
    mistakes,
    page,
    pictures,
    record,
    reproduce,
    result_charts,
    tables,
    training_curves,
)
from flowers17_tfdata.scoring import reliability, scores
from flowers17_tfdata.scoring.predictions import Predictions
from tests import browser, fakes

NASTY = '<b>x</b> & "y"'
PHONE_WIDTH = 390
TEMPLATES = pathlib.Path(report.__file__).parent / "templates"


@pytest.fixture(scope="module")
def command(data_dir, dummy_archive):
    """Returns `command(workdir, *flags) -> exit code`."""

    def command(workdir, *flags):
        return cli.main(
            [
                "main.py",
                f"--workdir={workdir}",
                f"--data_dir={data_dir}",
                f"--archive={dummy_archive}",
                "--strategy=default",
                *flags,
            ]
        )

    return command


@pytest.fixture(scope="module")
def trained(tmp_path_factory, command, tiny_flags) -> pathlib.Path:
    """A workdir after `--phase=train`; not to be written to."""
    workdir = tmp_path_factory.mktemp("trained") / "work"
    policy = keras.config.dtype_policy()
    code = command(
        workdir,
        "--phase=train",
        *tiny_flags,
        "--transfer_optimizer=adamw",
        "--transfer_epochs=2",
        "--finetune_epochs=2",
        "--finetune_learning_rate=1e-2",
    )
    keras.config.set_dtype_policy(policy)
    assert code == 0
    return workdir


@pytest.fixture
def workdir(trained, tmp_path, tiny_backbone) -> pathlib.Path:
    """A copy of `trained` that may be changed."""
    copy = tmp_path / "work dir"
    shutil.copytree(trained, copy)
    return copy


class _Page(html.parser.HTMLParser):
    """The text, the tags and the attributes of a page."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.tags, self.attributes, self.scripts = [], [], []
        self._inside, text = [], []
        self._text = text
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._inside.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tag, attributes = self._inside[-1] if self._inside else ("", {})
        if tag == "script" and "data-chart" in attributes:
            self.scripts.append((attributes["data-chart"], json.loads(data)))
        elif tag not in ("script", "style"):
            self._text.append(data)


@pytest.mark.slow
def test_train_ends_with_a_report_of_its_evaluation(trained):
    shown = _Page(trained / "report.html")
    evaluation = json.loads((trained / "evaluation.json").read_text())
    low, high = evaluation["accuracy_interval"]
    text = shown.text
    assert f"Accuracy on test {100 * evaluation['accuracy']:.1f} %" in text
    assert f"interval {100 * low:.1f} % to {100 * high:.1f} %" in text
    correct = round(260 * evaluation["accuracy"])
    assert f"{correct} of 260 images are correct" in text
    assert f"Top-5 {100 * evaluation['top_5_accuracy']:.1f} %" in text
    assert "moves the accuracy by 0.38 points" in text
    figures = dict(shown.scripts)
    hits, misses = figures["chart-confusion"]["data"]
    matrix = np.asarray(evaluation["confusion_matrix"])
    # Not NaN, which JSON doesn't have.
    assert hits["z"][3][2] is None
    assert hits["text"][3][3] == (str(matrix[3, 3]) if matrix[3, 3] else "")
    counts = [int(t or 0) for row in misses["text"] for t in row]
    assert sum(counts) == 260 - correct
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    expected = [json.loads(line)["validation_accuracy"] for line in lines]
    accuracy = figures["chart-accuracy"]["data"]
    drawn = [y for t in accuracy if t["name"] == "validation" for y in t["y"]]
    assert drawn == expected
    for name, row in evaluation["per_class"].items():
        line = rf"{name} {row['support']} {100 * row['precision']:.0f} %"
        assert line in text
    assert "800" in text and "in 130 groups" in text
    # Mistakes, heat maps, and 28 augmented views.
    images = [v for tag, name, v in shown.attributes if tag == "img"]
    assert sum(v.startswith("data:image/jpeg;base64,") for v in images) > 40
    assert all(value for tag, name, value in shown.attributes if name == "alt")
    assert (trained / "report.html").stat().st_size < 8e6


@pytest.mark.slow
def test_page_loads_nothing(trained):
    shown = _Page(trained / "report.html")
    for tag, name, value in shown.attributes:
        if name in ("src", "href", "srcset", "data", "action", "poster"):
            assert value.startswith(("data:image/jpeg", "#")), (tag, value[:80])
    assert not {"link", "iframe", "object", "embed", "base"} & set(shown.tags)
    source = (trained / "report.html").read_text(encoding="utf-8")
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in source


@pytest.mark.slow
def test_names_are_text_and_never_markup(workdir, command, monkeypatch):
    open_source = session.open_source

    def renamed(*arguments):
        source = open_source(*arguments)
        names = (NASTY, "</script><script>bad()", *source.class_names[2:])
        return dataclasses.replace(source, class_names=names)

    monkeypatch.setattr(session, "open_source", renamed)
    monkeypatch.setattr(saved_models, "read_extras", lambda path: {})
    (workdir / "audit.json").unlink()
    assert command(workdir, "--phase=prepare") == 0
    assert command(workdir, "--phase=report") == 0
    shown = _Page(workdir / "report.html")
    assert NASTY in shown.text
    assert "</script><script>bad()" in shown.text
    assert "b" not in shown.tags
    source = (workdir / "report.html").read_text(encoding="utf-8")
    assert source.count("bad()") == source.count("&lt;script&gt;bad()") + (
        source.count("script\\u0026gt;bad()")
    )
    # Plotly interprets HTML in its texts, so the name is escaped twice.
    ticks = dict(shown.scripts)["chart-confusion"]["layout"]["xaxis"][
        "ticktext"
    ]
    assert ticks[0] == "&lt;b&gt;x&lt;/b&gt; &amp; &quot;y&quot;"


@pytest.mark.slow
def test_it_evaluates_only_what_is_due(workdir, command, capsys):
    def evaluates(*flags):
        assert command(workdir, "--phase=report", *flags) == 0
        return "report: evaluating" in capsys.readouterr().out

    # The copied evaluation names the original's model.
    assert evaluates()
    assert not evaluates()
    assert evaluates("--split=validation")
    assert "Accuracy on validation" in _Page(workdir / "report.html").text
    assert evaluates()
    os.utime(workdir / "model_finetune.keras")
    assert evaluates()
    model = workdir / "model_transfer.keras"
    assert evaluates(f"--model={model}")
    # The run keeps the fine-tuned model, so it stays in its own files.
    assert str(model) in _Page(workdir / "report_model_transfer.html").text
    assert str(model) not in _Page(workdir / "report.html").text
    assert not evaluates(f"--model={model}")
    assert not evaluates()
    assert command(workdir, "--phase=report", "--split=tset") == 1
    assert "--split must be one of" in capsys.readouterr().err


@pytest.mark.slow
def test_it_says_what_the_workdir_does_not_hold(workdir, command):
    for name in ("audit.json", "metrics.jsonl", "timings.jsonl"):
        (workdir / name).unlink()
    assert command(workdir, "--phase=report") == 0
    text = _Page(workdir / "report.html").text
    assert "This workdir holds no metrics.jsonl" in text
    assert "--phase=prepare" in text and "writes audit.json" in text
    (workdir / "config.json").unlink()
    assert (
        command(
            workdir,
            "--phase=report",
            "--image_size=32",
            "--backbone=tiny_net",
            "--augmentation=none",
        )
        == 0
    )
    assert "holds no config.json" in _Page(workdir / "report.html").text


@pytest.mark.slow
def test_epochs_without_validation_are_shown_as_such(workdir, command):
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    refit = [
        x
        | {"phase": "refit", "validation_loss": None}
        | {"validation_accuracy": None}
        for x in lines
        if x["phase"] == "finetune"
    ]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, *refit])
    path.write_text(text)
    done = workdir / "checkpoints" / "refit" / "done.json"
    done.parent.mkdir()
    done.write_text(json.dumps({"best_epoch": 2}))
    assert command(workdir, "--phase=report") == 0
    shown = _Page(workdir / "report.html")
    assert "Refit 2 epochs on train and validation, so" in shown.text
    assert "Fine-tune – validation" not in shown.text
    assert re.search(r"Refit 2 \S+ \S+ % – – ", shown.text)
    accuracy = dict(shown.scripts)["chart-accuracy"]["data"]
    *_, drawn = (t["y"] for t in accuracy if t["name"] == "validation")
    assert drawn == [None, None]


@pytest.mark.slow
def test_pairs_across_splits_are_warned_of(workdir, command):
    path = workdir / "audit.json"
    audit = json.loads(path.read_text())
    found = audit["near_duplicates"]
    found["num_pairs_across_splits"] = 1
    found["pairs"][0]["splits"] = ["train", "test"]
    path.write_text(json.dumps(audit))
    assert command(workdir, "--phase=report") == 0
    shown = _Page(workdir / "report.html")
    assert ("div", "role", "alert") in shown.attributes
    assert "1 pair of near-duplicates across splits" in shown.text
    assert found["pairs"][0]["ids"][0] in shown.text


def _add_findings(path: pathlib.Path) -> None:
    """Changes an audit.json to one that has found all kinds of faults."""
    audit = json.loads(path.read_text())
    audit["imbalance"] = 4.0
    audit["notes"] = ["skipped: 1 .txt file"]
    audit["near_duplicates"]["pairs"][0]["classes"] = ["Tulip", "Iris"]
    audit["near_duplicates"]["num_pairs_across_classes"] = 1
    audit["undecodable"] = [
        {"split": "", "id": f"broken{k}.jpg", "error": "no image"}
        for k in range(23)
    ]
    audit["damaged"] = [{"split": "test", "id": "cut.jpg", "error": "half"}]
    pairs = audit["near_duplicates"]["pairs"]
    audit["faults"] = [
        {"kind": "dark", "split": split, "id": image_id, "value": 50.0}
        for pair in pairs[:4]
        for split, image_id in zip(pair["splits"], pair["ids"], strict=True)
    ]
    audit["series"] = {
        "num_series_across_splits": 1,
        "num_images_across_splits": 2,
        "series": [{"ids": ["x1.jpg", "x2.jpg"], "splits": ["train", "test"]}],
    }
    path.write_text(json.dumps(audit))


@pytest.mark.slow
def test_what_the_audit_found_is_shown(workdir, command):
    _add_findings(workdir / "audit.json")
    before = (workdir / "report.html").stat().st_size
    assert command(workdir, "--phase=report") == 0
    shown = _Page(workdir / "report.html")
    for text in (
        "skipped: 1 .txt file",
        "1 pair of near-duplicates across classes",
        "23 files can’t be decoded",
        "broken19.jpg : no image",
        "And 3 more, in audit.json",
        "1 damaged image used all the same",
        "cut.jpg : half",
        "4.0 times the images of its smallest",
        "131 pairs of near-duplicates within a class and a split",
        "And 125 more, in audit.json",
        "Dark: 8 images",
        "And 2 more, in audit.json",
        "1 series of photographs divided between splits",
        "x1.jpg train",
        "x2.jpg test",
    ):
        assert text in shown.text, text
    assert "broken20.jpg" not in shown.text
    alts = [v for tag, name, v in shown.attributes if name == "alt"]
    assert sum(", Tulip" in alt or ", Iris" in alt for alt in alts) >= 2
    # The pictures are few and small.
    assert (workdir / "report.html").stat().st_size - before < 400_000


def _picture(seed: int) -> bytes:
    pixels = fakes.make_smooth_image(60, 80, seed)
    return tf.io.encode_jpeg(pixels).numpy()


def _audit_of(pairs, dataset="fake/config/1.0.0") -> dict:
    keys = ("ids", "splits", "classes")
    found = [dict(zip(keys, pair, strict=True)) for pair in pairs]
    return {"dataset": dataset, "near_duplicates": {"pairs": found}}


def test_a_head_that_was_solved_for_has_no_curves():
    solved = record.StageRecord("transfer", [{"epoch": 1}], 1)
    assert training_curves.training_charts([solved]) == []
    assert training_curves.training_charts([]) == []


def test_near_duplicates_are_shown_by_kind_and_bounded():
    source = fakes.FakeSource(
        ["rose", "lily"],
        {
            "train": [(f"{k}", k % 2, _picture(k)) for k in range(9)],
            "test": [("0", 0, _picture(0)), ("bad", 0, b"no image")],
        },
    )
    ours = ["rose", "rose"]
    audit = _audit_of(
        [
            *(([f"{k}", "8"], ["train", "train"], ours) for k in range(8)),
            (["0", "0"], ["train", "test"], ours),
            (["1", "bad"], ["train", "test"], ["lily", "rose"]),
        ]
    )
    found = audit_findings.show(audit, source)
    assert found.others.num_more == 2
    assert [p[0].file_name for p in found.others.shown] == list("012345")
    ((one, other),) = found.across_classes.shown
    assert (one.label, other.label, other.split) == ("lily", "rose", "test")
    assert one.picture.startswith("data:image/jpeg")
    # An image that can't be read any more is named all the same.
    assert (other.file_name, other.picture) == ("bad", "")
    # Another data set may hold other images of the same names.
    audit["dataset"] = "fake/other/1.0.0"
    found = audit_findings.show(audit, source)
    assert {c.picture for p in found.others.shown for c in p} == {""}


def test_the_worst_images_of_each_fault_are_shown():
    rows = [(f"{k}", 0, _picture(k)) for k in range(9)]
    source = fakes.FakeSource(["rose"], {"train": rows})
    audit = _audit_of([])
    audit["faults"] = [
        {"kind": kind, "split": "train", "id": f"{k}", "value": 1.0}
        for kind, number in (("blurred", 8), ("dark", 1))
        for k in range(number)
    ]
    found = audit_findings.show(audit, source).faults
    assert list(found) == ["blurred", "dark"]
    blurred, dark = found.values()
    assert [one.file_name for (one,) in blurred.shown] == list("012345")
    assert (blurred.num_more, dark.num_more) == (2, 0)
    assert all(one.picture.startswith("data:") for (one,) in blurred.shown)


def test_every_augmentation_is_described():
    """Each flag that changes the images changes what the page says."""
    plain = augmented_views.describe(InputConfig(rotation=5.0))
    for flag in flags_of(InputConfig):
        if flag.kind is not Kind.RUN or flag.name == "image_size":
            continue
        value = {bool: False, float: 0.05, str: flag.choices[-1:]}
        changed = value[type(flag.default)]
        changed = changed[0] if isinstance(changed, tuple) else changed
        config = InputConfig(**{"rotation": 5.0, flag.name: changed})
        assert augmented_views.describe(config) != plain, flag.name
    nothing = InputConfig(augmentation="none")
    assert augmented_views.describe(nothing) == "nothing is changed"


@pytest.mark.slow
def test_training_command_parses_to_the_same_flags(trained):
    recorded = json.loads((trained / "config.json").read_text())["flags"]
    recorded |= {"data_dir": "/a folder/it's", "horizontal_flip": False}
    recorded["of_another_version"] = 1
    text = reproduce.command(reproduce.changed_flags(recorded))
    words = shlex.split(text.replace("\\\n", " "))
    assert words[0] == "flowers17-tfdata"
    config = flags.parse(words)
    assert config.data.data_dir == "/a folder/it's"
    assert config.input.horizontal_flip is False
    assert config.optimization.finetune_learning_rate == 1e-2
    assert config.workdir == str(trained)
    # Defaults need no flag.
    assert "--rotation" not in text


def test_ece_of_a_worked_example():
    # With 5 bins, (0.4, 0.6] holds 0.5 and 0.6, one correct: |1/2 - 0.55|;
    # (0.8, 1] holds 0.9, 0.9, 1, two correct: |2/3 - 2.8/3|.
    result = reliability.measure(
        np.array([0.5, 0.6, 0.9, 0.9, 1.0]),
        np.array([True, False, True, False, True]),
        5,
    )
    assert result.bins == [
        pytest.approx((0.4, 0.6, 2, 1, 0.55)),
        pytest.approx((0.8, 1.0, 3, 2, 2.8 / 3)),
    ]
    assert result.ece == pytest.approx(2 / 5 * 0.05 + 3 / 5 * 0.8 / 3)
    assert result.confidence == pytest.approx(0.78)
    assert result.accuracy == pytest.approx(0.6)


@pytest.mark.parametrize(("n", "bins"), [(12, 5), (90, 9), (260, 15)])
def test_number_of_bins(n, bins):
    assert reliability.choose_num_bins(n) == bins


def test_choice_of_mistakes():
    probabilities = np.array(
        [
            [0.8, 0.1, 0.1],  # correct, certain
            [0.1, 0.7, 0.2],  # wrong, less confident
            [0.05, 0.05, 0.9],  # wrong, most confident
            [0.4, 0.35, 0.25],  # wrong, uncertain
            [0.6, 0.3, 0.1],  # correct
        ]
    )
    predictions = Predictions(
        tuple("abcde"), np.array([0, 0, 1, 1, 0]), np.log(probabilities)
    )
    choice = mistakes.choose(predictions, most=2)
    # The model was sure of one.
    assert choice.worst == [2]
    assert choice.least_certain == [3, 1]
    assert choice.exemplars == {0: 0}
    unsure = predictions._replace(logits=predictions.logits / 10)
    choice = mistakes.choose(unsure, most=2)
    assert choice.worst == [2, 1]
    assert choice.least_certain == [3]


def test_a_single_class_has_no_mistakes():
    predictions = Predictions(("a",), np.array([0]), np.zeros([1, 1]))
    assert mistakes.choose(predictions, most=2) == ([], [], {0: 0})


def test_most_confused_classes():
    evaluation = {
        "class_names": ["a", "b", "c"],
        "confusion_matrix": [[5, 3, 1], [0, 9, 0], [1, 1, 0]],
    }
    assert tables.most_confused(evaluation) == [
        ("a", "b", 3, pytest.approx(1 / 3)),
        ("c", "a", 1, 0.5),
        ("c", "b", 1, 0.5),
        ("a", "c", 1, pytest.approx(1 / 9)),
    ]


def _colour_model() -> keras.Model:
    """Returns a model of red (class 0) and green (class 1); blue is neither."""
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.AveragePooling2D(2)(inputs)
    backbone = keras.Model(inputs, x, name="tinynet")
    image = keras.Input([8, 8, 3])
    x = keras.layers.GlobalAveragePooling2D(name="pooler")(backbone(image))
    x = keras.layers.Dropout(0.5)(x)
    logits = keras.layers.Dense(2, dtype="float32", name="predictions")(x)
    model = keras.Model(image, logits)
    kernel = np.array([[1.0, -1], [-1, 1], [0, 0]])
    model.get_layer("predictions").set_weights([kernel, np.zeros(2)])
    return model


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_grad_cam_finds_the_part_that_speaks_for_a_class(policy):
    keras.config.set_dtype_policy(policy)
    image = np.zeros([8, 8, 3], np.uint8)
    image[:4, :4, 0] = 200
    image[4:, 4:, 1] = 100
    image[:4, 4:, 2] = 255
    cam = grad_cam.GradCam(_colour_model(), lambda x: x / 255)
    (maps,) = cam.feature_maps(image[np.newaxis])
    assert maps.dtype == tf.float32
    # 4 x 4 cells: red in the upper left, green in the lower right quarter.
    red, green = np.zeros([2, 4, 4])
    red[:2, :2] = green[2:, 2:] = 1
    np.testing.assert_allclose(cam.heat(maps, 0), red, atol=1e-6)
    np.testing.assert_allclose(cam.heat(maps, 1), green, atol=1e-6)
    painted = grad_cam.overlay(image, cam.heat(maps, 0)).astype(int)
    # Without heat, the image is gray.
    assert np.ptp(painted[-1, 0]) == 0
    assert np.ptp(painted[0, 0]) > 50


def test_grad_cam_declines_other_models():
    model = keras.Sequential(
        [keras.Input([8, 8, 3]), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    with pytest.raises(grad_cam.NotExplainable, match="pooler"):
        grad_cam.GradCam(model, lambda x: x)


@pytest.fixture(scope="module")
def source(data_dir, dummy_archive):
    return session.open_source(
        DataConfig(archive=str(dummy_archive), data_dir=str(data_dir))
    )


@pytest.mark.parametrize(
    ("augmentation", "augment_on", "cache"),
    [
        ("affine", "host", "memory"),
        ("affine", "host", "none"),
        ("affine", "device", "memory"),
        ("none", "host", "memory"),
        ("none", "device", "none"),
    ],
)
def test_views_are_of_the_picture_they_stand_beside(
    source, augmentation, augment_on, cache
):
    config = InputConfig(
        image_size=32,
        cache=cache,
        augmentation=augmentation,
        augment_on=augment_on,
    )
    views = augmented_views.make_views(
        source, config, num_images=3, num_views=4, seed=0
    )
    assert views.shape == (3, 5, 32, 32, 3)
    changed = (views[:, 1:] != views[:, :1]).any(axis=(2, 3, 4))
    assert changed.all() if augmentation != "none" else not changed.any()
    # The dummy pictures are tinted by class.
    tints = views.mean(axis=(2, 3))
    for k in range(3):
        distances = np.linalg.norm(
            tints[k, 1:, None] - tints[None, :, 0], axis=2
        )
        assert (distances.argmin(axis=1) == k).all()


def test_first_view_is_what_evaluation_sees(source):
    config = InputConfig(image_size=32, cache="memory", augment_on="host")
    views = augmented_views.make_views(
        source, config, num_images=2, num_views=1, seed=0
    )
    batches = make_eval_dataset(
        load_examples(source, "train", config),
        config,
        lambda x: x,
        global_batch_size=1,
    )
    first = next(iter(batches)).inputs[0]
    np.testing.assert_array_equal(views[0, 0], first)


@pytest.mark.parametrize(
    ("shape", "expected"), [((100, 300), (50, 150)), ((20, 30), (20, 30))]
)
def test_pictures_keep_their_aspect_ratio(shape, expected):
    uri = pictures.to_data_uri(fakes.make_smooth_image(*shape), 150)
    encoded = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    assert tf.io.decode_jpeg(encoded).shape == (*expected, 3)


def _large_evaluation(num_classes: int) -> dict:
    rng = np.random.default_rng(0)
    confusion = np.diag(rng.integers(20, 50, num_classes))
    wrong = rng.integers(0, num_classes, [2, 4 * num_classes])
    np.add.at(confusion, tuple(wrong), 1)
    names = [f"class {k}" for k in range(num_classes)]
    return {
        "class_names": names,
        "confusion_matrix": confusion.tolist(),
        "per_class": scores.per_class_scores(confusion, names),
    }


def test_a_thousand_classes_have_a_table_but_no_matrix():
    evaluation = _large_evaluation(1000)
    assert result_charts.confusion_chart(evaluation) is None
    table = tables.per_class(evaluation)
    assert len(table) == 1000
    f1 = [row["f1"] for row in table]
    assert f1 == sorted(f1)


def _luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of `#rrggbb`."""
    channels = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(
        channels <= 0.04045,
        channels / 12.92,
        ((channels + 0.055) / 1.055) ** 2.4,
    )
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", ["report.css", "dark.css"])
@pytest.mark.parametrize(
    ("text", "grounds"),
    [
        *(
            (f"--{t}", ("--surface", "--page", "--surface-2"))
            for t in ("ink", "body", "muted")
        ),
        *(
            (f"--{t}", ("--surface", "--page"))
            for t in ("accent", "right", "wrong")
        ),
        ("--ink", ("--warn-surface", "--accent-soft")),
        ("--hit-text", ("--hit-low", "--hit-high")),
        ("--miss-text", ("--miss-low", "--miss-high")),
    ],
)
def test_text_can_be_read_in_both_themes(theme, text, grounds):
    source = (TEMPLATES / theme).read_text(encoding="utf-8")
    colours = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", source))
    for ground in grounds:
        a, b = _luminance(colours[text]), _luminance(colours[ground])
        # WCAG 2.2, criterion 1.4.3, level AA.
        assert (max(a, b) + 0.05) / (min(a, b) + 0.05) >= 4.5, ground


_PROBE = """<script>
const look = () => ({
  theme: document.documentElement.dataset.theme,
  background: getComputedStyle(document.body).backgroundColor,
  axis: document.querySelector(".plot .xtick text").style.fill,
});
addEventListener("load", () => setTimeout(() => {
  const plots = [...document.querySelectorAll(".plot")];
  const before = look();
  document.getElementById("theme").click();
  const after = look();
  const f1 = document.querySelectorAll(".sortable th[aria-sort] button")[4];
  const column = () => [...document.querySelectorAll(
    ".sortable tbody tr")].map((row) => Number(row.children[5].textContent));
  const ascending = column();
  f1.click();
  const rows = [...document.querySelectorAll(".sortable tbody tr")];
  const visible = () => rows.filter((row) => row.offsetHeight).length;
  const at_first = visible();
  document.getElementById("show-all")?.click();
  // Without JavaScript, the system's choice counts.
  delete document.documentElement.dataset.theme;
  parent.postMessage({
    problems, before, after, bare: look().background,
    ascending, descending: column(), at_first, in_all: visible(),
    plots: plots.length,
    drawn: plots.filter((plot) => plot.querySelector("svg.main-svg")).length,
    gap: Math.min(...[...document.querySelectorAll(
      "section > .card + :is(.card, .grid)")].map((card) =>
      card.getBoundingClientRect().top
        - card.previousElementSibling.getBoundingClientRect().bottom)),
    width: innerWidth, scroll_width: document.documentElement.scrollWidth,
    requests: performance.getEntriesByType("resource")
      .map((entry) => entry.name).filter((name) => !name.startsWith("data:")),
  }, "*");
}, 500));
</script>"""


def _look(path: pathlib.Path, folder: pathlib.Path, width: int, dark: bool):
    """Opens a report in a frame; returns what `_PROBE` posts."""
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    return browser.look(path, _PROBE, folder, width, scheme)


@pytest.mark.slow
@pytest.mark.parametrize("width", [PHONE_WIDTH, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(trained, tmp_path, width, dark):
    seen = _look(trained / "report.html", tmp_path, width, dark)
    assert seen["problems"] == []
    assert seen["requests"] == []
    assert seen["width"] == width
    assert seen["scroll_width"] <= width
    assert seen["drawn"] == seen["plots"] == 6
    assert seen["before"]["theme"] == ("dark" if dark else "light")
    assert seen["after"]["theme"] == ("light" if dark else "dark")
    for part in ("background", "axis"):
        assert seen["before"][part] != seen["after"][part]
    assert seen["bare"] == seen["before"]["background"]
    channels = re.findall(r"\d+", seen["before"]["background"])
    assert (sum(map(int, channels)) < 3 * 128) == dark
    assert seen["ascending"] == sorted(seen["ascending"])
    assert seen["descending"] == sorted(seen["ascending"], reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("width", [PHONE_WIDTH, 1280])
def test_no_two_boxes_touch(workdir, command, tmp_path, width):
    _add_findings(workdir / "audit.json")
    assert command(workdir, "--phase=report") == 0
    seen = _look(workdir / "report.html", tmp_path, width, dark=False)
    assert seen["gap"] >= 8
    assert seen["scroll_width"] <= width


@pytest.mark.slow
def test_a_thousand_classes_in_a_browser(
    workdir, command, tmp_path, monkeypatch
):
    render = page.render
    evaluation = _large_evaluation(1000)

    def render_large(context):
        large = {
            "confusion_chart": result_charts.confusion_chart(evaluation),
            "confused": tables.most_confused(evaluation),
            "per_class": tables.per_class(evaluation),
        }
        return render(context | large)

    monkeypatch.setattr(page, "render", render_large)
    assert command(workdir, "--phase=report") == 0
    seen = _look(workdir / "report.html", tmp_path, PHONE_WIDTH, dark=False)
    assert seen["problems"] == []
    assert seen["scroll_width"] <= PHONE_WIDTH
    assert seen["drawn"] == seen["plots"] == 5
    assert (seen["at_first"], seen["in_all"]) == (50, 1000)
    # All rows are sorted, not only the visible ones.
    assert seen["descending"] == sorted(seen["ascending"], reverse=True)
