"""Built wheels, and fresh environments that hold nothing of this project but them."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "docs"))  # `pages`, which takes files out of the docs

OWN = ("surgery", "model_surgery", "__editable__", "_model_surgery", "__pycache__")


@dataclass(frozen=True)
class Fresh:
    """A virtual environment of its own, and the folder in which its commands run."""

    python: Path
    folder: Path

    def run(self, *command: str) -> str:
        """Run a program of the environment and return what it prints on stdout; it must succeed."""
        # Nothing of the outer process may leak in: no PYTHONPATH, no switches.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SURGERY"))}
        environment |= {"PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
        return _run(command, self.folder, environment)


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(source: Path, out: Path, *, through_sdist: bool = False) -> Path:
    """Build a wheel without a network; `through_sdist` builds it from the source distribution, as an index would."""
    kinds = [] if through_sdist else ["--wheel"]
    _run([sys.executable, "-m", "build", *kinds, "--no-isolation", "--outdir", str(out), str(source)], source)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own wheel, built from its source distribution."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("dist"), through_sdist=True)


@pytest.fixture(scope="session")
def pages_wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """The folder with the files of the two docs pages, and the wheels of the packages in it."""
    from pages import files

    folder = tmp_path_factory.mktemp("pages")
    for page in ("write-an-adapter.md", "write-an-architecture.md"):
        for name, text in files(ROOT / "docs" / page).items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, "utf-8")
    sources = sorted(path.parent for path in folder.glob("*/pyproject.toml"))
    return folder, [build_wheel(source, folder / "dist" / source.name) for source in sources]


@pytest.fixture(scope="session")
def fresh(wheel: Path, pages_wheels: tuple[Path, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """A new virtual environment with the three wheels; torch and the like are borrowed from the running one."""
    root = tmp_path_factory.mktemp("fresh")
    venv.create(root / "venv", with_pip=False, symlinks=True)
    python = root / "venv" / "bin" / "python"
    folder, others = pages_wheels
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet", "install"]
    _run([*pip, "--no-deps", "--no-index", str(wheel), *map(str, others)], root)
    borrowed = root / "borrowed"
    borrowed.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(OWN) and path.suffix != ".pth":
            (borrowed / path.name).symlink_to(path)
    (site,) = (root / "venv" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(f"{borrowed}\n", "utf-8")
    return Fresh(python, folder)
