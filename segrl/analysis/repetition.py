"""How far each segment repeats the ones before it: BLEU, by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence

REPETITIVE = 0.8  # the paper's line: above it a segment says what was said


def bleu_before(texts: Sequence[str], tokenize: str = "13a") -> list[float | None]:
    """BLEU, 0 to 1, of each text against all before it as references; None for the first, which has none.

    Texts shorter than four tokens are judged by the n-grams they have; ``tokenize`` is a name of sacrebleu's.
    """
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True, tokenize=tokenize)
    scores: list[float | None] = [None] if texts else []
    for s in range(1, len(texts)):
        scores.append(bleu.sentence_score(texts[s], list(texts[:s])).score / 100)
    return scores
