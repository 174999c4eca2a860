"""A few of the thousand damages of `make faults`, at places that repeat."""

import random

from faults.damage import damage_at_random


def test_damage_anywhere_is_refused_or_does_not_matter(cache_copy):
    outcomes, failures = damage_at_random(cache_copy, random.Random(0), 60)
    assert sum(outcomes.values()) >= 50
    assert failures == []
