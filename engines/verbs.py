"""What can be asked of a supervisor that runs, over its control socket, by `baton engines`."""

import os
from pathlib import Path
from typing import Any

from engines.control import Refused, Say
from engines.keeper import Keeper
from engines.rollout import Stopped
from engines.upgrade import Upgrade

STATE = Path(os.environ.get("BATON_STATE_DIR", ".baton"))
"""Where a supervisor keeps its files: logs, the socket, what is half done."""
SOCKET = STATE / "engines.sock"


class Commands:
    """What can be asked over the control socket."""

    def __init__(self, keeper: Keeper, upgrades: Upgrade) -> None:
        self._keeper = keeper
        self._upgrades = upgrades

    async def __call__(self, request: dict[str, Any], say: Say) -> Any:
        verb, names = request.get("verb"), request.get("names", [])
        try:
            match verb:
                case "status":
                    return self._keeper.status()
                case "restart":
                    return await self._keeper.restart(names, say, drain=request.get("drain", True))
                case "drain":
                    return await self._keeper.drain(names, say)
                case "upgrade":
                    return await self._upgrades.run(request, say)
                case "halt":
                    return self._upgrades.halt()
        except Stopped as error:
            raise Refused(str(error)) from None
        raise Refused(f"there is no verb {verb!r}")
