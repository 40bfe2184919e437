"""Offloading: a target whose layers stay in host memory and stream through a ring of buffers on the GPU."""

from treespec.errors import SettingsError


def require_gpu(device: str) -> None:
    """Raise SettingsError if weights cannot be streamed to this device."""
    if device == "cpu":
        raise SettingsError(
            "offloading copies weights from host memory to a GPU, but the device is cpu; drop `offload` or pass `device` cuda"
        )
