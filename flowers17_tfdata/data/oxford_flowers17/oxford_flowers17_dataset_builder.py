"""Oxford Flowers-17, with splits that keep near-duplicates together."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Mapping

import numpy as np
import requests
import tensorflow_datasets.public_api as tfds

from . import archive, splits
from .errors import DatasetError, DownloadFailed, one_line

# Each class's first image in the archive, which holds 80 images of a class in a
# row. The classes are in the order of their label ids, that of the table which
# the original tutorial published.
_FIRST_IMAGES = {
    "Buttercup": 1121,
    "Colts Foot": 881,
    "Daffodil": 1,
    "Daisy": 801,
    "Dandelion": 961,
    "Fritillary": 641,
    "Iris": 401,
    "Pansy": 1281,
    "Sunflower": 721,
    "Windflower": 1201,
    "Snowdrop": 81,
    "LilyValley": 161,
    "Bluebell": 241,
    "Crocus": 321,
    "Tigerlily": 481,
    "Tulip": 561,
    "Cowslip": 1041,
}
CLASS_NAMES = tuple(_FIRST_IMAGES)
_ARCHIVE_ORDER = sorted(CLASS_NAMES, key=_FIRST_IMAGES.__getitem__)

# How long to wait for the archive's host to answer.
_CONNECT_SECS = 20
_HOW_TO_PASS = 'with --archive=PATH (in code: builder_kwargs={"archive": PATH})'


def class_name(image_number: int) -> str:
    """Returns the true class name of image 1 to 1360."""
    position = (image_number - 1) // archive.IMAGES_PER_CLASS
    return _ARCHIVE_ORDER[position]


def known_near_duplicates() -> list[tuple[int, int]]:
    """Returns the published pairs of image numbers that show one picture.

    They were found by dHash (copies) and by SIFT matches that agree on one
    similarity transform (crops, mirror images), then inspected one by one.
    """
    table = pathlib.Path(__file__).with_name("near_duplicates.csv")
    rows = np.loadtxt(table, int, delimiter=",", skiprows=1, usecols=(0, 1))
    return [(int(first), int(second)) for first, second in rows]


@dataclasses.dataclass
class Flowers17Config(tfds.core.BuilderConfig):
    """Which images, and how they are split.

    Attributes:
      official_split: 1 to 3 for the publishers' splits, 0 for the seeded one.
      drawn: whether the images are the synthetic ones.
      seed: the seed of the seeded split and of the drawings.
    """

    official_split: int = 0
    drawn: bool = False
    seed: int = 0


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `oxford_flowers17`.

    Args:
      archive: path of 17flowers.tgz or its extracted folder, instead of the
        download. `tfds.load(..., builder_kwargs={"archive": path})` passes it.
      **kwargs: arguments of `tfds.core.GeneratorBasedBuilder`.
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
            homepage=archive.HOMEPAGE,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        images = self._read_images(dl_manager)
        self.info.metadata["content_digest"] = archive.content_digest(images)
        if k := self.builder_config.official_split:
            path = archive.find_splits_file(self._archive)
            path = path or _download(dl_manager, "datasplits.mat")
            split_of = archive.read_official_split(path, k)
        else:
            split_of = self._seeded_split(images)
        return {
            split: self._generate_examples(
                {n: data for n, data in images.items() if split_of[n] == split}
            )
            for split in splits.FLOWERS17_SIZES
            if split in split_of.values()
        }

    def _generate_examples(self, images: Mapping[str, bytes]):
        for name, data in images.items():
            number = archive.image_number(name)
            example = {
                "image": io.BytesIO(data),
                "label": class_name(number),
                "file_name": name,
                "image_id": number,
            }
            yield name, example

    def _read_images(self, dl_manager) -> dict[str, bytes]:
        if self.builder_config.drawn:
            # Imported here: the photographs need no OpenCV.
            from . import synthetic

            drawn = synthetic.iter_synthetic_images(self.builder_config.seed)
            return dict(drawn)
        return archive.read_archive(
            self._archive or _download(dl_manager, "17flowers.tgz")
        )

    def _seeded_split(self, images: Mapping[str, bytes]) -> dict[str, str]:
        pairs = []
        if not self.builder_config.drawn:
            pairs = [(a - 1, b - 1) for a, b in known_near_duplicates()]
            # The download's digest shows that its images are whole.
            if self._archive:
                archive.check_decodable(images)
        numbers = [archive.image_number(name) for name in images]
        return splits.make_splits(
            list(images),
            [CLASS_NAMES.index(class_name(number)) for number in numbers],
            splits.group_pairs(pairs, len(images)).tolist(),
            splits.FLOWERS17_SIZES,
            self.builder_config.seed,
        )


def _download(dl_manager, file_name: str) -> pathlib.Path:
    """Downloads a file of the publishers' page, and checks its digest.

    Raises:
      DownloadFailed: the file can't be downloaded.
      DatasetError: the digest is not the one in `archive.DIGESTS`.
    """
    url = archive.HOMEPAGE + file_name
    stem = pathlib.Path(file_name).stem
    try:
        # TFDS retries an unreachable host for minutes: this fails at once. An
        # earlier download needs no host.
        if not any(pathlib.Path(dl_manager.download_dir).glob(f"*{stem}*")):
            requests.head(url, timeout=_CONNECT_SECS).close()
        path = dl_manager.download(url)
    # Whatever the network raises, the user's way out is the same.
    except Exception as error:
        raise DownloadFailed(
            f"can't download {url} ({one_line(error, 120)}): pass a local "
            "17flowers.tgz (and datasplits.mat beside it, for official_*) "
            f"{_HOW_TO_PASS}, or use oxford_flowers17/synthetic"
        ) from error
    algorithm, expected = archive.DIGESTS[file_name]
    actual = hashlib.new(algorithm, path.read_bytes()).hexdigest()
    if actual != expected:
        raise DatasetError(
            f"the download {path} has {algorithm} {actual}, not {expected}: "
            "it is damaged or was replaced; delete it and try again, or pass "
            f"a copy you trust {_HOW_TO_PASS}"
        )
    return path
