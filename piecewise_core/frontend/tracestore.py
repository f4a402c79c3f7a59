"""Traces in the compile store: a start that finds one does without the tracer.

The key says what a call looks like, for which sizes, and of which shape the model's tensors are;
that finds a trace, and does not make it right. What the trace took for granted of the model is
checked in full, as for a bundle, before it is taken.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed
from torch.nn.parameter import is_lazy

from piecewise_core.config import Config
from piecewise_core.errors import PiecewiseError, StoreError
from piecewise_core.graph.call import constants
from piecewise_core.graph.codedigests import function_digest
from piecewise_core.graph.opfacts import UNKNOWN
from piecewise_core.graph.savable import NotSavable, place_of
from piecewise_core.graph.saved.calls import write_structure
from piecewise_core.graph.saved.traces import SavedTrace, read_trace, write_trace
from piecewise_core.graph.structure import Structure
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import Box
from piecewise_core.runtime.closure_walk import roots_of
from piecewise_core.runtime.parameters import Parameters
from piecewise_core.runtime.weight_paths import find_held, write_held
from piecewise_core.store.entry import Entry, Ticket, make_entry, make_ticket, now
from piecewise_core.store.machine import machine_factors
from piecewise_core.store.protocol import Store
from piecewise_core.store.sources import core_digest
from piecewise_core.torch_compat.around import in_force
from piecewise_core.torch_compat.dynamo import dynamo_config, fx_config
from piecewise_core.torch_compat.settings import settings_text
from piecewise_core.torch_compat.state import switches_digest, torch_state

__all__ = ["TraceStore"]

logger = logging.getLogger(__name__)


class TraceStore:
    """Finds and keeps the traces of one callable.

    ``store``: None finds and keeps nothing. ``fn``: may be set anew. ``run``: tells this run's
    entries from others'.
    """

    def __init__(
        self, store: Store | None, fn: Callable[..., Any], config: Config, run: str
    ) -> None:
        self._store = store
        self.fn = fn
        self._config = config
        self._run = run

    def ticket(self, structure: Structure, cell: Box) -> Ticket | None:
        """What a trace of ``cell`` is kept under, at whatever sizes; None where it cannot be."""
        if self._store is None:
            return None
        unknown = in_force()
        if unknown is not None:
            logger.info("no trace is kept of what is called inside %s", unknown)
            return None
        try:
            fixed = _fixed(self.fn, self._config, structure)
        except NotSavable as why:
            logger.info("traces are not kept in the compile store: %s", why)
            return None
        factors = {**fixed, "trace.sizes": str(cell)}
        return make_ticket(factors, cell, f"trace of {fixed['trace.of']}")

    def find(
        self, ticket: Ticket | None, structure: Structure, parameters: Parameters
    ) -> Traced | None:
        """The trace of ``ticket``, its tensors bound in ``parameters``; None when there is none.

        One that does not hold for this model is none.
        """
        entry = None if ticket is None or self._store is None else self._store.get(ticket.key)
        if entry is None:
            return None
        try:
            return self._bind(entry, structure, parameters)
        except (PiecewiseError, NotSavable) as why:
            logger.info("%s is traced again: %s", entry.manifest.label, why)
        except Exception as error:
            logger.warning(
                "%s of the compile store cannot be read (%s: %s); it is traced again",
                entry.manifest.label,
                type(error).__name__,
                error,
            )
        return None

    def _bind(self, entry: Entry, structure: Structure, parameters: Parameters) -> Traced:
        data = json.loads(entry.artifact)
        held = find_held(data["held"], roots_of(self.fn))
        known = parameters.tensors
        if any(a is not b for a, b in zip(known, held, strict=False)) or len(held) < len(known):
            raise StoreError("other tensors were bound before")
        saved = SavedTrace(data["trace"], base64.b64decode(data["constants"]))
        devices = (*(t.device for t in held), *(leaf.device for leaf in structure.tensors))
        traced = read_trace(saved, next(iter(devices), None))
        if traced.assumptions is None:
            raise StoreError("it does not say what it took for granted")
        wrong = next(iter(traced.assumptions.broken(self.fn, constants(structure))), None)
        if wrong is not None:
            raise StoreError(wrong)
        for tensor in held[len(known) :]:
            parameters.add(tensor)
        return traced

    def entry(
        self, ticket: Ticket | None, traced: Traced, parameters: Parameters, seconds: float
    ) -> Entry | None:
        """A trace just made as an entry of the store; None where it cannot be one.

        ``seconds``: what the trace took. Call before the graph is split, which changes it.
        """
        if ticket is None or self._store is None or not self._store.writable:
            return None
        try:
            saved = write_trace(traced)
            _refuse_unknown(traced)
            data = {
                "trace": saved.text,
                "constants": base64.b64encode(saved.constants).decode(),
                "held": write_held(parameters.tensors, roots_of(self.fn)),
            }
        except NotSavable as why:
            logger.info("%s is not kept in the compile store: %s", ticket.label, why)
            return None
        return make_entry(
            ticket,
            json.dumps(data, separators=(",", ":")).encode(),
            serves=ticket.box,
            adaptor="tracer",
            seconds=seconds,
            made=now(),
            run=self._run,
        )

    def keep(self, entry: Entry | None) -> None:
        """Put an entry into the store, in place of one that did not hold."""
        if entry is None or self._store is None:
            return
        try:
            self._store.put(entry, replace=True)
        except StoreError as error:
            label = entry.manifest.label
            logger.warning("%s is not kept in the compile store: %s", label, error)


def _fixed(fn: Callable[..., Any], config: Config, structure: Structure) -> dict[str, str]:
    """The factors of every trace of ``fn``. Raises NotSavable."""
    owner = getattr(fn, "__self__", None)
    named = type(owner) if isinstance(owner, torch.nn.Module) else fn
    of = place_of(named) or f"{named.__module__}.{getattr(named, '__qualname__', named)}"
    modules = [m for root in roots_of(fn) for m in root.modules()]
    tensors = [t for m in modules for t in (*m.parameters(False), *m.buffers(False))]
    if any(map(is_lazy, tensors)):
        raise NotSavable("the model has parameters that get their shape at its first call")
    layouts = (f"{t.dtype} {t.device.type} {tuple(t.shape)} {t.stride()}" for t in tensors)
    kinds = (f"{type(m).__module__}.{type(m).__qualname__} {m.training}" for m in modules)
    return {
        "core": core_digest(),
        "torch": f"{torch.__version__} {torch.version.git_version or ''}".rstrip(),
        "python": sys.version.split()[0],
        "trace.of": of,
        "trace.code": function_digest(fn),
        "trace.call": _digest([json.dumps(write_structure(structure), sort_keys=True)]),
        "trace.modules": _digest(kinds),
        "trace.tensors": _digest(layouts),
        "trace.dims": str(structure.dims),
        "trace.cuts": str(config.legal_cuts),
        "trace.around": _digest(_around()),
        **machine_factors(),
    }


def _around() -> Iterator[str]:
    """What holds for the whole process: traces made where it differs lie side by side."""
    for name, value in torch_state().items():
        yield f"{name}={value}"
    yield switches_digest()
    for config in (dynamo_config, fx_config):
        yield settings_text(config)
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        yield f"rank {distributed.get_rank()} of {distributed.get_world_size()}"


def _refuse_unknown(traced: Traced) -> None:
    """Raise NotSavable for an operator that may say something else in the next process."""
    ops = traced.assumptions.ops if traced.assumptions is not None else {}
    native = [name for name, digest in ops.items() if digest == UNKNOWN]
    if native:
        raise NotSavable(f"what operator {native[0]} says of its results is native code")


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
