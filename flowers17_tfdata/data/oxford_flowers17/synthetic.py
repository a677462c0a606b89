"""Draws the `synthetic` dataset: parametric stand-ins for Flowers-17.

Where the photographs of Oxford Flowers-17 can't be downloaded, these drawings
take their place: 17 kinds of flower, 80 images each, numbered like the files of
the Oxford archive. Every image is a pure function of its class, its index and
one seed, so images may be drawn in any order and in any process.

Shapes are written [axis, ...]. Colours are RGB in [0, 255] throughout; only the
JPEG encoder sees BGR. Points are complex numbers, as in `painting`.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
from numpy.random import Generator

from . import painting
from .archive import IMAGES_PER_CLASS, image_name
from .flower_kinds import KINDS, Colour, FlowerKind
from .painting import Flower, Pose

Size = tuple[int, int]  # (height, width)

_JPEG_OPTIONS = (cv2.IMWRITE_JPEG_QUALITY, 90)
# Backgrounds are out of focus, so they are painted this many times smaller and
# enlarged: the enlargement is the blur, and it costs a sixteenth of the pixels.
_BACKGROUND_SHRINK = 4

# fmt: off
# Darkest, middle and lightest colour of a background, and the rows and columns
# of its noise: a grid that is much finer in one direction makes streaks.
_BACKGROUNDS: tuple[tuple[tuple[Colour, Colour, Colour], Size], ...] = (
    (((24, 50, 18), (66, 108, 38), (136, 168, 80)), (6, 34)),      # grass
    (((16, 38, 24), (42, 82, 46), (100, 140, 84)), (13, 13)),      # foliage
    (((48, 34, 24), (94, 70, 48), (152, 124, 92)), (22, 22)),      # soil
    (((84, 128, 186), (150, 188, 222), (226, 234, 240)), (9, 7)),  # sky
    (((12, 18, 14), (34, 44, 36), (72, 84, 66)), (11, 11)),        # deep shade
)
# fmt: on


def iter_synthetic_images(seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Draws and encodes the whole dataset in the Oxford archive's layout.

    The Oxford archive keeps the 80 images of a class in consecutive files, so
    image number = class_position * IMAGES_PER_CLASS + index + 1.

    Args:
        seed: non-negative seed of the whole dataset.

    Yields:
        File name and JPEG bytes, from image_0001.jpg to image_1360.jpg.
    """
    for position in range(len(KINDS) * IMAGES_PER_CLASS):
        image = draw_flower(*divmod(position, IMAGES_PER_CLASS), seed)
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, _JPEG_OPTIONS)
        yield image_name(position + 1), data.tobytes()


def draw_flower(class_position: int, index: int, seed: int = 0) -> np.ndarray:
    """Draws one flower.

    Args:
        class_position: class of the flower, in [0, 17).
        index: image within the class, in [0, 80).
        seed: non-negative seed of the whole dataset.

    Returns:
        uint8 [height, width, 3], RGB in [0, 255]. The shorter side is 200 to
        260 pixels long and width / height lies in [0.75, 1.33].
    """
    # Seeding by position rather than drawing from one shared stream is what
    # makes the image independent of which images were drawn before it.
    rng = np.random.default_rng([seed, class_position, index])
    kind = KINDS[class_position]
    short = int(rng.integers(200, 261))
    # Kept a little inside 0.75..1.33 so that rounding can't leave the range.
    aspect = math.exp(rng.uniform(math.log(0.76), math.log(1.32)))
    size = round(short / min(aspect, 1.0)), round(short * max(aspect, 1.0))
    height, width = size
    x = width * 0.5 + short * rng.uniform(-0.14, 0.14)
    y = height * 0.5 + short * rng.uniform(-0.14, 0.14)
    pose = Pose(
        centre=complex(x, y),
        radius=short * rng.uniform(0.30, 0.48),
        spin=rng.uniform(0.0, 2.0 * math.pi),
        tilt=rng.uniform(0.0, math.radians(42.0)),
        tilt_axis=rng.uniform(0.0, math.pi),
        light=rng.uniform(0.0, 2.0 * math.pi),
    )
    # One tint for the image: all flowers in one photograph grow on one plant.
    tint = rng.uniform(0.90, 1.10) * rng.uniform(0.95, 1.05, size=3)
    image = _background(rng, kind, pose, tint, size)
    _paint_stem(image, rng, pose)
    Flower(image, rng, kind, pose).paint(tint, shades=6)
    return _photograph(image, rng)


def _noise(rng: Generator, grid: Size, size: Size) -> np.ndarray:
    """Returns smooth noise, float32 [*size], mean 0 and spread 1."""
    coarse = rng.standard_normal(grid, dtype=np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def _background(
    rng: Generator, kind: FlowerKind, pose: Pose, tint: np.ndarray, size: Size
) -> np.ndarray:
    """Paints an out-of-focus scene.

    Args:
        rng: the image's random generator.
        kind: traits of the class, for more flowers of its kind farther off.
        pose: pose of the main flower, which casts a shadow on the scene.
        tint: float [3], factors on the petals' red, green and blue.
        size: height and width of the image, pixels.

    Returns:
        uint8 [height, width, 3], RGB in [0, 255].
    """
    rows, columns = (side // _BACKGROUND_SHRINK for side in size)
    small = rows, columns
    palette, grid = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    tone = 0.24 * _noise(rng, grid, small)
    tone += 0.22 * _noise(rng, (5, 5), small)
    tone += 0.10 * _noise(rng, (30, 30), small)
    slope_x, slope_y = rng.uniform(-0.35, 0.35, size=2)
    tone += slope_x * np.linspace(-1.0, 1.0, columns)
    tone += slope_y * np.linspace(-1.0, 1.0, rows)[:, None]
    anchors = np.array(palette) * rng.uniform(0.88, 1.12, size=3)
    planes = [np.interp(tone + 0.5, (0.0, 0.5, 1.0), c) for c in anchors.T]
    scene = np.clip(np.stack(planes, -1), 0.0, 255.0).astype(np.uint8)
    _paint_clutter(scene, rng)
    main = replace(
        pose,
        centre=pose.centre / _BACKGROUND_SHRINK,
        radius=pose.radius / _BACKGROUND_SHRINK,
    )
    plain = replace(kind, veins=0, spots=0)  # too fine to be seen blurred
    for _ in range(rng.integers(3)):
        far = _far_pose(rng, main, scene)
        Flower(scene, rng, plain, far).paint(tint, shades=1)
    scene = cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.7, 1.8))
    _cast_shadow(scene, main)
    return cv2.resize(scene, size[::-1], interpolation=cv2.INTER_CUBIC)


def _paint_clutter(scene: np.ndarray, rng: Generator) -> None:
    """Paints leaves and blobs of light onto the small background in place."""
    rows, columns = scene.shape[:2]
    for _ in range(rng.integers(3, 9)):
        length, width, angle, x, y = rng.uniform(
            (0.3, 0.15, 0.0, 0.0, 0.0), (0.8, 0.4, 2.0 * math.pi, 1.0, 1.0)
        )
        axis = cmath.rect(length * rows, angle)
        leaf = _leaf(x * columns + 1j * y * rows, axis, width)
        colour = np.array((62.0, 108.0, 44.0)) * rng.uniform(0.35, 1.6)
        colour *= rng.uniform(0.85, 1.15, size=3)
        painting.draw_polygon(scene, leaf, colour)
    for _ in range(rng.integers(2, 8)):
        x, y = rng.integers(columns), rng.integers(rows)
        # A blob takes a lighter or darker tone of whatever lies behind it.
        light = scene[y, x] * rng.uniform(0.7, 1.5)
        light += rng.uniform(0.0, 25.0, size=3)
        spot = painting.fixed(np.array([x + 1j * y]))
        painting.draw_dots(scene, spot, rng.uniform(1.5, 6.0), light)


def _leaf(root: complex, axis: complex, width: float) -> np.ndarray:
    """Places a pointed leaf.

    Args:
        root: position of the leaf's base, pixels.
        axis: vector from its base to its tip, pixels.
        width: greatest width of the leaf, in lengths of the leaf.

    Returns:
        int32 [22, 2] fixed-point pixels; rows 0 and 11 are base and tip.
    """
    along = np.linspace(0.0, 1.0, 12)
    half = 0.5 * width * np.sin(math.pi * along**0.8)
    return painting.fixed(painting.mirrored(along + 1j * half) * axis + root)


def _far_pose(rng: Generator, main: Pose, scene: np.ndarray) -> Pose:
    """Returns the pose of a small flower away from the image's main one."""
    direction = rng.uniform(0.0, 2.0 * math.pi)
    distance = main.radius * rng.uniform(1.0, 1.7)
    centre = main.centre + cmath.rect(distance, direction)
    x, y = np.clip((centre.real, centre.imag), 0.0, scene.shape[1::-1])
    return Pose(
        centre=complex(x, y),
        radius=main.radius * rng.uniform(0.3, 0.6),
        spin=rng.uniform(0.0, 2.0 * math.pi),
        tilt=rng.uniform(0.2, 1.0),
        tilt_axis=rng.uniform(0.0, math.pi),
        light=main.light,
    )


def _cast_shadow(scene: np.ndarray, main: Pose) -> None:
    """Darkens the small background around the main flower in place.

    It lifts the flower off the scene, most of all where their colours are
    alike.
    """
    y, x = np.ogrid[: scene.shape[0], : scene.shape[1]]
    spread = 0.85 * main.radius
    shadow = np.exp(-0.5 * np.square((y - main.centre.imag) / spread))
    shadow = shadow * np.exp(-0.5 * np.square((x - main.centre.real) / spread))
    scene[...] = scene * (1.0 - 0.45 * shadow[..., None])


def _paint_stem(image: np.ndarray, rng: Generator, pose: Pose) -> None:
    """Paints a stem with up to three leaves below the flower, in place."""
    green = np.array((78.0, 124.0, 52.0)) * rng.uniform(0.7, 1.2)
    green *= rng.uniform(0.9, 1.1, size=3)
    # A quadratic curve from the flower to the lower edge of the image.
    start, radius = pose.centre, pose.radius
    bend = complex(rng.uniform(-0.4, 0.4), rng.uniform(0.5, 1.0))
    bend = start + radius * bend
    end = start.real + radius * rng.uniform(-1.0, 1.0)
    end += 1j * (image.shape[0] + 9)
    t = np.linspace(0.0, 1.0, 12)
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    thickness = max(3, round(radius * 0.09))
    stem = painting.fixed(curve[None])
    painting.draw_lines(image, stem, green * 0.7, thickness)
    painting.draw_lines(image, stem, green, round(thickness * 0.5))
    for _ in range(rng.integers(4)):
        # Leaves rise to the left or to the right of the stem.
        side = rng.choice((-0.15, -0.85)) * math.pi
        length, width, turn = rng.uniform((0.7, 0.2, -0.5), (1.3, 0.42, 0.5))
        axis = cmath.rect(radius * length, side + turn)
        leaf = _leaf(curve[rng.integers(4, 11)], axis, width)
        shade = green * rng.uniform(0.75, 1.15)
        painting.draw_polygon(image, leaf, shade)
        midrib = leaf[None, [0, 11]]
        painting.draw_lines(image, midrib, shade * 1.25, 1)


def _photograph(image: np.ndarray, rng: Generator) -> np.ndarray:
    """Applies focus, uneven light, exposure, white balance and sensor noise.

    Args:
        image: uint8 [height, width, 3], the painted scene.
        rng: the image's random generator.

    Returns:
        uint8 [height, width, 3], RGB in [0, 255].
    """
    size = image.shape[:2]
    image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.3, 0.8))
    warmth = rng.normal(0.0, 0.05)
    balance = np.exp((warmth, rng.normal(0.0, 0.015), -warmth))
    brightness = rng.uniform(0.82, 1.15)
    contrast = rng.uniform(0.85, 1.12)
    gains = balance * brightness * contrast
    light = 1.0 + 0.07 * _noise(rng, (3, 3), size)
    # Uniform noise looks the same as normal noise here and is drawn faster.
    strength = rng.uniform(5.0, 17.0)
    grain = strength * rng.random(size, dtype=np.float32)
    grain += 120.0 * (1.0 - contrast) - 0.5 * strength
    # Plane by plane with OpenCV's saturating arithmetic: several times faster
    # than NumPy broadcasting over a last axis of only three channels.
    planes = []
    for plane, gain in zip(cv2.split(image), gains, strict=True):
        lit = cv2.multiply(plane, light, scale=gain, dtype=cv2.CV_32F)
        planes.append(cv2.add(lit, grain, dtype=cv2.CV_8U))
    return cv2.merge(planes)
