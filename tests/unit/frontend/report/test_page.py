"""The report as a page: one file that is valid, escapes all it shows, and sorts in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import PiecewiseError, ReportError
from piecewise_core.events import Event
from piecewise_core.frontend.facts import PieceFacts, RegionFacts
from piecewise_core.frontend.status import TargetStatus

_EMPTY = {"meta", "br"}
_NASTY = '<script>alert("x")</script>&\'</td>'


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(8, 8)

    def forward(self, x):
        return nn.functional.softmax(self.before(x).tanh(), -1)


class Page(HTMLParser):
    """Reads a page; fails on a tag that closes another than the last one opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.text: list[str] = []
        self._table = ""
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in _EMPTY:
            self.open.append(tag)
        if tag == "table":
            self._table = found.get("id") or ""
            self.rows[self._table] = []
        if tag == "tr":
            self.rows[self._table].append([])
        if tag == "td":
            self.rows[self._table][-1].append("")

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.text.append(data)
            if "td" in self.open:
                self.rows[self._table][-1][-1] += data

    def body(self, table: str) -> list[list[str]]:
        """The rows of a table, without its head."""
        return [row for row in self.rows[table] if row]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A model with static graphs and padded calls, after some traffic."""
    with torch.inference_mode():
        config = pw.Config(
            dynamic={0: {0: pw.Dim("rows", max=64)}},
            splitting_ops=("torch.nn.functional.softmax",),
            compile_ranges_endpoints=(16,),
            capture_sizes=(4, 8),
            padding="capture_sizes",
            compiler="eager",
            cache_dir=tmp_path_factory.mktemp("cache"),  # traces are kept, too
        )
        fast = pw.compile(nn.Sequential(Layer(), Layer(), Layer()), config, "cpu")
        fast.warmup(torch.randn(3, 8), progress=False)
        for rows in (3, 3, 8, 40):
            fast(torch.randn(rows, 8))
    return fast


@pytest.fixture(scope="module")
def page(served):
    return Page(served.explain().to_html())


def test_the_page_says_what_the_model_is_and_shows_every_piece_in_its_place(served, page):
    text = " ".join(page.text)
    assert "Sequential" in text
    assert "rows [1, 64]" in text
    steps = [attrs["data-g"] for tag, attrs in page.tags if tag == "li"]
    pieces = served.explain().regions[0].pieces
    assert len(steps) == len(pieces)
    assert steps[1] == steps[3] == steps[5]  # softmax
    assert steps[0] == steps[2] == steps[4] != steps[1]  # linear and tanh
    programs = {row[0]: row for row in page.body("programs")}
    assert programs[steps[0]][1] == "3"
    assert "shared by 2 more pieces" in programs[steps[0]][7]


def test_ranges_are_drawn_with_their_calls_and_padding(served, page):
    rows = page.body("targets")
    targets = served.explain().targets
    assert [row[4] for row in rows] == [str(target.hits) for target in targets]
    four = next(row for row in rows if row[:2] == ["replayed", "rows 4"])
    assert four[4:8:2] == ["2", "6"]
    assert four[7] == "2"  # three rows padded to four, twice
    assert any(attrs.get("title") == "25.0%" for _, attrs in page.tags)


def test_what_happened_stands_in_a_time_line(served, page):
    events = served.explain().events
    assert {event.kind for event in events} == {"traced", "compiled", "captured"}
    assert [row[1] for row in page.body("events")] == [e.kind for e in events]
    assert sum(tag == "i" and "s" in (a.get("title") or "") for tag, a in page.tags) >= len(events)


def test_the_page_asks_the_network_for_nothing(page):
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object")
        assert not {"src", "srcset"} & attrs.keys()
        assert (attrs.get("href") or "#").startswith("#")
    policy = next(a["content"] for tag, a in page.tags if "http-equiv" in a)
    assert "default-src 'none'" in policy


def test_names_may_hold_anything(served):
    piece = PieceFacts(
        f"region 0 piece {_NASTY}", "compilable", {_NASTY: 2}, _NASTY, (_NASTY,), "", _NASTY, ()
    )
    facts = replace(
        served.explain(),
        model=_NASTY,
        dims=(_NASTY,),
        regions=(RegionFacts(0, _NASTY, (), (piece,), (_NASTY,)),),
        targets=(TargetStatus("replayed", _NASTY, "failed", _NASTY, spans=((1, 2),)),),
        events=(Event("dropped", _NASTY, _NASTY, 0.1, _NASTY, 1.0),),
        dropped=(_NASTY,),
        platform=_NASTY,
        forms=(_NASTY, _NASTY),
    )
    made = facts.to_html()
    assert made.count("<script") == 1
    text = "".join(Page(made).text)
    assert text.count(_NASTY) >= 12


def test_a_model_that_was_not_called_and_one_without_dims_have_a_page_too():
    fast = pw.compile(Layer(), pw.Config(compiler="eager"), "cpu")
    assert "Nothing is traced yet" in " ".join(Page(fast.explain().to_html()).text)
    with torch.inference_mode():
        fast(torch.randn(2, 8))
    assert len(Page(fast.explain().to_html()).body("targets")) == 1


def test_a_page_of_96_distinct_pieces_with_many_sizes_stays_below_a_megabyte(served):
    facts = served.explain()
    first = facts.regions[0].pieces[0]
    code = first.code[0]
    pieces = tuple(
        replace(
            first,
            name=f"region 0 piece {n}",
            equals="",
            ops={f"torch.nn.functional.some_operator_{i}": 3 for i in range(30)},
            code=tuple(replace(code, sizes=f"rows {size}") for size in range(64)),
        )
        for n in range(96)
    )
    target = TargetStatus("replayed", "rows 4", "ready", spans=((4, 4),))
    event = Event("compiled", "region 0 piece 11", "[1, 64] x [1, 512]", 0.5, at=1.0)
    many = replace(
        facts,
        regions=(replace(facts.regions[0], pieces=pieces),),
        targets=(target,) * 1000,
        events=(event,) * 2000,
    )
    assert len(many.to_html().encode()) <= 1_000_000


def test_the_page_is_written_where_it_is_asked_for(served, tmp_path):
    made = served.explain().to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == made


@pytest.mark.parametrize("where", ["nowhere/report.html", "."])
def test_a_path_that_cannot_be_written_is_an_error_that_names_it(served, tmp_path, where):
    with pytest.raises(ReportError, match=re.escape(str(tmp_path / where))) as caught:
        served.explain().to_html(tmp_path / where)
    assert isinstance(caught.value, PiecewiseError)
    assert "give the path of a file" in str(caught.value)


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(served):
    shown = Page(served.explain()._repr_html_())
    ((tag, attrs),) = shown.tags
    assert tag == "iframe"
    assert attrs["sandbox"] == "allow-scripts"
    assert Page(attrs["srcdoc"]).body("targets")


def test_everything_on_the_page_is_in_the_json_too(served):
    facts = json.loads(served.explain().to_json())
    assert facts["model"] == "Sequential"
    assert facts["targets"][0]["spans"]
    assert facts["events"][0]["kind"] == "traced"


_SORTING = """
const row = (given, text) => ({ cells: [{ getAttribute: () => given, textContent: text }] });
const seen = (rows, down) => sorted(rows, 0, down).map((each) => each.cells[0].textContent);
const given = [["10", "ten"], ["9", "nine"], ["9", "nine too"], ["0.5", "half"]];
const numbers = given.map((each) => row(...each));
const names = ["rows 16", " Rows 4 ", "<b>"].map((text) => row(null, text));
console.log(JSON.stringify([seen(numbers, false), seen(numbers, true), seen(names, false)]));
"""


def test_tables_are_sorted_by_numbers_or_by_names_and_equal_rows_stay_in_place(served):
    """What the page's script does without a document; the rest was looked at in Chromium."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here to run JavaScript")
    script = served.explain().to_html().split("<script>")[1].split("function sortBy")[0]
    done = subprocess.run(
        [node, "-e", script + _SORTING], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == [
        ["half", "nine", "nine too", "ten"],
        ["ten", "nine", "nine too", "half"],
        ["<b>", " Rows 4 ", "rows 16"],
    ]
