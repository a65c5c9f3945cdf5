"""Runs OpenAI-format batch files against any OpenAI-compatible server, as Prefect flows."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchline.client import AsyncBatchline, Batchline

__all__ = ["AsyncBatchline", "Batchline"]

# Arrow's own allocator keeps what each thread frees: 150 MB more at 200,000 requests. Read when Arrow is imported.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def __getattr__(name: str) -> Any:
    """The clients, loaded when first asked for: most of the package has no need of them."""
    if name not in __all__:
        raise AttributeError(f"module 'batchline' has no attribute {name!r}")
    from batchline import client  # noqa: PLC0415 - see above

    return getattr(client, name)
