"""A device without hardware, strict where real ones are silent. See ``platform``."""
