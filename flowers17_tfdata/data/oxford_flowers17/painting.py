"""Paints one flower of a kind in a pose, with OpenCV.

Points are complex numbers x + iy, so that a rotation is one multiplication. In
the flower plane, the flower's centre is the origin and the tips of its longest
petals are at distance 1. OpenCV takes pixel positions as fixed-point integers
(see `fixed`), and rounds and clips RGB colours to [0, 255] itself.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass

import cv2
import numpy as np

from .flower_kinds import FlowerKind

# Fractional bits of a pixel position: whole pixels would make small petals
# visibly jagged.
SHIFT = 4
_GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))
_FRECKLE_RGB = np.array((92, 30, 16))
_ANTHER_RGB = np.array((250, 214, 80))


@dataclass(frozen=True)
class Pose:
    """Where a flower lies in the image and how it is turned.

    Attributes:
        centre: column + 1j * row of the flower's centre, pixels.
        radius: length of the longest petals, pixels.
        spin: rotation within the flower plane, radians.
        tilt: angle between the flower's axis and the line of sight, radians.
        tilt_axis: direction of the axis the flower is tilted about, radians.
        light: direction in the flower plane the light comes from, radians.
    """

    centre: complex
    radius: float
    spin: float
    tilt: float
    tilt_axis: float
    light: float


def fixed(pixels: np.ndarray) -> np.ndarray:
    """Returns complex pixel positions [...] as int32 [..., 2] (x, y).

    The integers have SHIFT fractional bits.
    """
    positions = pixels.view(np.float64).reshape(*pixels.shape, 2)
    return np.rint(positions * (1 << SHIFT)).astype(np.int32)


def mirrored(half: np.ndarray) -> np.ndarray:
    """Closes an outline that is symmetric about the x axis.

    Args:
        half: complex [points], the upper half, from axis to axis.

    Returns:
        complex [2 * points - 2].
    """
    return np.concatenate((half, half[-2:0:-1].conj()))


def draw_polygon(
    canvas: np.ndarray, outline: np.ndarray, colour: np.ndarray
) -> None:
    """Fills an outline, int32 [points, 2], fixed-point, in place."""
    cv2.fillPoly(canvas, [outline], colour, cv2.LINE_AA, SHIFT)


def draw_lines(
    canvas: np.ndarray, lines: np.ndarray, colour: np.ndarray, thickness: int
) -> None:
    """Draws open lines, int32 [lines, points, 2], fixed-point, in place."""
    paths = list(lines)
    cv2.polylines(canvas, paths, False, colour, thickness, cv2.LINE_AA, SHIFT)


def draw_dots(
    canvas: np.ndarray, centres: np.ndarray, radius: float, colours: np.ndarray
) -> None:
    """Draws dots in place.

    Args:
        canvas: uint8 [height, width, 3].
        centres: int32 [n, 2], fixed-point pixels.
        radius: radius of all dots, pixels.
        colours: RGB [n, 3], or one [3] for all.
    """
    size = max(8, int(radius * (1 << SHIFT)))
    colours = np.broadcast_to(colours, (len(centres), 3))
    for centre, colour in zip(centres, colours.tolist(), strict=True):
        cv2.circle(canvas, centre, size, colour, -1, cv2.LINE_AA, SHIFT)


@dataclass(frozen=True)
class Flower:
    """One flower to be painted onto an image, in place.

    Attributes:
        canvas: uint8 [height, width, 3], the image.
        rng: the image's random generator.
        kind: traits of the flower's class.
        pose: where the flower lies.
    """

    canvas: np.ndarray
    rng: np.random.Generator
    kind: FlowerKind
    pose: Pose

    def paint(self, tint: np.ndarray, shades: int) -> None:
        """Paints the whole flower.

        Args:
            tint: float [3], factors on the petals' red, green and blue.
            shades: steps of the colour gradient along each petal.
        """
        kind = self.kind
        # Where petals are many, they are narrow or hidden: more steps would
        # cost time without being seen.
        if kind.petals * kind.rings > 15:
            shades = min(shades, 3)
        for ring in range(kind.rings):
            self.paint_ring(ring, tint, shades)
        paint_centre = {
            "disc": self.paint_disc,
            "stamens": self.paint_stamens,
            "trumpet": self.paint_trumpet,
            "eye": self.paint_eye,
        }[kind.centre]
        # OpenCV takes colours as floats or Python ints, not as NumPy ints.
        paint_centre(*np.array((kind.centre_rgb, kind.accent_rgb), float))

    def project(self, points: np.ndarray, lift: float = 0.0) -> np.ndarray:
        """Maps flower-plane points to fixed-point pixels.

        Args:
            points: complex [...], before the spin.
            lift: height above the flower plane at distance 1 from the centre;
                it grows with the square of the distance, as in a bowl.

        Returns:
            int32 [..., 2], see `fixed`.
        """
        pose = self.pose
        spun = points * cmath.exp(1j * (pose.spin - pose.tilt_axis))
        # A tilt shortens distances across its axis and shifts raised points.
        spun.imag *= math.cos(pose.tilt)
        if lift:
            squared = (points * points.conj()).real
            spun.imag -= lift * math.sin(pose.tilt) * squared
        scale = pose.radius * cmath.exp(1j * pose.tilt_axis)
        return fixed(spun * scale + pose.centre)

    def paint_ring(self, ring: int, tint: np.ndarray, shades: int) -> None:
        """Paints one ring of petals, 0 being the outermost."""
        kind, pose, rng = self.kind, self.pose, self.rng
        count = kind.petals
        pitch = 2.0 * math.pi / count
        angles = (np.arange(count) + 0.5 * ring) * pitch
        angles += rng.uniform(-0.08, 0.08, size=count) * pitch
        longest = 1.0 - 0.8 * ring / kind.rings
        lengths = longest * rng.uniform(0.92, 1.0, count)
        # Inner petals stand up more steeply than outer ones.
        lift = kind.cup * (1.0 + 0.6 * ring)
        turns = (lengths * np.exp(1j * angles))[:, None]

        steps = np.linspace(1.0, 0.25, shades)[:, None]
        # A petal and its nested copies, [shades + 1, petals, points, 2].
        petal = _petal_outline(kind)
        copies = steps * (0.97 * petal.real + 0.90j * petal.imag)
        nested = np.concatenate((petal[None], copies))[:, None]
        outlines = self.project(nested * turns, lift)
        blend = np.clip((steps - kind.throat) / 0.45, 0.0, 1.0)
        colours = np.array(kind.throat_rgb) * (1.0 - blend)
        colours += np.array(kind.petal_rgb) * blend
        colours *= tint
        # A darker rim keeps overlapping petals of one colour apart.
        colours = np.concatenate((colours[:1] * 0.68, colours))

        facing = np.cos(angles + pose.spin - pose.light)
        shade = 0.90 + 0.10 * facing + rng.uniform(-0.05, 0.05, size=count)
        shade *= 1.0 - 0.05 * (kind.rings - 1 - ring)
        shaded = colours * shade[:, None, None]
        vein_rgb = np.array(kind.petal_rgb) * tint * 0.84 * shade[:, None]
        veins = self.project(_veins(kind) * turns[:, None], lift)
        along = rng.uniform(0.30, 0.80, size=(count, kind.spots))
        across = rng.uniform(-0.3, 0.3, size=(count, kind.spots)) * kind.width
        spots = self.project((along + 1j * across) * turns, lift)
        for i in range(count):
            for outline, colour in zip(outlines[:, i], shaded[i], strict=True):
                draw_polygon(self.canvas, outline, colour)
            draw_lines(self.canvas, veins[i], vein_rgb[i], 1)
            draw_dots(self.canvas, spots[i], 0.022 * pose.radius, _FRECKLE_RGB)

    def paint_disc(self, main: np.ndarray, accent: np.ndarray) -> None:
        """Paints a domed disc of florets in a spiral, the order they grow in.

        Args:
            main: RGB [3], the main colour of the centre.
            accent: RGB [3], the colour of its details.
        """
        radius = self.kind.centre_radius
        self.fill_circle(radius, main * 0.72)
        self.fill_circle(radius * 0.93, main)
        self.fill_circle(radius * 0.55, main * 0.86)
        # A small picture of the flower has no room for all the florets.
        number = int(min(30 + 120 * radius, self.pose.radius))
        rank = np.arange(number)
        distance = radius * 0.92 * np.sqrt((rank + 0.5) / number)
        florets = self.project(distance * np.exp(1j * rank * _GOLDEN_ANGLE))
        size = 0.30 * radius * self.pose.radius / math.sqrt(number)
        colours = accent * np.linspace(0.75, 1.10, number)[:, None]
        draw_dots(self.canvas, florets, size, colours)

    def paint_stamens(self, main: np.ndarray, accent: np.ndarray) -> None:
        """Paints a button ringed by stamens that reach to `centre_radius`."""
        radius = self.kind.centre_radius
        # Long stamens are few, short ones make a dense tuft.
        number = 6 if radius > 0.4 else 26
        angles = np.arange(number) * 2.0 * math.pi / number
        angles += self.rng.uniform(-0.12, 0.12, size=number)
        reach = radius * self.rng.uniform(0.65, 1.0, size=number)
        ends = self.project(reach * np.exp(1j * angles), self.kind.cup + 0.3)
        roots = self.project(np.zeros(number))
        thickness = max(1, round(self.pose.radius * 0.02))
        filaments = np.stack((roots, ends), axis=1)
        colour = 0.5 * (main + accent)
        draw_lines(self.canvas, filaments, colour, thickness)
        button = min(0.14, 0.45 * radius)
        self.fill_circle(button, main * 0.7)
        self.fill_circle(button * 0.8, main)
        colours = accent * (0.85 + 0.125 * (np.arange(number) % 3))[:, None]
        draw_dots(self.canvas, ends, 0.032 * self.pose.radius, colours)

    def paint_trumpet(self, main: np.ndarray, pit: np.ndarray) -> None:
        """Paints a frilled trumpet that stands out towards the viewer."""
        radius = self.kind.centre_radius
        scales = (1.00, 0.92, 0.76, 0.52, 0.28)
        colours = (main * 0.78, main, 0.5 * (main + pit), pit, pit * 0.7)
        # The bowl-shaped lift moves rings of one radius alike, so the rim, the
        # wall and the pit drift apart under a tilt as those of a tube would.
        for scale, colour in zip(scales, colours, strict=True):
            self.fill_circle(radius * scale, colour, 12, 0.07 * scale, 1.2)
        angles = np.arange(5) * 2.0 * math.pi / 5
        anthers = self.project(radius * 0.2 * np.exp(1j * angles))
        draw_dots(self.canvas, anthers, 0.03 * self.pose.radius, _ANTHER_RGB)

    def paint_eye(self, main: np.ndarray, pit: np.ndarray) -> None:
        """Paints a flat eye, one lobe to a petal, with a pit in its middle."""
        for scale, colour in ((1.0, main * 0.8), (0.86, main), (0.38, pit)):
            radius = self.kind.centre_radius * scale
            self.fill_circle(radius, colour, self.kind.petals, 0.12)

    def fill_circle(
        self,
        radius: float,
        colour: np.ndarray,
        waves: int = 0,
        depth: float = 0.0,
        lift: float = 0.0,
    ) -> None:
        """Fills a flower-plane circle whose edge may be wavy.

        Args:
            radius: in petal lengths.
            colour: RGB [3].
            waves: number of waves along the edge.
            depth: amplitude of the waves, relative to the radius.
            lift: see `project`.
        """
        angles = np.linspace(0.0, 2.0 * math.pi, 48, endpoint=False)
        distance = radius * (1.0 + depth * np.sin(waves * angles))
        outline = self.project(distance * np.exp(1j * angles), lift)
        draw_polygon(self.canvas, outline, colour)


def _petal_outline(kind: FlowerKind) -> np.ndarray:
    """Returns a petal's outline, complex [28], along x, base 0 and tip 1."""
    # Cosine spacing puts most points at the base and the tip, where it bends.
    along = 0.5 - 0.5 * np.cos(np.linspace(0.0, math.pi, 15))
    half = along**kind.base_power * (1.0 - along) ** kind.tip_power
    half *= 0.5 * kind.width / half.max()
    half *= 1.0 + kind.ruffle * np.sin(along * 19.0)
    # The cleft is deepest on the midrib and fades out towards the edges.
    cleft = kind.notch * along**4 * (1.0 - half / half.max()) ** 2
    return mirrored(along - cleft + 1j * half)


def _veins(kind: FlowerKind) -> np.ndarray:
    """Returns a petal's veins, complex [veins, 3], in the petal's place."""
    slant = np.linspace(-1.0, 1.0, kind.veins + 2)[1:-1, None]
    # Veins fan out with the petal and close in again below its tip.
    spread = np.array((0.16, 0.36, 0.38))
    return np.array((0.30, 0.60, 0.84)) + 1j * slant * spread * kind.width
