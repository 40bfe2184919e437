"""A module's cache is passed under the name that its forward has for it, and no deprecated name is used."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from treeopt.profiling.continuation import continue_prompts
from treespec.decoding.sampling import Sampling
from treespec.models.calling import cache_name, keeps_logits
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement

CURRENT = cache_name(
    LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1))
)


def deprecating(forward: Callable[..., Any]) -> Callable[..., Any]:
    """As transformers decorates: the old name is taken, with a warning, and handed on under the new one."""

    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if "past_key_values" in kwargs:
            warnings.warn("`past_key_values` is deprecated; use `cache`", FutureWarning, stacklevel=2)
            kwargs["cache"] = kwargs.pop("past_key_values")
        return forward(*args, **kwargs)

    return wrapped


class Older(LlamaForCausalLM):
    """Knows `past_key_values` alone."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
        logits_to_keep: Any = 0,
    ) -> Any:
        return run(self, input_ids, attention_mask, position_ids, past_key_values, use_cache, logits_to_keep)


class Newer(LlamaForCausalLM):
    """Knows `cache` alone."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        cache: Any = None,
        use_cache: Any = None,
        logits_to_keep: Any = 0,
    ) -> Any:
        return run(self, input_ids, attention_mask, position_ids, cache, use_cache, logits_to_keep)


class Between(Newer):
    """Knows `cache`, and takes the older name with a warning."""

    forward = deprecating(Newer.forward)


class Passing(Between):
    """Hands on whatever it is given."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def run(module: Any, ids: Any, mask: Any, positions: Any, cache: Any, use: Any, keep: Any) -> Any:
    return LlamaForCausalLM.forward(
        module, input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=use, logits_to_keep=keep, **{CURRENT: cache}
    )


KINDS = {Older: "past_key_values", Newer: "cache", Between: "cache", Passing: "cache"}


def build(kind: type[LlamaForCausalLM], tiny_module: Callable[..., PreTrainedModel]) -> Any:
    """The tiny Llama as one of another class."""
    module = tiny_module("llama")
    module.__class__ = kind
    return module


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_the_name_is_that_of_the_forward(kind: type[LlamaForCausalLM], name: str, tiny_module: Callable[..., PreTrainedModel]) -> None:
    module = build(kind, tiny_module)
    assert cache_name(module) == name
    assert keeps_logits(module) == (kind is not Passing)


def test_a_forward_that_was_hung_around_the_modules_own_is_looked_through(tiny_module: Callable[..., PreTrainedModel]) -> None:
    """As libraries do that move weights."""
    module: Any = build(Between, tiny_module)
    own = module.forward
    module.forward = functools.update_wrapper(functools.partial(lambda *args, **kwargs: own(*args, **kwargs)), own)
    assert cache_name(module) == "cache"
    module.forward = lambda **kwargs: own(**kwargs)
    assert cache_name(module) == "cache"
    assert cache_name(torch.nn.Linear(1, 1)) == "past_key_values"


def test_the_decorator_warns_of_the_old_name(tiny_module: Callable[..., PreTrainedModel]) -> None:
    with pytest.warns(FutureWarning, match="use `cache`"):
        build(Between, tiny_module)(input_ids=torch.zeros(1, 1, dtype=torch.int64), past_key_values=DynamicCache())


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "hooked"])
@pytest.mark.parametrize("kind", KINDS)
def test_passes_run_without_a_warning_and_use_the_cache(
    kind: type[LlamaForCausalLM], kernels: bool, tiny_module: Callable[..., PreTrainedModel], device: str
) -> None:
    if kernels:
        pytest.importorskip("triton")
    ids = (torch.arange(9) * 7 % 97).to(device)
    model = TreeModel(build(kind, tiny_module).to(device), kernels=kernels)
    wanted = model.score(ids[None])[0]
    model.allocate(9)
    assert bool(model.eager_reason) is not kernels
    assert torch.allclose(model.prefill(ids[:6]), wanted[5], atol=1e-4)
    assert torch.allclose(model.forward(ids[6:], Placement.causal(6, 3, device)), wanted[6:], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_profiled_texts_are_continued_without_a_warning(kind: type[LlamaForCausalLM], tiny_module: Callable[..., PreTrainedModel]) -> None:
    prompts = torch.arange(10).view(2, 5)
    asked: Any = (prompts, 6, Sampling(), [torch.Generator(), torch.Generator()], frozenset(), 97)
    wanted, _ = continue_prompts(tiny_module("llama"), *asked)
    assert torch.equal(continue_prompts(build(kind, tiny_module), *asked)[0], wanted)
