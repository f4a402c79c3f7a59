"""The ROCm platform of piecewise. Importing it imports no torch; see ``plugin``."""
