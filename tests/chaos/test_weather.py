"""The script of a storm follows from its seed, brings everything, and leaves enough of the fleet alive."""

from load.chaos.plan import Plan
from load.chaos.traffic import ask
from load.chaos.weather import DECK, GATEWAY_S, TROUBLE_S


def test_the_same_seed_gives_the_same_storm_and_the_same_requests() -> None:
    assert Plan(seed=3).blows() == Plan(seed=3).blows()
    assert Plan(seed=3).blows() != Plan(seed=4).blows()
    assert [ask(3, number) for number in range(30)] == [ask(3, number) for number in range(30)]
    assert ask(3, 1) != ask(4, 1)


def test_everything_happens() -> None:
    blows = Plan().blows()
    assert {blow.deed for blow in blows} == {card.deed for card in DECK}
    assert {blow.target for blow in blows} == {*Plan().names, "store"}
    assert len(blows) >= 60


def test_never_more_than_half_of_a_role_is_down() -> None:
    plan = Plan()
    for seed in range(20):
        blows = Plan(seed=seed).blows()
        for blow in blows:
            ill = set()
            for other in blows:
                down_s = GATEWAY_S if other.target[0] == "g" else other.lasts_s + TROUBLE_S
                if other.at <= blow.at < other.at + down_s * plan.rate:
                    assert other.target not in ill, f"{other} hits somebody who is down"
                    ill.add(other.target)
            for role, count in (("p", plan.prefill), ("d", plan.decode), ("g", plan.gateways)):
                assert len([name for name in ill if name[0] == role]) <= count // 2
