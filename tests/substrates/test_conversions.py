"""What became of a file's tensors: every kind of change is told, and none hides another."""

from __future__ import annotations

import torch
from torch import Tensor

from lpe.substrates.conversions import Conversion, conversion


def file() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(4, 6, generator=generator) for name in "abc"}


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_tensors_of_the_same_names_and_values_need_no_word() -> None:
    made = conversion(file(), copied(file()))
    assert made == Conversion({}, (), (), ()) and made.told() == ""


def test_another_name_is_told() -> None:
    held = {f"x.{name}": tensor for name, tensor in copied(file()).items()}
    made = conversion(file(), held)
    assert made == Conversion({"a": "x.a", "b": "x.b", "c": "x.c"}, (), (), ())
    assert made.told() == "3 renamed (a → x.a)"


def test_two_names_that_are_exchanged_are_told() -> None:
    weights = file()
    held = {"a": weights["b"], "b": weights["a"], "c": weights["c"]}
    assert conversion(weights, held).renamed == {"b": "a", "a": "b"}


def test_another_shape_of_the_same_values_is_told() -> None:
    held = {**file(), "a": file()["a"].view(2, 12)}
    assert conversion(file(), held) == Conversion({}, ("a",), (), ())


def test_a_transposed_and_a_joined_tensor_are_rearranged() -> None:
    weights = file()
    held = {"at": weights["a"].t().contiguous(), "bc": torch.cat([weights["b"], weights["c"]])}
    assert conversion(weights, held) == Conversion({}, ("at", "bc"), (), ())


def test_a_value_that_the_file_does_not_have_is_invented() -> None:
    weights = file()
    changed = weights["a"].t().contiguous()
    changed[0, 0] += 1e-3
    made = conversion(weights, {"a": changed, "b": weights["b"], "c": weights["c"]})
    assert made.invented == ("a",) and made.rearranged == ()


def test_a_value_that_is_used_twice_is_invented() -> None:
    weights = file()
    assert conversion({"a": weights["a"]}, {"x": torch.cat([weights["a"]] * 2)}).invented == ("x",)


def test_integers_are_no_values_of_weights() -> None:
    codes = torch.arange(24, dtype=torch.int8).view(4, 6)
    made = conversion({"a": codes}, {"a": codes.float()})
    assert made.invented == ("a",)


def test_what_is_left_out_is_told() -> None:
    weights = file()
    assert conversion(weights, {"a": weights["a"]}).dropped == ("b", "c")


def test_half_of_a_tensor_is_told_to_be_left_out() -> None:
    weights = file()
    made = conversion(weights, {**weights, "c": weights["c"][:2].clone()})
    assert made.rearranged == ("c",) and made.dropped == ("c",)


def test_tensors_of_equal_values_keep_their_own_names() -> None:
    ones = {name: torch.ones(3) for name in "abc"}
    assert conversion(ones, copied(ones)).told() == ""
    assert conversion(ones, copied({"a": ones["a"], "b": ones["b"]})).dropped == ("c",)
