"""Items that a model cannot read."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.benchmarks.items import Benchmark, Item
from bench.benchmarks.lengths import check_lengths
from bench.benchmarks.questions import QuestionsConfig
from grun.errors import UserError
from grun.prompts.config import PromptConfig
from grun.prompts.template import PromptTemplate

SHORT = Item(question="a", answer="b")
LONG = Item(question="a b c d e f g h i j", answer="a b c d", perturbed_answers=("a",), paraphrased_question="a")


def _template(**settings: Any) -> PromptTemplate:
    """A word is a token, and nothing stands around question and answer but </s> at the end."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    return PromptTemplate.of(words, PromptConfig(text="{question} {answer}", **settings))


def _benchmark(**sets: Any) -> Benchmark:
    empty: dict[str, Any] = {"forget_set": [SHORT], "retain_set": [SHORT], "evaluation": {}}
    return Benchmark(config=QuestionsConfig(data_dir="mine"), **empty | sets)


def test_the_first_item_that_is_too_long_is_named() -> None:
    """10 tokens of prompt, 4 of answer, </s>: the model reads all but the last, which are 14. At 14 it is read."""
    for place, sets in [
        ("item 1 of forget", {"forget_set": [SHORT, LONG]}),
        ("item 0 of retain", {"retain_set": [LONG]}),
        ("item 2 of world_facts", {"evaluation": {"world_facts": [SHORT, SHORT, LONG]}}),
    ]:
        check_lengths(_benchmark(**sets), _template(), 14)
        with pytest.raises(UserError) as error:
            check_lengths(_benchmark(**sets), _template(), 13)
        message = (
            f"benchmark: {place} takes 14 tokens, and the model reads 13; set model.prompt.max_tokens, or leave the"
        )
        assert str(error.value) == f"{message} item out"


@pytest.mark.parametrize(
    "item",
    [
        Item(question=" ".join("a" * 10), answer="b"),
        Item(question="a", answer="b", perturbed_answers=(" ".join("a" * 10),)),
        Item(question="a", answer="b", paraphrased_answer=" ".join("a" * 10)),
        Item(question="a", answer="b", paraphrased_question=" ".join("a" * 10)),
        Item(question="", answer=" ".join("a" * 12), form="passage"),
    ],
)
def test_whatever_the_model_is_given_is_asked_for(item: Item) -> None:
    """Each reads at least 10 tokens somewhere, and none more than 11."""
    check_lengths(_benchmark(forget_set=[item]), _template(), 11)
    with pytest.raises(UserError, match="item 0 of forget"):
        check_lengths(_benchmark(forget_set=[item]), _template(), 9)


def test_an_answer_of_full_length_must_fit_behind_the_prompt() -> None:
    """A prompt of 10 and 5 tokens after it read 14: the last is never read."""
    check_lengths(_benchmark(forget_set=[LONG]), _template(), 14, max_new_tokens=5)
    with pytest.raises(UserError) as error:
        check_lengths(_benchmark(forget_set=[LONG]), _template(), 14, max_new_tokens=6)
    assert str(error.value) == (
        "evaluation.max_new_tokens: 6 do not fit behind the 10 of item 0 of forget, as the model reads 14 tokens; "
        "use at most 5, set model.prompt.max_tokens, or leave the item out"
    )


def test_cut_prompts_fit_and_a_model_without_an_end_reads_all() -> None:
    """5 of the question's 10 tokens are left: 9 are read with the answer."""
    check_lengths(_benchmark(forget_set=[LONG]), _template(max_tokens=5), 9, max_new_tokens=5)
    check_lengths(_benchmark(forget_set=[LONG]), _template(), None, max_new_tokens=10**9)
