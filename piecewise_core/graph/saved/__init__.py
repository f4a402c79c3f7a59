"""Traces as data: everything a trace says, in JSON, and what it took for granted of the model."""
