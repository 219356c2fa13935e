"""Anything but the class of builders: what features and metadata are depends on the data set."""

from typing import Any

from tensorflow_datasets import core as core

def __getattr__(name: str) -> Any: ...
