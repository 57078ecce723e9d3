import io
import struct
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from collectionlora.pictures.photos import (
    crop_square,
    read_photo,
    resize,
    to_images,
    to_photos,
    write_photo,
)
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.system.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (20, 30, 3), dtype=np.uint8)


def test_a_photo_survives_a_lossless_file(tmp_path):
    write_photo(tmp_path / "sub" / "a.png", PIXELS)
    assert np.array_equal(read_photo(tmp_path / "sub" / "a.png"), PIXELS)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_format_that_cannot_hold_a_photo_is_named(tmp_path, suffix):
    wide = np.zeros((2, 70_000, 3), np.uint8)
    with pytest.raises(UserError, match=r"cannot hold 70000 x 2 pixels .*; end the name in \.png"):
        write_photo(tmp_path / f"wide{suffix}", wide)
    assert not list(tmp_path.iterdir())


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned left
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_photo(tmp_path / "a.png"), np.rot90(PIXELS, -1))


def test_transparency_is_laid_over_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo[0, 0].tolist() == [0, 0, 0]
    assert photo[3, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "RGBA", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(PIXELS).convert(mode).save(path)
    photo = read_photo(path)
    assert photo.shape == (20, 30, 3)
    assert photo.dtype == np.uint8


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.array([[0, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png")[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"0" * 40])
def test_what_is_no_photo_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png"):
        read_photo(tmp_path / "a.png")


def test_a_truncated_photo_is_refused(tmp_path):
    Image.fromarray(RNG.integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        read_photo(tmp_path / "a.jpg")


def test_an_unknown_suffix_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(UserError, match="image format"):
        write_photo(tmp_path / "a.xyz", PIXELS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 100, (64, 64)), (480, 640, (56, 72)), (10, 5000, (40, 112)), (1, 1, (64, 64))],
)
def test_working_size_keeps_aspect_and_area(height, width, expected):
    assert WorkingSizes(64, 8).find(height, width) == expected


def test_images_and_photos_are_inverse():
    photos = [PIXELS, PIXELS[::-1].copy()]
    assert all(np.array_equal(a, b) for a, b in zip(to_photos(to_images(photos)), photos, strict=True))
    assert to_images(photos).dtype == torch.float32


def test_crops_and_sizes():
    assert crop_square(PIXELS, 8).shape == (8, 8, 3)
    assert resize(PIXELS, (7, 9)).shape == (7, 9, 3)


def test_cmyk_keeps_its_colours(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
    assert np.abs(read_photo(tmp_path / "a.jpg").astype(int) - red).max() <= 4


def test_a_palette_with_a_transparent_colour_is_laid_over_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "a.png", transparency=1)
    assert read_photo(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255] * 3], [[255] * 3, [10, 20, 30]]]


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif"])
def test_of_an_animation_or_of_many_pages_the_first_is_read(tmp_path, name):
    frames = [Image.fromarray(np.full((6, 8, 3), level, np.uint8)) for level in (200, 100, 0)]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / name) as stored:
        assert stored.n_frames == 3
    assert np.array_equal(read_photo(tmp_path / name), np.full((6, 8, 3), 200))


def test_sixteen_bits_of_a_dark_photo_stay_dark(tmp_path):
    """200 of 65,535 is nearly black, though it would fit into 8 bits."""
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").max() == 0


@pytest.mark.parametrize(("white", "expected"), [(1.0, 127), (255.0, 127), (65535.0, 127)])
def test_the_white_of_a_float_tiff_is_found(tmp_path, white, expected):
    values = np.linspace(0, white, 5, dtype=np.float32).reshape(1, 5).repeat(4, 0)
    Image.fromarray(values).save(tmp_path / "a.tif")
    photo = read_photo(tmp_path / "a.tif")
    assert photo[0, :, 0].tolist() == pytest.approx([0, 63, expected, 191, 255], abs=1)


def test_an_ending_does_not_decide_what_a_photo_is(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "real.png")
    (tmp_path / "real.png").rename(tmp_path / "a.jpg")
    assert np.array_equal(read_photo(tmp_path / "a.jpg"), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_camera_ends_upright(tmp_path, orientation):
    turn = [
        *(lambda x: x, lambda x: x[:, ::-1], lambda x: x[::-1, ::-1], lambda x: x[::-1]),
        *(lambda x: x.swapaxes(0, 1), lambda x: np.rot90(x), lambda x: np.rot90(x.swapaxes(0, 1), 2)),
        lambda x: np.rot90(x, -1),
    ][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turn(PIXELS)))
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_photo(tmp_path / "a.png"), PIXELS)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif"])
def test_any_damage_to_a_photo_is_a_photo_or_refused(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / f"whole.{kind}", exif=exif)
    whole, path, rng = (
        (tmp_path / f"whole.{kind}").read_bytes(),
        tmp_path / f"a.{kind}",
        np.random.default_rng(0),
    )
    for _ in range(80):
        damaged = bytearray(whole)
        for _ in range(int(rng.integers(1, 9))):
            damaged[int(rng.integers(min(len(damaged), 400)))] = int(rng.integers(256))
        path.write_bytes(damaged[: int(rng.integers(1, len(damaged) + 1)) if rng.random() < 0.3 else None])
        with suppress(UserError):
            photo = read_photo(path, max_pixels=1_000_000)
            assert photo.ndim == 3
            assert photo.dtype == np.uint8


def icc_profile(space, tags):
    """A profile of matrix and curves, or of a grey curve, as bytes."""
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for key, data in tags.items():
        padded = data + b"\0" * (-len(data) % 4)
        table += key + struct.pack(">II", place + len(body), len(padded))
        body += padded
    white = b"".join(map(fixed, (0.9642, 1, 0.8249)))
    head = struct.pack(">I4sI4s4s4s", place + len(body), b"test", 0x04000000, b"mntr", space, b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + white
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def fixed(value):
    return struct.pack(">i", round(value * 65536))


def xyz(*values):
    return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))


def gamma(value):
    return b"para\0\0\0\0\0\0\0\0" + fixed(value)


COMMON = {
    b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + b"\0" * 79,
    b"cprt": b"text\0\0\0\0CC0\0",
    b"wtpt": xyz(0.9642, 1, 0.8249),
}
PRIMARIES = {
    "Display P3": ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)),
    "Adobe RGB": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
}


def rgb_profile(name):
    red, green, blue = PRIMARIES[name]
    curves = {b"rTRC": gamma(2.2), b"gTRC": gamma(2.2), b"bTRC": gamma(2.2)}
    colours = {b"rXYZ": xyz(*red), b"gXYZ": xyz(*green), b"bXYZ": xyz(*blue)}
    return icc_profile(b"RGB ", {**COMMON, **colours, **curves})


@pytest.mark.parametrize("name", PRIMARIES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_one_colour_is_read_alike_whatever_its_profile(tmp_path, name, mode):
    colour = (230, 60, 40)
    scene = Image.new("RGB", (8, 8), colour)
    wide = ImageCms.profileToProfile(
        scene, ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(rgb_profile(name)))
    )
    assert np.abs(np.array(wide.getpixel((0, 0))) - colour).max() > 10
    wide.convert(mode).save(tmp_path / "a.png", icc_profile=rgb_profile(name))
    assert np.abs(read_photo(tmp_path / "a.png").astype(int) - colour).max() <= 2


def test_a_grey_profile_is_applied_to_grey_photos_of_8_and_16_bits(tmp_path):
    profile = icc_profile(b"GRAY", {**COMMON, b"kTRC": gamma(1.0)})
    Image.new("L", (4, 4), 55).save(tmp_path / "a.png", icc_profile=profile)
    Image.fromarray(np.full((4, 4), 55 * 257, np.uint16)).save(tmp_path / "b.png", icc_profile=profile)
    for name in ("a.png", "b.png"):  # linear light of 55 / 255 is 128 in sRGB
        assert np.abs(read_photo(tmp_path / name).astype(int) - 128).max() <= 2


def test_a_photo_without_a_profile_keeps_its_numbers(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert np.array_equal(read_photo(tmp_path / "a.png"), PIXELS)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(PIXELS).save(tmp_path / "b.png", icc_profile=srgb)
    assert np.abs(read_photo(tmp_path / "b.png").astype(int) - PIXELS).max() <= 1


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b"no profile"),
        ("RGB", rgb_profile("Adobe RGB")[:200]),
        ("RGB", icc_profile(b"GRAY", {**COMMON, b"kTRC": gamma(2.2)})),  # would lose the colours
        ("CMYK", rgb_profile("Adobe RGB")),
        ("RGB", icc_profile(b"Lab ", COMMON)),
    ],
)
def test_a_profile_that_cannot_be_used_is_said_and_the_photo_is_read(tmp_path, caplog, mode, profile):
    path = tmp_path / "a.tif"
    Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode).save(path, icc_profile=profile)
    assert read_photo(path)[0, 0].tolist() == [255, 0, 0]
    assert f"{path}: its colour profile cannot be used (" in caplog.text
