"""Reading whatever holds an image, and the official resize rule."""

import io
import json
import re
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor

from msdeform.models.inference.image_size import Size
from msdeform.models.inference.images import BadImageError, image_size, normalise, orientation, read_image

SIZES = Path(__file__).parents[4] / "shared" / "data" / "val2017_first100_sizes.json"


def pixels(height: int = 6, width: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def as_tensor(array: np.ndarray) -> Tensor:
    """(H, W, 3) to (3, H, W)."""
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


def test_every_holder_of_rgb_gives_the_same_pixels(tmp_path: Path) -> None:
    array = pixels()
    Image.fromarray(array).save(tmp_path / "rgb.png")
    expected = as_tensor(array)
    flipped_memory = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    frozen = array.copy()
    frozen.flags.writeable = False
    holders: list[Any] = [
        tmp_path / "rgb.png",
        str(tmp_path / "rgb.png"),
        Image.fromarray(array),
        Image.open(tmp_path / "rgb.png"),
        array,
        flipped_memory,
        frozen,
        array.astype(np.float32) / 255,
        array.astype(np.float64) / 255,
        (array / 255).astype(np.float16),
        array.astype(np.uint16) * 257,
        array.astype(">u2") * 257,
        expected,
        expected.float() / 255,
        (expected.float() / 255).half(),
        (expected.float() / 255).requires_grad_(),
        (expected.to(torch.int32) * 257).to(torch.uint16),
        torch.cat([expected, expected[:1]]),
        np.concatenate([array, array[..., :1]], axis=2),
    ]
    for number, holder in enumerate(holders):
        read = read_image(holder)
        assert read.dtype == torch.uint8
        assert torch.equal(read, expected), number


def test_what_comes_in_is_not_what_comes_out() -> None:
    array = pixels()
    before = array.copy()
    read_image(array).zero_()
    assert np.array_equal(array, before)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_is_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    grey = pixels(channels=0)
    Image.fromarray(grey).save(tmp_path / f"grey.{suffix}")
    expected = torch.from_numpy(grey).expand(3, -1, -1)
    for holder in (tmp_path / f"grey.{suffix}", Image.fromarray(grey), grey, grey[..., None], torch.tensor(grey)[None]):
        assert torch.equal(read_image(holder), expected)


def test_alpha_is_dropped_whatever_it_says(tmp_path: Path) -> None:
    array = pixels(channels=4)
    array[:3, :, 3] = 0
    Image.fromarray(array, "RGBA").save(tmp_path / "alpha.png")
    assert torch.equal(read_image(tmp_path / "alpha.png"), as_tensor(array[..., :3]))
    Image.fromarray(array[..., 2:], "LA").save(tmp_path / "grey_alpha.png")
    assert torch.equal(read_image(tmp_path / "grey_alpha.png"), torch.from_numpy(array[..., 2]).expand(3, -1, -1))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3])
    image.putdata([2, 0, 1])
    expected = torch.tensor([[1, 10, 200], [2, 20, 100], [3, 30, 0]], dtype=torch.uint8)[:, None]
    for name, more in (("p.png", {}), ("p.gif", {}), ("clear.png", {"transparency": bytes([0, 255, 128])})):
        image.save(tmp_path / name, **more)
        assert torch.equal(read_image(tmp_path / name), expected), name
    assert torch.equal(read_image(image), expected)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png").tolist() == [[[0, 255]]] * 3


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 2), (255, 0, 0, 0)).save(tmp_path / "cyan.tif")
    assert read_image(tmp_path / "cyan.tif")[:, 0, 0].tolist() == [0, 255, 255]
    Image.new("CMYK", (16, 16), (0, 255, 0, 0)).save(tmp_path / "magenta.jpg")
    red, green, blue = read_image(tmp_path / "magenta.jpg")[:, 8, 8].tolist()
    assert (red > 240, green < 15, blue > 240) == (True, True, True)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    wide = np.array([[0, 128, 129, 257, 1000], [32767, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    expected = torch.tensor([[0, 0, 1, 1, 4], [127, 128, 254, 255, 255]], dtype=torch.uint8).expand(3, -1, -1)
    Image.fromarray(wide).save(tmp_path / f"wide.{suffix}")
    holders: list[Any] = [tmp_path / f"wide.{suffix}", Image.fromarray(wide), Image.fromarray(wide.astype(np.int32))]
    for holder in [*holders, wide, torch.from_numpy(wide)[None]]:
        assert torch.equal(read_image(holder), expected)


# where the top left pixel of a file with each orientation tag is displayed: (row, column) in an upright 4 x 6 picture
SHOWN = {1: (0, 0), 2: (0, 5), 3: (3, 5), 4: (3, 0), 5: (0, 0), 6: (0, 5), 7: (3, 5), 8: (3, 0)}


def tagged(image: Image.Image, orientation: int, path: Path) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_a_camera_on_its_side_is_brought_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    array = np.zeros((4, 6, 3) if orientation < 5 else (6, 4, 3), dtype=np.uint8)
    array[0, 0] = 255
    lossless = {"lossless": True} if suffix == "webp" else {}
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(array).save(path, exif=exif, **lossless)
    for holder in (path, Image.open(path)):
        read = read_image(holder)
        assert read.shape == (3, 4, 6)
        assert torch.nonzero(read[0]).tolist() == [list(SHOWN[orientation])]
    if suffix != "tif":  # Pillow turns those by itself
        assert torch.equal(read_image(path, oriented=False), as_tensor(array))


def test_sixteen_bits_and_a_palette_are_turned_too(tmp_path: Path) -> None:
    wide = np.zeros((2, 3), dtype=np.uint16)
    wide[0, 0] = 65535
    palette = Image.new("P", (3, 2))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.putpixel((0, 0), 1)
    for name, image in (("wide.png", Image.fromarray(wide)), ("palette.png", palette)):
        read = read_image(tagged(image, 6, tmp_path / name))
        assert read.shape == (3, 3, 2)
        assert torch.nonzero(read[0]).tolist() == [[0, 1]]


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16", "RGB", "1"])
def test_a_tiff_on_its_side_is_read_the_same_from_a_file_and_from_memory(
    tmp_path: Path, orientation: int, mode: str
) -> None:
    shape = (4, 6) if orientation < 5 else (6, 4)
    array = np.zeros(shape, np.uint8)
    array[0, 0] = 255
    image = Image.fromarray(array.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(array).convert(mode)
    path = tagged(image, orientation, tmp_path / "turned.tif")
    for holder in (path, Image.open(path), Image.open(io.BytesIO(path.read_bytes()))):
        read = read_image(holder)
        assert read.shape == (3, 4, 6)
        assert torch.nonzero(read[0]).tolist() == [list(SHOWN[orientation])]
    assert image_size(path, oriented=True) == image_size(path, oriented=False) == (4, 6)


def test_a_tag_that_says_no_orientation_is_none(tmp_path: Path) -> None:
    path = tagged(Image.fromarray(pixels()), 9, tmp_path / "nine.png")
    assert orientation(path) == 1


def test_an_unreadable_tag_loses_no_picture(tmp_path: Path) -> None:
    array = pixels()
    Image.fromarray(array).save(tmp_path / "odd.png", exif=b"Exif\x00\x00nothing of the kind")
    assert torch.equal(read_image(tmp_path / "odd.png"), as_tensor(array))


def test_an_odd_tag_beside_leaves_no_picture_on_its_side(tmp_path: Path) -> None:
    # orientation 6 and, as some cameras write it, a signed -5 where the standard has an unsigned number
    entries = struct.pack("<HHHIIHHIi", 2, 0x112, 3, 1, 6, 0x11C, 9, 1, -5)
    array = pixels()
    exif = b"Exif\x00\x00II*\x00" + struct.pack("<I", 8) + entries + bytes(4)
    Image.fromarray(array).save(tmp_path / "odd.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "odd.png"), as_tensor(np.rot90(array, -1)))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for suffix in ("png", "jpg", "tif", "webp", "gif", "bmp"):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(pixels(60, 80)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for path in tmp_path.iterdir():
        with pytest.raises(BadImageError) as caught:
            read_image(path)
        assert re.fullmatch(rf"image {re.escape(str(path))} cannot be decoded: [^\n]+", str(caught.value))
    with pytest.raises(FileNotFoundError, match=r"image .*absent\.jpg does not exist"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(FileNotFoundError, match=r"image .* is a folder, expected a file"):
        read_image(tmp_path)


def test_a_lazily_opened_image_is_named_too(tmp_path: Path) -> None:
    Image.fromarray(pixels(60, 80)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:4000])
    with pytest.raises(BadImageError, match=r"^images\[3\] cannot be decoded: "):
        read_image(Image.open(tmp_path / "cut.png"), name="images[3]")


SHAPES = r"expected an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got "
TENSORS = r"expected a tensor (1, H, W), (3, H, W) or (4, H, W), got "
DTYPES = r"expected uint8, uint16, or floats from 0 to 1, got "
RANGE = r"expected floats from 0 to 1 (not normalised by mean and deviation), got "


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((6, 5, 2), np.uint8), SHAPES + "(6, 5, 2)"),
        (np.zeros((3, 4, 5), np.uint8), SHAPES + "(3, 4, 5); channels come last in an array, first in a tensor"),
        (np.zeros((2, 4, 5, 3), np.uint8), SHAPES + "(2, 4, 5, 3); several images are passed as a list"),
        (np.zeros(7, np.uint8), SHAPES + "(7,)"),
        (np.zeros((0, 5, 3), np.uint8), SHAPES + "(0, 5, 3)"),
        (np.zeros((4, 5), np.int64), DTYPES + "int64"),
        (np.zeros((4, 5), bool), DTYPES + "bool"),
        (np.full((4, 5), 255.0), RANGE + "255 to 255"),
        (np.full((4, 5), np.nan), RANGE + "nan to nan"),
        (torch.zeros(4, 5, dtype=torch.uint8), TENSORS + "(4, 5)"),
        (torch.zeros(6, 5, 3), TENSORS + "(6, 5, 3); channels come first in a tensor, last in an array"),
        (torch.zeros(2, 3, 4, 5), TENSORS + "(2, 3, 4, 5); several images are passed as a list"),
        (torch.zeros(3, 0, 5), TENSORS + "(3, 0, 5)"),
        (torch.zeros(3, 4, 5, dtype=torch.int64), DTYPES + "torch.int64"),
        (torch.full((3, 4, 5), -1.5), RANGE + "-1.5 to -1.5"),
        (torch.full((3, 4, 5), torch.inf), RANGE + "inf to inf"),
        (Image.new("RGB", (0, 4)), "expected at least one pixel, got 0 wide and 4 high"),
        (
            Image.fromarray(np.array([[70000]], dtype=np.int32)),
            "expected 16-bit pixels, from 0 to 65535, got 70000 to 70000 in mode I",
        ),
        (Image.fromarray(np.array([[300.0]], dtype=np.float32)), RANGE + "300 to 300"),
    ],
)
def test_a_wrong_image_is_told_in_a_sentence(image: Any, sentence: str) -> None:
    with pytest.raises(BadImageError, match=f"^{re.escape('images[2]: ' + sentence)}$"):
        read_image(image, name="images[2]")


def test_a_wrong_type_is_named() -> None:
    with pytest.raises(TypeError, match=r"^image: expected a path, a PIL image, .* got NoneType$"):
        read_image(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1066)),  # int(800 * 640 / 480), not rounded
        (640, 480, (1066, 800)),
        (500, 375, (1066, 800)),
        (300, 900, (444, 1332)),  # the longer side binds: the shorter is rounded first
        (800, 900, (800, 900)),
        (426, 640, (800, 1201)),  # val2017's image 139, whose speed the published table measured
        (32, 32, (800, 800)),
        (166, 1333, (166, 1333)),
        (100, 800, (167, 1336)),  # 1:8, where rounding the shorter side takes the longer past its limit, as published
        (1, 5000, (1, 5000)),
        (5000, 1, (5000, 1)),
    ],
)
def test_sizes_are_rounded_as_published(height: int, width: int, expected: tuple[int, int]) -> None:
    assert Size().fit(height, width) == expected


def official(height: int, width: int, size: int, limit: int) -> tuple[int, int]:
    """The published rule in exact arithmetic: the shorter side to ``size``, or to the nearest whole pixel (halves to
    even) at which the longer is ``limit``; the longer side in proportion to that, its fraction cut off."""
    short, long = sorted((height, width))
    if Fraction(long, short) * size > limit:
        size = round(Fraction(limit * short, long))
    other = long if short == size else int(Fraction(size * long, short))
    return (size, other) if height <= width else (other, size)


def test_the_rule_is_the_official_one_on_many_sizes() -> None:
    draw = np.random.default_rng(0)
    for _ in range(3000):
        height, width = (int(side) for side in draw.integers(32, 1334, 2))
        assert Size().fit(height, width) == official(height, width, 800, 1333)
    for size, limit in ((480, 1333), (96, 96), (600, 10**9)):
        for height, width in ((32, 256), (256, 32), (427, 640), (333, 500), (96, 96)):
            assert Size(size, limit).fit(height, width) == official(height, width, size, limit)


def test_the_rule_is_the_official_one_on_coco() -> None:
    if not SIZES.is_file():
        pytest.skip("the sizes ../shared/data/val2017_first100_sizes.json are not on this machine")
    images = json.loads(SIZES.read_text())
    fitted = [Size().fit(image["height"], image["width"]) for image in images]
    assert fitted == [official(image["height"], image["width"], 800, 1333) for image in images]
    # the mean area behind the published FLOPs, 800 x 1110.6
    assert np.mean([height * width for height, width in fitted]) == pytest.approx(800 * 1110.6, rel=1e-4)


def test_an_image_size_binds_the_longer_side() -> None:
    assert Size(128, 128).fit(100, 200) == (64, 128)
    assert Size(128, 128).fit(128, 128) == (128, 128)


def test_normalised_images_have_imagenets_scale() -> None:
    image = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2).expand(3, 1, 2)
    low, high = normalise(image)[0, 0].tolist()
    assert low == pytest.approx(-0.485 / 0.229)
    assert high == pytest.approx((1 - 0.485) / 0.229)
