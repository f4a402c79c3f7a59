"""Plugins: found by metadata, loaded one by one, selected with reasons. Imports no torch."""

from piecewise_core.plugins.attribution import AttributedPlatform, attributed, error_text, raised
from piecewise_core.plugins.audience import Audience
from piecewise_core.plugins.candidates import Candidate, survey
from piecewise_core.plugins.compilers import find_compiler
from piecewise_core.plugins.declared import Declared, declared
from piecewise_core.plugins.discovery import PluginEntry, discover
from piecewise_core.plugins.registration import registered
from piecewise_core.plugins.rewrites import all_passes, all_rewrites, name_of
from piecewise_core.plugins.selection import Selected, select

__all__ = [
    "AttributedPlatform",
    "Audience",
    "Candidate",
    "Declared",
    "PluginEntry",
    "Selected",
    "all_passes",
    "all_rewrites",
    "attributed",
    "declared",
    "discover",
    "error_text",
    "find_compiler",
    "name_of",
    "raised",
    "registered",
    "select",
    "survey",
]
