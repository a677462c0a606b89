"""Calibrated probabilities, unknown pictures, and sets of classes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.models import classifier, saved_models, trust
from flowers17_tfdata.scoring import (
    calibration,
    conformal,
    reliability,
    trust_scores,
)
from flowers17_tfdata.scoring.predictions import Predictions, softmax
from tests import fakes

CLASSES, CHANNELS = 4, 12


def _answers(num, seed=0, scale=1.0):
    """Returns logits, and labels that are drawn from their softmax."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=[num, CLASSES])
    odds = logits + rng.gumbel(size=logits.shape)
    return (scale * logits).astype(np.float32), odds.argmax(axis=1)


def _features(num, seed=0, shift=0.0):
    """Returns features around one mean for each class, and the classes."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(9).uniform(1, 5, [CLASSES, CHANNELS])
    labels = np.arange(num) % CLASSES
    spread = rng.normal(scale=0.3, size=[num, CHANNELS])
    return (means[labels] + spread + shift).astype(np.float32), labels


def _logits(features):
    """Returns the logits of a model that knows the means."""
    means = np.random.default_rng(9).uniform(1, 5, [CLASSES, CHANNELS])
    distances = ((features[:, np.newaxis] - means) ** 2).sum(axis=2)
    return (-distances).astype(np.float32)


def _fit(num=200, seed=1) -> trust.Trust:
    train, labels = _features(400)
    held_out, held_out_labels = _features(num, seed)
    return trust.fit(
        trust.fit_surroundings(train[np.newaxis], labels, CLASSES),
        (_logits(train), train),
        (_logits(held_out), held_out, held_out_labels),
    )


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_a_wrong_scale(scale):
    logits, labels = _answers(4000, scale=scale)
    found = calibration.fit_temperature(logits, labels)
    assert found == pytest.approx(scale, rel=0.08)
    after = trust_scores.measure_reliability(logits / found, labels)
    assert after.ece < 0.02


def test_a_model_without_an_error_is_not_infinitely_sure():
    labels = np.arange(30) % CLASSES
    logits = 10 * np.eye(CLASSES, dtype=np.float32)[labels]
    found = calibration.fit_temperature(logits, labels)
    confidence = softmax(logits / found).max(axis=1)
    # As if one of the next 32 was wrong.
    np.testing.assert_allclose(confidence, 1 - 1 / 32, atol=1e-3)


def test_the_limit_holds_for_new_scores_of_any_distribution():
    rng = np.random.default_rng(0)
    above = []
    for _ in range(4000):
        *known, new = rng.exponential(size=60)
        above.append(new > conformal.upper_limit(np.array(known)))
    # The guarantee of 59 scores is 1 - ceil(60 * 0.95) / 60 = 5 %.
    assert np.mean(above) == pytest.approx(0.05, abs=0.012)


def test_the_limit_is_the_rank_with_the_finite_sample_correction():
    scores = np.arange(100.0)[::-1]
    assert conformal.upper_limit(scores) == 95
    assert conformal.upper_limit(scores[:19]) == 99
    assert conformal.upper_limit(scores[:18]) == np.inf


def test_sets_of_uncertain_pictures_hold_the_true_class():
    logits, labels = _answers(3000)
    sets = conformal.fit_sets(softmax(logits), labels)
    fresh, true = _answers(6000, seed=1)
    members = sets.members(softmax(fresh))
    holds = members[np.arange(len(true)), true]
    uncertain = softmax(fresh).max(axis=1) < sets.certain_from
    assert uncertain.mean() == pytest.approx(0.2, abs=0.03)
    assert holds[uncertain].mean() == pytest.approx(0.95, abs=0.02)
    assert holds[~uncertain].mean() >= 0.94
    assert 1 < members[uncertain].sum(axis=1).mean() < CLASSES
    assert members[np.arange(len(true)), fresh.argmax(axis=1)].all()


def test_sets_that_cannot_be_promised_hold_all_classes():
    logits, labels = _answers(12)
    sets = conformal.fit_sets(softmax(logits), labels)
    assert sets.members(softmax(logits)).all()


def test_distances_are_those_of_the_precision_matrix():
    features, labels = _features(300)
    found = trust.fit_surroundings(features[np.newaxis], labels, CLASSES)
    u = np.sign(features) * np.sqrt(np.abs(features))
    u /= np.linalg.norm(u, axis=1, keepdims=True) / np.sqrt(CHANNELS)
    u = u.astype(np.float64)
    means = np.stack([u[labels == c].mean(axis=0) for c in range(CLASSES)])
    within = u - means[labels]
    covariance = within.T @ within / len(u)
    ridge = 0.3 * np.trace(covariance) / CHANNELS
    precision = np.linalg.inv(covariance + ridge * np.eye(CHANNELS))

    def squared(centre):
        return np.einsum("nc,cd,nd->n", u - centre, precision, u - centre)

    nearest = np.min([squared(m) for m in means], axis=0)
    distance, relative = found.distances(tf.constant(features))
    np.testing.assert_allclose(distance, nearest, rtol=1e-3, atol=1e-3)
    expected = nearest - squared(u.mean(axis=0))
    np.testing.assert_allclose(relative, expected, rtol=1e-3, atol=1e-2)


def test_few_ordinary_pictures_are_unknown_and_most_others_are():
    fitted = _fit()
    shares = {}
    for name, shift in (("alike", 0.0), ("other", 3 * np.arange(CHANNELS))):
        features, _ = _features(2000, seed=5, shift=shift)
        logits = _logits(features) / np.float32(fitted.temperature)
        unknown = trust.answer(logits, features, fitted)["unknown"]
        shares[name] = unknown.numpy().mean()
    assert 0.01 < shares["alike"] < 0.09
    assert shares["other"] > 0.9


def test_without_enough_held_out_pictures_none_is_unknown():
    fitted = _fit(num=18)
    features, _ = _features(10, shift=100.0)
    answers = trust.answer(_logits(features), features, fitted)
    assert not answers["unknown"].numpy().any()
    assert answers["classes_at_95"].numpy().all()


def test_answers_are_the_same_by_either_road():
    fitted = _fit()
    features, _ = _features(50, seed=3)
    logits = _logits(features) / np.float32(fitted.temperature) / 20
    answers = trust.answer(logits, features, fitted)
    probabilities = answers["probabilities"].numpy()
    np.testing.assert_allclose(probabilities, softmax(logits), atol=1e-6)
    np.testing.assert_array_equal(
        answers["classes_at_95"], fitted.sets.members(probabilities)
    )
    assert set(trust.answer(logits, features, None)) == {"probabilities"}


def test_classes_without_images_are_left_out():
    features, labels = _features(80)
    kept = labels != 2
    found = trust.fit_surroundings(
        features[np.newaxis, kept], labels[kept], CLASSES + 1
    )
    assert found.kernel.shape == (CHANNELS, CLASSES - 1)
    distance, _ = found.distances(tf.constant(features))
    missing = distance.numpy()[labels == 2]
    assert missing.min() > np.median(distance.numpy()[kept])


def test_a_refit_of_the_same_model_changes_nothing():
    fitted = _fit()
    train, _ = _features(400)
    again = trust.after_refit(
        fitted, fitted.surroundings, _logits(train), train
    )
    np.testing.assert_allclose(again.centres, fitted.centres, rtol=1e-4)
    np.testing.assert_allclose(again.scales, fitted.scales, rtol=1e-4)
    # Distances that are twice as large on training images were so before.
    wider = fitted.surroundings._replace(
        kernel=2 * fitted.surroundings.kernel,
        bias=2 * fitted.surroundings.bias,
        damping=2 * fitted.surroundings.damping,
        ridge=fitted.surroundings.ridge / 2,
    )
    again = trust.after_refit(fitted, wider, _logits(train), train)
    held_out, _ = _features(100, seed=4)
    logits = _logits(held_out) / np.float32(fitted.temperature)
    np.testing.assert_allclose(
        again.score(logits, held_out), fitted.score(logits, held_out), atol=0.02
    )


def test_it_is_saved_with_the_model(tmp_path, tiny_backbone):
    path = _save_tiny(tmp_path, _fit())
    saved_models.load_classifier(path, "--model")
    found = saved_models.read_trust(path)
    assert found is not None
    for ours, theirs in zip(
        found.to_arrays().values(), _fit().to_arrays().values(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    _save_tiny(tmp_path, None)
    assert saved_models.read_trust(path) is None


def _make_classifier() -> keras.Model:
    config = ModelConfig(backbone=fakes.register_tiny_net(), weights="none")
    return classifier.build_classifier(
        config, image_size=32, num_classes=CLASSES, seed=0
    )


def _save_tiny(folder, fitted):
    path = folder / "model.keras"
    model = _make_classifier()
    saved_models.save_classifier(model, path, {}, fitted)
    return path


def test_the_temperature_goes_into_the_last_weights(tiny_backbone):
    model = _make_classifier()
    last = model.get_layer("predictions")
    rng = np.random.default_rng(1)
    last.set_weights([rng.normal(size=w.shape) for w in last.get_weights()])
    images = np.random.default_rng(0).uniform(-1, 1, [5, 32, 32, 3])
    images = images.astype(np.float32)
    before = model(images).numpy()
    outputs = classifier.with_features(model)(images).numpy()
    np.testing.assert_allclose(outputs[:, :CLASSES], before, atol=1e-6)
    head = classifier.head_logits(model, outputs[:, CLASSES:])
    np.testing.assert_allclose(head, before, atol=1e-5)
    classifier.divide_logits(model, 2.5)
    after = model(images).numpy()
    np.testing.assert_allclose(after, before / 2.5, atol=1e-6)
    np.testing.assert_array_equal(after.argmax(1), before.argmax(1))


def test_the_error_of_calibration_has_an_interval():
    logits, labels = _answers(1500, scale=3.0)
    scores = trust_scores.calibration_scores(logits, labels)
    low, high = scores["ece_interval"]
    assert 0.02 < low < scores["ece"] <= high < 0.2
    # The interval is about the error, which a larger sample shows.
    many, true = _answers(40000, seed=1, scale=3.0)
    assert low < trust_scores.measure_reliability(many, true).ece < high


def test_a_perfect_forecast_has_no_calibration_error():
    low, high = reliability.ece_interval(
        np.ones(50), np.ones(50, bool), 5, seed=0
    )
    assert low == high == 0


def test_scores_of_a_split():
    fitted = _fit()
    features, labels = _features(300, seed=7)
    logits = _logits(features) / np.float32(fitted.temperature)
    score = fitted.score(logits, features).numpy()
    predictions = Predictions(tuple(map(str, labels)), labels, logits)
    answers = {
        "unknown": score > fitted.unknown_above,
        "classes_at_95": fitted.sets.members(softmax(logits)),
    }
    found = trust_scores.summarize(predictions, answers, 2.0, 1.1)
    assert found["turned_away"] == int((score > fitted.unknown_above).sum())
    low, high = found["turned_away_interval"]
    assert low < found["turned_away"] / 300 < high
    sets = found["classes_at_95"]
    # With a bound above 1, all are uncertain.
    assert sets["num_uncertain"] == 300
    assert sets["coverage"] == sets["uncertain_coverage"]


def test_the_accuracy_rises_as_the_unlike_pictures_go():
    is_correct = np.array([True, True, False, True, False])
    curve = trust_scores.risk_coverage(
        np.array([0.1, 0.3, 5.0, 0.2, 4.0]), is_correct
    )
    np.testing.assert_allclose(curve.coverage, [0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(curve.accuracy, [1, 1, 1, 0.75, 0.6])
    assert (curve.low <= curve.accuracy).all()
    assert (curve.high >= curve.accuracy - 1e-12).all()


def test_probabilities_are_those_of_the_divided_logits():
    logits, labels = _answers(100, scale=2.0)
    found = calibration.fit_temperature(logits, labels)
    np.testing.assert_allclose(
        softmax(logits / found),
        scipy.special.softmax(logits.astype(float) / found, axis=1),
        atol=1e-6,
    )


def test_another_temperature_changes_no_score():
    fitted = _fit()
    features, _ = _features(60, seed=8)
    logits = _logits(features)
    changed = fitted.with_temperature(2 * fitted.temperature, fitted.sets, 5)
    np.testing.assert_allclose(
        changed.score(logits / np.float32(changed.temperature), features),
        fitted.score(logits / np.float32(fitted.temperature), features),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_model_that_keeps_its_word_is_not_called_uncalibrated():
    starts = []
    for seed in range(30):
        logits, labels = _answers(200, seed=seed)
        scores = trust_scores.calibration_scores(logits, labels)
        starts.append(scores["ece_interval"][0])
    assert np.mean(np.array(starts) == 0) >= 0.85


def test_one_image_of_each_class_makes_no_huge_numbers():
    features, labels = _features(CLASSES)
    found = trust.fit_surroundings(features[np.newaxis], labels, CLASSES)
    # Below the largest float16, in which TensorFlow Lite keeps it.
    assert np.abs(found.kernel).max() < 1e4
