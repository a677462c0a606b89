"""The flags of the input pipeline."""

from __future__ import annotations

import dataclasses

from flowers17_tfdata.config.option import Kind, Needs


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """How an image becomes a training example."""

    image_size: int = Kind.RUN.option(
        299,
        "Height and width of the network's input, pixels.",
        common=True,
        bounds=(32, None),
    )
    train_scale: float = Kind.TRAINING.option(
        1.0,
        "Size of the images for fine-tuning, as a fraction of --image_size; "
        "smaller ones train faster and offset the magnification by --crop.",
        bounds=(0.25, 1),
    )
    cache: str = Kind.SETTLED.option(
        "auto",
        "memory keeps resized images (3 * image_size^2 bytes each); none "
        "decodes each epoch; auto: memory if half the free memory holds them.",
        choices=("auto", "memory", "none"),
    )
    feature_views: int = Kind.TRAINING.option(
        2,
        "Transfer stage: fit the head to cached features of K views of each "
        "image (itself, its mirror image, then random ones); 0: augment in "
        "every epoch.",
        stage="transfer",
        bounds=(0, 1000),
        needs=(
            Needs("augmentation", ("affine",), above=2),
            Needs("transfer_optimizer", ("sgd", "adam", "adamw"), below=1),
        ),
    )
    augment_on: str = Kind.SETTLED.option(
        "auto",
        "host augments with OpenCV in tf.data, device with Keras ops in the "
        "training step; auto: device on a GPU.",
        choices=("auto", "host", "device"),
    )
    augmentation: str = Kind.RUN.option(
        "affine",
        "affine transforms each training image at random; none does not.",
        choices=("affine", "none"),
    )
    rotation: float = Kind.RUN.option(
        30.0,
        "Rotate by up to this angle in either direction, degrees.",
        bounds=(0, 180),
    )
    shift: float = Kind.RUN.option(
        0.1,
        "Shift by up to this fraction of the height and of the width.",
        bounds=(0, 1),
    )
    zoom: float = Kind.RUN.option(
        0.2,
        "Scale height and width by factors in [1-zoom, 1+zoom].",
        bounds=(0, 0.9),
    )
    crop: float = Kind.RUN.option(
        1.0,
        "Random resized crop with an area in [crop, 1] of the image's and an "
        "aspect ratio in [3/4, 4/3] (1: no crops).",
        bounds=(0.05, 1),
        needs=(Needs("augmentation", ("affine",), below=1),),
    )
    horizontal_flip: bool = Kind.RUN.option(True, "Mirror half of the images.")

    @property
    def train_image_size(self) -> int:
        """Height and width of augmented training images, pixels."""
        return round(self.train_scale * self.image_size)
