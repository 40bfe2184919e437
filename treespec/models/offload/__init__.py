"""Offloading: a target whose layers stay in host memory and stream through a ring of buffers on the GPU."""

from treespec.errors import SettingsError


def require_gpu(device: str) -> None:
    """Raise SettingsError if weights cannot be streamed to this device."""
    if device not in ("cuda", "auto") and not device.startswith("cuda:"):
        raise SettingsError(
            f"offloading copies weights from host memory to a CUDA GPU, but the device is {device}; drop `offload` or pass `device` cuda"
        )
