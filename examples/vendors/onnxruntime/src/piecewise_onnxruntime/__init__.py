"""The onnxruntime compiler for piecewise."""
