"""What is a type here; jaxlib is compiled, and comes without types."""

from typing import Any

class JaxRuntimeError(RuntimeError): ...

def __getattr__(name: str) -> Any: ...
