"""Memory of the GPUs of one host that all processes of a team see, by torch's symmetric memory: what `kernels.peers` exchanges rows through."""

import torch
from torch import Tensor, distributed

from treespec.errors import reason_of
from treespec.kernels.peers import Peers

ROWS = 1024
"""Most rows of a pass whose sums are exchanged so; larger ones, such as prompts, are added up by NCCL."""
_BUFFER_BYTES = 4 << 20
"""Most bytes of a part: 256 rows of 8,192 numbers of two bytes. Every process reads those of all others, so more is left to NCCL."""


def peers_of(device: torch.device, dtype: torch.dtype, rank: int, hosts: int) -> tuple[Peers | None, str]:
    """Return what the processes of the default group exchange rows through; or None, and why there is nothing of the kind.

    Every process calls this, on a GPU of its own, and all get peers or none does.
    """
    why = _obstacle(device, hosts)
    if not _all(not why, device):
        return None, why or "another process cannot read the memory of this one's GPU"
    found: Peers | None = None
    try:
        found = _made(device, dtype, rank)
    except RuntimeError as e:  # torch refuses the driver, or the system, in many words
        why = f"torch cannot share memory between these GPUs ({reason_of(e)})"
    if not _all(found is not None, device):
        return None, why or "torch cannot share memory between these GPUs"
    return found, ""


def _made(device: torch.device, dtype: torch.dtype, rank: int) -> Peers:
    size, elements = distributed.get_world_size(), _BUFFER_BYTES // dtype.itemsize
    buffers, flags = _shared(2 * elements, dtype, device), _shared(ROWS * size, torch.int32, device)
    calls = torch.zeros(ROWS, dtype=torch.int32, device=device)
    torch.cuda.synchronize(device)  # the next collective comes before the first call: no flag is set before all are zero
    return Peers(rank, buffers, flags, calls, elements, dtype)


def _all(here: bool, device: torch.device) -> bool:
    """Return whether something is so in all processes."""
    told = torch.tensor([here], dtype=torch.int32, device=device)
    distributed.all_reduce(told, op=distributed.ReduceOp.MIN)
    return bool(told)


_kept: list[Tensor] = []
"""Memory that other processes see lasts as long as the process."""


def _shared(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate zeros in every process, and return the addresses of all of them, int64 [size]."""
    from torch.distributed import _symmetric_memory as symmetric

    memory = symmetric.empty(count, dtype=dtype, device=device).zero_()
    group = distributed.group.WORLD
    assert group is not None
    handle = symmetric.rendezvous(memory, group)
    _kept.append(memory)
    seen = [handle.get_buffer(rank, (count,), dtype).data_ptr() for rank in range(group.size())]
    return torch.tensor(seen, dtype=torch.int64, device=device)


def _obstacle(device: torch.device, hosts: int) -> str:
    """Return why this GPU does not read the memory of all others; the empty string if it does."""
    if hosts > 1:
        return "the processes are on several hosts"
    if torch.version.hip is not None:
        return "these are GPUs of AMD"
    others = (index for index in range(torch.cuda.device_count()) if index != device.index)
    if all(torch.cuda.can_device_access_peer(device.index, other) for other in others):
        return ""
    return "the GPUs of this machine do not read one another's memory"
