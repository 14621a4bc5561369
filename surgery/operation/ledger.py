"""The ledger: for every act on the model, the act that takes it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Ledger"]

Inverse = Callable[[], None]


class Ledger:
    """A list of inverses, run backwards by `undo`.

    Each act is recorded before it is done, so an interruption between the two is taken back as well; inverses
    therefore set a known state and do not depend on the act having happened.
    """

    def __init__(self) -> None:
        self._inverses: list[Inverse] = []

    def __len__(self) -> int:
        return len(self._inverses)

    def act(self, act: Callable[[], None], inverse: Inverse) -> None:
        """Record `inverse`, then do `act`."""
        self._inverses.append(inverse)
        act()

    def undo(self, down_to: int = 0) -> None:
        """Run the inverses, last first, until `down_to` of them are left."""
        while len(self._inverses) > down_to:
            self._inverses[-1]()
            self._inverses.pop()

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Take back everything done inside the block when it raises, Ctrl-C included."""
        mark = len(self._inverses)
        try:
            yield
        except BaseException:
            self.undo(mark)
            raise
