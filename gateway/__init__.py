"""The ASGI process: everything on the journey of a request, one room per step."""

from gateway.native import loader

loader.use()
