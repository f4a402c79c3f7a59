"""One file that starts a model without tracing or compiling it."""
