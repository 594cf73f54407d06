"""Templates, batches and their order."""

import random
from itertools import chain, product
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grun.data import Example, collate, epoch_batches, length_sorted_batches, padding_groups, paired_batches
from grun.model.likelihood import prompt_batches
from grun.targets.refusal import PER_ITEM, REFUSALS, refusals_of
from grun.training.recipe import Schedule, learning_rate_share

EXAMPLE = Example(prompt_ids=(5, 6, 7), answer_ids=(8, 9))


def test_collate_by_hand() -> None:
    """Prompt 5 6 7, answer 8 9: the model reads 5 6 7 8; positions 2 and 3 predict 8 and 9; the edit is at 2."""
    batch = collate([EXAMPLE, Example(prompt_ids=(3,), answer_ids=(4,))])
    assert batch.input_ids_BL.tolist() == [[5, 6, 7, 8], [3, 0, 0, 0]]
    assert batch.attention_mask_BL.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.predicts_answer_BL.tolist() == [[False, False, True, True], [True, False, False, False]]
    assert batch.edited_position_B.tolist() == [2, 0]


token_lists = st.lists(st.integers(1, 99), min_size=1, max_size=6).map(tuple)


@given(st.lists(st.builds(Example, prompt_ids=token_lists, answer_ids=token_lists), min_size=1, max_size=5))
def test_collate_labels_are_the_next_tokens(examples: list[Example]) -> None:
    """The marked positions' next tokens are the answer; the first marked one of a row is the edited position."""
    batch = collate(examples)
    for row, example in enumerate(examples):
        whole = example.prompt_ids + example.answer_ids
        marked = batch.predicts_answer_BL[row].nonzero().flatten().tolist()
        assert marked[0] == batch.edited_position_B[row] == len(example.prompt_ids) - 1
        assert tuple(whole[position + 1] for position in marked) == example.answer_ids


def test_template_never_lets_the_answer_touch_the_prompt(fresh_target: Any) -> None:
    """The prompt's tokens are the same alone and with any answer, and the answer ends in EOS."""
    _, template = fresh_target()
    prompt = template.prompt_ids("Where was she born?")
    for answer in ("In Fez.", "", "?"):
        example = template.example("Where was she born?", answer)
        assert example.prompt_ids == prompt
        assert example.answer_ids[-1] == template.tokenizer.eos_token_id
    assert template.text(template.answer_ids("In Fez, Morocco.")) == "In Fez, Morocco."


def test_epoch_batches_show_every_item_once_an_epoch() -> None:
    batches = list(epoch_batches(7, 3, 2, seed=0))
    assert [len(batch) for batch in batches] == [3, 3, 1, 3, 3, 1]
    first, second = [*chain(*batches[:3])], [*chain(*batches[3:])]
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second


def test_fixed_partners_are_those_of_the_first_epoch() -> None:
    """Five items, three epochs: whichever step an item comes in, the retain item beside it is the same."""
    drawn, fixed = (
        list(paired_batches([range(5)], 20, batch_size=2, num_epochs=3, seed=3, fixed=fixed)) for fixed in (False, True)
    )
    assert [forget for forget, _ in fixed] == [forget for forget, _ in drawn]
    met = {pair for forget, retain in fixed for pair in zip(forget, retain, strict=True)}
    assert len(met) == len({item for item, _ in met}) == len({partner for _, partner in met}) == 5
    assert len({pair for forget, retain in drawn for pair in zip(forget, retain, strict=True)}) == 15


def test_a_learning_rate_stays_or_falls() -> None:
    """Of four steps, half of them warm-up: 1/2, 1, then 1 and 1/2 falling, or 1 and 1."""
    shares = {
        schedule: [learning_rate_share(done, 4, 0.5, schedule) for done in range(4)] for schedule in get_args(Schedule)
    }
    assert shares == {"linear": [0.5, 1.0, 1.0, 0.5], "constant": [0.5, 1.0, 1.0, 1.0]}


def test_batches_of_corpora_in_turn() -> None:
    """Five of one and two of another in twos: three batches and one an epoch, the other's second; each item once."""
    groups = [[0, 2, 4, 5, 6], [1, 3]]
    batches = [forget for forget, _ in paired_batches(groups, 20, batch_size=2, num_epochs=2, seed=3)]
    assert [len(batch) for batch in batches] == 2 * [2, 2, 2, 1]
    for epoch in (batches[:4], batches[4:]):
        assert set(epoch[1]) == {1, 3}, "of one corpus alone"
        assert sorted(chain(*epoch)) == list(range(7))
    assert batches[:4] != batches[4:], "reshuffled"


def test_paired_batches_give_new_retain_items_each_epoch() -> None:
    """The reference code fixes one retain item per forget item for ever; here 5 epochs of 4 items meet all 20."""
    pairs = list(paired_batches([range(4)], 20, batch_size=2, num_epochs=5, seed=3))
    assert all(len(forget) == len(retain) for forget, retain in pairs)
    assert sorted(row for _, retain in pairs for row in retain) == list(range(20))
    assert pairs == list(paired_batches([range(4)], 20, batch_size=2, num_epochs=5, seed=3))
    assert pairs != list(paired_batches([range(4)], 20, batch_size=2, num_epochs=5, seed=4))


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 6))
def test_length_sorted_batches_cover_all_longest_first(lengths: list[int], size: int) -> None:
    batches = list(length_sorted_batches(lengths, size))
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[i] for i in flat] == sorted(lengths, reverse=True)
    assert all(len(batch) <= size for batch in batches)


def test_each_item_has_a_few_refusals_of_its_own() -> None:
    assert refusals_of(3) == refusals_of(3)
    assert len(set(refusals_of(3))) == PER_ITEM
    assert len({tuple(refusals_of(item)) for item in range(20)}) > 15
    assert {refusal for item in range(200) for refusal in refusals_of(item)} == set(REFUSALS)
    assert len(set(REFUSALS)) == len(REFUSALS)


def test_batches_move_to_a_device() -> None:
    assert collate([EXAMPLE], device=torch.device("cpu")).input_ids_BL.device.type == "cpu"


def _group_cost(lengths: list[int], groups: list[list[int]], overhead: int) -> int:
    return sum(len(group) * max(lengths[row] for row in group) + overhead for group in groups)


@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_what_has_one_prompt_stays_in_one_batch_that_holds_it(size: int) -> None:
    """Prompts of 1, 3 and 8 answers, shuffled: all are there once; split is only what is larger than a batch."""
    prompts = [(7,)] * 8 + [(5, 6)] + [(1, 2, 3)] * 3
    order = random.Random(0).sample(range(12), 12)
    examples = [Example(prompt_ids=prompts[at], answer_ids=(9,) * (at + 1)) for at in order]
    batches = list(prompt_batches(examples, size))
    assert sorted(row for batch in batches for row in batch) == list(range(12))
    assert max(map(len, batches)) <= size
    for prompt, count in ((7,), 8), ((5, 6), 1), ((1, 2, 3), 3):
        holding = [batch for batch in batches if any(examples[row].prompt_ids == prompt for row in batch)]
        assert len(holding) == -(-count // size)
    assert max(len(examples[row]) for row in batches[0]) == max(map(len, examples)), "memory peaks at once"


@pytest.mark.parametrize("overhead", [0, 5, 1000])
def test_padding_groups_are_the_cheapest(overhead: int) -> None:
    """Against every way to cut seven sorted sequences; nothing is lost, and dear groups are not cut at all."""
    lengths = [9, 3, 30, 4, 28, 4, 11]
    order = sorted(range(7), key=lambda row: -lengths[row])
    every_way = []
    for cuts in product([False, True], repeat=6):
        groups = [[order[0]]]
        for row, cut in zip(order[1:], cuts, strict=True):
            groups.append([row]) if cut else groups[-1].append(row)
        every_way.append(_group_cost(lengths, groups, overhead))
    groups = padding_groups(lengths, overhead)
    assert sorted(chain.from_iterable(groups)) == list(range(7))
    assert _group_cost(lengths, groups, overhead) == min(every_way)
    assert (len(groups) == 1) == (overhead == 1000)
