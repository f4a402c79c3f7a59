"""Facts of a model as people read them: lines, and a page."""
