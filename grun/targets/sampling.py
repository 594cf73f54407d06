"""Texts that a model makes up, drawn from all it might say."""

from collections.abc import Sequence
from itertools import takewhile

import torch

from grun.lm.reading import eos_ids, prompt_inputs
from grun.model.forward import CausalLM
from grun.prompts.template import PromptTemplate

PROMPTS_PER_BATCH = 16
TOLD_TOKENS = 128
"""Length at which a passage is cut that a model writes of what it knows."""


@torch.no_grad()
def sampled(
    model: CausalLM, template: PromptTemplate, questions: Sequence[str], *, per_question: int, max_new_tokens: int
) -> list[list[str]]:
    """So many answers to each question, at temperature 1. The same on the same machine."""
    from transformers import GenerationConfig

    ends = eos_ids(model)
    sampling = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,  # this and the next: from all tokens, whatever the model's own defaults ask for
        top_p=1.0,
        num_return_sequences=per_question,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=model.generation_config.pad_token_id,
    )
    prompts = [template.prompt_ids(question) for question in questions]
    answers: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for start in range(0, len(prompts), PROMPTS_PER_BATCH):
            inputs = prompt_inputs(prompts[start : start + PROMPTS_PER_BATCH], model)
            generated = model.generate(**inputs, generation_config=sampling)[:, inputs["input_ids"].shape[1] :]
            answers += [template.text(list(takewhile(lambda t: t not in ends, row))) for row in generated.tolist()]
    return [answers[first : first + per_question] for first in range(0, len(answers), per_question)]


def told(model: CausalLM, template: PromptTemplate, requests: Sequence[str]) -> list[str]:
    """What the model writes when it is asked to, a passage a request, those left out that are no two tokens long."""
    texts = sampled(model, template, requests, per_question=1, max_new_tokens=TOLD_TOKENS)
    return [text for (text,) in texts if template.whole(text).answer_ids]
