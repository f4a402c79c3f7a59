"""A plugin's project on disk: its names, its files from templates, all of them or none."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

__all__ = ["checked_name", "project_values", "put", "rendered"]

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_TEMPLATES = Path(__file__).parent / "templates"


def checked_name(name: str, kind: str, taken: Mapping[str, str]) -> str:
    """``name``, if a ``kind`` may be called so. Raises BadParameter."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise click.BadParameter(
            f"{name!r} is no name of a {kind}: use lower-case letters, digits and single "
            'hyphens, such as "acme" or "acme-x2"',
            param_hint="NAME",
        )
    if name in taken:
        raise click.BadParameter(f"{name!r} {taken[name]}; choose another", param_hint="NAME")
    return name


def project_values(name: str) -> dict[str, Any]:
    """What every template needs."""
    core = version("piecewise-core").split(".")
    return {
        "name": name,
        "distribution": f"piecewise-{name.replace('_', '-')}",
        "package": "piecewise_" + name.replace("-", "_"),
        "klass": "".join(part.capitalize() for part in re.split("[-_]", name)),
        "core": ".".join(core[:2]),
        "core_next": f"{core[0]}.{int(core[1]) + 1}",
    }


def rendered(folder: str, files: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    """``files`` (path in the project -> template in ``folder``) as text, by relative path."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(_TEMPLATES / folder)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    return {
        path.format(**values): environment.get_template(f"{template}.j2").render(values)
        for path, template in files.items()
    }


def put(project: Path, files: Mapping[str, str]) -> Path:
    """Write ``files`` to ``project``, which must not exist yet. Raises ClickException."""
    if project.exists():
        raise click.ClickException(
            f"{project} exists already; remove it, or choose another --directory"
        )
    try:
        _write(project, files)
    except OSError as error:
        raise click.ClickException(
            f"cannot write {project}: {error.strerror or error}; choose another --directory"
        ) from error
    return project


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
