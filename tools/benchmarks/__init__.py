"""What `tools/benchmark.py` measures and how; see docs/benchmarks.md."""


class UsageError(ValueError):
    """Flags that cannot be followed; the message names them."""
