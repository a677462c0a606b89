"""Batch-norm merged into the convolutions before it: the same function, faster.

A batch-norm in inference mode is a fixed scale and offset per channel, so
the convolution that feeds it can do its work.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

_CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)


def fold_batch_norm(
    model: keras.Model, *, frozen_only: bool = False
) -> keras.Model:
    """Rebuilds a model with its batch-norms merged into its convolutions.

    With `s = gamma / sqrt(moving_variance + epsilon)`, the convolution's
    kernel becomes `kernel * s` per output channel and its bias
    `beta + (bias - moving_mean) * s` (Jacob et al. 2018,
    https://arxiv.org/abs/1712.05877, section 3.2).

    A batch-norm is merged if it is all that uses the output of a Conv2D,
    DepthwiseConv2D or SeparableConv2D without activation, and each of the two
    is called once. Others stay, e.g. those of pre-activation networks, which
    follow an addition or a concatenation. Nested functional models are folded
    too; other nested models are copied as they are.

    The result computes `model(x, training=False)`: a merged batch-norm no
    longer has a training mode, even where it was trainable. A convolution's
    regularizers and constraints stay and then see the merged weights.

    Args:
      model: functional, built or loaded; left as it is. Variables of the new
        model are created in the caller's strategy scope.
      frozen_only: keep what trains.

    Returns:
      A new model (also if nothing is to be merged) of plain Keras layers, with
      the input and output shapes, layer names, dtype policies and trainable
      flags of the old one. It is not compiled; the random state of its dropout
      starts anew.

    Raises:
      ValueError: the model isn't functional.
    """
    config = model.get_config()
    if not is_functional(model):
        raise ValueError(
            "fold_batch_norm wants a functional model; got "
            f"{type(model).__name__} {model.name}"
        )
    plan = _fold_config(model, config, frozen_only)
    folded = keras.Model.from_config(config)
    _copy_state(model, folded, plan)
    return folded


def merged_scales(
    model: keras.Model, *, frozen_only: bool = False
) -> dict[str, np.ndarray]:
    """Returns what `fold_batch_norm` multiplies kernels by.

    Args:
      model: functional; its own layers are looked at, not nested models.
      frozen_only: as for `fold_batch_norm`.

    Returns:
      By the convolution's name `gamma / sqrt(moving_variance + epsilon)`,
      float64, in the shape of the kernel's last axes (a depthwise kernel's last
      two, else the last one).
    """
    operations = {operation.name: operation for operation in model.operations}
    folds = _find_folds(operations, model.get_config())
    return {
        name: _scale(operations[name], batch_norm)
        for name, batch_norm in folds.items()
        if not (frozen_only and batch_norm.trainable)
    }


def is_functional(model: keras.Model) -> bool:
    """Whether `fold_batch_norm` takes the model: not Sequential, say."""
    return _has_graph(model.get_config())


def _has_graph(config: dict[str, Any]) -> bool:
    return "input_layers" in config


def _fold_config(
    model: keras.Model, config: dict[str, Any], frozen_only: bool
) -> dict[str, Any]:
    """Takes the batch-norms that can be merged out of a model's config.

    Args:
      model: functional.
      config: of the model; changed in place.
      frozen_only: see `fold_batch_norm`.

    Returns:
      The plan for `_copy_state`: by the convolution's name the batch-norm to
      merge, by a nested model's name its own plan.
    """
    operations = {operation.name: operation for operation in model.operations}
    plan: dict[str, Any] = {
        name: layer
        for name, layer in _find_folds(operations, config).items()
        if not (frozen_only and layer.trainable)
    }
    sources = {bn.name: name for name, bn in plan.items()}
    config["layers"] = [x for x in config["layers"] if x["name"] not in sources]
    for layer in config["layers"]:
        name = layer["name"]
        if name in plan:
            layer["config"]["use_bias"] = True
        elif _has_graph(layer["config"]):
            plan[name] = _fold_config(
                operations[name], layer["config"], frozen_only
            )
    # Who used a batch-norm's output now uses the convolution's.
    for layer in config["layers"]:
        _redirect(layer["inbound_nodes"], sources)
    _redirect(config["output_layers"], sources)
    return plan


def _find_folds(
    operations: dict[str, keras.Operation], config: dict[str, Any]
) -> dict[str, keras.layers.BatchNormalization]:
    """Returns the batch-norms to merge, by their convolution's name.

    The graph is the config's, not the layers' own nodes: those also hold calls
    in other models, e.g. in one cut out of a larger one.
    """
    nodes = {x["name"]: x["inbound_nodes"] for x in config["layers"]}
    graph = [*nodes.values(), config["output_layers"]]
    uses = collections.Counter(reference[0] for reference in _references(graph))
    folds = {}
    for name, calls in nodes.items():
        # One per call and input: a layer that is called twice has two.
        sources = [reference[0] for reference in _references(calls)]
        # Batch statistics whatever the mode of the model.
        trains = any(call["kwargs"].get("training") for call in calls)
        if len(sources) != 1 or uses[sources[0]] != 1 or trains:
            continue
        source, target = operations[sources[0]], operations[name]
        if _can_merge(source, target):
            folds[source.name] = target
    return folds


def _can_merge(source: keras.Operation, target: keras.Operation) -> bool:
    # Not isinstance: a subclass may compute anything.
    return (
        type(source) in _CONVOLUTIONS
        and type(target) is keras.layers.BatchNormalization
        and source.activation is keras.activations.linear
        and source.data_format == "channels_last"
        and target.axis in (-1, 3)
        # Else the next layer would get another dtype.
        and source.compute_dtype == target.compute_dtype
    )


def _references(structure: Any) -> Iterator[list[Any]]:
    """Yields all `[layer name, call index, output index]` in a config."""
    if isinstance(structure, dict):
        structure = list(structure.values())
    if not isinstance(structure, (list, tuple)):
        return
    if [type(x) for x in structure] == [str, int, int]:
        yield structure
        return
    for value in structure:
        yield from _references(value)


def _redirect(structure: Any, sources: dict[str, str]) -> None:
    for reference in _references(structure):
        reference[0] = sources.get(reference[0], reference[0])


def _copy_state(
    model: keras.Model, folded: keras.Model, plan: dict[str, Any]
) -> None:
    """Gives the rebuilt model the weights and what the config leaves out."""
    # A functional config holds none.
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


def copy_variables(
    source: keras.layers.Layer, target: keras.layers.Layer
) -> None:
    """Gives a layer or model the variables of another of the same config."""
    for old, new in zip(
        source._flatten_layers(), target._flatten_layers(), strict=True
    ):
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        # Not set_weights: Normalization keeps constants that it derives from
        # its weights when they are loaded, and only then.
        new.load_own_variables(
            {k: keras.ops.convert_to_numpy(v) for k, v in store.items()}
        )


def _merged_weights(
    convolution: keras.layers.Layer,
    batch_norm: keras.layers.BatchNormalization,
) -> list[np.ndarray]:
    """Returns the convolution's kernels and bias, batch-norm included.

    In float64: they are rounded once, by their assignment to the variables.
    """

    weights = [_value(v) for v in convolution.weights]
    bias = weights.pop() if convolution.use_bias else 0.0
    scale = _scale(convolution, batch_norm)
    bias = (bias - _value(batch_norm.moving_mean)) * scale.reshape(-1)
    if batch_norm.center:
        bias = bias + _value(batch_norm.beta)
    # The output channel is the last axis, in groups too. A separable
    # convolution's last kernel is its pointwise one.
    weights[-1] = weights[-1] * scale
    return [*weights, bias]


def _scale(
    convolution: keras.layers.Layer,
    batch_norm: keras.layers.BatchNormalization,
) -> np.ndarray:
    scale = 1 / np.sqrt(_value(batch_norm.moving_variance) + batch_norm.epsilon)
    if batch_norm.scale:
        scale = scale * _value(batch_norm.gamma)
    if isinstance(convolution, keras.layers.DepthwiseConv2D):
        # [height, width, inputs, multiplier]; output channels are numbered
        # input * multiplier + m.
        return scale.reshape(convolution.kernel.shape[2:])
    return scale


def _value(variable: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype(np.float64)
