"""Later."""


def damage_caches(plan):
    return []
