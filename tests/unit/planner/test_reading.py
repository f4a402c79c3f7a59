"""Histogram files: every shape that a tool may write, and files that are none."""

from __future__ import annotations

import pytest

import piecewise_core as pw
from piecewise_core.planner.reading import read_histogram

ONE, TWO = {(8,): 3, (16,): 1}, {(4, 128): 3, (1, 16): 1}


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("8,3\n16,1\n", ONE),
        ("8,3\n16,1", ONE),
        ("size,count\n8,3\n16,1\n", ONE),
        ("count,size\n3,8\n1,16\n", ONE),
        ("8\n16\n8\n8\n", ONE),
        ("tokens\n8\n16\n8\n8\n", ONE),
        ("# from the log\n\n8;3\n 16 ; 1 \n", ONE),
        ("8\t3\r\n16\t1\r\n", ONE),
        ('"size","count"\n"8","3"\n"16","1"\n', ONE),
        ("\ufeffsize,count\n8,3\n16,1\n", ONE),
        ("8.0,3\n16,1.0\n", ONE),
        ("8,1\n8,2\n16,1\n32,0\n", ONE),
        ("4,128,3\n1,16,1\n", TWO),
        ("batch,length\n4,128\n4,128\n4,128\n1,16\n", TWO),
        ('{"8": 3, "16": 1}', ONE),
        ('\n {"4x128": 3, "1,16": 1}', TWO),
        ("[8, 8, 16, 8]", ONE),
        ("[[8, 3], [16, 1]]", ONE),
        ("[[4, 128, 3], [1, 16, 1]]", TWO),
        ('[{"size": 8, "calls": 3}, {"size": 16, "calls": 1}]', ONE),
    ],
)
def test_a_file_is_read_whatever_its_shape(tmp_path, text, calls):
    file = tmp_path / "traffic"
    file.write_text(text, encoding="utf-8")
    assert dict(read_histogram(file).calls) == dict(sorted(calls.items()))


def test_columns_pick_sizes_out_of_a_log_with_other_things_in_it(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03,8,44\n"
        "2023-11-16 18:17:04,16,1\n"
    )
    found = read_histogram(file, columns=("ContextTokens",))
    assert (found.dims, found.calls) == (("ContextTokens",), {(8,): 1, (16,): 1})
    with pytest.raises(pw.errors.PlanError, match="no column 'Tokens'; there are TIMESTAMP"):
        read_histogram(file, columns=("Tokens",))
    with pytest.raises(pw.errors.PlanError, match="is no whole number"):
        read_histogram(file)


def test_text_among_the_numbers_of_the_first_line_is_no_name_of_a_column(tmp_path):
    file = tmp_path / "sizes.csv"
    file.write_text("hello,5\n8,3\n")
    with pytest.raises(pw.errors.PlanError, match=r"line 'hello,5': 'hello' is no whole number"):
        read_histogram(file)
    file.write_text("rows,0\n8,3\n")
    assert read_histogram(file, columns=("rows",)).calls == {(8,): 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no calls"),
        ("8,0\n", "has no calls"),
        ("size,count\n", "has no calls"),
        ("8,3\n-4,1\n", "-4 is negative"),
        ("8,3\n4,-1\n", "-1 is negative"),
        ("8,3\nmany,1\n", "'many' is no whole number"),
        ("8,3\n2.5,1\n", "'2.5' is no whole number"),
        ("8,3\n9" + "9" * 30 + ",1\n", "is no whole number"),
        ("8,3\n4\n", "has 1 columns, not 2"),
        ("8,3\nnan,1\n", "'nan' is no whole number"),
        ("count\n3\n", "no column of sizes"),
        ('{"8": -3}', "-3 is not a number of calls"),
        ('{"8": "many"}', "'many' is not a number of calls"),
        ('{"8": 3, "4x8": 1}', "has 2 dims, and others have 1"),
        ("[8, null]", "None is not a size"),
        ('{"8": 3', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"piecewise_histogram": 2}', "of version 2"),
        ('{"piecewise_histogram": 1, "dims": ["a"]}', "damaged"),
        ('{"piecewise_histogram": 1, "dims": ["a"], "calls": [[[1, 2], 3]]}', "2 dims"),
    ],
)
def test_a_file_that_is_no_histogram_is_refused_by_name_and_line(tmp_path, text, says):
    file = tmp_path / "traffic.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(pw.errors.PlanError) as caught:
        read_histogram(file)
    assert str(file) in str(caught.value)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


def test_no_file_a_folder_and_bytes_are_refused(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00\x80")
    for name in ("missing", ".", "bytes"):
        with pytest.raises(pw.errors.PlanError, match=r"cannot be read|no text in UTF-8"):
            read_histogram(tmp_path / name)


def test_many_equal_lines_are_counted_and_not_read_one_by_one(tmp_path, monkeypatch):
    file = tmp_path / "log.csv"
    file.write_text("".join(f"{n % 7 + 1}\n" for n in range(50_000)))
    monkeypatch.setattr("piecewise_core.planner.reading._LINES", 9_999)
    found = read_histogram(file)
    assert found.total == 50_000
    assert len(found.calls) == 7
