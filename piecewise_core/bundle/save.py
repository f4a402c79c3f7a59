"""Write what a model compiled into one file."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from piecewise_core.bundle.content import About, Content, SavedForm, write_content
from piecewise_core.errors import NotTraced, StoreError
from piecewise_core.frontend.form import Form
from piecewise_core.frontend.precompile import compile_all
from piecewise_core.frontend.session import Session
from piecewise_core.graph.savable import NotSavable, place_of
from piecewise_core.graph.saved.calls import write_structure
from piecewise_core.graph.saved.traces import write_trace
from piecewise_core.runtime.closure_walk import roots_of
from piecewise_core.runtime.dict_guard import take_along
from piecewise_core.runtime.weight_paths import write_held
from piecewise_core.store.entry import Entry

__all__ = ["SaveReport", "save"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveReport:
    """``path``, ``bytes``: of the file. ``regions``, ``pieces``: in it. ``left_out``: pieces whose
    code cannot be kept, with the reason: they are compiled where the bundle is loaded.
    """

    path: Path
    bytes: int
    regions: int
    pieces: int
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        head = (
            f"bundle {self.path}: {self.bytes} bytes, {self.regions} regions, "
            f"{self.pieces} compiled pieces"
        )
        return "\n".join([head, *(f"  left out: {note}" for note in self.left_out)])


def save(session: Session, path: Path) -> SaveReport:
    """Compile what is not compiled yet, then write everything but the weights to ``path``.

    Raises NotTraced before a first call or warm-up, and StoreError for what no file can hold.
    """
    if not session.forms:
        raise NotTraced("nothing to save yet; call the model once, or warmup(), before save()")
    for _ in compile_all(session.forms):
        pass
    left_out: list[str] = []
    entries = {entry.manifest.key: entry for entry in _entries(session, left_out)}
    try:
        content = Content(
            _about(session, tuple(left_out)),
            tuple(_form(session, form) for form in session.forms),
            (*entries.values(), *(e for f in session.forms for e in f.exactness.kept.values())),
            take_along(),
        )
    except NotSavable as error:
        raise StoreError(f"the model cannot be saved: it depends on {error}") from error
    write_content(path, content, session.setup.signer())
    return SaveReport(
        path, path.stat().st_size, len(session.regions), len(entries), tuple(left_out)
    )


def _form(session: Session, form: Form) -> SavedForm:
    return SavedForm(
        write_structure(form.structure),
        write_held(form.model.parameters.tensors, roots_of(session.fn)),
        tuple(write_trace(region.program.traced) for region in form.regions),
    )


def _entries(session: Session, left_out: list[str]) -> Iterator[Entry]:
    for artifact in session.scheduler.artifacts:
        try:
            yield session.scheduler.entry(artifact)
        except StoreError as error:
            left_out.append(f"{artifact.owner} for {artifact.box}: {error}")


def _about(session: Session, left_out: tuple[str, ...]) -> About:
    owner = getattr(session.fn, "__self__", None)
    named = type(owner) if owner is not None else session.fn
    setup = session.setup
    return About(
        model=place_of(named) or str(getattr(named, "__qualname__", named)),
        device=setup.selected.info.device_type,
        # Whose code is believed, and from where, is for whoever loads it to say.
        config=session.config.replace(trust="own", sign_key=None, cache_url=None).to_json(),
        platform=setup.selected.info.name,
        factors=setup.surroundings(),
        made=int(time.time()),
        left_out=left_out,
    )
