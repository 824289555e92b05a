"""A picture is read as a viewer shows it; files that cannot be shown correctly are refused."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest

from diffusion_jax.data.pictures import read_image, read_size
from diffusion_jax.errors import UserError
from tests.data.damage import one_line_or_fine

RAMP = np.arange(0, 240, 10, dtype=np.uint8).reshape(2, 4, 3)  # a picture of 4 x 2 in which all values differ


def png(tmp_path, array, **options):
    PIL.Image.fromarray(array).save(tmp_path / "a.png", **options)
    return str(tmp_path / "a.png")


def with_chunk(path, name, content):
    """Insert a chunk after the header of a PNG file."""
    whole = Path(path).read_bytes()
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    Path(path).write_bytes(whole[:33] + chunk + whole[33:])


def png_of(*chunks):
    """The bytes of a PNG file with the chunks (name, content)."""
    framed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_is_white(channels, tmp_path):
    """Transparent pictures are composited on white: alpha * colour + (1 - alpha) * 255."""
    alpha = np.array([[0, 64, 128, 255]] * 2, np.uint8)
    path = png(tmp_path, np.concatenate([RAMP, alpha[..., None]], -1))
    seen = read_image(path, channels).astype(float)
    share = alpha[..., None] / 255
    expected = share * RAMP + (1 - share) * 255
    if channels == 1:
        expected = expected @ [[0.299], [0.587], [0.114]]
    np.testing.assert_allclose(seen, expected, atol=1.1)
    grey = png(tmp_path, np.stack([RAMP[..., 0], alpha], -1))
    seen = read_image(grey, channels).astype(float)
    expected = np.repeat(share * RAMP[..., :1] + (1 - share) * 255, channels, -1)
    np.testing.assert_allclose(seen, expected, atol=1.1)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_colour_that_counts_as_transparent_is_white(mode, channels, tmp_path):
    picture = PIL.Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8)).convert(mode)
    key = {"L": 0, "1": 0, "RGB": (0, 0, 0), "P": picture.getpixel((0, 0))}[mode]
    picture.save(tmp_path / "a.png", transparency=key)
    assert (read_image(str(tmp_path / "a.png"), channels) == 255).all()


def test_a_palette_with_partial_transparency(tmp_path):
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([200, 0, 0, 0, 0, 200])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    np.testing.assert_allclose(read_image(str(tmp_path / "a.png"))[0], [[255, 255, 255], [127, 127, 227]], atol=1)


def test_premultiplied_alpha_is_laid_on_white(tmp_path):
    """A TIFF with associated alpha stores colour * alpha; the reader adds (1 - alpha) * white."""
    stored = np.array([[[100, 0, 0, 128], [0, 0, 0, 0]]], np.uint8)
    tags = {256: 2, 257: 1, 258: (8,) * 4, 259: 1, 262: 2, 277: 4, 278: 1, 338: 1}
    strip, entries = stored.tobytes(), []
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    for tag, value in sorted({**tags, 273: start + 8, 279: len(strip)}.items()):
        kind, count, field = (3, 4, start) if tag == 258 else (4, 1, value)
        entries.append(struct.pack("<HHII", tag, kind, count, field))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    (tmp_path / "a.tif").write_bytes(
        b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<4H", *(8,) * 4) + strip
    )
    np.testing.assert_allclose(read_image(str(tmp_path / "a.tif"))[0], [[227, 127, 127], [255, 255, 255]], atol=2)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(orientation, ending, tmp_path):
    """Each EXIF orientation k is undone: it says where row 0 and column 0 are shown (EXIF 2.32, table 6)."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 250  # the top left corner is bright
    as_stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    picture = PIL.Image.fromarray(np.ascontiguousarray(as_stored[orientation]))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if ending == "webp" else {"quality": 100} if ending == "jpg" else {}
    picture.save(tmp_path / f"a.{ending}", exif=exif, **options)
    seen = read_image(str(tmp_path / f"a.{ending}"))
    assert seen.shape == upright.shape == (*read_size(str(tmp_path / f"a.{ending}")), 3)
    np.testing.assert_allclose(seen.astype(int), upright, atol=3)


def test_an_embedded_profile_is_converted_to_srgb(tmp_path):
    """A profile with the red and green columns exchanged turns red into green."""
    profile = bytearray(PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes())
    names = {}
    for i in range(struct.unpack(">I", profile[128:132])[0]):
        place = 132 + 12 * i
        names[bytes(profile[place : place + 4])] = place
    red, green = names[b"rXYZ"], names[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    colours = np.array([[[250, 20, 20], [20, 250, 20], [20, 20, 250], [90, 90, 90]]], np.uint8)
    seen = read_image(png(tmp_path, colours, icc_profile=bytes(profile)))
    np.testing.assert_allclose(seen[0], colours[0][:, [1, 0, 2]], atol=2)
    layered = np.concatenate([colours, np.array([[[255], [255], [255], [0]]], np.uint8)], -1)
    seen = read_image(png(tmp_path, layered, icc_profile=bytes(profile)))
    np.testing.assert_allclose(seen[0], [*colours[0][:3, [1, 0, 2]], [255, 255, 255]], atol=2)


@pytest.mark.parametrize("profile", ["srgb", "damaged", "of other channels"])
def test_profiles_that_change_nothing(profile, tmp_path, random_images):
    content = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    content = content[:150] if profile == "damaged" else content
    array = random_images(8, 8) if profile == "of other channels" else random_images(8, 8, 3)
    seen = read_image(png(tmp_path, array, icc_profile=content), 1 if array.ndim == 2 else 3)
    np.testing.assert_array_equal(seen, array[..., None] if array.ndim == 2 else array)


def test_the_gamma_of_a_png(tmp_path):
    """A linear PNG (gAMA 1) is shown as value ** (1 / 2.2); an sRGB chunk overrides gAMA."""
    path = png(tmp_path, RAMP)
    with_chunk(path, b"gAMA", struct.pack(">I", 45455))
    np.testing.assert_array_equal(read_image(path), RAMP)
    path = png(tmp_path, RAMP)
    with_chunk(path, b"gAMA", struct.pack(">I", 100_000))
    np.testing.assert_allclose(read_image(path), 255 * (RAMP / 255) ** (1 / 2.2), atol=1)
    with_chunk(path, b"sRGB", b"\0")
    np.testing.assert_array_equal(read_image(path), RAMP)


def test_other_primaries_are_refused(tmp_path):
    path = png(tmp_path, RAMP)
    wide = (31270, 32900, 73470, 26530, 11520, 82640, 15700, 1770)
    with_chunk(path, b"cHRM", struct.pack(">8I", *wide))
    with pytest.raises(UserError, match="primaries"):
        read_image(path)


def test_cmyk_and_ycck(tmp_path):
    """Full black ink gives black and no ink white, in JPEG and TIFF files with CMYK."""
    inks = np.zeros((8, 16, 4), np.uint8)
    inks[:, 8:, 3] = 255
    for name in ("a.jpg", "a.tif"):
        PIL.Image.fromarray(inks, "CMYK").save(tmp_path / name)
        seen = read_image(str(tmp_path / name))
        np.testing.assert_allclose(seen[:, [0, -1]], np.broadcast_to([[[255], [0]]], (8, 2, 3)), atol=3)


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_several_frames_are_refused(ending, tmp_path):
    frames = [PIL.Image.new("RGB", (4, 4), (40 * i, 0, 0)) for i in range(3)]
    path = tmp_path / f"a.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"a\.\w+ has 3 frames"):
        read_image(str(path))


def test_a_cameras_previews_are_no_frames(tmp_path):
    """An MPO file, a JPEG followed by further pictures, is read as its first picture."""
    frames = [PIL.Image.new("RGB", (16, 16), (200 * (i == 0), 0, 0)) for i in range(2)]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(read_image(str(tmp_path / "a.jpg"))[4, 4], [200, 0, 0], atol=3)


def test_deep_colour_is_refused(tmp_path):
    """Images of 16 bits are refused, also where the decoder would silently drop the lower byte."""
    PIL.Image.fromarray(np.full((4, 4), 60_000, np.uint16)).save(tmp_path / "grey.png")
    raw = b"".join(b"\0" + bytes(range(24)) for _ in range(2))
    header = struct.pack(">2I5B", 4, 2, 16, 2, 0, 0, 0)
    content = png_of((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    (tmp_path / "colour.png").write_bytes(content)
    for name in ("grey", "colour"):
        with pytest.raises(UserError, match=rf"{name}\.png: only images with 8 bits"):
            read_image(str(tmp_path / f"{name}.png"))


def test_one_bit_and_interlaced(tmp_path):
    dots = np.indices((8, 8)).sum(0) % 2 == 0
    PIL.Image.fromarray(dots).save(tmp_path / "a.png")
    assert (read_image(str(tmp_path / "a.png"), 1)[..., 0] == 255 * dots).all()
    PIL.Image.new("RGB", (32, 32), (9, 8, 7)).save(tmp_path / "a.jpg", progressive=True)
    np.testing.assert_allclose(read_image(str(tmp_path / "a.jpg"))[3, 3], [9, 8, 7], atol=2)


def test_no_other_decoder_sees_a_file(tmp_path, monkeypatch):
    """PostScript and PPM content in a .png file is refused; PostScript never reaches Ghostscript."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    for name, content in [
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
        ("b.png", b"P6 2 2 255\n" + bytes(12)),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"cannot decode the image .*{name}"):
            read_image(str(tmp_path / name))


def test_a_bomb_is_one_line(tmp_path):
    """A tiny file with a header of 60000 x 60000 pixels is refused in one line."""
    header = struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(png_of((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")))
    with pytest.raises(UserError, match=r"a\.png: Image size"):
        read_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize("kind", ["pipe", "folder", "circle", "missing", "lfs"])
def test_what_is_no_file(kind, tmp_path):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(UserError) as error:
        read_image(str(path))
    assert "a.png" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "gif", "tif"])
def test_damaged_pictures_are_one_line_or_decoded(ending, tmp_path, random_images):
    """A truncated file or one with changed bytes gives an error that names it, or some decoded picture."""
    buffer = io.BytesIO()
    picture = PIL.Image.fromarray(random_images(12, 12, 3))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending), exif=exif)
    content, random, path = buffer.getvalue(), np.random.default_rng(0), tmp_path / f"a.{ending}"
    for trial in range(120):
        damaged = bytearray(content)
        if trial % 3 == 0:
            del damaged[random.integers(len(content)) :]
        else:
            for place in random.integers(0, min(len(content), 10 ** (1 + trial % 3)), 1 + trial % 4):
                damaged[place] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        with one_line_or_fine(path.name):
            assert read_image(str(path)).dtype == np.uint8
