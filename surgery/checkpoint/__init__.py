"""Checkpoints on disk: files that change all at once or not at all, kill -9 and power cuts included.

Transaction     a folder that appears complete, or files that change together
recover         finish or take away what an interrupted commit left
consistent      read a folder while nothing in it changes
read_receipt    which job wrote a folder
"""

from __future__ import annotations

from surgery.checkpoint.consistent import consistent
from surgery.checkpoint.disk import DISK, Disk
from surgery.checkpoint.names import RECEIPT
from surgery.checkpoint.receipt import read_receipt
from surgery.checkpoint.recover import Recovered, recover
from surgery.checkpoint.shared import refuse_shared
from surgery.checkpoint.transaction import Transaction
from surgery.checkpoint.writing import StagedFile

__all__ = [
    "DISK",
    "RECEIPT",
    "Disk",
    "Recovered",
    "StagedFile",
    "Transaction",
    "consistent",
    "read_receipt",
    "recover",
    "refuse_shared",
]
