"""``piecewise new-platform``: a platform's package, ready to be filled in."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from piecewise_core.cli.device_facts import DeviceFacts, look
from piecewise_core.cli.project import checked_name, project_values, put, rendered

__all__ = ["new_platform"]

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_DEVICE_TYPE = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = {
    **dict.fromkeys(("cpu", "cuda", "rocm"), "is a platform of piecewise's own"),
    "core": "would make piecewise-core, which is piecewise itself",
}
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
    device does better. Where --device-module can be imported here, it is looked at, and only what
    it has is written.
    """
    values = _values(checked_name(name, "platform", _TAKEN), device_module, device_type)
    project = put(directory / values["distribution"], render(values))
    if values["device"].why:
        click.echo(f"{values['device'].why}\n")
    click.echo(f"{project}: platform {name}, ready to install and test:\n")
    click.echo(f"  cd {project}\n  pip install -e '.[test]'\n  piecewise doctor\n  pytest")


def render(values: Mapping[str, Any]) -> dict[str, str]:
    """The project's files, by relative path, for what ``_values`` gave."""
    own = "driver.py" if values["module"] and values["device"].streams else "runtime.py"
    return rendered("platform", {**_FILES, f"src/{{package}}/{own}": own}, values)


def _values(name: str, module: str | None, device_type: str | None) -> dict[str, Any]:
    """What the templates need."""
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
    attribute = own_type if module and len(parts) == 1 else None
    return {
        **project_values(name),
        "module": module,
        "device": look(module, attribute, kind) if module else DeviceFacts(False, False, False),
        "needs": _distribution(module),
        "attribute": attribute,
        "device_type": kind,
        "api": API_VERSION,
    }


def _distribution(module: str | None) -> str | None:
    """The distribution that brings ``module``; as it is probably called, if it is not here."""
    from importlib.metadata import packages_distributions

    top = (module or "").partition(".")[0]
    if top in ("", "torch", "piecewise_core"):
        return None
    return next(iter(packages_distributions().get(top, ())), top.replace("_", "-"))
