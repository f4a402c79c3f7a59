"""Rewrites: changes to graphs that keep the numbers; which there are, in which order they run."""

from piecewise_core.rewrites.entry import GraphRewrite, ListedRewrite
from piecewise_core.rewrites.listing import Rewrites, list_rewrites
from piecewise_core.rewrites.small_all_reduces import SmallAllReduces

__all__ = ["GraphRewrite", "ListedRewrite", "Rewrites", "SmallAllReduces", "list_rewrites"]
