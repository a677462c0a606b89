"""What more photographs would buy: subsets, heads, the phase, its section."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import types

import numpy as np
import pytest

from flowers17_tfdata import files
from flowers17_tfdata.config.config import Config, to_values
from flowers17_tfdata.data.oxford_flowers17 import synthetic
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.phases import frozen_features
from flowers17_tfdata.phases.learning_curve import learning_curve, subsets
from flowers17_tfdata.phases.report import more_photographs
from flowers17_tfdata.session import TRAINING_SPLITS

FRACTIONS = np.array([0.125, 0.25, 0.5, 1])


def _subsets(labels, groups, seed=0):
    rng = np.random.default_rng(seed)
    return list(subsets.nested_subsets(labels, groups, FRACTIONS, rng))


def test_subsets_are_nested_stratified_and_of_whole_groups():
    rng = np.random.default_rng(0)
    # Pairs of near-duplicates, singles, and a class of one image.
    labels = np.concatenate([np.repeat([0, 1, 2], [80, 40, 16]), [3]])
    groups = np.concatenate([np.arange(136) // 2, [68]])
    order = rng.permutation(len(labels))
    labels, groups = labels[order], groups[order]
    found = _subsets(labels, groups)
    for fraction, chosen in zip(FRACTIONS, found, strict=True):
        assert not set(groups[chosen]) & set(groups[~chosen])
        counts = np.bincount(labels[chosen], minlength=4)
        expected = fraction * np.array([80, 40, 16])
        assert np.abs(counts[:3] - expected).max() <= 2
        assert counts[3] == 1
    for smaller, larger in itertools.pairwise(found):
        assert not np.any(smaller & ~larger)
    assert found[-1].all()
    assert not np.array_equal(_subsets(labels, groups, seed=1)[1], found[1])


def test_a_fraction_of_a_group_is_left_to_chance():
    labels, groups = np.zeros(9, np.int64), np.arange(9)
    sizes = [_subsets(labels, groups, k)[2].sum() for k in range(200)]
    assert {*sizes} == {4, 5}
    assert np.mean(sizes) == pytest.approx(4.5, abs=0.15)


@pytest.fixture
def one_repeat(monkeypatch):
    monkeypatch.setattr(subsets, "REPEATS", 1)


def _judge(values, labels, groups, num_classes):
    features = Features(values[np.newaxis].astype(np.float32), labels)
    return subsets.judge(
        features,
        groups,
        num_classes,
        weight_decay=0.1,
        balanced=True,
        seed=0,
    )


def test_more_images_make_better_heads(one_repeat):
    rng = np.random.default_rng(0)
    labels = np.arange(150) % 3
    values = 0.8 * np.eye(3, 20)[labels] + 0.5 * rng.normal(size=[150, 20])
    judged = _judge(values, labels, np.arange(150), 3)
    np.testing.assert_allclose(judged.sizes, np.geomspace(15, 120, 5), atol=2)
    errors = judged.wrong.mean(axis=(0, 2))
    assert errors[-1] < errors[0] - 0.05
    assert judged.wrong.shape == (1, 5, 150)


def test_no_image_is_judged_by_a_head_that_knows_its_twin(one_repeat):
    """Pairs of the same picture, whose labels can't be learned."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40) % 2, 2)
    values = np.repeat(rng.normal(size=[40, 60]), 2, axis=0)
    judged = _judge(values, labels, np.repeat(np.arange(40), 2), 2)
    assert judged.wrong[0, -1].mean() > 0.25


def test_a_class_of_one_image_is_not_judged(one_repeat):
    rng = np.random.default_rng(0)
    # Class 2 has one image, and class 3 four copies of one.
    labels = np.array([0, 1] * 20 + [2] + [3] * 4)
    groups = np.array([*range(40), 40, 41, 41, 41, 41])
    values = np.eye(4, 8)[labels] + 0.1 * rng.normal(size=[45, 8])
    judged = _judge(values, labels, groups, 4)
    assert {*judged.labels} == {0, 1}
    assert len(judged.groups) == 40
    with pytest.raises(UserError, match=r"class of 5 images .* has 4$"):
        _judge(values[:8], labels[:8], groups[:8], 2)


def _result(**values):
    return {
        "num_wrong": 0.0,
        "num_judged": 40,
        "most_wrong": 0.0722,
        "predictions": [],
        "most_wanted": [],
    } | values


def test_the_line_tells_what_can_be_told():
    line = learning_curve.summary(_result())
    assert line.startswith("no error in 40 images: at most 7.2 %, too few to")
    line = learning_curve.summary(_result(num_wrong=1.2))
    assert line.startswith("1 error in 40 images: at most 7.2 %")
    predictions = [
        {"accuracy": 0.961},
        {"accuracy": 0.972, "accuracy_interval": [0.966, 0.978]},
    ]
    result = _result(predictions=predictions, most_wanted=["Tulip", "Cowslip"])
    assert learning_curve.summary(result) == (
        "twice the photographs: 96.1 -> 97.2 % (96.6 to 97.8); most wanted: "
        "Tulip, Cowslip"
    )
    result = _result(predictions=predictions)
    assert learning_curve.summary(result).endswith("; no class stands out")


def test_bars_share_an_axis():
    first, second = learning_curve.interval_bars(
        [(0.5, (0.0, 0.6)), (0.9, (0.8, 1.0))]
    )
    assert len(first) == len(second) == 24
    assert first.strip() == first[:15] == "|-----------o-|"[:15].ljust(15)
    assert second.startswith(" " * 18) and second.endswith("|")
    # No spread at all.
    assert learning_curve.interval_bars([(1.0, (1.0, 1.0))])[0][0] == "o"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> pathlib.Path:
    """Three classes of 20 drawn flowers each, and one of a single flower."""
    folder = tmp_path_factory.mktemp("photographs")
    drawn = synthetic.iter_synthetic_images(0)
    for k, (_, data) in zip(range(61), drawn, strict=False):
        path = folder / "abcd"[k // 20] / f"{k}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture
def default_flags(tiny_backbone, photographs) -> list[str]:
    return [
        *(f"--dataset=folder:{photographs}", f"--backbone={tiny_backbone}"),
        *("--weights=none", "--image_size=32", "--global_batch_size=32"),
        *("--strategy=default", "--finetune_epochs=0"),
    ]


def _curve_of(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "learning_curve.json").read_text())


@pytest.mark.slow
def test_the_phase_of_a_run_and_its_section_in_the_report(
    run, tmp_path, monkeypatch, one_repeat
):
    workdir, read = tmp_path / "a", {}
    load = frozen_features.examples_lib.load_examples

    def recording(source, split, options):
        examples = load(source, split, options)
        read[split] = examples.num_examples
        return examples

    assert run("a", "--phase=transfer")[0] == 0
    model = (workdir / "model_transfer.keras").read_bytes()
    monkeypatch.setattr(
        frozen_features.examples_lib, "load_examples", recording
    )
    code, out, err = run("a", "--phase=learning_curve")
    assert code == 0, err
    assert [*read] == ["train", "validation"]
    assert (workdir / "model_transfer.keras").read_bytes() == model
    result = _curve_of(workdir)
    trained_on, judged = read["train"], sum(read.values()) - 1
    # All of train and validation is judged; the model is trained on train.
    assert result["trained_splits"] == ["train"]
    assert (result["num_images"], result["num_judged"]) == (trained_on, judged)
    assert [row["times"] for row in result["predictions"]] == [1, 2, 4]
    assert result["classes"]["d"] is None
    told = [c for c in result["classes"].values() if c]
    assert sum(c["num_images"] for c in told) == trained_on - 1
    words = " ".join(out.split())
    assert f"learning_curve: {result['summary']}" in words
    assert f"{trained_on} (now)" in words
    assert "can't be told, with fewer than 5 images" in words

    assert run("a", "--phase=report")[0] == 0
    text = (workdir / "report.html").read_text()
    assert "<h2>More photographs</h2>" in text
    assert result["summary"][1:].replace(">", "&gt;") in text
    assert "Too few images to be told: d." in text
    (figure,) = re.findall(r'"chart-more-photographs">(.*?)</script>', text)
    names = [trace["name"] for trace in json.loads(figure)["data"]]
    assert names == ["law", "measured (95 % interval)", "predicted"]


@pytest.mark.slow
def test_with_refit_it_starts_from_all_images(run, tmp_path, one_repeat):
    found = []
    for name in ("a", "b"):
        code, out, err = run(
            name, "--phase=learning_curve", "--refit", "--console=json"
        )
        assert code == 0, err
        found.append(_curve_of(tmp_path / name))
    assert found[0]["trained_splits"] == [*TRAINING_SPLITS]
    assert found[0]["num_images"] == found[0]["num_judged"] + 1
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[-1]["predictions"] == found[0]["predictions"]
    # The seed alone draws the subsets.
    assert found[0]["curve"] == found[1]["curve"]


def test_a_curve_of_other_images_or_features_is_not_shown(tmp_path):
    config = Config()
    here = types.SimpleNamespace(
        workdir=tmp_path,
        config=config,
        source=types.SimpleNamespace(name="set/1"),
    )
    assert more_photographs.read_curve(here) is None
    own = {"dataset": "set/1", "flags": to_values(config)}
    for result, is_shown in (
        (own, True),
        (own | {"dataset": "set/2"}, False),
        (own | {"flags": own["flags"] | {"backbone": "vgg16"}}, False),
        (own | {"flags": own["flags"] | {"image_size": 64}}, False),
    ):
        files.write_json(tmp_path / "learning_curve.json", result)
        assert (more_photographs.read_curve(here) is not None) == is_shown
