"""Recorded or generated traffic on a simulated fleet, in virtual time, placed by the very policies of production."""
