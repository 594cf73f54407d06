"""What a model itself answers to questions that are given: text on which it can be held to what it was
(self-synthesized rehearsal, arXiv 2403.01244)."""

from collections.abc import Sequence
from dataclasses import replace

from grun.data import Example
from grun.model.forward import PlainModel, Tally
from grun.prompts.template import PromptTemplate

QUESTIONS_PER_BATCH = 16


def own_answers(
    model: PlainModel, template: PromptTemplate, questions: Sequence[str], max_new_tokens: int, progress: Tally
) -> list[Example]:
    """Greedy answers, one a question; of one that is cut at so many tokens no end is taught."""
    examples = []
    for start in range(0, len(questions), QUESTIONS_PER_BATCH):
        batch = questions[start : start + QUESTIONS_PER_BATCH]
        said = model.generate([template.prompt_ids(question) for question in batch], max_new_tokens).answers
        for question, ids in zip(batch, said, strict=True):
            whole = template.example(question, template.text(ids))
            examples.append(whole if len(ids) < max_new_tokens else replace(whole, answer_ids=tuple(ids)))
        progress(min(start + QUESTIONS_PER_BATCH, len(questions)), len(questions))
    return examples
