"""The engine for several hosts: the Store contract on PostgreSQL."""
