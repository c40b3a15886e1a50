"""Three hosts under load; a host, a gateway, a network, Valkey fail and come back, and only what was there is lost."""

import os
from collections.abc import Iterator

import pytest

from tests.hosts.fleet import Fleet
from tests.hosts.network import Network, forbidden

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if why := forbidden():
        assert not os.environ.get("CI"), f"CI must be able to make hosts: {why}"
        pytest.skip(why)
    with Network(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="module")
def running(network: Network) -> Fleet:
    fleet = Fleet(network)
    fleet.start()
    return fleet


@pytest.fixture
def fleet(running: Fleet) -> Iterator[Fleet]:
    """The fleet, well before and after."""
    running.well()
    yield running
    running.well()


def test_all_hosts_serve(fleet: Fleet) -> None:
    with fleet.traffic(1) as traffic:
        traffic.goes_on(200)
    traffic.outcome.lost_nothing_but()


def test_a_gateway_is_killed(fleet: Fleet) -> None:
    """What it relayed breaks off; everything else goes through the others, and it comes back as if nothing had been."""
    with fleet.traffic(2) as traffic:
        traffic.goes_on(100)
        fleet.c.kill("gateway")
        traffic.goes_on(150)
        fleet.start_gateway(fleet.c)
        traffic.goes_on(100)
    traffic.outcome.lost_nothing_but("c")


@pytest.mark.parametrize("which", ["primary", "other"])
def test_a_host_dies(fleet: Fleet, which: str) -> None:
    """Engines, a gateway, a sentinel and a Valkey at once; with `primary` the one that the others depend on."""
    host = fleet.primary() if which == "primary" else fleet.other()
    with fleet.traffic(3) as traffic:
        traffic.goes_on(100)
        host.crash()
        traffic.goes_on(200)
        host.plug()
        fleet.boot(host)
        traffic.goes_on(100)
    traffic.outcome.lost_nothing_but(host.name)


@pytest.mark.parametrize("which", ["primary", "other"])
def test_a_host_is_cut_off_and_heals(fleet: Fleet, which: str) -> None:
    """Nobody is told: what is on the way is never answered, and both sides think that the other has died."""
    host = fleet.primary() if which == "primary" else fleet.other()
    with fleet.traffic(4) as traffic:
        traffic.goes_on(100)
        host.unplug()
        traffic.goes_on(200)
        host.plug()
        traffic.goes_on(100)
    traffic.outcome.lost_nothing_but(host.name)


def test_valkeys_primary_is_killed(fleet: Fleet) -> None:
    """Requests go on by what each gateway knows; a replica takes over, and all is shared again."""
    before = fleet.primary()
    with fleet.traffic(5) as traffic:
        traffic.goes_on(100)
        before.kill("valkey")
        traffic.goes_on(150)
    traffic.outcome.lost_nothing_but()
    assert fleet.primary() is not before
    fleet.well()
    fleet.start_valkey(before)
