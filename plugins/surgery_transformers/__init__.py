"""Models as transformers keeps them: local folders, hub names, and their skeletons without weights."""

from surgery import hookimpl
from surgery_transformers.source import TransformersSource

__all__ = ["TransformersSource"]


@hookimpl
def surgery_models() -> list[TransformersSource]:
    return [TransformersSource()]
