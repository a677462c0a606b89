"""Merges batch-norm into the convolutions: the same function, but faster.

In inference mode batch-norm is a fixed scale and offset for each channel, so
the convolution before it can apply them.
"""

from __future__ import annotations

import collections
from typing import Any

import keras
import numpy as np
from keras import layers

_CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)


def fold_batch_norm(
    model: keras.Model, *, frozen_only: bool = False
) -> keras.Model:
    """Rebuilds a model with its batch-norms merged into its convolutions.

    With `s = gamma / sqrt(moving_variance + epsilon)`, the convolution's
    kernel becomes `kernel * s` for each output channel, and its bias
    `beta + (bias - moving_mean) * s` (Jacob et al. 2018,
    https://arxiv.org/abs/1712.05877, section 3.2).

    A batch-norm is merged if its input is the output of a Conv2D,
    DepthwiseConv2D or SeparableConv2D without activation, nothing else uses
    that output, and both layers are called once. Others stay, e.g. those of
    pre-activation networks, which follow an addition or a concatenation. Nested
    functional models are folded too; other nested models are copied unchanged.

    The result computes `model(x, training=False)`: a merged batch-norm no
    longer has a training mode, even if it was trainable. The regularizers and
    constraints of a convolution stay, and then act on the merged weights.

    Args:
      model: a functional model, built or loaded; not changed. The new model's
        variables are created in the caller's strategy scope.
      frozen_only: leave out the batch-norms that are trainable.

    Returns:
      A new model (even if there is nothing to merge) of plain Keras layers,
      with the input and output shapes, layer names, dtype policies and
      trainable flags of the old one. It is not compiled, and the random state
      of its dropout starts anew.
    """
    config = model.get_config()
    plan = _fold_config(model, config, frozen_only)
    folded = keras.Model.from_config(config)
    _copy_state(model, folded, plan)
    return folded


def merged_scales(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the factors of the kernels when frozen batch-norms are merged.

    Args:
      model: the argument of `fold_batch_norm`, or a nested model of it. Layers
        of models nested in this one are ignored.

    Returns:
      For each convolution's name `gamma / sqrt(moving_variance + epsilon)`,
      float64, in the shape of the kernel's last axes (the last two axes of a
      depthwise kernel, otherwise the last one).
    """
    folds = _find_folds(model, model.get_config(), frozen_only=True)
    return {
        name: _scale(model.get_layer(name), batch_norm)
        for name, batch_norm in folds.items()
    }


def _fold_config(
    model: keras.Model, config: dict[str, Any], frozen_only: bool
) -> dict[str, Any]:
    """Removes the batch-norms that can be merged from a model's config.

    Args:
      model: a functional model.
      config: the model's config; changed in place.
      frozen_only: see `fold_batch_norm`.

    Returns:
      The plan for `_copy_state`: for a convolution's name the batch-norm to
      merge into it, for a nested model's name the plan of that model.
    """
    plan: dict[str, Any] = _find_folds(model, config, frozen_only)
    # The convolution whose output takes the place of a batch-norm's.
    sources = {norm.name: name for name, norm in plan.items()}
    config["layers"] = [x for x in config["layers"] if x["name"] not in sources]
    for layer in config["layers"]:
        name = layer["name"]
        if name in plan:
            layer["config"]["use_bias"] = True
        elif "input_layers" in layer["config"]:
            plan[name] = _fold_config(
                model.get_layer(name), layer["config"], frozen_only
            )
    nodes = [layer["inbound_nodes"] for layer in config["layers"]]
    for reference in _references([nodes, config["output_layers"]]):
        reference[0] = sources.get(reference[0], reference[0])
    return plan


def _find_folds(
    model: keras.Model, config: dict[str, Any], frozen_only: bool
) -> dict[str, layers.BatchNormalization]:
    """Returns the batch-norm to merge into each convolution, by its name.

    Reads the graph from the config. The layers' own nodes also hold calls in
    other models, e.g. in a larger one that this model was cut out of.
    """
    if "input_layers" not in config:
        # A sequential backbone.
        return {}
    operations = {operation.name: operation for operation in model.operations}
    nodes = {x["name"]: x["inbound_nodes"] for x in config["layers"]}
    graph = [*nodes.values(), config["output_layers"]]
    uses = collections.Counter(reference[0] for reference in _references(graph))
    folds = {}
    for name, calls in nodes.items():
        # One for each call and input: a layer that is called twice has two.
        sources = [reference[0] for reference in _references(calls)]
        # Such a call uses the batch's statistics in every mode of the model.
        trains = any(call["kwargs"].get("training") for call in calls)
        if len(sources) != 1 or uses[sources[0]] != 1 or trains:
            continue
        source, target = operations[sources[0]], operations[name]
        kept = frozen_only and target.trainable
        if _can_merge(source, target) and not kept:
            folds[source.name] = target
    return folds


def _can_merge(source: keras.Operation, target: keras.Operation) -> bool:
    # Not isinstance: a subclass may compute anything.
    return (
        type(source) in _CONVOLUTIONS
        and type(target) is layers.BatchNormalization
        and source.activation is keras.activations.linear
        and source.data_format == "channels_last"
        and target.axis in (-1, 3)
        # Otherwise the next layer would get another dtype.
        and source.compute_dtype == target.compute_dtype
    )


def _references(structure: Any) -> list[list[Any]]:
    """Returns all `[layer name, call index, output index]` in a config."""
    found = []

    def collect(part: Any) -> None:
        if isinstance(part, list) and list(map(type, part)) == [str, int, int]:
            found.append(part)

    keras.tree.traverse(collect, structure)
    return found


def _copy_state(
    model: keras.Model, folded: keras.Model, plan: dict[str, Any]
) -> None:
    """Copies the weights, and what the config lacks, to the rebuilt model."""
    # A functional model's config doesn't hold its policy.
    folded.dtype_policy = model.dtype_policy
    for target in folded.layers:
        source = model.get_layer(target.name)
        entry = plan.get(target.name)
        if isinstance(entry, dict):
            _copy_state(source, target, entry)
        elif entry is not None:
            target.set_weights(_merged_weights(source, entry))
        else:
            copy_variables(source, target)


def copy_variables(source: layers.Layer, target: layers.Layer) -> None:
    """Copies the variables between layers or models of the same config."""
    for old, new in zip(
        source._flatten_layers(), target._flatten_layers(), strict=True
    ):
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        # Not set_weights: Normalization derives constants from its weights,
        # but only when they are loaded.
        new.load_own_variables(
            {k: keras.ops.convert_to_numpy(v) for k, v in store.items()}
        )


def _merged_weights(
    convolution: layers.Layer, batch_norm: layers.BatchNormalization
) -> list[np.ndarray]:
    """Returns the convolution's kernels and bias with batch-norm merged in.

    They are float64, so that they are rounded only once, when they are assigned
    to the variables.
    """
    weights = [_value(v) for v in convolution.weights]
    bias = weights.pop() if convolution.use_bias else 0.0
    scale = _scale(convolution, batch_norm)
    bias = (bias - _value(batch_norm.moving_mean)) * scale.reshape(-1)
    if batch_norm.center:
        bias = bias + _value(batch_norm.beta)
    # The output channel is the last axis, in grouped convolutions too. A
    # separable convolution's last kernel is the pointwise one.
    weights[-1] = weights[-1] * scale
    return [*weights, bias]


def _scale(
    convolution: layers.Layer, batch_norm: layers.BatchNormalization
) -> np.ndarray:
    scale = 1 / np.sqrt(_value(batch_norm.moving_variance) + batch_norm.epsilon)
    if batch_norm.scale:
        scale = scale * _value(batch_norm.gamma)
    if isinstance(convolution, layers.DepthwiseConv2D):
        # The kernel is [height, width, inputs, multiplier]; output channel
        # `input * multiplier + m` is [..., input, m].
        return scale.reshape(convolution.kernel.shape[2:])
    return scale


def _value(variable: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype(np.float64)
