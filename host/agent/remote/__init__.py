"""The model's client in a process of its own.

The SDK takes about half of a turn's processor time. Beside the host it uses another core, and the host's
event loop is free for everything else while a thousand streams are parsed (docs/performance.md).
"""
