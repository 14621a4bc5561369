"""Built wheels, and fresh environments that hold nothing of this project but them."""

from __future__ import annotations

import fcntl
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
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of one test run share; whoever comes first fills it while the others wait."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "packaging"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _fill(folder)
            (folder / "done").touch()
    return folder


def _fill(folder: Path) -> None:
    from pages import files
    from transformers import PersimmonConfig

    wheels = [build_wheel(ROOT, folder / "dist" / "own", through_sdist=True)]
    for page in ("write-an-adapter.md", "write-an-architecture.md"):
        for name, text in files(ROOT / "docs" / page).items():
            target = folder / "pages" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, "utf-8")
    for project in sorted((folder / "pages").glob("*/pyproject.toml")):
        wheels.append(build_wheel(project.parent, folder / "dist" / project.parent.name))
    config = PersimmonConfig(
        hidden_size=16,
        intermediate_size=64,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=40,
        architectures=["PersimmonForCausalLM"],
    )
    config.save_pretrained(folder / "pages" / "tiny-persimmon")
    _install(folder, wheels)


def _install(folder: Path, wheels: Sequence[Path]) -> None:
    """Make an environment that holds these wheels; torch and the like are borrowed from the running one."""
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet", "install"]
    _run([*pip, "--no-deps", "--no-index", *map(str, wheels)], folder)
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(OWN) and path.suffix != ".pth":
            (borrowed / path.name).symlink_to(path)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(f"{borrowed}\n", "utf-8")


@pytest.fixture(scope="session")
def wheel(shared: Path) -> Path:
    """The project's own wheel, built from its source distribution."""
    (found,) = (shared / "dist" / "own").glob("*.whl")
    return found


@pytest.fixture(scope="session")
def fresh(shared: Path) -> Fresh:
    """A new virtual environment with the project's wheel and those of the two pages."""
    return Fresh(shared / "venv" / "bin" / "python", shared / "pages")
