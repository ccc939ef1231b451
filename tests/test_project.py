"""The project itself: its locks, its versions, its import contracts and its wheel are what they say."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import eventstore

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
CONTRACTS: list[str] = [contract["name"] for contract in PYPROJECT["tool"]["importlinter"]["contracts"]]

PACKAGES = ("actors", "backends", "eventstore")
RUNTIME_LOCK = "requirements.txt"
DEV_LOCK = "requirements-dev.txt"

# For every contract, by its name up to a colon: where which line breaks it, and no other one.
BREAKS = {
    "Layers": ("actors/__init__.py", "import backends.sqlite"),
    "Layers of the actors": ("actors/owned_tasks.py", "import actors.testing"),
    "No circles": ("backends/postgres_session.py", "import backends.postgres"),
    "No backend knows another": ("backends/sqlite.py", "import backends.memory"),
    "Database drivers stay in the backends and the schema tools": ("eventstore/store.py", "import sqlite3"),
}


class TestLocks:
    @pytest.mark.parametrize("lock", [RUNTIME_LOCK, DEV_LOCK])
    def test_a_lock_holds_no_address(self, lock: str) -> None:
        assert "://" not in (ROOT / lock).read_text("utf-8")

    @pytest.mark.parametrize("lock", [RUNTIME_LOCK, DEV_LOCK])
    def test_every_line_of_a_lock_pins_one_version_with_its_hashes(self, lock: str) -> None:
        for line in _lock_lines(lock):
            assert re.fullmatch(r"[^\s=<>~!@]+==[^\s*]+( ; [^\\]+?)?( --hash=sha256:[0-9a-f]{64})+", line), line

    def test_the_runtime_lock_satisfies_every_runtime_requirement(self) -> None:
        assert _unsatisfied(PROJECT["dependencies"], RUNTIME_LOCK) == []

    def test_the_development_lock_satisfies_every_extra(self) -> None:
        extras = [wanted for extra in PROJECT["optional-dependencies"].values() for wanted in extra]
        assert _unsatisfied([*PROJECT["dependencies"], *extras], DEV_LOCK) == []

    def test_the_runtime_lock_holds_what_sqlalchemy_needs_for_asyncio(self) -> None:
        assert "greenlet" in _pins(RUNTIME_LOCK)

    def test_the_development_lock_holds_all_of_the_runtime_lock(self) -> None:
        # `make demo` runs on either, so what is tested must be what a user of the runtime lock gets.
        assert _pins(RUNTIME_LOCK).items() <= _pins(DEV_LOCK).items()


class TestVersions:
    def test_the_changelog_is_about_this_version(self) -> None:
        headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
        released = [Version(heading.split()[0]) for heading in headings if heading != "Unreleased"]
        assert "Unreleased" not in headings[1:]
        assert released == sorted(released, reverse=True)
        # Until its release a version is described under `Unreleased`; the changelog is never ahead.
        assert all(release <= Version(PROJECT["version"]) for release in released)
        assert headings[0] == "Unreleased" or released[0] == Version(PROJECT["version"])

    def test_what_is_installed_is_this_checkout(self) -> None:
        assert version(PROJECT["name"]) == PROJECT["version"]

    def test_every_tool_checks_for_the_oldest_supported_python(self) -> None:
        oldest = PROJECT["requires-python"].removeprefix(">=")
        tools = PYPROJECT["tool"]
        assert tools["mypy"]["python_version"] == oldest
        assert tools["basedpyright"]["pythonVersion"] == oldest
        assert tools["ruff"]["target-version"] == "py" + oldest.replace(".", "")

    def test_the_readme_names_the_distribution(self) -> None:
        assert PROJECT["name"] in (ROOT / PROJECT["readme"]).read_text("utf-8")


THE_COMMAND = ("eventstore", "eventstore.cli", "eventstore.cli.command")


class TestWhatEventstoreExports:
    """`eventstore` imports what it exports when that is asked for: what it says of it to type checkers must be true."""

    def test_every_name_comes_from_where_type_checkers_are_told(self) -> None:
        tree = ast.parse((ROOT / "eventstore" / "__init__.py").read_text("utf-8"))
        said = {
            name.name: f"{node.module}.{name.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module != "importlib"
            for name in node.names
        }
        assert sorted(said) == sorted(eventstore.__all__)
        for name, place in said.items():
            module, _, attribute = place.rpartition(".")
            assert getattr(eventstore, name) is getattr(importlib.import_module(module), attribute), name
        assert set(eventstore.__all__) <= set(dir(eventstore))

    def test_what_it_does_not_export_it_does_not_have(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'EventStoer'"):
            importlib.import_module("eventstore").EventStoer  # noqa: B018 - not there, as type checkers say

    def test_the_console_script_begins_with_nothing(self) -> None:
        code = "import sys; before = set(sys.modules); import eventstore.cli.command; print(*set(sys.modules) - before)"
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        found = set(output.split())
        assert {name for name in found if name.partition(".")[0] in PACKAGES} == set(THE_COMMAND)
        assert len(found) < 20


class TestImportContracts:
    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        for package in PACKAGES:
            shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
        return tmp_path

    def test_every_contract_is_broken_once_here(self) -> None:
        assert sorted(BREAKS) == sorted(map(_short, CONTRACTS))

    def test_no_contract_is_broken(self, copy: Path) -> None:
        linted = _lint_imports(copy)
        assert linted.returncode == 0, linted.stdout
        assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in linted.stdout

    @pytest.mark.parametrize("contract", CONTRACTS, ids=lambda name: _short(name).replace(" ", "-"))
    def test_a_forbidden_import_breaks_its_contract(self, copy: Path, contract: str) -> None:
        module, line = BREAKS[_short(contract)]
        with (copy / module).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")

        linted = _lint_imports(copy)

        assert linted.returncode != 0
        assert f"{contract} BROKEN" in linted.stdout
        assert f"Contracts: {len(CONTRACTS) - 1} kept, 1 broken." in linted.stdout


DATABASES = ("memory", "postgres", "redis", "sqlite")


class TestBackends:
    """A module's name begins with the database it is about; one of no database is for several."""

    def test_no_part_of_a_backend_knows_a_part_of_another(self) -> None:
        modules = sorted((ROOT / "backends").glob("*.py"))
        assert {_database(path.stem) for path in modules} == {*DATABASES, None}
        found = [
            f"{path.stem} imports {name}"
            for path in modules
            for name in _imported_backends(path)
            if _database(name) not in (None, _database(path.stem))
        ]
        assert found == []


def _database(module: str) -> str | None:
    name = module.partition("_")[0]
    return name if name in DATABASES else None


def _imported_backends(path: Path) -> set[str]:
    """The modules of `backends` that one imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("backends.")}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in the wheel."""
    directory = tmp_path_factory.mktemp("dist")
    built = _run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(ROOT))
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = directory.glob("*.whl")
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


class TestWheel:
    def test_it_carries_the_migrations(self, names: set[str]) -> None:
        assert {"eventstore/migrations/env.py", "eventstore/migrations/versions/0001_journal.py"} <= names

    def test_it_says_that_every_package_is_typed(self, names: set[str]) -> None:
        assert {f"{package}/py.typed" for package in PACKAGES} <= names

    def test_it_carries_every_module_of_every_package(self, names: set[str]) -> None:
        modules = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
        assert modules <= names

    def test_it_carries_nothing_else(self, names: set[str]) -> None:
        metadata = f"eventstore_actors-{PROJECT['version']}.dist-info"
        assert {name.partition("/")[0] for name in names} == {*PACKAGES, metadata}
        assert not [name for name in names if "/tests/" in name or "__pycache__" in name]


class TestMakefile:
    """How `make` chooses a Python where it cannot simply take the first."""

    def test_an_interpreter_that_fails_is_passed_over(self, tmp_path: Path) -> None:
        machine = _Machine(tmp_path)
        machine.program("python3.11", "exit 127")
        machine.program("python3", f'exec "{sys.executable}" "$@"')
        made = machine.make("venv")
        assert made.returncode == 0, made.stderr
        assert (machine.checkout / ".venv/bin/python").exists()

    def test_an_interpreter_without_ensurepip_is_named_with_what_to_install(self, tmp_path: Path) -> None:
        machine = _Machine(tmp_path)
        machine.program("python3", f'case "$*" in *ensurepip*) exit 1;; esac; exec "{sys.executable}" "$@"')
        made = machine.make("venv")
        assert made.returncode != 0
        assert f"apt install python3.{sys.version_info.minor}-venv" in made.stderr

    def test_no_interpreter_at_all_is_an_error_that_says_so(self, tmp_path: Path) -> None:
        made = _Machine(tmp_path).make("venv")
        assert made.returncode != 0
        assert "No Python from 3.11 to 3.14 that runs was found" in made.stderr

    def test_a_lock_with_an_address_stops_every_installation(self, tmp_path: Path) -> None:
        machine = _Machine(tmp_path)
        (machine.checkout / RUNTIME_LOCK).write_text("a @ https://example.invalid/a.whl\n", "utf-8")
        made = machine.make("guard-locks")
        assert made.returncode != 0
        assert "make lock" in made.stderr


class _Machine:
    """A Makefile and its locks, on a machine with a few tools and the programs that it is given."""

    def __init__(self, directory: Path) -> None:
        self.checkout = directory / "checkout"
        self.checkout.mkdir()
        for name in ("Makefile", RUNTIME_LOCK, DEV_LOCK):
            shutil.copy(ROOT / name, self.checkout)
        self._programs = directory / "bin"
        self._programs.mkdir()
        for tool in ("make", "sh", "cat", "cmp", "grep", "rm", "sed"):
            found = shutil.which(tool)
            assert found, f"{tool} is not installed"
            (self._programs / tool).symlink_to(found)

    def program(self, name: str, script: str) -> None:
        path = self._programs / name
        path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        path.chmod(0o755)

    def make(self, target: str) -> subprocess.CompletedProcess[str]:
        command = [str(self._programs / "make"), "-C", str(self.checkout), target]
        return subprocess.run(
            command,
            env={"PATH": str(self._programs)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def _lock_lines(lock: str) -> list[str]:
    text = (ROOT / lock).read_text("utf-8")
    return [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def _pins(lock: str) -> dict[str, str]:
    """What a lock installs on this machine, by name: markers that do not fit leave their line out."""
    environment = {name: str(value) for name, value in default_environment().items()}
    pins: dict[str, str] = {}
    for line in _lock_lines(lock):
        pin = Requirement(line.partition(" --hash")[0])
        if pin.marker is None or pin.marker.evaluate(environment):
            pins[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    return pins


def _unsatisfied(requirements: list[str], lock: str) -> list[str]:
    pins = _pins(lock)
    wanted = [Requirement(requirement) for requirement in requirements]
    return [str(one) for one in wanted if not one.specifier.contains(pins.get(canonicalize_name(one.name), "0"))]


def _short(contract: str) -> str:
    return contract.partition(":")[0]


def _lint_imports(copy: Path) -> subprocess.CompletedProcess[str]:
    command = "from importlinter.cli import lint_imports_command as run; run()"
    return _run("-c", command, "--config", str(ROOT / "pyproject.toml"), "--no-cache", cwd=copy)


def _run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    # The environment decides where lines are broken, and which modules are found first.
    environment = {**os.environ, "COLUMNS": "300", "NO_COLOR": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
