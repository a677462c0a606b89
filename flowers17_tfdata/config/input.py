"""The flags of the input pipeline."""

from __future__ import annotations

import dataclasses

from flowers17_tfdata.config.option import Kind, Needs, option


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """How an image becomes a training example."""

    image_size: int = option(
        299,
        "Height and width of the network's input, pixels.",
        Kind.RUN,
        common=True,
        bounds=(32, None),
    )
    train_scale: float = option(
        1.0,
        "Size of the images for fine-tuning, as a fraction of --image_size; "
        "smaller ones train faster and offset the magnification by --crop.",
        Kind.TRAINING,
        bounds=(0.25, 1),
    )
    cache: str = option(
        "auto",
        "memory keeps resized images (3 * image_size^2 bytes each), none "
        "decodes in every epoch; auto: memory if half of what is free is enough.",
        Kind.SETTLED,
        choices=("auto", "memory", "none"),
    )
    feature_views: int = option(
        2,
        "Transfer stage: fit the head to cached features of K views of each "
        "image (itself, its mirror image, then random ones); 0: augment in "
        "every epoch.",
        Kind.TRAINING,
        stage="transfer",
        bounds=(0, 1000),
        needs=(
            Needs("augmentation", ("affine",), above=2),
            Needs("transfer_optimizer", ("sgd", "adam", "adamw"), below=1),
        ),
    )
    augment_on: str = option(
        "auto",
        "host augments with OpenCV in tf.data, device with Keras ops in the "
        "training step; auto: device on a GPU.",
        Kind.SETTLED,
        choices=("auto", "host", "device"),
    )
    augmentation: str = option(
        "affine",
        "affine transforms each training image at random; none does not.",
        Kind.RUN,
        choices=("affine", "none"),
    )
    rotation: float = option(
        30.0,
        "Rotate by up to this angle in either direction, degrees.",
        Kind.RUN,
        bounds=(0, 180),
    )
    shift: float = option(
        0.1,
        "Shift by up to this fraction of the height and of the width.",
        Kind.RUN,
        bounds=(0, 1),
    )
    zoom: float = option(
        0.2,
        "Scale height and width by factors in [1-zoom, 1+zoom].",
        Kind.RUN,
        bounds=(0, 0.9),
    )
    crop: float = option(
        1.0,
        "Random resized crop with an area in [crop, 1] of the image's and an "
        "aspect ratio in [3/4, 4/3] (1: no crops).",
        Kind.RUN,
        bounds=(0.05, 1),
        needs=(Needs("augmentation", ("affine",), below=1),),
    )
    horizontal_flip: bool = option(True, "Mirror half of the images.", Kind.RUN)

    @property
    def train_image_size(self) -> int:
        """Height and width of augmented training images, pixels."""
        return round(self.train_scale * self.image_size)
