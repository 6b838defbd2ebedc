import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from cnn_lightning.data import Digits
from cnn_lightning.data.photos import Preparation, read_photo
from cnn_lightning.errors import UsageError

MNIST = Preparation(box=20, centre_by_mass=True, strokes=True)
FASHION = Preparation(box=28, centre_by_mass=False, strokes=False)
DIGITS = Preparation(box=28, centre_by_mass=False, strokes=True, cells=8)


def seven(side=400, ink=0, paper=255, at=(0, 0), size=1.0, width=28):
    """A seven as with a pen: its box is 100 to 280 by 60 to 340 in 400, twice as much to the right as to the left."""
    page = Image.new("L", (side, side), paper)
    points = [(at[0] + size * x, at[1] + size * y) for x, y in ((114, 74), (266, 74), (160, 326))]
    draw = ImageDraw.Draw(page)
    draw.line(points, fill=ink, width=round(size * width), joint="curve")
    for x, y in points:
        half = size * width / 2
        draw.ellipse((x - half, y - half, x + half, y + half), fill=ink)
    return page


def read(image, path, **settings):
    image.save(path, **settings)
    return read_photo(path)


def distance(image, other):
    """Mean difference of pixels, in grey levels."""
    return (image.float() - other.float()).abs().mean()


@pytest.fixture(scope="module")
def grey():
    """A digit as MNIST has them, soft edges and all, (28, 28) uint8."""
    return MNIST(seven())[0].numpy()


@pytest.fixture(scope="module")
def prepared():
    return MNIST(seven())


def test_size_place_and_contrast(prepared):
    assert prepared.shape == (1, 28, 28)
    assert prepared.dtype == torch.uint8
    assert prepared.max() == 255
    weights = prepared[0].double()
    for axis in (0, 1):  # MNIST's own centres lie anywhere between 14 and 15, the first pixel's middle at 0.5
        assert (weights.sum(1 - axis) @ torch.arange(0.5, 28).double()) / weights.sum() == pytest.approx(14.5, abs=0.1)


@pytest.mark.parametrize("box", [12, 16, 20])
def test_box(box):
    image = Preparation(box, centre_by_mass=True, strokes=True)(seven())[0]
    rows, columns = torch.nonzero(image > 40, as_tuple=True)
    assert int(rows.max() - rows.min() + 1) == pytest.approx(box, abs=1)
    assert int(columns.max() - columns.min() + 1) == pytest.approx(box * 180 / 280, abs=1)


@pytest.mark.parametrize("preparation", [FASHION, DIGITS])
def test_longest_side_fills_a_box_of_28(preparation):
    image = preparation(seven())[0]
    assert image.max() == 255
    assert image[0].max() > 40
    assert image[-1].max() > 40
    columns = torch.nonzero(image.amax(0) > 40)[:, 0]
    assert columns.min() + columns.max() == pytest.approx(27, abs=2)  # in the middle, whatever the mass


def photographed(digit, squares=False, shadow=False):
    """A seven on cream paper, with the grain of a photo."""
    page = np.asarray(digit, np.float64) / 255 * 220 + 10
    if squares:
        lines = np.zeros_like(page, bool)
        lines[::25] = lines[:, ::25] = True
        page = np.where(lines & (page > 180), 175, page)
    if shadow:
        page[240:, 130:300] *= 0.68
    return Image.fromarray((page + np.random.default_rng(0).normal(0, 3, page.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("setting", ["squares", "shadow"])
def test_squares_and_shadows_of_a_photo_are_no_ink(setting, prepared):
    image = MNIST(photographed(seven(), **{setting: True}))
    assert distance(image, prepared) < 6
    # Of clothes, which are dark here and bright there, faint parts count.
    assert distance(FASHION(photographed(seven(), **{setting: True})), FASHION(seven())) > 15


def test_faint_ink_becomes_white():
    assert FASHION(seven(ink=155)).max() == 255


def test_cells():
    # What 8×8 cells hold, enlarged, is smoother than a stroke.
    steps = [image[0].float().diff(dim=1).abs().max() for image in (DIGITS(seven()), FASHION(seven()))]
    assert steps[0] < 100 < steps[1]


def test_images_of_the_dataset_stay(grey):
    image = torch.from_numpy(grey)[None]
    assert distance(MNIST(Image.fromarray(grey)), image) == 0
    digits = Digits().read(train=False)[0][:100]
    for digit in digits:
        same = DIGITS(Image.fromarray(digit[0].numpy()))
        assert distance(same * (digit.max() / 255), digit) < 0.6  # a speck at most, except for the contrast


def test_small_images_are_moved_but_not_scaled(grey, prepared):
    page = np.zeros((112, 90), np.uint8)
    page[50:78, 13:41] = grey
    assert torch.equal(MNIST(Image.fromarray(page)), prepared)
    assert torch.equal(MNIST(Image.fromarray(255 - page)), prepared)


@pytest.mark.parametrize("preparation", [MNIST, FASHION, DIGITS])
def test_same_from_any_picture_of_it(preparation):
    image = preparation(seven())
    assert torch.equal(preparation(seven(ink=255, paper=0)), image)
    assert distance(preparation(seven(side=900, at=(530, 431))), image) < 1
    assert distance(preparation(seven(side=900, size=2.1)), image) < 3
    assert distance(preparation(seven(ink=100, paper=230)), image) < 1
    assert distance(preparation(seven(side=200, size=0.5)), image) < 4
    colour = Image.merge("RGB", [seven(ink=20, paper=250), seven(ink=60, paper=220), seven(ink=200, paper=180)])
    assert distance(preparation(colour), image) < 1
    assert distance(preparation(seven(ink=128, paper=255).transpose(Image.Transpose.ROTATE_90)), image) > 20


@pytest.mark.parametrize("dark", [False, True])
def test_photo_of_paper(prepared, tmp_path, dark):
    # Blue ink on cream paper, light that falls off by 40 %, noise, dirt, JPEG.
    rng = np.random.default_rng(0)
    ink = 1 - np.asarray(seven(side=600, at=(150, 100)).filter(ImageFilter.GaussianBlur(1.5)), float) / 255
    ink[40:43, 500:503] = 0.9
    paper, pen = np.array([245, 238, 215]), np.array([30, 40, 110])
    photo = paper + ink[..., None] * (pen - paper)
    photo = photo * np.linspace(1, 0.6, 600)[:, None] + rng.normal(0, 4, photo.shape)
    photo = photo.clip(0, 255).astype(np.uint8)
    image = MNIST(read(Image.fromarray(255 - photo if dark else photo), tmp_path / "photo.jpg", quality=85))
    assert distance(image, prepared) < 4
    assert (image[prepared == 0] < 60).all()


def test_blur_does_not_shrink(prepared):
    blurred = MNIST(seven().filter(ImageFilter.GaussianBlur(8)))
    assert distance(blurred, prepared) < 6


def test_object_at_the_border():
    # As clothes in Fashion-MNIST: most of two sides is object, and the median of no side says what is behind it.
    cloth = np.zeros((28, 28), np.uint8)
    cloth[:, 4:24] = np.arange(100, 240, 5, dtype=np.uint8)[:, None]
    cloth[0, 4] = 254
    image = torch.from_numpy(cloth)[None]
    assert distance(FASHION(Image.fromarray(cloth)), image) < 1
    assert distance(FASHION(Image.fromarray(255 - cloth)), image) < 1


@pytest.mark.parametrize("colour", [0, 90, 255])
def test_nothing_to_see(tmp_path, colour):
    noise = np.random.default_rng(0).normal(0, 4, (300, 200, 3))
    light = np.linspace(1, 0.6, 200)[:, None]
    noisy = Image.fromarray((colour * light + noise).clip(0, 255).astype(np.uint8))
    for blank in (Image.new("L", (28, 28), colour), Image.new("RGB", (1, 1), (colour,) * 3), noisy):
        with pytest.raises(UsageError, match="nothing but background"):
            MNIST(blank)


def test_odd_shapes():
    for size in ((2000, 3), (3, 2000), (2, 2), (1, 5)):
        picture = Image.new("L", size)
        picture.putpixel((0, 0), 255)
        assert MNIST(picture).max() == 255
    bar = Image.new("L", (900, 3))
    bar.paste(255, (100, 1, 800, 2))
    assert (MNIST(bar)[0].amax(0) > 40).sum() == pytest.approx(20, abs=1)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.gif", "a.webp", "a.tif", "A.JPEG", "without_extension"])
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_formats(prepared, tmp_path, name, mode):
    if (mode == "P" and name.lower().endswith(("jpg", "jpeg"))) or (mode == "1" and name.endswith("webp")):
        mode = "L"  # the format has no other
    kind = {"format": "PNG"} if "." not in name else {}
    photo = read(seven().convert(mode), tmp_path / name, **kind)
    assert photo.mode in ("L", "RGB")
    assert distance(MNIST(photo), prepared) < 2


def sixteen_bit():
    return np.asarray(seven(), np.uint16) * 257


@pytest.mark.parametrize(
    ("pixels", "name"),
    [
        (sixteen_bit(), "a.png"),
        (sixteen_bit(), "a.tif"),
        (sixteen_bit().astype(np.int32), "a.tif"),
        (sixteen_bit().astype(np.float32), "a.tif"),
        ((sixteen_bit() / 65535).astype(np.float32), "a.tif"),
        ((sixteen_bit() / 65535 - 0.5).astype(np.float32), "a.tif"),
        ((sixteen_bit() * 1e5).astype(np.float32), "a.tif"),
    ],
)
def test_deep_pixels(prepared, tmp_path, pixels, name):
    photo = read(Image.fromarray(pixels), tmp_path / name)
    assert photo.mode == "L"
    assert np.ptp(np.asarray(photo)) >= 127
    assert distance(MNIST(photo), prepared) < 1


def test_large_picture_of_deep_pixels(prepared, tmp_path):
    # White is 1, and may not become more by shrinking.
    pixels = np.asarray(seven(side=1500, size=3.75), np.float32) / 255
    assert distance(MNIST(read(Image.fromarray(pixels), tmp_path / "a.tif")), prepared) < 2


def test_big_endian_pixels(prepared, tmp_path):
    image = Image.frombytes("I;16B", (400, 400), sixteen_bit().astype(">u2").tobytes())
    assert distance(MNIST(read(image, tmp_path / "a.tif")), prepared) < 1


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk(prepared, tmp_path, name):
    # Pillow writes Adobe's inverted CMYK to JPEG.
    image = Image.merge("RGB", [seven(ink=30), seven(ink=30), seven(ink=90)]).convert("CMYK")
    photo = read(image, tmp_path / name)
    assert photo.getpixel((0, 0)) == pytest.approx((255, 255, 255), abs=4)
    assert distance(MNIST(photo), prepared) < 2


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize(
    ("side", "orientation", "turn"),
    [
        (400, 2, Image.Transpose.FLIP_LEFT_RIGHT),
        (400, 3, Image.Transpose.ROTATE_180),
        (400, 6, Image.Transpose.ROTATE_90),
        (400, 8, Image.Transpose.ROTATE_270),
        (2400, 6, Image.Transpose.ROTATE_90),
    ],
)
def test_exif_turns(prepared, tmp_path, name, side, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = seven(side, size=side / 400).transpose(turn).convert("RGB")
    photo = read(image, tmp_path / name, exif=exif)
    assert max(photo.size) <= 1000
    assert distance(MNIST(photo), prepared) < 4


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_exif_turns_a_tiff_that_is_not_square(tmp_path, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = seven().crop((0, 0, 240, 400))
    photo = read(image.transpose(Image.Transpose.ROTATE_90).convert(mode), tmp_path / "a.tif", exif=exif)
    assert np.array_equal(np.asarray(photo.convert("L")), np.asarray(image))


@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0), (60, 200)])
def test_alpha(prepared, tmp_path, ink, paper):
    strokes = seven(ink=255, paper=0)
    grey = seven(ink=ink, paper=paper)
    opaque = Image.merge("LA", [grey, Image.new("L", grey.size, 255)])
    cut_out = Image.merge("RGBA", [Image.new("L", grey.size, ink)] * 3 + [strokes])  # what is see-through has no colour
    for image, name in ((opaque, "a.png"), (cut_out, "b.png"), (cut_out, "c.webp"), (cut_out, "d.tif")):
        assert distance(MNIST(read(image, tmp_path / name, lossless=True)), prepared) < 2


def test_alpha_like_the_ink(grey, prepared, tmp_path):
    layers = [Image.fromarray(grey)] * 4
    assert distance(MNIST(read(Image.merge("RGBA", layers), tmp_path / "a.png")), prepared) < 8


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
@pytest.mark.parametrize("ink", [0, 255])
def test_transparent_colour(prepared, tmp_path, name, ink):
    # Both colours of the palette are the ink's: only that one is transparent tells them apart.
    image = Image.fromarray((np.asarray(seven()) == 0).astype(np.uint8))
    image.putpalette([128, 128, 128, ink, ink, ink])
    photo = read(image, tmp_path / name, transparency=0)
    assert distance(MNIST(photo), prepared) < 2
    assert photo.getpixel((0, 0)) == ((255 - ink,) * 3)


def test_wholly_transparent(tmp_path):
    image = Image.merge("LA", [seven(), Image.new("L", (400, 400), 0)])
    with pytest.raises(UsageError, match="nothing but background"):
        MNIST(read(image, tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.mpo"])
def test_first_of_several(prepared, tmp_path, name):
    others = [seven().transpose(Image.Transpose.ROTATE_180).convert("RGB")]
    photo = read(seven().convert("RGB"), tmp_path / name, save_all=True, append_images=others)
    assert distance(MNIST(photo), prepared) < 2


@pytest.mark.parametrize(("mode", "name"), [("L", "a.jpg"), ("1", "a.png"), ("P", "a.gif"), ("LA", "a.png")])
def test_large_pictures_are_shrunk(prepared, tmp_path, mode, name):
    large = seven().resize((5000, 5000), Image.Resampling.NEAREST).convert(mode)
    photo = read(large, tmp_path / name)
    assert photo.size == (1000, 1000)
    assert distance(MNIST(photo), prepared) < 2


def png_header(width, height):
    """The beginning of a PNG, one bit a pixel, without its pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


IDAT = struct.pack(">I", 1000) + b"IDAT"


def png_text_bomb():
    text = b"zTXtcomment\0\0" + zlib.compress(bytes(2_000_000))
    return png_header(9, 9) + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"to be or not to be" * 50, "is not a picture, expected PNG, JPEG, BMP, GIF, WEBP or TIFF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
        (png_header(20_000, 20_000) + IDAT, "is too large, expected at most 178 million pixels"),
        (png_header(12_000, 12_000) + IDAT, "is damaged"),  # Pillow would warn of its size
        (png_header(9, 9) + IDAT, "is damaged"),
        (png_text_bomb(), "is damaged"),
    ],
)
def test_what_is_no_picture(tmp_path, content, message):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"^{message}") as caught:
        read_photo(path)
    assert "\n" not in str(caught.value)
    assert "a.png" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.gif", "a.webp", "a.tif"])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_truncated(tmp_path, name, share):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UsageError, match=r"^is (damaged|not a picture)"):
        read_photo(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [50, 1500])
def test_pixels_that_are_no_numbers(tmp_path, value, side):
    pixels = np.zeros((side, side), np.float32)
    pixels[7, 9] = value
    with pytest.raises(UsageError, match="not numbers"):
        read(Image.fromarray(pixels), tmp_path / "a.tif")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    cases = {
        "pipe.png": "is not a file",
        "link.png": "is a broken link",
        "loop.png": "cannot be read",
        "nothing.png": "does not exist",
        "": "holds no picture",
        "a\0b.png": "is",
        "a" * 300: "cannot be read",
    }
    for name, message in cases.items():
        with pytest.raises(UsageError, match=f"^{message}"):
            read_photo(tmp_path / name)


def test_permission(tmp_path, monkeypatch):
    seven().save(tmp_path / "a.png")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)  # root may read everything
    with pytest.raises(UsageError, match=r"^cannot be read: Permission denied$"):
        read_photo(tmp_path / "a.png")
