"""For plugin authors: the checks that the project runs over its own plugins, and Hypothesis strategies.

`check_adapter`, `check_architecture` and `check_task` need nothing but torch and transformers; `strategies` needs
Hypothesis.
"""

from surgery.testing.check_adapter import check_adapter
from surgery.testing.check_architecture import check_architecture
from surgery.testing.check_task import check_task
from surgery.testing.state import assert_same_state, model_state
from surgery.testing.toy import TOY, ToyModel, toy_registry

__all__ = [
    "TOY",
    "ToyModel",
    "assert_same_state",
    "check_adapter",
    "check_architecture",
    "check_task",
    "model_state",
    "toy_registry",
]
