from __future__ import annotations

import subprocess
import sys

import torch

from piecewise_core.plugins import torchbuild
from piecewise_core.plugins.torchbuild import torch_build


def test_the_build_of_a_loaded_torch_is_its_own():
    build = torch_build()
    assert build["version"] == torch.__version__
    assert build.get("cuda") == torch.version.cuda
    assert build.get("hip") == torch.version.hip


def test_an_unloaded_torch_is_read_and_not_imported():
    script = (
        "import sys; from piecewise_core.plugins.torchbuild import torch_build\n"
        "print(torch_build()['version']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == torch.__version__


def fake_torch(tmp_path, monkeypatch, text: str | None):
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('broken')")
    if text is not None:
        (package / "version.py").write_text(text)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torchbuild.sys, "path_importer_cache", {})


def test_the_file_tells_what_a_torch_was_built_for(tmp_path, monkeypatch):
    text = (
        "__version__ = '2.11.0+rocm7'\ncuda: Optional[str] = None\nhip: Optional[str] = '7.0.1'\n"
    )
    fake_torch(tmp_path, monkeypatch, text)
    assert torch_build() == {"version": "2.11.0+rocm7", "hip": "7.0.1"}


def test_a_torch_without_a_version_file_is_none(tmp_path, monkeypatch):
    fake_torch(tmp_path, monkeypatch, None)
    assert torch_build() is None
