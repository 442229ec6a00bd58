"""Printed letters, rendered in the letter fonts that matplotlib carries.

A source task for handwriting: 52 classes, A to Z and a to z, in 8 × 8 grey values like those of
scikit-learn's digits, white on black.
"""

import math
import pathlib
import string

import numpy as np

LETTERS = tuple(string.ascii_uppercase + string.ascii_lowercase)
EDGE = 8
_CANVAS = 64  # pixels of the drawing that is scaled down to EDGE

# By name, because a symbol font has something at every letter too. The Display fonts hold a few
# ornaments, Computer Modern's `cmsy`, `cmex` and `cmmi` symbols and mathematical letters.
_FONTS = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cm[brt]*10", "cmss10")


def render(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count` images of each letter, with their labels: positions in `LETTERS`.

    Font, size, slant, stroke weight and shift are drawn for each image anew.

    Returns:
        uint8 [52 · count, 8, 8, 1], 255 where there is ink, and int64 [52 · count].

    Raises:
        ImportError: matplotlib or Pillow is not installed.
    """
    import matplotlib

    fonts = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    files = sorted(
        file
        for pattern in _FONTS
        for file in fonts.glob(f"{pattern}.ttf")
        if "Display" not in file.name
    )
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(LETTERS)), count)
    images = [_draw(LETTERS[label], files, generator) for label in labels]
    return np.stack(images)[..., np.newaxis], labels


def _draw(letter: str, fonts: list[pathlib.Path], generator: np.random.Generator) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    file = str(fonts[generator.integers(len(fonts))])
    weight = int(generator.integers(0, 4))
    font = ImageFont.truetype(file, int(_CANVAS * generator.uniform(1.0, 1.35)))
    left, top, right, bottom = font.getbbox(letter, stroke_width=weight)
    too_large = max(right - left, bottom - top) / _CANVAS
    if too_large > 1:
        font = font.font_variant(size=int(font.size / too_large))
        left, top, right, bottom = font.getbbox(letter, stroke_width=weight)
    slant = math.tan(math.radians(generator.uniform(-15, 20)))
    shift_x, shift_y = generator.uniform(-0.06, 0.06, 2) * _CANVAS
    middle = _CANVAS / 2
    image = Image.new("L", (_CANVAS, _CANVAS))
    corner = (middle - (left + right) / 2, middle - (top + bottom) / 2)
    ImageDraw.Draw(image).text(corner, letter, fill=255, font=font, stroke_width=weight)
    # Image.transform asks where each pixel comes from: x + slant · (y - middle), shifted.
    source = (1, slant, -slant * middle - shift_x, 0, 1, -shift_y)
    image = image.transform(image.size, Image.Transform.AFFINE, source, Image.Resampling.BILINEAR)
    return np.asarray(image.resize((EDGE, EDGE), Image.Resampling.BOX))
