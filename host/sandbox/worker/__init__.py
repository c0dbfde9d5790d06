"""What runs inside: supervisor, reaper and worker. Standard library only, started by file path, never
imported by the host.
"""
