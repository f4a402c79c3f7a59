"""``piecewise new-platform``: a platform's package, ready to be filled in."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

__all__ = ["new_platform"]

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_DEVICE_TYPE = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = {
    **dict.fromkeys(("cpu", "cuda", "rocm"), "is a platform of piecewise's own"),
    "core": "would make piecewise-core, which is piecewise itself",
}
_TEMPLATES = Path(__file__).parent / "templates" / "platform"

_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    ".github/workflows/conformance.yml": "ci.yml",
    "src/{package}/__init__.py": "init.py",
    "src/{package}/plugin.py": "plugin.py",
    "src/{package}/platform.py": "platform.py",
    "src/{package}/compiler.py": "compiler.py",
    "tests/test_conformance.py": "test_conformance.py",
    "tests/xfails.txt": "xfails.txt",
}
"""Path in the new project -> template."""


@click.command("new-platform")
@click.argument("name")
@click.option(
    "--device-module",
    metavar="MODULE",
    help="The torch module of a device with CUDA-style graphs: torch_acme, torch.xpu.",
)
@click.option(
    "--device-type",
    metavar="TYPE",
    help="Torch's name of the device. Default: the module's own name, or cpu without one.",
)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where to put the project. Default: here.",
)
def new_platform(
    name: str, device_module: str | None, device_type: str | None, directory: Path
) -> None:
    """Write the package of a platform called NAME: piecewise-NAME, with the conformance tests.

    As generated it is a working platform: install it and run its tests, then fill in what your
    device does better.
    """
    values = _values(_checked_name(name), device_module, device_type)
    project = directory / values["distribution"]
    if project.exists():
        raise click.ClickException(
            f"{project} exists already; remove it, or choose another --directory"
        )
    try:
        _write(project, render(values))
    except OSError as error:
        raise click.ClickException(
            f"cannot write {project}: {error.strerror or error}; choose another --directory"
        ) from error
    click.echo(f"{project}: platform {name}, ready to install and test:\n")
    click.echo(f"  cd {project}\n  pip install -e '.[test]'\n  piecewise doctor\n  pytest")


def render(values: Mapping[str, Any]) -> dict[str, str]:
    """The project's files, by relative path, for what ``_values`` gave."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(_TEMPLATES)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    own = "driver.py" if values["module"] else "runtime.py"
    files = {**_FILES, f"src/{{package}}/{own}": own}
    return {
        path.format(**values): environment.get_template(f"{template}.j2").render(values)
        for path, template in files.items()
    }


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise click.BadParameter(
            f"{name!r} is no name of a platform: use lower-case letters, digits and single "
            'hyphens, such as "acme" or "acme-x2"',
            param_hint="NAME",
        )
    if name in _TAKEN:
        raise click.BadParameter(f"{name!r} {_TAKEN[name]}; choose another", param_hint="NAME")
    return name


def _values(name: str, module: str | None, device_type: str | None) -> dict[str, Any]:
    """What the templates need."""
    from importlib.metadata import version

    from piecewise_core.protocols import API_VERSION

    parts = (module or "").split(".")
    if module is not None and (not _MODULE.fullmatch(module) or any(map(keyword.iskeyword, parts))):
        raise click.BadParameter(
            f"{module!r} is no module's name; give what you import, such as torch_acme",
            param_hint="--device-module",
        )
    own_type = parts[-1].removeprefix("torch_") if module else "cpu"
    kind = own_type if device_type is None else device_type
    if not _DEVICE_TYPE.fullmatch(kind):
        raise click.BadParameter(
            f"{kind!r} is no device type of torch's; name it, such as --device-type xpu",
            param_hint="--device-type",
        )
    package = "piecewise_" + name.replace("-", "_")
    core = version("piecewise-core").split(".")
    return {
        "name": name,
        "distribution": f"piecewise-{name.replace('_', '-')}",
        "package": package,
        "klass": "".join(part.capitalize() for part in re.split("[-_]", name)),
        "module": module,
        "attribute": own_type if module and len(parts) == 1 else None,
        "device_type": kind,
        "api": API_VERSION,
        "core": ".".join(core[:2]),
        "core_next": f"{core[0]}.{int(core[1]) + 1}",
    }


def _write(project: Path, files: Mapping[str, str]) -> None:
    """All files or none: an interrupted run leaves no half of a project."""
    project.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{project.name}-", dir=project.parent))
    try:
        for name, text in files.items():
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        draft.chmod(0o777 & ~_umask())
        draft.rename(project)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _umask() -> int:
    """The process's, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
