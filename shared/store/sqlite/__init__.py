"""The embedded engine: one SQLite file on fast local disk, shipped to the volume before anyone is told."""
