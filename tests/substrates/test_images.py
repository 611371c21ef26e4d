"""Images from files: classes by folders as timm has them, every mode of pixels, what is said or refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageDataset
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.utils.misc import natural_key as timms_key
from torchvision.transforms.functional import to_tensor

import lpe
from lpe import notices
from lpe.substrates.imagenet import LabelledImages, validation
from lpe.substrates.images import as_rgb, classes_of_names, natural_key


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    notices.forget()


def message_of(action: Callable[[], object]) -> str:
    """The error's one line."""
    with pytest.raises(lpe.InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tree(root: Path, files: list[str]) -> Path:
    """A folder with these files, each an image of one pixel."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1)).save(root / file, "PNG")
    return root


def read(root: Path, classes: int, **options: object) -> LabelledImages:
    return validation(root, to_tensor, 64, classes=classes, **options)  # type: ignore[arg-type]


NUMBERED = [f"{k}/x.png" for k in range(12)]
MIXED = ["Zebra/a.png", "ant/10.png", "ant/9.png", "Bee/b.PNG", "n2/x.jpg", "n10/x.jpeg", "n1b/x.png"]
NESTED = ["animals/cat/1.png", "animals/Dog/1.png", "things/cup/2.png", "things/Cup 2/1.png", "things/x.png"]


@pytest.mark.parametrize("files", [NUMBERED, MIXED, NESTED])
def test_classes_and_images_come_in_timms_own_order(tmp_path: Path, files: list[str]) -> None:
    root = tree(tmp_path, files)
    wanted, classes = find_images_and_targets(str(root))
    images = read(root, len(classes))
    assert {str(p): k for p, k in zip(images.paths, images.labels, strict=True)} == dict(wanted)
    assert list(images.class_names) == list(classes)
    of_one_class = [p.name for p in images.paths if p.parent.name == "ant"]
    assert of_one_class == [Path(p).name for p, _ in wanted if Path(p).parent.name == "ant"]


def test_numbered_folders_in_the_order_of_text_would_be_other_classes(tmp_path: Path) -> None:
    # The injected fault: sorted() in place of timm's order.
    _, classes = find_images_and_targets(str(tree(tmp_path, NUMBERED)))
    assert sorted(classes) != list(classes)


@pytest.mark.parametrize("name", ["n01440764", "a10b2", "Ab", "7", "10 x", "ü2", ""])
def test_the_natural_key_is_timms(name: str) -> None:
    assert natural_key(name) == timms_key(name)


def test_an_order_that_text_would_not_have_is_said(tmp_path: Path) -> None:
    read(tree(tmp_path, NUMBERED), 12)
    [said] = notices.said()
    assert "in timm's order" in said and "0, 1, 2 …" in said and "0, 1, 10 …" in said


def test_an_order_that_text_has_too_is_not_worth_a_line(tmp_path: Path) -> None:
    read(tree(tmp_path, ["ant/x.png", "bee/x.png"]), 2)
    assert notices.said() == []


@pytest.mark.parametrize("names", [("Cat", "cat"), ("1", "01")])
def test_folders_with_one_place_in_the_order_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    root = tree(tmp_path, [f"{name}/x.png" for name in names])
    assert "have one place in timm's order" in message_of(lambda: read(root, 2))


def test_two_folders_of_one_name_are_no_class(tmp_path: Path) -> None:
    root = tree(tmp_path, ["train/cat/x.png", "test/cat/x.png"])
    assert "two class folders cat: test/cat and train/cat" in message_of(lambda: read(root, 2))


def test_hidden_files_and_folders_are_no_images_and_are_counted(tmp_path: Path) -> None:
    root = tree(tmp_path, ["a/x.png", "b/x.png", "b/._x.png", ".ipynb_checkpoints/x.png"])
    assert len(read(root, 2).paths) == 2
    assert notices.said() == [f"left out of {root}: 1 hidden, 1 hidden folders"]


def test_file_types_that_are_left_out_are_counted_in_a_line(tmp_path: Path) -> None:
    root = tree(tmp_path, ["a/x.png", "b/x.png", "b/y.GIF", "b/z.gif", "a/x.tiff", "a/README", "loose.png"])
    assert len(read(root, 2).paths) == 2
    assert notices.said() == [
        f"left out of {root}: 2 .gif, 1 .png outside a class folder, 1 .tiff, 1 without a type"
    ]


def test_a_class_that_is_called_val_is_a_class(tmp_path: Path) -> None:
    images = read(tree(tmp_path, ["pool/x.png", "val/x.png"]), 2)
    assert images.class_names == ("pool", "val")


# The names of a model's classes.


def test_names_that_are_the_folders_in_another_order_give_each_its_class(tmp_path: Path) -> None:
    root = tree(tmp_path, ["ant/x.png", "great_white_shark/x.png", "cat/x.png"])
    images = read(root, 3, class_names=["Great white shark", "cat", "ant"])
    assert {p.parent.name: k for p, k in zip(images.paths, images.labels, strict=True)} == {
        "great_white_shark": 0,
        "cat": 1,
        "ant": 2,
    }
    assert images.class_names == ("Great white shark", "cat", "ant")
    assert notices.said() == ["class names and class folders are matched by name: 'ant' is ant"]


def test_other_names_are_said_to_be_by_position(tmp_path: Path) -> None:
    images = read(tree(tmp_path, ["0/x.png", "1/x.png"]), 2, class_names=["tench", "shark"])
    assert images.labels == (0, 1)
    assert notices.said() == ["class names and class folders are matched by position: 'tench' is 0"]


def test_a_folders_name_at_another_position_is_refused() -> None:
    said = message_of(lambda: classes_of_names(["ant", "bee", "cat"], ["bee", "a wasp", "cat"]))
    assert "the class name 'bee' is number 1 and the class folder bee number 2" in said


def test_too_few_class_names_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path, ["0/x.png", "1/x.png"])
    said = message_of(lambda: read(root, 2, class_names=["one"]))
    assert said == "there are 1 class names and the model has 2 classes"


# Pixels.

COLOURS = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)


def turned(path: Path) -> None:
    """A photograph that lies on its side, by EXIF's orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS[:4]).save(path, exif=exif)


def transparent_palette(path: Path) -> None:
    Image.fromarray(COLOURS).quantize(16).save(path, transparency=bytes(range(16)))


MODES: dict[str, Callable[[Path], None]] = {
    **{
        mode: lambda path, mode=mode: Image.fromarray(COLOURS).convert(mode).save(path)
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA")
    },
    "a palette with transparency": transparent_palette,
    "CMYK": lambda path: Image.fromarray(COLOURS).convert("CMYK").save(path.with_suffix(".jpg")),
    "16 bits a channel of colour": lambda path: path.write_bytes(sixteen_bit_colours()),
    "turned by EXIF": lambda path: turned(path.with_suffix(".jpg")),
}


def sixteen_bit_colours() -> bytes:
    """A PNG of 8 × 8 pixels with 16 bits a channel, which PIL does not write."""
    import struct
    import zlib

    wide = (COLOURS.astype(">u2") * 257).reshape(8, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in wide)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class InMemory:
    """A reader of timm's, without the files that its own leaves open."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        return io.BytesIO(self.paths[index].read_bytes()), 0

    def __len__(self) -> int:
        return len(self.paths)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # timm's reading
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_eight_bits_has_the_values_that_timm_reads(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").mkdir()
    MODES[mode](tmp_path / "a" / "x.png")
    [(found, _)] = validation(tmp_path, to_tensor, 1, classes=1)
    wanted, _ = ImageDataset("", reader=InMemory([*(tmp_path / "a").iterdir()]), transform=to_tensor)[0]
    assert torch.equal(found[0], wanted)


GREY = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
GREYS: dict[str, Callable[[Path], None]] = {
    "PNG": lambda path: Image.fromarray(GREY).save(path, "PNG"),
    "TIFF": lambda path: Image.fromarray(GREY).save(path, "TIFF"),
    "big-endian TIFF": lambda path: Image.fromarray(GREY.astype(">u2")).save(path, "TIFF"),
    "PGM": lambda path: Image.fromarray(GREY.astype(np.int32)).save(path, "PPM"),
}


@pytest.mark.parametrize("kind", GREYS)
def test_sixteen_bits_of_grey_are_scaled_by_65535(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").mkdir()
    GREYS[kind](tmp_path / "a" / "x.png")  # formats are told by content
    [(found, _)] = validation(tmp_path, to_tensor, 1, classes=1)
    wanted = torch.tensor(GREY / 65535, dtype=torch.float32).expand(3, 8, 8)
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=0.5 / 255 + 1e-6)


def test_pils_own_conversion_of_sixteen_bits_would_be_seen(tmp_path: Path) -> None:
    # The injected fault: convert("RGB") alone, which cuts off at 255.
    cut = to_tensor(Image.fromarray(GREY).convert("RGB"))
    assert float((cut[0] - torch.tensor(GREY / 65535)).abs().max()) > 0.5


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_an_unknown_range_are_refused_by_name(tmp_path: Path, dtype: type) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(GREY.astype(dtype)).save(tmp_path / "a" / "x.png", "TIFF")
    said = message_of(lambda: list(read(tmp_path, 1)))
    assert f"cannot read the image {tmp_path / 'a' / 'x.png'}: its pixels are of PIL's mode" in said


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_an_animation_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").mkdir()
    frames = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    frames[0].save(tmp_path / "a" / "x.png", kind, save_all=True, append_images=frames[1:])
    said = message_of(lambda: list(read(tmp_path, 1)))
    assert f"{tmp_path / 'a' / 'x.png'}: it is an animation of 2 images" in said


def test_a_camera_s_picture_with_a_preview_is_the_picture(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture = Image.fromarray(COLOURS)
    picture.save(tmp_path / "a" / "x.jpg", "MPO", save_all=True, append_images=[picture.resize((2, 2))])
    [(found, _)] = read(tmp_path, 1)
    assert found.shape == (1, 3, 8, 8)


def test_an_image_too_large_to_be_meant_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    root = tree(tmp_path, ["a/x.png"])
    Image.new("L", (8, 8)).save(root / "a" / "x.png")
    assert "a/x.png is not a whole image (Image size (64 pixels) exceeds" in message_of(
        lambda: list(read(root, 1))
    )


def test_an_rgb_image_is_left_as_it_is() -> None:
    assert np.array_equal(np.asarray(as_rgb(Image.fromarray(COLOURS))), COLOURS)


def test_processes_that_cannot_be_started_are_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_by_two = read(tree(tmp_path, ["a/1.png", "b/2.png"]), 2, workers=2)

    def closed(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(torch.multiprocessing, "get_context", lambda: SimpleNamespace(Lock=closed))
    assert message_of(lambda: next(iter(read_by_two))) == (
        "cannot start 2 processes that read images (Read-only file system); give --workers 0, or let "
        "/dev/shm be written to"
    )
