"""The policy contract, the loader and the built-in policies, one file each. Imports nothing else of Baton."""
