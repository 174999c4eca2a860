"""Classification by weighted nearest neighbours, in one call."""

from pipeline.evaluation.knn import nearest, rank_by_votes


def knn_predictions(bank, bank_labels, queries, *, k=20, temperature=0.07, groups=None):
    """Classify `queries` (m, C) by the k most similar of `bank` (n, C) with its labels (n,): labels (m,)."""
    found = nearest([bank], len(bank), queries, k, groups)
    return rank_by_votes(found, bank_labels, [(k, temperature)])[k, temperature][:, 0]
