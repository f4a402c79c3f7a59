"""Bind a bundle to a live model: no tracer, no compiler, and no doubt that it fits."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from piecewise_core.bundle.content import Content, SavedForm, read_content
from piecewise_core.config import Config
from piecewise_core.config_store import Trust
from piecewise_core.errors import BundleMismatch, ConfigError, StoreError
from piecewise_core.frontend.building import between_builds
from piecewise_core.frontend.precompile import compile_all
from piecewise_core.frontend.session import Session
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.telling import session_of
from piecewise_core.graph.call import constants
from piecewise_core.graph.garbage import no_collection
from piecewise_core.graph.savable import NotSavable
from piecewise_core.graph.saved.calls import read_structure
from piecewise_core.graph.saved.traces import read_trace
from piecewise_core.graph.signatures import signature_of
from piecewise_core.graph.structure import Structure
from piecewise_core.graph.trace import Traced
from piecewise_core.runtime.closure_walk import roots_of
from piecewise_core.runtime.dict_guard import bring
from piecewise_core.runtime.weight_paths import find_held
from piecewise_core.store.memory import MemoryStore
from piecewise_core.store.signing import signer_of

__all__ = ["bind", "check_surroundings", "opened"]

_MOST_NAMED = 5


def bind(path: Path, content: Content, fn: Callable[..., Any], setup: Setup) -> Session:
    """A session of ``fn`` that serves what the bundle holds.

    Raises BundleMismatch naming what does not fit, and StoreError for a bundle that cannot be
    read.
    """
    check_surroundings(path, content.about.factors, setup.surroundings())
    with no_collection():
        return _bind(path, content, fn, setup)


def _bind(path: Path, content: Content, fn: Callable[..., Any], setup: Setup) -> Session:
    device = _device(fn)
    try:
        forms = [_read(form, fn, setup, device) for form in content.forms]
    except (BundleMismatch, NotSavable) as error:
        why = f"{path}: {error}; {_ADVICE}"
        raise BundleMismatch(why).having(path=str(path), differs=(str(error),)) from error
    except (ArithmeticError, AttributeError, ImportError, LookupError, TypeError, ValueError) as e:
        raise BundleMismatch(
            f"{path}: what it refers to is not here ({type(e).__name__}: {e}); {_ADVICE}"
        ).having(path=str(path), differs=(str(e),)) from e
    broken = (
        traced.assumptions.broken(fn, constants(structure))
        for structure, _, traces in forms
        for traced in traces
        if traced.assumptions is not None
    )
    _refuse(path, "the model is not the one it was made with", itertools.chain(*broken))
    bring(content.native)
    store = MemoryStore(content.entries, writable=False, name=f"bundle {path}")
    session = session_of(fn, setup, store)
    for structure, held, traces in forms:
        _adopt(session, structure, held, traces)
    for _ in compile_all(session.forms):  # loads; only what the bundle left out is compiled
        pass
    return session


def _adopt(
    session: Session,
    structure: Structure,
    bound: Iterable[torch.Tensor],
    traces: Iterable[Traced],
) -> None:
    """Have ``session`` take a form that another process traced, in place of tracing it here.

    ``bound``: the tensors that the model holds, in the order in which they were bound there.
    """
    shared, forms = session.shared, session.forms
    with between_builds(session.lock):
        form = forms.begin(structure)
        if shared.memory is not None:
            shared.memory.open_pool()
        for tensor in bound:
            form.model.parameters.add(tensor)
        for traced in traces:
            form.admit(form.regions.take(traced))
        if not forms.called:
            forms.last = form


def opened(
    path: Path, trust: Trust | None, sign_key: str | os.PathLike[str] | None
) -> tuple[Content, Config]:
    """What a bundle holds, and the config that it was made with.

    Whose code is believed is never said by the bundle: by the variables, else by the arguments.
    Raises ConfigError, SignatureRefused, and StoreError where this version does not know it.
    """
    believed = ("trust", "sign_key", "cache_url")
    variables = [f"PIECEWISE_{name.upper()}" for name in believed]
    environ = {name: os.environ[name] for name in variables if name in os.environ}
    given = Config(trust=trust or "own", sign_key=sign_key).with_env(environ)
    content = read_content(path, signer_of(given.trust, given.sign_key))
    try:
        config = Config.from_json(content.about.config)
    except ConfigError as error:
        raise StoreError(f"{path} was made by another version: {error}") from error
    return content, config.replace(**{name: getattr(given, name) for name in believed})


_ADVICE = 'load it for what it was made with, or pass on_mismatch="recompile"'


def check_surroundings(path: Path, made: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise BundleMismatch naming every factor that differs."""
    names = sorted({*made, *here})
    lines = (
        f"{name} is {here.get(name, 'not there')}, and was {made.get(name, 'not there')}"
        for name in names
        if made.get(name) != here.get(name)
    )
    _refuse(path, "its code was compiled for another environment", lines)


def _refuse(path: Path, what: str, lines: Iterator[str]) -> None:
    found = list(dict.fromkeys(lines))
    if found:
        more = len(found) - _MOST_NAMED
        listed = "".join(f"\n  - {line}" for line in found[:_MOST_NAMED])
        rest = f"\n  - and {more} more" if more > 0 else ""
        why = f"{path}: {what}:{listed}{rest}\n{_ADVICE[0].upper()}{_ADVICE[1:]}"
        raise BundleMismatch(why).having(path=str(path), differs=tuple(found))


def _read(
    form: SavedForm, fn: Callable[..., Any], setup: Setup, device: torch.device | None
) -> tuple[Structure, list[torch.Tensor], list[Traced]]:
    """A form's structure, the tensors that it binds, its traces."""
    devices = {} if device is None else {device.type: device}
    return (
        read_structure(form.structure, signature_of(fn), setup.config.dims, devices),
        find_held(form.held, roots_of(fn)),
        [read_trace(trace, device) for trace in form.traces],
    )


def _device(fn: Callable[..., Any]) -> torch.device | None:
    """The one device that the tensors of ``fn`` are on; None when it holds none."""
    tensors = (t for root in roots_of(fn) for t in (*root.parameters(), *root.buffers()))
    found = {t.device for t in tensors}
    if len(found) > 1:
        raise StoreError(f"the model's tensors are on several devices: {sorted(map(str, found))}")
    return next(iter(found), None)
