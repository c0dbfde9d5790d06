"""Every statement and every transaction of the store, once: a class a noun, over an ``Engine``."""
