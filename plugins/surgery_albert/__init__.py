"""Not described yet."""

from surgery import Architecture, hookimpl


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return []
