"""The other workers of this gateway, each reached over a unix socket of its own."""

import asyncio
import socket
from pathlib import Path

import httpx

ANSWER_S = 2.0


class Siblings:
    """Worker `number` of `count`; `folder` holds a socket for each."""

    def __init__(self, folder: str, number: int, count: int) -> None:
        self.folder = Path(folder)
        self.number = number
        self.count = count
        self.orders = Path(folder, "orders.json")
        """Where an operator's orders are written down for all workers."""
        self._paths = [str(Path(folder, f"{n}.sock")) for n in range(count)]

    def listen(self) -> socket.socket:
        """The socket on which the others reach this one."""
        path = Path(self._paths[self.number])
        path.unlink(missing_ok=True)  # of a worker that died
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(path))
        listening.listen(64)
        return listening

    async def ask(self, target: str, method: str = "GET") -> dict[int, httpx.Response]:
        """What each of the others answers; who does not (it is starting, or just died) is left out."""
        others = [number for number in range(len(self._paths)) if number != self.number]
        answers = await asyncio.gather(*(self._ask(number, method, target) for number in others))
        return {number: answer for number, answer in zip(others, answers, strict=True) if answer is not None}

    async def _ask(self, number: int, method: str, target: str) -> httpx.Response | None:
        transport = httpx.AsyncHTTPTransport(verify=False, uds=self._paths[number])
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=ANSWER_S) as http:
                return await http.request(method, target)
        except httpx.HTTPError:
            return None
