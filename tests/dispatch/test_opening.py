"""What the first events of a stream say before the client sees them; cut anywhere."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.dispatch.opening import Look, look

ROLE = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null}\n\n'
)
TOKEN = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}]}\n\n'
TEXT = b'data: {"id":"1","choices":[{"index":0,"text":"","finish_reason":null,"token_ids":[4]}]}\n\n'
BROKEN = (
    b'data: {"error": {"message": "Internal server error", "type": "InternalServerError", "param": null, '
    b'"code": 500}}\n\n'
)
REJECTED = b'data: {"error": {"message": "no", "type": "BadRequestError", "param": null, "code": 400}}\n\n'
DONE = b"data: [DONE]\n\n"
MESSAGE = b'event: message_start\ndata: {"type":"message_start"}\n\nevent: ping\ndata: {"type":"ping"}\n\n'
MESSAGE_ERROR = b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"x"}}\n\n'
RESPONSE = b"event: response.created\ndata: {}\n\nevent: response.in_progress\ndata: {}\n\n"
RESPONSE_TOKEN = b'event: response.output_text.delta\ndata: {"delta":"x"}\n\n'

CASES = [
    (ROLE + TOKEN, Look.BEGUN),
    (ROLE + BROKEN + DONE, Look.FAILED),
    (ROLE, Look.MORE),
    (b"", Look.MORE),
    (BROKEN + DONE, Look.FAILED),
    (REJECTED + DONE, Look.BEGUN),
    (TEXT, Look.BEGUN),
    (DONE, Look.BEGUN),
    (MESSAGE, Look.MORE),
    (MESSAGE + MESSAGE_ERROR, Look.FAILED),
    (RESPONSE + RESPONSE_TOKEN, Look.BEGUN),
    (b": comment\n\n", Look.MORE),
    (b"not an event at all", Look.MORE),
    (b"not an event at all\n\n", Look.BEGUN),
]


def test_openings_are_told_from_tokens_and_errors() -> None:
    for data, says in CASES:
        assert look(data) is says, data


@given(st.sampled_from(CASES), st.integers(0, 600))
def test_a_cut_opening_never_says_something_else(case: tuple[bytes, Look], at: int) -> None:
    data, says = case
    assert look(data[:at]) in (Look.MORE, says)
