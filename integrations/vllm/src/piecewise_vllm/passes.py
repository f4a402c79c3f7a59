"""The passes over pieces on a CPU: the user's own, as vLLM's compiler there has no others."""

from typing import Any

from vllm.compilation.passes.inductor_pass import InductorPass, get_pass_context
from vllm.compilation.passes.pass_manager import PostGradPassManager

__all__ = ["UserPasses"]


class UserPasses(PostGradPassManager):  # type: ignore[misc]
    """Runs what was added. vLLM's own list names operators that its CPU build lacks."""

    def configure(self, config: Any) -> None:
        self.pass_config = config.compilation_config.pass_config

    def __call__(self, graph: Any) -> None:
        for each in self.passes:
            if each.is_applicable_for_range(get_pass_context().compile_range):
                each(graph)

    def uuid(self) -> str:
        within = str(get_pass_context().compile_range) if self.passes else ""
        of = [(type(each).__qualname__, each.uuid()) for each in self.passes]
        return str(InductorPass.hash_dict({"in": within, "of": of}))
