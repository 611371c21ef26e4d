"""timm's models: how they see images, arguments of architectures, and what becomes of a file's tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.data import resolve_data_config
from torch import Tensor

import lpe
from lpe import notices
from lpe.substrates import timm_models
from lpe.substrates.timm_models import Preprocessing, data_config, load_model

RESNET = "test_resnet.r160_in1k"
VIT = "test_vit.r160_in1k"


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    notices.forget()


def message_of(action: Callable[[], object]) -> str:
    """The error's one line."""
    with pytest.raises(lpe.InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# How images are seen.


@pytest.mark.parametrize(
    ("name", "test", "training"),
    [
        ("resnet50.a1_in1k", (288, 1.0, "center"), (224, 0.95, "center")),
        ("convnext_tiny.fb_in1k", (288, 1.0, "center"), (224, 0.875, "center")),
        ("eca_nfnet_l0.ra2_in1k", (288, 1.0, "center"), (224, 0.9, "center")),
        ("dm_nfnet_f0.dm_in1k", (256, 0.9, "squash"), (192, 0.9, "squash")),
    ],
)
def test_a_model_sees_its_test_size_and_on_request_that_of_training(
    name: str, test: tuple[int, float, str], training: tuple[int, float, str]
) -> None:
    model = timm_models._on_meta(name)
    for given, wanted in ((timm_models.OWN, test), (Preprocessing(train_size=True), training)):
        config = data_config(model, given)
        assert (config["input_size"][1], config["crop_pct"], config["crop_mode"]) == wanted
        by_timm = resolve_data_config({}, model=model, use_test_size=not given.train_size)
        assert config == {k: list(v) if isinstance(v, tuple) else v for k, v in by_timm.items()}


def test_what_is_given_takes_the_place_of_the_models_own() -> None:
    given = Preprocessing((96, 128), (0.1, 0.2, 0.3), (0.4,), "bilinear", 1.0)
    assert data_config(timm_models._on_meta("resnet50.a1_in1k"), given) == {
        "input_size": [3, 96, 128],
        "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.4, 0.4],
        "crop_pct": 1.0,
        "crop_mode": "center",
    }


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"input_size": (0, 1)}, "one pixel or more, not [0, 1]"),
        ({"mean": (1.0, 2.0)}, "the mean must be one number or three, not [1.0, 2.0]"),
        ({"mean": (float("nan"),)}, "the mean must be one number or three"),
        ({"std": (0.5, 0.0, 0.5)}, "the std must be positive"),
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'; there are bicubic, bilinear"),
        ({"crop_pct": 0.0}, "crop_pct must be a positive share"),
    ],
)
def test_preprocessing_out_of_its_range_is_refused(given: dict[str, Any], wanted: str) -> None:
    assert wanted in message_of(lambda: Preprocessing(**given))


def test_a_model_that_cannot_see_a_size_is_refused_in_a_line() -> None:
    model = timm_models.random_model(VIT)
    config = data_config(model, Preprocessing(input_size=(97, 97)))
    assert "test_vit.r160_in1k takes no images of 3 channels and 97 x 97 pixels (" in message_of(
        lambda: timm_models.check_sees(model, config)
    )


def test_an_architecture_of_a_fixed_size_is_made_in_the_size_asked_for() -> None:
    given = Preprocessing(input_size=(192, 160))
    arguments, _ = timm_models.sized(VIT, {}, given)
    model = timm_models.random_model(VIT, arguments)
    timm_models.check_sees(model, data_config(model, given))
    assert timm_models.sized(RESNET, {}, given) == ({}, given)


def test_images_are_of_the_size_that_an_architecture_was_made_in() -> None:
    _, given = timm_models.sized(VIT, {"img_size": 192}, timm_models.OWN)
    assert given.input_size == (192, 192)
    said = message_of(lambda: timm_models.sized(VIT, {"img_size": 192}, Preprocessing(input_size=(160, 160))))
    assert said == "the images are of [160, 160] and img_size is 192"


# Arguments of architectures.


def test_an_argument_reaches_the_architecture(tmp_path: Path) -> None:
    model = timm_models.random_model(RESNET)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    averaged = load_model(RESNET, tmp_path / "w.safetensors", {"global_pool": "max"})
    images = torch.rand(1, 3, 64, 64)
    assert not torch.equal(averaged(images), model(images))


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"pad": 1}, "test_resnet.r160_in1k cannot be made with pad=1: "),
        ({"pretrained": True}, "'pretrained' is no argument of an architecture"),
        ({"device": "meta"}, "'device' is no argument of an architecture"),
        ({"checkpoint_path": "x"}, "'checkpoint_path' is no argument of an architecture"),
    ],
)
def test_what_is_no_argument_is_refused(arguments: dict[str, Any], wanted: str) -> None:
    assert wanted in message_of(lambda: timm_models.random_model(RESNET, arguments))


# What becomes of a file's tensors.


def state(name: str, **options: Any) -> dict[str, Tensor]:
    model = timm_models._created(name, **options)
    with torch.no_grad():  # no tensor has the values of another, as zeros and ones have
        for index, tensor in enumerate(model.state_dict().values()):
            if tensor.is_floating_point():
                tensor.add_(torch.linspace(0, 1e-3, tensor.numel()).view_as(tensor) + 1e-4 * index)
    return {key: value.clone() for key, value in model.state_dict().items()}


def load(folder: Path, name: str, weights: dict[str, Tensor], **arguments: Any) -> torch.nn.Module:
    torch.save(weights, folder / "w.pt")
    return load_model(name, folder / "w.pt", arguments)


def test_a_file_under_timms_own_names_needs_no_word(tmp_path: Path) -> None:
    weights = state(VIT)
    model = load(tmp_path, VIT, weights)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert notices.said() == []


def test_a_converter_that_renames_is_told(tmp_path: Path) -> None:
    weights = state(VIT)
    renamed = {f"visual.trunk.{key}": value for key, value in weights.items()}
    model = load(tmp_path, VIT, renamed)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    [said] = notices.said()
    told = f"by timm's converter: {len(weights)} renamed (visual.trunk.cls_token → cls_token)"
    assert said == f"{tmp_path / 'w.pt'}, {told}"


def test_positions_of_another_size_are_refused_not_resampled(tmp_path: Path) -> None:
    weights = state(VIT, img_size=192)
    said = message_of(lambda: load(tmp_path, VIT, weights))
    assert "1 misshapen: pos_embed [1, 145, 64] (the model: [1, 101, 64])" in said
    assert "timm's converter would compute pos_embed" in said


def test_positions_are_resampled_with_a_word_where_a_size_was_asked_for(tmp_path: Path) -> None:
    weights = state(VIT)
    model = load(tmp_path, VIT, weights, img_size=192)
    assert model.get_parameter("pos_embed").shape == (1, 145, 64)
    assert notices.said() == [f"{tmp_path / 'w.pt'}, by timm's converter: 1 computed anew (pos_embed)"]


def test_a_stem_of_other_channels_is_refused_not_summed(tmp_path: Path) -> None:
    said = message_of(lambda: load(tmp_path, RESNET, state(RESNET), in_chans=1))
    assert "1 misshapen: conv1.0.weight" in said and "timm's converter would compute conv1.0.weight" in said


def test_what_a_converter_leaves_out_is_told(tmp_path: Path) -> None:
    # timm's converter for Vision Transformers passes over mask tokens and teachers' heads.
    weights = {f"visual.trunk.{key}": value for key, value in state(VIT).items()}
    load(tmp_path, VIT, {**weights, "text.token_embedding.weight": torch.rand(5, 3)})
    [said] = notices.said()
    assert said.endswith("1 left out (text.token_embedding.weight)")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64])
def test_codes_under_the_names_of_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = state(VIT)
    weights["head.weight"] = (weights["head.weight"] * 1000).to(dtype)
    said = message_of(lambda: load(tmp_path, VIT, weights))
    assert f"has {str(dtype)[6:]} under head.weight where the model has float32" in said


def test_codes_do_not_pass_through_a_converter_either(tmp_path: Path) -> None:
    weights = {f"visual.trunk.{key}": value for key, value in state(VIT).items()}
    weights["visual.trunk.head.weight"] = (weights["visual.trunk.head.weight"] * 1000).to(torch.int8)
    assert "80 missing" in message_of(lambda: load(tmp_path, VIT, weights))


def test_a_file_without_a_head_is_refused_whatever_the_converter_does(tmp_path: Path) -> None:
    weights = {key: value for key, value in state(VIT).items() if not key.startswith("head.")}
    assert "2 missing: head.weight, head.bias" in message_of(lambda: load(tmp_path, VIT, weights))


def test_half_precision_under_timms_own_names_is_said(tmp_path: Path) -> None:
    weights = {key: value.half() for key, value in state(VIT).items()}
    load(tmp_path, VIT, weights)
    assert notices.said() == [
        f"{tmp_path / 'w.pt'}: {len(weights)} tensors cast from float16 to float32, exactly"
    ]
