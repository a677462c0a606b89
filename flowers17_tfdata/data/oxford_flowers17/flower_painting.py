"""Paints one flower of a kind in a pose, with OpenCV.

Shapes are written [axis, ...]. Colours are RGB in [0, 255]. "Flower plane"
coordinates put the flower's centre at the origin and the tips of its longest
petals at distance 1.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

from .flower_kinds import Colour, FlowerKind

# OpenCV takes polygon corners as fixed-point integers with this many
# fractional bits; whole pixels would make small petals visibly jagged.
SHIFT = 4
_GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))


@dataclass(frozen=True)
class Pose:
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


def rgb(colours: np.ndarray | Colour) -> list:
    """Returns colours [..., 3] as the nested lists of ints OpenCV draws in.

    They are clipped to [0, 255]. Converting many colours in one call matters:
    one by one it takes longer than the drawing itself.
    """
    return np.rint(np.clip(colours, 0.0, 255.0)).astype(int).tolist()


def fixed(points: np.ndarray) -> np.ndarray:
    """Returns pixel positions as int32 with SHIFT fractional bits."""
    return np.rint(points * (1 << SHIFT)).astype(np.int32)


def _project(points: np.ndarray, pose: Pose, lift: float) -> np.ndarray:
    """Maps flower-plane points to fixed-point pixels.

    Args:
        points: float [..., 2], flower-plane coordinates before the spin.
        pose: where the flower lies.
        lift: height above the flower plane of a point at distance 1 from the
            centre; it grows with the square of the distance, as in a bowl.

    Returns:
        int32 [..., 2] (x, y) pixels with SHIFT fractional bits.
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
    return fixed(pixels).reshape(points.shape)


@functools.cache
def _petal_outline(kind: FlowerKind) -> np.ndarray:
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


def turned(points: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Turns points [..., n, points, 2] about the origin by radians [n]."""
    # As complex numbers a turn is one multiplication.
    plane = np.ascontiguousarray(points).view(np.complex128)[..., 0]
    rotated = plane * np.exp(1j * angles)[:, None]
    return rotated.view(np.float64).reshape(points.shape)


def paint_flower(
    canvas: np.ndarray,
    rng: np.random.Generator,
    kind: FlowerKind,
    pose: Pose,
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
    kind: FlowerKind,
    pose: Pose,
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
    outlines = _project(turned(nested, angles), pose, lift)
    blend = np.clip((steps - kind.throat) / 0.45, 0.0, 1.0)[:, None]
    colours = np.array(kind.throat_rgb) * (1.0 - blend)
    colours += np.array(kind.petal_rgb) * blend
    colours *= tint
    # A darker rim keeps overlapping petals of one colour apart.
    colours = np.concatenate((colours[:1] * 0.68, colours))

    facing = np.cos(angles + pose.spin - pose.light)
    shade = 0.90 + 0.10 * facing + rng.uniform(-0.05, 0.05, size=count)
    shade *= 1.0 - 0.05 * (kind.rings - 1 - ring)
    shaded = rgb(colours * shade[:, None, None])
    veins = rgb(np.array(kind.petal_rgb) * tint * 0.84 * shade[:, None])
    details = _petal_details(rng, kind, lengths, angles, pose, lift)
    for i in range(count):
        for outline, colour in zip(outlines[:, i], shaded[i], strict=True):
            cv2.fillPoly(canvas, [outline], colour, cv2.LINE_AA, SHIFT)
        _paint_petal_details(canvas, kind, pose, veins[i], details[i])


def _petal_details(
    rng: np.random.Generator,
    kind: FlowerKind,
    lengths: np.ndarray,
    angles: np.ndarray,
    pose: Pose,
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
    return _project(turned(points, angles), pose, lift)


def _paint_petal_details(
    canvas: np.ndarray,
    kind: FlowerKind,
    pose: Pose,
    colour: list[int],
    points: np.ndarray,
) -> None:
    """Paints one petal's veins and freckles at the points of _petal_details."""
    if kind.veins:
        veins = points[: 3 * kind.veins].reshape(kind.veins, 3, 2)
        cv2.polylines(canvas, veins, False, colour, 1, cv2.LINE_AA, SHIFT)
    for spot in points[3 * kind.veins :].tolist():
        paint_dot(canvas, spot, 0.022 * pose.radius, [92, 30, 16])


def paint_dot(
    canvas: np.ndarray, centre: list[int], radius: float, colour: list[int]
) -> None:
    """Paints a dot: centre in fixed-point pixels, radius in plain pixels."""
    size = max(8, int(radius * (1 << SHIFT)))
    cv2.circle(canvas, centre, size, colour, -1, cv2.LINE_AA, SHIFT)


def _circle(radius: float, waves: int = 0, depth: float = 0.0) -> np.ndarray:
    """Returns a flower-plane circle, float [48, 2], with a wavy edge."""
    angles = np.linspace(0.0, 2.0 * math.pi, 48, endpoint=False)
    distance = radius * (1.0 + depth * np.sin(waves * angles))
    return np.stack((np.cos(angles), np.sin(angles)), -1) * distance[:, None]


def _fill(
    canvas: np.ndarray,
    outline: np.ndarray,
    pose: Pose,
    colour: np.ndarray,
    lift: float = 0.0,
) -> None:
    """Fills a flower-plane outline, float [points, 2], with one colour [3]."""
    cv2.fillPoly(
        canvas,
        [_project(outline, pose, lift)],
        rgb(colour),
        cv2.LINE_AA,
        SHIFT,
    )


def _paint_disc(canvas: np.ndarray, kind: FlowerKind, pose: Pose) -> None:
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
    colours = rgb(accent * np.linspace(0.75, 1.10, number)[:, None])
    for dot, colour in zip(dots.tolist(), colours, strict=True):
        paint_dot(canvas, dot, size, colour)


def _paint_stamens(
    canvas: np.ndarray,
    rng: np.random.Generator,
    kind: FlowerKind,
    pose: Pose,
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
        rgb(0.5 * (main + accent)),
        thickness,
        cv2.LINE_AA,
        SHIFT,
    )
    button = min(0.14, 0.45 * kind.centre_radius)
    _fill(canvas, _circle(button), pose, main * 0.7)
    _fill(canvas, _circle(button * 0.8), pose, main)
    colours = rgb(accent * (0.85 + 0.125 * (np.arange(number) % 3))[:, None])
    for end, colour in zip(ends.tolist(), colours, strict=True):
        paint_dot(canvas, end, 0.032 * pose.radius, colour)


def _paint_trumpet(canvas: np.ndarray, kind: FlowerKind, pose: Pose) -> None:
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
        paint_dot(canvas, anther, 0.03 * pose.radius, [250, 214, 80])


def _paint_eye(canvas: np.ndarray, kind: FlowerKind, pose: Pose) -> None:
    """Paints a flat eye, one lobe to a petal, with a pit in its middle."""
    main, pit = np.array(kind.centre_rgb), np.array(kind.accent_rgb)
    radius = kind.centre_radius
    for scale, colour in ((1.0, main * 0.8), (0.86, main), (0.38, pit)):
        lobes = _circle(radius * scale, waves=kind.petals, depth=0.12)
        _fill(canvas, lobes, pose, colour)
