"""Chat templates that do what those of the model families do, each in its own way."""

PLAIN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PARTS = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] | trim }}|{% endif %}{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)

PARTS_BY_SET = (
    "{% set loop_messages = messages %}{% for m in loop_messages %}{% set c = m.content %}"
    "{% if m.content is string %}<s>{{ m.content }}{% else %}{% for content in m.content | list %}"
    "<p>{{ content.text }}{% endfor %}{% endif %}\n{% endfor %}"
)

PARTS_BY_MACRO = (
    "{% macro show(body) %}{% if body is string %}{{ body }}{% else %}{% for item in body %}{{ item.text }};{% endfor %}"
    "{% endif %}{% endmacro %}{% for m in messages %}{{ m.role }}: {{ show(m.content) }}\n{% endfor %}"
)

TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "{{- '<|im_end|>\\n' }}{% endif -%}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content %}{{ m.content }}{% endif %}"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}<call>{{ call | tojson }} {{ call.function.name }} "
    "{{ call.function.arguments | tojson(indent=2) }} {{ call.function.arguments | items | list }}</call>{% endfor %}"
    "{% endif %}{% if m.role == 'tool' %}<for {{ m.tool_call_id }}>{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

DROPS_THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and m.content and '</think>' in m.content and loop.index0 < ns.last %}"
    "{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
    "{% elif m.reasoning_content and loop.index0 > ns.last %}<think>{{ m.reasoning_content }}</think>{{ m.content }}"
    "{% else %}{{ m.content }}{% endif %}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>{% endif %}{% endif %}"
)

ALTERNATES = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}[INST] {% if loop.last and system is defined %}{{ system + '\\n\\n' }}{% endif %}"
    "{{ message['content'] }} [/INST]{% else %} {{ message['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)

DEVELOPER = (
    "{% for m in messages %}{% if m.role == 'developer' %}## Developer {{ m.content }}{% else %}{{ m.role }} "
    "{{ m.content }}{% endif %}{% if m.name %} ({{ m.name }}){% endif %}\n{% endfor %}"
)

DOCUMENTS = (
    "{% if documents %}{% for d in documents %}<doc {{ loop.index }}>{{ d.title }}: {{ d.text }}</doc>{% endfor %}"
    "{% endif %}{% if reasoning_effort %}Effort: {{ reasoning_effort }}.{% endif %}{% if custom %}{{ custom }}{% endif %}"
    "{% if tools is none %}no tools{% endif %}{% if date_string is defined %}{{ date_string }}{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)

LOOPS = (
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role | upper }}\n"
    "    {% if loop.index > 6 %}{% break %}{% endif %}\n"
    "{% generation %}{{ m.content | replace('a', 'A') }}{% endgeneration %}\n{% endfor %}"
    "{{ messages | length }} {{ messages[-1] | tojson }}"
)

SPACES = (
    "{% for m in messages %}\n    {% if m.role == 'user' %}\n        U: {{ m.content.strip() }}\n"
    "    {% else %}\n  O: {{ m.content }}   \n    {% endif %}\n{% endfor %}\n{{ bos_token }}{{ unk_token }}{{ pad_token }}"
    "{% if not add_generation_prompt %}done{% endif %}"
)

DATED = (
    "Today is {{ strftime_now('%Y') }}. {% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
    "{{ [1, {'b': 2, 'a': '<é>'}] | tojson(sort_keys=true) }}"
)

TEMPLATES = {
    name.lower(): source for name, source in list(globals().items()) if name.isupper() and isinstance(source, str)
}
"""All of them by name."""
