"""Libraries in place of CUDA's, so that a torch that is linked against them loads without them.

A wheel linked against CUDA names cuBLAS, cuDNN and a dozen more; those are gigabytes, and without
them ``import torch`` fails even where no GPU is. The stand-ins have the names and the symbols that
torch's own libraries ask for, and every function answers 100, which is "no CUDA-capable device is
detected". What runs on the CPU then is torch's own code; nothing is learned about a GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

__all__ = ["make"]

NO_DEVICE = 100
"""cudaErrorNoDevice and CUDA_ERROR_NO_DEVICE."""

_LIBRARY = re.compile(r"lib(cu|nv|nccl)\w*\.so\S*")
_FUNCTION = re.compile(
    r"(__cuda|cu[A-Z]|(cublas|cuda|cudnn|cufft|cu(pti|rand|solver|sparse))|nccl|nv)\w+"
)


def make(folder: Path) -> list[str]:
    """Put a stand-in beside the libraries in ``folder`` for each that they lack; the names.

    Needs readelf and nm (binutils) and a C compiler.
    """
    libraries = [str(f) for f in sorted(folder.glob("*.so*")) if not f.is_symlink()]
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", _said("readelf", "-dW", *libraries)))
    missing = sorted(n for n in needed if _LIBRARY.fullmatch(n) and not (folder / n).exists())
    symbols = _symbols(libraries, missing)
    for name in missing:
        _compile(folder / name, symbols[name])
    return missing


def _symbols(libraries: list[str], missing: list[str]) -> dict[str, dict[str, set[str]]]:
    """By library and version ("" for none): the functions of ``missing`` that are asked for.

    A function without a version may stand in any library: the loader looks in all.
    """
    homes: dict[str, str] = {}
    home = ""
    for file, version in re.findall(
        r"File: (\S+)|Name: (\S+) ", _said("readelf", "-VW", *libraries)
    ):
        home = file or home
        if version:
            homes[version] = home
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    defined = {name for name, _ in _names("--defined-only", libraries)}
    for name, version in _names("--undefined-only", libraries):
        if homes.get(version) in missing:
            found[homes[version]][version].add(name)
        elif not version and missing and name not in defined and _FUNCTION.fullmatch(name):
            found[missing[0]][""].add(name)
    return found


def _names(which: str, libraries: list[str]) -> set[tuple[str, str]]:
    """Dynamic symbols of ``libraries`` with their versions ("" for none)."""
    words = (line.split()[-1] for line in _said("nm", "-D", which, *libraries).splitlines() if line)
    parts = (word.partition("@") for word in words)
    return {(name, version.lstrip("@")) for name, _, version in parts}


def _compile(library: Path, symbols: dict[str, set[str]]) -> None:
    """Make ``library``. The loader insists on versions where it was asked for one."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang", "g++", "clang++"))))
    names = sorted({name for group in symbols.values() for name in group})
    nodes = [f"{v} {{ global: {'; '.join(sorted(n))}; }};" for v, n in symbols.items() if v]
    script = library.with_suffix(".map")
    script.write_text("\n".join(nodes))
    options = ["-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library.name}"]
    if nodes:
        options.append(f"-Wl,--version-script={script}")
    code = "".join(f"long {name}(void) {{ return {NO_DEVICE}; }}\n" for name in names)
    command = [compiler, *options, "-o", str(library), "-xc", "-"]
    subprocess.run(command, input=code, text=True, check=True)
    script.unlink()


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
