"""ImageNet and timm: labels from every layout, what is refused and how, and weights into timm's models."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import lpe
from lpe.substrates import imagenet, loading, timm_models
from lpe.substrates.imagenet import GROUND_TRUTH, KAGGLE, META, SYNSETS, validation

TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SMALLEST = "test_resnet.r160_in1k"  # timm's own for tests: 470,000 weights


def message_of(action: Callable[[], object]) -> str:
    """The error's one line."""
    with pytest.raises(lpe.InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def jpeg(red: int) -> bytes:
    """A whole JPEG of 4 × 4 pixels of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def redness(image: Image.Image) -> Tensor:
    """The transform of these tests: an image's red."""
    return torch.tensor(np.asarray(image)[0, 0, :1].astype(np.float32))


def class_folders(root: Path, names: list[str], images: int = 1) -> Path:
    """A folder per class; image i of class k has the redness (k + i) mod 256."""
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for image in range(images):
            (root / name / f"{image}.JPEG").write_bytes(jpeg((label + image) % 256))
    return root


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's 1,000 class folders, with one image each."""
    return class_folders(tmp_path_factory.mktemp("imagenet"), imagenet.wnids())


def labels_of(images: imagenet.LabelledImages) -> list[int]:
    return [int(label) for _, labels in images for label in labels]


def test_the_thousand_class_folders_have_their_classes_in_the_order_of_wnids(thousand: Path) -> None:
    images = validation(thousand, redness, 64)
    assert len(images.paths) == 1000 and len(images) == 16
    assert images.labels == tuple(range(1000))
    assert [path.parent.name for path in images.paths] == sorted(imagenet.wnids())


def test_the_validation_set_is_found_under_val(tmp_path: Path, thousand: Path) -> None:
    (tmp_path / "val").symlink_to(thousand)
    (tmp_path / "train").mkdir()
    assert len(validation(tmp_path, redness, 64).paths) == 1000


def test_a_limit_takes_images_evenly_spread_over_the_classes(thousand: Path) -> None:
    assert labels_of(validation(thousand, redness, 3, limit=4)) == [0, 250, 500, 750]


def test_images_come_again_in_the_same_order_and_with_any_number_of_workers(thousand: Path) -> None:
    images = validation(thousand, redness, 3, limit=8)
    first = [inputs for inputs, _ in images]
    for again in (images, validation(thousand, redness, 3, limit=8, workers=2)):
        assert all(torch.equal(a, b) for a, (b, _) in zip(first, again, strict=True))
    assert [len(inputs) for inputs in first] == [3, 3, 2]


def test_reading_images_leaves_the_global_generator_alone(thousand: Path) -> None:
    before = torch.get_rng_state()
    list(validation(thousand, redness, 3, limit=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_have_the_dtype_asked_for(thousand: Path) -> None:
    [(inputs, _)] = validation(thousand, redness, 3, limit=2, dtype=torch.bfloat16)
    assert inputs.dtype == torch.bfloat16


def test_999_class_folders_are_refused_and_the_missing_one_is_named(tmp_path: Path) -> None:
    names = imagenet.wnids()
    gone = names.pop(417)
    message = message_of(lambda: validation(class_folders(tmp_path, names, 0), redness, 4))
    assert "has 999 class folders, ImageNet-1k has 1000; 1 missing: " + gone in message


def test_a_folder_that_is_not_imagenets_is_named(tmp_path: Path) -> None:
    folder = class_folders(tmp_path, [*imagenet.wnids()[1:], "n99999999"], 0)
    message = message_of(lambda: validation(folder, redness, 4))
    assert "1 missing: n01440764; 1 not of it: n99999999" in message


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    folder = class_folders(tmp_path, ["cat", "dog"])
    (folder / "dog" / "0.JPEG").rename(folder / "dog" / "0.txt")
    assert "dog has no images" in message_of(lambda: validation(folder, redness, 4, classes=2))


def test_a_folder_of_anything_else_is_no_validation_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert "neither a folder per class" in message_of(lambda: validation(tmp_path, redness, 4))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "there is no folder" in message_of(lambda: validation(tmp_path / "nowhere", redness, 4))


def test_a_model_of_other_classes_is_refused_on_imagenet(thousand: Path) -> None:
    message = message_of(lambda: validation(thousand, redness, 4, classes=21843))
    assert "ImageNet-1k has 1000 classes and the model 21843" in message


def test_ones_own_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    images = validation(class_folders(tmp_path, ["dog", "ant", "cat"], 2), redness, 4, classes=3)
    assert images.class_names == ("ant", "cat", "dog")
    assert labels_of(images) == [0, 0, 1, 1, 2, 2]


def test_ones_own_folders_must_be_as_many_as_the_model_has_classes(tmp_path: Path) -> None:
    folder = class_folders(tmp_path, ["ant", "cat"])
    message = message_of(lambda: validation(folder, redness, 4, classes=3))
    assert "has 2 class folders (ant, cat) and the model 3 classes" in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_jpeg_is_named_also_by_a_worker(tmp_path: Path, workers: int) -> None:
    folder = class_folders(tmp_path, ["ant", "cat"])
    whole = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    path = folder / "cat" / "0.JPEG"
    Image.fromarray(whole).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:-2000])
    images = validation(folder, redness, 1, classes=2, workers=workers)
    assert f"{path} is not a whole image (image file is truncated" in message_of(lambda: list(images))


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    folder = class_folders(tmp_path, ["ant", "cat"])
    (folder / "cat" / "0.JPEG").write_text("not found")
    assert "cat/0.JPEG is not a whole image" in message_of(
        lambda: list(validation(folder, redness, 1, classes=2))
    )


# The flat layout. Image n has class (7 n) mod 1000, and ILSVRC2012_IDs run backwards through the wnids.


def flat(root: Path, images: int = 5) -> list[int]:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(1, images + 1):
        (root / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(jpeg(number))
    return [7 * number % 1000 for number in range(1, images + 1)]


def write_meta(path: Path) -> None:
    """The development kit's table: 1,000 classes, then nodes above them, which have IDs from 1001 on."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    rows = [(float(1000 - k), wnid, 0.0) for k, wnid in enumerate(imagenet.wnids())]
    table = np.array([*rows, (1001.0, "n00001740", 3.0)], dtype=kinds)
    scipy.io.savemat(path, {"synsets": table.reshape(-1, 1)})


def test_the_official_ground_truth_is_translated_by_the_development_kit(tmp_path: Path) -> None:
    classes = flat(tmp_path / "val")
    (tmp_path / GROUND_TRUTH).write_text("".join(f"{1000 - label}\n" for label in classes))
    write_meta(tmp_path / META)
    images = validation(tmp_path, redness, 2)
    assert labels_of(images) == classes
    assert images.class_names == tuple(imagenet.wnids())


def test_reading_the_official_numbers_as_classes_would_be_seen(tmp_path: Path) -> None:
    # The injected fault: a table that numbers the classes as the models do.
    classes = flat(tmp_path)
    (tmp_path / GROUND_TRUTH).write_text("".join(f"{1000 - label}\n" for label in classes))
    table = np.array(
        [(float(k + 1), w) for k, w in enumerate(imagenet.wnids())], [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    )
    scipy.io.savemat(tmp_path / META, {"synsets": table.reshape(-1, 1)})
    assert labels_of(validation(tmp_path, redness, 2)) != classes


def test_the_official_ground_truth_alone_does_not_do(tmp_path: Path) -> None:
    classes = flat(tmp_path)
    (tmp_path / GROUND_TRUTH).write_text("".join(f"{1000 - label}\n" for label in classes))
    message = message_of(lambda: validation(tmp_path, redness, 2))
    assert "ILSVRC2012_IDs" in message and META in message


def test_a_wnid_a_line_needs_no_development_kit(tmp_path: Path) -> None:
    classes = flat(tmp_path)
    (tmp_path / SYNSETS).write_text("".join(f"{imagenet.wnids()[label]}\n" for label in classes))
    assert labels_of(validation(tmp_path, redness, 2)) == classes


def test_kaggles_table_goes_by_the_images_names(tmp_path: Path) -> None:
    classes = flat(tmp_path)
    rows = [
        f"ILSVRC2012_val_{number:08d},{imagenet.wnids()[label]} 1 2 3 4 \n"
        for number, label in enumerate(classes, start=1)
    ]
    (tmp_path / KAGGLE).write_text("ImageId,PredictionString\n" + "".join(reversed(rows)))
    assert labels_of(validation(tmp_path, redness, 2)) == classes


def test_some_of_the_flat_images_have_their_own_labels(tmp_path: Path) -> None:
    classes = flat(tmp_path)
    (tmp_path / SYNSETS).write_text("".join(f"{imagenet.wnids()[label]}\n" for label in classes))
    (tmp_path / "ILSVRC2012_val_00000002.JPEG").unlink()
    assert labels_of(validation(tmp_path, redness, 2)) == [classes[0], *classes[2:]]


def test_images_without_a_label_are_counted_and_named(tmp_path: Path) -> None:
    classes = flat(tmp_path)
    (tmp_path / SYNSETS).write_text("".join(f"{imagenet.wnids()[label]}\n" for label in classes[:3]))
    message = message_of(lambda: validation(tmp_path, redness, 2))
    assert "no label for 2 of 5 images: ILSVRC2012_val_00000004.JPEG, ILSVRC2012_val_00000005.JPEG" in message


def test_flat_images_without_any_labels_say_what_is_needed(tmp_path: Path) -> None:
    flat(tmp_path)
    message = message_of(lambda: validation(tmp_path, redness, 2))
    assert all(name in message for name in (KAGGLE, SYNSETS, GROUND_TRUTH, META))


def test_a_damaged_development_kit_is_named(tmp_path: Path) -> None:
    classes = flat(tmp_path)
    (tmp_path / GROUND_TRUTH).write_text("".join(f"{1000 - label}\n" for label in classes))
    (tmp_path / META).write_bytes(b"MATLAB 5.0")
    assert "is not the development kit's meta.mat" in message_of(lambda: validation(tmp_path, redness, 2))


# timm's models.


@pytest.fixture(scope="module")
def smallest() -> torch.nn.Module:
    return imagenet.random_model(SMALLEST)


def test_the_data_config_and_the_transform_are_the_models_own(smallest: torch.nn.Module) -> None:
    config = imagenet.data_config(timm_models._on_meta(TINY))
    assert config == {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    white = imagenet.evaluation_transform(config)(Image.new("RGB", (300, 400), (255, 255, 255)))
    assert white.shape == (3, 224, 224) and torch.equal(white, torch.ones(3, 224, 224))
    assert imagenet.data_config(smallest)["input_size"] == [3, 160, 160]


def test_a_random_model_is_the_same_each_time_and_leaves_the_global_generator_alone(
    smallest: torch.nn.Module,
) -> None:
    before = torch.get_rng_state()
    again = imagenet.random_model(SMALLEST)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(smallest.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) and not again.training


def doubled(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value * 2 for name, value in model.state_dict().items()}


def test_a_checkpoint_is_read_into_the_model(tmp_path: Path, smallest: torch.nn.Module) -> None:
    save_file(doubled(smallest), tmp_path / "weights.safetensors")
    loaded = imagenet.load_model(SMALLEST, tmp_path / "weights.safetensors")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, 2 * smallest.state_dict()[name])


def test_the_checkpoints_classifier_says_how_many_classes_there_are(
    tmp_path: Path, smallest: torch.nn.Module
) -> None:
    weights = smallest.state_dict()
    weights["fc.weight"], weights["fc.bias"] = (
        weights["fc.weight"][:7].clone(),
        weights["fc.bias"][:7].clone(),
    )
    save_file(weights, tmp_path / "weights.safetensors")
    loaded = imagenet.load_model(SMALLEST, tmp_path / "weights.safetensors")
    assert loaded(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_weights_under_their_authors_names_are_converted_as_timm_does(tmp_path: Path) -> None:
    name = "test_vit.r160_in1k"
    weights = imagenet.random_model(name).state_dict()
    # timm's converter for Vision Transformers knows an image tower of open_clip by this prefix.
    torch.save({f"visual.trunk.{key}": value for key, value in weights.items()}, tmp_path / "weights.pt")
    loaded = imagenet.load_model(name, tmp_path / "weights.pt")
    assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())


def test_a_checkpoint_of_another_model_says_which_keys_do_not_match(
    tmp_path: Path, smallest: torch.nn.Module
) -> None:
    save_file(smallest.state_dict(), tmp_path / "weights.safetensors")
    message = message_of(lambda: imagenet.load_model("test_vit.r160_in1k", tmp_path / "weights.safetensors"))
    assert "80 missing: cls_token, " in message and "92 unexpected: " in message


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    message = message_of(lambda: imagenet.load_model("vit_tiny_patch16_224.augreg_in21k_ft_in2k"))
    assert f"near it there are {TINY}" in message


def test_a_name_like_no_other_is_refused_too() -> None:
    assert "timm has no model 'qqqq'" in message_of(lambda: imagenet.load_model("qqqq"))


def test_a_model_larger_than_memory_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "available_bytes", lambda device: 2**20)
    monkeypatch.setattr(timm_models, "_created", lambda *_, **__: pytest.fail("it was made"))
    for make in (imagenet.load_model, imagenet.random_model):
        assert f"{TINY} " in message_of(lambda make=make: make(TINY))


class Unreachable:
    """A session of a machine without a network."""

    asked = 0

    def head(self, url: str, timeout: float) -> None:
        Unreachable.asked += 1
        raise OSError("Name or service not known")


def test_missing_weights_without_a_network_name_the_file_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_session", Unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = message_of(lambda: imagenet.load_model(TINY))
    assert f"model.safetensors of the hub repository timm/{TINY} is not in the cache {tmp_path}" in message
    assert "as the checkpoint" in message
    assert Unreachable.asked == 2  # once a file name, without retries
