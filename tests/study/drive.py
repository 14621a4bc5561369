"""A driver to be killed: `python drive.py FOLDER LOG SECONDS WORKERS`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if __name__ == "__main__":
    from stub import Stub, text_registry
    from synthetic import make_study

    from surgery.engine.scheduler import InProcess, LocalPool
    from surgery.study import compare

    folder, log, seconds, workers = sys.argv[1:]
    engine = LocalPool(int(workers)) if int(workers) > 1 else InProcess()
    stub = Stub(Path(log), float(seconds))
    with stub.installed():
        compare(make_study(3), folder, registry=text_registry(), engine=engine)
    engine.close()
