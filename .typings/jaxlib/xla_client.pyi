"""What is a type here; see `_jax`."""

from typing import Any

class Device:
    device_kind: str
    platform: str
    def memory_stats(self) -> dict[str, int] | None: ...
    def __getattr__(self, name: str) -> Any: ...

def __getattr__(name: str) -> Any: ...
