"""A language model of 5 MB that is made where it is needed: no download, the same bytes on every machine.

It says nothing sensible, but it is a real Llama with a real tokenizer, small enough for two engines on two cores. Its
weights are scaled so that greedy output depends on the whole prompt: attention is sharp enough to read single tokens
and strong enough to turn the residual stream, so a wrong KV block changes the answer within a few tokens.

All randomness is integer arithmetic on PCG64, whose stream numpy keeps stable; no transcendental function, whose last
bit may differ between processors, touches a weight.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bits = NDArray[np.uint16]

RECIPE = 1
"""Version of the recipe: a model of another version is made anew."""

SEED = 20
VOCAB = 8192
HIDDEN = 128
LAYERS = 2
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 32
FEED_FORWARD = 384
MAX_POSITIONS = 8192
BOS, EOS = "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

WORDS = """
the of and to a in is that it for was on are as with they be at one have this from or had by but not what all were we
when your can said there use an each which she do how their if will up other about out many then them these so some her
would make like him into time has look two more write go see number no way could people my than first water been call
who its now find long down day did get come made may part over new sound take only little work know place year live me
back give most very after thing our just name good sentence man think say great where help through much before line
right too mean old any same tell boy follow came want show also around form three small set put end does another well
large must big even such because turn here why ask went men read need land different home us move try kind hand picture
again change off play spell air away animal house point page letter mother answer found study still learn should world
high every near add food between own below country plant last school father keep tree never start city earth eye light
thought head under story saw left few while along might close something seem next hard open example begin life always
those both paper together got group often run important until children side feet car mile night walk white sea began
grow took river four carry state once book hear stop without second later miss idea enough eat face watch far really
almost let above girl sometimes mountain cut young talk soon list song being leave family cache block prefill decode
token engine request gateway model prompt server client stream network memory system user assistant function return
class import def print value true false null none self error result message content role tool name type string
""".split()


def make_tiny_model(folder: Path) -> Path:
    """Make the model in `folder` unless this recipe's model is there already. Returns the folder.

    The folder appears whole or not at all (written beside it, then renamed), so a kill at any moment leaves nothing
    half made. Needs `tokenizers` and `numpy`, which every vLLM brings along.
    """
    stamp = folder / "recipe.json"
    wanted = {"recipe": RECIPE, "seed": SEED}
    if stamp.is_file() and json.loads(stamp.read_text()) == wanted:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_over in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    _write_tokenizer(new)
    _write_config(new)
    _write_weights(new / "model.safetensors")
    (new / stamp.name).write_text(json.dumps(wanted))
    new.chmod(0o755)
    if folder.exists():
        shutil.rmtree(folder)
    return new.rename(folder)


def _text() -> list[str]:
    """Lines to train the tokenizer on: common words, made-up words, numbers and a little code."""
    import random

    rng = random.Random(SEED)

    def pick(items: list[str]) -> str:  # random() is the one method whose stream Python promises to keep
        return items[int(rng.random() * len(items))]

    onsets = "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p ph pl pr qu r s sc sh sl sp st str t th tr v w y z"
    vowels = "a e i o u ai ea ee ie oo ou"
    codas = [*"b ck d ft g l ll m mp n nd ng nt p r rd rk rn s sh ss st t th x".split(), "", "", "", ""]
    parts = (onsets.split(), vowels.split(), codas)
    made_up = ["".join(pick(part) for _ in range(1 + i % 3) for part in parts) for i in range(9000)]
    lines = []
    for i in range(6000):
        words = [pick(WORDS) if rng.random() < 0.55 else made_up[int(rng.random() ** 2 * 9000)] for _ in range(12)]
        number = str(int(rng.random() * 10 ** (1 + i % 4)))
        lines.append(" ".join(words).capitalize() + f", {number} {pick(WORDS)}.\n")
        if i % 8 == 0:
            lines.append(f'    def {pick(WORDS)}_{pick(made_up)}(self, {pick(WORDS)}={number}):\n        return "x"\n')
            lines.append(f'{{"{pick(WORDS)}": "{pick(made_up)}", "{pick(WORDS)}": [{number}, true]}}\n')
    return lines


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(), trainer)
    if tokenizer.get_vocab_size() != VOCAB:
        raise RuntimeError(f"the tokenizer has {tokenizer.get_vocab_size()} entries, the model {VOCAB}: add text")
    tokenizer.save(str(folder / "tokenizer.json"))
    _dump(
        folder / "tokenizer_config.json",
        # A model-specific class would make transformers 5 rebuild the pipeline and ignore parts of tokenizer.json.
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": EOS,
            "pad_token": EOS,
            "model_max_length": MAX_POSITIONS,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _write_config(folder: Path) -> None:
    _dump(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": FEED_FORWARD,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "vocab_size": VOCAB,
            "max_position_embeddings": MAX_POSITIONS,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
    )
    _dump(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


SHARPNESS = 2.0
"""Standard deviation of the attention scores: with s, about n / exp(s * s) of n tokens are read."""
ATTENTION = 3.0
"""How strongly what attention read turns the residual stream, relative to the token itself."""
MLP = 1.0
EOS_GAIN = 1.5
"""How much larger the end of the turn's logit is than others': an answer ends by itself after some hundred tokens."""


def _write_weights(path: Path) -> None:
    """Write the weights as safetensors (https://github.com/huggingface/safetensors#format), tensors by name."""
    import numpy as np

    rng = np.random.Generator(np.random.PCG64(SEED))

    def normal(rows: int, columns: int, gain: float) -> "Bits":
        """`gain` / sqrt(columns) times about a normal variable: the sum of four bytes, rounded to bfloat16."""
        sums = rng.integers(0, 256, size=(rows, columns, 4), dtype=np.uint8).sum(axis=2, dtype=np.int32) - 510
        return _bfloat16(sums.astype(np.float32) * np.float32(gain / (147.8 * columns**0.5)))

    def ones(size: int) -> "Bits":
        return _bfloat16(np.ones(size, dtype=np.float32))

    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    tensors: dict[str, Bits] = {
        "model.embed_tokens.weight": normal(VOCAB, HIDDEN, HIDDEN**0.5),  # entries of size 1
        "model.norm.weight": ones(HIDDEN),
        "lm_head.weight": normal(VOCAB, HIDDEN, 4.0),
    }
    tensors["lm_head.weight"][0] = 0  # a turn never starts inside an answer
    tensors["lm_head.weight"][1] = normal(1, HIDDEN, 4.0 * EOS_GAIN)[0]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        tensors |= {
            at + "input_layernorm.weight": ones(HIDDEN),
            at + "post_attention_layernorm.weight": ones(HIDDEN),
            at + "self_attn.q_proj.weight": normal(q, HIDDEN, SHARPNESS),
            at + "self_attn.k_proj.weight": normal(kv, HIDDEN, 1.0),
            at + "self_attn.v_proj.weight": normal(kv, HIDDEN, 1.0),
            at + "self_attn.o_proj.weight": normal(HIDDEN, q, ATTENTION),
            at + "mlp.gate_proj.weight": normal(FEED_FORWARD, HIDDEN, 1.0),
            at + "mlp.up_proj.weight": normal(FEED_FORWARD, HIDDEN, 1.0),
            at + "mlp.down_proj.weight": normal(HIDDEN, FEED_FORWARD, MLP),
        }
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            file.write(tensors[name].astype("<u2").tobytes())


def _bfloat16(values: "NDArray[np.float32]") -> "Bits":
    """float32 to the nearest bfloat16, ties to even, as its 16 bits."""
    import numpy as np

    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
