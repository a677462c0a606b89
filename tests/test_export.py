"""--phase=export: every format predicts what the trained model predicts."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import io
import json
import pathlib
import re
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from ai_edge_litert import interpreter as litert
from PIL import Image

from flowers17_tfdata import api, cli, files, terminal
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.data import decode
from flowers17_tfdata.data.source import Correction
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.models import saved_models
from flowers17_tfdata.phases.export import (
    model_card,
    network,
    onnx_file,
    parity,
    saved_model,
    tflite,
)
from flowers17_tfdata.phases.export.export import check_target
from flowers17_tfdata.scoring import predictions, scores
from flowers17_tfdata.scoring.predictions import Predictions
from flowers17_tfdata.trained_model import TrainedModel
from tests import fakes

ROOT = pathlib.Path(__file__).parents[1]
FORMATS = ("saved_model", "keras", "tflite_float16", "tflite_int8", "onnx")


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir with a trained tiny model, and the flags that made it."""

    workdir: pathlib.Path
    flags: tuple[str, ...]

    @property
    def folder(self) -> pathlib.Path:
        return self.workdir / "export"

    @property
    def report(self) -> dict:
        return json.loads((self.folder / "parity.json").read_text())

    def export(self, *flags: str) -> int:
        return cli.main(
            [
                "main.py",
                "--phase=export",
                f"--workdir={self.workdir}",
                # A process may have one MirroredStrategy.
                "--strategy=default",
                *flags,
            ]
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_flags):
    """A run in mixed precision, exported in all formats."""
    workdir = tmp_path_factory.mktemp("run")
    flags = (
        f"--workdir={workdir}",
        *tiny_flags,
        "--finetune_epochs=3",
        "--finetune_learning_rate=1e-2",
        "--precision=mixed_bfloat16",
        "--strategy=default",
    )
    policy = keras.config.dtype_policy()
    assert cli.main(["main.py", *flags]) == 0
    result = Run(workdir, flags)
    assert result.export(f"--export_formats={','.join(FORMATS)}") == 0
    keras.config.set_dtype_policy(policy)
    return result


@pytest.fixture(autouse=True)
def _console():
    yield
    terminal.configure("normal")


def _jpeg(pixels: np.ndarray, kind: str = "JPEG", orientation: int = 1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    options = {"quality": 95, "exif": exif} if kind == "JPEG" else {}
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


FILES = [
    _jpeg(fakes.make_smooth_image(40, 56, seed=1)),
    _jpeg(fakes.make_smooth_image(32, 32, seed=2), "PNG"),
    _jpeg(fakes.make_smooth_image(90, 33, seed=3), orientation=6),
    _jpeg(fakes.make_smooth_image(64, 64, seed=4), "BMP"),
]


def _pixels(files) -> np.ndarray:
    uprights = [tf.constant(decode.upright(data)) for data in files]
    return np.stack([decode.decode_and_resize(data, 32) for data in uprights])


def _expected(run, files) -> np.ndarray:
    """The probabilities of the exported Keras model, computed here."""
    model = keras.models.load_model(run.folder / "model.keras", compile=False)
    inputs = fakes.preprocess_input(_pixels(files).astype(np.float32))
    return predictions.softmax(np.asarray(model(inputs, training=False)))


def _serve(run):
    loaded = tf.saved_model.load(str(run.folder / "saved_model"))
    return loaded.signatures["serving_default"]


@pytest.mark.slow
def test_the_folder_holds_every_format(run):
    assert {path.name for path in run.folder.iterdir()} == {
        *("saved_model", "model.keras", "model.onnx"),
        *("model_float16.tflite", "model_int8.tflite"),
        *("labels.txt", "parity.json", "README.md", "serve.py", "pictures"),
    }
    # Nothing is left beside it.
    assert list(run.workdir.glob(".*export*")) == []
    names = (run.folder / "labels.txt").read_text().splitlines()
    assert names[:2] == ["Buttercup", "Colts Foot"]
    assert len(names) == 17


# Rounded weights move pictures across a threshold.
_LEAST_TRUST = {
    **{"saved_model": 0.98, "keras": 0.98, "onnx": 0.98},
    **{"tflite_float16": 0.95, "tflite_int8": 0.2},
}


@pytest.mark.slow
def test_the_report_compares_with_the_evaluation(run):
    report = run.report
    rows = {row["format"]: row for row in report["formats"]}
    assert set(rows) == {"trained", *FORMATS}
    evaluation = json.loads((run.workdir / "evaluation.json").read_text())
    trained = rows.pop("trained")
    assert trained["accuracy"] == pytest.approx(evaluation["accuracy"])
    assert trained["accuracy"] > 0.2
    # One column shows the cost of the precision, the other that of the format.
    assert trained["max_difference"] > 1e-4
    assert trained["max_difference_to_trained"] == 0
    assert rows["keras"]["max_difference"] == 0
    assert rows["saved_model"]["max_difference"] < 1e-5
    assert rows["onnx"]["max_difference"] < 1e-5
    assert 0 < rows["tflite_float16"]["max_difference"] < 1e-2
    assert rows["tflite_int8"]["top_1_agreement"] > 0.9
    for row in rows.values():
        assert row["max_difference_to_trained"] > 0
        assert row["trust_agreement"] > _LEAST_TRUST[row["format"]]
        assert row["latency_ms"] > 0
        assert row["megabytes"] > 0
        one_at_a_time = row["format"].startswith("tflite")
        assert (row["images_per_sec"] is None) == one_at_a_time
    assert report["trained_precision"] == "mixed_bfloat16"
    assert (report["split"], report["num_examples"]) == ("test", 260)


# Handles the body of a request as TensorFlow Serving does.
CLIENT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "flowers17_tfdata":
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import base64, json
import tensorflow as tf

serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
request = json.load(sys.stdin)
files = [base64.b64decode(x["b64"]) for x in request["instances"]]
answer = serve(image_bytes=tf.constant(files))
rows = [
    {"probabilities": p.tolist(), "labels": [x.decode() for x in names]}
    for p, names in zip(answer["probabilities"].numpy(),
                        answer["labels"].numpy())
]
assert "flowers17_tfdata" not in sys.modules
print(json.dumps({"predictions": rows}))
"""


@pytest.mark.slow
def test_saved_model_loads_without_this_package(run, tmp_path):
    body = {"instances": [{"b64": base64.b64encode(x).decode()} for x in FILES]}
    result = subprocess.run(
        [sys.executable, "-c", CLIENT, str(run.folder / "saved_model")],
        input=json.dumps(body),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["predictions"]
    expected = _expected(run, FILES)
    np.testing.assert_allclose(
        [row["probabilities"] for row in rows], expected, atol=1e-5
    )
    names = (run.folder / "labels.txt").read_text().splitlines()
    for row, chances in zip(rows, expected, strict=True):
        best = np.argsort(-chances)[:5]
        assert row["labels"] == [names[k] for k in best]


@pytest.mark.slow
def test_the_signature_is_what_the_documentation_says(run):
    serve = _serve(run)
    ((name, spec),) = serve.structured_input_signature[1].items()
    assert (name, spec.dtype, spec.shape.as_list()) == (
        *("image_bytes", tf.string),
        [None],
    )
    outputs = {
        k: (v.dtype, v.shape.as_list())
        for k, v in serve.structured_outputs.items()
    }
    assert outputs == {
        "probabilities": (tf.float32, [None, 17]),
        "unknown": (tf.bool, [None]),
        "unknown_score": (tf.float32, [None]),
        "classes_at_95": (tf.bool, [None, 17]),
        "labels": (tf.string, [None, 5]),
        "scores": (tf.float32, [None, 5]),
    }


@pytest.mark.slow
def test_labels_and_scores_are_sorted_by_score(run):
    loaded = tf.saved_model.load(str(run.folder / "saved_model"))
    answer = loaded.signatures["serving_default"](tf.constant(FILES))
    names = [n.decode() for n in loaded.class_names().numpy()]
    assert names == (run.folder / "labels.txt").read_text().splitlines()
    chances = answer["probabilities"].numpy()
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-5)
    for k, row in enumerate(chances):
        scores = answer["scores"][k].numpy()
        np.testing.assert_array_equal(scores, np.sort(row)[::-1][:5])
        ids = [names.index(n.decode()) for n in answer["labels"][k].numpy()]
        np.testing.assert_array_equal(row[ids], scores)


@pytest.mark.slow
@pytest.mark.parametrize("broken", [b"", b"no image", FILES[0][:300]])
def test_a_broken_image_fails_the_request(run, broken):
    with pytest.raises(tf.errors.InvalidArgumentError):
        _serve(run)(tf.constant([FILES[0], broken]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "tolerance"),
    [("model_float16.tflite", 0.01), ("model_int8.tflite", 0.25)],
)
def test_tflite_takes_pixels(run, file, tolerance):
    classify = tflite.load(run.folder / file)
    np.testing.assert_allclose(
        classify(_pixels(FILES))["probabilities"],
        _expected(run, FILES),
        atol=tolerance,
    )


@pytest.mark.slow
def test_every_format_gives_the_answers_of_predict(run, tmp_path):
    paths = []
    for k, content in enumerate(FILES):
        paths.append(str(tmp_path / f"{k}.jpg"))
        pathlib.Path(paths[-1]).write_bytes(content)
    # In float32; the workdir's own model computes in bfloat16.
    predictor = api.load(run.folder, precision="float32")
    expected = predictor.predict(paths, top_k=17)
    names = predictor.class_names
    pixels = _pixels(FILES)
    answers = {
        "saved_model": saved_model.load(run.folder / "saved_model")(FILES),
        "onnx": onnx_file.load(run.folder / "model.onnx")(pixels),
        "float16": tflite.load(run.folder / "model_float16.tflite")(pixels),
    }
    for name, found in answers.items():
        # Rounding of the weights moves the scores a little.
        scale = 1.0 if name == "float16" else 1e-3
        for k, one in enumerate(expected):
            assert one.unknown_score == pytest.approx(
                found["unknown_score"][k], rel=0.01, abs=0.3 * scale
            ), name
            assert one.unknown == found["unknown"][k], name
            row = found["probabilities"][k]
            for label, probability in one.classes:
                assert probability == pytest.approx(
                    row[names.index(label)], abs=0.02 * scale + 1e-5
                ), name
            members = found["classes_at_95"][k]
            inside = [c for c in np.argsort(-row) if members[c]]
            assert one.classes_at_95 == tuple(names[c] for c in inside), name


@pytest.mark.slow
def test_tflite_interfaces_are_the_same(run):
    for file in ("model_float16.tflite", "model_int8.tflite"):
        interpreter = litert.Interpreter(str(run.folder / file))
        (entry,) = interpreter.get_input_details()
        assert (entry["dtype"], entry["shape"].tolist()) == (
            *(np.float32,),
            [1, 32, 32, 3],
        )
        outputs = [
            (entry["dtype"], entry["shape"].tolist())
            for entry in interpreter.get_output_details()
        ]
        for entry in (
            (np.float32, [1, 17]),
            (np.float32, [1]),
            (np.bool_, [1]),
            (np.bool_, [1, 17]),
        ):
            assert entry in outputs


@pytest.mark.slow
def test_int8_is_int8_between_its_ends(run):
    interpreter = litert.Interpreter(str(run.folder / "model_int8.tflite"))
    # Feature maps; what follows the logits and the features is arithmetic.
    maps = [
        tensor
        for tensor in interpreter.get_tensor_details()
        if len(tensor["shape"]) == 4
    ]
    floats = [x["name"] for x in maps if x["dtype"] == np.float32]
    assert len(maps) > 3
    assert len(floats) == 1, floats


@pytest.mark.slow
def test_onnx_takes_batches(run):
    classify = onnx_file.load(run.folder / "model.onnx")
    np.testing.assert_allclose(
        classify(_pixels(FILES))["probabilities"],
        _expected(run, FILES),
        atol=1e-5,
    )


@pytest.mark.slow
def test_onnx_takes_a_network_with_constants(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Normalization(
        mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0]
    )(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    subject = network.Network(model, lambda images: images, None)
    onnx_file.convert(subject, tmp_path / "model.onnx")
    images = _pixels(FILES)
    np.testing.assert_allclose(
        onnx_file.load(tmp_path / "model.onnx")(images)["probabilities"],
        subject.answer(tf.cast(images, tf.float32))["probabilities"],
        # The logits are up to 70.
        atol=1e-4,
    )


@pytest.mark.slow
def test_a_network_that_a_converter_refuses_is_one_line(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Lambda(lambda x: tf.math.igamma(x, x)),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    subject = network.Network(model, lambda images: images, None)
    with pytest.raises(UserError, match="onnx can't be made of this network"):
        onnx_file.convert(subject, tmp_path / "model.onnx")
        onnx_file.load(tmp_path / "model.onnx")
    with pytest.raises(UserError, match="float16 can't be made of this"):
        tflite.convert(subject, tmp_path / "float16.tflite")


@pytest.mark.slow
def test_onnx_without_its_packages_is_one_line(run, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "onnxruntime" else find_spec(name),
    )
    kept = (run.folder / "parity.json").stat().st_mtime_ns
    assert run.export("--export_formats=onnx") == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if line.startswith("error: ")] == [
        "error: --export_formats=onnx needs onnxruntime: "
        "pip install 'flowers17_tfdata[onnx]'"
    ]
    assert (run.folder / "parity.json").stat().st_mtime_ns == kept


@pytest.mark.slow
def test_the_keras_file_is_a_classifier_of_this_program(run, capsys):
    path = run.folder / "model.keras"
    assert saved_models.read_extras(path)["class_names"][0] == "Buttercup"
    flags = [*run.flags, "--phase=evaluate", f"--model={path}"]
    flags += ["--precision=float32", f"--workdir={run.workdir / 'again'}"]
    assert cli.main(["main.py", *flags]) == 0
    row = next(r for r in run.report["formats"] if r["format"] == "keras")
    assert f"accuracy {row['accuracy']:.4f}" in capsys.readouterr().out


# The model in float32 ----------------------------------------------------


def _nested(policy: str) -> keras.Model:
    keras.utils.set_random_seed(5)
    keras.config.set_dtype_policy(policy)
    backbone = fakes.build_tiny_net((32, 32, 3))
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D(name="pooler")(backbone(inputs))
    return keras.Model(inputs, keras.layers.Dense(4, dtype="float32")(x))


def test_to_float32_is_the_model_that_float32_would_have_built():
    mixed, full = _nested("mixed_bfloat16"), _nested("float32")
    keras.config.set_dtype_policy("mixed_bfloat16")
    rebuilt = network.to_float32(mixed)
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3))
    expected = np.asarray(full(images))
    assert np.abs(np.asarray(mixed(images)) - expected).max() > 1e-4
    np.testing.assert_array_equal(np.asarray(rebuilt(images)), expected)
    assert "bfloat16" not in json.dumps(rebuilt.get_config(), default=str)


# Comparison --------------------------------------------------------------


def _answers(probabilities, scores) -> dict[str, np.ndarray]:
    probabilities = np.array(probabilities, np.float32)
    scores = np.array(scores, np.float32)
    return {
        "probabilities": probabilities,
        "unknown_score": scores,
        "unknown": scores > 2.2,
        "classes_at_95": probabilities >= 0.35,
    }


def test_compare_counts_and_measures(tmp_path):
    reference = _answers([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]], [0, 1, 2])
    trained = _answers([[0.7, 0.3], [0.2, 0.8], [0.4, 0.6]], [0, 1, 2])
    found = _answers([[0.4, 0.6], [0.3, 0.7], [0.6, 0.4]], [0, 1, 2.5])
    (tmp_path / "folder").mkdir()
    for name in ("a", "b"):
        (tmp_path / "folder" / name).write_bytes(bytes(5_000_000))
    row = parity.compare(
        "onnx",
        tmp_path / "folder",
        found,
        labels=np.array([1, 1, 1]),
        reference=reference,
        trained=trained,
    )
    assert (row.pop("format"), row.pop("file")) == ("onnx", "folder")
    assert row == pytest.approx(
        {
            "megabytes": 10.0,
            "accuracy": 2 / 3,
            "max_difference": 0.3,
            "max_difference_to_trained": 0.3,
            "top_1_agreement": 2 / 3,
            "top_1_agreement_with_trained": 1 / 3,
            # The third is unknown in one of the two, the first has another set.
            "trust_agreement": 1 / 3,
            "max_score_difference": 0.5,
        }
    )


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_an_exact_format_that_differs_fails(difference):
    row = {"format": "saved_model", "max_difference": difference}
    row["trust_agreement"] = None
    with pytest.raises(UserError, match="saved_model differs"):
        parity.check(row | {"top_1_agreement": 1.0}, "test")
    parity.check(row | {"max_difference": 1e-5, "top_1_agreement": 1}, "test")


def test_a_rounding_format_that_differs_too_much_gets_a_warning(capsys):
    row = {"format": "tflite_int8", "max_difference": 0.2}
    row["trust_agreement"] = 0.9
    parity.check(row | {"top_1_agreement": 0.96}, "test")
    assert capsys.readouterr().out == ""
    parity.check(row | {"top_1_agreement": 0.94}, "test")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "warning: tflite_int8 predicts the Keras model's class"
    )
    assert "94.0% of test, less than 95%" in line
    parity.check(row | {"top_1_agreement": 1, "trust_agreement": 0.5}, "test")
    (line,) = capsys.readouterr().out.splitlines()
    assert "unknown and classes_at_95 for 50.0% of test" in line


class _Source:
    """Sixty examples of three classes, the third rare, in class order."""

    class_names = ("a", "b", "c")
    labels = np.repeat([0, 1, 2], [30, 28, 2])

    def read(self, split):
        assert split == "train"
        images = [
            tf.io.encode_png(np.full([4, 4, 3], label, np.uint8)).numpy()
            for label in self.labels
        ]
        return tf.data.Dataset.from_tensor_slices(
            {"image": images, "label": self.labels}
        )


def test_int8_ranges_are_measured_on_as_many_images_of_every_class():
    images = tflite.representative_images(_Source(), 4, num_images=12)
    labels = [int(image[0, 0, 0]) for image in images]
    assert np.bincount(labels).tolist() == [4, 4, 2]


# The folder --------------------------------------------------------------


def _ours(path: pathlib.Path) -> pathlib.Path:
    path.mkdir()
    text = json.dumps({"written_by": "flowers17_tfdata 0.1.0"})
    (path / "parity.json").write_text(text)
    return path


@pytest.mark.slow
def test_a_folder_of_other_files_is_refused(run, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / "parity.json").write_text('{"written_by": "me"}')
    assert run.export(f"--export_dir={tmp_path}") == 1
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("error: ")
    ]
    assert line.startswith(f"error: --export_dir {tmp_path} must be new")
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_a_file_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match=r"must be a folder; it is a file"):
        check_target(tmp_path / "x")


def test_an_earlier_export_is_replaced_as_a_whole(tmp_path):
    target = _ours(tmp_path / "export")
    with files.whole_folder(target) as new:
        (new / "labels.txt").write_text("a")
        assert (target / "parity.json").exists()
    assert [path.name for path in target.iterdir()] == ["labels.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_failure_leaves_the_earlier_export(tmp_path):
    target = _ours(tmp_path / "export")
    with pytest.raises(UserError), files.whole_folder(target) as new:
        (new / "labels.txt").write_text("a")
        raise OSError("disk full")
    assert [path.name for path in target.iterdir()] == ["parity.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_failed_replacement_brings_the_earlier_export_back(tmp_path):
    target = _ours(tmp_path / "export")
    with pytest.raises(UserError), files.whole_folder(target) as new:
        new.rmdir()
    assert [path.name for path in target.iterdir()] == ["parity.json"]


def test_new_and_empty_folders_are_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b"):
        with files.whole_folder(target) as new:
            (new / "x").write_text("")
        assert (target / "x").exists()


# The model card ----------------------------------------------------------


def _front_matter(card: str) -> dict:
    _, block, _ = card.split("---\n", 2)
    return yaml.safe_load(block)


@pytest.mark.slow
def test_the_card_has_the_facts_of_the_workdir(run):
    card = (run.folder / "README.md").read_text()
    evaluation = json.loads((run.workdir / "evaluation.json").read_text())
    front = _front_matter(card)
    assert front["pipeline_tag"] == "image-classification"
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(evaluation["accuracy"], 4)
    assert f"accuracy **{evaluation['accuracy']:.4f}**" in card
    low, high = evaluation["accuracy_interval"]
    assert f"interval {low:.4f} to {high:.4f}" in card
    tulip = evaluation["per_class"]["Tulip"]
    assert f"| Tulip | {tulip['precision']:.3f} | " in card
    assert "| train | 800 |" in card
    assert "0 of these pairs lie across splits" in card
    assert "| `finetune_epochs` | 3 |" in card
    assert f"tensorflow {tf.__version__}" in card
    for row in run.report["formats"]:
        assert f"| {row['format']} | `{row['file']}` |" in card
    assert "Apache-2.0" in card


def _make_card(
    workdir: pathlib.Path,
    formats=("keras",),
    name="folder:x",
    corrections=(),
    **flags,
) -> str:
    """A card for a made-up model in `workdir`, with `flags` in its record."""
    files.write_json(workdir / "config.json", {"flags": flags})
    source = types.SimpleNamespace(
        name=name,
        class_names=("a|b", "c"),
        split_sizes={"test": 4},
        corrections=corrections,
    )
    trained = TrainedModel(
        workdir / "model_refit.keras",
        _nested("float32"),
        {"trained_splits": ["train", "validation"]},
        fakes.preprocess_input,
        InputConfig(),
        tf.distribute.get_strategy(),
    )
    row = {"megabytes": 1.0, "accuracy": 0.5}
    row |= {"max_difference": 0.0, "top_1_agreement": 1.0}
    rows = [
        row | {"format": name, "file": file}
        for name, file in {
            "trained": "model_refit.keras",
            "keras": "model.keras",
            "onnx": "model.onnx",
        }.items()
        if name in ("trained", *formats)
    ]
    report = {"image_size": 32, "written_by": "flowers17_tfdata 0.1.0"}
    report |= {"split": "test", "trained_precision": "float32"}
    report |= {"formats": rows, "versions": {"keras": "3.15.1"}}
    labels = np.array([0, 0, 1, 1])
    logits = np.eye(2, dtype=np.float32)[[0, 0, 0, 1]]
    predictions = Predictions((), labels, logits)
    return model_card.make_card(
        types.SimpleNamespace(source=source, workdir=workdir),
        trained,
        scores.summarize(predictions, "test", source.class_names),
        report,
    )


def test_the_card_says_what_was_not_done(tmp_path):
    assert "not audited yet:** run `flowers17-tfdata --phase=prepare`" in (
        _make_card(tmp_path)
    )
    audit = {"dataset": "of other data", "near_duplicates": {}}
    files.write_json(tmp_path / "audit.json", audit)
    assert "**Leakage: not audited yet:**" in _make_card(tmp_path)


def test_the_card_tells_of_corrected_labels(tmp_path):
    kept, dropped = ("test", "1", "c", "c"), ("train", "2", "c", "")
    rows = [Correction(*row) for row in (kept, dropped)]
    rows += [Correction("train", str(k), "a|b", "c") for k in range(3, 6)]
    card = _make_card(tmp_path, corrections=rows)
    assert "labels corrected 3, images dropped 1" in card
    assert "corrected" not in _make_card(tmp_path, corrections=rows[:1])


def test_the_card_warns_of_leaks(tmp_path):
    found = {"num_pairs": 9, "num_groups": 8, "num_pairs_across_splits": 7}
    audit = {"dataset": "folder:x", "near_duplicates": found}
    files.write_json(tmp_path / "audit.json", audit)
    card = _make_card(tmp_path)
    assert "7 of these pairs lie across splits" in card
    assert "accuracy on new photographs is likely lower" in card


def test_the_card_says_where_the_labels_come_from(tmp_path):
    for name, where in (
        ("folder:x@01", "photographs in class folders. The digits"),
        ("csv:x@01", "photographs in a table. The digits"),
        ("x/1.0.0", "of TensorFlow Datasets"),
    ):
        assert f"`{name}`" in (card := _make_card(tmp_path, name=name))
        assert where in card


def test_the_card_explains_only_files_that_are_there(tmp_path):
    card = _make_card(tmp_path)
    assert "load_model" in card
    for other in ("saved_model", "Interpreter", "onnx"):
        assert other not in card
    assert "onnxruntime" in _make_card(tmp_path, ("onnx",))


@pytest.mark.slow
def test_the_folder_names_no_path_of_this_machine(run, tmp_path):
    for name in ("README.md", "parity.json"):
        text = (run.folder / name).read_text()
        assert str(run.workdir) not in text
    weights = "/home/me/inception.weights.h5"
    card = _make_card(tmp_path, weights=weights, data_dir="/home/me", seed=3)
    assert "| `weights` | inception.weights.h5 |" in card
    assert "| `seed` | 3 |" in card
    assert "trained on train and validation." in card
    assert "/home/me" not in card


def test_the_card_s_tables_keep_their_columns(tmp_path):
    assert "| a\\|b | 0.667 | 1.000 | 0.800 | 2 |" in _make_card(tmp_path)


@pytest.mark.slow
def test_the_card_of_another_run_s_model_has_no_training_flags(run, tmp_path):
    source = saved_models.model_path(run.workdir, "transfer")
    elsewhere = tmp_path / "model_transfer.keras"
    elsewhere.write_bytes(source.read_bytes())
    out = tmp_path / "export"
    flags = (f"--model={elsewhere}", f"--export_dir={out}")
    assert run.export("--export_formats=keras", *flags) == 0
    card = (out / "README.md").read_text()
    assert "This workdir has no record of it." in card
    report = json.loads((out / "parity.json").read_text())
    # The card has the accuracy of the model that is exported.
    assert f"accuracy **{report['formats'][0]['accuracy']:.4f}**" in card


@pytest.mark.slow
def test_the_card_s_python_runs(run, tmp_path, monkeypatch, capsys):
    for path in run.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "photo.jpg").write_bytes(FILES[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    card = (run.folder / "README.md").read_text()
    blocks = re.findall(
        r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == 6
    expected = _expected(run, FILES[:1])
    names: dict = {}
    for block in blocks:
        names.pop("probabilities", None)
        exec(block, names)
        if "probabilities" in names:
            # int8 rounds, and Pillow resizes differently from TensorFlow.
            np.testing.assert_allclose(
                names["probabilities"], expected, atol=0.25
            )
    labels = (run.folder / "labels.txt").read_text().splitlines()
    assert labels[expected.argmax()] in capsys.readouterr().out
