"""What was delivered of a stream: its token ids and its text, so that it can go on at another engine.

The engine is asked for ids (`return_token_ids`); where the client did not ask, they are taken out again, and what is
left is byte for byte what the engine would have sent. A usual event costs about a microsecond: nearly all of it is the
same in every event of a stream, so two comparisons and one short search find what differs. In JSON a quotation mark
inside a string is escaped, so what is searched for cannot be content. Any other event is parsed.
"""

import re

import msgspec

from gateway.dispatch.chunk import Choice, Chunk, decode
from gateway.dispatch.opening import is_error
from gateway.dispatch.seam import Seam
from gateway.prompt.apis import CHAT, Api

MOST_BYTES = 1 << 20
"""Remembered of one stream (12 bytes a token, or so); of a longer one nothing is, and it cannot go on elsewhere."""

DONE = b"data: [DONE]\n\n"
_CHOICES = b'"choices":'
_ID_LISTS = re.compile(rb',"(prompt_)?token_ids":\[[0-9,]*\]')
_NUMBER = re.compile(rb"\d+")
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens":\d+')
_CACHED_TOKENS = re.compile(rb'"cached_tokens":(\d+)')
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_TOTAL_TOKENS = re.compile(rb'"total_tokens":\d+')


_string = msgspec.json.Decoder(str).decode
_encode = msgspec.json.encode


class Trail:
    """One stream, over all engines that it comes from; call it with whole events, it returns what the client gets.

    `lost` says why the stream cannot go on elsewhere; empty while it can.
    """

    __slots__ = (
        "_added", "_client_head", "_fast", "_fast_size", "_head", "_ids", "_is_chat", "_seam", "_tail", "_text",
        "_usual_end", "_wants_ids", "_wants_usage", "broken", "done", "finished", "lost", "moved",
        "prompt", "stopped", "usage",
    )  # fmt: skip

    def __init__(self, api: Api, wants_ids: bool, wants_usage: bool) -> None:
        """`wants_ids`, `wants_usage`: the client asked for token ids, and for the usage at the end."""
        self._is_chat = api is CHAT
        self._wants_ids = wants_ids
        self._wants_usage = wants_usage
        middle = b'},"logprobs":null,"finish_reason":null' if self._is_chat else _COMPLETION_MIDDLE
        self._tail = b'"' + middle + b',"token_ids":['
        self._usual_end = b'"' + middle + b',"token_ids":null}]}\n\n'
        self._fast = b"\n"  # no event begins so
        self._fast_size = 0
        self._head = self._client_head = b""
        self._ids = bytearray()
        self._text = bytearray()
        self._added = 0
        self._seam: Seam | None = None
        self.prompt = b""
        """The prompt's ids, a JSON list without brackets, as the first engine read them."""
        self.lost = ""
        self.moved = False
        """Whether what comes now is another engine's."""
        self.finished = self.done = self.usage = False
        """Whether the client was told why it ended, that it did, and what it cost."""
        self.stopped = False
        """Whether we have ended it ourselves: the engine goes on in vain."""
        self.broken = ""
        """The engine's own error in the stream; it is not passed on."""

    # The stream.

    def __call__(self, events: bytes, count: int) -> bytes:
        if self.lost and not self.moved:
            return self._without_ids(events)
        if count == 1:
            return self._event(events)
        return b"".join([self._event(event + b"\n\n") for event in events.split(b"\n\n")[:-1]])

    def _event(self, event: bytes) -> bytes:
        if event.startswith(self._fast) and event.endswith(b"]}]}\n\n"):
            at = event.find(self._tail, self._fast_size)
            if at >= 0:
                text = event[self._fast_size : at]
                self._text += text
                self._ids += event[at + len(self._tail) : -5]
                if len(self._ids) > MOST_BYTES or len(self._text) > MOST_BYTES:
                    self.lose("longer than what is remembered")
                if self._wants_ids:
                    return self._client_head + event[self._fast_size :]
                return b"%b%b%b" % (self._client_head, text, self._usual_end)
        return self._other(event)

    def _other(self, event: bytes) -> bytes:
        """Any event that is not just a token's."""
        if self.broken or self.stopped:
            return b""  # what an engine says after its error, and after we have found the end
        if event == DONE:
            self.done = True
            return event
        if is_error(event) and not self.lost:
            self.broken = "an error in the stream"
            return b""
        if self.lost and not self.moved:
            return self._without_ids(event)  # an earlier one of the same piece has lost it
        try:
            chunk = decode(event[6:])
            return self._parsed(event, chunk)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            if event.startswith(b"data:"):
                self.lose("an event that is not understood")
            return event

    def _parsed(self, event: bytes, chunk: Chunk) -> bytes:
        self._learn_head(event)
        if not chunk.choices:
            self.usage = True
            return self._ours(event)
        choice = chunk.choices[0]
        text = self._text_of(choice)
        if not (self.prompt or self.moved):
            listed = bytes(chunk.prompt_token_ids if self._is_chat else choice.prompt_token_ids)
            self.prompt = listed.strip(b"[] \n") if listed != b"null" else b""
        if choice.token_ids:
            self._ids += b",".join(b"%d" % token for token in choice.token_ids) + b"]"
        elif text:
            self.lose("the engine gives no ids")
        self._text += text
        self.finished = choice.finish_reason is not None
        role = choice.delta is not None and "role" in choice.delta
        if self.moved and role and not text and not self.finished:
            return b""  # said before
        if choice.delta == {} and not self.finished and not self._wants_ids and choice.token_ids:
            return b""  # there for its ids only
        if self._seam is not None:
            return self._sew(event, text, choice)
        return self._ours(event)

    def _text_of(self, choice: Choice) -> bytes:
        """The text of an event, as inside a JSON string."""
        if choice.delta is None:
            return bytes(choice.text)[1:-1] if bytes(choice.text) != b"null" else b""
        for name, value in choice.delta.items():
            if name not in ("role", "content") and bytes(value) not in (b"null", b"[]", b'""'):
                self.lose(f"it holds {name}")
        content = bytes(choice.delta.get("content", b"null"))
        return content[1:-1] if content != b"null" else b""

    def _learn_head(self, event: bytes) -> None:
        """What all events of the stream begin with."""
        if self._fast_size:
            return
        head = event[: event.find(_CHOICES) + len(_CHOICES)]
        first = b'[{"index":0,"delta":{"content":"' if self._is_chat else b'[{"index":0,"text":"'
        self._head = head
        self._fast = head + first
        self._fast_size = len(self._fast)
        self._client_head = self._client_head or self._fast
        if self._seam is not None:
            self._fast, self._fast_size = b"\n", 1  # every event is looked at until the seam is closed

    def _ours(self, event: bytes) -> bytes:
        """An event as the client should see it."""
        if self.moved and event.startswith(self._head):
            event = self._client_head[: self._client_head.index(_CHOICES) + len(_CHOICES)] + event[len(self._head) :]
        if self.moved and b'"usage":{' in event:
            event = self._counted(event)
        return self._without_ids(event)

    def _without_ids(self, events: bytes) -> bytes:
        """Events without ids that the client did not ask for."""
        if self._wants_ids or b'token_ids":[' not in events:
            return events
        return _ID_LISTS.sub(rb',"\1token_ids":null', events)

    def _counted(self, event: bytes) -> bytes:
        """Usage of the whole."""
        prompt = self.prompt.count(b",") + 1
        found = _COMPLETION_TOKENS.search(event)
        completion = (int(found[1]) if found else 0) + self._added
        event = _PROMPT_TOKENS.sub(b'"prompt_tokens":%d' % prompt, event)
        event = _COMPLETION_TOKENS.sub(b'"completion_tokens":%d' % completion, event, 1)
        event = _CACHED_TOKENS.sub(lambda m: b'"cached_tokens":%d' % min(int(m[1]), prompt), event)
        return _TOTAL_TOKENS.sub(b'"total_tokens":%d' % (prompt + completion), event)

    def lose(self, why: str) -> None:
        """It cannot go on elsewhere."""
        self.lost = self.lost or why
        self._ids.clear()
        self._text.clear()

    # Going on.

    @property
    def count(self) -> int:
        """Tokens delivered, or made and held back."""
        return len(self.ids)

    @property
    def text(self) -> str:
        """What the client has."""
        return _string(b'"%b"' % bytes(self._text))

    @property
    def ids(self) -> list[int]:
        """Token ids that were generated."""
        return [int(token) for token in _NUMBER.findall(self._ids)]

    def go_on(self, ids: list[int], seam: Seam) -> None:
        """The next event is another engine's, which was given these generated ids."""
        self._ids = bytearray(b"".join(b"%d]" % token for token in ids))
        self._added = len(ids)
        self._seam = seam
        self._fast, self._fast_size = b"\n", 0
        self.moved = True
        self.broken = ""

    def _sew(self, event: bytes, text: bytes, choice: Choice) -> bytes:
        """The first events of the second engine: what was held back comes before them, a stop string may end them."""
        seam = self._seam
        assert seam is not None
        plain = _string(b'"%b"' % text)
        sewn = seam.take(plain)
        shown = sewn.text
        if self.finished and sewn.stop is None:
            sewn = seam.end(choice.stop_reason if isinstance(choice.stop_reason, str) else None)
            shown += sewn.text
        del self._text[len(self._text) - len(text) :]
        self._text += _encode(shown)[1:-1]
        if sewn.stop is not None:
            self.finished = self.done = self.stopped = True
            return self.closing(shown, "stop", sewn.stop)
        if not seam.open:
            self._seam = None
            self._fast_size, self._fast = 0, b"\n"
            self._learn_head(event)
        old = b'%b:"%b"' % (b'"content"' if self._is_chat else b'"text"', text)
        new = old[: len(old) - len(text) - 2] + _encode(shown)
        new = self._ours(event.replace(old, new, 1))
        return new if shown or choice.finish_reason is not None or self._wants_ids else b""

    def closing(self, text: str = "", finish: str = "", stop: str | None = None) -> bytes:
        """The end of the stream in our own words: the last event if `finish` says why, the usage, `[DONE]`."""
        head = self._client_head[: self._client_head.index(_CHOICES) + len(_CHOICES)]
        out = b""
        if finish:
            why = b'"logprobs":null,"finish_reason":%b,"stop_reason":%b' % (_encode(finish), _encode(stop))
            said = b'"delta":{"content":%b}' if self._is_chat else b'"text":%b'
            out = b'%b[{"index":0,%b,%b,"token_ids":null}]}\n\n' % (head, said % _encode(text), why)
        if self._wants_usage and not self.usage:
            prompt, made = self.prompt.count(b",") + 1, self.count
            usage = {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}
            out += b'%b[],"usage":%b}\n\n' % (head, _encode(usage))
        return out + DONE


_COMPLETION_MIDDLE = b',"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null'
