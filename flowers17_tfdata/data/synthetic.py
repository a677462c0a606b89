"""Draws the `synthetic` data set: parametric stand-ins for Flowers-17.

Where the photographs of Oxford Flowers-17 cannot be downloaded, these drawings
take their place: 17 kinds of flower, 80 images each, numbered like the files of
the Oxford archive. Every image is a pure function of its class, its index and
one seed, so images may be drawn in any order and in any process.

Shapes are written [axis, ...]. Colours are RGB in [0, 255] throughout; only the
JPEG encoder sees BGR. "Flower plane" coordinates put the flower's centre at the
origin and the tips of its longest petals at distance 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

NUM_CLASSES = 17
IMAGES_PER_CLASS = 80

_JPEG_QUALITY = 90
# Backgrounds are out of focus, so they are painted this many times smaller and
# enlarged: the enlargement is the blur, and it costs a sixteenth of the pixels.
_BACKGROUND_SHRINK = 4
# OpenCV takes polygon corners as fixed-point integers with this many
# fractional bits; whole pixels would make small petals visibly jagged.
_SHIFT = 4
_GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))

_Colour = tuple[float, float, float]


@dataclass(frozen=True)
class _FlowerKind:
    """The traits all flowers of one class share.

    Attributes:
        petals: petals in each ring.
        rings: rings of petals, the outermost first; each further ring is
            shorter and turned by half a petal.
        petal_rgb: colour of the petals towards their tips.
        throat_rgb: colour of the petals towards the flower's centre.
        throat: distance from the centre where the throat colour begins to
            give way to the petal colour, in petal lengths, in [0, 1).
        width: greatest width of a petal, in petal lengths.
        base_power: how slowly a petal widens from its base (0.5 is round).
        tip_power: how sharply it narrows to its tip (0.3 blunt, 1 pointed).
        notch: depth of the cleft in the tip, in petal lengths.
        ruffle: relative amplitude of the wave along the petal's edge.
        cup: how far the tips rise out of the flower plane, in petal lengths.
        veins: dark lines along each petal.
        spots: dark freckles on each petal.
        centre: how the centre is drawn.
        centre_rgb: main colour of the centre.
        accent_rgb: colour of the centre's details (florets, anthers, pit).
        centre_radius: radius of the centre, in petal lengths.
    """

    petals: int
    rings: int
    petal_rgb: _Colour
    throat_rgb: _Colour
    throat: float
    width: float
    base_power: float
    tip_power: float
    notch: float
    ruffle: float
    cup: float
    veins: int
    spots: int
    centre: Literal["disc", "stamens", "trumpet", "eye"]
    centre_rgb: _Colour
    accent_rgb: _Colour
    centre_radius: float


# White, yellow, pink and blue each occur in several rows, and so do 4, 5, 6 and
# 8 petals: neither colour nor petal number alone tells the classes apart.
# fmt: off
_KINDS: tuple[_FlowerKind, ...] = (
    # Like a daisy: many white petals around a yellow disc.
    _FlowerKind(21, 1, (246, 246, 240), (214, 216, 205), 0.15, 0.23, 0.6, 0.35,
                0.0, 0.0, 0.05, 1, 0, "disc",
                (240, 190, 30), (196, 132, 14), 0.27),
    # Like a sunflower: pointed yellow petals around a wide brown disc.
    _FlowerKind(17, 2, (250, 200, 24), (232, 140, 10), 0.30, 0.30, 0.6, 0.85,
                0.0, 0.0, 0.05, 1, 0, "disc",
                (70, 42, 20), (128, 82, 34), 0.46),
    # Like a daffodil: six pale yellow petals behind an orange trumpet.
    _FlowerKind(6, 1, (250, 240, 150), (236, 222, 92), 0.20, 0.60, 0.6, 0.70,
                0.0, 0.03, 0.05, 3, 0, "trumpet",
                (244, 142, 20), (176, 82, 8), 0.36),
    # Like a buttercup: five round glossy yellow petals, a stamen tuft.
    _FlowerKind(5, 1, (252, 216, 20), (214, 168, 8), 0.10, 1.02, 0.75, 0.35,
                0.0, 0.0, 0.28, 3, 0, "stamens",
                (152, 178, 40), (226, 190, 30), 0.27),
    # Like a dandelion: three dense rings of narrow yellow florets.
    _FlowerKind(26, 3, (250, 208, 30), (222, 150, 14), 0.10, 0.15, 0.5, 0.25,
                0.0, 0.0, 0.15, 0, 0, "disc",
                (236, 174, 20), (250, 214, 50), 0.14),
    # Like a primrose: five pink heart-shaped petals with a yellow throat.
    _FlowerKind(5, 1, (240, 112, 168), (252, 222, 92), 0.24, 0.98, 0.9, 0.30,
                0.20, 0.0, 0.05, 3, 0, "eye",
                (244, 200, 40), (150, 168, 50), 0.13),
    # Like a forget-me-not: five round sky-blue petals with a white throat.
    _FlowerKind(5, 1, (92, 150, 236), (240, 246, 255), 0.20, 0.95, 0.8, 0.40,
                0.0, 0.0, 0.0, 0, 0, "eye",
                (246, 214, 50), (120, 80, 20), 0.17),
    # Like a tiger lily: six long orange petals with freckles, long stamens.
    _FlowerKind(6, 1, (244, 118, 26), (250, 160, 48), 0.15, 0.42, 0.7, 0.90,
                0.0, 0.03, 0.18, 1, 9, "stamens",
                (186, 190, 70), (96, 34, 14), 0.50),
    # Like a poppy: four broad ruffled red petals, blotched black.
    _FlowerKind(4, 1, (222, 34, 26), (34, 10, 16), 0.24, 1.45, 0.7, 0.28,
                0.0, 0.06, 0.25, 5, 0, "stamens",
                (88, 104, 60), (26, 18, 28), 0.26),
    # Like a clematis: eight pointed violet petals with a pale tuft.
    _FlowerKind(8, 1, (122, 66, 188), (176, 132, 220), 0.15, 0.50, 0.7, 0.80,
                0.0, 0.03, 0.0, 3, 0, "stamens",
                (236, 232, 170), (250, 246, 214), 0.30),
    # Like an anemone: eight broad white petals around a blue-black centre.
    _FlowerKind(8, 1, (248, 244, 246), (206, 196, 222), 0.20, 0.66, 0.7, 0.45,
                0.0, 0.03, 0.15, 3, 0, "stamens",
                (30, 26, 52), (46, 38, 78), 0.34),
    # Like a crocus seen from above: six cupped lilac petals, orange stigma.
    _FlowerKind(6, 1, (166, 124, 222), (106, 60, 168), 0.16, 0.72, 0.8, 0.55,
                0.0, 0.0, 0.40, 5, 0, "disc",
                (246, 138, 20), (252, 184, 50), 0.16),
    # Like a pansy: five ruffled yellow petals with a dark maroon face.
    _FlowerKind(5, 1, (246, 204, 44), (66, 14, 44), 0.46, 1.12, 0.75, 0.30,
                0.06, 0.05, 0.05, 5, 0, "eye",
                (240, 226, 120), (206, 120, 20), 0.12),
    # Like a gerbera: two rings of blunt crimson petals, a dark disc.
    _FlowerKind(22, 2, (216, 36, 92), (238, 98, 128), 0.20, 0.22, 0.6, 0.30,
                0.0, 0.0, 0.05, 1, 0, "disc",
                (52, 26, 24), (166, 134, 60), 0.25),
    # Like a dogwood: four notched white petals around a green button.
    _FlowerKind(4, 1, (250, 246, 238), (214, 228, 176), 0.20, 0.98, 0.85, 0.45,
                0.14, 0.0, 0.05, 5, 0, "disc",
                (124, 156, 48), (186, 198, 84), 0.17),
    # Like a blue aster: many thin blue petals around a yellow disc.
    _FlowerKind(16, 1, (84, 96, 214), (136, 140, 234), 0.15, 0.20, 0.6, 0.55,
                0.0, 0.0, 0.05, 0, 0, "disc",
                (246, 200, 48), (206, 136, 20), 0.24),
    # Like a water lily: three rings of pointed pink petals, paler inside.
    _FlowerKind(11, 3, (238, 138, 186), (252, 222, 230), 0.25, 0.36, 0.6, 0.75,
                0.0, 0.0, 0.30, 1, 0, "stamens",
                (244, 186, 40), (250, 214, 90), 0.20),
)

# Darkest, middle and lightest colour of a background, and the rows and columns
# of its noise: a grid that is much finer in one direction makes streaks.
_BACKGROUNDS: tuple[tuple[tuple[_Colour, _Colour, _Colour], int, int], ...] = (
    (((24, 50, 18), (66, 108, 38), (136, 168, 80)), 6, 34),      # grass
    (((16, 38, 24), (42, 82, 46), (100, 140, 84)), 13, 13),      # foliage
    (((48, 34, 24), (94, 70, 48), (152, 124, 92)), 22, 22),      # soil
    (((84, 128, 186), (150, 188, 222), (226, 234, 240)), 9, 7),  # sky
    (((12, 18, 14), (34, 44, 36), (72, 84, 66)), 11, 11),        # deep shade
)
# fmt: on


@dataclass(frozen=True)
class _Pose:
    """Where one flower lies in the image and how it is turned.

    Attributes:
        x: column of the flower's centre, pixels.
        y: row of the flower's centre, pixels.
        radius: length of the longest petals, pixels.
        spin: rotation within the flower plane, radians.
        tilt: angle between the flower's axis and the line of sight, radians.
        tilt_axis: direction of the axis the flower is tilted about, radians.
        light: direction in the flower plane the light comes from, radians.
    """

    x: float
    y: float
    radius: float
    spin: float
    tilt: float
    tilt_axis: float
    light: float


def draw_flower(class_position: int, index: int, seed: int = 0) -> np.ndarray:
    """Draws one flower.

    Args:
        class_position: class of the flower, in [0, NUM_CLASSES).
        index: image within the class, in [0, IMAGES_PER_CLASS).
        seed: non-negative seed of the whole data set.

    Returns:
        uint8 [height, width, 3], RGB in [0, 255]. The shorter side is 200 to
        260 pixels long and width / height lies in [0.75, 1.33].

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0 <= class_position < NUM_CLASSES:
        raise ValueError(
            f"class_position must be in [0, {NUM_CLASSES}), "
            f"got {class_position}"
        )
    if not 0 <= index < IMAGES_PER_CLASS:
        raise ValueError(
            f"index must be in [0, {IMAGES_PER_CLASS}), got {index}"
        )
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    # Seeding by position rather than drawing from one shared stream is what
    # makes the image independent of which images were drawn before it.
    rng = np.random.default_rng([seed, class_position, index])
    kind = _KINDS[class_position]
    height, width = _image_size(rng)
    pose = _random_pose(rng, height, width)
    # One tint for the image: all flowers in one photograph grow on one plant.
    tint = rng.uniform(0.90, 1.10) * rng.uniform(0.95, 1.05, size=3)
    image = _background(rng, kind, pose, tint, height, width)
    _paint_stem(image, rng, pose)
    _paint_flower(image, rng, kind, pose, tint, shades=6)
    return _photograph(image, rng)


def iter_synthetic_images(seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Draws and encodes the whole data set in the Oxford archive's layout.

    The Oxford archive keeps the 80 images of a class in consecutive files, so
    image number = class_position * IMAGES_PER_CLASS + index + 1.

    Args:
        seed: non-negative seed of the whole data set.

    Yields:
        File name and JPEG bytes, from image_0001.jpg to image_1360.jpg.

    Raises:
        RuntimeError: OpenCV could not encode an image.
    """
    for position in range(NUM_CLASSES * IMAGES_PER_CLASS):
        class_position, index = divmod(position, IMAGES_PER_CLASS)
        name = f"image_{position + 1:04d}.jpg"
        image = draw_flower(class_position, index, seed)
        encoded, data = cv2.imencode(
            ".jpg",
            cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY],
        )
        if not encoded:
            raise RuntimeError(f"could not encode {name}")
        yield name, data.tobytes()


def _image_size(rng: np.random.Generator) -> tuple[int, int]:
    """Returns a random (height, width) in pixels, portrait or landscape."""
    short = int(rng.integers(200, 261))
    # Kept a little inside 0.75..1.33 so that rounding cannot leave the range.
    aspect = math.exp(rng.uniform(math.log(0.76), math.log(1.32)))
    if aspect >= 1.0:
        return short, round(short * aspect)
    return round(short / aspect), short


def _random_pose(rng: np.random.Generator, height: int, width: int) -> _Pose:
    """Returns the pose of the main flower of an image of the given size."""
    short = min(height, width)
    return _Pose(
        x=width * 0.5 + short * rng.uniform(-0.14, 0.14),
        y=height * 0.5 + short * rng.uniform(-0.14, 0.14),
        radius=short * rng.uniform(0.30, 0.48),
        spin=rng.uniform(0.0, 2.0 * math.pi),
        tilt=rng.uniform(0.0, math.radians(42.0)),
        tilt_axis=rng.uniform(0.0, math.pi),
        light=rng.uniform(0.0, 2.0 * math.pi),
    )


def _rgb(colours: np.ndarray | _Colour) -> list:
    """Returns colours [..., 3] as the nested lists of ints OpenCV draws in.

    They are clipped to [0, 255]. Converting many colours in one call matters:
    one by one it takes longer than the drawing itself.
    """
    return np.rint(np.clip(colours, 0.0, 255.0)).astype(int).tolist()


def _fixed(points: np.ndarray) -> np.ndarray:
    """Returns pixel positions as int32 with _SHIFT fractional bits."""
    return np.rint(points * (1 << _SHIFT)).astype(np.int32)


def _project(points: np.ndarray, pose: _Pose, lift: float) -> np.ndarray:
    """Maps flower-plane points to fixed-point pixels.

    Args:
        points: float [..., 2], flower-plane coordinates before the spin.
        pose: where the flower lies.
        lift: height above the flower plane of a point at distance 1 from the
            centre; it grows with the square of the distance, as in a bowl.

    Returns:
        int32 [..., 2] (x, y) pixels with _SHIFT fractional bits.
    """
    # Rows: the images of the flower plane's x axis, y axis and normal, each
    # spun, shortened across the tilt axis and turned back.
    turn = pose.spin - pose.tilt_axis
    squash = math.cos(pose.tilt)
    frame = np.array(
        (
            (math.cos(turn), math.sin(turn) * squash),
            (-math.sin(turn), math.cos(turn) * squash),
            (0.0, -math.sin(pose.tilt)),
        )
    )
    cos, sin = math.cos(pose.tilt_axis), math.sin(pose.tilt_axis)
    frame = frame @ np.array(((cos, sin), (-sin, cos))) * pose.radius
    flat = points.reshape(-1, 2)
    pixels = flat @ frame[:2] + (pose.x, pose.y)
    if lift:
        height = lift * np.einsum("ij,ij->i", flat, flat)
        pixels += height[:, None] * frame[2]
    return _fixed(pixels).reshape(points.shape)


@functools.cache
def _petal_outline(kind: _FlowerKind) -> np.ndarray:
    """Returns a petal's closed outline, float [points, 2], pointing along x.

    The petal's base is the origin and its length 1.
    """
    # Cosine spacing puts most points at the base and the tip, where it bends.
    along = 0.5 - 0.5 * np.cos(np.linspace(0.0, math.pi, 15))
    half = along**kind.base_power * (1.0 - along) ** kind.tip_power
    half *= 0.5 * kind.width / half.max()
    half *= 1.0 + kind.ruffle * np.sin(along * 19.0)
    # The cleft is deepest on the midrib and fades out towards the edges.
    cleft = kind.notch * along**4 * (1.0 - half / half.max()) ** 2
    length = along - cleft
    upper = np.stack((length, half), axis=-1)
    lower = np.stack((length, -half), axis=-1)[-2:0:-1]
    outline = np.concatenate((upper, lower))
    outline.flags.writeable = False  # the cache hands it to every caller
    return outline


def _turned(points: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Turns points [..., n, points, 2] about the origin by radians [n]."""
    # As complex numbers a turn is one multiplication.
    plane = np.ascontiguousarray(points).view(np.complex128)[..., 0]
    turned = plane * np.exp(1j * angles)[:, None]
    return turned.view(np.float64).reshape(points.shape)


def _paint_flower(
    canvas: np.ndarray,
    rng: np.random.Generator,
    kind: _FlowerKind,
    pose: _Pose,
    tint: np.ndarray,
    shades: int,
) -> None:
    """Paints a whole flower onto canvas, uint8 [height, width, 3], in place.

    Args:
        canvas: the image painted on.
        rng: the image's random generator.
        kind: traits of the flower's class.
        pose: where the flower lies.
        tint: float [3], factors on the petals' red, green and blue.
        shades: steps of the colour gradient along each petal.
    """
    # Many petals are narrow or hidden ones: fewer steps there save much time.
    if kind.petals * kind.rings > 15:
        shades = min(shades, 3)
    for ring in range(kind.rings):
        _paint_ring(canvas, rng, kind, pose, tint, ring, shades)
    if kind.centre == "disc":
        _paint_disc(canvas, kind, pose)
    elif kind.centre == "stamens":
        _paint_stamens(canvas, rng, kind, pose)
    elif kind.centre == "trumpet":
        _paint_trumpet(canvas, kind, pose)
    else:
        _paint_eye(canvas, kind, pose)


def _paint_ring(
    canvas: np.ndarray,
    rng: np.random.Generator,
    kind: _FlowerKind,
    pose: _Pose,
    tint: np.ndarray,
    ring: int,
    shades: int,
) -> None:
    """Paints ring number `ring` of a flower's petals, 0 being outermost."""
    count = kind.petals
    pitch = 2.0 * math.pi / count
    angles = (np.arange(count) + 0.5 * ring) * pitch
    angles += rng.uniform(-0.08, 0.08, size=count) * pitch
    lengths = (1.0 - 0.8 * ring / kind.rings) * rng.uniform(0.92, 1.0, count)
    # Inner petals stand up more steeply than outer ones.
    lift = kind.cup * (1.0 + 0.6 * ring)
    petal = _petal_outline(kind)[None] * lengths[:, None, None]

    steps = np.linspace(1.0, 0.25, shades)
    # Nested copies of the petal, [shades + 1, petals, points, 2].
    sizes = np.concatenate(([[1.0, 1.0]], steps[:, None] * (0.97, 0.90)))
    nested = petal * sizes[:, None, None, :]
    outlines = _project(_turned(nested, angles), pose, lift)
    blend = np.clip((steps - kind.throat) / 0.45, 0.0, 1.0)[:, None]
    colours = np.array(kind.throat_rgb) * (1.0 - blend)
    colours += np.array(kind.petal_rgb) * blend
    colours *= tint
    # A darker rim keeps overlapping petals of one colour apart.
    colours = np.concatenate((colours[:1] * 0.68, colours))

    facing = np.cos(angles + pose.spin - pose.light)
    shade = 0.90 + 0.10 * facing + rng.uniform(-0.05, 0.05, size=count)
    shade *= 1.0 - 0.05 * (kind.rings - 1 - ring)
    shaded = _rgb(colours * shade[:, None, None])
    veins = _rgb(np.array(kind.petal_rgb) * tint * 0.84 * shade[:, None])
    details = _petal_details(rng, kind, lengths, angles, pose, lift)
    for i in range(count):
        for outline, colour in zip(outlines[:, i], shaded[i], strict=True):
            cv2.fillPoly(canvas, [outline], colour, cv2.LINE_AA, _SHIFT)
        _paint_petal_details(canvas, kind, pose, veins[i], details[i])


def _petal_details(
    rng: np.random.Generator,
    kind: _FlowerKind,
    lengths: np.ndarray,
    angles: np.ndarray,
    pose: _Pose,
    lift: float,
) -> np.ndarray:
    """Places the veins and freckles of one ring's petals.

    Args:
        rng: the image's random generator.
        kind: traits of the flower's class.
        lengths: float [petals], in lengths of the longest petal.
        angles: float [petals], radians before the spin.
        pose: where the flower lies.
        lift: height of the petal tips above the flower plane.

    Returns:
        int32 [petals, 3 * veins + spots, 2] fixed-point pixels: first three
        points for each vein, then the freckles.
    """
    count = len(lengths)
    points = np.zeros((count, 3 * kind.veins + kind.spots, 2))
    if not points.size:
        return points.astype(np.int32)
    slant = np.linspace(-1.0, 1.0, kind.veins + 2)[1:-1]
    for corner, along in enumerate((0.30, 0.60, 0.84)):
        veins = points[:, corner : 3 * kind.veins : 3]
        veins[..., 0] = along
        # Veins fan out with the petal and close in again below its tip.
        spread = (0.16, 0.36, 0.38)[corner]
        veins[..., 1] = slant * spread * kind.width
    spots = points[:, 3 * kind.veins :]
    spots[..., 0] = rng.uniform(0.30, 0.80, size=(count, kind.spots))
    spots[..., 1] = rng.uniform(-0.3, 0.3, size=(count, kind.spots))
    spots[..., 1] *= kind.width
    points *= lengths[:, None, None]
    return _project(_turned(points, angles), pose, lift)


def _paint_petal_details(
    canvas: np.ndarray,
    kind: _FlowerKind,
    pose: _Pose,
    colour: list[int],
    points: np.ndarray,
) -> None:
    """Paints one petal's veins and freckles at the points of _petal_details."""
    if kind.veins:
        veins = points[: 3 * kind.veins].reshape(kind.veins, 3, 2)
        cv2.polylines(canvas, veins, False, colour, 1, cv2.LINE_AA, _SHIFT)
    for spot in points[3 * kind.veins :].tolist():
        _dot(canvas, spot, 0.022 * pose.radius, [92, 30, 16])


def _dot(
    canvas: np.ndarray, centre: list[int], radius: float, colour: list[int]
) -> None:
    """Paints a dot: centre in fixed-point pixels, radius in plain pixels."""
    size = max(8, int(radius * (1 << _SHIFT)))
    cv2.circle(canvas, centre, size, colour, -1, cv2.LINE_AA, _SHIFT)


def _circle(radius: float, waves: int = 0, depth: float = 0.0) -> np.ndarray:
    """Returns a flower-plane circle, float [48, 2], with a wavy edge."""
    angles = np.linspace(0.0, 2.0 * math.pi, 48, endpoint=False)
    distance = radius * (1.0 + depth * np.sin(waves * angles))
    return np.stack((np.cos(angles), np.sin(angles)), -1) * distance[:, None]


def _fill(
    canvas: np.ndarray,
    outline: np.ndarray,
    pose: _Pose,
    colour: np.ndarray,
    lift: float = 0.0,
) -> None:
    """Fills a flower-plane outline, float [points, 2], with one colour [3]."""
    cv2.fillPoly(
        canvas,
        [_project(outline, pose, lift)],
        _rgb(colour),
        cv2.LINE_AA,
        _SHIFT,
    )


def _paint_disc(canvas: np.ndarray, kind: _FlowerKind, pose: _Pose) -> None:
    """Paints a domed disc of florets in the spiral order real ones grow in."""
    main, accent = np.array(kind.centre_rgb), np.array(kind.accent_rgb)
    radius = kind.centre_radius
    _fill(canvas, _circle(radius), pose, main * 0.72)
    _fill(canvas, _circle(radius * 0.93), pose, main)
    _fill(canvas, _circle(radius * 0.55), pose, main * 0.86)
    # A small picture of the flower has no room for all the florets.
    number = int(min(30 + 120 * radius, pose.radius))
    rank = np.arange(number)
    distance = radius * 0.92 * np.sqrt((rank + 0.5) / number)
    spiral = np.stack(
        (np.cos(rank * _GOLDEN_ANGLE), np.sin(rank * _GOLDEN_ANGLE)), -1
    )
    dots = _project(spiral * distance[:, None], pose, 0.0)
    size = 0.30 * radius * pose.radius / math.sqrt(number)
    colours = _rgb(accent * np.linspace(0.75, 1.10, number)[:, None])
    for dot, colour in zip(dots.tolist(), colours, strict=True):
        _dot(canvas, dot, size, colour)


def _paint_stamens(
    canvas: np.ndarray,
    rng: np.random.Generator,
    kind: _FlowerKind,
    pose: _Pose,
) -> None:
    """Paints a button ringed by stamens that reach out to centre_radius."""
    main, accent = np.array(kind.centre_rgb), np.array(kind.accent_rgb)
    # Long stamens are few, short ones make a dense tuft.
    number = 6 if kind.centre_radius > 0.4 else 26
    angles = np.arange(number) * 2.0 * math.pi / number
    angles += rng.uniform(-0.12, 0.12, size=number)
    reach = kind.centre_radius * rng.uniform(0.65, 1.0, size=number)
    tips = np.stack((np.cos(angles), np.sin(angles)), -1) * reach[:, None]
    ends = _project(tips, pose, kind.cup + 0.3)
    root = _project(np.zeros(2), pose, 0.0)
    filaments = np.stack((np.broadcast_to(root, ends.shape), ends), axis=1)
    thickness = max(1, round(pose.radius * 0.02))
    cv2.polylines(
        canvas,
        filaments,
        False,
        _rgb(0.5 * (main + accent)),
        thickness,
        cv2.LINE_AA,
        _SHIFT,
    )
    button = min(0.14, 0.45 * kind.centre_radius)
    _fill(canvas, _circle(button), pose, main * 0.7)
    _fill(canvas, _circle(button * 0.8), pose, main)
    colours = _rgb(accent * (0.85 + 0.125 * (np.arange(number) % 3))[:, None])
    for end, colour in zip(ends.tolist(), colours, strict=True):
        _dot(canvas, end, 0.032 * pose.radius, colour)


def _paint_trumpet(canvas: np.ndarray, kind: _FlowerKind, pose: _Pose) -> None:
    """Paints a frilled trumpet that stands out towards the viewer."""
    main, pit = np.array(kind.centre_rgb), np.array(kind.accent_rgb)
    radius = kind.centre_radius
    # The bowl-shaped lift moves rings of one radius alike, so the rim, the
    # wall and the pit drift apart under a tilt as those of a tube would.
    for scale, colour in (
        (1.00, main * 0.78),
        (0.92, main),
        (0.76, main * 0.5 + pit * 0.5),
        (0.52, pit),
        (0.28, pit * 0.7),
    ):
        waves = _circle(radius * scale, waves=12, depth=0.07 * scale)
        _fill(canvas, waves, pose, colour, lift=1.2)
    angles = np.arange(5) * 2.0 * math.pi / 5
    anthers = np.stack((np.cos(angles), np.sin(angles)), -1) * radius * 0.2
    for anther in _project(anthers, pose, 0.0).tolist():
        _dot(canvas, anther, 0.03 * pose.radius, [250, 214, 80])


def _paint_eye(canvas: np.ndarray, kind: _FlowerKind, pose: _Pose) -> None:
    """Paints a flat eye, one lobe to a petal, with a pit in its middle."""
    main, pit = np.array(kind.centre_rgb), np.array(kind.accent_rgb)
    radius = kind.centre_radius
    for scale, colour in ((1.0, main * 0.8), (0.86, main), (0.38, pit)):
        lobes = _circle(radius * scale, waves=kind.petals, depth=0.12)
        _fill(canvas, lobes, pose, colour)


def _noise(
    rng: np.random.Generator, rows: int, columns: int, height: int, width: int
) -> np.ndarray:
    """Returns smooth noise, float32 [height, width], about 0 with spread 1."""
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _background(
    rng: np.random.Generator,
    kind: _FlowerKind,
    pose: _Pose,
    tint: np.ndarray,
    height: int,
    width: int,
) -> np.ndarray:
    """Paints an out-of-focus scene.

    Args:
        rng: the image's random generator.
        kind: traits of the class, for more flowers of its kind farther off.
        pose: pose of the main flower, which casts a shadow on the scene.
        tint: float [3], factors on the petals' red, green and blue.
        height: height of the image, pixels.
        width: width of the image, pixels.

    Returns:
        uint8 [height, width, 3], RGB in [0, 255].
    """
    rows, columns = height // _BACKGROUND_SHRINK, width // _BACKGROUND_SHRINK
    palette, grid_rows, grid_columns = _BACKGROUNDS[
        int(rng.integers(len(_BACKGROUNDS)))
    ]
    tone = 0.24 * _noise(rng, grid_rows, grid_columns, rows, columns)
    tone += 0.22 * _noise(rng, 5, 5, rows, columns)
    tone += 0.10 * _noise(rng, 30, 30, rows, columns)
    slope_x, slope_y = rng.uniform(-0.35, 0.35, size=2)
    tone += slope_x * np.linspace(-1.0, 1.0, columns)
    tone += slope_y * np.linspace(-1.0, 1.0, rows)[:, None]
    anchors = np.array(palette) * rng.uniform(0.88, 1.12, size=3)
    scene = np.stack(
        [np.interp(tone + 0.5, (0.0, 0.5, 1.0), c) for c in anchors.T], -1
    )
    scene = np.clip(scene, 0.0, 255.0).astype(np.uint8)
    _paint_clutter(scene, rng)
    plain = replace(kind, veins=0, spots=0)  # too fine to be seen blurred
    for _ in range(int(rng.integers(3))):
        far = _far_pose(rng, pose, scene)
        _paint_flower(scene, rng, plain, far, tint, shades=1)
    scene = cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.7, 1.8))
    _cast_shadow(scene, pose)
    return cv2.resize(scene, (width, height), interpolation=cv2.INTER_CUBIC)


def _paint_clutter(scene: np.ndarray, rng: np.random.Generator) -> None:
    """Paints leaves and blobs of light onto the small background in place."""
    rows, columns = scene.shape[:2]
    for _ in range(int(rng.integers(3, 9))):
        leaf = _leaf(
            length=rng.uniform(0.3, 0.8) * rows,
            width=rng.uniform(0.15, 0.4),
            angle=rng.uniform(0.0, 2.0 * math.pi),
            root=rng.random(2) * (columns, rows),
        )
        colour = np.array((62.0, 108.0, 44.0)) * rng.uniform(0.35, 1.6)
        colour *= rng.uniform(0.85, 1.15, size=3)
        cv2.fillPoly(scene, [leaf], _rgb(colour), cv2.LINE_AA, _SHIFT)
    for _ in range(int(rng.integers(2, 8))):
        x, y = int(rng.integers(columns)), int(rng.integers(rows))
        # A blob takes a lighter or darker tone of whatever lies behind it.
        light = scene[y, x] * rng.uniform(0.7, 1.5)
        light += rng.uniform(0.0, 25.0, size=3)
        spot = [x << _SHIFT, y << _SHIFT]
        _dot(scene, spot, rng.uniform(1.5, 6.0), _rgb(light))


@functools.cache
def _leaf_outline() -> np.ndarray:
    """Returns a pointed leaf along x, float [22, 2], of length and width 1."""
    along = np.linspace(0.0, 1.0, 12)
    half = 0.5 * np.sin(math.pi * along**0.8)
    upper = np.stack((along, half), axis=-1)
    lower = np.stack((along, -half), axis=-1)[-2:0:-1]
    outline = np.concatenate((upper, lower))
    outline.flags.writeable = False  # the cache hands it to every caller
    return outline


def _leaf(
    length: float, width: float, angle: float, root: np.ndarray
) -> np.ndarray:
    """Places a leaf.

    Args:
        length: length of the leaf, pixels.
        width: greatest width of the leaf, in lengths of the leaf.
        angle: direction the leaf points in, radians.
        root: float [2], (x, y) of the leaf's base, pixels.

    Returns:
        int32 [22, 2] fixed-point pixels; rows 0 and 11 are base and tip.
    """
    leaf = _leaf_outline() * (length, length * width)
    return _fixed(_turned(leaf[None], np.array([angle]))[0] + root)


def _far_pose(
    rng: np.random.Generator, pose: _Pose, scene: np.ndarray
) -> _Pose:
    """Returns the pose of a small flower away from the image's main one."""
    rows, columns = scene.shape[:2]
    main_radius = pose.radius / _BACKGROUND_SHRINK
    direction = rng.uniform(0.0, 2.0 * math.pi)
    distance = main_radius * rng.uniform(1.0, 1.7)
    x = pose.x / _BACKGROUND_SHRINK + distance * math.cos(direction)
    y = pose.y / _BACKGROUND_SHRINK + distance * math.sin(direction)
    return _Pose(
        x=float(np.clip(x, 0.0, columns)),
        y=float(np.clip(y, 0.0, rows)),
        radius=main_radius * rng.uniform(0.3, 0.6),
        spin=rng.uniform(0.0, 2.0 * math.pi),
        tilt=rng.uniform(0.2, 1.0),
        tilt_axis=rng.uniform(0.0, math.pi),
        light=pose.light,
    )


def _cast_shadow(scene: np.ndarray, pose: _Pose) -> None:
    """Darkens the small background around the flower in place.

    It lifts the flower off the scene, most of all where their colours are
    alike.
    """
    rows, columns = scene.shape[:2]
    x = np.arange(columns) - pose.x / _BACKGROUND_SHRINK
    y = np.arange(rows) - pose.y / _BACKGROUND_SHRINK
    spread = 0.85 * pose.radius / _BACKGROUND_SHRINK
    shadow = np.exp(-0.5 * np.square(y / spread))[:, None] * np.exp(
        -0.5 * np.square(x / spread)
    )
    scene[...] = scene * (1.0 - 0.45 * shadow[..., None])


def _paint_stem(
    image: np.ndarray, rng: np.random.Generator, pose: _Pose
) -> None:
    """Paints a stem with up to three leaves below the flower, in place."""
    height = image.shape[0]
    green = np.array((78.0, 124.0, 52.0)) * rng.uniform(0.7, 1.2)
    green *= rng.uniform(0.9, 1.1, size=3)
    # A quadratic curve from the flower to the lower edge of the image.
    start = np.array((pose.x, pose.y))
    bend = start + pose.radius * rng.uniform((-0.4, 0.5), (0.4, 1.0))
    end = np.array((pose.x + pose.radius * rng.uniform(-1.0, 1.0), height + 9))
    t = np.linspace(0.0, 1.0, 12)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    thickness = max(3, round(pose.radius * 0.09))
    for share, shade in ((1.0, 0.7), (0.5, 1.0)):
        cv2.polylines(
            image,
            [_fixed(curve)],
            False,
            _rgb(green * shade),
            max(1, round(thickness * share)),
            cv2.LINE_AA,
            _SHIFT,
        )
    for _ in range(int(rng.integers(4))):
        # Leaves rise to the left or to the right of the stem.
        side = rng.choice((-0.15, -0.85)) * math.pi
        leaf = _leaf(
            length=pose.radius * rng.uniform(0.7, 1.3),
            width=rng.uniform(0.2, 0.42),
            angle=side + rng.uniform(-0.5, 0.5),
            root=curve[int(rng.integers(4, 11))],
        )
        shade = green * rng.uniform(0.75, 1.15)
        cv2.fillPoly(image, [leaf], _rgb(shade), cv2.LINE_AA, _SHIFT)
        midrib = leaf[[0, 11]]
        light = _rgb(shade * 1.25)
        cv2.polylines(image, [midrib], False, light, 1, cv2.LINE_AA, _SHIFT)


def _photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies focus, uneven light, exposure, white balance and sensor noise.

    Args:
        image: uint8 [height, width, 3], the painted scene.
        rng: the image's random generator.

    Returns:
        uint8 [height, width, 3], RGB in [0, 255].
    """
    height, width = image.shape[:2]
    image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.3, 0.8))
    warmth = rng.normal(0.0, 0.05)
    balance = np.exp((warmth, rng.normal(0.0, 0.015), -warmth))
    brightness = rng.uniform(0.82, 1.15)
    contrast = rng.uniform(0.85, 1.12)
    gains = balance * brightness * contrast
    light = 1.0 + np.float32(0.07) * _noise(rng, 3, 3, height, width)
    # Uniform noise looks the same as normal noise here and is drawn faster.
    strength = rng.uniform(5.0, 17.0)
    grain = rng.random((height, width), dtype=np.float32)
    grain *= np.float32(strength)
    grain += np.float32(120.0 * (1.0 - contrast) - 0.5 * strength)
    # Plane by plane with OpenCV's saturating arithmetic: several times faster
    # than NumPy broadcasting over a last axis of only three channels.
    planes = [
        cv2.add(
            cv2.multiply(plane, light, scale=gain, dtype=cv2.CV_32F),
            grain,
            dtype=cv2.CV_8U,
        )
        for plane, gain in zip(cv2.split(image), gains.tolist(), strict=True)
    ]
    return cv2.merge(planes)
