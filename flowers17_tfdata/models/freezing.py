"""Which layers train in which stage."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import keras
import numpy as np

from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.models import batch_norm
from flowers17_tfdata.models.classifier import get_backbone

# `auto` trains from the first feature map of this fraction of the image's size
# on: below lie generic edges and textures, and half of a training step's cost.
_AUTO_REDUCTION = 8


def freeze_all(backbone: keras.Model) -> None:
    """Freezes the backbone: the transfer stage."""
    backbone.trainable = False


def unfreeze_from(
    backbone: keras.Model, name: str, image_size: int, *, keep_batch_norm: bool
) -> None:
    """Unfreezes a layer or block and all that doesn't feed it.

    Args:
      backbone: changed in place.
      name: a layer, e.g. `mixed2`; a block, i.e. the leading part of layers'
        names, e.g. `block5`; `all`; or `auto`: the layers whose feature maps
        have at most an eighth of the image's height.
      image_size: height and width of the images, pixels.
      keep_batch_norm: keep every batch-norm frozen, which for Keras is also
        inference mode: on a few hundred images, batch statistics drift away
        from the ones that pretrained weights were trained with. (Calling a
        nested model with `training=False` does not do it: the outer model's
        training flag overrides it.)

    Raises:
      ConfigError: no layer or block has that name.
    """
    backbone.trainable = True
    if name == "auto":
        frozen = _below_reduction(backbone, image_size)
    elif name == "all":
        frozen = []
    else:
        frozen = _ancestors(_matching_layers(backbone, name))
    for layer in frozen:
        layer.trainable = False
    if keep_batch_norm:
        for layer in batch_norm.batch_norm_layers(backbone):
            layer.trainable = False


def learning_rate_scales(
    model: keras.Model,
    lowest: float,
    channel_scales: Mapping[str, np.ndarray],
    optimizer: str,
) -> list[np.ndarray]:
    """Returns each trainable variable's share of the learning rate.

    Discriminative fine-tuning (J. Howard and S. Ruder, "Universal language
    model fine-tuning", ACL 2018, section 3.2): what lower layers know is more
    general, and should change less.

    Args:
      model: a classifier, its layers frozen or not.
      lowest: of the lowest layer that trains, in (0, 1]. From there the share
        rises geometrically, layer by layer, to 1 in the head.
      channel_scales: by a backbone layer's name, what its kernel's channels
        were multiplied by (see `folding.merged_scales`). Their shares make a
        step that of the kernel before it was folded.
      optimizer: the optimizer's name: SGD's steps follow the gradient's size,
        which the scale changes as well, Adam's don't.

    Returns:
      In the order of `model.trainable_variables`: float32, each in a shape that
      is broadcast to its variable's.
    """
    layers = get_backbone(model).layers
    trained = [k for k, x in enumerate(layers) if x.trainable_variables]
    first, last = min(trained, default=len(layers)), len(layers)
    shares: dict[int, np.ndarray] = {}
    for k in trained:
        share = np.float32(lowest ** ((last - k) / (last - first)))
        layer = layers[k]
        shares |= {id(v): share for v in layer.trainable_variables}
        if layer.name in channel_scales:
            # The last one, before the bias that folding gave it.
            kernel = layer.trainable_variables[-2]
            scale = np.abs(channel_scales[layer.name]).astype(np.float32)
            scale = scale**2 if optimizer == "sgd" else scale
            shares[id(kernel)] = share * scale
    return [shares.get(id(v), np.float32(1)) for v in model.trainable_variables]


def _matching_layers(
    backbone: keras.Model, name: str
) -> list[keras.layers.Layer]:
    exact = [layer for layer in backbone.layers if layer.name == name]
    # `block5` takes block5_conv1 and block5a_..., but not block50_...
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


def _below_reduction(
    backbone: keras.Model, image_size: int
) -> list[keras.layers.Layer]:
    """Returns the layers with larger feature maps than `auto` trains.

    And all that feed them. None, where nothing else has weights.
    """
    # The backbone itself may take images of any size.
    outputs = keras.Model(backbone.inputs, [x.output for x in backbone.layers])
    maps = outputs.compute_output_spec(
        keras.KerasTensor([1, image_size, image_size, 3])
    )
    large = [
        layer
        for layer, output in zip(backbone.layers, maps, strict=True)
        # Padding before a convolution is no feature map.
        if layer.weights
        and len(output.shape) == 4
        and output.shape[1] > math.ceil(image_size / _AUTO_REDUCTION)
    ]
    below = [*large, *_ancestors(large)]
    kept = {id(layer) for layer in below}
    if all(id(layer) in kept or not layer.weights for layer in backbone.layers):
        return []
    return below


def _ancestors(layers: list[keras.layers.Layer]) -> list[keras.layers.Layer]:
    """Returns the layers that feed `layers`, without `layers` themselves."""
    found: dict[int, keras.layers.Layer] = {}
    waiting = list(layers)
    while waiting:
        for node in waiting.pop()._inbound_nodes:
            for parent in node.parent_nodes:
                layer = parent.operation
                if id(layer) not in found:
                    found[id(layer)] = layer
                    waiting.append(layer)
    for layer in layers:
        found.pop(id(layer), None)
    return list(found.values())
