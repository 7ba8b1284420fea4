"""Chat templates: how a tokenizer's own template writes a dialogue."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from biasgym_tl.errors import ModelError, first_line
from biasgym_tl.store import BROKEN

if TYPE_CHECKING:
    from biasgym_tl.prompts import TextPolicy


def rendered(
    tokenizer: Any, policy: TextPolicy, turns: list[dict[str, str]], *, begins: bool = False
) -> str:
    """The dialogue as the chat template writes it, in the form that the template can read.

    Args:
        tokenizer: Has a chat template.
        policy: What is said beside the turns.
        turns: Of user and assistant.
        begins: The assistant's next answer begins at the end.

    Raises:
        ModelError: the template does not write what is said.
    """
    # Some know no system turn, and some want lists of parts instead of strings and leave the rest
    # out, so what was said is looked for in what is written.
    system = policy.system
    forms = [turns]
    if system:
        first = {"role": turns[0]["role"], "content": f"{system}\n\n{turns[0]['content']}"}
        forms = [[{"role": "system", "content": system}, *turns], [first, *turns[1:]]]
    reason = "it leaves out what is said"
    for form in forms:
        parts = [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in form]
        for messages in (form, parts):
            try:
                text = _render(tokenizer, policy, messages, begins)
            except ModelError as error:
                reason = str(error)
                continue
            said = (turn["content"].strip() for turn in form if turn["role"] != "assistant")
            if all(part in text for part in said):
                return text
    raise ModelError(
        f"the tokenizer's chat template must write a user's request, but: {reason}. Give its "
        "arguments with load_model(..., text=TextPolicy(template={...})), or use plain text with "
        "TextPolicy(chat=False)."
    )


def _render(
    tokenizer: Any, policy: TextPolicy, messages: list[dict[str, Any]], begins: bool
) -> str:
    from jinja2 import TemplateError

    arguments, named = dict(policy.template), tokenizer.chat_template
    if isinstance(named, Mapping) and "default" not in named and len(named) == 1:
        arguments.setdefault("chat_template", next(iter(named)))
    try:
        template = tokenizer.get_chat_template(arguments.pop("chat_template", None))
        text: str = tokenizer.apply_chat_template(
            messages,
            chat_template=_on_date(template, policy.date),
            tokenize=False,
            add_generation_prompt=begins,
            **arguments,
        )
        text.encode()  # half of a surrogate pair is no text
    except (TemplateError, LookupError, *BROKEN) as error:
        raise ModelError(first_line(error)) from error
    return text


def _on_date(template: str, date: str) -> str:
    """The template, in which ``strftime_now`` writes a fixed date instead of today's."""
    if "strftime_now" not in template:
        return template
    day = datetime.date.fromisoformat(date)
    formats = {found[1] for found in re.findall(r"strftime_now\(\s*(['\"])(.*?)\1", template)}
    written = json.dumps({form: day.strftime(form) for form in sorted(formats)})
    # The + keeps a line's end, which the template may begin with.
    return (
        f"{{%- macro strftime_now(form) -%}}{{{{ {written}.get(form, {json.dumps(date)}) }}}}"
        f"{{%- endmacro +%}}{template}"
    )
