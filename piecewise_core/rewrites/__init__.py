"""Rewrites: changes to graphs that keep the numbers; which there are, in which order they run."""

from piecewise_core.rewrites.entry import GraphRewrite, ListedRewrite
from piecewise_core.rewrites.listing import Rewrites, list_rewrites

__all__ = ["GraphRewrite", "ListedRewrite", "Rewrites", "list_rewrites"]
