"""Memory of the GPUs of one host that all processes of a team see, by torch's symmetric memory: what `kernels.peers` exchanges rows through."""

import torch
from torch import Tensor, distributed

from treespec.kernels.peers import Peers

ROWS = 1024
"""Most rows of a pass whose sums are exchanged so; larger ones, such as prompts, are added up by NCCL."""
_BUFFER_BYTES = 4 << 20
"""Most bytes of a part: 256 rows of 8,192 numbers of two bytes. Every process reads those of all others, so more is left to NCCL."""


def peers_of(device: torch.device, dtype: torch.dtype, rank: int, hosts: int) -> Peers | None:
    """Return what the processes of the default group exchange rows through; None if they are on several hosts, or their GPUs do not reach one another.

    Every process calls this, on a GPU of its own, and all get peers or none does.
    """
    size = distributed.get_world_size()
    here = torch.tensor([_reaches_all(device, hosts)], dtype=torch.int32, device=device)
    distributed.all_reduce(here, op=distributed.ReduceOp.MIN)
    if not int(here):
        return None
    elements = _BUFFER_BYTES // dtype.itemsize
    buffers, flags = _shared(2 * elements, dtype, device), _shared(ROWS * size, torch.int32, device)
    calls = torch.zeros(ROWS, dtype=torch.int32, device=device)
    torch.cuda.synchronize(device)
    distributed.barrier(device_ids=[device.index])  # no flag is set before all are zero
    torch.cuda.synchronize(device)
    return Peers(rank, buffers, flags, calls, elements, dtype)


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


def _reaches_all(device: torch.device, hosts: int) -> bool:
    """Return whether this device reads the memory of all GPUs of the host, and their processes are on it."""
    if hosts > 1 or torch.version.hip is not None:
        return False
    others = (index for index in range(torch.cuda.device_count()) if index != device.index)
    return all(torch.cuda.can_device_access_peer(device.index, other) for other in others)
