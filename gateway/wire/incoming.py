"""An answer, taken apart as it comes in. No I/O."""

import httptools

from gateway.wire.errors import BadAnswer, Stage

_EVENT_END = b"\n\n\r\n"
"""How a chunk ends that ends with an event."""


class Incoming:
    """What has arrived of the answer to the request at hand; one of these per connection.

    `expect` begins an answer, `feed` takes its bytes as they come, `end` says that no more will. Body bytes are
    appended to `pieces` by the parser itself (`on_body` is `pieces.append`), so they pass no Python function; the list
    is the same for the life of the connection, and whoever reads it empties it. Interim answers (1xx) and trailers
    are dropped. HTTP is read strictly: an answer that could be read in two ways is a `BadAnswer`.
    """

    __slots__ = (
        "_barren",
        "_bodyless",
        "_ended_at",
        "_interim",
        "_limit",
        "_parser",
        "_to_close",
        "between",
        "complete",
        "head_received",
        "headers",
        "in_head",
        "keep_alive",
        "on_body",
        "pieces",
        "status",
    )

    def __init__(self, head_bytes: int) -> None:
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = True  # no answer is outstanding
        self.in_head = False
        self.head_received = 0  # bytes up to the end of the head, those that came with it included
        self.keep_alive = False
        self._limit = head_bytes
        self._barren = 0  # bytes since the last body byte: chunk extensions, trailers
        self._bodyless = False  # the answer to HEAD
        self._interim = False  # inside a 1xx
        self._to_close = False  # the body ends with the connection
        self.between = False
        """Whether the parser stands between two chunks of the body, as far as that is sure."""
        self._ended_at = 0  # how many pieces there were when a chunk ended last
        self._parser: httptools.HttpResponseParser | None = None

    @property
    def answered(self) -> bool:
        """True once any byte has arrived."""
        return self.head_received > 0

    @property
    def stage(self) -> Stage:
        """How far the answer is."""
        if not self.in_head:
            return "body"
        return "head" if self.head_received else "first_byte"

    def expect(self, *, bodyless: bool) -> None:
        """Begin an answer; `bodyless` if it is one to HEAD."""
        self.complete = self.keep_alive = False
        self.in_head = True
        self.head_received = self._barren = 0
        self.headers = []
        self._interim = self._to_close = self.between = False
        if bodyless or self._bodyless or self._parser is None:
            # A parser that saw an answer to HEAD still waits for the body that its Content-Length announced.
            self._parser = httptools.HttpResponseParser(self)
        self._bodyless = bodyless

    def feed(self, data: bytes) -> BadAnswer | None:
        """Take what arrived. Returned, not raised, is what makes this no answer: the body before it stays good."""
        began_in_head = self.in_head
        self.between = False
        self._ended_at = 0
        if began_in_head:
            self.head_received += len(data)
        try:
            self._parser.feed_data(data)  # type: ignore[union-attr]  # there is one while an answer is outstanding
        except httptools.HttpParserError as error:
            if not self.complete:
                return BadAnswer(f"not an answer: {error.__context__ or error}", self.stage, answered=True)
            self.keep_alive = False  # the answer is whole, what follows it is not ours
        if began_in_head:
            if self.head_received > self._limit and self._head_too_large():
                self.in_head = True
                return BadAnswer(f"head over {self._limit} bytes", "head", answered=True)
        elif self.pieces:
            self._barren = 0
        else:
            self._barren += len(data)
            if self._barren > self._limit:
                return BadAnswer(f"{self._barren} bytes of framing without a body byte", "body", answered=True)
        if self._bodyless and self.pieces:
            self.pieces.clear()
            self.keep_alive = False
        # Bytes behind the last chunk could only be of the next one's first line, which does not end like this.
        self.between = len(self.pieces) == self._ended_at > 0 and data.endswith(_EVENT_END) and not self.complete
        return None

    def alone(self, data: bytes) -> int:
        """Where the body begins in `data` if that is one whole chunk, plainly written, and nothing else; 0 if not.

        It ends two bytes before the end of `data`. The parser need not see it: it stands where it stood. So does the
        most frequent read of all, one event of a stream, at a third of the price.
        """
        if not self.between:
            return 0
        size = len(data)
        digits = 2 if size <= 0xFF + 6 else 3 if size <= 0xFFF + 7 else 4
        line = b"%x\r\n" % (size - digits - 4)
        if not (len(line) == digits + 2 and data.startswith(line) and data.endswith(_EVENT_END)):
            return 0
        self._barren = 0
        return digits + 2

    def end(self) -> None:
        """The peer sends no more: the end of a body that ends so, and of no other."""
        if self._to_close:
            self.complete = True

    def close(self) -> None:
        """Let go of the parser, which refers back to us."""
        self._parser = None

    def _head_too_large(self) -> bool:
        if self.in_head:
            return True
        return sum(len(name) + len(value) + 4 for name, value in self.headers) > self._limit

    # What the parser calls. Raising stops it.

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # else it is a trailer
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        status = self.status = parser.get_status_code()  # type: ignore[union-attr]
        if status < 200:
            if status == 101:
                raise ValueError("101 Switching Protocols was not asked for")
            self._interim = True
            self.headers.clear()
            return
        self._to_close = True
        for name, value in self.headers:
            if name == b"content-length":
                self._to_close = False
            elif name == b"transfer-encoding":
                self._to_close = False
                if value.strip().lower() != b"chunked":
                    raise ValueError(f"transfer-encoding {value!r} was not asked for")
        self.in_head = False
        if self._bodyless:
            self.complete = True
            self.keep_alive = parser.should_keep_alive()  # type: ignore[union-attr]

    def on_chunk_complete(self) -> None:
        self._ended_at = len(self.pieces)

    def on_message_complete(self) -> None:
        if self._interim:
            if self.pieces:
                raise ValueError("interim answer with a body")
            self._interim = False
            return
        self.complete = True
        self.keep_alive = self._parser.should_keep_alive()  # type: ignore[union-attr]
