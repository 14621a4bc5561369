"""What changed in the weights: singular values of changes, what they share, and adapters made of them."""

from surgery.spectra.control import random_change
from surgery.spectra.decomposition import Decomposition, decompose, decompose_product, leading
from surgery.spectra.intruders import Intruders, intruders
from surgery.spectra.matrix import Matrix, matrices_of_models, matrices_of_operation
from surgery.spectra.measure import Figures, MatrixChange, Settings, measure, measure_all, medians
from surgery.spectra.ranks import entropy_rank, numerical_rank, rank_for_energy, stable_rank
from surgery.spectra.subspaces import expected_overlap, overlap, overlaps
from surgery.spectra.together import Directions, MatrixOverlap, directions, measure_overlaps

__all__ = [
    "Decomposition",
    "Directions",
    "Figures",
    "Intruders",
    "Matrix",
    "MatrixChange",
    "MatrixOverlap",
    "Settings",
    "decompose",
    "decompose_product",
    "directions",
    "entropy_rank",
    "expected_overlap",
    "intruders",
    "leading",
    "matrices_of_models",
    "matrices_of_operation",
    "measure",
    "measure_all",
    "measure_overlaps",
    "medians",
    "numerical_rank",
    "overlap",
    "overlaps",
    "random_change",
    "rank_for_energy",
    "stable_rank",
]
