"""The CPU platform of piecewise. Importing it imports no torch; see ``plugin``."""
