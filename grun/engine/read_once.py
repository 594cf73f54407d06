"""Prompts that no prefix cache knows, read a moment ago: what decoding needs of a cache, from that one pass."""

from collections.abc import Sequence

from torch import Tensor


class ReadOnce:
    """In a `PrefixCache`'s place for `grun.engine.later_layers.generate`."""

    def __init__(
        self, prompts: Sequence[tuple[int, ...]], kv_BP2MHd: Tensor, hidden_BD: Tensor, *, first_layer: int
    ) -> None:
        """As the untouched model read them; kv: left-padded. hidden_BD: the first edited layer, at the last tokens."""
        self.first_layer = first_layer
        self._kv = {prompt: kv_P2MHd[-len(prompt) :] for prompt, kv_P2MHd in zip(prompts, kv_BP2MHd, strict=True)}
        self._hidden = dict(zip(prompts, hidden_BD, strict=True))

    def kv(self, prompt_ids: tuple[int, ...]) -> Tensor:
        """Keys and values of a prompt's tokens at all layers: [tokens, 2, M, H, d]."""
        return self._kv[prompt_ids]

    def prefix_kv(self, prompt_ids: tuple[int, ...]) -> Tensor:
        """Those before its last token, at the layers above the first edited one: [P, 2, M, H, d]."""
        return self._kv[prompt_ids][:-1, :, self.first_layer + 1 :]

    def hidden_at_edit(self, prompt_ids: tuple[int, ...]) -> Tensor:
        """The first edited layer's output at its last token: [1, D]."""
        return self._hidden[prompt_ids][None]
