"""Offloading: decoder layers stay in host memory, and every pass copies each of them to the device before its use."""

import weakref
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from treespec.errors import ModelError, counted
from treespec.kernels.device import on
from treespec.models.calling import decoder_layers
from treespec.models.offload import host_memory
from treespec.models.offload.host_memory import gib
from treespec.models.offload.layer_ring import Ring

_ALIGNMENT = 256
"""Weights start at multiples of this many bytes, because kernels read them in vectors."""


@dataclass(frozen=True)
class _Place:
    """The place of one parameter in its layer's block."""

    owner: dict[str, nn.Parameter | None]
    name: str
    start: int
    """The first byte, counted from the block's start."""
    shape: torch.Size
    dtype: torch.dtype

    @property
    def end(self) -> int:
        """Return the byte after the last, counted from the block's start."""
        return self.start + self.shape.numel() * self.dtype.itemsize

    def view(self, block: Tensor) -> Tensor:
        """Return the parameter in a block, uint8 [bytes], as a view."""
        return block[self.start : self.end].view(self.dtype).view(self.shape)


class _Streamed:
    """The host blocks of all layers, the device slots of a few, and the ring between them."""

    def __init__(self, plans: list[list[_Place]], device: torch.device, slots: int) -> None:
        self.bytes = [_size(places) for places in plans]
        self.host: list[Tensor] = []
        self.slots = [torch.empty(max(self.bytes), dtype=torch.uint8, device=device) for _ in range(slots)]
        self._owners = [[(place.owner, place.name) for place in places] for places in plans]
        self._parameters = [
            [[nn.Parameter(place.view(slot), requires_grad=False) for place in places] for slot in self.slots] for places in plans
        ]
        pinned = device.type == "cuda"
        self._backend: Any = torch.cuda if pinned else torch.cpu
        self._side: Any = torch.cuda.Stream(device) if pinned else torch.cpu.Stream()  # type: ignore[no-untyped-call]
        weakref.finalize(self, _close, self.host if pinned else [], self._side).atexit = False  # then all memory goes anyway
        for layer, places in enumerate(plans):  # one at a time: a layer's weights are twice in memory, never all
            block = host_memory.block(self.bytes[layer])
            if pinned:
                host_memory.pin(block)
            self.host.append(block)
            for place in places:
                place.view(block).copy_(place.owner[place.name])  # type: ignore[arg-type]
            self._show(layer, 0)
        self.ring = Ring(len(plans), slots, self._copy, self._side, partial(self._backend.current_stream, device), self._backend.Event)

    def enter(self, layer: int, module: nn.Module, arguments: Any) -> None:
        """Wait for a layer's weights and show them to its module; the hook before a layer."""
        self._show(layer, self.ring.enter(layer))

    def leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """Free the layer's slot; the hook after a layer."""
        self.ring.leave()

    def _show(self, layer: int, slot: int) -> None:
        """Make the layer's parameters those of a slot."""
        for (owner, name), parameter in zip(self._owners[layer], self._parameters[layer][slot], strict=True):
            owner[name] = parameter

    def _copy(self, layer: int, slot: int) -> None:
        with self._backend.stream(self._side):
            self.slots[slot][: self.bytes[layer]].copy_(self.host[layer], non_blocking=True)


@torch.inference_mode(False)
def offload(module: PreTrainedModel, device: torch.device | str, *, name: str = "", slots: int = 2) -> PreTrainedModel:
    """Keep the weights of the decoder layers in host memory and let every pass copy them to the device, layer by layer. Return `module`.

    A layer is one copy from a pinned block into one of `slots` device buffers, on a stream of its own; it overlaps with the layers before
    it. Everything else (embeddings, last norm, head, buffers, weights that several layers share or that are tied to any of these) moves to
    the device. The weights may be anywhere before; each layer's are freed there when they are in its block. Outside of its turn, a layer's
    parameters hold the weights of any layer that uses the same slot: so the module runs, but refuses to be saved. On the CPU the same
    happens in ordinary memory.

    Raises ModelError if the layers cannot be found, or if the memory of host or device is too small for them.
    """
    where = torch.device(device)
    if where == torch.device("cuda"):
        where = torch.device("cuda", torch.cuda.current_device())
    who = name or str(getattr(module.config, "_name_or_path", "")) or str(module.config.model_type)
    if hasattr(module, "_hf_hook") or getattr(module, "hf_device_map", None) or streamed_bytes(module):
        raise ModelError(f"{who} cannot be offloaded: its weights are moved by hooks already; load it without a device map")
    layers = _layers(module, who)
    own = _own(module, layers)
    plans = [_plan(layer, own) for layer in layers]
    sizes = [_size(places) for places in plans]
    if where.type == "cuda":
        resident = sum(t.nbytes for t in _resident(module, own) if t.device != where)
        _require_device(who, where, slots, max(sizes), resident, _free(where))
    elsewhere = sum(size for size, layer in zip(sizes, layers, strict=True) if next(layer.parameters()).device.type != "cpu")
    host_memory.require(elsewhere + max(sizes), who)
    with on(where):  # pages are pinned for the current device
        streamed = _Streamed(plans, where, slots)
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(partial(streamed.enter, index))
        layer.register_forward_hook(streamed.leave)
    module.register_state_dict_pre_hook(partial(_refuse_state, who))  # type: ignore[no-untyped-call]
    nn.Module.to(module, where)
    return module


def require_host(auto: Any, config: PreTrainedConfig, dtype: torch.dtype, name: str) -> None:
    """Raise ModelError if the host's memory is too small for the weights of a model of this configuration.

    Only the shapes of the model are made. `auto` is transformers' class for models of this configuration.
    """
    with torch.device("meta"):
        needed = sum(int(p.numel()) * dtype.itemsize for p in auto.from_config(config).parameters())
    host_memory.require(needed, name)


def streamed_bytes(module: nn.Module) -> int:
    """Return the bytes that a pass copies from the host; 0 if the module is not offloaded."""
    streamed = _streamed(module)
    return 0 if streamed is None else sum(streamed.bytes)


def _streamed(module: nn.Module) -> _Streamed | None:
    """Return the object that streams a module's layers, found by its hooks on them; it works for every module around these layers."""
    hooks = (hook for part in module.modules() for hook in part._forward_pre_hooks.values() if isinstance(hook, partial))
    owners = (getattr(hook.func, "__self__", None) for hook in hooks)
    return next((owner for owner in owners if isinstance(owner, _Streamed)), None)


def _layers(module: PreTrainedModel, who: str) -> list[nn.Module]:
    """Return the decoder's layers in the order of their use. Raises ModelError if they are not found."""
    found = decoder_layers(module)
    if not found:
        count = module.config.get_text_config(decoder=True).num_hidden_layers
        raise ModelError(
            f"{who} (family {module.config.model_type}) cannot be offloaded: its "
            f"{counted(count, 'decoder layer is', 'decoder layers are')} not one list of modules; "
            "use a family such as llama, qwen2, gpt2 or opt, or a device that holds the weights"
        )
    return found


def _own(module: nn.Module, layers: list[nn.Module]) -> set[int]:
    """Return the ids of the parameters that belong to one layer and to nothing else."""
    within = {part for layer in layers for part in layer.modules()}
    outside = {id(p) for part in module.modules() if part not in within for p in part.parameters(recurse=False)}
    return {key for key, times in Counter(id(p) for layer in layers for p in layer.parameters()).items() if times == 1} - outside


def _plan(layer: nn.Module, own: set[int]) -> list[_Place]:
    """Return a place for each name of a layer's own parameters; several names of one parameter share its bytes."""
    starts: dict[int, int] = {}
    places: list[_Place] = []
    for part in layer.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) in own:
                start = starts.setdefault(id(parameter), -(-_size(places) // _ALIGNMENT) * _ALIGNMENT)
                places.append(_Place(part._parameters, name, start, parameter.shape, parameter.dtype))
    return places


def _size(places: list[_Place]) -> int:
    return max((place.end for place in places), default=0)


def _resident(module: nn.Module, own: set[int]) -> list[Tensor]:
    """Return the tensors that stay on the device."""
    return [p for p in module.parameters() if id(p) not in own] + list(module.buffers())


def _free(device: torch.device) -> int:
    """Return the bytes that new tensors can still take on the device."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _require_device(who: str, device: torch.device, slots: int, largest: int, resident: int, free: int) -> None:
    if slots * largest + resident > free:
        raise ModelError(
            f"{who} needs {gib(slots * largest)} on {device} for {counted(slots, 'layer')} at a time and {gib(resident)} for what is not streamed, but "
            f"{gib(free)} are free; use a smaller `dtype` or model, or another `device`"
        )


def _refuse_state(who: str, *arguments: Any) -> None:
    raise ModelError(
        f"{who} is offloaded: between passes its layers' parameters hold other layers' weights; load it without `offload` to save it"
    )


def _close(pinned: list[Tensor], side: Any) -> None:
    """Wait for copies under way, then unlock the memory that they read."""
    if not pinned:
        return
    side.synchronize()
    with on(side.device):
        for memory in pinned:
            host_memory.unpin(memory)
