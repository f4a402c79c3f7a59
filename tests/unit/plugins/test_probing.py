from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from piecewise_core.errors import PluginError, ProbeFailed, ProbeInitialisedDevice
from piecewise_core.plugins.discovery import PluginEntry
from piecewise_core.plugins.probing import create_platform, run_probe
from piecewise_core.protocols import PlatformInfo, Probe

ORIGIN = PluginEntry("acme-plugin", "acme", "3.2", "acme")


def info(probe=lambda: Probe(True, "fine"), create=lambda: None, device="acme"):
    return PlatformInfo("acme", device, (1, 0), probe, create)


class FakeDevice:
    """A torch device module that can be initialised."""

    def __init__(self):
        self.ready = False

    def is_initialized(self):
        return self.ready

    def init(self):
        self.ready = True
        return Probe(True, "fine")


@pytest.fixture
def torch(monkeypatch):
    """Stands for an imported torch with the devices acme, cuda and cpu."""
    fake = SimpleNamespace(acme=FakeDevice(), cuda=FakeDevice(), cpu=FakeDevice())
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def test_an_answer_is_passed_on():
    probe = Probe(False, "no board", {"driver": "5"})
    assert run_probe(info(lambda: probe), ORIGIN) is probe


@pytest.mark.parametrize("raised", [RuntimeError("boom"), SystemExit(1)])
def test_a_probe_that_raises_is_named(raised):
    def probe():
        raise raised

    with pytest.raises(ProbeFailed, match=rf"acme-plugin 3\.2: .*'acme'.*{type(raised).__name__}"):
        run_probe(info(probe), ORIGIN)


def test_ctrl_c_in_a_probe_stays_ctrl_c():
    def probe():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_probe(info(probe), ORIGIN)


@pytest.mark.parametrize("answer", [True, None, ("yes", "reason")])
def test_an_answer_that_is_no_probe_is_refused(answer):
    with pytest.raises(PluginError, match=r"acme-plugin 3\.2: .*must return a Probe, got"):
        run_probe(info(lambda: answer), ORIGIN)


@pytest.mark.parametrize("device", ["acme", "cuda"])
def test_a_probe_that_initialises_a_device_is_refused(torch, device):
    with pytest.raises(ProbeInitialisedDevice, match=rf"acme-plugin 3\.2: .*initialised.*{device}"):
        run_probe(info(getattr(torch, device).init), ORIGIN)


def test_a_probe_that_imports_torch_to_initialise_a_device_is_refused(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)

    def probe():
        device = FakeDevice()
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(acme=device))
        return device.init()

    with pytest.raises(ProbeInitialisedDevice):
        run_probe(info(probe), ORIGIN)


def test_a_device_that_was_initialised_before_is_no_fault_of_the_probe(torch):
    torch.acme.ready = torch.cuda.ready = True
    assert run_probe(info(), ORIGIN).available


def test_a_cpu_has_nothing_to_initialise(torch):
    assert run_probe(info(torch.cpu.init, device="cpu"), ORIGIN).available


def test_a_device_that_torch_does_not_know_cannot_be_initialised(torch):
    assert run_probe(info(device="zeta"), ORIGIN).available


def test_a_platform_that_cannot_be_made_is_named():
    def create():
        raise ImportError("libacme.so.4: cannot open shared object file")

    with pytest.raises(PluginError, match=r"acme-plugin 3\.2: .*libacme\.so\.4"):
        create_platform(info(create=create), ORIGIN)


def test_a_platform_is_compared_with_the_protocols_when_it_is_made(platform):
    assert create_platform(info(create=lambda: platform), ORIGIN) is platform
    del platform.device
    with pytest.raises(PluginError, match=r"acme-plugin 3\.2: .*not a Platform"):
        create_platform(info(create=lambda: platform), ORIGIN)
