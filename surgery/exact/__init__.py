"""Exact arithmetic for merging: sums that are the same bits everywhere, and what is needed to take them back."""

from surgery.exact.delta import Delta
from surgery.exact.machine import check_machine, check_product
from surgery.exact.merge import merge_block
from surgery.exact.passing import Passage, passage
from surgery.exact.product import Product
from surgery.exact.residue import decode, encode
from surgery.exact.rounding import format_of, round_once, same_bits

__all__ = [
    "Delta",
    "Passage",
    "Product",
    "check_machine",
    "check_product",
    "decode",
    "encode",
    "format_of",
    "merge_block",
    "passage",
    "round_once",
    "same_bits",
]
