"""The seventeen kinds of synthetic flower, and their traits.

Colours are RGB in [0, 255].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class FlowerKind:
    """The traits all flowers of one class share.

    Attributes:
        petals: number of petals in each ring.
        rings: number of rings of petals. Each further ring inwards is shorter
            and turned by half a petal.
        petal_rgb: colour of the petals towards their tips.
        throat_rgb: colour of the petals towards the flower's centre.
        throat: distance from the centre where the throat colour begins to
            give way to the petal colour, in petal lengths, in [0, 1).
        width: greatest width of a petal, in petal lengths.
        base_power: how slowly a petal widens from its base (0.5 is round).
        tip_power: how sharply it narrows to its tip (0.3 blunt, 1 pointed).
        cup: how far the tips rise out of the flower plane, in petal lengths.
        veins: number of dark lines along each petal.
        centre: how the centre is drawn.
        centre_rgb: main colour of the centre.
        accent_rgb: colour of the centre's details (florets, anthers, pit).
        centre_radius: radius of the centre, in petal lengths.
        notch: depth of the cleft in the tip, in petal lengths.
        ruffle: relative amplitude of the wave along the petal's edge.
        spots: number of dark freckles on each petal.
    """

    petals: int
    rings: int
    petal_rgb: Colour
    throat_rgb: Colour
    throat: float
    width: float
    base_power: float
    tip_power: float
    cup: float
    veins: int
    centre: Literal["disc", "stamens", "trumpet", "eye"]
    centre_rgb: Colour
    accent_rgb: Colour
    centre_radius: float
    notch: float = 0.0
    ruffle: float = 0.0
    spots: int = 0


# White, yellow, pink and blue each occur in several rows, and so do 4, 5, 6 and
# 8 petals: neither colour nor petal number alone tells the classes apart.
# fmt: off
KINDS: tuple[FlowerKind, ...] = (
    # Like a daisy: many white petals around a yellow disc.
    FlowerKind(21, 1, (246, 246, 240), (214, 216, 205), 0.15, 0.23, 0.6, 0.35,
               0.05, 1, "disc", (240, 190, 30), (196, 132, 14), 0.27),
    # Like a sunflower: pointed yellow petals around a wide brown disc.
    FlowerKind(17, 2, (250, 200, 24), (232, 140, 10), 0.30, 0.30, 0.6, 0.85,
               0.05, 1, "disc", (70, 42, 20), (128, 82, 34), 0.46),
    # Like a daffodil: six pale yellow petals behind an orange trumpet.
    FlowerKind(6, 1, (250, 240, 150), (236, 222, 92), 0.20, 0.60, 0.6, 0.70,
               0.05, 3, "trumpet", (244, 142, 20), (176, 82, 8), 0.36,
               ruffle=0.03),
    # Like a buttercup: five round glossy yellow petals, a stamen tuft.
    FlowerKind(5, 1, (252, 216, 20), (214, 168, 8), 0.10, 1.02, 0.75, 0.35,
               0.28, 3, "stamens", (152, 178, 40), (226, 190, 30), 0.27),
    # Like a dandelion: three dense rings of narrow yellow florets.
    FlowerKind(26, 3, (250, 208, 30), (222, 150, 14), 0.10, 0.15, 0.5, 0.25,
               0.15, 0, "disc", (236, 174, 20), (250, 214, 50), 0.14),
    # Like a primrose: five pink heart-shaped petals with a yellow throat.
    FlowerKind(5, 1, (240, 112, 168), (252, 222, 92), 0.24, 0.98, 0.9, 0.30,
               0.05, 3, "eye", (244, 200, 40), (150, 168, 50), 0.13,
               notch=0.20),
    # Like a forget-me-not: five round sky-blue petals with a white throat.
    FlowerKind(5, 1, (92, 150, 236), (240, 246, 255), 0.20, 0.95, 0.8, 0.40,
               0.0, 0, "eye", (246, 214, 50), (120, 80, 20), 0.17),
    # Like a tiger lily: six long orange petals with freckles, long stamens.
    FlowerKind(6, 1, (244, 118, 26), (250, 160, 48), 0.15, 0.42, 0.7, 0.90,
               0.18, 1, "stamens", (186, 190, 70), (96, 34, 14), 0.50,
               ruffle=0.03, spots=9),
    # Like a poppy: four broad ruffled red petals, blotched black.
    FlowerKind(4, 1, (222, 34, 26), (34, 10, 16), 0.24, 1.45, 0.7, 0.28,
               0.25, 5, "stamens", (88, 104, 60), (26, 18, 28), 0.26,
               ruffle=0.06),
    # Like a clematis: eight pointed violet petals with a pale tuft.
    FlowerKind(8, 1, (122, 66, 188), (176, 132, 220), 0.15, 0.50, 0.7, 0.80,
               0.0, 3, "stamens", (236, 232, 170), (250, 246, 214), 0.30,
               ruffle=0.03),
    # Like an anemone: eight broad white petals around a blue-black centre.
    FlowerKind(8, 1, (248, 244, 246), (206, 196, 222), 0.20, 0.66, 0.7, 0.45,
               0.15, 3, "stamens", (30, 26, 52), (46, 38, 78), 0.34,
               ruffle=0.03),
    # Like a crocus seen from above: six cupped lilac petals, orange stigma.
    FlowerKind(6, 1, (166, 124, 222), (106, 60, 168), 0.16, 0.72, 0.8, 0.55,
               0.40, 5, "disc", (246, 138, 20), (252, 184, 50), 0.16),
    # Like a pansy: five ruffled yellow petals with a dark maroon face.
    FlowerKind(5, 1, (246, 204, 44), (66, 14, 44), 0.46, 1.12, 0.75, 0.30,
               0.05, 5, "eye", (240, 226, 120), (206, 120, 20), 0.12,
               notch=0.06, ruffle=0.05),
    # Like a gerbera: two rings of blunt crimson petals, a dark disc.
    FlowerKind(22, 2, (216, 36, 92), (238, 98, 128), 0.20, 0.22, 0.6, 0.30,
               0.05, 1, "disc", (52, 26, 24), (166, 134, 60), 0.25),
    # Like a dogwood: four notched white petals around a green button.
    FlowerKind(4, 1, (250, 246, 238), (214, 228, 176), 0.20, 0.98, 0.85, 0.45,
               0.05, 5, "disc", (124, 156, 48), (186, 198, 84), 0.17,
               notch=0.14),
    # Like a blue aster: many thin blue petals around a yellow disc.
    FlowerKind(16, 1, (84, 96, 214), (136, 140, 234), 0.15, 0.20, 0.6, 0.55,
               0.05, 0, "disc", (246, 200, 48), (206, 136, 20), 0.24),
    # Like a water lily: three rings of pointed pink petals, paler inside.
    FlowerKind(11, 3, (238, 138, 186), (252, 222, 230), 0.25, 0.36, 0.6, 0.75,
               0.30, 1, "stamens", (244, 186, 40), (250, 214, 90), 0.20),
)
# fmt: on
