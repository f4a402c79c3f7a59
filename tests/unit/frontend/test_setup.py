"""What is chosen before the first call: platform, compiler, config with the environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.errors import ConfigError, NoPlatform, PlatformError, PluginError
from piecewise_core.protocols import Capabilities


@pytest.fixture(autouse=True)
def _inference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PIECEWISE_PLATFORM", raising=False)
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


class Runtime:
    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream):
        return nullcontext()

    def synchronize(self): ...


class Own(EagerCompiler):
    name = "own"


def platform(**changes) -> SimpleNamespace:
    place = {
        "device": Runtime(),
        "graphs": None,
        "compiler": Own(),
        "capabilities": Capabilities(),
        **changes,
    }
    return SimpleNamespace(**place)


def chosen(config: pw.Config, place=None) -> str:
    return pw.compile(lambda x: x * 2, config, place)._pw_session.setup.compiler.name


def test_the_platforms_own_compiler_is_the_default():
    assert chosen(pw.Config(), platform()) == "own"
    assert chosen(pw.Config(compiler="own"), platform()) == "own"
    assert chosen(pw.Config(), "cpu") == "inductor"


def test_eager_and_inductor_are_there_on_every_platform():
    assert chosen(pw.Config(compiler="eager"), platform()) == "eager"
    assert chosen(pw.Config(compiler="inductor"), platform()) == "inductor"


def test_a_platforms_own_inductor_comes_before_cores():
    class Inductor(EagerCompiler):
        name = "inductor"

    place = platform(compiler=Inductor())
    fast = pw.compile(lambda x: x, pw.Config(compiler="inductor"), place)
    assert fast._pw_session.setup.compiler.of is place.compiler


def test_an_unknown_compiler_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"inducter.*inductor"):
        chosen(pw.Config(compiler="inducter"), platform())


def test_the_resolved_compiler_is_in_the_sessions_config():
    fast = pw.compile(lambda x: x * 2, pw.Config(), platform())
    assert fast._pw_session.config.compiler == "own"


def test_environment_variables_override_the_config(monkeypatch):
    monkeypatch.setenv("PIECEWISE_COMPILER", "eager")
    monkeypatch.setenv("PIECEWISE_CHECK", "strict")
    fast = pw.compile(lambda x: x * 2, pw.Config(compiler="own"), platform())
    assert fast._pw_session.config.compiler == "eager"
    assert fast._pw_session.config.check == "strict"


def test_a_platform_that_nobody_brings_is_refused_naming_it():
    """FAULTS 37."""
    with pytest.raises(NoPlatform, match="nosuch"):
        pw.compile(nn.Linear(2, 2), pw.Config(compiler="eager"), "nosuch")


def test_a_platform_asked_for_by_variable_is_never_replaced_by_another(monkeypatch):
    """FAULTS 37."""
    monkeypatch.setenv("PIECEWISE_PLATFORM", "nosuch")
    with pytest.raises(NoPlatform, match="PIECEWISE_PLATFORM=nosuch"):
        pw.compile(nn.Linear(2, 2), pw.Config(compiler="eager"))


def test_a_platform_for_another_device_than_the_models_is_refused():
    """FAULTS 37."""
    with pytest.raises(PlatformError, match="cpu"):
        pw.compile(nn.Linear(2, 2), pw.Config(), platform(device_type="acme"))


def test_an_object_that_is_no_platform_is_refused_listing_what_is_missing():
    """FAULTS 37."""
    with pytest.raises(PluginError, match="capabilities"):
        pw.compile(nn.Linear(2, 2), pw.Config(), SimpleNamespace(device=Runtime(), graphs=None))


def test_a_model_on_two_kinds_of_device_is_refused_naming_them():
    model = nn.Linear(2, 2)
    model.extra = nn.Parameter(torch.empty(2, device="meta"))
    pw.compile(model, pw.Config(compiler="eager"))  # meta holds nothing, so it does not count
    fake = SimpleNamespace(type="acme")

    class Elsewhere(nn.Module):
        def parameters(self, recurse=True):
            yield from (SimpleNamespace(device=fake), torch.empty(1))

        def forward(self, x):
            return x

    with pytest.raises(ConfigError, match="acme, cpu"):
        pw.compile(Elsewhere(), pw.Config(compiler="eager"))
