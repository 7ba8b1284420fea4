"""The class behind :func:`lm_eval_model`; importing it needs lm-eval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm.auto import tqdm

from biasgym_tl.errors import SettingError
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import encode_answer, encode_document
from biasgym_tl.text import generate, read_continuations

_UNDERSTOOD = {"do_sample", "temperature", "max_gen_toks", "until"}


class HookedLM(TemplateLM):
    """A HookedTransformer as lm-eval sees it; its ``LM`` says what each method is for."""

    max_gen_toks = 256
    """As many as ``HFLM`` lets a model write where a task does not say."""

    def __init__(self, model: HookedTransformer, batch_size: int, add_bos: bool | None) -> None:
        """Take what :func:`lm_eval_model` has checked."""
        super().__init__()
        self.model, self.batch_size, self.add_bos = model, batch_size, add_bos
        self.tokenizer, self._device = model.tokenizer, model.cfg.device
        self.max_length = model.cfg.n_ctx

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, which is EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Names stored prompts, which depend on the chat template."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids; by default with the BOS that ``add_bos`` says."""
        if add_special_tokens is None:
            return encode_document(self.model, string, add_bos=self.add_bos)
        plain = encode_answer(self.model, string)
        return [self.prefix_token_id, *plain] if add_special_tokens else plain

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The turns of a dialogue as one text."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse to keep answers.

        Raises:
            SettingError: always.
        """
        raise SettingError(
            "use_cache must be None: lm-eval's stored answers do not know how a model was "
            "steered, and would be taken for those of another setting."
        )

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation (nats), and whether the model would write it.

        Task by task, since the requests of one task begin alike.

        Raises:
            SettingError: a continuation is longer than the model's context.
        """
        tasks = defaultdict(list)
        for place, request in enumerate(requests):
            tasks[request.task_name].append(place)
        found: dict[int, tuple[float, bool]] = {}
        for places in tqdm(tasks.values(), desc="loglikelihood", disable=disable_tqdm):
            of_task = super().loglikelihood([requests[i] for i in places], disable_tqdm=True)
            found.update(zip(places, of_task, strict=True))
        return [found[place] for place in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        if not requests:
            return []
        continuations = [continuation for _, _, continuation in requests]
        longest = max(map(len, continuations))
        if longest > self.max_length:
            raise SettingError(
                f"a continuation must be at most {self.max_length} tokens long, which is the "
                f"model's context, got {longest}. Leave the task out."
            )
        # The last token of a continuation is predicted, not read.
        prompts = [
            (context or [self.prefix_token_id])[-(self.max_length + 1 - len(continuation)) :]
            for _, context, continuation in requests
        ]
        read = read_continuations(self.model, prompts, continuations, batch_size=self.batch_size)
        return list(zip(read.log_probs.tolist(), read.greedy.tolist(), strict=True))

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each whole text (nats), in parts as long as the model's context."""
        owners, parts = [], []
        for place, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in windows:
                owners.append(place)
                parts.append((None, *make_disjoint_window(window)))
        totals = [0.0] * len(requests)
        for owner, (log_prob, _) in zip(owners, self._loglikelihood_tokens(parts), strict=True):
            totals[owner] += log_prob
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuation of each text, up to the strings that its task names.

        Raises:
            SettingError: a task asks for sampling, or for more tokens than the context holds.
        """
        groups = defaultdict(list)
        for place, request in enumerate(requests):
            groups[repr(request.args[1])].append(place)
        found: dict[int, str] = {}
        for places in tqdm(groups.values(), desc="generate", disable=disable_tqdm):
            places.sort(key=lambda place: len(requests[place].args[0]))
            options = normalize_gen_kwargs(requests[places[0]].args[1], self.max_gen_toks)
            texts = self._generate([requests[place].args[0] for place in places], options)
            found.update(zip(places, texts, strict=True))
        return [found[place] for place in range(len(requests))]

    def _generate(self, texts: Sequence[str], options: dict[str, Any]) -> list[str]:
        unknown = {key: value for key, value in options.items() if key not in _UNDERSTOOD}
        if unknown:
            raise SettingError(
                f"gen_kwargs must be among {sorted(_UNDERSTOOD)}, got {unknown}. Change the task "
                "with gen_kwargs, or leave it out."
            )
        if options["do_sample"]:
            raise SettingError(
                f"do_sample must be False, got {options!r}. Answers are the likeliest ones; "
                "leave the task out, or change it with gen_kwargs."
            )
        longest = self.max_length - options["max_gen_toks"]
        if longest < 1:
            raise SettingError(
                f"max_gen_toks must be less than the model's context, {self.max_length}, got "
                f"{options['max_gen_toks']!r}. Set it with gen_kwargs."
            )
        return generate(
            self.model,
            [self.tok_encode(text)[-longest:] or [self.prefix_token_id] for text in texts],
            max_new_tokens=options["max_gen_toks"],
            batch_size=self.batch_size,
            until=[end for end in options["until"] if end],
        )
