"""The APIs that reach an engine, and what differs between them."""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Api:
    """One route that an engine answers."""

    name: str
    path: str
    limits: tuple[str, ...] = ()
    """The fields that limit tokens out, the strongest first."""
    prompt: str = ""
    """The field that holds the prompt; empty if the API generates nothing and so cannot be split."""

    @cached_property
    def generates(self) -> bool:
        return bool(self.prompt)

    @cached_property
    def target(self) -> bytes:
        return self.path.encode()


CHAT = Api("chat", "/v1/chat/completions", ("max_completion_tokens", "max_tokens"), "messages")
COMPLETIONS = Api("completions", "/v1/completions", ("max_tokens",), "prompt")
RESPONSES = Api("responses", "/v1/responses", ("max_output_tokens",), "input")
MESSAGES = Api("messages", "/v1/messages", ("max_tokens",), "messages")
EMBEDDINGS = Api("embeddings", "/v1/embeddings")
TOKENIZE = Api("tokenize", "/tokenize")
DETOKENIZE = Api("detokenize", "/detokenize")
COUNT_TOKENS = Api("count_tokens", "/v1/messages/count_tokens")

APIS = {
    api.path: api for api in (CHAT, COMPLETIONS, RESPONSES, MESSAGES, EMBEDDINGS, TOKENIZE, DETOKENIZE, COUNT_TOKENS)
}
