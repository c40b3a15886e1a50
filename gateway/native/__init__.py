"""The hot path as machine code: the same modules, compiled by mypyc, where a C compiler was at hand.

`build` compiles them, `loader` puts them in place of their sources. Nothing else knows of it: without a build, or with
sources that changed since, the very same files are interpreted.
"""
