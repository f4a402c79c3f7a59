"""What the entry point names: brings the compiler and imports nothing heavy."""

from importlib import import_module

from piecewise_core.hookspecs import hookimpl


@hookimpl
def piecewise_compilers():
    """The one compiler of this wheel, by its name in Config(compiler=...)."""
    return {
        "onnxruntime": lambda: import_module("piecewise_onnxruntime.compiler").OnnxruntimeCompiler()
    }
