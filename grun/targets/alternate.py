"""Other answers that the model itself makes up: plausible, in its own words, and not the ones to be forgotten.

As AltPO makes them (arXiv 2409.13474): a few for each item, sampled at temperature 1 from the untouched model, which is
shown question and answer and asked to change the facts.
"""

from itertools import takewhile

import torch

from grun.data import Example
from grun.model.forward import eos_ids
from grun.model.reading import prompt_inputs
from grun.targets.target import ForgetSet, Texts

PER_ITEM = 5
"""The paper's number."""
REQUEST = (
    "Here is a question with its answer.\nQuestion: {question}\nAnswer: {answer}\n"
    "Make up a different answer to the same question, of the same kind but with other facts. Write that answer alone."
)
PROMPTS_PER_BATCH = 16


def alternates(forget: ForgetSet) -> list[list[Example]]:
    """PER_ITEM examples an item. Raises UserError where an item asks nothing."""
    forget.check_asks("makes up other answers")
    texts = forget.keep("alternates", lambda: _made_up(forget))
    return [
        [item.example(forget.template, text) for text in own] for item, own in zip(forget.items, texts, strict=True)
    ]


@torch.no_grad()
def _made_up(forget: ForgetSet) -> Texts:
    """No longer than the longest of the answers to be forgotten. The same on the same machine."""
    from transformers import GenerationConfig

    template, model = forget.template, forget.model
    ends = eos_ids(model)
    sampling = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,  # this and the next: from all tokens, whatever the model's own defaults ask for
        top_p=1.0,
        num_return_sequences=PER_ITEM,
        max_new_tokens=max(len(template.answer_ids(item.answer)) for item in forget.items),
        eos_token_id=ends,
        pad_token_id=model.generation_config.pad_token_id,
    )
    prompts = [template.prompt_ids(REQUEST.format(question=item.question, answer=item.answer)) for item in forget.items]
    answers: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for start in range(0, len(prompts), PROMPTS_PER_BATCH):
            inputs = prompt_inputs(prompts[start : start + PROMPTS_PER_BATCH], model)
            generated = model.generate(**inputs, generation_config=sampling)[:, inputs["input_ids"].shape[1] :]
            answers += [template.text(list(takewhile(lambda t: t not in ends, row))) for row in generated.tolist()]
    return [answers[first : first + PER_ITEM] for first in range(0, len(answers), PER_ITEM)]
