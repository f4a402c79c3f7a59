"""The openvino compiler for piecewise."""
