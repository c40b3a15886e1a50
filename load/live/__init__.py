"""Engines that run, seen from outside: probed for their speed, and played to in real time."""
