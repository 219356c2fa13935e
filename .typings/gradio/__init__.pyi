"""Anything: Gradio makes the methods of its components when it is imported."""

from typing import Any

def __getattr__(name: str) -> Any: ...
