"""Weights from files: what is read, what is refused and how, and whether memory holds them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lpe
from lpe import notices
from lpe.substrates import loading
from lpe.substrates.loading import load_weights, parameter_bytes, read_weights, require_memory


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def message_of(action: Callable[[], object]) -> str:
    """The error's one line."""
    with pytest.raises(lpe.InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Unsafe:
    """Pickles into a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "nesting", [[], ["state_dict"], ["model"], ["state_dict_ema"], ["checkpoint", "model"]]
)
def test_a_state_dict_is_found_where_training_scripts_put_it(tmp_path: Path, nesting: list[str]) -> None:
    held: Any = net().state_dict()
    for key in reversed(nesting):
        held = {key: held, "epoch": 3}
    torch.save(held, tmp_path / "weights.pt")
    if nesting == ["checkpoint", "model"]:
        assert "'checkpoint' is of type dict" in message_of(lambda: read_weights(tmp_path / "weights.pt"))
    else:
        assert read_weights(tmp_path / "weights.pt").keys() == net().state_dict().keys()


def test_safetensors_are_known_by_their_content_under_any_name(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "weights.bin")
    other = net(1)
    load_weights(other, tmp_path / "weights.bin")
    assert same(other, net())


def test_wrappers_prefixes_are_stripped(tmp_path: Path) -> None:
    torch.save({f"module._orig_mod.{k}": v for k, v in net().state_dict().items()}, tmp_path / "weights.pt")
    other = net(1)
    load_weights(other, tmp_path / "weights.pt")
    assert same(other, net())


def test_a_name_that_is_there_with_and_without_a_prefix_stays_two(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "a": torch.ones(1)}, tmp_path / "weights.pt")
    assert sorted(read_weights(tmp_path / "weights.pt").items()) == [("a", 1), ("module.a", 0)]


# What a file holds is loaded as it is, or refused; what is done to it is said.


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    notices.forget()


def refused(folder: Path, weights: dict[str, Any], model: nn.Module | None = None) -> str:
    """The one line that refuses a file; the model is left as it was."""
    torch.save(weights, folder / "weights.pt")
    model = net(1) if model is None else model
    before = {name: value.clone() for name, value in model.state_dict().items() if not value.is_meta}
    message = message_of(lambda: load_weights(model, folder / "weights.pt"))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    return message


def said_of(folder: Path, weights: dict[str, Any], model: nn.Module | None = None) -> list[str]:
    """What is said of a file that is loaded, without its path."""
    torch.save(weights, folder / "weights.pt")
    load_weights(net(1) if model is None else model, folder / "weights.pt")
    return [line.removeprefix(f"{folder / 'weights.pt'}") for line in notices.said()]


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = net().state_dict()
    return {**weights, name: change(weights[name])}


def test_a_file_in_the_models_own_dtypes_and_names_needs_no_word(tmp_path: Path) -> None:
    assert said_of(tmp_path, net().state_dict()) == []


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64]
)
def test_codes_under_the_name_of_a_weight_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    said = refused(tmp_path, changed("0.weight", lambda weight: (100 * weight).to(dtype)))
    assert f"has {str(dtype)[6:]} under 0.weight where the model has float32; codes are no weights" in said


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("a sparse_coo tensor", lambda weight: weight.to_sparse()),
        ("a quantised tensor", lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)),
        ("a meta (it has no values) tensor", lambda weight: weight.to("meta")),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(quant|Quant|sparse|deprecat)")  # of torch, about its own kinds
def test_tensors_that_hold_no_plain_values_are_refused(
    tmp_path: Path, kind: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    said = refused(tmp_path, changed("0.weight", change))
    assert f"holds '0.weight' as {kind}" in said


def test_half_precision_is_cast_exactly_and_said(tmp_path: Path) -> None:
    weights = {k: v.half() if v.is_floating_point() else v for k, v in net().state_dict().items()}
    model = net(1)
    assert said_of(tmp_path, weights, model) == [": 8 tensors cast from float16 to float32, exactly"]
    assert torch.equal(model.state_dict()["0.weight"], weights["0.weight"].float())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_floats_of_eight_bits_are_cast_exactly_and_said(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = changed("0.weight", lambda weight: weight.to(dtype))
    model = net(1)
    name = str(dtype).removeprefix("torch.")
    assert said_of(tmp_path, weights, model) == [f": 1 tensor cast from {name} to float32, exactly"]
    assert torch.equal(model.state_dict()["0.weight"], weights["0.weight"].float())


def test_a_narrower_dtype_is_said_to_be_rounded(tmp_path: Path) -> None:
    weights = changed("0.weight", lambda weight: weight.double() + 1e-12)
    assert said_of(tmp_path, weights) == [": 1 tensor cast from float64 to float32, rounded"]


def test_a_wider_dtype_of_the_models_own_values_is_exact(tmp_path: Path) -> None:
    weights = changed("0.weight", lambda weight: weight.double())
    assert said_of(tmp_path, weights) == [": 1 tensor cast from float64 to float32, exactly"]


def test_numbers_beyond_the_models_dtype_are_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, changed("0.weight", lambda weight: weight + 1e6), net(1).half())
    assert "has numbers under 0.weight beyond the largest of float16" in said


@pytest.mark.parametrize("value", [torch.tensor(7.0), torch.tensor(7, dtype=torch.int32)])
def test_a_count_of_batches_in_another_dtype_is_cast_where_it_is_that_number(
    tmp_path: Path, value: torch.Tensor
) -> None:
    model = net(1)
    here = str(value.dtype)[6:]
    said = said_of(tmp_path, changed("1.num_batches_tracked", lambda _: value), model)
    assert said == [f": 1 tensor cast from {here} to int64, exactly"]
    assert int(model.state_dict()["1.num_batches_tracked"]) == 7


def test_a_count_of_batches_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, changed("1.num_batches_tracked", lambda _: torch.tensor(7.5)))
    assert "has float32 under 1.num_batches_tracked that are no int64" in said


def test_a_missing_count_of_batches_is_said(tmp_path: Path) -> None:
    old = {k: v for k, v in net().state_dict().items() if not k.endswith("num_batches_tracked")}
    [said] = said_of(tmp_path, old)
    assert said == " has no num_batches_tracked of 1 layers; the counts stay as they were"


def test_a_prefix_that_is_taken_off_is_said(tmp_path: Path) -> None:
    [said] = said_of(tmp_path, {f"module.{k}": v for k, v in net().state_dict().items()})
    assert said == ": a wrapper's prefix was taken off 9 names (module.0.weight → 0.weight)"


def test_a_part_of_the_model_that_is_called_module_is_no_wrapper(tmp_path: Path) -> None:
    built = nn.Sequential(nn.ModuleDict({"module": nn.Linear(4, 3)}), nn.Linear(3, 2))
    assert said_of(tmp_path, built.state_dict(), built) == []


def test_of_two_sets_of_weights_the_one_that_is_taken_is_said(tmp_path: Path) -> None:
    plain, average = net().state_dict(), net(2).state_dict()
    model = net(1)
    [said] = said_of(tmp_path, {"model_ema": average, "state_dict": plain, "epoch": 3}, model)
    assert said == ": the weights are those of state_dict; it also has model_ema"
    assert same(model, net())


def test_a_moving_average_that_is_taken_is_said(tmp_path: Path) -> None:
    [said] = said_of(tmp_path, {"state_dict_ema": net().state_dict(), "epoch": 3})
    assert said == ": the weights are those of state_dict_ema"


def test_two_values_of_a_tied_tensor_are_refused(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    weights = {"0.weight": torch.eye(3), "1.weight": 2 * torch.eye(3)}
    assert "two values of one tensor: 0.weight and 1.weight differ" in refused(tmp_path, weights, tied)
    assert said_of(tmp_path, {"0.weight": torch.eye(3), "1.weight": torch.eye(3)}, tied) == []


def test_a_model_without_memory_is_refused(tmp_path: Path) -> None:
    assert "no memory for 0.weight, which is on the meta" in refused(
        tmp_path, net().state_dict(), net(1).to("meta")
    )


def test_weights_are_cast_to_the_models_dtype(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "weights.safetensors")
    other = net(1).to(torch.bfloat16)
    load_weights(other, tmp_path / "weights.safetensors")
    assert same(other, net().to(torch.bfloat16))


def test_a_file_older_than_the_count_of_batches_is_read(tmp_path: Path) -> None:
    old = {k: v for k, v in net().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "weights.pt")
    other = net(1)
    load_weights(other, tmp_path / "weights.pt")
    assert same(other, net())


def test_a_tied_tensor_may_stand_under_either_name(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    weight = torch.arange(15.0).view(5, 3)
    for name in ("embedding.weight", "head.weight"):
        torch.save({name: weight}, tmp_path / "weights.pt")
        tied = Tied()
        load_weights(tied, tmp_path / "weights.pt")
        assert torch.equal(tied.embedding.weight, weight)


def test_keys_that_do_not_match_are_told_by_kind_three_of_each_with_counts(tmp_path: Path) -> None:
    held = {f"extra{i}": torch.zeros(1) for i in range(5)} | {"0.weight": torch.zeros(9, 9)}
    torch.save(held, tmp_path / "weights.pt")
    message = message_of(lambda: load_weights(net(), tmp_path / "weights.pt"))
    assert "7 missing: 0.bias, 1.weight, 1.bias …;" in message
    assert "5 unexpected: extra0, extra1, extra2 …;" in message
    assert message.endswith("1 misshapen: 0.weight [9, 9] (the model: [3, 4])")


def test_a_model_is_left_as_it_was_where_the_file_does_not_fit(tmp_path: Path) -> None:
    torch.save({k: v for k, v in net(1).state_dict().items() if k != "2.bias"}, tmp_path / "weights.pt")
    model = net()
    message_of(lambda: load_weights(model, tmp_path / "weights.pt"))
    assert same(model, net())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    made = tmp_path / "made"
    held = {"state_dict": Unsafe(made)}
    torch.save(held, tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    assert "would run posix.mkdir" in message_of(lambda: read_weights(tmp_path / "weights.pt"))
    assert not made.exists()


def test_the_harmful_pickle_does_run_where_pickles_are_trusted(tmp_path: Path) -> None:
    # The injected fault: reading with weights_only=False.
    made = tmp_path / "made"
    torch.save({"state_dict": Unsafe(made)}, tmp_path / "weights.pt")
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert made.exists()


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit", FutureWarning)  # of torch, about its own format
        warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
        torch.jit.save(torch.jit.script(net()), tmp_path / "weights.pt")
    assert "TorchScript archive" in message_of(lambda: read_weights(tmp_path / "weights.pt"))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_anywhere_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(net().state_dict(), path)
    else:
        torch.save(net().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for length in [*range(12), *range(12, len(whole), len(whole) // 25), len(whole) - 1]:
        path.write_bytes(whole[:length])
        message = message_of(lambda: read_weights(path))
        # A legacy pickle may end within the name of one of torch's own functions, and then asks for another.
        assert "is the copy complete?" in message or (kind == "legacy" and "would run torc" in message)


@pytest.mark.parametrize(
    "held", [3, [torch.zeros(1)], torch.zeros(2), {}, {"epoch": 3}, {"a": torch.zeros(1), "b": 1}]
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, held: object) -> None:
    torch.save(held, tmp_path / "weights.pt")
    message = message_of(lambda: read_weights(tmp_path / "weights.pt"))
    assert "state dict" in message


def test_a_folder_names_the_files_of_weights_in_it(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert message_of(lambda: read_weights(tmp_path)).endswith("in it: model.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "there is no file" in message_of(lambda: read_weights(tmp_path / "weights.pt"))


def test_parameter_bytes_count_buffers_and_tied_tensors_once_also_on_the_meta_device() -> None:
    model = net()
    # 12 + 3, then weight, bias, mean and variance of 3 and a count in int64, then 6 + 2.
    assert parameter_bytes(model) == 4 * (12 + 3 + 4 * 3 + 6 + 2) + 8
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    meta[1].weight = meta[0].weight
    assert parameter_bytes(meta) == 4 * (16 + 4 + 4)


def test_memory_that_is_not_there_is_told_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "available_bytes", lambda device: 2**30)
    assert "ViT needs 3.00 GiB; 1.00 GiB" in message_of(lambda: require_memory(3 * 2**30, "ViT"))


def test_memory_that_is_there_suffices() -> None:
    require_memory(1, "one byte")


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def test_a_control_group_of_version_2_limits_memory_also_from_above(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/job\n",
            "group/slice/job/memory.max": "max\n",
            "group/slice/job/memory.current": "10\n",
            "group/slice/job/memory.stat": "anon 5\ninactive_file 3\n",
            "group/slice/memory.max": "1000\n",
            "group/slice/memory.current": "400\n",
            "group/slice/memory.stat": "inactive_file 100\n",
        },
    )
    assert loading._control_group_bytes(tmp_path / "proc", tmp_path / "group") == [1000 - 400 + 100]


def test_a_control_group_of_version_1_limits_memory_also_within_a_container(tmp_path: Path) -> None:
    # The path is the host's; the mount is the container's own group.
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu:/docker/abc\n3:memory:/docker/abc\n",
            "group/memory/memory.limit_in_bytes": "5000\n",
            "group/memory/memory.usage_in_bytes": "1500\n",
            "group/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
        },
    )
    assert loading._control_group_bytes(tmp_path / "proc", tmp_path / "group") == [5000 - 1500 + 500]


def test_the_systems_available_memory_is_read_in_bytes(tmp_path: Path) -> None:
    write(tmp_path, {"meminfo": "MemTotal: 100 kB\nMemAvailable:  64 kB\n"})
    assert loading._system_bytes(tmp_path) == 64 * 1024
