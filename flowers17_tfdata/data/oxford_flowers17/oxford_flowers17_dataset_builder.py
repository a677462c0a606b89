"""Oxford Flowers-17, with splits that near-duplicates don't straddle."""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterator, Mapping
from importlib import resources

import numpy as np
import requests
import tensorflow_datasets.public_api as tfds

from . import archive as archive_lib
from . import splits
from .errors import DatasetError, DownloadFailed, one_line

HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/"

# Label ids, in the order of the table that the original tutorial published.
CLASS_NAMES = (
    "Buttercup",
    "Colts Foot",
    "Daffodil",
    "Daisy",
    "Dandelion",
    "Fritillary",
    "Iris",
    "Pansy",
    "Sunflower",
    "Windflower",
    "Snowdrop",
    "LilyValley",
    "Bluebell",
    "Crocus",
    "Tigerlily",
    "Tulip",
    "Cowslip",
)

# The archive's order: images 1 to 80 are daffodils, 81 to 160 snowdrops, ...
ARCHIVE_ORDER = (
    "Daffodil",
    "Snowdrop",
    "LilyValley",
    "Bluebell",
    "Crocus",
    "Iris",
    "Tigerlily",
    "Tulip",
    "Fritillary",
    "Sunflower",
    "Daisy",
    "Colts Foot",
    "Dandelion",
    "Cowslip",
    "Buttercup",
    "Windflower",
    "Pansy",
)

# How long to wait for the archive's host to answer.
_CONNECT_SECS = 20

_OFFICIAL_KEYS = {"train": "trn", "validation": "val", "test": "tst"}


def class_name(image_number: int) -> str:
    """Returns the true class name of image 1 to 1360."""
    return ARCHIVE_ORDER[(image_number - 1) // archive_lib.IMAGES_PER_CLASS]


def known_near_duplicates() -> list[tuple[int, int]]:
    """Returns the published pairs of image numbers that show one picture.

    Found by dHash (copies), and by SIFT matches that agree on one similarity
    transform (crops, mirror images), then looked at one by one.
    """
    table = resources.files(__package__) / "near_duplicates.csv"
    with table.open(newline="") as file:
        return [
            (int(row["first"]), int(row["second"]))
            for row in csv.DictReader(file)
        ]


@dataclasses.dataclass
class Flowers17Config(tfds.core.BuilderConfig):
    """Which images, and how they are split.

    Attributes:
      official_split: 1 to 3 for the publishers' splits, 0 for the seeded one.
      drawn: whether the images are the synthetic ones.
      seed: of the seeded split and of the drawing.
    """

    official_split: int = 0
    drawn: bool = False
    seed: int = 0


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `oxford_flowers17`.

    Args:
      archive: path of 17flowers.tgz or its extracted folder, instead of the
        download. `tfds.load(..., builder_kwargs={"archive": path})` passes it.
      **kwargs: of `tfds.core.GeneratorBasedBuilder`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        Flowers17Config(
            name="seeded",
            description="800/260/260 and 40 unused; near-duplicates together.",
        ),
        *(
            Flowers17Config(
                name=f"official_{k}",
                description=f"Split {k} of the publishers' datasplits.mat.",
                official_split=k,
            )
            for k in (1, 2, 3)
        ),
        Flowers17Config(
            name="synthetic",
            description="Drawn flowers in the same layout, seeded split.",
            drawn=True,
        ),
    ]

    def __init__(self, *, archive: str = "", **kwargs):
        self._archive = archive
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(None, None, 3), encoding_format="jpeg"
                    ),
                    "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
                    "file_name": tfds.features.Text(),
                    "image_id": np.int64,
                }
            ),
            supervised_keys=("image", "label"),
            homepage=HOMEPAGE,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        images = self._read_images(dl_manager)
        self.info.metadata["content_digest"] = archive_lib.content_digest(
            images
        )
        if self.builder_config.official_split:
            split_of = self._official_splits(dl_manager)
        else:
            split_of = self._seeded_splits(images)
        names = list(dict.fromkeys((*_OFFICIAL_KEYS, *split_of.values())))
        return {
            split: self._generate_examples(
                {n: d for n, d in images.items() if split_of.get(n) == split}
            )
            for split in names
        }

    def _generate_examples(
        self, images: Mapping[str, bytes]
    ) -> Iterator[tuple[str, dict]]:
        for name, data in images.items():
            number = archive_lib.image_number(name)
            yield (
                name,
                {
                    "image": io.BytesIO(data),
                    "label": class_name(number),
                    "file_name": name,
                    "image_id": number,
                },
            )

    def _read_images(self, dl_manager) -> dict[str, bytes]:
        if self.builder_config.drawn:
            # Imported here: the photographs need no OpenCV.
            from . import synthetic

            return dict(
                synthetic.iter_synthetic_images(self.builder_config.seed)
            )
        path = self._archive
        if not path:
            path = _download(dl_manager, archive_lib.ARCHIVE_URL)
            archive_lib.verify_digest(
                path, "sha256", archive_lib.ARCHIVE_SHA256
            )
        return archive_lib.read_archive(path)

    def _seeded_splits(self, images: Mapping[str, bytes]) -> dict[str, str]:
        # Imported here: it needs TensorFlow, which registering must not load.
        from . import decoding

        names = list(images)
        if errors := decoding.find_undecodable(images):
            listed = "; ".join(
                f"{name}: {message}"
                for name, message in list(errors.items())[:5]
            )
            raise DatasetError(
                f"{len(errors)} of {len(names)} images can't be "
                f"decoded ({listed}); replace them, the split needs them all"
            )
        pairs = []
        if not self.builder_config.drawn:
            pairs = [(a - 1, b - 1) for a, b in known_near_duplicates()]
        labels = [
            CLASS_NAMES.index(class_name(archive_lib.image_number(name)))
            for name in names
        ]
        return splits.make_splits(
            names,
            labels,
            splits.group_pairs(pairs, len(names)),
            splits.FLOWERS17_SIZES,
            self.builder_config.seed,
        )

    def _official_splits(self, dl_manager) -> dict[str, str]:
        # SciPy reads MATLAB's format; nothing else here needs it so early.
        from scipy import io as scipy_io

        path = archive_lib.splits_beside(self._archive)
        if path is None:
            path = _download(dl_manager, archive_lib.SPLITS_URL)
            archive_lib.verify_digest(path, "md5", archive_lib.SPLITS_MD5)
        k = self.builder_config.official_split
        try:
            table = scipy_io.loadmat(path)
            numbers_of = {
                split: [int(n) for n in table[f"{key}{k}"].ravel()]
                for split, key in _OFFICIAL_KEYS.items()
            }
        except (
            scipy_io.matlab.MatReadError,
            ValueError,
            KeyError,
            TypeError,
            OSError,
        ) as error:
            raise DatasetError(
                f"{path} can't be read as datasplits.mat: {one_line(error)}"
            ) from error
        archive_lib.check_official_split(numbers_of, path)
        return {
            archive_lib.image_name(number): split
            for split, numbers in numbers_of.items()
            for number in numbers
        }


def _download(dl_manager, url: str):
    try:
        _check_reachable(dl_manager, url)
        return dl_manager.download(url)
    # Whatever the network raises, the user's way out is the same.
    except Exception as error:
        raise DownloadFailed(
            f"can't download {url} ({one_line(error, 120)}): pass a local "
            "17flowers.tgz (and datasplits.mat beside it, for official_*) "
            f"{archive_lib.HOW_TO_PASS}, or use oxford_flowers17/synthetic"
        ) from error


def _check_reachable(dl_manager, url: str) -> None:
    """Raises at once what TFDS would raise after minutes of trying again.

    Not where an earlier download may serve.
    """
    folder = pathlib.Path(dl_manager.download_dir)
    name = pathlib.PurePosixPath(url).stem
    if not any(folder.glob(f"*{name}*")):
        requests.head(url, timeout=_CONNECT_SECS).close()
