"""Adapters over HTTP. Knows the pool; nothing of the project knows this package."""
