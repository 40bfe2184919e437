"""Several processes of one run, as a launcher starts them, forked from this one so that nothing is imported again."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from treespec.errors import TreeoptError

_SECONDS = 240


def of_ranks(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `work(*arguments)` in so many processes, which stand to one another as those of torchrun.

    Return what each of them returned, or the TreeoptError that it raised. Any other error fails, with its traceback.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_rank, args=(rank, count, port, ends[rank][1], work, arguments), daemon=True) for rank in range(count)
    ]
    for process in processes:
        process.start()
    found = []
    for (end, _), process in zip(ends, processes, strict=True):
        if not end.poll(_SECONDS):
            for other in processes:
                other.kill()
            raise AssertionError(f"a process did not answer in {_SECONDS} s")
        value, failure = end.recv()
        found.append(value)
        if failure:
            for other in processes:
                other.kill()
            raise AssertionError(failure)
        process.join(_SECONDS)
    return found


def _rank(rank: int, count: int, port: int, end: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    try:
        found = work(*arguments), ""
    except TreeoptError as error:
        found = error, ""
    except BaseException:
        found = None, traceback.format_exc()
    end.send(found)
    end.close()
    from treespec.models.parallel.team import leave

    leave()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os._exit(0)
