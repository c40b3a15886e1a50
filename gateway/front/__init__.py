"""The front: HTTP/1.1 with clients, as lean as the wire to the engines.

`Connection` is what uvicorn's server is given for a protocol, a `Call` is one request and the answer to it, and `asgi`
lets an ASGI app answer a call.
"""
