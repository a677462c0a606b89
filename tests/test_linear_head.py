"""The solved head is the optimum, for the decay that cross-validation chooses.

The reference is Newton's method in float64, an independent solver.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import scipy.special

from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.models import classifier
from flowers17_tfdata.training import linear_head
from flowers17_tfdata.training.preemption import StopRequest
from tests import fakes

NUM_CLASSES = 3
CHANNELS = 4


def _features(counts=(16, 14, 12), num_views=2, seed=0, apart=0.8) -> Features:
    """Makes overlapping classes; the channels differ in mean and scale."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = apart * rng.normal(size=[len(counts), CHANNELS])
    # The views of an image are more similar than the images of a class.
    images = means[labels] + rng.normal(size=[len(labels), CHANNELS])
    values = images + 0.3 * rng.normal(size=[num_views, *images.shape])
    values = values * [0.1, 1, 10, 1] + [0, 5, -30, 0]
    return Features(values.astype(np.float32), labels)


def _standardized(features) -> np.ndarray:
    values = features.values.astype(np.float64)
    rows = values.reshape(-1, values.shape[-1])
    return (values - rows.mean(axis=0)) / rows.std(axis=0)


def _newton(values, labels, decay, weights=None, num_classes=NUM_CLASSES):
    """Minimizes the loss; `values` is `[views, n, channels]`, standardized.

    Returns:
      The kernel, and below it the bias, float64.
    """
    num_views, _, channels = values.shape
    rows = np.concatenate([values, np.ones_like(values[..., :1])], axis=-1)
    rows = rows.reshape(-1, channels + 1)
    targets = np.eye(num_classes)[np.tile(labels, num_views)]
    weights = np.ones(len(labels)) if weights is None else weights
    weights = np.tile(weights, num_views) / (num_views * weights.sum())
    decays = np.full([channels + 1, num_classes], decay)
    decays[-1] = 0
    x = np.zeros([channels + 1, num_classes])
    for _ in range(100):
        p = scipy.special.softmax(rows @ x, axis=1)
        gradient = rows.T @ ((p - targets) * weights[:, None]) + decays * x
        if np.abs(gradient).max() < 1e-13:
            return x
        curvature = np.einsum("nk,kl->nkl", p, np.eye(num_classes))
        curvature = (curvature - p[:, :, None] * p[:, None]) * weights[
            :, None, None
        ]
        hessian = np.einsum("nc,nd,nkl->ckdl", rows, rows, curvature)
        hessian = hessian.reshape(x.size, x.size) + np.diag(decays.ravel())
        # The mean of the biases is free.
        step = np.linalg.lstsq(hessian, gradient.ravel(), rcond=1e-12)[0]
        x -= step.reshape(x.shape)
    raise AssertionError("Newton's method did not converge")


def _probabilities(values, kernel, bias) -> np.ndarray:
    return scipy.special.softmax(values @ kernel + bias, axis=-1)


def _cross_entropy(values, x, labels) -> float:
    p = _probabilities(values, x[:-1], x[-1])
    return float(-np.log(p[:, np.arange(len(labels)), labels]).mean())


def _fit(features, decay, seed=0, **kwargs) -> linear_head.LinearHead:
    """Fits a head with the given weight decay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_head, "DECAYS", (decay,))
        return linear_head.fit(features, NUM_CLASSES, seed=seed, **kwargs)


@pytest.mark.parametrize("decay", [0.1, 0.001])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_optimum(decay, weighted):
    features = _features()
    weights = None
    if weighted:
        rng = np.random.default_rng(1)
        weights = rng.uniform(0.1, 3, len(features.labels)).astype(np.float32)
    head = _fit(features, decay, example_weights=weights)
    assert head.kernel.dtype == head.bias.dtype == np.float32
    assert head.weight_decay == decay
    values = _standardized(features)
    expected = _newton(values, features.labels, decay, weights)
    # The classifier will see raw features.
    found = _probabilities(features.values, head.kernel, head.bias)
    np.testing.assert_allclose(
        found, _probabilities(values, expected[:-1], expected[-1]), atol=2e-3
    )
    # The gradient of the loss is 0 there.
    raw = features.values.astype(np.float64).reshape(-1, CHANNELS)
    kernel = head.kernel * raw.std(axis=0)[:, None]
    p = found.reshape(-1, NUM_CLASSES)
    targets = np.eye(NUM_CLASSES)[np.tile(features.labels, 2)]
    shares = np.tile(np.ones(len(features.labels)), 2)
    if weighted:
        shares = np.tile(weights, 2)
    errors = (p - targets) * (shares / shares.sum())[:, None]
    rows = values.reshape(-1, CHANNELS)
    assert np.abs(rows.T @ errors + decay * kernel).max() < 3e-4
    assert np.abs(errors.sum(axis=0)).max() < 3e-4


def test_example_weights_count():
    features = _features()
    weights = np.where(features.labels == 0, 20.0, 1.0).astype(np.float32)
    shares = []
    for given in (None, weights):
        head = _fit(features, 0.1, example_weights=given)
        p = _probabilities(features.values, head.kernel, head.bias)
        shares.append(p[..., 0].mean())
    # The bias is free: the mean probability is the class's weight.
    assert shares[0] == pytest.approx(16 / 42, abs=1e-3)
    assert shares[1] > 0.7


def test_all_views_count():
    """Their order doesn't matter; a head of the first view alone differs."""
    features = _features(num_views=3)
    whole, first = (
        _fit(f, 0.01)
        for f in (features, features._replace(values=features.values[:1]))
    )
    assert np.abs(whole.kernel - first.kernel).max() > 1e-2
    shuffled = features._replace(values=features.values[[2, 0, 1]])
    again = _fit(shuffled, 0.01)
    np.testing.assert_allclose(
        _probabilities(features.values, again.kernel, again.bias),
        _probabilities(features.values, whole.kernel, whole.bias),
        atol=2e-3,
    )


@pytest.mark.slow
@pytest.mark.parametrize("apart", [0.2, 1.0, 3.0])
def test_the_decay_is_that_of_the_lowest_cross_validated_loss(
    monkeypatch, apart
):
    """All views of an image are in the same fold: otherwise they leak."""
    features = _features(apart=apart)
    head = linear_head.fit(features, NUM_CLASSES, seed=4)
    monkeypatch.setattr(linear_head, "_ROUGH_TOLERANCE", 1e-6)
    exact = linear_head.fit(features, NUM_CLASSES, seed=4)
    values, labels = _standardized(features), features.labels
    folds = linear_head._stratified_folds(labels, 4)
    expected = {}
    for decay in linear_head.DECAYS:
        losses = [
            _cross_entropy(
                values[:, fold],
                _newton(values[:, ~fold], labels[~fold], decay),
                labels[fold],
            )
            for fold in folds
        ]
        expected[decay] = float(np.mean(losses))
    # The search stops one decay after the best one.
    best = linear_head.DECAYS.index(min(expected, key=expected.__getitem__))
    tried = linear_head.DECAYS[: best + 2]
    assert exact.losses == pytest.approx(
        {decay: expected[decay] for decay in tried}, rel=0.02
    )
    assert list(head.losses) == list(tried)
    # Approximate solutions suffice for the choice.
    assert head.weight_decay == min(expected, key=expected.get)
    # The final fit uses that decay and all examples.
    best = _newton(values, labels, head.weight_decay)
    np.testing.assert_allclose(
        _probabilities(features.values, head.kernel, head.bias),
        _probabilities(values, best[:-1], best[-1]),
        atol=2e-3,
    )


def test_data_sets_want_different_decays():
    chosen = [
        linear_head.fit(_features(apart=apart), NUM_CLASSES, seed=4)
        for apart in (0.2, 3.0)
    ]
    assert chosen[0].weight_decay > chosen[1].weight_decay


@pytest.mark.parametrize(
    ("counts", "num_folds"),
    [((7, 12, 30), 5), ((3, 40, 9), 3), ((2, 2, 2), 2), ((1, 9, 9), 5)],
)
def test_folds_hold_out_every_example_once_and_classes_alike(counts, num_folds):
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(0).permutation(labels)
    folds = linear_head._stratified_folds(labels, 0)
    assert len(folds) == num_folds
    for k, count in enumerate(counts):
        held = [int((labels[fold] == k).sum()) for fold in folds]
        assert max(held) - min(held) <= 1
        # Without its only example, a class would be untrained.
        assert sum(held) == (count if count > 1 else 0)
    assert np.sum(folds, axis=0).max() == 1
    other = linear_head._stratified_folds(labels, 1)
    assert any((a != b).any() for a, b in zip(folds, other, strict=True))


def test_it_is_deterministic_and_knows_no_seed_but_that_of_the_folds():
    features = _features()
    one, again = (linear_head.fit(features, 3, seed=7) for _ in range(2))
    np.testing.assert_array_equal(one.kernel, again.kernel)
    np.testing.assert_array_equal(one.bias, again.bias)
    assert one.losses == again.losses
    other = linear_head.fit(features, 3, seed=8)
    assert other.losses != one.losses
    a, b = (_fit(features, 0.01, seed=seed) for seed in (7, 8))
    np.testing.assert_array_equal(a.kernel, b.kernel)


def test_a_class_with_one_image_is_never_held_out():
    head = linear_head.fit(_features((20, 20, 1), apart=4), 3, seed=0)
    assert head.losses
    _, accuracy = head.evaluate(_features((20, 20, 1), apart=4))
    assert accuracy > 0.9


def test_classes_with_one_image_each_leave_nothing_to_cross_validate():
    head = linear_head.fit(_features((1, 1, 1), apart=4), 3, seed=0)
    assert head.losses == {}
    assert head.weight_decay in linear_head.DECAYS


def test_a_class_without_images_breaks_nothing():
    features = _features((10, 0, 10), apart=3)
    head = linear_head.fit(features, 4, seed=0)
    assert head.kernel.shape == (CHANNELS, 4)
    assert np.all(np.isfinite(head.kernel)) and np.all(np.isfinite(head.bias))
    p = _probabilities(features.values, head.kernel, head.bias)
    assert p[..., [1, 3]].max() < 1e-2
    assert head.losses


def test_a_single_class_breaks_nothing():
    features = _features((0, 12))
    head = linear_head.fit(features, 3, seed=0)
    assert np.all(np.isfinite(head.kernel)) and np.all(np.isfinite(head.bias))
    loss, accuracy = head.evaluate(features)
    assert accuracy == 1 and loss < 0.1


def test_dead_channels_break_nothing():
    features = _features()
    dead = np.zeros([*features.values.shape[:2], 2], np.float32)
    dead[..., 1] = 7.5
    more = features._replace(values=np.concatenate([features.values, dead], -1))
    plain, head = (_fit(f, 0.01) for f in (features, more))
    np.testing.assert_allclose(head.kernel[CHANNELS:], 0, atol=1e-6)
    np.testing.assert_allclose(
        _probabilities(more.values, head.kernel, head.bias),
        _probabilities(features.values, plain.kernel, plain.bias),
        atol=2e-3,
    )
    # If all channels are constant, only the class frequencies remain.
    nothing = features._replace(values=dead)
    head = linear_head.fit(nothing, NUM_CLASSES, seed=0)
    p = _probabilities(dead, head.kernel, head.bias)
    np.testing.assert_allclose(p[0, 0], np.array([16, 14, 12]) / 42, atol=1e-3)


def test_a_channel_that_lives_on_one_image_is_not_blown_up():
    """Dividing by its standard deviation would make it identify the image."""
    features = _features()
    rare = np.zeros([*features.values.shape[:2], 1], np.float32)
    rare[0, 0] = 1e-4
    more = features._replace(values=np.concatenate([features.values, rare], -1))
    plain, head = (_fit(f, 0.001) for f in (features, more))
    np.testing.assert_allclose(
        _probabilities(more.values, head.kernel, head.bias),
        _probabilities(features.values, plain.kernel, plain.bias),
        atol=5e-3,
    )


def test_it_is_evaluated_on_the_images_themselves():
    features = _features(num_views=3)
    rng = np.random.default_rng(0)
    head = linear_head.LinearHead(
        rng.normal(size=[CHANNELS, 3]).astype(np.float32),
        rng.normal(size=3).astype(np.float32),
        *(0.1, {}, 5),
    )
    p = _probabilities(features.values[0], head.kernel, head.bias)
    own = p[np.arange(len(features.labels)), features.labels]
    loss, accuracy = head.evaluate(features)
    assert loss == pytest.approx(-np.log(own).mean(), rel=1e-4)
    assert accuracy == (p.argmax(axis=1) == features.labels).mean()


def test_the_classifier_takes_images_as_the_head_takes_features(tiny_backbone):
    model = classifier.build_classifier(
        ModelConfig(backbone=tiny_backbone, weights="none"),
        image_size=fakes.IMAGE_SIZE,
        num_classes=NUM_CLASSES,
        seed=0,
    )
    images = fakes.make_batch(24).inputs
    values = classifier.get_feature_extractor(model)(images).numpy()
    features = Features(values[np.newaxis], np.arange(24) % NUM_CLASSES)
    head = linear_head.fit(features, NUM_CLASSES, seed=0)
    model.get_layer("predictions").set_weights([head.kernel, head.bias])
    logits = keras.ops.convert_to_numpy(model(images))
    expected = values @ head.kernel + head.bias
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_it_says_that_it_is_alive():
    # A long fit is not a stall.
    stop = StopRequest()
    stop.alive_at = 0.0
    linear_head.fit(_features(), NUM_CLASSES, seed=0, stop=stop)
    assert stop.alive_at > 0


# Under a weak decay, a head that starts from another fold's hardly moves.
@pytest.mark.parametrize(("decay", "is_rough"), [(0.1, False), (1e-4, True)])
def test_out_of_fold_logits_are_those_of_heads_that_did_not_see_the_example(
    decay, is_rough
):
    features = _features()
    folds = np.arange(len(features.labels)) % 3
    options = {"weight_decay": decay, "is_rough": is_rough}
    logits = linear_head.out_of_fold_logits(features, 3, folds, **options)
    # A wrong label must not reach the answers for its own fold.
    changed = features.labels.copy()
    changed[folds == 1] = (changed[folds == 1] + 1) % 3
    again = linear_head.out_of_fold_logits(
        features._replace(labels=changed), 3, folds, **options
    )
    np.testing.assert_allclose(again[folds == 1], logits[folds == 1], atol=1e-3)
    assert np.abs(again[folds == 0] - logits[folds == 0]).max() > 0.05
