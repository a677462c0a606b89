"""Which layers train in fine-tuning, and how fast each of them learns."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

import keras
import numpy as np
from keras.layers import Layer

from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.models import batch_norm
from flowers17_tfdata.models.classifier import get_backbone

# `auto` trains from the first feature map of this fraction of the image's size
# on: the layers below it hold generic edges and textures, and cost half of a
# training step.
_AUTO_REDUCTION = 8


def unfreeze_from(
    backbone: keras.Model, name: str, image_size: int, *, keep_batch_norm: bool
) -> None:
    """Unfreezes a layer or block and all layers that don't feed it.

    Args:
      backbone: changed in place.
      name: a layer, e.g. `mixed2`; a block, which is the first part of its
        layers' names, e.g. `block5`; `all`; or `auto`: the layers whose feature
        maps have at most an eighth of the image's height.
      image_size: height and width of the images, in pixels.
      keep_batch_norm: keep every batch-norm frozen. In Keras that is also
        inference mode: on a few hundred images, batch statistics drift away
        from those that the pretrained weights were trained with. (Calling a
        nested model with `training=False` doesn't help: the outer model's
        training flag overrides it.)

    Raises:
      ConfigError: no layer or block has that name.
    """
    backbone.trainable = True
    if name == "auto":
        frozen = _below_reduction(backbone, image_size)
    elif name == "all":
        frozen = set()
    else:
        frozen = _ancestors(_matching_layers(backbone, name))
    if keep_batch_norm:
        frozen |= set(batch_norm.batch_norm_layers(backbone))
    for layer in frozen:
        layer.trainable = False


def learning_rate_scales(
    model: keras.Model,
    lowest: float,
    channel_scales: Mapping[str, np.ndarray],
    optimizer: str,
) -> list[np.ndarray]:
    """Returns the factor of the learning rate for each trainable variable.

    This is discriminative fine-tuning (J. Howard and S. Ruder, "Universal
    language model fine-tuning", ACL 2018, section 3.2): lower layers hold more
    general knowledge, and should change less.

    Args:
      model: a classifier, its layers frozen or not.
      lowest: the factor of the lowest layer that trains, in (0, 1]. The factors
        rise geometrically, layer by layer, to 1 in the head.
      channel_scales: for names of backbone layers, the factors by which the
        channels of the kernel were multiplied (see `folding.merged_scales`).
        They scale the learning rate, so that the folded kernel moves as the
        original one would have.
      optimizer: the optimizer's name. SGD's steps are proportional to the
        gradient, which the scale changes as well; Adam's are not.

    Returns:
      The factors in the order of `model.trainable_variables`, float32, each of
      a shape that broadcasts to its variable's.
    """
    layers = get_backbone(model).layers
    trained = [k for k, x in enumerate(layers) if x.trainable_variables]
    first, last = min(trained, default=len(layers)), len(layers)
    factors: dict[int, np.ndarray] = {}
    for k in trained:
        factor = np.float32(lowest ** ((last - k) / (last - first)))
        variables = layers[k].trainable_variables
        factors |= {id(v): factor for v in variables}
        if layers[k].name in channel_scales:
            scale = np.abs(channel_scales[layers[k].name]).astype(np.float32)
            scale = scale**2 if optimizer == "sgd" else scale
            # The last kernel, which precedes the bias that folding added.
            factors[id(variables[-2])] = factor * scale
    return [
        factors.get(id(v), np.float32(1)) for v in model.trainable_variables
    ]


def _matching_layers(backbone: keras.Model, name: str) -> list[Layer]:
    exact = [layer for layer in backbone.layers if layer.name == name]
    # `block5` matches block5_conv1 and block5a_..., but not block50_...
    block = re.compile(re.escape(name) + r"(_|[a-z]_)")
    layers = exact or [x for x in backbone.layers if block.match(x.name)]
    if not layers:
        names = [x.name for x in backbone.layers if x.name.startswith("mixed")]
        names = names or sorted(
            {x.name.split("_")[0] for x in backbone.layers if x.weights}
        )
        raise ConfigError(
            f"--unfreeze_from must be all, auto, or a layer or block of "
            f"{backbone.name} ({', '.join(names[:24])}); got {name!r}"
        )
    return layers


def _below_reduction(backbone: keras.Model, image_size: int) -> set[Layer]:
    """Returns the layers with larger feature maps than `auto` trains.

    They include all layers that feed them. Returns no layers if no others have
    weights.
    """
    # The backbone itself may take images of any size.
    outputs = keras.Model(backbone.inputs, [x.output for x in backbone.layers])
    maps = outputs.compute_output_spec(
        keras.KerasTensor([1, image_size, image_size, 3])
    )
    large = {
        layer
        for layer, output in zip(backbone.layers, maps, strict=True)
        # Only layers with weights: padding before a convolution enlarges the
        # map.
        if layer.weights
        and len(output.shape) == 4
        and output.shape[1] > math.ceil(image_size / _AUTO_REDUCTION)
    }
    below = large | _ancestors(large)
    above = set(backbone.layers) - below
    return below if any(layer.weights for layer in above) else set()


def _ancestors(layers: Collection[Layer]) -> set[Layer]:
    """Returns the layers that feed `layers`, without `layers` themselves."""
    found: set[Layer] = set()
    new = set(layers)
    while new:
        parents = {
            parent.operation
            for layer in new
            for node in layer._inbound_nodes
            for parent in node.parent_nodes
        }
        new = parents - found
        found |= new
    return found - set(layers)
