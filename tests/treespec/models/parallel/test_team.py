"""What the processes that hold a target say to one another: it waits where it must, ends where it must, and is alike for all."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.reference.ranks import of_ranks
from tests.reference.tabular import TabularModel, random_rule
from treespec.decoding.engine import CacheBudget
from treespec.models.parallel import team as rooms

HUNG = """
import ctypes, sys
from treespec.models.pairs import team_of
team = team_of(2, "cpu")
print("joined", flush=True)
ctypes.CDLL(None).sleep(100)  # as in a wait for the device: Python cannot interrupt it
"""


def in_a_rank() -> tuple[int, str | None]:
    rooms._PATIENCE_SECONDS = 1.0  # in this process alone, which ends
    team = rooms.join(2, "cpu")

    def asked() -> str:
        time.sleep(3)
        return "said"

    return team.least(5 - team.rank), team.first(asked)


def test_the_least_is_taken_and_a_person_may_take_longer_than_a_collective() -> None:
    assert of_ranks(2, in_a_rank) == [(4, "said")] * 2


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (signal.SIGKILL, "error: rank 1 of 2 was ended from outside (process "),
        (signal.SIGINT, None),  # the process that was interrupted says so itself
    ],
)
def test_a_process_that_nothing_can_interrupt_ends_when_its_partner_does(number: signal.Signals, wanted: str | None) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    known = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    both = [
        subprocess.Popen(
            [sys.executable, "-c", HUNG],
            env={**os.environ, **known, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for one in both:
            assert one.stdout is not None
            assert one.stdout.readline() == "joined\n"
        both[1].send_signal(number)
        _, said = both[0].communicate(timeout=60)
    finally:
        for one in both:
            one.kill()
            one.communicate()
    assert both[0].returncode == 1
    lines = said.splitlines()
    assert len(lines) == (wanted is not None)
    assert all(line.startswith(str(wanted)) for line in lines)


class Growing(TabularModel):
    """A model that notes what it is asked for, and whose steps can be captured."""

    name, generation, eager_reason = "growing", 0, ""

    def __init__(self, *, divided: bool) -> None:
        self.divided, self.capacity, self.asked = divided, 0, list[int]()
        super().__init__(11, random_rule(11, 0))
        self.asked.clear()

    def committed(self, tokens: object, *, last: bool = False) -> None:
        pass

    def allocate(self, capacity: int) -> None:
        self.asked.append(capacity)
        self.capacity = max(self.capacity, capacity)


@pytest.mark.parametrize(("divided", "wanted"), [(False, [103, 406, 203]), (True, [103, 256])])
def test_caches_of_several_processes_grow_by_their_texts_alone(divided: bool, wanted: list[int]) -> None:
    """Twice as many slots may fit into the memory of one process and not into that of another."""
    model = Growing(divided=divided)
    for slots in (100, 200):
        CacheBudget(slots).allocate(model, None, captured=True)
    assert model.asked == wanted
