"""What ends an answer: the end tokens of a model and where each comes from, for every engine.

ends = find_ends(tokenizer, {"generation_config": [2]}, ChatTemplate(tokenizer, settings))
ends.token_ids  # (2, 5)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.errors import UserError
from eval.prompting.chat import ChatTemplate, TurnEnd
from eval.prompting.encoding import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEMPLATE = "chat template"


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What ends an answer, whatever the prompt: a plain prompt does not keep a model from ending its turn.

    Attributes:
        token_ids: End tokens, ascending.
        names: Text of each end token, by id.
        sources: Where each end token or text comes from, by its text.
        texts: Texts that end an answer and are left out of it.
        added: Ends that the chat template alone names, as texts.
    """

    token_ids: tuple[int, ...]
    names: Mapping[int, str]
    sources: Mapping[str, tuple[str, ...]]
    texts: tuple[str, ...]
    added: tuple[str, ...]

    def describe(self) -> str:
        """Return the ends with their sources, in one line."""
        told = [f"{name if name.isprintable() else repr(name)} ({', '.join(of)})" for name, of in self.sources.items()]
        return ", ".join(told) or "none: answers go on until their room is used up"


def find_ends(tokenizer: PreTrainedTokenizerBase, suggested: Mapping[str, Iterable[int]], chat: ChatTemplate) -> Ends:
    """Return what ends an answer.

    Args:
        tokenizer: Tokenizer of the model.
        suggested: End tokens that files of the checkpoint name, by the name of the file.
        chat: Chat template, with the settings of the run.
    """
    by_id: dict[int, list[str]] = {}
    known_ids = range(len(tokenizer))
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for source, ids in {**suggested, "tokenizer": own}.items():
        for token in filter(known_ids.__contains__, ids):  # -1 and the like mean none
            by_id.setdefault(token, []).append(source)
    known = set(by_id)
    end = _turn_end(tokenizer, chat)
    if end.token_id is not None:
        by_id.setdefault(end.token_id, []).append(_TEMPLATE)
    texts = () if end.text is None else (end.text,)
    names = {token: str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(by_id)}
    return Ends(
        token_ids=tuple(names),
        names=names,
        sources={name: tuple(by_id[token]) for token, name in names.items()} | dict.fromkeys(texts, (_TEMPLATE,)),
        texts=texts,
        added=(*(names[token] for token in names if token not in known), *texts),
    )


def _turn_end(tokenizer: PreTrainedTokenizerBase, chat: ChatTemplate) -> TurnEnd:
    try:
        return chat.turn_end(TextEncoder(tokenizer)) if chat.source else TurnEnd()
    except UserError:  # several templates and no name: told where a prompt needs one
        if chat.settings.flag:
            raise
        return TurnEnd()
