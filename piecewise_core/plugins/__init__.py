"""Plugins: found by metadata, loaded one by one, selected with reasons. Imports no torch."""

from piecewise_core.plugins.attribution import AttributedPlatform, attributed, raised, told
from piecewise_core.plugins.candidates import Candidate, survey
from piecewise_core.plugins.declared import Declared, declared
from piecewise_core.plugins.discovery import PluginEntry, discover
from piecewise_core.plugins.extensions import PluginPass, all_passes, find_compiler
from piecewise_core.plugins.registration import registered
from piecewise_core.plugins.selection import Selected, select

__all__ = [
    "AttributedPlatform",
    "Candidate",
    "Declared",
    "PluginEntry",
    "PluginPass",
    "Selected",
    "all_passes",
    "attributed",
    "declared",
    "discover",
    "find_compiler",
    "raised",
    "registered",
    "select",
    "survey",
    "told",
]
