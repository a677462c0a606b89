"""The Python interface: its answers, its errors, and the README's example."""

from __future__ import annotations

import json
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from flowers17_tfdata import api, cli
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.data.oxford_flowers17 import synthetic
from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.models import classifier
from flowers17_tfdata.predictor import Predictor
from flowers17_tfdata.scoring.predictions import softmax
from flowers17_tfdata.training.inference import ImageInference
from tests import fakes

README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def tiny_options(tiny_flags) -> dict[str, str]:
    pairs = (flag.removeprefix("--").split("=", 1) for flag in tiny_flags)
    return {**dict(pairs), "strategy": "default", "console": "quiet"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tiny_options) -> pathlib.Path:
    """A workdir that `api.train` wrote."""
    folder = tmp_path_factory.mktemp("api")
    trained = api.train(
        {**tiny_options, "workdir": folder, "phase": "transfer"}
    )
    assert trained.path == folder / "model_transfer.keras"
    return folder


@pytest.fixture(scope="module")
def predictor(workdir) -> Predictor:
    return api.load(workdir)


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Three PNGs of different sizes."""
    paths = [str(tmp_path / f"{k}.png") for k in range(3)]
    for k, path in enumerate(paths):
        image = fakes.make_smooth_image(40 + 9 * k, 60, seed=k)
        Image.fromarray(image).save(path)
    return paths


def test_answers_are_those_of_the_phase(predictor, workdir, files, capsys):
    command = ["main.py", "--phase=predict", f"--workdir={workdir}"]
    assert cli.main([*command, "--format=json", "--top_k=3", *files]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = predictor.predict(files, top_k=3)
    for row, prediction in zip(rows, found, strict=True):
        assert prediction.file == row["file"]
        assert [label for label, _ in prediction.classes] == [
            c["label"] for c in row["top"]
        ]
        assert prediction.label == row["label"]
        assert prediction.probability == pytest.approx(
            row["probability"], abs=1e-5
        )


def test_a_picture_may_be_given_in_any_form(predictor, files):
    path = pathlib.Path(files[0])
    image = Image.open(path)
    (expected,) = predictor.predict([path])
    forms = [path.read_bytes(), image, np.asarray(image)]
    for prediction in predictor.predict(forms):
        assert prediction.file == ""
        assert dict(prediction.classes) == pytest.approx(dict(expected.classes))
    for form in forms:
        (single,) = predictor.predict(form)
        assert single.label == expected.label
    batch = np.stack([np.asarray(image)] * 2)
    assert len(predictor.predict(batch)) == 2


def test_a_pillow_image_is_turned_and_composed_on_white(predictor, tmp_path):
    layers = np.zeros([40, 60, 4], np.uint8)
    layers[:20, :, :3], layers[:20, :, 3] = (200, 30, 60), 255
    image = Image.fromarray(layers)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    by_path, by_image = predictor.predict(
        [tmp_path / "turned.png", Image.open(tmp_path / "turned.png")]
    )
    shown = np.full([60, 40, 3], 255, np.uint8)
    shown[:, 20:] = (200, 30, 60)
    (by_pixels,) = predictor.predict(shown)
    assert dict(by_path.classes) == pytest.approx(dict(by_pixels.classes))
    assert dict(by_image.classes) == pytest.approx(dict(by_pixels.classes))


def test_the_head_on_the_embedding_gives_the_prediction(predictor, files):
    vectors = predictor.embed(files)
    assert vectors.dtype == np.float32
    model = keras.models.load_model(predictor.path, compile=False)
    pooler, *head = classifier.get_head_layers(model)
    assert vectors.shape == (3, pooler.output.shape[-1])
    logits = tf.constant(vectors)
    for layer in head:
        logits = layer(logits)
    for row, prediction in zip(
        softmax(logits.numpy()), predictor.predict(files), strict=True
    ):
        assert row.max() == pytest.approx(prediction.probability, abs=1e-4)
    np.testing.assert_allclose(
        predictor.embed(files[1]), vectors[1:2], atol=1e-4
    )
    assert predictor.embed([]).shape == (0, vectors.shape[1])


def test_a_picture_that_cant_be_read_has_an_error(predictor, files):
    found = predictor.predict([files[0], "missing.png", b"no picture"])
    assert [bool(p.error) for p in found] == [False, True, True]
    assert found[1].error == "No such file or directory"
    assert found[1].label == ""
    assert np.isnan(found[1].probability)
    with pytest.raises(api.UserError, match=r"missing\.png can't be read: No"):
        predictor.embed([files[0], "missing.png"])
    with pytest.raises(api.UserError, match="picture 1 can't be read: no JPEG"):
        predictor.embed([files[0], b"no picture"])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros([4, 4, 3], np.float32),
        np.zeros([4, 4], np.uint8),
        np.zeros([4, 4, 4], np.uint8),
        np.zeros([0, 4, 3], np.uint8),
    ],
)
def test_other_arrays_are_refused(predictor, array):
    with pytest.raises(TypeError, match="picture 0 must be uint8"):
        predictor.predict([array])
    with pytest.raises(TypeError, match="picture 1 must be a path, bytes"):
        predictor.predict([b"", 3])


def test_models_are_loaded_from_files_and_export_folders(
    predictor, workdir, files, tmp_path
):
    (tmp_path / "export").mkdir()
    model = shutil.copy(predictor.path, tmp_path / "export" / "model.keras")
    expected = predictor.predict(files[0])
    for path in (predictor.path, model, tmp_path / "export"):
        found = api.load(path).predict(files[0])
        assert dict(found[0].classes) == pytest.approx(
            dict(expected[0].classes)
        )


def test_loading_keeps_the_dtype_policy_of_the_process(workdir):
    keras.config.set_dtype_policy("float64")
    api.load(workdir, precision="mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float64"


@pytest.mark.parametrize(
    "path, options, message",
    [
        ("missing", {}, "missing does not exist"),
        ("", {}, "holds no model_finetune.keras"),
        ("", {"top_k": 0}, "--top_k must be at least 1; got 0"),
        ("", {"no_such": 1}, "no_such"),
    ],
)
def test_wrong_loading_ends_in_one_line(tmp_path, path, options, message):
    with pytest.raises(api.UserError, match=message) as caught:
        api.load(tmp_path / path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"phase": "predict", "images": "x.jpg"}, "phase must be one that"),
        ({"phase": "prepare"}, "phase must be one that"),
        ({"help": True}, "help, helpfull and version are for the command"),
        ({"folds": 5}, "folds without fold start other processes"),
        ({"transfer_epochs": -1}, "--transfer_epochs must be at least"),
    ],
)
def test_wrong_training_ends_in_one_line(tiny_options, options, message):
    with pytest.raises(ConfigError, match=message):
        api.train({**tiny_options, **options})


def test_pictures_in_batches_of_any_size_trace_the_network_twice():
    traces = []

    @keras.saving.register_keras_serializable("test_api")
    class Counter(keras.layers.Layer):
        def call(self, x):
            traces.append(x.shape)
            return keras.ops.mean(x, axis=(1, 2))

    inputs = keras.Input([32, 32, 3])
    model = keras.Model(inputs, Counter()(inputs))
    run = ImageInference(
        model,
        tf.distribute.get_strategy(),
        InputConfig(image_size=32),
        fakes.preprocess_input,
    )
    traces.clear()
    for count in (1, 2, 3, 7, 4):
        examples = fakes.make_noise_examples(count)
        assert sum(map(len, run.outputs(examples, count))) == count
    # Once with the first size, once with any size.
    assert len(traces) == 2


@pytest.mark.slow
def test_the_example_in_the_readme_works(tiny_options, tmp_path, monkeypatch):
    (code,) = re.findall(
        r"```python\n(from .*api.*?)```", README.read_text(), re.S
    )
    for kind, name in enumerate(("rose", "lily")):
        for k in range(12):
            path = tmp_path / "photos" / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(synthetic.draw_flower(kind, k)).save(path)
    (tmp_path / "new").mkdir()
    shutil.copy(path, tmp_path / "new" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    # A network that trains in seconds, and weights that aren't downloaded.
    small = {k: v for k, v in tiny_options.items() if k != "archive"}
    small["finetune_epochs"] = "1"
    train = api.train
    monkeypatch.setattr(api, "train", lambda given: train({**given, **small}))
    found = {}
    exec(code, found)
    assert found["predictor"].class_names == ("lily", "rose")
    assert found["vectors"].shape[0] == 1
    assert (tmp_path / "runs" / "photos" / "report.html").exists()
