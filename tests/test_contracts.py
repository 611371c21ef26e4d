"""What is used of other packages that they do not promise: private names, and methods that are overridden.

A new version that changes one of them fails here, by its name, and not in a number. ``PRIVATE`` lists the
private names; one that is used without a test is found by reading the code.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import functools
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from lpe.number_systems.kernels import teams
from lpe.provenance import REPOSITORY

PACKAGES = ("lpe", "reproduce", "benchmarks")
DOCUMENTED = {"_exit", "_fields", "_replace"}
"""Names of Python's own that its manual describes."""

PRIVATE = {
    "_AppendAction": "test_a_parser_lists_its_options_and_its_commands",
    "_BatchNorm": "test_norms_and_dropouts_have_the_bases_that_are_asked_for",
    "_C": "test_without_torchs_functions_a_subclass_computes_as_a_tensor",
    "_DropoutNd": "test_norms_and_dropouts_have_the_bases_that_are_asked_for",
    "_NormBase": "test_norms_and_dropouts_have_the_bases_that_are_asked_for",
    "_SubParsersAction": "test_a_parser_lists_its_options_and_its_commands",
    "_actions": "test_a_parser_lists_its_options_and_its_commands",
    "_buffers": "test_a_modules_tables_hold_its_tensors_and_parts",
    "_cdata": "test_views_are_of_one_storage",
    "_compiled_call_impl": "test_a_compiled_module_and_its_wrapper_hold_what_is_looked_for",
    "_conv_forward": "test_a_convolution_computes_by_the_method_that_is_compared",
    "_dynamo": "test_a_compiled_module_and_its_wrapper_hold_what_is_looked_for",
    "_forward_hooks": "test_hooks_are_in_a_modules_tables",
    "_forward_pre_hooks": "test_hooks_are_in_a_modules_tables",
    "_hf_hook": "test_accelerates_hook_is_where_it_is_looked_for",
    "_keys_to_ignore_on_load_unexpected": "test_transformers_models_list_what_they_ignore",
    "_loglikelihood_tokens": "test_an_ensemble_takes_what_lm_eval_gives_its_hf_model",
    "_lru_cache_wrapper": "test_a_cached_function_is_of_the_class_that_is_looked_for",
    "_make_subclass": "test_a_parameter_of_a_subclass_is_made_of_the_same_memory",
    "_model_mapping": "test_transformers_heads_know_their_configurations",
    "_int_mm": "test_products_of_bytes_are_summed_in_32_bits",
    "_modules": "test_a_modules_tables_hold_its_tensors_and_parts",
    "_nested_tensor_from_mask": "test_a_mask_makes_a_nested_tensor_of_the_kept",
    "_non_persistent_buffers_set": "test_a_modules_tables_hold_its_tensors_and_parts",
    "_orig_mod": "test_a_compiled_module_and_its_wrapper_hold_what_is_looked_for",
    "_make_per_channel_quantized_tensor": "test_integers_with_a_scale_a_row_are_a_quantised_tensor",
    "_parameters": "test_a_modules_tables_hold_its_tensors_and_parts",
    "_python_dispatch": "test_an_operations_schema_says_what_it_writes",
    "_pytree": "test_a_tree_is_flattened_in_order",
    "_reversed_padding_repeated_twice": "test_a_convolutions_padding_is_that_of_pad",
    "_schema": "test_an_operations_schema_says_what_it_writes",
    "_tensor_name": "test_hooks_that_compute_a_weight_name_it",
    "_version": "test_a_tensor_counts_its_edits_in_place",
    "_yaml_loader": "test_lm_eval_reads_a_tasks_file",
}
"""Private name of another package → the test here that shows what is expected of it."""


# The list


def private_names(texts: list[str]) -> set[str]:
    """Return the private names that modules use of others: attributes, and parts of imports.

    What a class in the modules defines is their own, and so is what is imported from here.
    """
    trees = [ast.parse(text) for text in texts]
    own = {name for tree in trees for node in ast.walk(tree) for name in defined(node)}
    return {name for tree in trees for name in used(tree) if re.fullmatch("_[A-Za-z]\\w*", name)} - own


def defined(node: ast.AST) -> Iterator[str]:
    """Yield the attributes that a class defines: methods, fields, and what methods set of ``self``."""
    if not isinstance(node, ast.ClassDef):
        return
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef):
            yield inner.name
        elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            if isinstance(inner.value, ast.Name) and inner.value.id in ("self", "cls"):
                yield inner.attr
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id
        elif isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))


def used(tree: ast.Module) -> Iterator[str]:
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    ours = [node for node in imports if str(node.module).partition(".")[0] in PACKAGES]
    here = {alias.asname or alias.name for node in ours for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if not isinstance(node.value, ast.Name) or node.value.id not in here:
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and node in imports and node not in ours:
            yield from (*str(node.module).split("."), *(alias.name for alias in node.names))


def code() -> list[str]:
    files = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
    return [path.read_text(encoding="utf-8") for path in files]


def test_every_private_name_of_others_has_a_test() -> None:
    assert private_names(code()) - DOCUMENTED <= PRIVATE.keys()


def test_every_name_of_the_list_is_used_and_every_test_is_here() -> None:
    text = "\n".join(code())
    assert [name for name in PRIVATE if not re.search(rf"\b{name}\b", text)] == []
    assert [name for name in PRIVATE.values() if name not in globals()] == []


def test_a_private_name_that_is_not_listed_is_seen() -> None:
    text = (
        "from torch._somewhere import _Kind\n"
        "from lpe import _ours\n"
        "class Own:\n"
        "    _field: int\n"
        "    def _method(self):\n"
        "        self._set = _ours._inside\n"
        "        return self._field, self._method, x._theirs\n"
    )
    assert private_names([text]) == {"_somewhere", "_Kind", "_theirs"}


# Python


def test_a_parser_lists_its_options_and_its_commands() -> None:
    parser = argparse.ArgumentParser()
    own = parser.add_subparsers(dest="command").add_parser("own")
    own.add_argument("--several", action="append")
    (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    assert list(commands.choices) == ["own"]
    assert [type(each) for each in own._actions][1:] == [argparse._AppendAction]


# torch


def test_norms_and_dropouts_have_the_bases_that_are_asked_for() -> None:
    from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
    from torch.nn.modules.dropout import _DropoutNd

    for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert issubclass(norm, _BatchNorm)
    assert issubclass(_BatchNorm, _NormBase) and issubclass(nn.InstanceNorm2d, _NormBase)
    for dropout in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout):
        assert issubclass(dropout, _DropoutNd)


def test_without_torchs_functions_a_subclass_computes_as_a_tensor() -> None:
    class Counting(Tensor):
        calls = 0

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.calls += 1
            return super().__torch_function__(func, types, args, kwargs or {})

    values = torch.ones(2).as_subclass(Counting)
    with torch._C.DisableTorchFunctionSubclass():
        torch.add(values, 1)
    assert Counting.calls == 0
    torch.add(values, 1)
    assert Counting.calls == 1


def test_a_tensor_counts_its_edits_in_place() -> None:
    values = torch.zeros(3)
    before = values._version
    values[1:].add_(1)
    assert values._version == before + 1
    values.data.add_(1)  # leaves no trace, as README says
    assert values._version == before + 1


def test_products_of_bytes_are_summed_in_32_bits() -> None:
    one, other = torch.full((32, 64), 127, dtype=torch.int8), torch.full((64, 16), -128, dtype=torch.int8)
    assert torch.equal(torch._int_mm(one, other), torch.full((32, 16), -127 * 128 * 64, dtype=torch.int32))


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_integers_with_a_scale_a_row_are_a_quantised_tensor() -> None:
    codes, scales = torch.tensor([[1, -2], [3, 127]], dtype=torch.int8), torch.tensor([0.5, 0.25]).double()
    zeros = torch.zeros(2, dtype=torch.int64)
    made = torch._make_per_channel_quantized_tensor(codes, scales, zeros, 0)
    assert torch.equal(made.dequantize(), torch.tensor([[0.5, -1.0], [0.75, 31.75]]))


def test_views_are_of_one_storage() -> None:
    values, others = torch.zeros(4), torch.zeros(4)
    number = values.untyped_storage()._cdata
    assert values[1:].view(3, 1).untyped_storage()._cdata == number
    assert others.untyped_storage()._cdata != number


class Seen(TorchDispatchMode):
    """Keeps the operations that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(func)
        return func(*args, **(kwargs or {}))


def test_an_operations_schema_says_what_it_writes() -> None:
    values, out = torch.zeros(3), torch.zeros(3)
    with Seen() as seen:
        torch.add(values, 1)
        values.add_(1)
        torch.mul(values, 2, out=out)
    written = [
        [each.name for each in operation._schema.arguments if each.alias_info and each.alias_info.is_write]
        for operation in seen.operations
    ]
    assert written == [[], ["self"], ["out"]]


def test_a_tree_is_flattened_in_order() -> None:
    tree = {"a": [1, (2, 3)], "b": 4}
    assert tree_flatten(tree)[0] == [1, 2, 3, 4] == tree_leaves(tree)


def test_a_mask_makes_a_nested_tensor_of_the_kept() -> None:
    values = torch.arange(12.0).reshape(2, 3, 2)
    kept = torch.tensor([[True, True, False], [True, True, True]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested tensors are a prototype
        nested = torch._nested_tensor_from_mask(values, kept, mask_check=False)
        parts = nested.unbind()
    assert torch.equal(parts[0], values[0, :2]) and torch.equal(parts[1], values[1])


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_computes_by_the_method_that_is_compared(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = torch.zeros(1)
    monkeypatch.setattr(kind, "_conv_forward", lambda layer, given, weight, bias: given)
    assert kind(2, 2, 1)(inputs) is inputs


@pytest.mark.parametrize(
    ("padding", "expected"), [((1, 2), [2, 2, 1, 1]), ("same", [2, 2, 0, 1]), (0, [0, 0, 0, 0])]
)
def test_a_convolutions_padding_is_that_of_pad(padding: Any, expected: list[int]) -> None:
    layer = nn.Conv2d(1, 1, (2, 5), padding=padding)
    assert list(layer._reversed_padding_repeated_twice) == expected


def test_a_modules_tables_hold_its_tensors_and_parts() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2))
    net.register_buffer("lost", torch.zeros(1), persistent=False)
    assert net._modules == {"0": net[0]} and net._buffers == {"lost": net.lost}
    assert net._non_persistent_buffers_set == {"lost"} and net[0]._non_persistent_buffers_set == set()
    assert list(net[0]._parameters) == ["weight", "bias"] and net[0]._parameters["bias"] is net[0].bias
    assert list(net[0]._buffers) == ["running_mean", "running_var", "num_batches_tracked"]


@pytest.mark.parametrize("with_kwargs", [False, True])
def test_hooks_are_in_a_modules_tables(with_kwargs: bool) -> None:
    net = nn.Linear(2, 2)

    def before(*_: Any) -> None: ...
    def after(*_: Any) -> None: ...

    net.register_forward_pre_hook(before, with_kwargs=with_kwargs)
    net.register_forward_hook(after, with_kwargs=with_kwargs)
    assert list(net._forward_pre_hooks.values()) == [before]
    assert list(net._forward_hooks.values()) == [after]


def test_hooks_that_compute_a_weight_name_it() -> None:
    pruned = prune.identity(nn.Linear(2, 2), "weight")
    (hook,) = pruned._forward_pre_hooks.values()
    assert type(hook).__module__ == "torch.nn.utils.prune" and hook._tensor_name == "weight"
    (hook,) = spectral_norm(nn.Linear(2, 2))._forward_pre_hooks.values()
    assert type(hook).__module__ == "torch.nn.utils.spectral_norm" and hook.name == "weight"
    parametrised = parametrize.register_parametrization(nn.Linear(2, 2), "weight", nn.Identity())
    assert [*parametrised._modules["parametrizations"]] == ["weight"]


def test_a_parameter_of_a_subclass_is_made_of_the_same_memory() -> None:
    class Noted(nn.Parameter): ...

    parameter = Noted(torch.ones(2))
    made = torch.Tensor._make_subclass(Noted, parameter, False)
    assert type(made) is Noted and not made.requires_grad and made.data_ptr() == parameter.data_ptr()


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # of torch 2.10's own import
def test_a_compiled_module_and_its_wrapper_hold_what_is_looked_for() -> None:
    net = nn.Linear(2, 2)
    assert net._compiled_call_impl is None and "_compiled_call_impl" not in vars(net)
    wrapper = torch.compile(net)
    assert type(wrapper).__name__ == "OptimizedModule" and type(wrapper).__module__.startswith("torch.")
    assert wrapper._modules["_orig_mod"] is net
    net.compile()
    assert callable(vars(net)["_compiled_call_impl"])
    assert issubclass(torch._dynamo.exc.BackendCompilerFailed, RuntimeError) and callable(torch._dynamo.reset)


@pytest.mark.skipif(sys.platform != "linux", reason="teams are a pool elsewhere")
def test_torchs_own_openmp_is_what_teams_call() -> None:
    """A second team of threads beside torch's would hold up both; without any, a pool does the work."""
    entry = teams._openmp()
    assert entry is not None, "GOMP_parallel is not in the process"
    address = ctypes.cast(entry, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert address is not None
    assert Path(torch.__file__).parent in loaded_at(address).parents


def loaded_at(address: int) -> Path:
    """Return the file of which an address of this process is."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, *_, place = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last:
            return Path(place).resolve()
    raise AssertionError(f"nothing is loaded at {address:x}")


# Python


def test_a_cached_function_is_of_the_class_that_is_looked_for() -> None:
    for made in (functools.cache(abs), functools.lru_cache(maxsize=2)(abs)):
        assert isinstance(made, functools._lru_cache_wrapper)


# transformers, accelerate, the hub


def test_transformers_models_list_what_they_ignore() -> None:
    from transformers import PreTrainedModel

    ignored = PreTrainedModel._keys_to_ignore_on_load_unexpected
    assert ignored is None or all(isinstance(each, str) for each in ignored)


def test_transformers_heads_know_their_configurations() -> None:
    from transformers import AutoModelForCausalLM, BertConfig, LlamaConfig, ViTConfig

    mapping = AutoModelForCausalLM._model_mapping
    assert LlamaConfig in mapping and BertConfig in mapping and ViTConfig not in mapping


def test_accelerates_hook_is_where_it_is_looked_for() -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    net = nn.Linear(2, 2)
    add_hook_to_module(net, AlignDevicesHook(execution_device="cpu", offload=True))
    assert net._hf_hook.offload and net.weight.is_meta


@pytest.mark.parametrize("offline", [False, True])
def test_the_hubs_switch_is_asked_at_each_use(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    def reached(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.socket.connect", reached)
    monkeypatch.setattr("socket.getaddrinfo", reached)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(Exception) as caught:
        get_session().head("https://localhost:1", timeout=1)
    assert isinstance(caught.value, OfflineModeIsEnabled) == offline


# lm-eval


def test_an_ensemble_takes_what_lm_eval_gives_its_hf_model() -> None:
    from lm_eval.models.huggingface import HFLM

    from lpe.substrates.language.ensemble_lm import EnsembleLM

    for name in ("loglikelihood", "_loglikelihood_tokens", "loglikelihood_rolling", "generate_until"):
        theirs = inspect.signature(vars(HFLM)[name]).parameters
        ours = inspect.signature(vars(EnsembleLM)[name]).parameters
        assert list(theirs) == list(ours), name
        assert [each.default for each in theirs.values()] == [each.default for each in ours.values()], name


def test_lm_evals_hf_model_has_what_an_ensemble_reads_of_it() -> None:
    from lm_eval.models.huggingface import HFLM

    for name in ("batch_size", "config", "max_length", "model", "prefix_token_id"):
        assert isinstance(inspect.getattr_static(HFLM, name), property), name
    assert list(inspect.signature(HFLM.tok_encode).parameters)[:2] == ["self", "string"]
    made = inspect.signature(HFLM).parameters
    assert {"pretrained", "tokenizer", "batch_size", "softmax_dtype"} <= made.keys()
    assert made["softmax_dtype"].default is None
    assert "softmax_dtype" in HFLM.__init__.__code__.co_names


def test_lm_evals_bars_are_made_by_the_name_that_is_silenced() -> None:
    import lm_eval.api.task

    from lpe.substrates.language.ensemble_lm import quiet_lm_eval

    assert "tqdm" in lm_eval.api.task.Task.build_all_requests.__code__.co_names
    bar = lm_eval.api.task.tqdm
    with quiet_lm_eval():
        assert lm_eval.api.task.tqdm([1, 2]).disable
    assert lm_eval.api.task.tqdm is bar


def test_lm_eval_batches_pads_and_cuts_as_is_built_upon() -> None:
    from lm_eval.models.utils import Collator
    from lm_eval.models.utils_hf import pad_and_concat
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    requests = [(0, [1], [2, 3]), (1, [1], [2, 4]), (2, [5], [6, 7, 8])]
    collator = Collator(
        requests,
        sort_fn=lambda each: -len(each[1] + each[2]),
        group_fn=lambda each: each[1] + each[2][:-1],
        group_by="contexts",
    )
    batches = [[each[0] for each in batch] for batch in collator.get_batched(n=4)]
    assert batches == [[2, 0]], "requests that share all tokens but the last are one row"
    padded = pad_and_concat(3, [torch.tensor([1, 2]), torch.tensor([3, 4, 5])], padding_side="right")
    assert padded.tolist() == [[1, 2, 0], [3, 4, 5]]
    windows = [*map(make_disjoint_window, get_rolling_token_windows([1, 2, 3, 4, 5], 0, 3, 1))]
    assert windows == [([0], [1, 2, 3]), ([2, 3], [4, 5])]


def test_lm_eval_reads_a_tasks_file(tmp_path: Path) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    file = tmp_path / "task.yaml"
    file.write_text("task: mine\noutput_type: multiple_choice\n")
    assert {"task": "mine", "output_type": "multiple_choice"}.items() <= load_yaml(file).items()


def test_lm_evals_tasks_have_what_is_asked_of_them() -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    asked = ["get_config", "set_config", "set_fewshot_seed", "process_results", "aggregation"]
    assert [
        name for name in (*asked, "doc_to_choice") if not callable(getattr(ConfigurableTask, name, None))
    ] == []
    assert {"include_path", "include_defaults"} <= inspect.signature(TaskManager).parameters.keys()
    assert [name for name in ("load", "task_index", "all_tasks") if not hasattr(TaskManager, name)] == []
    run = inspect.signature(evaluate).parameters
    assert {"lm", "task_dict", "limit", "bootstrap_iters", "log_samples"} <= run.keys()
    request = Instance("loglikelihood", {"doc": 1}, ("a", " b"), 3, metadata=("mine", 7, 1))
    found = (request.args, request.task_name, request.doc_id, request.doc, request.idx)
    assert found == (("a", " b"), "mine", 7, {"doc": 1}, 3)
