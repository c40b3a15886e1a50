"""Several gateway processes behind one port: started and kept by a parent, asked together for health and metrics."""


class CannotStart(Exception):
    """No worker came up; each said why in its log."""
