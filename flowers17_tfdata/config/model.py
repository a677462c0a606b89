"""The flags of the network."""

from __future__ import annotations

import dataclasses

from flowers17_tfdata.config.option import Kind, Needs


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    backbone: str = Kind.RUN.option(
        "inception_v3",
        "Any keras.applications classifier, such as inception_v3, resnet50v2, "
        "efficientnetv2-b0, or one that your program registered.",
        common=True,
    )
    weights: str = Kind.TRAINING.option(
        "imagenet",
        "Backbone weights: imagenet (downloaded), none (random), or a "
        ".weights.h5 or .h5 file without the top.",
        common=True,
    )
    head_units: int = Kind.TRAINING.option(
        0,
        "Units of the head's hidden layer (0: no hidden layer).",
        bounds=(0, None),
        needs=(Needs("transfer_optimizer", ("sgd", "adam", "adamw")),),
    )
    dropout: float = Kind.TRAINING.option(
        0.0,
        "Dropout rate before the last layer.",
        bounds=(0, 0.95),
    )
    unfreeze_from: str = Kind.TRAINING.option(
        "auto",
        "First backbone layer or block to fine-tune, such as mixed2 or block5, "
        "or all; auto: the first feature map of an eighth of the image's size "
        "(all for --weights=none).",
        common=True,
        stage="finetune",
    )
    init_from: str = Kind.TRAINING.option(
        "",
        "Saved .keras classifier to fine-tune ('': model_transfer.keras).",
        stage="finetune",
        needs=(Needs("phase", ("train",), never=True),),
    )
    model_summary: bool = Kind.FREE.option(
        False,
        "Print each stage's layers, shapes and trainable weights.",
    )
    plot_model: bool = Kind.FREE.option(
        False,
        "Draw each stage's network to plot_STAGE.png (needs Graphviz).",
    )

    @property
    def trains_batch_norm(self) -> bool:
        """Whether fine-tuning trains batch-norm, which then can't be folded."""
        return self.weights == "none"
