"""The settings: one typed, immutable tree, read once at start and handed down."""

from shared.settings.load import load
from shared.settings.sections import SettingsError
from shared.settings.tree import Settings

__all__ = ["Settings", "SettingsError", "load"]
