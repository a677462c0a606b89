"""Which layers train in which stage."""

from __future__ import annotations

import re

import keras

from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.models import batch_norm
from flowers17_tfdata.models.backbones import canonical_name
from flowers17_tfdata.models.classifier import get_backbone

# Where `auto` unfreezes: below lie generic edges and textures, and more than
# a third of the training step's cost.
_AUTO = {
    "inceptionv3": "mixed2",
    "xception": "block5",
    "resnet50v2": "conv3",
    "mobilenetv2": "block_4",
    "efficientnetv2b0": "block4",
    "vgg16": "block3",
}


def freeze_all(backbone: keras.Model) -> None:
    """Freezes the backbone: the transfer stage."""
    backbone.trainable = False


def unfreeze_from(
    backbone: keras.Model, name: str, *, keep_batch_norm: bool
) -> None:
    """Unfreezes a layer or block and all that doesn't feed it.

    Args:
      backbone: changed in place.
      name: a layer, e.g. `mixed2`; a block, i.e. the leading part of layers'
        names, e.g. `block5`; `all`; or `auto`.
      keep_batch_norm: keep every batch-norm frozen, which for Keras is also
        inference mode: on a few hundred images, batch statistics drift away
        from the ones that pretrained weights were trained with. (Calling a
        nested model with `training=False` does not do it: the outer model's
        training flag overrides it.)

    Raises:
      ConfigError: no layer or block has that name.
    """
    if name == "auto":
        name = _AUTO.get(canonical_name(backbone.name), "all")
    backbone.trainable = True
    if name != "all":
        for layer in _ancestors(_matching_layers(backbone, name)):
            layer.trainable = False
    if keep_batch_norm:
        for layer in batch_norm.batch_norm_layers(backbone):
            layer.trainable = False


def check_trains_batch_norm(backbone: keras.Model, path: object) -> None:
    """Checks that `--train_batch_norm` has something to train.

    Args:
      backbone: its layers frozen or not, as they are to train.
      path: of the file that it is from.

    Raises:
      ConfigError: no batch-norm trains.
    """
    layers = batch_norm.batch_norm_layers(backbone)
    if any(layer.trainable for layer in layers):
        return
    reason = (
        "all of it is below --unfreeze_from"
        if layers
        else f"{path} has none; where its training folded it, train that "
        "again with --train_batch_norm"
    )
    raise ConfigError(f"--train_batch_norm finds none to train: {reason}")


def learning_rate_scales(model: keras.Model, lowest: float) -> list[float]:
    """Returns each trainable variable's share of the learning rate.

    Discriminative fine-tuning (J. Howard and S. Ruder, "Universal language
    model fine-tuning", ACL 2018, section 3.2): what lower layers know is more
    general, and should change less.

    Args:
      model: a classifier, its layers frozen or not.
      lowest: of the lowest layer that trains, in (0, 1]. From there the share
        rises geometrically, layer by layer, to 1 in the head.

    Returns:
      In the order of `model.trainable_variables`.
    """
    layers = get_backbone(model).layers
    position = {
        id(variable): k
        for k, layer in enumerate(layers)
        for variable in layer.trainable_variables
    }
    first, last = min(position.values(), default=len(layers)), len(layers)
    return [
        lowest ** ((last - position[id(v)]) / (last - first))
        if id(v) in position
        else 1.0
        for v in model.trainable_variables
    ]


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
