"""What is used of it: its classes are made from protocol buffers when it is imported."""

from typing import Any

class Event:
    session_log: Any
    step: int
    summary: Any
    wall_time: float
    def __init__(self, **fields: Any) -> None: ...
    @staticmethod
    def FromString(s: bytes) -> Event: ...
    def SerializeToString(self) -> bytes: ...

class SessionLog:
    START: int
    def __init__(self, **fields: Any) -> None: ...
