"""What the pages say of the code is what the code says: hooks, names, exit codes, links, commands, tests, budgets."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from pages import PAGES, ROOT, files, headings, links

import surgery
from surgery import AdapterType, DataSource, ModelSource, TaskType, errors
from surgery.architecture import ROLES
from surgery.cli import errors as endings
from surgery.registry import hooks

DOCS = ROOT / "docs"
OWN_WORDS = re.compile(r"(?<![\w.])/(work|tmp|root|home)/")


def _hooks() -> dict[str, str]:
    found = {}
    for name, hook in vars(hooks).items():
        if name.startswith("surgery_"):
            found[name] = f"def {name}{str(inspect.signature(hook)).replace(chr(39), '')}"
    return found


@pytest.mark.parametrize("name", sorted(_hooks()))
def test_hook_is_documented_with_its_signature(name: str) -> None:
    text = (DOCS / "hooks.md").read_text("utf-8")
    assert f"\n## `{name}`\n" in text, f"docs/hooks.md has no section {name}"
    assert f"\n{_hooks()[name]}:" in text, f"docs/hooks.md lacks {_hooks()[name]}"


def test_no_hook_is_documented_that_does_not_exist() -> None:
    assert set(re.findall(r"^## `(surgery_\w+)`$", (DOCS / "hooks.md").read_text("utf-8"), re.MULTILINE)) == set(
        _hooks()
    )


def test_public_door() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(surgery.__all__)
    assert len(listed) == len(set(listed))


def test_site_attributes() -> None:
    table = (
        (DOCS / "sites.md").read_text("utf-8").partition("## What a site says")[2].partition("| `host` | module |")[0]
    )
    first_cells = re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE)
    listed = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    fields = {field.name for field in dataclasses.fields(surgery.Site)}
    properties = {name for name, value in vars(surgery.Site).items() if isinstance(value, property)}
    assert sorted(listed) == sorted(name for name in fields | properties if not name.startswith("_"))


def test_roles() -> None:
    """The page lists exactly the vocabulary, each role once and with a definition."""
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \|$", (DOCS / "roles.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(role for role, _ in rows) == sorted(ROLES)
    assert all(len(definition) > 10 for _, definition in rows)


def test_architecture_fields() -> None:
    text = (DOCS / "write-an-architecture.md").read_text("utf-8").partition("| field | says |")[2]
    listed = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(field.name for field in dataclasses.fields(surgery.Architecture))


@pytest.mark.parametrize("contract", [TaskType, DataSource, ModelSource, AdapterType], ids=lambda kind: kind.__name__)
def test_contract_members_are_documented(contract: type) -> None:
    page = "write-an-adapter.md" if contract is AdapterType else "hooks.md"
    text = (DOCS / page).read_text("utf-8")
    for name, value in vars(contract).items():
        if inspect.isfunction(value) and not name.startswith("_"):
            names = [parameter.name for parameter in inspect.signature(value).parameters.values()][1:]
            assert re.search(rf"`{name}\({', '.join(f'{word}(?:=[^,)]+)?' for word in names)}\)`", text), name
    for name in contract.__annotations__:
        if contract is not AdapterType or name not in ("name", "summary", "options"):
            assert f"`{name}`" in text, name


def test_operation_methods() -> None:
    text = (DOCS / "api.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `op\.(\w+)", text, re.MULTILINE))
    public = {name for name in vars(surgery.Operation) if not name.startswith("_")} - {"body"}
    assert listed == public


def test_exit_codes() -> None:
    text = (DOCS / "exit-codes.md").read_text("utf-8")
    listed = {int(code): what for code, what in re.findall(r"^\| (\d+) \| (.+?) \|", text, re.MULTILINE)}
    raised = {
        value.exit_code: name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.SurgeryError)
    }
    for code, name in raised.items():
        assert f"`{name}`" in listed[code], f"exit code {code}"
    assert set(listed) == {0, 2, *raised, endings.BUG, endings.INTERRUPTED, endings.BROKEN_PIPE}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    for target in links(page):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in headings(found), f"{page.name} links to {target}; headings: {sorted(headings(found))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_no_machine(page: Path) -> None:
    assert not OWN_WORDS.search(page.read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_tests_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for path, _, name in re.findall(
        r"(?<![\w/])((?:tests|surgery|benchmarks|specs)/[\w/.-]+\.(?:py|yaml))(::(\w+))?", text
    ):
        assert (ROOT / path).is_file(), f"{page.name} names {path}"
        if name:
            tree = ast.parse((ROOT / path).read_text("utf-8"))
            known = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            known |= {
                t.id
                for node in tree.body
                if isinstance(node, ast.Assign)
                for t in node.targets
                if isinstance(t, ast.Name)
            }
            assert name in known, f"{page.name} names {path}::{name}"
    for target in re.findall(r"`make ([\w-]+)`", text):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text("utf-8"), f"{page.name} names make {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    pending = [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        pending += [(page.parent / target.partition("#")[0]).resolve() for target in links(page) if "://" not in target]
    pages = [page for page in PAGES if page.parent.parent != ROOT / "plugins" or page.parent.name != "surgery_demo"]
    assert not [str(page.relative_to(ROOT)) for page in pages if page not in seen]


def test_budgets_of_the_examples() -> None:
    """An adapter plugin in 80 lines, an architecture in 30, as the pages promise."""
    adapter = files(DOCS / "write-an-adapter.md")
    lines = sum(text.count("\n") for name, text in adapter.items() if name.endswith(".py") and "/test" not in name)
    assert lines <= 80
    architecture = files(DOCS / "write-an-architecture.md")
    text = next(text for name, text in architecture.items() if name.endswith("__init__.py"))
    data = re.search(r"^PERSIMMON = Architecture\(.*?^\)$", text, re.MULTILINE | re.DOTALL)
    assert data is not None
    assert data[0].count("\n") < 30


def test_decisions_are_whole() -> None:
    for page in sorted((DOCS / "decisions").glob("*.md")):
        text = page.read_text("utf-8")
        if page.name == "README.md":
            continue
        assert re.match(r"# \d{4}  ?\S", text), page.name
        assert text.startswith(f"# {page.name[:4]}"), page.name
        for part in ("Context", "Decision", "Consequences"):
            assert f"\n## {part}\n" in text, f"{page.name}: {part}"
