"""Ring: layers take turns in a few slots of device memory. Each is copied there before it is used."""

from collections.abc import Callable
from typing import Any, Protocol


class Stream(Protocol):
    """A stream of `torch.cuda` or `torch.cpu`."""

    def wait_event(self, event: Any) -> None:
        """Make all work that is enqueued from now on start after the event."""


class Event(Protocol):
    """An event of `torch.cuda` or `torch.cpu`."""

    def record(self, stream: Any) -> None:
        """Let the event happen when the stream has done all work that is enqueued so far."""


class Ring:
    """Decides which layer is in which slot, and which stream waits for which.

    Turn t is the use of layer `t % layers` in slot `t % slots`. Copies run on a stream of their own, `slots` turns ahead, also across the
    end of a pass: while the last layers of a pass run, the first ones of the next arrive. The two rules: a copy waits for the use of its
    slot `slots` turns before, and a use waits for its copy. The host waits for nothing.

    Args:
        layers: the number of layers, which are used in order from 0 to the last.
        slots: the number of layers that fit at once; 2 or more, so that one arrives while another is in use.
        copy: `copy(layer, slot)` enqueues the copy of a layer on `side`.
        side: the stream of the copies.
        here: returns the stream that the layers run on.
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
        """Return the slot of the layer, and make the current stream wait until the layer is there.

        A layer that is not the next one (because the pass before ended early) is fetched again, with those that follow it.
        """
        if layer != self._turn % self._layers:
            self._turn += (layer - self._turn) % self._layers
            self._begin()
        slot = self._turn % self._slots
        self._here().wait_event(self._arrived[slot])
        return slot

    def leave(self) -> None:
        """Free the slot of the layer entered last when the stream has passed it, and start copying the layer that uses the slot next.

        Rule: call it after all work of the layer is enqueued.
        """
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
