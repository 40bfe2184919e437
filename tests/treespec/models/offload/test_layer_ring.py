"""Layers are in their slots when they are used, whatever order the device runs what may run."""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest

from treespec.models.offload.layer_ring import Ring


@dataclass
class Token:
    """One recording of an event."""

    done: bool = False


@dataclass
class Event:
    """As CUDA's: who waits, waits for the last recording made before."""

    token: Token = field(default_factory=lambda: Token(done=True))

    def record(self, stream: "Stream") -> None:
        self.token = Token()
        stream.work.append(("done", self.token))


@dataclass
class Stream:
    """Work that runs in order, some time later."""

    waits: bool = True
    work: deque[Any] = field(default_factory=deque)

    def wait_event(self, event: Event) -> None:
        if self.waits:
            self.work.append(("wait", event.token))


class Device:
    """Two streams, of which either may run next, and slots that know what is in them."""

    def __init__(self, seed: int, slots: int, copies_wait: bool = True, uses_wait: bool = True) -> None:
        self.random = random.Random(seed)
        self.side, self.main = Stream(copies_wait), Stream(uses_wait)
        self.holds: list[int | None] = [None] * slots
        self.used = [0] * slots
        self.copied: list[int] = []
        self.ran: list[int] = []

    def copy(self, layer: int, slot: int) -> None:
        self.copied.append(layer)
        self.side.work += [("fill", layer, slot), ("filled", layer, slot)]

    def use(self, layer: int, slot: int) -> None:
        self.main.work += [("use", layer, slot), ("used", layer, slot)]

    def run(self, most: int | None = None, streams: tuple[Stream, ...] = ()) -> None:
        """Up to `most` pieces of work, each from a stream that can go on."""
        while most is None or most > 0:
            able = [s for s in streams or (self.side, self.main) if s.work and (s.work[0][0] != "wait" or s.work[0][1].done)]
            if not able:
                return
            self._do(*self.random.choice(able).work.popleft())
            most = None if most is None else most - 1

    def _do(self, what: str, first: Any, slot: int = 0) -> None:
        if what == "done":
            first.done = True
        elif what in ("fill", "filled"):
            assert not self.used[slot], f"layer {first} is copied over a layer in use"
            self.holds[slot] = first if what == "filled" else None
        elif what in ("use", "used"):
            assert self.holds[slot] == first, f"layer {first} runs on a slot that holds {self.holds[slot]}"
            self.used[slot] += 1 if what == "use" else -1
            if what == "used":
                self.ran.append(first)


def ring(device: Device, layers: int, slots: int) -> Ring:
    return Ring(layers, slots, device.copy, device.side, lambda: device.main, Event)


def passes(device: Device, schedule: list[int], layers: int, slots: int) -> list[int]:
    """Passes that stop before the given layer (`layers`: whole ones) in the middle of it; what was used, in order."""
    turns = ring(device, layers, slots)
    wanted = []
    for stop in schedule:
        for layer in range(min(stop + 1, layers)):
            slot = turns.enter(layer)
            device.use(layer, slot)
            wanted.append(layer)
            if layer != stop:
                turns.leave()
            device.run(device.random.randrange(9))
    device.run()
    assert not device.side.work
    assert not device.main.work, "everything comes to its end"
    return wanted


@pytest.mark.parametrize("slots", [2, 3, 4])
@pytest.mark.parametrize("layers", [1, 2, 3, 5, 8])
def test_every_use_finds_its_layer_in_any_order_of_execution(layers: int, slots: int) -> None:
    for seed in range(60):
        device = Device(seed, slots)
        assert passes(device, [layers] * 4, layers, slots) == device.ran == [*range(layers)] * 4


@pytest.mark.parametrize("slots", [2, 3])
def test_passes_that_end_early_leave_the_next_ones_right(slots: int) -> None:
    for seed in range(200):
        device = Device(seed, slots)
        schedule = [device.random.randrange(6) for _ in range(6)]
        assert passes(device, schedule, 5, slots) == device.ran


@pytest.mark.parametrize("neglect", ["copies_wait", "uses_wait"])
def test_a_device_that_does_not_wait_is_found_out(neglect: str) -> None:
    def found(seed: int) -> bool:
        try:
            passes(Device(seed, 2, **{neglect: False}), [5, 5], 5, 2)
        except AssertionError:
            return True
        return False

    assert sum(found(seed) for seed in range(50)) > 25


def test_copies_run_ahead_across_the_end_of_a_pass_and_none_is_made_twice() -> None:
    device = Device(0, 2)
    turns = ring(device, 5, 2)
    for turn in range(15):
        assert device.copied == [t % 5 for t in range(turn + 2)], "this layer and the next one are on their way"
        turns.enter(turn % 5)
        turns.leave()
    assert device.copied[-2:] == [0, 1], "the next pass begins to arrive before anyone asks for it"


@pytest.mark.parametrize("slots", [2, 3])
def test_later_layers_arrive_while_one_is_in_use(slots: int) -> None:
    device = Device(0, slots)
    turns = ring(device, 5, slots)
    device.run()
    for turn in range(12):
        slot = turns.enter(turn % 5)
        device.use(turn % 5, slot)
        device.run(streams=(device.side,))  # the layers' own stream stands still
        assert sorted(device.holds) == sorted(t % 5 for t in range(turn, turn + slots))  # type: ignore[type-var]
        turns.leave()
        device.run()


def test_one_stream_never_has_to_wait_for_the_host() -> None:
    """All of three passes can be enqueued before anything runs."""
    device = Device(0, 2)
    turns = ring(device, 4, 2)
    for layer in [*range(4)] * 3:
        device.use(layer, turns.enter(layer))
        turns.leave()
    assert not device.ran
    device.run()
    assert device.ran == [*range(4)] * 3
