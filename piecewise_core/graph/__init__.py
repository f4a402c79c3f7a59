"""From a model to pieces: trace, split, canonical form."""
