"""The conformance kit: what a platform must keep, as pytest tests by level. See ``suite``."""
