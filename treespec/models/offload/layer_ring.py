"""Ring: layers take turns in a few slots of device memory, each copied there ahead of its use."""

from collections.abc import Callable
from typing import Any, Protocol


class Stream(Protocol):
    """Of `torch.cuda` or `torch.cpu`."""

    def wait_event(self, event: Any) -> None:
        """What is enqueued from now on starts after the event."""


class Event(Protocol):
    """Likewise."""

    def record(self, stream: Any) -> None:
        """Happens once the stream has done what is enqueued so far."""


class Ring:
    """Which layer is in which slot, and which stream waits for which.

    Turn t is the use of layer `t % layers` in slot `t % slots`. Copies run on a stream of their own, `slots` turns ahead, across the end
    of a pass too: while the last layers of a pass run, the first ones of the next arrive. A copy waits for the use of its slot `slots`
    turns before; a use waits for its copy. Nothing here waits on the host.

    Args:
        layers: how many there are, used in order from 0 to the last.
        slots: how many fit at once; 2 or more, so that one arrives while another is in use.
        copy: `copy(layer, slot)` enqueues the copy of a layer on `side`.
        side: the stream of the copies.
        here: says which stream the layers run on.
        event: makes an event.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        copy: Callable[[int, int], None],
        side: Stream,
        here: Callable[[], Stream],
        event: Callable[[], Event],
    ) -> None:
        self._layers, self._slots = layers, slots
        self._copy, self._side, self._here = copy, side, here
        self._arrived = [event() for _ in range(slots)]
        self._free = [event() for _ in range(slots)]
        self._turn = 0
        self._begin()

    def enter(self, layer: int) -> int:
        """The slot of the layer, which is there for whatever the current stream does next.

        A layer that is not the next one (the pass before ended early) is fetched anew, with those that follow it.
        """
        if layer != self._turn % self._layers:
            self._turn += (layer - self._turn) % self._layers
            self._begin()
        slot = self._turn % self._slots
        self._here().wait_event(self._arrived[slot])
        return slot

    def leave(self) -> None:
        """The layer that was entered last is enqueued: its slot is for the layer `slots` turns on, once the stream is through."""
        self._free[self._turn % self._slots].record(self._here())
        self._fetch(self._turn + self._slots)
        self._turn += 1

    def _begin(self) -> None:
        """Fill all slots from this turn on."""
        for event in self._free:
            event.record(self._here())
        for turn in range(self._turn, self._turn + self._slots):
            self._fetch(turn)

    def _fetch(self, turn: int) -> None:
        slot = turn % self._slots
        self._side.wait_event(self._free[slot])
        self._copy(turn % self._layers, slot)
        self._arrived[slot].record(self._side)
