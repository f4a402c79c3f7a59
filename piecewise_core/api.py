"""``pw.compile``: from a model or function and a Config to something that runs compiled."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import torch

from piecewise_core.bundle.load import bind, opened
from piecewise_core.compiled import CompiledFunction
from piecewise_core.compiled_module import CompiledModule, compiled_module
from piecewise_core.config import Config
from piecewise_core.config_store import Trust
from piecewise_core.errors import BundleMismatch, ConfigError, UnsupportedModule
from piecewise_core.frontend.graphpool import Pool
from piecewise_core.frontend.recorded import RecordedFunction
from piecewise_core.frontend.session import Session
from piecewise_core.frontend.setup import prepare
from piecewise_core.frontend.telling import recorded_of, session_of
from piecewise_core.graph.names import Matcher
from piecewise_core.protocols import Platform
from piecewise_core.runtime.parameters import roots_of

__all__ = ["compile", "load", "record"]


class Decorator(Protocol):
    """``pw.compile`` without a model."""

    @overload
    def __call__(self, model: torch.nn.Module) -> CompiledModule: ...

    @overload
    def __call__(self, model: Callable[..., Any]) -> CompiledFunction: ...


@overload
def compile(
    model: torch.nn.Module,
    config: Config | None = None,
    platform: str | Platform | None = None,
    *,
    pool: Pool | None = None,
) -> CompiledModule: ...


@overload
def compile(
    model: Callable[..., Any],
    config: Config | None = None,
    platform: str | Platform | None = None,
    *,
    pool: Pool | None = None,
) -> CompiledFunction: ...


@overload
def compile(
    model: None = None,
    config: Config | None = None,
    platform: str | Platform | None = None,
    *,
    pool: Pool | None = None,
) -> Decorator: ...


def compile(
    model: Any = None,
    config: Config | None = None,
    platform: str | Platform | None = None,
    *,
    pool: Pool | None = None,
) -> Any:
    """Compile ``model`` in pieces, per range of sizes.

    ``model``: an nn.Module, which gives a module of the same kind that shares its state, or a
    function. Left out, the result is a decorator. ``config``: what varies, where to cut, what to
    compile; environment variables ``PIECEWISE_<FIELD>`` override it. ``platform``: a name, a
    Platform, or None for the best one installed for the model's device. ``pool``: graph memory to
    share with other models; results are copies then. The first call traces.

    Raises ConfigError and its kinds, PlatformError and its kinds, UnsupportedModule.
    """
    if model is None:
        return functools.partial(compile, config=config, platform=platform, pool=pool)
    if config is not None and not isinstance(config, Config):
        raise ConfigError(
            f"config is a {type(config).__name__}; pass pw.Config(...), for example "
            "pw.Config(splitting_ops=(...), dynamic={...})"
        )
    if not callable(model):
        raise ConfigError(
            f"cannot compile a {type(model).__name__}; pass a module or function"
            f"{' (@classmethod goes above @pw.compile)' if isinstance(model, classmethod) else ''}"
        )
    _refuse_exported(model)
    _check_pool(pool)
    if inspect.iscoroutinefunction(model):
        raise ConfigError(
            f"cannot compile the coroutine function {model.__name__}: a traced call waits for "
            "nothing; compile the function or module that it calls"
        )
    config = (config or Config()).with_env()

    def make(fn: Callable[..., Any]) -> Session:
        return session_of(fn, prepare(config, platform, _device_type(fn), pool))

    if isinstance(model, torch.nn.Module):
        return compiled_module(model, make)
    Matcher(config.splitting_ops)  # a misspelt name is an error here, not at the first call
    return CompiledFunction(model, make)


@overload
def load(
    path: str | os.PathLike[str],
    model: torch.nn.Module,
    platform: str | Platform | None = None,
    *,
    on_mismatch: Literal["error", "recompile"] = "error",
    pool: Pool | None = None,
    trust: Trust | None = None,
    sign_key: str | os.PathLike[str] | None = None,
) -> CompiledModule: ...


@overload
def load(
    path: str | os.PathLike[str],
    model: Callable[..., Any],
    platform: str | Platform | None = None,
    *,
    on_mismatch: Literal["error", "recompile"] = "error",
    pool: Pool | None = None,
    trust: Trust | None = None,
    sign_key: str | os.PathLike[str] | None = None,
) -> CompiledFunction: ...


def load(
    path: str | os.PathLike[str],
    model: Any,
    platform: str | Platform | None = None,
    *,
    on_mismatch: Literal["error", "recompile"] = "error",
    pool: Pool | None = None,
    trust: Trust | None = None,
    sign_key: str | os.PathLike[str] | None = None,
) -> Any:
    """Bind the bundle at ``path``, which ``compiled.save`` wrote, to a live ``model``.

    ``model``: a module or function like the one that was compiled, with its weights; the bundle has
    none. ``platform``: None takes the one that the bundle was made with. Nothing is traced, and
    nothing compiled but pieces that the bundle says it left out. With ``on_mismatch="recompile"``
    a bundle that does not fit costs a warning, and the model is compiled with its config.
    ``pool``: as for ``compile``; no bundle has one.

    A bundle holds programs: load only those that you trust. ``trust``, ``sign_key``: as in Config.

    Raises BundleMismatch naming what does not fit, StoreError for a file that is no bundle or is
    damaged, SignatureRefused, PlatformError and its kinds, and UnsupportedModule.
    """
    if on_mismatch not in ("error", "recompile"):
        raise ConfigError(f'load(on_mismatch={on_mismatch!r}): use "error" or "recompile"')
    _check_pool(pool)
    if not callable(model):
        raise ConfigError(f"cannot bind a bundle to a {type(model).__name__}")
    content, config = opened(file := Path(path), trust, sign_key)
    chosen = content.about.platform if platform is None else platform

    def make(fn: Callable[..., Any]) -> Session:
        return bind(file, content, fn, prepare(config, chosen, _device_type(fn), pool))

    call = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        session = make(call)
    except BundleMismatch as error:
        if on_mismatch == "error":
            raise
        warnings.warn(f"compiled anew: {error}", RuntimeWarning, stacklevel=2)
        return compile(model, config, platform, pool=pool)

    def of(fn: Callable[..., Any]) -> Session:
        return session if fn == call else make(fn)  # a copy's own

    if isinstance(model, torch.nn.Module):
        return compiled_module(model, of)
    return CompiledFunction(model, of)


def record(
    fn: Callable[..., Any],
    config: Config | None = None,
    platform: str | Platform | None = None,
    *,
    pool: Pool | None = None,
) -> RecordedFunction:
    """Capture ``fn`` as static graphs by running it once per capture size; no tracer, no compiler.

    ``config``: ``dynamic``, ``capture_sizes``, ``splitting_ops``, ``padding``, ``inputs``,
    ``clone_outputs`` and ``memory_limit`` count; ranges and compiler settings do not. Sizes that
    are not captured run as they are. ``pool``: as for ``compile``. Raises ConfigError where the
    platform has no static graphs.
    """
    if not callable(fn):
        raise ConfigError(f"cannot record a {type(fn).__name__}; pass a function or module")
    _refuse_exported(fn)
    _check_pool(pool)
    module = fn if isinstance(fn, torch.nn.Module) else None
    call = fn if module is None else module.forward
    settings = (config or Config()).with_env()
    return recorded_of(call, prepare(settings, platform, _device_type(fn), pool), module)


def _refuse_exported(model: Any) -> None:
    if isinstance(model, torch.export.ExportedProgram):
        raise UnsupportedModule(
            "an ExportedProgram is no module that can be called; compile its .module(), with the "
            "sizes that were dynamic at export in Config.dynamic"
        )


def _check_pool(pool: object) -> None:
    if pool is not None and not isinstance(pool, Pool):
        raise ConfigError(
            f"pool: {type(pool).__name__} is no pool; make one by pw.Pool(), and give it to every "
            "model that shares its memory"
        )


def _device_type(fn: Callable[..., Any]) -> str | None:
    """The one device type of the tensors that ``fn`` holds; None when it holds none."""
    found = {
        tensor.device.type
        for root in roots_of(fn)
        for tensor in (*root.parameters(), *root.buffers())
    } - {"meta"}
    if len(found) > 1:
        raise ConfigError(
            f"the model's tensors are on several device types ({', '.join(sorted(found))}); move "
            "it to one, or compile the submodule that is on one"
        )
    return next(iter(found), None)
