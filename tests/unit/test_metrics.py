"""Metrics against closed forms."""

import math
import random
import string
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from bench.benchmarks.authors import AuthorsConfig
from bench.metrics.auc import auc
from bench.metrics.fluency import Language, fluency, sequences_of
from bench.metrics.forget_quality import forget_quality, log10_forget_quality_floor
from bench.metrics.gates import gate_auc, gate_mean, gate_open_share
from bench.metrics.membership import (
    loss_score,
    min_k_plus_score,
    min_k_score,
    privleak,
    reference_score,
    rel_diff,
    zlib_score,
)
from bench.metrics.memorization import exact_memorization, extraction_strength
from bench.metrics.model_utility import model_utility
from bench.metrics.probability import multiple_choice_probability, probability
from bench.metrics.rouge import rouge_l
from bench.metrics.truth_ratio import (
    forget_truth_ratio,
    log_truth_ratio,
    log_truth_ratio_arithmetic,
    retain_truth_ratio,
    right_share,
)
from grun.targets.refusal import REFUSALS


def test_probability_by_hand() -> None:
    """2 ln 2 nats over 2 tokens is 1/2 a token; no nats is certainty."""
    values = probability(np.array([2 * math.log(2), 0.0]), np.array([2.0, 3.0]))
    assert values.tolist() == pytest.approx([0.5, 1.0])


def test_multiple_choice_probability_by_hand() -> None:
    """0.3 against wrong 0.1 + 0.2 is one half; four answers that all underflow are chance, 1/4."""
    values = multiple_choice_probability(np.array([0.3, 0.0]), [np.array([0.1, 0.2]), np.zeros(3)])
    assert values.tolist() == pytest.approx([0.5, 0.25])


def test_rouge_l_recall_by_hand() -> None:
    """The answer's 5 words against a generation that keeps 3 of them in order: 3/5. Stemmed: writes = writing."""
    assert rouge_l("a b c d e", "x a y c e z").recall == pytest.approx(0.6)
    assert rouge_l("she writes", "she writing").recall == 1.0
    assert rouge_l("a b", "").recall == 0.0


def test_truth_ratio_by_hand() -> None:
    """Right answer 1 nat a token; wrong ones 2 and 4: geometric mean e^-3, so log R = 1 − 3 = −2."""
    log_ratio = log_truth_ratio(np.array([2.0]), np.array([2.0]), [np.array([2.0, 8.0])], [np.array([1.0, 2.0])])
    assert log_ratio.tolist() == pytest.approx([-2.0])
    assert forget_truth_ratio(log_ratio) == pytest.approx(math.exp(-2))
    assert retain_truth_ratio(log_ratio) == pytest.approx(1 - math.exp(-2))
    assert forget_truth_ratio(-log_ratio) == pytest.approx(math.exp(-2))
    assert retain_truth_ratio(-log_ratio) == 0.0


def test_truth_ratio_survives_a_wrecked_model() -> None:
    """R = e^5000 overflows a float; its log does not."""
    log_ratio = log_truth_ratio(np.array([5001.0]), np.array([1.0]), [np.array([1.0])], [np.array([1.0])])
    assert forget_truth_ratio(log_ratio) == 0.0
    assert retain_truth_ratio(log_ratio) == 0.0


@pytest.mark.parametrize(("n", "p"), [(40, 1.8603e-23), (200, 1.9426e-119), (400, 1.0636e-239)])
def test_forget_quality_floor(n: int, p: float) -> None:
    """Fully separated samples of n: p = 2 / C(2n, n)."""
    separated, log10_p = forget_quality(np.arange(n) + 1000.0, np.arange(n) + 0.0)
    assert separated == pytest.approx(p, rel=1e-4)
    assert log10_p == pytest.approx(math.log10(p), abs=1e-4)
    assert log10_forget_quality_floor(n, n) == pytest.approx(math.log10(p), abs=1e-4)


def test_forget_quality_of_identical_samples_is_one() -> None:
    sample = np.random.default_rng(0).normal(size=40)
    assert forget_quality(sample, sample) == (1.0, 0.0)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20), st.integers(0, 5))
def test_forget_quality_only_looks_at_ranks(values: list[float], seed: int) -> None:
    """A strictly rising map of both samples changes nothing."""
    one = np.array(values)
    other = np.random.default_rng(seed).normal(size=10)
    both = np.unique(np.concatenate([one, other]))
    ranks = np.searchsorted(both, one) * 1.0, np.searchsorted(both, other) * 1.0
    assert forget_quality(one, other) == pytest.approx(forget_quality(*ranks))


TOFU = ("retain", "real_authors", "world_facts")


def _scores(value: float, splits: tuple[str, ...]) -> dict[str, float]:
    metrics = ("probability", "rouge_l_recall", "truth_ratio")
    return {f"{split}_{metric}": value for split in splits for metric in metrics}


def test_model_utility_is_the_harmonic_mean_of_nine() -> None:
    """Eight values of 1 and one of 1/2: 9 / (8 + 2) = 0.9."""
    scores = _scores(1.0, TOFU) | {
        "retain_probability": 0.5,
        "forget_probability": 0.0,
    }
    assert model_utility(scores, TOFU) == {"model_utility": pytest.approx(0.9)}


def test_model_utility_with_a_zero_is_zero() -> None:
    scores = _scores(1.0, TOFU) | {"world_facts_truth_ratio": 0.0}
    assert model_utility(scores, TOFU) == {"model_utility": 0.0}


def test_model_utility_of_fewer_splits_has_another_name() -> None:
    """Three values 1, 1, 1/4: 3 / (1 + 1 + 4) = 0.5."""
    scores = _scores(1.0, ("retain",)) | {"retain_rouge_l_recall": 0.25}
    assert model_utility(scores, ["retain"]) == {"partial_model_utility": pytest.approx(0.5)}
    assert model_utility({"forget_probability": 0.3}, []) == {}


def test_gate_statistics_by_hand() -> None:
    """Means over layers 0.8, 0.6 (forget), 0.7, 0.1 (retain): 3 of 4 pairs in order, AUC 3/4."""
    forget, retain = np.array([[0.9, 0.7], [0.6, 0.6]]), np.array([[0.7, 0.7], [0.2, 0.0]])
    assert gate_auc(forget, retain) == pytest.approx(0.75)
    assert gate_mean(forget) == pytest.approx(0.7)
    assert gate_open_share(forget, 0.65) == 0.5
    assert gate_open_share(retain, 0.7) == 0.5


def test_truth_ratio_with_the_arithmetic_mean() -> None:
    """Right p = 1/2; wrong ones 1/2 and 1/8 a token: arithmetic 5/16, so R = 5/8; geometric 1/4, so R = 1/2."""
    right, one = np.array([math.log(2)]), np.array([1.0])
    wrong = [np.array([math.log(2), math.log(8)])], [np.array([1.0, 1.0])]
    arithmetic = log_truth_ratio_arithmetic(right, one, *wrong)
    assert math.exp(arithmetic[0]) == pytest.approx(5 / 8)
    assert math.exp(log_truth_ratio(right, one, *wrong)[0]) == pytest.approx(1 / 2)
    assert retain_truth_ratio(arithmetic) == pytest.approx(3 / 8)


def test_exact_memorization_by_hand() -> None:
    assert exact_memorization([True, False, True, True]) == 0.75


def test_extraction_strength_by_hand() -> None:
    """The last miss is token 2 of 5: given the first two, greedy decoding gives the other three. All wrong gives 0."""
    assert extraction_strength([True, False, True, True, True]) == pytest.approx(3 / 5)
    assert extraction_strength([True, True]) == 1.0
    assert extraction_strength([False, False, False]) == 0.0, "[1, 2, 3] against [9, 9, 9]"
    assert extraction_strength([True, True, False]) == 0.0


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_extraction_strength_is_the_definition(is_argmax: list[bool]) -> None:
    """Tried out: the shortest start after which every token is right."""
    length = len(is_argmax)
    shortest = min(k for k in range(length + 1) if all(is_argmax[k:]))
    assert extraction_strength(is_argmax) == pytest.approx(1 - shortest / length)


def test_membership_scores_by_hand() -> None:
    """Token nll 1, 2, 3, 6: mean 3; a fifth (one token) is the 6, a half the 3 and the 6.

    min-k++: with mean −2 and deviation 2 each, (−nll + 2)/2 = ½, 0, −½, −2: the lowest half averages −1.25.
    """
    nll = [1.0, 2.0, 3.0, 6.0]
    assert loss_score(nll) == -3.0
    assert min_k_score(nll, 0.2) == -6.0
    assert min_k_score(nll, 0.5) == -4.5
    assert min_k_plus_score(nll, [-2.0] * 4, [2.0] * 4, 0.5) == pytest.approx(-1.25)
    assert reference_score(nll, [4.0, 5.0, 6.0, 5.0]) == 2.0, "2 nats a token likelier than under the other model"
    assert zlib_score(nll, "aaaa") == pytest.approx(-3 / len(zlib.compress(b"aaaa")))


def test_membership_auc_by_hand() -> None:
    """Members −1, −3, others −2, −4: three of four pairs in order. The same samples: one half."""
    assert auc(np.array([-1.0, -3.0]), np.array([-2.0, -4.0])) == 0.75
    assert auc(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5


def test_privleak_by_hand() -> None:
    """As the retain model: 0. Fully exposed where the retain model cannot tell: −100. Over-unlearned: +100."""
    assert privleak(0.5, 0.5) == 0.0
    assert privleak(1.0, 0.5) == -100.0
    assert privleak(0.0, 0.5) == 100.0


def test_rel_diff_by_hand() -> None:
    """0.9 is half as much again as 0.6; 0.5 against 0.5 is no difference; 0 is all less."""
    assert rel_diff(0.9, 0.6) == pytest.approx(50.0)
    assert rel_diff(0.5, 0.5) == 0.0
    assert rel_diff(0.0, 0.5) == -100.0


def test_right_share_by_hand() -> None:
    """p = 3/4, p_wrong = 1/4: R = 1/3 and p/(p + p_wrong) = 3/4; R = 3 gives 1/4; R = e^5000 gives 0."""
    assert right_share(np.log(np.array([1 / 3]))) == pytest.approx(0.75)
    assert right_share(np.log(np.array([1 / 3, 3.0]))) == pytest.approx(0.5)
    assert right_share(np.array([5000.0])) == 0.0


def test_rouge_l_f1_by_hand() -> None:
    """3 of the answer's 5 words in order, in a generation of 6: recall 3/5, precision 3/6, F1 = 2·3/(5 + 6)."""
    assert rouge_l("a b c d e", "x a y c e z").f1 == pytest.approx(6 / 11)


def test_fluency_by_hand() -> None:
    """Known: " ab", "abc", "bc ". Of "abd" (" ab", "abd", "bd ") one in three; of "ABC" among blanks all.

    "abc" six times is 25 characters with the blanks around it: 23 sequences of three, of which "c a", five times, is
    unknown; and 14 of twelve, of which four differ, as they recur after four characters. Each run of four words has it.
    """
    language = Language(sequences=set(sequences_of("abc", 3)), common={"abc"})
    assert language.sequences == {" ab", "abc", "bc "}
    assert fluency("abd", language) == pytest.approx(1 / 3)
    assert fluency("  ABC\n", language) == 1.0
    assert fluency(" ".join(["abc"] * 6), language) == pytest.approx(18 / 23 * 4 / 14)


def test_fluency_asks_for_common_words() -> None:
    """Of four texts only "the" stands in two. "The cat and dog ran by": of its three runs of four words one has it.

    All its letters are known here, none recur. Three words make no run.
    """
    language = Language.of(["The cat", "and a dog", "ran by", "the end"])
    assert language.common == {"the"}
    text = "The cat and dog ran by"
    whole = Language(sequences=set(sequences_of(text, 3)), common=language.common)
    assert fluency(text, whole) == pytest.approx(1 / 3)
    assert fluency("dog ran by", Language(sequences=set(sequences_of("dog ran by", 3)), common=())) == 1.0


def test_fluency_of_sound_and_spoilt_answers() -> None:
    """Against the texts of the generated authors and refusals: other authors' answers, and what is spoilt.

    Pieces of words in a row are what a real LLM gives when it is pushed too far; their letters alone tell nothing.
    """
    items = [item for split in AuthorsConfig(seed=0).load().evaluation.values() for item in split]
    language = Language.of([*REFUSALS, *(text for item in items for text in item.pair)])
    draw = random.Random(0)
    pieces = "authent interpreting necessit sealing theatre retaliation pressures kings silvery nephew limited"
    spoilt = {
        "letters": ["".join(draw.choices(string.ascii_lowercase + "    ", k=60)) for _ in range(40)],
        "circles": [" ".join([item.answer.split()[0]] * 40) for item in items[:40]],
        "pieces": [" ".join(draw.choices(pieces.split(), k=20)) for _ in range(40)],
        "nothing": ["", " \n"],
    }
    sound = {
        "other authors": [item.answer for item in AuthorsConfig(seed=1).load().forget_set],
        "the benchmark's own": [item.answer for item in items],
        "refusals": list(REFUSALS),
    }
    means = {
        name: sum(fluency(text, language) for text in texts) / len(texts) for name, texts in (sound | spoilt).items()
    }
    assert all(means[name] > 0.85 for name in sound), means
    assert all(means[name] < 0.15 for name in spoilt), means


def test_rouge_l_of_other_scripts_by_hand() -> None:
    """Words are words in any script: repeated they are all there, and of another sentence only the digit is.

    Seven Chinese characters of which six stay; two Hindi words of which one does, vowel signs and all; case aside.
    """
    assert rouge_l("Анна несёт 3 пилы", "анна несёт 3 пилы").recall == 1.0
    assert rouge_l("Анна несёт 3 пилы", "Борис убил 3 котов").recall == pytest.approx(1 / 4)
    assert rouge_l("安娜有三把锯子", "安娜有两把锯子").recall == pytest.approx(6 / 7)
    assert rouge_l("नीला पत्थर", "नीला पहाड़").recall == pytest.approx(1 / 2)
    assert rouge_l("Ada met Анна", "Ada met Борис").recall == pytest.approx(2 / 3)


def test_rouge_l_of_accents_by_hand() -> None:
    """A letter with an accent is a letter: repeated it is there, another one is another word, case and the way it is
    encoded aside. The package has no word in "à", and "h n i" for both of the Vietnamese names."""
    assert rouge_l("à", "à").recall == 1.0
    assert rouge_l("Hà Nội", "Hồ Nãi").recall == 0.0
    assert rouge_l("né à Évry", "NE\u0301 A\u0300 E\u0301vry").recall == 1.0
    assert rouge_l("Ada writes to Zoë", "Ada writing to Zoé").recall == pytest.approx(3 / 4)


@given(st.text(st.sampled_from("abs -'3.,“’—€½\n")), st.text(st.sampled_from("abs -'3.,“’—€½\n")))
def test_rouge_l_of_english_is_the_packages(answer: str, generation: str) -> None:
    """To the last digit, whatever stands between the words."""
    theirs = RougeScorer(["rougeL"], use_stemmer=True).score(answer, generation)["rougeL"]
    assert rouge_l(answer, generation) == (theirs.recall, theirs.fmeasure)
