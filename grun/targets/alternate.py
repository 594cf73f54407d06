"""Other answers that the model itself makes up: plausible, in its own words, and not the ones to be forgotten.

As AltPO makes them (arXiv 2409.13474): a few for each item, sampled at temperature 1 from the untouched model, which is
shown question and answer and asked to change the facts.
"""

from grun.data import Example
from grun.targets.sampling import sampled
from grun.targets.target import ForgetSet, Texts

PER_ITEM = 5
"""The paper's number."""
REQUEST = (
    "Here is a question with its answer.\nQuestion: {question}\nAnswer: {answer}\n"
    "Make up a different answer to the same question, of the same kind but with other facts. Write that answer alone."
)


def alternates(forget: ForgetSet) -> list[list[Example]]:
    """PER_ITEM examples an item. Raises UserError where an item asks nothing."""
    forget.check_asks("makes up other answers")
    texts = forget.keep("alternates", lambda: _made_up(forget))
    return [
        [item.example(forget.template, text) for text in own] for item, own in zip(forget.items, texts, strict=True)
    ]


def _made_up(forget: ForgetSet) -> Texts:
    """No longer than the longest of the answers to be forgotten."""
    return sampled(
        forget.model,
        forget.template,
        [REQUEST.format(question=item.question, answer=item.answer) for item in forget.items],
        per_question=PER_ITEM,
        max_new_tokens=max(len(forget.template.answer_ids(item.answer)) for item in forget.items),
    )
