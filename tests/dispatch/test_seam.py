"""Text that goes on at another engine: nothing lost, nothing doubled, stop strings found as one engine finds them."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.dispatch.seam import Seam, Sewn

WORDS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def one_engine(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """What an engine that makes it all sends, a character a token."""
    for end in range(1, len(text) + 1):
        found = min(((at, stop) for stop in stops if (at := text[:end].find(stop)) >= 0), default=None)
        if found is not None:
            at, stop = found
            return text[: at + len(stop) if include else at], stop
    return text, None


class Held:
    """An engine's stream of a text: stop strings are looked for, what may become one is held back."""

    def __init__(self, text: str, stops: list[str], include: bool) -> None:
        self.hold = 0 if include or not stops else max(map(len, stops)) - 1
        self.text, self.stop = one_engine(text, stops, include)

    def pieces(self) -> list[str]:
        """The deltas, one a token; the last one brings what was held back."""
        sent, made = 0, []
        for end in range(1, len(self.text) + 1):
            upto = max(sent, end - self.hold)
            made.append(self.text[sent:upto])
            sent = upto
        return [*made, self.text[sent:]]


@given(first=WORDS, second=WORDS, stops=STOPS, include=st.booleans())
def test_two_engines_say_what_one_would(first: str, second: str, stops: list[str], include: bool) -> None:
    if one_engine(first, stops, include)[1] is not None:
        return  # it would have ended before the cut
    hold = 0 if include or not stops else max(map(len, stops)) - 1
    sent = first[: max(0, len(first) - hold)]
    seam = Seam(first, first[len(sent) :], stops, include)
    rest = Held(second, stops, include)
    stop = None
    for piece in rest.pieces():
        sewn = seam.take(piece)
        sent += sewn.text
        if sewn.stop is not None:
            stop = sewn.stop
            break
    else:
        last = seam.end(rest.stop)
        sent += last.text
        stop = last.stop or rest.stop
    right, right_stop = one_engine(first + second, stops, include)
    assert sent == right
    assert (stop is None) == (right_stop is None)


def test_a_stop_string_that_the_second_engine_cut_off_completes_one_that_began_before() -> None:
    assert Seam("b", "b", ["bb"], include=False).end("bb") == Sewn("", "bb")
