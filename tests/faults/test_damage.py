"""A small cache, damaged at a thousand places, one after the other."""

import caches
import pytest

from faults.damage import damage_at_random
from faults.processes import answer_of

IMAGES = 66  # a whole chunk and the beginning of another


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_damage_is_refused_or_harmless_and_verification_finds_it(trials):
    log = trials.folder / "damage.log"
    path = answer_of(caches.real, trials.folder, 2, IMAGES, log=log)
    places = trials.times(1040, 60)
    trials.outcomes, trials.failures = answer_of(
        damage_at_random, path, trials.rng, places, log=log, seconds=1500
    )
