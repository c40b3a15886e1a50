"""The ASGI process: everything on the journey of a request, one room per step."""
