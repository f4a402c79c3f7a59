"""What the entry point names: brings the compiler and imports nothing heavy."""

from piecewise_core.hookspecs import hookimpl


@hookimpl
def piecewise_compilers():
    """The one compiler of this wheel, by its name in Config(compiler=...)."""
    return {"onnxruntime": make}


def make():
    """Import ONNX Runtime and make the adaptor."""
    from piecewise_onnxruntime.compiler import OnnxruntimeCompiler

    return OnnxruntimeCompiler()
