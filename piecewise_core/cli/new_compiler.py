"""``piecewise new-compiler``: the package of a compiler that comes without a platform."""

from __future__ import annotations

from pathlib import Path

import click

from piecewise_core.cli.project import checked_name, project_values, put, rendered

__all__ = ["new_compiler"]

_TAKEN = {
    **dict.fromkeys(("eager", "inductor"), "is a compiler of piecewise's own"),
    **dict.fromkeys(("cpu", "cuda", "rocm", "core"), "would make a package of piecewise's own"),
}

_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    "src/{package}/__init__.py": "init.py",
    "src/{package}/plugin.py": "plugin.py",
    "src/{package}/compiler.py": "compiler.py",
    "tests/test_conformance.py": "test_conformance.py",
}
"""Path in the new project -> template."""


@click.command("new-compiler")
@click.argument("name")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where to put the project. Default: here.",
)
def new_compiler(name: str, directory: Path) -> None:
    """Write the package of a compiler called NAME: piecewise-NAME, with the conformance tests.

    As generated it works, for Config(compiler=NAME) on a CPU: install it and run its tests, then
    translate what it is given.
    """
    values = project_values(checked_name(name, "compiler", _TAKEN))
    project = put(directory / values["distribution"], rendered("compiler", _FILES, values))
    click.echo(f"{project}: compiler {name}, ready to install and test:\n")
    click.echo(f"  cd {project}\n  pip install -e '.[test]'\n  pytest")
