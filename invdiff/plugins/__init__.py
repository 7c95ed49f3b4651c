"""Plug-ins by name: the one registry of every kind, which imports nothing of the package."""
